"""Parquet and JSON say what the CSV says, to the last digit."""

import csv
import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core.rating.period import month
from apicost.core.rating.usage_rows import gather
from apicost.report import export
from apicost.report.tables import charges, jsonfile, parquetfile
from apicost.report.tables.rows import Kind
from tests import usage_months
from tests.report import bills

BOOK = prices.load(Path(__file__).parents[2] / "specs/prices.yaml")
MONTH = month("2026-11", BOOK.time_zone)
APIS = {"shop": export.ApiInfo(owner="=team shop", team="a,b", tags={"cost_center": "4711"})}


def unseen(_):
    """No one looks at the progress."""


def read(path: Path) -> list[dict]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def usage():
    """A month's usage."""
    return usage_months.month(MONTH, seed=5, step_s=86_400)


@pytest.fixture(scope="module")
def bill(usage):
    """A month with corrections of every tenth charge."""
    return bills.with_corrections(usage, BOOK, every=10)


@pytest.fixture(scope="module")
def cells(bill, tmp_path_factory):
    """The rows of the CSV without the apostrophes against formulas: what every other format must say."""
    path = tmp_path_factory.mktemp("csv") / "c.csv"
    export.write_charges(bill, path, APIS)
    return [{name: text.removeprefix("'") or None for name, text in row.items()} for row in read(path)]


def said(value, kind: Kind) -> str | None:
    """A value of a Parquet file as the CSV writes it."""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    return None if value is None else str(value)


def test_parquet_says_what_the_csv_says(bill, cells, tmp_path):
    """Row by row and column by column: text, times, counts and exact amounts; corrections included."""
    rows = charges.charges(bill, APIS)
    assert parquetfile.write(rows, tmp_path / "c.parquet", unseen) == len(bill) == len(cells) == rows.count
    table = pq.read_table(tmp_path / "c.parquet")
    assert tuple(table.column_names) == export.CHARGE_COLUMNS
    for column in rows.columns:
        values = [said(value, column.kind) for value in table.column(column.name).to_pylist()]
        expected = [row[column.name] for row in cells]
        if column.kind is Kind.AMOUNT:
            values, expected = ([v and Decimal(v) for v in texts] for texts in (values, expected))
        assert values == expected, column.name
    assert any(row["owner"] == "=team shop" for row in cells)


def test_duckdb_sums_parquet_exactly(bill, cells, tmp_path):
    """SUM over the file in DuckDB is the bill's total, and the exact sum of the list costs."""
    parquetfile.write(charges.charges(bill, APIS), tmp_path / "c.parquet", unseen)
    query = f"select sum(billed_cost), sum(list_cost), typeof(sum(list_cost)) from '{tmp_path}/c.parquet'"
    billed, listed, type_ = duckdb.sql(query).fetchall()[0]
    assert billed == Decimal(bill.total) and type_ == "DECIMAL(38,18)"
    assert listed == sum(Decimal(row["list_cost"] or 0) for row in cells)


def test_parquet_types_are_the_same_every_month(bill, tmp_path):
    """A month without charges of an API has the same schema as one with: files can be read as one table."""
    parquetfile.write(charges.charges(bill, APIS), tmp_path / "all.parquet", unseen)
    parquetfile.write(charges.charges(bill, APIS, "none"), tmp_path / "none.parquet", unseen)
    whole, none = (pq.read_schema(tmp_path / name) for name in ("all.parquet", "none.parquet"))
    assert whole == none
    assert whole.field("consumer").type == pa.dictionary(pa.int32(), pa.string())
    assert whole.field("period_start").type == pa.timestamp("ms", tz="UTC")


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (["1.5", None, "-0.000000000000000001"], pa.decimal128(38, 18)),
        (["12345678901234567890.5", "-1"], pa.decimal128(38, 18)),
        (["1", "2", "0.0000000000000000001"], pa.decimal128(38, 19)),
        (["0.5", "1" * 21], pa.decimal128(38, 1)),
        # 30 digits: Arrow's cast to DECIMAL(38, 18) makes another number of it and says nothing.
        (["1", "2", "123456789012345678901234567890"], pa.decimal128(38, 0)),
        (["0." + "1" * 30, "1" * 20], pa.string()),
    ],
)
def test_an_amount_has_a_type_that_holds_it(values, type_, tmp_path):
    """18 places where they are enough, else as many as are needed, else text; never a rounded or a wrapped number."""
    parquetfile.write(bills.text_rows(values), tmp_path / "a.parquet", unseen)
    column = pq.read_table(tmp_path / "a.parquet").column(0)
    assert column.type == type_
    assert [v if v is None else Decimal(v) for v in column.to_pylist()] == [v and Decimal(v) for v in values]


decimals = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**12), max_value=10**12)


@given(st.lists(st.none() | decimals, max_size=9), st.integers(0, 40))
@settings(max_examples=25)
def test_parquet_sums_in_duckdb_are_exact(tmp_path_factory, values, shift):
    """Whatever amounts there are, of 9 or of 49 places: the file holds them and DuckDB adds them up exactly."""
    path = tmp_path_factory.mktemp("p") / "a.parquet"
    texts = [v if v is None else format(v.scaleb(-shift), "f") for v in values]
    parquetfile.write(bills.text_rows(texts), path, unseen)
    held = [v if v is None else Decimal(v) for v in pq.read_table(path).column(0).to_pylist()]
    assert held == [v and Decimal(v) for v in texts]
    if pa.types.is_decimal(pq.read_schema(path).field(0).type):
        total = duckdb.sql(f"select coalesce(sum(list_cost), 0) from '{path}'").fetchall()[0][0]
        assert total == sum((Decimal(v) for v in texts if v), Decimal(0))


def test_json_says_what_the_csv_says(bill, cells, tmp_path):
    """One array with an object per row, every column in it, amounts as text with all their digits."""
    assert jsonfile.write(charges.charges(bill, APIS), tmp_path / "c.json", unseen) == len(bill)
    content = (tmp_path / "c.json").read_text()
    assert json.loads(content) == cells
    assert content.count("\n") == len(bill) + 2
    assert [json.loads(line.rstrip(",")) for line in content.splitlines()[1:-1]] == cells
    jsonfile.write(charges.charges(bill, APIS, "none"), tmp_path / "none.json", unseen)
    assert json.loads((tmp_path / "none.json").read_text()) == []


@given(st.lists(st.none() | st.text(max_size=12), min_size=1, max_size=8))
@settings(max_examples=50)
def test_any_text_comes_back_from_json(tmp_path_factory, values):
    """Quotes, line breaks, control characters, any letter."""
    path = tmp_path_factory.mktemp("j") / "a.json"
    table = pa.table({"a": pa.array(values, pa.string()), "b": pa.array(range(len(values)), pa.int64())})
    columns = (charges.Column(name="a"), charges.Column(name="b", kind=Kind.COUNT))
    jsonfile.write(charges.Rows(columns=columns, pieces=lambda: iter([table])), path, unseen)
    assert json.loads(path.read_bytes()) == [{"a": value, "b": i} for i, value in enumerate(values)]


def test_usage_is_the_same_in_every_format(usage, tmp_path):
    """Counts are integers in JSON and Parquet, and those of the CSV."""
    lot = gather(usage, MONTH, (0,))
    rows = charges.usage(lambda: [lot], MONTH)
    export.write_usage([lot], MONTH, tmp_path / "u.csv")
    jsonfile.write(rows, tmp_path / "u.json", unseen)
    parquetfile.write(rows, tmp_path / "u.parquet", unseen)
    expected = read(tmp_path / "u.csv")
    table = pq.read_table(tmp_path / "u.parquet")
    assert table.column("calls").type == pa.int64()
    for found in (json.loads((tmp_path / "u.json").read_text()), table.to_pylist()):
        shown = [{name: said(value, Kind.TEXT) or "" for name, value in row.items()} for row in found]
        assert shown == expected
