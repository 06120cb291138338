"""bpf/flow_events.h and apicost/ingest/wire.py state one layout."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from apicost.ingest import loader, wire
from apicost.ingest.probe import probe_sources

# The header names both halves of an address; the columns name each.
STRUCTURES = {
    "direction": wire.DIRECTION,
    "flow_event": wire.FLOW_EVENT,
    "handshake_key": wire.HANDSHAKE_KEY,
    "turn_batch": wire.TURN_BATCH,
    "slot": wire.SLOT,
}
HALVES = {"local_hi": "local[0]", "local_lo": "local[1]", "peer_hi": "peer[0]", "peer_lo": "peer[1]"}


def claims() -> list[str]:
    """One C assertion per field and structure, from the dtypes."""
    found = []
    for name, dtype in STRUCTURES.items():
        found.append(f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "{name}");')
        for field in dtype.names:
            kind, offset = dtype.fields[field][:2]
            member = HALVES.get(field, field)
            found += [
                f'_Static_assert(__builtin_offsetof(struct {name}, {member}) == {offset}, "{name}.{field}");',
                f'_Static_assert(sizeof(((struct {name} *)0)->{member}) == {kind.itemsize}, "{name}.{field}");',
            ]
    found.append(f'_Static_assert(TURN_BYTES == {wire.TURN_EVENT.itemsize}, "turn");')
    found.append(f'_Static_assert(TURNS_TOGETHER == {wire.TURNS_TOGETHER}, "turns in a ring record");')
    found.append(f'_Static_assert(BATCH_SHIFT == {wire.BATCH_SHIFT}, "where a turn\'s number ends");')
    found.append(f'_Static_assert(WIRE_VERSION == {wire.WIRE_VERSION}, "version");')
    found.append(f'_Static_assert(SLOTS == {len(wire.SLOT_NAMES)}, "slots");')
    found += [f'_Static_assert(SLOT_{n.upper()} == {i}, "{n}");' for i, n in enumerate(wire.SLOT_NAMES)]
    return found


def compiles(source: str, folder: Path) -> subprocess.CompletedProcess:
    """Check C text: by gcc where it is, else by the compiler that comes with bcc."""
    loader.write_headers(folder)
    file = folder / "check.c"
    file.write_text(source)
    include = [f"-I{probe_sources()}", f"-I{folder}/include"]
    if shutil.which("gcc"):
        return subprocess.run(["gcc", "-fsyntax-only", *include, str(file)], capture_output=True, text=True)
    script = (
        f"import os; os.environ['BCC_KERNEL_SOURCE']={str(folder)!r}; import bcc; "
        f"bcc.BPF(src_file={str(file)!r}, cflags={include!r})"
    )
    done = subprocess.run(["/usr/bin/python3", "-Ic", script], capture_output=True, text=True)
    if "No module named 'bcc'" in done.stderr:
        pytest.skip("needs gcc or python3-bpfcc")
    return done


def test_every_offset_and_size_agrees(tmp_path):
    """What the kernel writes at an offset is what user space reads there."""
    done = compiles('#include "flow_events.h"\n' + "\n".join(claims()), tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_comparison_can_fail(tmp_path):
    """A field that is elsewhere is found."""
    wrong = claims()[3].replace("== 8", "== 9").replace("== 0", "== 1")
    assert wrong != claims()[3]
    assert compiles(f'#include "flow_events.h"\n{wrong}', tmp_path).returncode != 0


def test_no_field_is_left_out():
    """Every member of the structures has a column in the dtypes, in the same order."""
    text = (probe_sources() / "flow_events.h").read_text()
    for name, dtype in STRUCTURES.items():
        body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.S).group(1)
        members = re.findall(r"(?:__u\d+|struct direction) (\w+)(?:\[\d+\])?;", body)
        columns = [re.sub(r"_(hi|lo)$", "", field) for field in dtype.names]
        assert members == list(dict.fromkeys(columns)), name


def test_the_turn_record_is_the_beginning_of_the_flow():
    """A finished turn has the same fields in the same places as an entry of the table after its `sock`."""
    begin = wire.FLOW_EVENT.fields["last_ns"][1]
    assert wire.FLOW_EVENT.names[:2] == ("sock", "last_ns")
    for field in wire.TURN_EVENT.names:
        kind, offset = wire.TURN_EVENT.fields[field][:2]
        assert wire.FLOW_EVENT.fields[field][:2] == (kind, begin + offset)


def test_each_direction_has_a_cache_line_to_itself():
    """Seats are cache lines long, and so are their directions, from a line's beginning."""
    for field in ("in", "out"):
        kind, offset = wire.FLOW_EVENT.fields[field][:2]
        assert (kind.itemsize, offset % 64) == (64, 0)
    assert wire.FLOW_EVENT.itemsize % 64 == 0
    assert np.dtype(np.uint64).itemsize + wire.TURN_BATCH["turns"].itemsize == wire.RING_RECORD.itemsize
    assert wire.RING_RECORD.itemsize % 8 == 0, "the kernel rounds records up to 8 bytes"
