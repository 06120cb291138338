"""Charts: their labels are escaped and their axes readable."""

import xml.etree.ElementTree as ET

import pytest

from apicost.report import charts

EVIL = charts.Bar(label="<script>alert(1)</script>", value=3.0, text='"><b>3', hint="]]>&<")


@pytest.mark.parametrize("draw", [charts.bars, charts.columns, charts.stacked])
def test_labels_from_traffic_can_not_break_out(draw):
    """A label with markup is text in the drawing, which stays well-formed XML."""
    drawn = str(draw([EVIL, EVIL], "a <title>"))
    tree = ET.fromstring(drawn)
    assert {element.tag for element in tree.iter()} <= {"svg", "title", "text", "rect", "line"}


@pytest.mark.parametrize("draw", [charts.bars, charts.columns, charts.stacked])
def test_nothing_to_draw_is_no_crash(draw):
    """No bars, and bars of zero, are drawings too."""
    ET.fromstring(str(draw([], "none")))
    ET.fromstring(str(draw([charts.Bar(label="a", value=0.0, text="0")], "zero")))


@pytest.mark.parametrize(
    ("largest", "step"), [(0, 1), (9.63, 2), (24, 10), (1, 0.5), (0.004, 0.001), (100, 50), (5, 1)]
)
def test_axes_have_round_steps(largest, step):
    """Steps are 1, 2 or 5 times a power of ten, two to five to the largest value."""
    assert charts.nice_step(largest) == pytest.approx(step)
