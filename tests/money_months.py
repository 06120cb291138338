"""Random months of money: price books with every feature, usage of a month and of the closed one before it.

Rules of this file:
- Books are files' texts, read as users' are: what is drawn here, `prices check` accepts.
- Quantities in books are drawn in base units, and written in the pricing unit.
- What is drawn often is small, so that tiers, packages and allowances are reached; some of it is large.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core import records
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.corrections import corrections
from apicost.core.rating.models import Band, DatedPrices, Model, ModelPrices
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import UNITS, PriceBook
from apicost.core.rating.statement import Statement
from tests.usage_months import usage

# From UTC-12 to UTC+14, with changes of the clock by an hour and by half, at night and at midnight, on either half
# of the earth, and offsets of quarters of an hour.
ZONES = (
    "Etc/GMT+12", "Pacific/Kiritimati", "UTC", "Europe/Berlin", "America/New_York", "America/Santiago",
    "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo", "Pacific/Chatham", "Asia/Beirut",
)  # fmt: skip
MONTHS = ("2026-03", "2026-04", "2026-09", "2026-10", "2026-11", "2024-02", "2025-12")
SCALES = (2, 0, 3)

APIS = ("shop", "Shop", "a_b", None)
CONSUMERS = ("acme", "partner-x", 'q"u\\o,te', None)
MODELS = ("small-model", "large-model", None)
_UNITS = tuple(unit for unit in UNITS)
_MATCH = {
    "api": [name for name in APIS if name], "consumer": ["acme", "partner-x"], "operation": ["getOrder"],
    "status_class": ["2xx", "5xx"], "route": ["r1"],
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A month to be billed, and the one before, which was closed by `closed_book` with `closed_rows`.

    rows: usage of the month, as `usage_months.usage` takes it. What is known of the closed month now: `former_rows`, by
    `book`. features: what the book has, for counts of what was tried.
    """

    book: PriceBook
    closed_book: PriceBook = field(repr=False)
    month: Period = field(repr=False)
    former: Period = field(repr=False)
    rows: list[dict[str, Any]]
    closed_rows: list[dict[str, Any]]
    former_rows: list[dict[str, Any]]
    features: tuple[str, ...]

    def statement(self) -> Statement:
        return rate.rate(usage(self.rows), self.book, self.month)

    def booked(self) -> Statement:
        """What the closed month booked."""
        return rate.rate(usage(self.closed_rows), self.closed_book, self.former)

    def now(self) -> Statement:
        """What the closed month would say now."""
        return rate.rate(usage(self.former_rows), self.book, self.former)

    def bill(self) -> Bill:
        """The month with the corrections that fall to it."""
        rows = corrections([self.booked().charges], self.now(), billing_month=self.month.name)
        return Bill(statement=self.statement(), corrections=rows)


@st.composite
def months(draw: st.DrawFn) -> Made:
    """A month, its book, and the closed month before."""
    zone, name = draw(_evenly(ZONES)), draw(_evenly(MONTHS))
    month = period.month(name, zone)
    former = period.month((month.days[0] - timedelta(days=1)).strftime("%Y-%m"), zone)
    text, features = draw(_books(month, former, zone))
    book = prices.parse(json.dumps(text, indent=1))
    models = ModelPrices(models=tuple(_model(name, month) for name in MODELS[:2] if name))
    book = replace(book, models=models)
    closed_rows = draw(_rows(former, most=8))
    late = draw(_rows(former, most=3))
    return Made(
        book=book, closed_book=draw(st.sampled_from((book, _other_prices(book)))), month=month, former=former,
        rows=draw(_rows(month, most=24)), closed_rows=closed_rows, former_rows=[*closed_rows, *late],
        features=(*features, f"scale {book.statement_scale}", zone),
    )  # fmt: skip


def _other_prices(book: PriceBook) -> PriceBook:
    """The book as it was before somebody found a price that was wrong."""

    def other(price: Any) -> Any:
        return replace(price, tiers=tuple(replace(t, price=t.price + Decimal("0.125")) for t in price.tiers))

    first = replace(book.skus[0], prices=tuple(map(other, book.skus[0].prices)))
    return replace(book, version="0", skus=(first, *book.skus[1:]))


def _model(name: str, month: Period) -> Model:
    """Prices of a model that change within the month; the small one has none for completions at first."""
    first = {"prompt": (Band(over=None, upto=None, price=Decimal("0.15")),)}
    later = {kind: (Band(over=None, upto=None, price=Decimal("2.5")),) for kind in ("prompt", "completion")}
    dated = (DatedPrices(since=None, bands=first), DatedPrices(since=month.days[11], bands=later))
    return Model(name=name, provider="", source="genai-prices 1", known_as=f"made/{name}", prices=dated)


# -- price books -------------------------------------------------------------------------------------------------


@st.composite
def _books(draw: st.DrawFn, month: Period, former: Period, zone: str) -> tuple[dict[str, Any], list[str]]:
    own = draw(st.sampled_from(("EUR", "USD", "JPY")))
    features: list[str] = []
    skus = {f"sku-{n}": draw(_sku(month, former, own, features)) for n in range(draw(st.integers(1, 4)))}
    both = (former.name, month.name)
    rates = [
        {"from": currency, "to": own, "period": name, "rate": draw(_amounts(1, 3_000_000_000, 9)), "locked": True}
        for currency in ("EUR", "USD", "CHF") for name in both if currency != own
    ]  # fmt: skip
    book: dict[str, Any] = {
        "pricebook": {"id": "made", "version": "1", "currency": own, "calendar": {"time_zone": zone}},
        "rounding": {"statement_scale": str(draw(_evenly(SCALES)))},
        "scopes": {"internet": {"peers": ["0.0.0.0/0"]}},
        "skus": skus,
        "fx": rates,
        "shared_costs": [draw(_shared(f"shared-{n}", features)) for n in range(draw(st.integers(0, 2)))],
        "overrides": draw(_overrides(skus, month, features)),
        "tags": draw(st.lists(_tag_rules(), max_size=3)),
        "budgets": [],
    }
    if draw(st.booleans()):
        features.append("budget")
        match = draw(st.sampled_from(({"team": "t1"}, {"api": ["shop", "a_b"]}, {"consumer": "acme"})))
        book["budgets"] = [{"match": match, "month": month.name, "amount": draw(_amounts(0, 10**8, 2))}]
    if book["tags"]:
        features.append("tags")
    return book, features


@st.composite
def _sku(draw: st.DrawFn, month: Period, former: Period, own: str, features: list[str]) -> dict[str, Any]:
    unit = draw(st.sampled_from(_UNITS))
    meter, base = UNITS[unit]
    sku: dict[str, Any] = {"meter": meter, "unit": unit, "where": draw(_where())}
    if meter == "bytes":
        if draw(st.booleans()):
            sku["both_directions"] = True
        else:
            sku["where"]["direction"] = draw(st.sampled_from(("egress", "ingress")))
        sku["where"]["leg"] = draw(st.sampled_from(("downstream", "upstream")))
        sku["byte_basis"] = draw(st.sampled_from(("wire", "wire", "payload", "app")))
    if meter == "calls" and draw(st.integers(0, 3)) == 0:
        sku["quantum"] = {"bytes": "524288", "round": "up"}
        features.append("quantum")
    if meter == "tokens" and draw(st.booleans()):
        features.append("external")
        sku["currency"] = "USD"
        sku["prices"] = [{"from": "2020-01-01", "mode": "external", "source": "genai-prices"}]
        return sku
    if draw(st.booleans()):
        features.append("free")
        sku["free"] = {"quantity": draw(_quantities(base, 3_000)), "share": "pro_rata"}
    if (currency := draw(st.sampled_from((own, "CHF", "USD")))) != own:
        features.append("fx")
        sku["currency"] = currency
    pool = draw(st.sampled_from(("billing_account", "consumer", "api")))
    sku["prices"] = draw(_prices(base, pool, month, former, features))
    return sku


@st.composite
def _prices(
    draw: st.DrawFn, base: int, pool: str, month: Period, former: Period, features: list[str]
) -> list[dict[str, Any]]:
    """One to three prices one after the other, some with days between them that have none."""
    days = [*former.days, *month.days]
    starts = sorted(draw(st.lists(st.sampled_from(days[1:]), max_size=2, unique=True)))
    found = []
    for since, following in zip([date(2020, 1, 1), *starts], [*starts, None], strict=True):
        price: dict[str, Any] = {"from": str(since), "pool": pool}
        mode = draw(st.sampled_from(("flat", "graduated", "volume", "package")))
        price["mode"] = mode
        features += [mode, f"pool {pool}", *(["dated change"] if starts else [])]
        if mode == "package":
            price |= {"size": draw(_quantities(base, 900, least=1)), "price": draw(_unit_prices())}
        elif mode == "flat":
            price["price"] = draw(_unit_prices())
        else:
            bounds = sorted(draw(st.lists(st.integers(1, 4_000), min_size=1, max_size=3, unique=True)))
            tiers = [{"up_to": _in_units(n, base), "price": draw(_unit_prices())} for n in bounds]
            price["tiers"] = [*tiers, {"up_to": None, "price": draw(_unit_prices())}]
        if following and draw(st.integers(0, 2)) == 0 and following - since > timedelta(days=3):
            features.append("days without a price")
            price["to"] = str(following - timedelta(days=2))
        found.append(price)
    return found


@st.composite
def _shared(draw: st.DrawFn, name: str, features: list[str]) -> dict[str, Any]:
    calls = draw(st.integers(0, 1_000))
    weights = {"calls": Decimal(calls).scaleb(-3), "bytes": 1 - Decimal(calls).scaleb(-3)}
    features.append("shared cost")
    shared: dict[str, Any] = {
        "id": name, "amount": draw(_amounts(0, 10**9, 6)), "period": "monthly", "method": "gw-by-weight-v1",
        "weights": {key: f"{weight:f}" for key, weight in weights.items()},
    }  # fmt: skip
    if draw(st.booleans()):
        features.append("idle")
        shared["idle"] = {"keep_unallocated": draw(_amounts(0, 1_000, 3))}
    return shared


@st.composite
def _overrides(draw: st.DrawFn, skus: dict[str, Any], month: Period, features: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 3))):
        features.append("contract")
        keys = draw(st.lists(st.sampled_from(sorted(_MATCH)), min_size=1, max_size=2, unique=True))
        match = {key: draw(st.sampled_from(_MATCH[key])) for key in keys}
        entry: dict[str, Any] = {"match": match, "kind": "contracted"}
        own = [name for name, sku in skus.items() if sku["prices"][0]["mode"] != "external"]
        if own and draw(st.booleans()):
            entry |= {"sku": draw(st.sampled_from(own)), "price": draw(_unit_prices())}
        else:
            entry["discount_pct"] = draw(_amounts(0, 10**5, 3))
        if draw(st.booleans()):
            entry["from"] = str(draw(st.sampled_from(month.days)))
        found.append(entry)
    for consumer in draw(st.lists(st.sampled_from(("acme", "never seen")), max_size=2, unique=True)):
        features.append("commitment")
        found.append({"match": {"consumer": consumer}, "kind": "commitment", "minimum": draw(_amounts(0, 10**7, 4))})
    return found


@st.composite
def _tag_rules(draw: st.DrawFn) -> dict[str, Any]:
    key = draw(st.sampled_from(("api", "consumer", "operation", "route")))
    tags = draw(st.lists(st.sampled_from(("team", "owner", "cost_center")), min_size=1, max_size=3, unique=True))
    return {
        "match": {key: draw(st.sampled_from(_MATCH[key]))},
        "set": {tag: draw(st.sampled_from(("t1", "t2"))) for tag in tags},
    }


@st.composite
def _where(draw: st.DrawFn) -> dict[str, Any]:
    names = {"scope": ["internet", "unknown"], "api": _MATCH["api"], "consumer": _MATCH["consumer"]}
    keys = draw(st.lists(st.sampled_from(sorted(names)), max_size=1, unique=True))
    return {key: draw(st.sampled_from(names[key])) for key in keys}


def _evenly(values: tuple[str, ...] | tuple[int, ...]) -> st.SearchStrategy[Any]:
    """One of some values: each as often as the others, where `sampled_from` likes the first ones."""
    return st.integers(0, 1 << 16).map(lambda n: values[n % len(values)])


def _unit_prices() -> st.SearchStrategy[str]:
    """Prices per unit: free, ordinary ones, ones with many places, dear ones."""
    return st.one_of(_amounts(0, 5_000, 3), _amounts(0, 10**6, 12), _amounts(0, 10**9, 7), st.just("0"))


def _amounts(least: int, most: int, places: int) -> st.SearchStrategy[str]:
    """Decimal text without a sign or exponent."""
    return st.integers(least, most).map(lambda n: f"{Decimal(n).scaleb(-places):f}")


def _quantities(base: int, most: int, least: int = 0) -> st.SearchStrategy[str]:
    return st.integers(least, most).map(lambda n: _in_units(n, base))


def _in_units(number: int, base: int) -> str:
    """A number of steps as pricing units: thousandths of a large unit or quarters of a GiB, else base units."""
    if base == 1 << 30:
        return f"{Decimal(number) / 4:f}"
    return f"{Decimal(number).scaleb(0 if base == 1 else -3):f}"


# -- usage -------------------------------------------------------------------------------------------------------


def _rows(month: Period, most: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Usage of a month: rows at any time of it, on the edges of days and of changes of the clock among them."""
    edges = st.sampled_from(month.starts[:-1]).flatmap(
        lambda at: st.sampled_from([at, max(at - 1, month.start_unix_s), at + 7_200])
    )
    counts = st.one_of(st.just(0), st.integers(0, 6_000))
    byte_counts = st.one_of(st.just(0), st.integers(0, 1 << 33), st.integers(0, 1 << 45))
    columns: dict[str, st.SearchStrategy[Any]] = {
        "minute_unix_s": st.one_of(edges, st.integers(month.start_unix_s, month.end_unix_s - 1)),
        "node": st.sampled_from(["gw-1", "gw-2"]),
        "api": st.sampled_from(APIS), "consumer": st.sampled_from(CONSUMERS),
        "operation_id": st.sampled_from(["getOrder", "=cmd()", None]),
        "method": st.sampled_from(["GET", "POST"]), "path_template": st.sampled_from(["/orders/{id}", None]),
        "match_state": st.sampled_from(["matched", "undocumented-path", "unknown-host", "unattributed", "control"]),
        "route_id": st.sampled_from(["r1", "r2", None]), "service_id": st.sampled_from(["s1", None]),
        "status_class": st.sampled_from(["2xx", "4xx", "5xx", None]),
        "scope": st.sampled_from(["internet", "unknown", None]),
        "upstream_scope": st.sampled_from(["internet", None]), "llm_model": st.sampled_from(MODELS),
        "calls": counts, "quanta_512k": counts, "calls_without_quanta": st.integers(0, 3),
        "llm_prompt_tokens": counts, "llm_completion_tokens": counts, "llm_calls_without_tokens": st.integers(0, 2),
        "downstream_out_wire_bytes": byte_counts, "downstream_in_wire_bytes": byte_counts,
        "upstream_out_wire_bytes": byte_counts, "upstream_in_payload_bytes": byte_counts,
        "downstream_out_app_bytes": byte_counts, "app_only_bytes": st.sampled_from([0, 0, 70_000]),
    }  # fmt: skip
    row = st.fixed_dictionaries(columns)
    return st.integers(0, most).flatmap(lambda count: st.lists(row, min_size=count, max_size=count))


def rearranged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same usage as other rows: each cut in two, in another order, as other gateways and batches would give it."""
    sums = {column.name for column in records.USAGE_SUMS}
    parts = []
    for row in rows:
        less = {name: value // 3 for name, value in row.items() if name in sums}
        parts += [row | less, row | {name: row[name] - value for name, value in less.items()}]
    return [*parts[::-3], *parts[-2::-3], *parts[-3::-3]]
