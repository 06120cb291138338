"""What the shapes of single exchanges are."""

import subprocess
import sys

import numpy as np
import pytest

from apicost.core import records
from apicost.core.conformance.shapes import CLIENT_BITS, client_bits, merge, shapes, usage_of
from apicost.core.meter import SUMS
from apicost.core.records import RowKind
from apicost.store.privacy import with_privacy
from tests.store.batches import NOON, SCOPES, exchange, halves, table, usage


def shaped(*rows: dict) -> list[dict]:
    return shapes(table(list(rows)), SCOPES).to_pylist()


def one(*rows: dict) -> dict:
    found = shaped(*rows)
    assert len(found) == 1, found
    return found[0]


TOLD_APART = {
    "host": ("a.example", "b.example"),
    "query_names": ("page", "page,q"),
    "status": (200, 201),
    "response_source": ("apisix", "upstream"),
    "request_content_type": ("application/json", "text/plain"),
    "response_content_type": ("application/json", None),
    "auth_kinds": ("bearer", None),
    "match_flags": ("loose-match", None),
    "downstream_out_app_bytes": (1_000, 1_024),
}


@pytest.mark.parametrize(("name", "values"), TOLD_APART.items())
def test_what_a_document_can_speak_about_is_told_apart(name, values):
    """Two requests of one row of usage are two shapes where host, query names, status, ... differ."""
    rows = [exchange(**{name: value}) for value in values]
    assert len(shaped(*rows)) == 2 and usage(*rows).num_rows == 1


def test_the_case_of_a_media_type_tells_nothing_apart():
    """RFC 9110: media types are compared without case."""
    rows = [exchange(response_content_type=text) for text in ("application/json", "Application/JSON")]
    assert one(*rows)["response_content_type"] == "application/json"


def test_a_shape_says_when_how_large_and_from_whom():
    """First and last end, smallest and largest response, one bit for each client; and all sums of usage."""
    rows = [
        exchange(ended_s=NOON + 1, downstream_out_app_bytes=1_025, peer="192.0.2.1", downstream_in_wire_bytes=5),
        exchange(ended_s=NOON + 9, downstream_out_app_bytes=4_095, peer="192.0.2.2", downstream_in_wire_bytes=6),
        exchange(ended_s=NOON + 5, downstream_out_app_bytes=1_024, peer="192.0.2.1", downstream_in_wire_bytes=7),
    ]
    row = one(*rows)
    assert (row["first_unix_ns"], row["last_unix_ns"]) == ((NOON + 1) * 10**9, (NOON + 9) * 10**9)
    assert (row["least_out_app_bytes"], row["most_out_app_bytes"], row["size_class"]) == (1_024, 4_095, "05")
    hi, lo = zip(halves("192.0.2.1"), halves("192.0.2.2"), strict=True)
    assert row["clients"] == int(client_bits(np.array(hi, np.uint64), np.array(lo, np.uint64)).sum())
    (whole,) = usage(*rows).to_pylist()
    assert {name: row[name] for name in SUMS} == {name: whole[name] for name in SUMS}


SIZES = {
    -1: None,
    0: None,
    1: "00",
    3: "00",
    4: "01",
    15: "01",
    16: "02",
    4**30: "30",
    4**31: "31",
    (1 << 63) - 1: "31",
}


@pytest.mark.parametrize(("size", "wanted"), SIZES.items())
def test_size_classes_are_powers_of_four(size, wanted):
    """Class k has 4**k to 4**(k+1)-1 bytes; no bytes and no count have none."""
    row = one(exchange(downstream_out_app_bytes=size))
    assert (row["size_class"], row["least_out_app_bytes"], row["most_out_app_bytes"]) == (wanted, size, size)


def test_an_absent_size_is_no_small_size():
    """-1 stands for no count: merged with a count, the count is the least."""
    counted = shapes(table([exchange(downstream_out_app_bytes=0)]), SCOPES)
    absent = shapes(table([exchange(downstream_out_app_bytes=-1)]), SCOPES)
    (row,) = merge([absent, counted, absent]).to_pylist()
    assert (row["calls"], row["least_out_app_bytes"], row["most_out_app_bytes"]) == (3, 0, 0)


def test_paths_are_kept_where_no_operation_matched_and_folded():
    """A documented request has its template; of another the path is all there is, method documented or not."""
    found = shaped(
        exchange(path="/users/1"),
        exchange(path="/users/1", match_state="undocumented-path"),
        exchange(path="/users/22", match_state="undocumented-path"),
        exchange(path="/users/22", match_state="undocumented-method"),
    )
    told = {r["match_state"]: (r["path_template"], r["path"], r["calls"]) for r in found}
    assert len(found) == 3 and told == {
        "matched": ("/orders/{id}", None, 1),
        "undocumented-method": (None, "/users/{int}", 1),
        "undocumented-path": (None, "/users/{int}", 2),
    }


def test_query_names_are_bounded():
    """Sixteen names of forty characters; what is equal then is one shape."""
    many = [f"name{i:02}" for i in range(30)]
    assert one(exchange(query_names=",".join(many)))["query_names"] == ",".join(many[:16])
    assert one(exchange(query_names="a," + "x" * 50), exchange(query_names="a," + "x" * 60))["query_names"] == (
        "a," + "x" * 40
    )
    assert one(exchange(query_names="a\x00b"))["query_names"] == "a%00b"


def test_hosts_and_media_types_are_bounded():
    """A client sends what it likes as Host and Content-Type."""
    row = one(exchange(host="h" * 999, request_content_type="a/" + "b" * 999, response_content_type="\x1b[1m"))
    assert (len(row["host"]), len(row["request_content_type"]), row["response_content_type"]) == (253, 100, "%1B[1m")


def test_bytes_without_a_request_are_kept_without_status():
    """What no request claims is usage too: its shape has bytes, and neither calls, status, size nor client."""
    rows = [
        exchange(kind=RowKind.UNATTRIBUTED, status=-1, match_state="unattributed", downstream_in_wire_bytes=70, **none)
        for none in ({"method": None, "peer": "192.0.2.1", "downstream_out_app_bytes": 9},)
    ]
    row = one(*rows)
    assert (row["calls"], row["downstream_in_wire_bytes"], row["unattributed_bytes"]) == (0, 70, 70)
    assert (row["status"], row["size_class"], row["least_out_app_bytes"], row["most_out_app_bytes"]) == (
        None, None, -1, -1,
    )  # fmt: skip
    assert row["clients"] == 0


def test_statuses_have_three_digits():
    """As OpenAPI writes them."""
    assert [one(exchange(status=status))["status"] for status in (200, 99, 0)] == ["200", "099", "000"]


def test_no_exchanges_no_shapes():
    """An empty batch gives an empty batch, at every door."""
    empty = shapes(records.empty(records.EXCHANGE), SCOPES)
    assert (empty.num_rows, merge([]).num_rows, usage_of(empty).num_rows) == (0, 0, 0)
    with pytest.raises(records.BatchError, match="usage of shapes"):
        usage_of(records.empty(records.USAGE))


def test_clients_are_told_apart_as_far_as_they_are_stored():
    """Cut addresses have one bit for the network; the scope is that of the whole address."""
    whole = table([exchange(peer=f"10.0.0.{i}") for i in range(9)])
    (row,) = shapes(whole, SCOPES, stored=with_privacy(whole, "truncate")).to_pylist()
    assert (row["calls"], row["clients"].bit_count(), row["scope"]) == (9, 1, "office")
    assert shapes(whole, SCOPES).to_pylist()[0]["clients"].bit_count() > 1


def test_the_bit_of_a_client_is_the_same_in_every_process():
    """Bits of different days and machines are or-ed: the hash must not depend on the process."""
    program = (
        "import numpy as np; from apicost.core.conformance.shapes import client_bits;"
        "print(client_bits(np.array([0], np.uint64), np.array([0xFFFFC0000201], np.uint64))[0])"
    )
    hi, lo = halves("192.0.2.1")
    here = int(client_bits(np.array([hi], np.uint64), np.array([lo], np.uint64))[0])
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(told.stdout) == here == 1 << 45


def test_clients_spread_over_all_bits():
    """Neighbouring addresses get bits like independent ones: of 63 clients in a row about 40 bits, as by chance."""
    lo = np.arange(63 * 100, dtype=np.uint64) + np.uint64(halves("10.0.0.0")[1])
    bits = client_bits(np.zeros(len(lo), np.uint64), lo)
    assert (bits > 0).all() and int(np.bitwise_or.reduce(bits)) == (1 << CLIENT_BITS) - 1
    used = [int(np.bitwise_or.reduce(part)).bit_count() for part in np.split(bits, 100)]
    assert 38 < np.mean(used) < 42  # 63 * (1 - (1 - 1/63)**63) = 40.0
