"""The ledger as the daemon writes it: once, durable, mended at the start."""

import signal
import sqlite3
import subprocess
import sys

import pyarrow as pa
import pytest

from apicost.core import records
from apicost.store import segments
from apicost.store.catalogue import CATALOGUE, DAY_S, LedgerError
from apicost.store.lake import Lake
from tests.store.batches import NOON, completeness, exchange, same, table, usage


def outputs(*rows: dict) -> dict[str, pa.Table]:
    """What a step hands over for some exchanges."""
    return {
        "exchanges": table(list(rows)),
        "usage": usage(*rows),
        "completeness": completeness((NOON, "lines_received", len(rows))),
    }


def content(lake: Lake, kind: str) -> pa.Table:
    """Every row of a kind, in the order of commits."""
    listing = lake._catalogue.segments(kind)
    return pa.concat_tables([segments.read(lake.folder, segment) for segment in listing]).combine_chunks()


def test_what_was_committed_is_read_back(tmp_path):
    """Rows, types, nulls and text survive; what is open comes back as it was given."""
    rows = [exchange(api=None), exchange(api="é", peer="2001:db8::1"), exchange(ended_s=NOON + DAY_S)]
    step = outputs(*rows)
    with Lake.open(tmp_path) as lake:
        lake.commit(["a"], step, {"lines": step["exchanges"], "nothing": records.empty(records.FLOW)})
    with Lake.open(tmp_path) as lake:
        assert content(lake, "exchanges").to_pylist() == step["exchanges"].to_pylist()
        assert content(lake, "usage").schema.equals(records.schema(records.USAGE))
        carry = lake.carry()
        assert carry["lines"].equals(step["exchanges"])
        assert carry["nothing"].equals(records.empty(records.FLOW))


def test_segments_lie_by_utc_day(tmp_path):
    """A step across midnight writes one file per day and kind."""
    midnight = NOON + DAY_S // 2
    with Lake.open(tmp_path) as lake:
        lake.commit([], {"exchanges": table([exchange(ended_s=midnight - 1), exchange(ended_s=midnight)])})
    assert [p.parent.name for p in sorted(tmp_path.glob("segments/*/*"))] == ["2026-11-07", "2026-11-08"]


def test_a_repeated_commit_changes_nothing(tmp_path):
    """The same inputs again are a no-op, also for the carry, also after a restart."""
    with Lake.open(tmp_path) as lake:
        assert not lake.commit(["a", "b"], outputs(exchange()), {"open": usage(exchange())}).repeated
        assert lake.commit(["a", "b"], outputs(exchange()), {}).repeated
    with Lake.open(tmp_path) as lake:
        assert lake.commit(["b", "a"], outputs(exchange()), {}).repeated
        assert lake.stats()["usage_segments"] == 1
        assert list(lake.carry()) == ["open"]
        assert lake.consumed(["a", "b", "c"]) == {"a", "b"}


def test_a_step_with_inputs_partly_counted_is_refused(tmp_path):
    """It would count the others twice; the message names them."""
    with Lake.open(tmp_path) as lake:
        lake.commit(["a"], outputs(exchange()))
        with pytest.raises(LedgerError, match=r"second time: \['a'\]"):
            lake.commit(["a", "b"], outputs(exchange()))
        assert lake.stats()["step"] == 1


def test_forgotten_inputs_are_gone(tmp_path):
    """What the spool has dropped need not be remembered."""
    with Lake.open(tmp_path) as lake:
        lake.commit(["a", "b"], outputs(exchange()))
        lake.forget(["a"])
        assert lake.consumed(["a", "b"]) == {"b"}


def test_time_alone_may_end_an_exchange(tmp_path):
    """A step without inputs is committed each time; without a carry the former one stays."""
    with Lake.open(tmp_path) as lake:
        lake.commit([], outputs(exchange()), {"open": usage(exchange())})
        lake.commit([], outputs(exchange()))
        assert lake.stats()["usage_segments"] == 2
        assert list(lake.carry()) == ["open"]


def test_an_empty_step_writes_no_file(tmp_path):
    """No rows, no segment."""
    with Lake.open(tmp_path) as lake:
        done = lake.commit(["a"], {kind: records.empty(columns) for kind, columns in segments.COLUMNS.items()}, {})
        assert (done.segments, list(tmp_path.glob("segments/*/*"))) == (0, [])


def test_other_columns_are_refused(tmp_path):
    """The ledger checks its door before it writes anything."""
    with Lake.open(tmp_path) as lake, pytest.raises(records.BatchError, match="ledger: usage"):
        lake.commit(["a"], {"usage": table([exchange()])})
    assert list(tmp_path.glob("segments/*/*")) == []


def test_one_writer_at_a_time(tmp_path):
    """A second daemon on the same ledger is told which process holds it."""
    with Lake.open(tmp_path), pytest.raises(LedgerError, match=r"process \d+ writes this ledger"):
        Lake.open(tmp_path)
    Lake.open(tmp_path).close()


def test_leftovers_of_a_crash_are_removed_and_named(tmp_path):
    """Files that no list names, and half-written ones, go at the start; committed ones stay."""
    with Lake.open(tmp_path) as lake:
        lake.commit(["a"], outputs(exchange()))
        kept = sorted(tmp_path.glob("segments/*/*"))
    folder = kept[0].parent
    for name in ("usage-0000000002.parquet", "exchanges-0000000002.parquet.tmp"):
        (folder / name).write_bytes(b"half")
    with Lake.open(tmp_path) as lake:
        assert lake.repaired.leftovers == (
            "segments/2026-11-07/exchanges-0000000002.parquet.tmp",
            "segments/2026-11-07/usage-0000000002.parquet",
        )
        assert lake.repairs[0].startswith("segments/2026-11-07/exchanges-0000000002.parquet.tmp: left by")
    assert sorted(tmp_path.glob("segments/*/*")) == kept


@pytest.mark.parametrize("how", ["missing", "short", "garbled"])
def test_a_damaged_segment_is_named_and_the_rest_works(tmp_path, how):
    """The start names the file, what is wrong and what is missing for it; later steps go on."""
    with Lake.open(tmp_path) as lake:
        lake.commit(["a"], {"usage": usage(exchange(downstream_in_wire_bytes=70), exchange())})
    (path,) = tmp_path.glob("segments/*/usage*")
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if how == "short" else b"\0" * len(whole))
    with Lake.open(tmp_path) as lake:
        (damage,) = lake.repaired.damaged
        assert (damage.calls, damage.wire_bytes) == (2, 70)
        assert damage.name == str(path.relative_to(tmp_path)) and damage.name in str(damage)
        lake.commit(["b"], outputs(exchange()))


def test_verify_finds_one_flipped_bit(tmp_path):
    """The catalogue has a checksum of each file; the quick look at the start does not read them."""
    with Lake.open(tmp_path) as lake:
        lake.commit(["a"], outputs(exchange()))
        assert lake.verify() == []
        path = next(tmp_path.glob("segments/*/usage*"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert [damage.name for damage in lake.verify()] == [str(path.relative_to(tmp_path))]


def test_a_damaged_catalogue_is_refused(tmp_path):
    """No new ledger is started over an old one that can't be read."""
    Lake.open(tmp_path).close()
    (tmp_path / CATALOGUE).write_bytes(b"not a database" * 999)
    with pytest.raises(LedgerError, match="the catalogue is damaged"):
        Lake.open(tmp_path)


def test_a_catalogue_of_another_form_is_refused(tmp_path):
    """A newer apicost's ledger is not touched by an older one."""
    Lake.open(tmp_path).close()
    with sqlite3.connect(tmp_path / CATALOGUE) as connection:
        connection.execute("pragma user_version = 9")
    with pytest.raises(LedgerError, match="form 9 of the ledger, this apicost knows form 2"):
        Lake.open(tmp_path)


FULL_DISK = """
import resource, sys
from apicost.store.lake import Lake
from tests.store.batches import many, meter, SCOPES
batch = many(20_000)
with Lake.open(sys.argv[1]) as lake:
    lake.commit(["first"], {"exchanges": batch.slice(0, 100)}, {"open": batch.slice(0, 10)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        lake.commit(["second"], {"exchanges": batch, "usage": meter.meter(batch, SCOPES)}, {"open": batch})
    except OSError as error:
        print("refused", type(error).__name__, lake.consumed(["first", "second"]), lake.carry()["open"].num_rows)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("again", lake.commit(["second"], {"exchanges": batch}, {}).repeated, lake.stats()["exchanges_rows"])
"""


@pytest.mark.parametrize("bytes_left", [100_000, 1_200_000], ids=["a segment does not fit", "the carry does not fit"])
def test_a_full_disk_loses_nothing(tmp_path, bytes_left):
    """The commit is refused as a whole, leaves no file behind, and succeeds when there is room again."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(bytes_left)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    refused, again = done.stdout.splitlines()
    assert refused.startswith("refused") and refused.endswith("{'first'} 10")
    assert again == "again False 20100"
    with Lake.open(tmp_path) as lake:
        assert lake.repairs == ()


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    """The caller can tell a bad place from a bad ledger."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Lake.open(tmp_path / "file")


WRITER = """
import sys
from apicost.store.lake import Lake
from tests.store.batches import exchange, usage, table, completeness, NOON
ledger, number = sys.argv[1], int(sys.argv[2])
one = {"usage": usage(exchange()), "exchanges": table([exchange()])}
with Lake.open(ledger) as lake:
    print("open", flush=True)
    while True:
        name = f"input-{number}"
        if not lake.consumed([name]):
            carry = {"open": completeness((NOON, "last", number))}
            lake.commit([name], one, carry)
        print(number, flush=True)
        number += 1
"""


def test_killed_at_any_moment_each_input_counts_once(tmp_path):
    """What was acknowledged is there once, what was not is there once or not at all; the carry fits it."""
    acknowledged = 0
    for round_ in range(6):
        # Each round begins with the last input again, as the daemon does that can't know.
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(acknowledged)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout.readline() == "open\n"
            for _ in range(7 + 5 * round_):
                acknowledged = int(writer.stdout.readline())
        finally:
            writer.send_signal(signal.SIGKILL)
            rest = writer.communicate()[0].split()
        acknowledged = max([acknowledged, *(int(number) for number in rest if number.isdigit())])
    with Lake.open(tmp_path) as lake:
        assert lake.repaired.damaged == ()
        wanted = {f"input-{i}" for i in range(acknowledged + 1)}
        assert wanted <= lake.consumed([*wanted, f"input-{acknowledged + 1}"])
        count = len(lake.consumed([*wanted, f"input-{acknowledged + 1}"]))
        assert lake.stats()["usage_rows"] == lake.stats()["exchanges_rows"] == count
        assert lake.carry()["open"].column("value").to_pylist() == [count - 1]
    assert len(list(tmp_path.glob("segments/*/*"))) == 2 * count, "no leftovers after the repair"


def test_the_daemons_side_is_light():
    """Writing the ledger brings neither pandas nor DuckDB into the process."""
    code = "import sys, apicost.store.lake; print({'pandas', 'duckdb', 'openapi_core'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_equal_steps_are_equal_bytes(tmp_path):
    """Two ledgers of the same steps hold the same rows in the same bytes."""
    found = []
    for name in ("one", "two"):
        with Lake.open(tmp_path / name) as lake:
            lake.commit(["a"], outputs(exchange(), exchange(api="b")))
            found.append(content(lake, "usage"))
    assert same(*found)
