"""The request lines of an irregular batch, one by one: refuse the bad, mend what can be contained, keep the rest.

Rules of this file:
- What passes here is read by `lines.py` like any other batch; nothing is interpreted twice.
- Numbers are read as the columnar reader reads them (spaces around, leading zeros and 0x are taken), so that
  a line means the same whether or not one of its neighbours is bad.
- A client of the gateway can make lines irregular (odd bytes in a path). So regular lines pass by one
  regular expression, about 4 us each, and only the others are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from apicost.ingest import line_form, values

MAX_TRIES = 64  # upstream tries of one request that are kept; nginx's own default is the number of servers

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\udc80-\udcff]")
_HEX = re.compile(rb"0[xX][0-9a-fA-F]{1,16}")
_INTEGER = re.compile(rb"-?[0-9]{1,40}")
_NUMBER = re.compile(rb"[-+]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,6})?")
_TRIES = [line_form.NAMES.index(name) for name in values.ATTEMPT_COLUMNS]
_HTTP_VERSIONS = {text.encode() for text in line_form.HTTP_VERSIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sifted:
    """What is left of a batch: good lines as bytes, refusals in order of position, values replaced by kind."""

    body: bytes
    refused: tuple[line_form.Refusal, ...]
    contained: dict[str, int]


class _Bad(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def _regular() -> re.Pattern[bytes]:
    """A line that needs no closer look. What does not match may still be good."""
    time = rb"(?:[0-9]{1,7}(?:\.[0-9]{1,6})?|-)"
    size = rb"(?:[0-9]{1,15}|-)"
    special = {
        "n": rb"[0-9]{1,9}",
        "connection_requests": rb"[0-9]{1,9}",
        "peer_port": rb"(?:[0-5]?[0-9]{1,4})?",
        "local_port": rb"(?:[0-5]?[0-9]{1,4})?",
        "status": rb"[0-9]{1,3}",
        "msec": rb"[0-9]{1,9}(?:\.[0-9]{1,6})?|[1-3][0-9]{9}(?:\.[0-9]{1,6})?",
        "request_time": rb"[0-9]{1,7}(?:\.[0-9]{1,6})?",
        "http_version": b"|".join(re.escape(v) for v in sorted(_HTTP_VERSIONS)),
        "upstream_addr": rb"(?:\t{5}|[!-~]+\t(?:[0-9]{3}|-)\t" + size + rb"\t" + size + rb"\t" + time + rb"\t" + time,
    }
    parts = []
    for name, kind, required in line_form.WIRE:
        if name in values.ATTEMPT_COLUMNS[1:]:
            continue  # in the expression of the first
        if name == "upstream_addr":
            parts.append(special[name] + b")")
        elif name in special:
            parts.append(b"(?:" + special[name] + b")")
        elif kind == line_form.INTEGER:
            parts.append(rb"[0-9]{1,15}" if required else rb"(?:[0-9]{1,15})?")
        else:
            parts.append(rb"[ -~]+" if required else rb"[ -~]*")
    return re.compile(b"\t".join(parts))


_REGULAR = _regular()


def sift(body: bytes, header: line_form.Header) -> Sifted:
    """Go through request lines (without the header line), in order."""
    texts = body.split(b"\n")
    cut = texts.pop()  # empty when the last line has its end
    kept: list[bytes] = []
    numbers: list[int | None] = []  # of each line, for those that can't tell theirs
    bad: list[tuple[int, _Bad]] = []
    contained: dict[str, int] = {}
    for position, text in enumerate(texts, 1):
        if _REGULAR.fullmatch(text):
            kept.append(text)
            numbers.append(header.first + int(text[: text.index(b"\t")]))
            continue
        numbers.append(_line_number(text, header))
        try:
            kept.append(_mend(text, contained))
        except _Bad as problem:
            bad.append((position, problem))
    _infer(numbers, header)
    refused = [line_form.Refusal(at, problem.kind, problem.reason, numbers[at - 1]) for at, problem in bad]
    if cut:
        # Its number is not taken: the whole batch may still come.
        refused.append(line_form.Refusal(len(texts) + 1, "cut", "the line has no end: the body was cut off"))
    return Sifted(body=b"".join(text + b"\n" for text in kept), refused=tuple(refused), contained=contained)


def _line_number(text: bytes, header: line_form.Header) -> int | None:
    try:
        return header.first + _integer("n", text.partition(b"\t")[0])
    except _Bad:
        return None


def _infer(numbers: list[int | None], header: line_form.Header) -> None:
    """Number the lines that can't tell theirs, between their neighbours.

    A batch holds a run of the worker's numbers in order, so the smallest free one is never above the line's
    own, and no other batch uses it. Where there is no free one, the line stays without.
    """
    following = header.first + header.count
    limits = [0] * len(numbers)
    for index in range(len(numbers) - 1, -1, -1):
        limits[index] = following
        known = numbers[index]
        if known is not None:
            following = known
    last = header.first - 1
    for index, known in enumerate(numbers):
        if known is not None:
            last = max(last, known)
        elif last + 1 < limits[index]:
            last += 1
            numbers[index] = last


def _mend(text: bytes, contained: dict[str, int]) -> bytes:
    """The line as the columnar reader takes it, or _Bad."""
    cells = text.split(b"\t")
    if len(cells) != len(line_form.WIRE):
        raise _Bad("columns", f"{len(cells)} columns, expected {len(line_form.WIRE)}")
    mended: set[str] = set()
    for index, (name, kind, required) in enumerate(line_form.WIRE):
        cell = cells[index]
        if not cell:
            if required:
                raise _Bad("missing", f"{name} is empty")
        elif kind == line_form.INTEGER:
            cells[index] = b"%d" % _integer(name, cell)
        elif kind == line_form.NUMBER:
            cells[index] = repr(_number(name, cell)).encode()
        else:
            cells[index] = _clean(cell, mended)
    version = cells[line_form.NAMES.index("http_version")]
    if version not in _HTTP_VERSIONS:
        raise _Bad("http-version", f"http_version {_quote(version)} is not one")
    tries = [cells[index] for index in _TRIES]
    even = _even(tries)
    if even != tries:
        mended.add("upstream-tries")
        for index, cell in zip(_TRIES, even, strict=True):
            cells[index] = cell
    for kind in mended:
        contained[kind] = contained.get(kind, 0) + 1
    return b"\t".join(cells)


def _integer(name: str, cell: bytes) -> int:
    value = _read_integer(cell.strip(b" "))
    if value is None:
        raise _Bad("not-a-number", f"{name} {_quote(cell)} is not an integer")
    low, high = line_form.BOUNDS.get(name, (0, line_form.MAX_COUNT))
    if not low <= value <= high:
        raise _Bad("out-of-bounds", f"{name} {_quote(cell)} is not between {low} and {high}")
    return value


def _read_integer(text: bytes) -> int | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)  # beyond 63 bits it is out of bounds, whichever sign it is given
    return None


def _number(name: str, cell: bytes) -> float:
    text = cell.strip(b" ")
    if not _NUMBER.fullmatch(text):
        raise _Bad("not-a-number", f"{name} {_quote(cell)} is not a number")
    value = float(text)
    low, high = line_form.NUMBER_BOUNDS[name]
    if not low <= value <= high:
        raise _Bad("out-of-bounds", f"{name} {_quote(cell)} is not between {low:.0f} and {high:.0f}")
    return value


def _clean(cell: bytes, mended: set[str]) -> bytes:
    """Text without control characters and in UTF-8: other bytes as %XX."""
    if _CONTROL.search(cell):
        mended.add("control-characters")
        cell = _CONTROL.sub(lambda found: b"%%%02X" % found[0][0], cell)
    if cell.isascii():
        return cell
    try:
        cell.decode()
    except UnicodeDecodeError:
        mended.add("not-utf-8")
        text = cell.decode(errors="surrogateescape")
        return _SURROGATE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text).encode()
    return cell


def _even(cells: Sequence[bytes]) -> list[bytes]:
    """The upstream cells with equally many tries, "-" for what is missing or unreadable."""
    columns = [cell.replace(b" : ", b", ").split(b", ") if cell else [] for cell in cells]
    tries = min(max(map(len, columns)), MAX_TRIES)
    good = [
        [item if index < len(column) and _is_try(kind, item := column[index]) else b"-" for index in range(tries)]
        for kind, column in enumerate(columns)
    ]
    if all(len(column) == tries for column in columns) and good == columns:
        return list(cells)
    return [b", ".join(column) for column in good]


def _is_try(kind: int, item: bytes) -> bool:
    """Whether one try's value is as its column wants it; kind: index in ATTEMPT_COLUMNS."""
    if item == b"-":
        return True
    if kind == 0:
        return bool(item)
    if kind <= 3:
        value = _read_integer(item)
        return value is not None and 0 <= value <= (values.MAX_STATUS if kind == 1 else values.MAX_TRY_BYTES)
    return bool(_NUMBER.fullmatch(item)) and 0 <= float(item) <= values.MAX_TRY_BYTES


def _quote(cell: bytes) -> str:
    """A value for a message: short, printable, on one line."""
    text = ascii(cell[:40].decode(errors="replace"))
    return text + ("..." if len(cell) > 40 else "")
