"""The SKUs of a price book file: what each counts, and its dated prices.

Rules of this file:
- `until` dates (`to:`) are exclusive: a price to 2026-07-01 ends with 30 June.
- A book is used whole or not at all, since half a book gives a wrong bill.
- That an external price's list exists and knows its provider is looked up elsewhere (`model_prices.problems`): the list
  is large, and a daemon that reads the book for its scopes has no use for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from apicost.catalog.prices_values import EFFECT, NAME, Path_, Values, nearest
from apicost.core.rating.pricebook import EXTERNAL, METERS, POOLS, UNITS, WHERE_COLUMNS, Price, Sku, Tier
from apicost.core.records import QUANTA
from apicost.core.scopes import UNKNOWN
from apicost.problems import Problem

MAX_PACKAGE = 10**15  # base units: its parts, a power of ten from there on, still count in 64 bits

_SKU = (
    "meter", "where", "byte_basis", "both_directions", "unit", "free", "currency", "prices", "description", "quantum",
)  # fmt: skip
_PRICE = ("from", "to", "mode", "price", "tiers", "size", "window", "pool", "currency")
_EXTERNAL = ("source", "on_unknown_model", "provider")
# Mode -> what says its price.
_MODES = {
    "flat": ("price",), "graduated": ("tiers",), "volume": ("tiers",), "package": ("price", "size"),
    EXTERNAL: _EXTERNAL,
}  # fmt: skip
SOURCES = {"genai-prices": "USD"}  # list of models' prices -> the currency that it is in
_DIRECTIONS = {"egress": "out", "ingress": "in"}
_LEGS = ("downstream", "upstream")
_TOKENS = {"prompt": "llm_prompt_tokens", "completion": "llm_completion_tokens"}


class Skus(Values):
    """Reads the section `skus`. scopes, own_currency: those of the book, read before."""

    scopes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    own_currency: str = ""
    providers: Callable[[], Sequence[str]] | None = None

    def _skus(self, data: Any) -> tuple[Sku, ...]:
        if data is None:
            self._problem((), "there is no 'skus' section", "write skus: with at least one SKU")
            return ()
        skus = []
        for name, entry in self._mapping(data, ("skus",), None).items():
            path: Path_ = ("skus", name)
            before = len(self.problems)
            if not NAME.fullmatch(name):
                self._problem(path, f"SKU name {name!r} has other characters than A-Z a-z 0-9 . _ : / -", "rename it")
            sku = self._sku(name, entry, path)
            if sku and len(self.problems) == before:
                skus.append(sku)
        return tuple(skus)

    def _sku(self, name: str, data: Any, path: Path_) -> Sku | None:
        data = self._mapping(data, path, _SKU)
        currency = self._currency(name, "currency", data["currency"], path) if "currency" in data else None
        meter = self._choice(data, "meter", METERS, path)
        units = [unit for unit, (of, _) in UNITS.items() if of == meter]
        if meter is None:
            return None
        unit = self._choice(data, "unit", units, path)
        where, columns = self._where(name, meter, data, path)
        quantum = self._quantum(name, meter, data.get("quantum"), (*path, "quantum"))
        if quantum:
            columns = (QUANTA[quantum],)
        base = 1 if unit is None else UNITS[unit][1]  # go on: every problem at once
        sku = Sku(
            id=name, meter=meter, unit=str(unit), columns=columns, where=where,
            prices=self._prices(name, data.get("prices"), (*path, "prices"), base, currency),
            free=self._free(name, data.get("free"), (*path, "free"), base),
            byte_basis=str(data.get("byte_basis", "wire")), quantum=quantum, place=self.document.place(*path),
        )  # fmt: skip
        if sku.is_external:
            self._external(sku, data, path)
        return sku

    def _quantum(self, name: str, meter: str, data: Any, path: Path_) -> int:
        """Bytes of a block of a request that is counted as a call; 0 where requests are counted."""
        if data is None:
            return 0
        data = self._mapping(data, path, ("bytes", "round"))
        if meter != "calls":
            self._problem(path, f"{name}: quantum belongs to meter: calls", "remove quantum")
        self._choice(data, "round", ("up",), path, default="up")
        sizes = {str(size): size for size in QUANTA}
        size = self._choice(data, "bytes", list(sizes), path)
        return sizes[size] if size in sizes and meter == "calls" else 0

    def _external(self, sku: Sku, data: Mapping[str, Any], path: Path_) -> None:
        """What a SKU with external prices must be beside them."""
        if sku.meter != "tokens":
            self._problem(
                path, f"{sku.id}: mode external is of models' tokens, not of {sku.meter}", "write meter: tokens"
            )
        if "free" in data:
            self._problem(
                (*path, "free"), f"{sku.id}: a free allowance of tokens that cost differently",
                "remove free, or write prices of your own",
            )  # fmt: skip
        for price in sku.prices:
            listed, said = SOURCES.get(price.source), price.currency or self.own_currency
            if listed is not None and said != listed:
                self.problems.append(
                    Problem(
                        place=price.place, fact=f"{sku.id}: prices of {price.source} are in {listed}, not in {said}",
                        effect=EFFECT, fix=f"write currency: {listed}, and the rates of {listed} under fx",
                    )
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
            values = self._texts(name, key, value, here)
            column = WHERE_COLUMNS[key]
            if key == "scope":
                self._known_scopes(name, values, (*here, key))
                column = "upstream_scope" if leg == "upstream" else column
            conditions[column] = values
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
                    nearest(str(value), [*known, UNKNOWN]),
                )  # fmt: skip

    def _free(self, name: str, data: Any, path: Path_, base: int) -> int:
        if data is None:
            return 0
        data = self._mapping(data, path, ("quantity", "share"))
        self._choice(data, "share", ("pro_rata",), path)
        return self._quantity(name, data.get("quantity"), (*path, "quantity"), base) or 0

    def _prices(self, name: str, data: Any, path: Path_, base: int, currency: str | None) -> tuple[Price, ...]:
        if not isinstance(data, list) or not data:
            self._problem(
                path, f"{name}: there is no list of prices", 'write prices: [{from: 2026-01-01, price: "0.09"}]'
            )
            return ()
        read = [self._price(name, entry, (*path, index), base, currency) for index, entry in enumerate(data)]
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
            last = until - timedelta(days=1)
            one_month = (last.year, last.month) == (following.since.year, following.since.month)
            if one_month and price.pool != following.pool:
                self._problem(
                    found[index + 1][1], f"{name}: pool {price.pool} becomes {following.pool} within a month",
                    "let the price begin on the 1st: a month is counted in one way",
                )  # fmt: skip
            prices.append(replace(price, until=until))
        return tuple(prices)

    def _price(self, name: str, data: Any, path: Path_, base: int, currency: str | None) -> Price | None:
        before = len(self.problems)
        data = self._mapping(data, path, (*_PRICE, *_EXTERNAL))
        since, until = self._dates(name, data, path)
        if since is None and len(self.problems) == before:
            self._problem(path, f"{name}: this price has no from: date", "write from: 2026-01-01")
        mode = data.get("mode", "flat" if "price" in data else "graduated")
        if not isinstance(mode, str) or mode not in _MODES:
            self._problem((*path, "mode"), f"{name}: mode {mode!r} is not known", f"write {', '.join(_MODES)}")
            return None
        if data.get("window", "billing_month") != "billing_month":
            self._problem(
                (*path, "window"), f"{name}: window {data['window']!r} is not supported", "write window: billing_month"
            )
        pool = self._choice(data, "pool", list(POOLS), path, default="billing_account") or "billing_account"
        for key in ("price", "tiers", "size", *_EXTERNAL):
            if key in data and key not in _MODES[mode]:
                self._problem((*path, key), f"{name}: mode {mode} has no {key!r}", "remove it or change the mode")
        if "currency" in data:
            currency = self._currency(name, "currency", data["currency"], path)
        size = self._size(name, data.get("size"), (*path, "size"), base) if mode == "package" else 0
        tiers: tuple[Tier, ...] = ()
        if mode == EXTERNAL:
            self._choice(data, "source", list(SOURCES), path)
            self._choice(data, "on_unknown_model", ("unpriced",), path, default="unpriced")
            if "pool" in data:
                self._problem((*path, "pool"), f"{name}: models' prices have no tiers to be pooled", "remove pool")
            if "provider" in data:
                provider = self._name(data, "provider", path)
                known = self.providers() if self.providers and data.get("source") in list(SOURCES) else (provider,)
                if provider not in known:
                    fact = f"{name}: {data['source']} has no provider {provider!r}"
                    self._problem((*path, "provider"), fact, nearest(provider, known))
        elif "price" in _MODES[mode]:
            amount = self._amount(name, "price", data.get("price"), (*path, "price"))
            place = self.document.place(*path, "price")
            tiers = () if amount is None else (Tier(up_to=None, price=amount, place=place),)
        else:
            tiers = self._tiers(name, mode, data.get("tiers"), (*path, "tiers"), base)
        if since is None or len(self.problems) > before:
            return None
        return Price(
            since=since, until=until, mode=mode, tiers=tiers, size=size, pool=pool, currency=currency,
            source=str(data.get("source", "")), provider=str(data.get("provider", "")),
            place=self.document.place(*path),
        )  # fmt: skip

    def _size(self, name: str, value: Any, path: Path_, base: int) -> int:
        """Base units in a package."""
        size = self._quantity(name, value, path, base)
        if size is not None and not 0 < size <= MAX_PACKAGE:
            self._problem(path, f"{name}: a package of {value!r} units is none", f"write 1 to {MAX_PACKAGE} base units")
        return size or 0

    def _tiers(self, name: str, mode: str, data: Any, path: Path_, base: int) -> tuple[Tier, ...]:
        if not isinstance(data, list) or not data:
            self._problem(path, f"{name}: a {mode} price has no tiers", "write tiers: [{up_to: null, price: ...}]")
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
