"""What a price book file says beside prices: shared costs, contracts, commitments, exchange rates, budgets, tags.

Rules of this file:
- What is monthly begins and ends on the first of a month.
- An exchange rate is written from the price's currency to the book's: turning one round is no exact decimal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from apicost.catalog.prices_values import Path_, Values, nearest
from apicost.core.currencies import CODES
from apicost.core.rating.pricebook import (
    BUDGET_MATCH,
    COMMITMENT,
    TAG_MATCH,
    TAGS,
    WHERE_COLUMNS,
    Budget,
    Commitment,
    Contract,
    FxRate,
    SharedCost,
    TagRule,
)

_SHARED = (
    "id", "amount", "period", "method", "weights", "idle", "fallback_when_zero", "from", "to", "description",
)  # fmt: skip
_METHODS = ("by-weight", "gw-by-weight-v1")  # two names of one method; the latter tells it from later ones
_FX = ("from", "to", "period", "rate", "source", "locked")
_OVERRIDE = ("match", "kind", "from", "to", "description")
_KINDS = {"contracted": ("sku", "discount_pct", "price"), "commitment": ("minimum",)}
# What a contract may ask. Network scopes are a matter of SKUs: they mean another column on each leg.
_CONTRACT_MATCH = {name: column for name, column in WHERE_COLUMNS.items() if name not in ("scope", "match_state")}


class Terms(Values):
    """Reads the sections beside `skus`."""

    def _shared_costs(self, data: Any, taken: set[str]) -> tuple[SharedCost, ...]:
        found = []
        for entry, path in self._entries(data, "shared_costs"):
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
        method = self._choice(data, "method", _METHODS, path, default=_METHODS[0]) or ""
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
        since, until = self._months(name, "shared costs", data, path)
        if len(self.problems) > before or amount is None or kept is None:
            return None
        return SharedCost(
            id=name, amount=amount, method=method, keep_unallocated=kept,
            weights={k: w for k, w in weights.items() if w}, since=since, until=until,
            place=self.document.place(*path),
        )  # fmt: skip

    def _overrides(self, data: Any, skus: Collection[str]) -> tuple[tuple[Contract, ...], tuple[Commitment, ...]]:
        contracts: list[Contract] = []
        commitments: list[Commitment] = []
        for entry, path in self._entries(data, "overrides"):
            before = len(self.problems)
            every = {key for keys in _KINDS.values() for key in keys}
            entry = self._mapping(entry, path, (*_OVERRIDE, *sorted(every)))
            kind = self._choice(entry, "kind", list(_KINDS), path)
            for key in sorted(every & set(entry)):
                if kind is not None and key not in _KINDS[kind]:
                    self._problem((*path, key), f"a {kind} override has no {key!r}", "remove it or change the kind")
            if kind == "contracted":
                contract = self._contract(entry, path, skus)
                if contract and len(self.problems) == before:
                    contracts.append(contract)
            elif kind == "commitment":
                commitment = self._commitment(entry, path, skus)
                if commitment and len(self.problems) == before:
                    self._alone(commitment, commitments, path)
                    commitments.append(commitment)
        return tuple(contracts), tuple(commitments)

    def _contract(self, data: Mapping[str, Any], path: Path_, known: Collection[str]) -> Contract | None:
        name = "contract"
        match = self._match(name, data, path, _CONTRACT_MATCH)
        skus = self._texts(name, "sku", data["sku"], path) if "sku" in data else ()
        for sku in skus:
            if sku not in known:
                self._problem((*path, "sku"), f"{name}: {sku!r} is no SKU of this book", nearest(sku, sorted(known)))
        since, until = self._dates(name, data, path)
        if ("discount_pct" in data) == ("price" in data):
            fact = "both a discount and a price" if "price" in data else "neither a discount nor a price"
            self._problem(path, f"{name}: it has {fact}", 'write discount_pct: "20", or sku: NAME and price: "0.07"')
            return None
        discount = price = None
        if "price" in data:
            price = self._amount(name, "price", data["price"], (*path, "price"))
            if len(skus) != 1:
                self._problem(path, f"{name}: a price is of one SKU, not of {len(skus) or 'all'}", "write sku: NAME")
        else:
            here: Path_ = (*path, "discount_pct")
            discount = self._amount(name, "discount_pct", data["discount_pct"], here, places=6)
            if discount is not None and discount > 100:
                self._problem(here, f"{name}: a discount of {discount} % is more than all", "write 0 to 100")
        return Contract(
            match=match, skus=skus, discount_pct=discount, price=price, since=since, until=until,
            place=self.document.place(*path),
        )  # fmt: skip

    def _commitment(self, data: Mapping[str, Any], path: Path_, skus: Collection[str]) -> Commitment | None:
        match = self._match(COMMITMENT, data, path, {"consumer": "consumer"})
        consumers = match.get("consumer", ())
        if len(consumers) > 1:
            self._problem(
                (*path, "match"), f"{COMMITMENT}: {len(consumers)} consumers, but one must bear it",
                "write one entry for each consumer",
            )  # fmt: skip
        if COMMITMENT in skus:
            self._problem(path, f"a SKU is called {COMMITMENT!r}, as shortfalls of commitments are", "rename the SKU")
        minimum = self._amount(COMMITMENT, "minimum", data.get("minimum"), (*path, "minimum"), places=6)
        since, until = self._months(COMMITMENT, "commitments", data, path)
        if minimum is None or len(consumers) != 1:
            return None
        return Commitment(
            consumer=consumers[0], minimum=minimum, since=since, until=until, place=self.document.place(*path)
        )

    def _alone(self, commitment: Commitment, others: list[Commitment], path: Path_) -> None:
        """A consumer has one commitment at a time: two would each ask for the same usage."""
        for other in others:
            apart = (commitment.until and other.since and commitment.until <= other.since) or (
                other.until and commitment.since and other.until <= commitment.since
            )
            if other.consumer == commitment.consumer and not apart:
                self._problem(
                    path, f"{COMMITMENT}: {commitment.consumer!r} has another one at the same time ({other.place})",
                    "end one with to:, or add the two up",
                )  # fmt: skip

    def _fx(self, data: Any, currency: str) -> tuple[FxRate, ...]:
        found: dict[tuple[str, str], FxRate] = {}
        for entry, path in self._entries(data, "fx"):
            before = len(self.problems)
            entry = self._mapping(entry, path, _FX)
            source = self._currency("fx", "from", entry.get("from"), path)
            target = self._currency("fx", "to", entry.get("to"), path)
            known = currency in CODES  # else the book's own currency is the problem, once
            if known and len(self.problems) == before and (target != currency or source == currency):
                self._problem(
                    path, f"fx: {source} to {target} converts nothing: prices become {currency}",
                    f"write the rate from the price's currency to {currency}",
                )  # fmt: skip
            month = self._month("fx", "period", entry, path)
            rate = self._amount("fx", "rate", entry.get("rate"), (*path, "rate"))
            if rate is not None and not rate:
                self._problem((*path, "rate"), "fx: a rate of 0 makes every cost 0", "write what one unit is worth")
            locked = entry.get("locked", False)
            if not isinstance(locked, bool):
                self._problem((*path, "locked"), f"fx: locked {locked!r} is not true or false", "write true")
            if not isinstance(entry.get("source", ""), str):
                self._problem((*path, "source"), f"fx: source {entry['source']!r} is not a text", 'write source: "ECB"')
            if other := found.get((source, month)):
                self._problem(path, f"fx: {source} has two rates in {month} (see {other.place})", "remove one of them")
            if len(self.problems) == before and rate is not None:
                found[source, month] = FxRate(
                    currency=source, period=month, rate=rate, locked=locked, source=str(entry.get("source", "")),
                    place=self.document.place(*path),
                )  # fmt: skip
        return tuple(found.values())

    def _budgets(self, data: Any) -> tuple[Budget, ...]:
        found = []
        for entry, path in self._entries(data, "budgets"):
            before = len(self.problems)
            entry = self._mapping(entry, path, ("match", "month", "amount", "description"))
            match = self._match("budget", entry, path, BUDGET_MATCH)
            month = self._month("budget", "month", entry, path)
            amount = self._amount("budget", "amount", entry.get("amount"), (*path, "amount"), places=6)
            if len(self.problems) == before and amount is not None:
                found.append(Budget(match=match, month=month, amount=amount, place=self.document.place(*path)))
        return tuple(found)

    def _tags(self, data: Any) -> tuple[TagRule, ...]:
        found = []
        for entry, path in self._entries(data, "tags"):
            before = len(self.problems)
            entry = self._mapping(entry, path, ("match", "set", "description"))
            match = self._match("tags", entry, path, {name: WHERE_COLUMNS[name] for name in TAG_MATCH})
            here: Path_ = (*path, "set")
            given = self._mapping(entry.get("set"), here, TAGS)
            if not given and len(self.problems) == before:
                self._problem(here, "tags: nothing is set", f"write set: {{{TAGS[1]}: NAME}}")
            for tag, value in given.items():
                if not isinstance(value, str) or not value:
                    self._problem((*here, tag), f"tags: {tag} {value!r} is not a text", f"write {tag}: NAME")
            if len(self.problems) == before:
                found.append(TagRule(match=match, tags=given, place=self.document.place(*path)))
        return tuple(found)
