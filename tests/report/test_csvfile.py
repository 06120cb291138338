"""CSV: safe to open, exact, and the same bytes for the same content."""

import csv
import io

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.report import csvfile

texts = st.lists(st.none() | st.text(max_size=12), min_size=1, max_size=8)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula(start):
    """A text that a spreadsheet would run gets an apostrophe before it."""
    column = pa.array([f"{start}cmd|' /C calc'!A0"]).dictionary_encode()
    (cell,) = next(csv.reader(io.StringIO(csvfile.encode(pa.table({"route_id": column})).decode(), newline="")))
    assert cell == f"'{start}cmd|' /C calc'!A0"


def test_numbers_stay_numbers():
    """Amounts and counts have no apostrophe and no exponent, a negative one included."""
    table = pa.table(
        {"calls": pa.array([-5]), "billed_cost": pa.array(["-0.01"]), "list_cost": pa.array(["0.00000035"])}
    )
    assert csvfile.encode(table) == b"-5,-0.01,0.00000035\n"


def test_absent_is_empty():
    """A null is an empty cell, in text and numbers."""
    table = pa.table({"a": pa.array([None, "x"]).dictionary_encode(), "b": pa.array([1, None])})
    assert csvfile.encode(table) == b",1\nx,\n"


@given(texts)
@settings(deadline=None)
def test_every_text_reads_back(values):
    """Commas, quotes, line breaks and any character of Unicode come back as they went, but for the apostrophe."""
    column = pa.array(values, pa.string()).dictionary_encode()
    data = csvfile.encode(pa.table({"a": column, "b": pa.array(range(len(values)))})).decode()
    rows = list(csv.reader(io.StringIO(data, newline="")))
    assert [row[1] for row in rows] == [str(i) for i in range(len(values))]
    for value, (cell, _) in zip(values, rows, strict=True):
        expected = value or ""
        assert cell == ("'" + expected if expected.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else expected)
