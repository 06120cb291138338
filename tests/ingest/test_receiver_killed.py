"""kill -9 of a receiver under load, a few rounds; bench/kill_receiver.py does fifty."""

from bench import kill_receiver


def test_no_acknowledged_line_is_lost_and_none_counts_twice():
    """Whatever the moment: what was answered with 200 is there once, and the counts say the same."""
    figures = kill_receiver.main(rounds=4, workers=2)
    assert figures["lines_acknowledged"] > 0
    assert figures["acknowledged_but_lost"] == 0
    assert figures["counted_twice"] == 0
    assert figures["never_sent"] == 0
    assert figures["counts_received"] == figures["lines_consumed"]
    assert figures["lines_lost_counted"] == 0
