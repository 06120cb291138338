"""Requests over TLS whose end the TLS layer's counters tell, and those where they are ahead."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core.join.correlate import Carry
from apicost.core.join.tls_offsets import record_bytes
from apicost.core.records import Confidence, RowKind, SnapshotKind
from tests.core.test_downstream_cases import flow, line, rows, step

HELLO = (517, 1_400)  # what both sides send before the client's Finished
FINISHED = 80
RECORD = 22
RESPONSE = 600
APART, JOINED, SMALL = "apart", "joined", "small"
# What the plugin says of a request whose body came in together with the next request.
AHEAD, NOTHING = "ahead", "nothing"


@dataclass(frozen=True)
class Asked:
    """A request: plain bytes of its head and body; early: answered before the body came, which nginx throws away."""

    head: int = 110
    body: int = 0
    early: bool = False
    told: str = NOTHING
    records: str = APART


def wire(asked: Asked) -> tuple[int, int]:
    """Payload of the head (with the body, where both are one record), and of the body."""
    if asked.records == JOINED or not asked.body:
        plain = asked.head + asked.body
        return plain + RECORD * -(-plain // 16_384), 0
    each = 1_000 if asked.records == SMALL else 16_384
    return asked.head + RECORD, asked.body + RECORD * -(-asked.body // each)


def connection(requests: list[Asked]) -> tuple[list[dict], list[dict], list[int]]:
    """Snapshots, lines and the true payload in of each request. An early answer makes a turn before the body."""
    snapshots = [flow(0, SnapshotKind.TURN, 1_000, HELLO)]
    lines: list[dict] = []
    truth = []
    got_in, got_out = HELLO[0] + FINISHED, HELLO[1]
    at = 1_000
    for number, asked in enumerate(requests):
        head, body = wire(asked)
        truth.append(head + body)
        at += 10
        got_in += head if asked.early else head + body
        got_out += RESPONSE
        snapshots.append(flow(len(snapshots), SnapshotKind.TURN, at, (got_in, got_out)))
        if asked.early:
            got_in += body
        after = requests[number + 1] if number + 1 < len(requests) else None
        ahead = asked.early and body > 0 and after is not None
        read: Any = got_in
        if ahead:
            read = -1 if asked.told == NOTHING else got_in + sum(wire(after)) * (not after.early)
        lines.append(
            line(
                number + 1, at - 1, (asked.head if asked.early else asked.head + asked.body, RESPONSE - RECORD),
                tls_version="TLSv1.3", tls_cipher="TLS_AES_256_GCM_SHA384", tls_read_bytes=read,
                tls_written_bytes=got_out, content_length=asked.body or -1,
            )
        )  # fmt: skip
    snapshots[-1] = snapshots[-1] | {"kind": SnapshotKind.CLOSED, "in_payload_bytes": got_in}
    snapshots[-1]["in_wire_bytes"] += got_in - snapshots[-1]["in_wire_bytes"] + 52 * 2 * len(snapshots)
    return snapshots, lines, truth


def given_out(snapshots: list[dict], lines: list[dict], cuts: tuple[int, ...] = ()) -> pd.DataFrame:
    """The exchanges in order, after steps that end behind so many lines and all turns up to their ends."""
    found, carry, begin, seen, total = [], Carry.empty(), 0, 0, 0
    for cut in (*sorted(c for c in set(cuts) if c < len(lines)), len(lines)):
        last = cut == len(lines)
        now_ms = lines[cut - 1]["log_mono_ns"] // 1_000_000 + 1 if cut else 1_001
        turns = [s for s in snapshots[seen:] if last or s["last_mono_ns"] <= now_ms * 1_000_000]
        seen += len(turns)
        done = step(carry, turns, lines[begin:cut], now_ms, final=last)
        carry, begin = done.carry, cut
        found.append(rows(done))
        total += sum(done.parts.column("in_payload_bytes").to_pylist())
    assert total == snapshots[-1]["in_payload_bytes"]
    frame = pd.concat(found)
    return frame[frame.kind == RowKind.EXCHANGE].sort_values("line_no")


@pytest.mark.parametrize(
    ("cipher", "added"),
    [
        ("TLS_AES_256_GCM_SHA384", 22), ("TLS_CHACHA20_POLY1305_SHA256", 22), ("TLS_AES_128_CCM_8_SHA256", 14),
        ("ECDHE-RSA-AES128-GCM-SHA256", 29), ("ECDHE-ECDSA-CHACHA20-POLY1305", 21), ("AES256-CCM8", 21),
        ("ECDHE-RSA-AES128-SHA256", 0), ("", 0), (None, 0),
    ],
)  # fmt: skip
def test_what_a_record_adds_follows_from_the_cipher(cipher: str | None, added: int) -> None:
    """AEAD ciphers add the same to every record; CBC does not, and 0 says so."""
    assert record_bytes(cipher) == added


def test_a_body_read_with_the_next_request_is_cut_off_from_it() -> None:
    """Where the counter gives no end, it follows from the sizes; what is likely so but not proved is aligned."""
    snapshots, lines, truth = connection([Asked(), Asked(140, 1_500, early=True), Asked(), Asked()])
    assert lines[1]["tls_read_bytes"] == -1
    found = given_out(snapshots, lines)
    assert found.downstream_in_payload_bytes.tolist() == truth == [132, 1_684, 132, 132]
    exact, aligned = Confidence.EXACT, Confidence.ALIGNED
    assert found.downstream_confidence.tolist() == [exact, aligned, aligned, exact]


def test_the_fewest_records_prove_the_cut_between() -> None:
    """Where two requests together take no more records than each has to, the cut between them is proved."""
    snapshots, lines, _ = connection([Asked(), Asked(140, 0, early=True), Asked(), Asked()])
    # Head and body in one record, which came in two packets: the answer went out between them.
    for snapshot in snapshots[3:]:
        snapshot["in_payload_bytes"] += 1_500
        snapshot["in_wire_bytes"] += 1_500
    for later in lines[2:]:
        later["tls_read_bytes"] += 1_500
    lines[1] |= {"tls_read_bytes": -1, "content_length": 1_500}
    found = given_out(snapshots, lines)
    assert found.downstream_in_payload_bytes.tolist() == [132, 1_662, 132, 132]
    assert found.downstream_confidence.tolist() == [Confidence.EXACT] * 4


def test_a_counter_at_the_end_of_a_body_thrown_away_is_proof() -> None:
    """An early answer whose counter is its own is exact, although no turn ends where its body does."""
    snapshots, lines, truth = connection([Asked(), Asked(140, 16_384, early=True), Asked()])
    lines[1]["tls_read_bytes"] = HELLO[0] + FINISHED + sum(truth[:2])
    found = given_out(snapshots, lines)
    assert found.downstream_in_payload_bytes.tolist() == truth
    assert found.downstream_confidence.tolist() == [Confidence.EXACT] * 3


def test_a_short_body_behind_a_long_head_is_found_over_tls_too() -> None:
    """Where nginx's request_length may hold the body or not, the sums tell."""
    snapshots, lines, truth = connection([Asked(), Asked(300, 90, early=True), Asked(), Asked()])
    found = given_out(snapshots, lines)
    assert found.downstream_in_payload_bytes.tolist() == truth


def test_the_last_request_ends_before_the_close() -> None:
    """Without a line behind it, an end that the plugin could not tell lies before the closing alert."""
    snapshots, lines, truth = connection([Asked(), Asked(140, 1_500, early=True)])
    lines[1]["tls_read_bytes"] = -1
    snapshots[-1]["in_payload_bytes"] += 24
    snapshots[-1]["in_wire_bytes"] += 24
    done = step(Carry.empty(), snapshots, lines, 1_100, final=True)
    found = rows(done)[rows(done).kind == RowKind.EXCHANGE].sort_values("line_no")
    assert found.downstream_in_payload_bytes.tolist() == truth


def test_a_counter_that_was_ahead_proves_nothing_in_the_next_step() -> None:
    """What begins where an earlier step could not prove a cut is not exact, however well its own end is known."""
    requests = [Asked(), Asked(140, 1_500, early=True, told=AHEAD), Asked(), Asked(), Asked()]
    snapshots, lines, truth = connection(requests)
    assert lines[1]["tls_read_bytes"] == lines[2]["tls_read_bytes"]
    found = given_out(snapshots, lines, cuts=(3, 4))
    wrong = found.downstream_in_payload_bytes != truth
    assert wrong.tolist() == [False, True, True, False, False]
    exact, aligned = Confidence.EXACT, Confidence.ALIGNED
    assert found.downstream_confidence.tolist() == [exact, aligned, aligned, exact, exact]


def test_a_begin_that_was_guessed_proves_nothing_in_the_next_step() -> None:
    """Where a cut was only likely, the request behind it is not exact either, even if it is given out a step later."""
    odd = Asked(110, 1_500, records=SMALL)  # a record more than its like, so that the cut before it is 22 bytes off
    snapshots, lines, truth = connection([Asked(), Asked(140, 1_500, early=True), odd, Asked(), Asked()])
    found = given_out(snapshots, lines, cuts=(3, 4))
    assert found.downstream_in_payload_bytes.tolist()[2] == truth[2] - RECORD
    exact, aligned = Confidence.EXACT, Confidence.ALIGNED
    assert found.downstream_confidence.tolist() == [exact, aligned, aligned, exact, exact]


REQUESTS = st.lists(
    st.builds(
        Asked,
        head=st.integers(60, 400),
        body=st.sampled_from((0, 0, 0, 1, 37, 200, 1_500, 9_000, 16_384, 40_000)),
        early=st.booleans(),
        told=st.sampled_from((AHEAD, NOTHING)),
        records=st.sampled_from((APART, JOINED, SMALL)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60)
@given(requests=REQUESTS, cuts=st.sets(st.integers(1, 7), max_size=3))
def test_exact_over_tls_is_never_wrong(requests: list[Asked], cuts: set[int]) -> None:
    """Whatever clients, bodies and early answers there are, and however it is split: what is called exact is so."""
    snapshots, lines, truth = connection(requests)
    found = given_out(snapshots, lines, tuple(cuts))
    called = (found.downstream_confidence == Confidence.EXACT).to_numpy()
    assert found.downstream_in_payload_bytes[called].tolist() == [t for t, c in zip(truth, called, strict=True) if c]


@settings(max_examples=60)
@given(requests=REQUESTS, records=st.sampled_from((APART, JOINED)), cuts=st.sets(st.integers(1, 7), max_size=3))
def test_ends_that_were_not_told_are_found(requests: list[Asked], records: str, cuts: set[int]) -> None:
    """With a client that writes head and body always apart or always together, every request has its own bytes."""
    first = Asked()  # the handshake's end hides in a connection's first request
    alike = [first, *(Asked(r.head, r.body, r.early and r.body > r.head, NOTHING, records) for r in requests), first]
    snapshots, lines, truth = connection(alike)
    found = given_out(snapshots, lines, tuple(cuts))
    assert found.downstream_in_payload_bytes.tolist() == truth
