"""What the sidecar shows of itself: /metrics (Prometheus), /healthz and a small status page.

Rules of this file:
- It reads one `Status` per request and computes nothing: the daemon says what it knows.
- /healthz answers 200 while data is being taken, with the problems in its body, and 503 when a part
  that was asked for cannot work at all, so that an orchestrator restarts it for the right reasons.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from apicost.web.findings import Findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the daemon knows of itself now.

    failures: what does not work at all (one sentence each); problems: what is degraded, with the reason.
    facts: label and value for people. counters only grow while the process lives; gauges go both ways.
    Names of counters and gauges are without the `apicost_` prefix.
    """

    node: str
    failures: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    counters: Mapping[str, float] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    api_calls: Mapping[str, int] = field(default_factory=dict)  # calls by API id since start
    findings: Findings | None = None  # of conformance; None before they were counted


class _Collector:
    """Prometheus metrics from a Status."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self.status = status

    def collect(self) -> Iterable[Metric]:
        status = self.status()
        for name, value in sorted(status.counters.items()):
            family = CounterMetricFamily(f"apicost_{name}", HELP.get(name, name.replace("_", " ")), labels=["node"])
            family.add_metric([status.node], value)
            yield family
        for name, value in sorted(status.gauges.items()):
            gauge = GaugeMetricFamily(f"apicost_{name}", HELP.get(name, name.replace("_", " ")), labels=["node"])
            gauge.add_metric([status.node], value)
            yield gauge
        calls = CounterMetricFamily("apicost_calls", HELP["calls"], labels=["node", "api"])
        for api, count in sorted(status.api_calls.items()):
            calls.add_metric([status.node, api], count)
        yield calls
        if status.findings is not None:
            yield from _of_findings(status.node, status.findings)


def _of_findings(node: str, findings: Findings) -> Iterable[Metric]:
    labels = ["node", "rule", "severity", "api"]
    found = GaugeMetricFamily("apicost_conformance_findings", HELP["conformance_findings"], labels=labels)
    calls = CounterMetricFamily("apicost_conformance_calls", HELP["conformance_calls"], labels=labels)
    for one in findings.counts:
        found.add_metric([node, one.rule, one.severity, one.api], one.findings)
        calls.add_metric([node, one.rule, one.severity, one.api], one.calls)
    yield from (found, calls)
    for name in ("operations", "operations_seen"):
        gauge = GaugeMetricFamily(f"apicost_conformance_{name}", HELP[f"conformance_{name}"], labels=["node", "api"])
        for coverage in findings.coverage:
            gauge.add_metric([node, coverage.api], getattr(coverage, name))
        yield gauge
    name = "conformance_judged_timestamp_seconds"
    judged = GaugeMetricFamily(f"apicost_{name}", HELP[name], labels=["node"])
    judged.add_metric([node], findings.judged_unix_s)
    yield judged


HELP = {
    "calls": "Requests accounted, by API; api is empty where no API claims them",
    "conformance_findings": "Findings of the current calendar month (UTC), ignored ones left out",
    "conformance_calls": "Requests that findings concern in the current calendar month (UTC); begins anew with each",
    "conformance_operations": "Documented operations",
    "conformance_operations_seen": "Documented operations that were called in the current calendar month (UTC)",
    "conformance_judged_timestamp_seconds": "When findings were counted last",
    "conformance_failures": "Times that findings could not be counted; the log says why",
    "lines_received": "Usage lines made durable",
    "lines_duplicate": "Usage lines that came again and were not counted again",
    "lines_refused": "Usage lines refused as malformed",
    "ring_lost": "Turn records that did not fit the ring: turns merged, no byte lost",
    "overflow_in_bytes": "Wire bytes in of flows that did not fit the flow table",
    "overflow_out_bytes": "Wire bytes out of flows that did not fit the flow table",
    "samples_received": "Sampled bodies taken by the receiver",
    "samples_dropped": "Sampled bodies dropped here: no room, or no checker",
    "samples_dropped_by_gateways": "Sampled bodies that gateway workers dropped",
    "samples_checked": "Sampled bodies held against their documents",
    "samples_deviating": "Sampled bodies that do not fit their documents",
    "samples_unmatched": "Sampled bodies of no documented operation",
    "samples_unusable": "Sampled bodies that were cut, compressed or not the backend's",
    "probe_attached": "1 while the kernel counts, 0 while only gateway lines come",
}


def make_app(status: Callable[[], Status]) -> web.Application:
    """The application with its three pages; `status` is called once per request."""
    registry = CollectorRegistry()
    registry.register(_Collector(status))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(_: web.Request) -> web.Response:
        now = status()
        state = "failing" if now.failures else "degraded" if now.problems else "ok"
        body = {"status": state, "node": now.node, "failures": now.failures, "problems": now.problems}
        return web.json_response(body, status=503 if now.failures else 200)

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=render(status()), content_type="text/html")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", health)
    app.router.add_get("/", page)
    return app


def render(status: Status) -> str:
    """The status page: what is wrong first, then what is known."""
    wrong = [*status.failures, *status.problems]
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in wrong) or "<li class=ok>everything asked for works</li>"
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in status.facts)
    counts = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td class=n>{value:,.0f}</td></tr>"
        for name, value in sorted({**status.counters, **status.gauges}.items())
    )
    calls = "".join(
        f"<tr><th>{html.escape(api or '(no API)')}</th><td class=n>{count:,}</td></tr>"
        for api, count in sorted(status.api_calls.items())
    )
    return _PAGE.format(
        node=html.escape(status.node),
        notes=notes,
        rows=rows,
        counts=counts,
        calls=calls or "<tr><td>none yet</td></tr>",
    )


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>apicost on {node}</title>
<meta name="viewport" content="width=device-width">
<style>
body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;
     color:#1c2430;background:#fff}}
h1{{font-size:1.4rem}} h2{{font-size:1rem;margin-top:2rem}}
table{{border-collapse:collapse;width:100%}} th{{text-align:left;font-weight:500;color:#4a5568}}
th,td{{padding:.25rem .5rem;border-bottom:1px solid #e2e8f0}}
.n{{text-align:right;font-variant-numeric:tabular-nums}}
ul{{padding-left:1.2rem}} li{{color:#9b2c2c}} li.ok{{color:#276749}}
</style>
<h1>apicost on {node}</h1>
<ul>{notes}</ul>
<table>{rows}</table>
<h2>Calls by API since start</h2><table>{calls}</table>
<h2>Counters</h2><table>{counts}</table>
<p><a href="/metrics">metrics</a> · <a href="/healthz">health</a></p></html>
"""
