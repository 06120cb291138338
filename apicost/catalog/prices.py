"""The price book file: read strictly, every problem at once, each amount exactly as written.

Rules of this file:
- A book is read whole or not at all: a problem anywhere is a problem of the book.
- What is right by itself and wrong for a month, a missing exchange rate, is a problem of that month (`require`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from apicost import yamlfile
from apicost.catalog.prices_skus import Skus
from apicost.catalog.prices_terms import Terms
from apicost.catalog.prices_values import Path_
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import PriceBook, Sku
from apicost.core.scopes import UNKNOWN
from apicost.problems import InputError, Problem

MAX_BYTES = 4 << 20

_TOP = ("pricebook", "rounding", "scopes", "skus", "shared_costs", "fx", "overrides", "budgets", "tags")


def load(path: Path | str, providers: Callable[[], Sequence[str]] | None = None) -> PriceBook:
    """Read a price book.

    providers: what an external price may name, asked only where one does; without it that is not looked at.

    Raises InputError with every problem of the file. What is legal but surprising, such as days between
    two prices that have none, stands in the book's `remarks`.
    """
    return _read(yamlfile.load(path, exact=True, max_bytes=MAX_BYTES, collect=True), providers)


def parse(text: str, name: str = "prices.yaml") -> PriceBook:
    """The same for text at hand."""
    return _read(yamlfile.parse(text, name, exact=True, collect=True))


def require(book: PriceBook, month: Period) -> None:
    """Raises InputError with every price in force in a month that no exchange rate of the month converts."""
    problems = [
        Problem(
            place=price.place,
            fact=f"{sku.id}: this price is in {price.currency}, and fx has no rate of {month.name} for it",
            effect=f"{month.name} is not rated: {price.currency} is never taken for {book.currency}",
            fix=f'add to fx: {{from: {price.currency}, to: {book.currency}, period: {month.name}, rate: "...", '
            'source: "...", locked: true}',
        )
        for sku, price in book.without_rate(month.days, month.name)
    ]
    if problems:
        raise InputError(problems)


def _read(document: yamlfile.Document, providers: Callable[[], Sequence[str]] | None = None) -> PriceBook:
    reader = _Reader(document)
    reader.problems += document.problems
    reader.providers = providers
    book = reader.book()
    if reader.problems:
        raise InputError(reader.problems)
    assert book is not None, "a book without problems was read"
    return book


class _Reader(Skus, Terms):
    """Turns a YAML document into a price book, collecting problems as it goes."""

    def book(self) -> PriceBook | None:
        data = self._mapping(self.document.data, (), _TOP)
        head = self._head(data.get("pricebook"))
        scale = self._rounding(data.get("rounding", {}))
        self.scopes = self._scopes(data.get("scopes", {}))
        self.own_currency = head.get("currency", "")
        skus = self._skus(data.get("skus"))
        named = data.get("skus")
        names = set(named) if isinstance(named, Mapping) else set()  # those with problems of their own, too
        shared = self._shared_costs(data.get("shared_costs", []), set(names))
        fx = self._fx(data.get("fx", []), head.get("currency", ""))
        contracts, commitments = self._overrides(data.get("overrides", []), names)
        budgets, tags = self._budgets(data.get("budgets", [])), self._tags(data.get("tags", []))
        if self.problems:
            return None
        self._remark_on_currencies(head["currency"], skus, {rate.currency for rate in fx})
        return PriceBook(
            id=head["id"], version=head["version"], currency=head["currency"], time_zone=head["time_zone"], skus=skus,
            scopes=self.scopes, shared_costs=shared, contracts=contracts, commitments=commitments, fx=fx,
            budgets=budgets, tags=tags, statement_scale=scale, file=self.document.file,
            remarks=tuple(self.remarks),
        )  # fmt: skip

    def _remark_on_currencies(self, own: str, skus: tuple[Sku, ...], known: set[str]) -> None:
        self.remarks += [
            f"{price.place}: {sku.id} is priced in {price.currency}, and fx has no rate for it: no month can be rated"
            for sku in skus
            for price in sku.prices
            if price.currency not in (None, own) and price.currency not in known
        ]

    def _head(self, data: Any) -> dict[str, str]:
        path: Path_ = ("pricebook",)
        if data is None:
            self._problem((), "there is no 'pricebook' section", "write pricebook: {id, version, currency, calendar}")
            return {}
        data = self._mapping(data, path, ("id", "version", "currency", "calendar", "description"))
        out = {key: self._name(data, key, path) for key in ("id", "version")}
        currency = self._currency("", "currency", data.get("currency"), path)
        calendar = self._mapping(data.get("calendar", {}), (*path, "calendar"), ("time_zone",))
        zone = calendar.get("time_zone", "UTC")
        if not _is_zone(zone):
            self._problem(
                (*path, "calendar", "time_zone"), f"time zone {zone!r} is not known",
                "write an IANA name such as Europe/Berlin, or UTC",
            )  # fmt: skip
        return {**out, "currency": currency, "time_zone": str(zone)}

    def _rounding(self, data: Any) -> int:
        path: Path_ = ("rounding",)
        only = {"mode": "half_even", "distribute": "largest_remainder", "tie_break": "row_key"}
        data = self._mapping(data, path, ("statement_scale", *only))
        for key, value in only.items():
            if data.get(key, value) != value:
                self._problem((*path, key), f"{key} {data[key]!r} is not supported", f"write {key}: {value}")
        scale = str(data.get("statement_scale", "2"))
        if not re.fullmatch(r"[0-6]", scale):
            self._problem((*path, "statement_scale"), f"statement_scale {scale!r} is not 0 to 6", "write 2 for cents")
            return 2
        return int(scale)

    def _scopes(self, data: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
        scopes = []
        for name, entry in self._mapping(data, ("scopes",), None).items():
            path: Path_ = ("scopes", name)
            if name == UNKNOWN:
                self._problem(path, f"{name!r} is what no scope matches", "give this scope another name")
            entry = self._mapping(entry, path, ("peers", "description"))
            peers = entry.get("peers")
            if not isinstance(peers, list) or not peers:
                self._problem(path, f"scope {name!r} has no list of peers", 'write peers: ["10.0.0.0/8"]')
                continue
            for index, peer in enumerate(peers):
                try:
                    ipaddress.ip_network(str(peer))
                except ValueError as error:
                    self._problem(
                        (*path, "peers", index), f"{name}: {peer!r} is no network ({error})",
                        'write an address and prefix length, such as "10.0.0.0/8"',
                    )  # fmt: skip
            scopes.append((name, tuple(str(peer) for peer in peers)))
        if not self.problems:
            self._remark_on_hidden_peers(scopes)
        return tuple(scopes)

    def _remark_on_hidden_peers(self, scopes: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        """Networks that lie in one of a scope above: the first match wins, so they never decide."""
        above: dict[int, dict[Any, str]] = {4: {}, 6: {}}  # network -> the scope that has it first
        for name, peers in scopes:
            networks = [ipaddress.ip_network(peer) for peer in peers]
            for network in networks:
                known = above[network.version]
                lengths = sorted({other.prefixlen for other in known if other.prefixlen <= network.prefixlen})
                covers = (network.supernet(new_prefix=length) for length in lengths)
                first = next((cover for cover in covers if cover in known), None)
                if first is not None:
                    self.remarks.append(
                        f"{self.document.place('scopes', name)}: {network} of scope {name} lies in {first} of scope "
                        f"{known[first]}, which comes first: it counts as {known[first]}. Move {name} above it"
                    )
            for network in networks:
                above[network.version].setdefault(network, name)


def _is_zone(name: Any) -> bool:
    # Only names of the IANA form reach the time zone files: "../etc/passwd" is none.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", name):
        return False
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return False
    return True
