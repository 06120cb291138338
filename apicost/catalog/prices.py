"""The price book file: read strictly, every problem at once, each amount exactly as written.

Rules of this file:
- Amounts are decimal text. Quotes are good style, but an unquoted 0.09 is read as the text "0.09" too,
  so nothing ever passes through a float.
- What this version can't do (fx, overrides, budgets, packages, ...) is a problem that says so: a book is
  used whole or not at all, since half a book gives a wrong bill.
- `until` dates (`to:`) are exclusive: a price to 2026-07-01 ends with 30 June.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from apicost import yamlfile
from apicost.core.rating.pricebook import METERS, UNITS, WHERE_COLUMNS, Price, PriceBook, SharedCost, Sku, Tier
from apicost.core.scopes import UNKNOWN
from apicost.problems import InputError, Problem

MAX_BYTES = 4 << 20
EFFECT = "the price book is not used; a running daemon keeps the last good one"

# Digits before and after the point: enough for a price per token, and bounded so that sums stay exact.
_DECIMAL = re.compile(r"(\d{1,12})(?:\.(\d{1,12}))?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_CURRENCY = re.compile(r"[A-Z]{3}")

_TOP = ("pricebook", "rounding", "scopes", "skus", "shared_costs")
_TOP_LATER = ("fx", "overrides", "budgets")
_SKU = ("meter", "where", "byte_basis", "both_directions", "unit", "free", "prices", "description")
_SKU_LATER = ("quantum",)
_PRICE = ("from", "to", "mode", "price", "tiers", "window", "pool")
_PRICE_LATER = ("size", "source", "currency", "on_unknown_model")
_SHARED = (
    "id", "amount", "period", "method", "weights", "idle", "fallback_when_zero", "from", "to", "description",
)  # fmt: skip
_MODES = ("flat", "graduated")
_MODES_LATER = ("volume", "package", "external")
_DIRECTIONS = {"egress": "out", "ingress": "in"}
_LEGS = ("downstream", "upstream")
_TOKENS = {"prompt": "llm_prompt_tokens", "completion": "llm_completion_tokens"}

Path_ = tuple[str | int, ...]


def load(path: Path | str) -> PriceBook:
    """Read a price book.

    Raises InputError with every problem of the file. What is legal but surprising, such as days between
    two prices that have none, stands in the book's `remarks`.
    """
    return _read(yamlfile.load(path, exact=True, max_bytes=MAX_BYTES))


def parse(text: str, name: str = "prices.yaml") -> PriceBook:
    """The same for text at hand."""
    return _read(yamlfile.parse(text, name, exact=True))


def _read(document: yamlfile.Document) -> PriceBook:
    reader = _Reader(document)
    book = reader.book()
    if reader.problems:
        raise InputError(reader.problems)
    assert book is not None, "a book without problems was read"
    return book


class _Reader:
    """Turns a YAML document into a price book, collecting problems as it goes."""

    def __init__(self, document: yamlfile.Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.remarks: list[str] = []
        self.scopes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def book(self) -> PriceBook | None:
        data = self._mapping(self.document.data, (), _TOP, _TOP_LATER)
        head = self._head(data.get("pricebook"))
        scale = self._rounding(data.get("rounding", {}))
        self.scopes = self._scopes(data.get("scopes", {}))
        skus = self._skus(data.get("skus"))
        shared = self._shared_costs(data.get("shared_costs", []), {sku.id for sku in skus})
        if self.problems:
            return None
        return PriceBook(
            **head, skus=skus, scopes=self.scopes, shared_costs=shared, statement_scale=scale,
            file=self.document.file, remarks=tuple(self.remarks),
        )  # fmt: skip

    # -- sections ------------------------------------------------------------------------------------------

    def _head(self, data: Any) -> dict[str, str]:
        path: Path_ = ("pricebook",)
        if data is None:
            self._problem((), "there is no 'pricebook' section", "write pricebook: {id, version, currency, calendar}")
            return {}
        data = self._mapping(data, path, ("id", "version", "currency", "calendar", "description"))
        out = {key: self._name(data, key, path) for key in ("id", "version")}
        currency = data.get("currency")
        if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
            self._problem((*path, "currency"), f"currency {currency!r} is not an ISO 4217 code", "write such as EUR")
        calendar = self._mapping(data.get("calendar", {}), (*path, "calendar"), ("time_zone",))
        zone = calendar.get("time_zone", "UTC")
        if not _is_zone(zone):
            self._problem(
                (*path, "calendar", "time_zone"), f"time zone {zone!r} is not known",
                "write an IANA name such as Europe/Berlin, or UTC",
            )  # fmt: skip
        return {**out, "currency": str(currency), "time_zone": str(zone)}

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
        return tuple(scopes)

    def _skus(self, data: Any) -> tuple[Sku, ...]:
        if data is None:
            self._problem((), "there is no 'skus' section", "write skus: with at least one SKU")
            return ()
        skus = []
        for name, entry in self._mapping(data, ("skus",), None).items():
            path: Path_ = ("skus", name)
            before = len(self.problems)
            if not _NAME.fullmatch(name):
                self._problem(path, f"SKU name {name!r} has other characters than A-Z a-z 0-9 . _ : / -", "rename it")
            sku = self._sku(name, entry, path)
            if sku and len(self.problems) == before:
                skus.append(sku)
        return tuple(skus)

    def _sku(self, name: str, data: Any, path: Path_) -> Sku | None:
        data = self._mapping(data, path, _SKU, _SKU_LATER)
        meter = self._choice(data, "meter", METERS, path)
        units = [unit for unit, (of, _) in UNITS.items() if of == meter]
        if meter is None:
            return None
        unit = self._choice(data, "unit", units, path)
        where, columns = self._where(name, meter, data, path)
        base = 1 if unit is None else UNITS[unit][1]  # go on: every problem at once
        return Sku(
            id=name, meter=meter, unit=str(unit), columns=columns, where=where,
            prices=self._prices(name, data.get("prices"), (*path, "prices"), base),
            free=self._free(name, data.get("free"), (*path, "free"), base),
            byte_basis=str(data.get("byte_basis", "wire")), place=self.document.place(*path),
        )  # fmt: skip

    def _where(
        self, name: str, meter: str, data: Mapping[str, Any], path: Path_
    ) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
        """The conditions by usage column, and the columns that are added up."""
        here: Path_ = (*path, "where")
        own = {"bytes": ("direction", "leg"), "tokens": ("token",), "calls": ()}[meter]
        where = self._mapping(data.get("where", {}), here, (*WHERE_COLUMNS, *own))
        leg = self._choice(where, "leg", _LEGS, here, default="downstream") or "downstream"
        conditions: dict[str, tuple[str, ...]] = {}
        for key, value in where.items():
            if key not in WHERE_COLUMNS:
                continue
            values = value if isinstance(value, list) else [value]
            for item in values:
                if not isinstance(item, str) or not item:
                    self._problem((*here, key), f"{name}: {key} {item!r} is not a text", f"write {key}: NAME")
            column = WHERE_COLUMNS[key]
            if key == "scope":
                self._known_scopes(name, values, (*here, key))
                column = "upstream_scope" if leg == "upstream" else column
            conditions[column] = tuple(map(str, values))
        return conditions, self._columns(name, meter, leg, data, where, path)

    def _columns(
        self, name: str, meter: str, leg: str, data: Mapping[str, Any], where: Mapping[str, Any], path: Path_
    ) -> tuple[str, ...]:
        for key in ("byte_basis", "both_directions"):
            if meter != "bytes" and key in data:
                self._problem((*path, key), f"{name}: {key} belongs to meter: bytes", f"remove {key}")
        if meter == "calls":
            return ("calls",)
        if meter == "tokens":
            token = self._choice(where, "token", list(_TOKENS), (*path, "where"), default="")
            return (_TOKENS[token],) if token else tuple(_TOKENS.values())
        basis = self._choice(data, "byte_basis", ("wire", "payload", "app"), path, default="wire")
        both = data.get("both_directions", False)
        direction = where.get("direction")
        if not isinstance(both, bool):
            self._problem((*path, "both_directions"), f"{name}: {both!r} is not true or false", "write true")
        if both and direction is not None:
            self._problem(
                (*path, "both_directions"), f"{name}: both_directions and where.direction {direction!r} disagree",
                "keep one of the two",
            )  # fmt: skip
        if not both and direction is None:
            self._problem(
                path, f"{name}: which way its bytes go is not said",
                "write where: {direction: egress} (out of the gateway) or ingress, or both_directions: true",
            )  # fmt: skip
            return ()
        ways = ("in", "out")
        if not both:
            chosen = self._choice(where, "direction", list(_DIRECTIONS), (*path, "where"))
            ways = (_DIRECTIONS.get(chosen or "", "out"),)  # type: ignore[assignment]
        return tuple(f"{leg}_{way}_{basis}_bytes" for way in ways)

    def _known_scopes(self, name: str, values: Sequence[Any], path: Path_) -> None:
        known = [scope for scope, _ in self.scopes]
        for value in values:
            if value not in known and value != UNKNOWN:
                self._problem(
                    path, f"{name}: scope {value!r} is not one of this book's scopes",
                    _nearest(str(value), [*known, UNKNOWN]),
                )  # fmt: skip

    def _free(self, name: str, data: Any, path: Path_, base: int) -> int:
        if data is None:
            return 0
        data = self._mapping(data, path, ("quantity", "share"))
        self._choice(data, "share", ("pro_rata",), path)
        return self._quantity(name, data.get("quantity"), (*path, "quantity"), base) or 0

    def _prices(self, name: str, data: Any, path: Path_, base: int) -> tuple[Price, ...]:
        if not isinstance(data, list) or not data:
            self._problem(
                path, f"{name}: there is no list of prices", 'write prices: [{from: 2026-01-01, price: "0.09"}]'
            )
            return ()
        read = [self._price(name, entry, (*path, index), base) for index, entry in enumerate(data)]
        found = [(price, (*path, index)) for index, price in enumerate(read) if price is not None]
        found.sort(key=lambda pair: pair[0].since)
        prices: list[Price] = []
        for index, (price, place) in enumerate(found):
            following = found[index + 1][0] if index + 1 < len(found) else None
            if following is None:
                prices.append(price)
                continue
            if price.since == following.since or (price.until is not None and price.until > following.since):
                self._problem(
                    place, f"{name}: this price from {price.since} and the one from {following.since} overlap",
                    f"end it with to: {following.since} (the first day without it), or remove one",
                )  # fmt: skip
            if price.until is not None and price.until < following.since:
                self.remarks.append(
                    f"{self.document.place(*place)}: {name} has no price from {price.until} to {following.since}: "
                    "usage of these days stays unpriced"
                )
            until = following.since if price.until is None else price.until
            prices.append(Price(since=price.since, until=until, mode=price.mode, tiers=price.tiers, place=price.place))
        return tuple(prices)

    def _price(self, name: str, data: Any, path: Path_, base: int) -> Price | None:
        before = len(self.problems)
        data = self._mapping(data, path, _PRICE, _PRICE_LATER)
        since, until = self._date(name, data, "from", path), self._date(name, data, "to", path)
        if since is None and len(self.problems) == before:
            self._problem(path, f"{name}: this price has no from: date", "write from: 2026-01-01")
        if since and until and until <= since:
            self._problem((*path, "to"), f"{name}: to {until} is not after from {since}", "swap or mend the dates")
        mode = data.get("mode", "flat" if "price" in data else "graduated")
        if mode in _MODES_LATER:
            self._problem((*path, "mode"), f"{name}: mode {mode!r} is not supported", "write flat or graduated")
            return None
        if mode not in _MODES:
            self._problem((*path, "mode"), f"{name}: mode {mode!r} is not known", "write flat or graduated")
            return None
        for key, only in (("window", "billing_month"), ("pool", "billing_account")):
            if data.get(key, only) != only:
                self._problem((*path, key), f"{name}: {key} {data[key]!r} is not supported", f"write {key}: {only}")
        other = "tiers" if mode == "flat" else "price"
        if other in data:
            self._problem((*path, other), f"{name}: mode {mode} has no {other!r}", "remove it or change the mode")
        if mode == "flat":
            amount = self._amount(name, "price", data.get("price"), (*path, "price"))
            place = self.document.place(*path, "price")
            tiers: tuple[Tier, ...] = () if amount is None else (Tier(up_to=None, price=amount, place=place),)
        else:
            tiers = self._tiers(name, data.get("tiers"), (*path, "tiers"), base)
        if since is None or len(self.problems) > before:
            return None
        return Price(since=since, until=until, mode=mode, tiers=tiers, place=self.document.place(*path))

    def _tiers(self, name: str, data: Any, path: Path_, base: int) -> tuple[Tier, ...]:
        if not isinstance(data, list) or not data:
            self._problem(path, f"{name}: a graduated price has no tiers", "write tiers: [{up_to: null, price: ...}]")
            return ()
        tiers = []
        reached = 0
        for index, entry in enumerate(data):
            here: Path_ = (*path, index)
            entry = self._mapping(entry, here, ("up_to", "price"))
            amount = self._amount(name, "price", entry.get("price"), (*here, "price"))
            last = index == len(data) - 1
            up_to = entry.get("up_to")
            if last and up_to is not None:
                self._problem(
                    (*here, "up_to"), f"{name}: the last tier ends at {up_to!r}: what lies above has no price",
                    "add a tier with up_to: null",
                )  # fmt: skip
            if not last and up_to is None:
                self._problem(here, f"{name}: tier {index + 1} has no end, but more follow", "give it an up_to")
            limit = None if up_to is None else self._quantity(name, up_to, (*here, "up_to"), base)
            if limit is not None and limit <= reached:
                self._problem(
                    (*here, "up_to"), f"{name}: tier {index + 1} ends at {up_to!r}, not above the tier before",
                    "list tiers by rising up_to",
                )  # fmt: skip
            reached = limit or reached
            if amount is not None:
                tiers.append(Tier(up_to=limit, price=amount, place=self.document.place(*here)))
        return tuple(tiers)

    def _shared_costs(self, data: Any, taken: set[str]) -> tuple[SharedCost, ...]:
        if not isinstance(data, list):
            self._problem(("shared_costs",), "shared_costs is not a list", "write one '- id: ...' for each cost")
            return ()
        found = []
        for index, entry in enumerate(data):
            path: Path_ = ("shared_costs", index)
            before = len(self.problems)
            cost = self._shared_cost(entry, path)
            if cost and cost.id in taken:
                self._problem(path, f"id {cost.id!r} stands twice", "give each SKU and shared cost an id of its own")
            if cost and len(self.problems) == before:
                taken.add(cost.id)
                found.append(cost)
        return tuple(found)

    def _shared_cost(self, data: Any, path: Path_) -> SharedCost | None:
        before = len(self.problems)
        data = self._mapping(data, path, _SHARED)
        name = self._name(data, "id", path)
        amount = self._amount(name, "amount", data.get("amount"), (*path, "amount"), places=6)
        self._choice(data, "period", ("monthly",), path)
        self._choice(data, "fallback_when_zero", ("unallocated",), path, default="unallocated")
        weights = {
            key: self._amount(name, f"weight of {key}", value, (*path, "weights", key), places=6)
            for key, value in self._mapping(data.get("weights"), (*path, "weights"), ("calls", "bytes")).items()
        }
        if None not in weights.values() and sum(w for w in weights.values() if w is not None) != 1:
            self._problem((*path, "weights"), f"{name}: the weights do not sum to 1", 'write such as calls: "1"')
        idle = self._mapping(data.get("idle", {}), (*path, "idle"), ("keep_unallocated",))
        kept = self._amount(
            name, "keep_unallocated", idle.get("keep_unallocated", "0"), (*path, "idle", "keep_unallocated"), places=6
        )
        if kept is not None and kept > 1:
            self._problem((*path, "idle"), f"{name}: more than all is kept unallocated", "write a part from 0 to 1")
        dates = {key: self._date(name, data, key, path) for key in ("from", "to")}
        for key, day in dates.items():
            if day and day.day != 1:
                self._problem(
                    (*path, key), f"{name}: {key} {day} is not the first day of a month",
                    "shared costs are monthly: write the 1st",
                )  # fmt: skip
        if len(self.problems) > before or amount is None or kept is None:
            return None
        return SharedCost(
            id=name, amount=amount, method=str(data.get("method", "by-weight")), keep_unallocated=kept,
            weights={k: w for k, w in weights.items() if w}, since=dates["from"], until=dates["to"],
            place=self.document.place(*path),
        )  # fmt: skip

    # -- values --------------------------------------------------------------------------------------------

    def _mapping(
        self, data: Any, path: Path_, known: Sequence[str] | None, later: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The mapping with its known keys alone; any key where `known` is None."""
        if not isinstance(data, dict):
            what = path[-1] if path else "the file"
            self._problem(path, f"{what}: {data!r} is not a mapping", "write keys and values, indented")
            return {}
        out = {}
        for key, value in data.items():
            if known is None or key in known:
                out[key] = value
            elif key in later:
                self._problem((*path, key), f"key {key!r} is not supported by this version", "remove it for now")
            else:
                self._problem((*path, key), f"unknown key {key!r}", _nearest(key, known))
        return out

    def _name(self, data: Mapping[str, Any], key: str, path: Path_) -> str:
        value = data.get(key)
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        self._problem((*path, key), f"{key} {value!r} is not a name", f"write {key}: NAME, without spaces")
        return str(value)

    def _choice(
        self, data: Mapping[str, Any], key: str, known: Sequence[str], path: Path_, default: str | None = None
    ) -> str | None:
        value = data.get(key, default)
        if value in known or (default is not None and value == default):
            return str(value)
        if value is None:
            self._problem(path, f"{path[-1]} has no {key!r}", f"write {key}: one of {', '.join(known)}")
        else:
            self._problem(
                (*path, key), f"{key} {value!r} is not one of {', '.join(known)}", _nearest(str(value), known)
            )
        return None

    def _amount(self, name: str, key: str, value: Any, path: Path_, places: int = 12) -> Decimal | None:
        """A decimal number as it was written; None after a problem."""
        found = _DECIMAL.fullmatch(value) if isinstance(value, str) else None
        if found and len(found[2] or "") <= places:
            return Decimal(found[0])
        if value is None:
            self._problem(path, f"{name}: there is no {key}", 'write digits and a point, such as "0.09"')
        else:
            self._problem(
                path, f"{name}: {key} {value!r} is not a decimal number of at most 12 digits before and {places} after "
                "the point", 'write digits and a point, such as "0.09"',
            )  # fmt: skip
        return None

    def _quantity(self, name: str, value: Any, path: Path_, base: int) -> int | None:
        """A quantity in pricing units as base units, which must come out whole."""
        amount = self._amount(name, str(path[-1]), value, path)
        if amount is None:
            return None
        top, bottom = amount.as_integer_ratio()
        if top * base % bottom:
            self._problem(path, f"{name}: {value!r} units are no whole number of {base} base units", "round it")
            return None
        return top * base // bottom

    def _date(self, name: str, data: Mapping[str, Any], key: str, path: Path_) -> date | None:
        value = data.get(key)
        if value is None:
            return None
        try:
            if _DATE.fullmatch(str(value)):
                return date.fromisoformat(str(value))
        except ValueError:
            pass
        self._problem((*path, key), f"{name}: {key} {value!r} is not a date", "write YYYY-MM-DD")
        return None

    def _problem(self, path: Path_, fact: str, fix: str) -> None:
        self.problems.append(Problem(place=self.document.place(*path), fact=fact, effect=EFFECT, fix=fix))


def _nearest(value: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(value, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else f"known: {', '.join(known)}"


def _is_zone(name: Any) -> bool:
    # Only names of the IANA form reach the time zone files: "../etc/passwd" is none.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", name):
        return False
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return False
    return True
