"""`apicost spec annotate`: documents with the measured usage, latency and cost of each operation."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from apicost import durable
from apicost.catalog import annotate, documents, openapi
from apicost.catalog.annotate import DUMPED, Fields, Location, Tokens
from apicost.catalog.openapi import ApiSource
from apicost.commands import _conformance as gathering
from apicost.commands import _months, _windows
from apicost.core.conformance.finding import Finding
from apicost.core.conformance.measured import Measured, Place, measure, rows_of_operations
from apicost.core.conformance.traffic import Ints, Traffic
from apicost.report.conformance.cost import costs
from apicost.report.conformance.outcome import NS_PER_S, cost_text, utc

DESCRIPTION = """Write each OpenAPI document anew, below --out in a folder for each API, with what was measured of every
operation as extensions, so that documentation portals can show them:

  x-apicost-calls                0 where it was never called in the window
  x-apicost-errors               calls answered 4xx and 5xx
  x-apicost-consumers            named consumers
  x-apicost-mean-latency-ms      mean duration of a call, from its first byte to the last of the response
  x-apicost-wire-bytes           on the client side, both directions; app bytes where the kernel saw no connection
  x-apicost-cost, -currency, -cost-per-1000-calls    with a price book; "unpriced" where no price speaks of the traffic
  x-apicost-last-seen, x-apicost-window

Everything else stays as it was written, comments too. Files that documents refer to are written beside them."""

EPILOG = """examples:
  apicost spec annotate --out annotated --since 30d -c apicost.yaml
  apicost spec annotate --out annotated --api shop --ledger state/ledger --spec shop.yaml

exit codes: 0 written, 2 an option or document can't be used, 3 the window has no traffic: nothing is written"""

NAMES = tuple(
    f"x-apicost-{name}"
    for name in (
        "calls", "errors", "consumers", "mean-latency-ms", "wire-bytes", "cost", "currency", "cost-per-1000-calls",
        "last-seen", "window",
    )
)  # fmt: skip
UNPRICED = "unpriced"


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    options = _parser().parse_args(argv)
    sources = gathering.sources(options)
    apis = [api for api in sources.apis if options.api in (None, api.id)]
    if not apis:
        known = ", ".join(sorted(api.id for api in sources.apis))
        raise _months.error("--api", f"there is no API {options.api!r}", "nothing is written", f"name one of {known}")
    assert sources.ledger is not None
    start, end = _windows.window(options.since, options.until, time.time())
    present, notes = gathering.promised_to(sources)
    ids = _ids(sources.apis)
    with _months.open_ledger(sources.ledger) as ledger:
        where = {} if options.api is None else {"api": options.api}
        seen, months = gathering.traffic_of(ledger, sources.book, start, end, where)
        statements = gathering.statements_of(ledger, sources, months)
        notes += [str(damage) for damage in ledger.damaged]
    for note in notes:
        print(note, file=sys.stderr)
    traffic = Traffic(seen)
    if not int(traffic.calls.sum()):
        print("apicost: the window has no traffic; nothing is written", file=sys.stderr)
        return 3
    rows = rows_of_operations(traffic, present, ids)
    window = {"start": utc(start), "end": utc(end)}
    operations = 0
    for api, folder in zip(apis, _folders(options.out, apis), strict=True):
        files = _Files(api)
        operations += len(files.places)
        of_place = {place: files.rows(place, rows) for place in files.places}
        called = [place for place in of_place if len(of_place[place])]
        paid = costs([_stand_in(of_place[place]) for place in called], seen, statements)
        cost = dict(zip(called, paid, strict=True))
        fields: dict[Path, dict[Tokens, Fields]] = {file: {} for file in files.files}
        for place, own in of_place.items():
            figures = measure(traffic, own)
            price = (cost.get(place, Fraction()), sources.book.currency) if sources.book else None
            fields[place.file][place.tokens] = _fields(figures, price, window)
        for file in sorted(fields):
            _write(folder / os.path.relpath(file, files.base), file, fields[file])
    print(f"apicost: {operations} operations annotated below {options.out}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apicost spec annotate", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the documents are written")
    parser.add_argument("--api", metavar="ID", help="this API's documents alone")
    parser.add_argument("-c", "--config", type=Path, help="apicost.yaml (default: ./apicost.yaml if it is there)")
    parser.add_argument("--ledger", type=Path, help="the ledger's folder; replaces the configuration's")
    parser.add_argument("--prices", type=Path, help="price book; replaces the configuration's")
    parser.add_argument(
        "--since", default="30d", metavar="T", help="start of the window: 7d, 36h, a day (default: 30d)"
    )
    parser.add_argument("--until", metavar="T", help="its end, exclusive (default: now)")
    parser.add_argument(
        "--spec", action="append", default=[], type=Path, metavar="FILE", help="an OpenAPI document; may be repeated"
    )
    parser.set_defaults(source=None)
    return parser


class _Files:
    """The files of an API: which there are, and where each of its operations stands.

    base: the folder that all of them lie below. places: place in a file -> the pointers in documents that lead there;
    several paths may refer to one path item.
    """

    def __init__(self, api: ApiSource) -> None:
        self.api = api.id
        self.files: set[Path] = set()
        self.places: dict[Location, list[Place]] = {}
        for document in api.documents:
            found, files = annotate.locations(Path(document))
            self.files |= files
            for pointer, place in found.items():
                self.places.setdefault(place, []).append((str(document), pointer))
        self.base = Path(os.path.commonpath([file.parent for file in self.files])) if self.files else Path()

    def rows(self, place: Location, rows: Mapping[tuple[str, Place], Ints]) -> Ints:
        """The rows of all paths that lead to a place."""
        none = np.empty(0, np.int64)
        return np.concatenate([rows.get((self.api, named), none) for named in self.places[place]])


def _ids(apis: Sequence[ApiSource]) -> dict[tuple[str, str], Place | None]:
    """(API, operation id) -> its place; None for an id that several operations have."""
    found: dict[tuple[str, str], Place | None] = {}
    for operation in openapi.load_apis(apis).operations:
        key = (operation.api, operation.operation_id)
        found[key] = None if key in found else (operation.spec, operation.pointer)
    return found


def _stand_in(rows: Ints) -> Finding:
    """Rows in the form that costs are asked for."""
    return Finding(
        rule="", severity="", api=None, operation_id=None, method=None, path_template=None, detail="",
        rows=tuple(rows.tolist()),
    )  # fmt: skip


def _fields(figures: Measured, price: tuple[Fraction | None, str] | None, window: Mapping[str, str]) -> dict[str, Any]:
    """The extensions of one operation."""
    found: dict[str, Any] = {"calls": figures.calls}
    if figures.calls:
        found["errors"] = dict(figures.errors)
        found["consumers"] = figures.consumers
        found["mean-latency-ms"] = round(figures.duration_ms / figures.calls, 1)
        found["wire-bytes"] = figures.wire_bytes
        if price is not None:
            cost, currency = price
            found["cost"] = UNPRICED if cost is None else cost_text(cost)
            found["currency"] = currency
            found["cost-per-1000-calls"] = UNPRICED if cost is None else cost_text(cost * 1000 / figures.calls)
        found["last-seen"] = utc(figures.last_unix_ns / NS_PER_S)
    found["window"] = dict(window)
    return {f"x-apicost-{name}": value for name, value in found.items()}


def _folders(out: Path, apis: Sequence[ApiSource]) -> list[Path]:
    """A folder for each API, named by its id as far as a file system can have it."""
    taken: set[str] = set()
    folders = []
    for api in apis:
        name = free = re.sub(r"[^\w.-]", "_", api.id).lstrip(".") or "api"
        number = 1
        while free.lower() in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(free.lower())
        folders.append(out / free)
    return folders


def _write(target: Path, file: Path, fields: Mapping[Tokens, Fields]) -> None:
    """One file, annotated where there is something to say, else as it is."""
    raw = documents.read_bytes(file)
    if target.resolve() == file:
        raise _months.error("--out", f"{str(file)!r} would be written over", "nothing more is written",
                            "name another folder")  # fmt: skip
    if fields:
        written = annotate.annotated(raw, str(file), fields, NAMES)
        raw = written.text.encode("utf-8", errors="surrogateescape")
        if written.how == DUMPED:
            print(
                f"apicost: {file}: an operation is an alias of another or merged in; the document was written anew, "
                "without its comments", file=sys.stderr,
            )  # fmt: skip
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(target, raw)
    except OSError as failure:
        raise _months.error(str(target), f"can't be written: {failure.strerror}", "the documents are not whole",
                            "name a folder that can be written: --out DIR") from None  # fmt: skip
