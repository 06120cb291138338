"""The sidecar's own pages."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from apicost.web.app import Status, make_app

GOOD = Status(node="gw-1", counters={"lines_received": 7}, gauges={"probe_attached": 1}, api_calls={"shop": 5})


def fetch(status: Status, path: str) -> tuple[int, str]:
    async def go() -> tuple[int, str]:
        runner = web.AppRunner(make_app(lambda: status))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as got:
                return got.status, await got.text()
        finally:
            await runner.cleanup()

    return asyncio.run(go())


def test_metrics_are_prometheus_text():
    """Counters carry _total, the node and their help."""
    code, text = fetch(GOOD, "/metrics")
    assert code == 200
    assert 'apicost_lines_received_total{node="gw-1"} 7.0' in text
    assert 'apicost_probe_attached{node="gw-1"} 1.0' in text
    assert 'apicost_calls_total{api="shop",node="gw-1"} 5.0' in text


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (GOOD, 200, '"ok"'),
        (Status(node="n", problems=("prices.yaml is bad",)), 200, '"degraded"'),
        (Status(node="n", failures=("disk full",)), 503, '"failing"'),
    ],
)
def test_health_tells_degraded_from_failing(status, code, word):
    """A kept last good configuration is no reason to restart; a full disk is."""
    got, text = fetch(status, "/healthz")
    assert got == code
    assert word in text


def test_the_page_escapes_what_came_from_outside():
    """An API named like a script is text."""
    status = Status(node="n", api_calls={"<script>x</script>": 1}, facts=(("a", "<b>"),))
    _, text = fetch(status, "/")
    assert "<script>" not in text and "<b>" not in text
    assert "&lt;script&gt;" in text
