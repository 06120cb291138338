"""Where requests end in a TLS connection's payload, and what proves it.

The plugin reads the TLS layer's counters when a request is logged, and so tells its end. It gives none on the way in
where the TLS layer then held bytes of what comes next: a body that nginx throws away is often read together with the
next request. Such an end follows from its neighbours, since a request's payload is what the gateway counted and so
many bytes for each record.

Rules of this file:
- A request takes no fewer records than its size asks for; so where the sum over several is the least there can be,
  each has its least, and every end between them is proved.
- The end of a request is proved by the one before where what lies between is its own size and hardly a record more
  than its size asks for: the smallest request that could hide there is larger (`SPARE_RECORDS`).
"""

from __future__ import annotations

import numpy as np

from apicost.core.join.downstream_state import Lines
from apicost.core.join.segments import I64, cumulate, lengths_of, starts_of
from apicost.core.join.upstream_columns import Bool

RECORD_PAYLOAD_BYTES = 16_384  # RFC 8446 section 5.1
# The smallest request ("GET / HTTP/1.1", a Host by RFC 9112 section 3.2, an empty line) is larger than two of them.
SPARE_RECORDS = 2  # more than a size asks for, by what they add themselves
# A body larger than nginx's header buffers (8 kB by default) is read to its last byte and no further before it is
# answered, and a client may have written it in records of a packet each.
LARGE_BODY_BYTES = 8_192
SMALL_RECORD_BYTES = 1_024
ALERTS = (0, 23, 24, 31)  # none, or one of TLS 1.2 (ChaCha20), TLS 1.3, TLS 1.2 (AES-GCM)


def record_bytes(cipher: str | None) -> int:
    """What a record adds to its payload, by OpenSSL's name of the cipher; 0 where it isn't the same for all.

    Header 5; TLS 1.3 (RFC 8446 section 5.2): content type 1, tag 16. TLS 1.2: with AES-GCM (RFC 5288) explicit nonce
    8, tag 16, with ChaCha20 (RFC 7905) tag 16. CCM_8 (RFC 6655): a tag of 8.
    """
    name = cipher or ""
    short_tag = 8 if "CCM_8" in name or "CCM8" in name else 0
    if name.startswith("TLS_"):
        return 22 - short_tag
    if "GCM" in name or "CCM" in name:
        return 29 - short_tag
    return 21 if "CHACHA20" in name else 0


def fewest_records(plain: I64) -> I64:
    """How many records so many bytes take at least."""
    return np.maximum(-(-plain // RECORD_PAYLOAD_BYTES), 1)


def filled(
    lines: Lines, flow: I64, starts: I64, closed: Bool, given_in: I64, total_in: I64, ends: I64, unknown: Bool
) -> tuple[I64, Bool]:
    """The ends on the way in, with those that the plugin could not tell.

    lines, flow: sorted by flow, runs begin at `starts`. closed, given_in, total_in: per flow, whether it is over, the
    payload that was given out, and all of it. ends: per line, -1 where there is none. unknown: which are to be found.

    Tried in turn: each request in as few records as it takes, or its body in records of its own; and both once more
    with bodies added that may have been thrown away unnoticed. What fits the next known end, or the close, is taken.

    Returns the ends, and which of the lines have one.
    """
    there = ends >= 0
    if not unknown.any():
        return ends, there
    rows = np.arange(len(ends))
    lengths = lengths_of(starts, len(ends))
    run, last = np.repeat(starts, lengths), np.repeat(starts + lengths - 1, lengths)
    left = np.maximum.accumulate(np.where(there, rows, -1))
    right = np.minimum.accumulate(np.where(there, rows, len(ends))[::-1])[::-1]
    anchored, followed = left >= run, right <= last
    left, right = np.maximum(left, 0), np.minimum(right, last)
    base = np.where(anchored, ends[left], given_in[flow])
    # The handshake comes before a connection's first request, and its size is not known.
    based = anchored | (base > 0)
    body = np.maximum(lines.body_bytes, 0)
    sizes = [
        size
        for plain in (lines.in_bytes, lines.in_bytes + np.where(lines.unread, 0, body))
        for size in _sizes(plain, body, lines.record_bytes)
    ]
    result, found = ends.copy(), there.copy()
    for size in sizes:
        sums = cumulate(size, starts)
        before = base - np.where(anchored, sums[left], 0)
        rest = total_in[flow] - (before + sums[last])
        fits = np.where(followed, before + sums[right] == ends[right], closed[flow] & np.isin(rest, ALERTS))
        fits &= unknown & ~found & based
        result[fits], found[fits] = (before + sums)[fits], True
    # Nothing fits: the later ones are taken to be as most are, and the first has the rest.
    sums = cumulate(sizes[1], starts)
    some = unknown & ~found & followed
    result[some] = np.maximum(ends[right] - (sums[right] - sums), base)[some]
    return result, found | some


def _sizes(plain: I64, body: I64, record_bytes: I64) -> tuple[I64, I64]:
    """Payload of requests of so many plain bytes: in as few records as can be, and with the body in its own."""
    joined = plain + record_bytes * fewest_records(plain)
    return joined, np.where(body > 0, plain + record_bytes * (1 + fewest_records(body)), joined)


def proofs(lines: Lines, flow: I64, ends: I64, begin: I64, known: Bool, hit: Bool, anchored: Bool) -> tuple[Bool, Bool]:
    """Which requests of TLS connections have proved bytes, and which ends prove what follows.

    lines, flow: sorted by flow, none missing between. ends: payload in up to each line's end; known: it is the
    plugin's own; hit: a turn ends there, both ways. begin, anchored: per line, where the first of its flow's lines
    begins, and whether that is proved.
    """
    starts = starts_of(flow)
    rows = np.arange(len(flow))
    run = np.repeat(starts, lengths_of(starts, len(flow)))
    # What lies between the known end before each line's own and its own, over those that were filled in.
    before = np.append(-1, np.maximum.accumulate(np.where(known, rows, -1))[:-1])
    fresh = before < run
    before = np.maximum(before, 0)

    def between(values: I64) -> I64:
        sums = cumulate(values, starts)
        return sums - np.where(fresh, 0, sums[before])

    span = ends - np.where(fresh, begin, ends[before])
    body = np.maximum(lines.body_bytes, 0)
    large = np.where((body > LARGE_BODY_BYTES) & ~lines.unread, lines.in_bytes // SMALL_RECORD_BYTES, 0)
    least, spare = between(fewest_records(lines.in_bytes)), between(large) + SPARE_RECORDS
    plain = between(lines.in_bytes)
    minimal = (lines.record_bytes > 0) & (span == plain + lines.record_bytes * least)
    fits = np.zeros(len(flow), np.bool_)
    for thrown_away in (np.zeros_like(body), np.where(lines.unread, 0, body)):
        surplus = span - plain - between(thrown_away)
        records = surplus // np.maximum(lines.record_bytes, 1)
        whole = (lines.record_bytes > 0) & (surplus == records * lines.record_bytes)
        fits |= whole & (records >= least) & (records <= least + spare)
    # A known end proves what follows where a turn ends, or where it fits to one that does.
    breaks = np.maximum.accumulate(np.where(known & (hit | ~fits), rows, -1))
    anchor = np.where(breaks >= run, hit[np.maximum(breaks, 0)], anchored)
    # Of several with one known end, each is put at its least and has it, or none is proved.
    others = between((~minimal).astype(np.int64))
    alone = known & np.where(fresh, rows == run, before == rows - 1)
    after = np.minimum.accumulate(np.where(known, rows, len(rows))[::-1])[::-1]
    last = np.minimum(after, len(rows) - 1)
    least_each = (after == last) & (flow[last] == flow) & (others[last] == 0)
    return np.where(fresh, anchored, anchor[before]) & np.where(alone, fits, least_each), anchor & known
