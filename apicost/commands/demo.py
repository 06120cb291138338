"""`apicost demo`: live traffic through a gateway on this machine, and its report."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apicost import resources, scratch
from apicost.problems import InputError, Problem

MARK = ".apicost-demo"  # stands in folders that the demo made, so that only those are replaced


def main(argv: list[str]) -> int:
    """0 when a report was written, 2 when neither a live run nor the recorded one was possible."""
    parser = argparse.ArgumentParser(
        prog="apicost demo",
        description="Start upstreams, a gateway with the plugin and the sidecar with its probe; send mixed traffic; "
        "print what it cost. Where eBPF can't be loaded, replay a recorded run and say so.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="where the report goes (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=6, help="how often the mix of requests is sent (default: %(default)s)"
    )
    parser.add_argument("--replay", action="store_true", help="replay the recorded run instead of a live one")
    parser.add_argument("--record", type=Path, metavar="DIR", help="save what came in as a recorded run")
    options = parser.parse_args(argv)
    _prepare(options.out)

    from apicost.demo import live

    reason = "--replay was asked for" if options.replay else live.why_no_probe()
    with scratch.folder("demo") as folder:
        if reason:
            say(f"Not live: {reason}.")
            say("Replaying a run recorded on another machine instead; its date is the recording's.")
            month = _replay(folder)
        else:
            month = _live(folder, options)
        return _report(folder, month, options.out)


def say(text: str) -> None:
    """For the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def _prepare(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise InputError(
            [
                Problem(
                    place=str(out),
                    fact="is a folder with other files in it",
                    effect="the demo does not write into it",
                    fix="name a new folder with --out",
                )
            ]
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _live(folder: Path, options: argparse.Namespace) -> str:
    from apicost.demo import live

    say("Live: upstreams, a gateway with the plugin, and the sidecar with its eBPF probe on the gateway's cgroup ...")
    started = time.monotonic()
    run = live.run(folder, rounds=options.rounds, record=options.record is not None)
    kinds: dict[str, int] = {}
    for sent in run.sent:
        kinds[sent.kind] = kinds.get(sent.kind, 0) + 1
    what = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
    say(f"{len(run.sent)} requests in {time.monotonic() - started:.0f} s through {run.gateway}: {what}.")
    say(f"Probe: {run.probe}.")
    if options.record is not None:
        _save(folder, options.record)
    return time.strftime("%Y-%m")


def _save(folder: Path, target: Path) -> None:
    """The run's input as a recording that `apicost replay` takes, with its configuration beside it."""
    from apicost.ingest import replay

    replay.save(target, replay.load(folder / "recorded"))
    (target / "apicost.yaml").write_text(RECORDED_CONFIG)
    say(f"Recorded: {target}")


RECORDED_CONFIG = """# Which documents and prices a recorded run of the demo is to be read with.
node: demo
prices: ../prices.yaml
apis:
  - {id: shop, title: Shop, owner: Ada Example, team: shop, documents: [../shop.yaml], service_ids: [shop]}
  - {id: media, title: Media, owner: Bo Example, team: media, documents: [../media.yaml], service_ids: [media]}
"""


def _replay(folder: Path) -> str:
    from apicost import config, run

    recorded = resources.folder("sample-run")
    settings = config.load(recorded / "apicost.yaml")
    (folder / "state").mkdir()
    outcome = run.replay(recorded, folder / "state" / "ledger", settings)
    say(f"{outcome.exchanges} requests replayed.")
    specs = resources.folder("specs")
    text = RECORDED_CONFIG.replace("../", f"{specs}/")
    (folder / "apicost.yaml").write_text(f"{text}state_dir: state\n")
    clock = json.loads((recorded / "clock.json").read_text())
    return time.strftime("%Y-%m", time.gmtime(clock["unix_ns"] // 1_000_000_000))


def _report(folder: Path, month: str, out: Path) -> int:
    from apicost.commands import report
    from apicost.report import pdf

    formats = ["html", "pdf", "csv", "xlsx", "json"]
    if reason := pdf.why_not():
        say(f"No PDF: {reason}.")
        formats.remove("pdf")
    common = ["-c", str(folder / "apicost.yaml"), "--month", month]
    with tempfile.TemporaryFile("w+") as listing:
        stdout, sys.stdout = sys.stdout, listing  # the list of files is told below, once
        try:
            code = report.main([*common, "--out", str(out), "--format", ",".join(formats)])
        finally:
            sys.stdout = stdout
    if code:
        return code
    _print(json.loads((out / "report.json").read_text()))
    print("\nThe report, and the files that its figures come from:")
    for path in sorted(out.iterdir()):
        if not path.name.startswith("."):
            print(f"  {path}")
    return 0


def _print(report: dict[str, Any]) -> None:
    currency = report["currency"]
    print(f"\nCost of {report['month']} by API ({currency})")
    _table(
        ("API", "calls", "client bytes", "backend bytes", "billed"),
        [
            (row["label"], row["calls"], row["client_wire_bytes"], row["backend_wire_bytes"], row["billed_cost"])
            for row in report["by_api"]
        ],
        ("total", report["calls"], report["client_wire_bytes"], report["backend_wire_bytes"], report["billed_cost"]),
    )
    print(f"\nCost by operation ({currency})")
    _table(
        ("operation", "", "calls", "client bytes", "billed"),
        [
            (row["label"], row["note"], row["calls"], row["client_wire_bytes"], row["billed_cost"])
            for row in report["by_operation"]
        ],
    )
    found = report["conformance"]["findings"]
    print(f"\nWhat the traffic does that the OpenAPI documents do not say, and what it costs ({currency})")
    _table(
        ("finding", "operation", "what", "calls", "cost"),
        [
            (row["rule"], f"{row['method'] or ''} {row['path_template'] or ''}", row["detail"], row["count"],
             row["cost"] or "unpriced")
            for row in found
        ],
    )  # fmt: skip
    confidence = report["confidence_wire_bytes"]
    whole = sum(confidence.values()) or 1
    print("\nHow sure the wire bytes are: " + ", ".join(f"{k} {v * 100 / whole:.2f} %" for k, v in confidence.items()))
    counts = report["completeness"] or {}
    shown = ("lines_received", "lines_lost", "lines_duplicate", "lines_refused", "ring_lost")
    print("Completeness: " + ", ".join(f"{name.replace('_', ' ')} {counts.get(name, 0):,}" for name in shown))
    overflow = sum(counts.get(f"overflow_{direction}_bytes", 0) for direction in ("in", "out"))
    print(f"Bytes that found the flow table full: {overflow:,}")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], foot: Sequence[Any] | None = None) -> None:
    lines = [
        [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row]
        for row in (*rows, *([foot] if foot else []))
    ]
    widths = [max(len(line[column]) for line in [list(head), *lines]) for column in range(len(head))]
    numeric = [
        all(isinstance(row[column], int) or column == len(head) - 1 for row in rows) for column in range(len(head))
    ]

    def show(cells: Sequence[str]) -> None:
        padded = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)]
        print("  " + "  ".join(padded).rstrip())

    show(head)
    for number, line in enumerate(lines):
        if foot and number == len(lines) - 1:
            print("  " + "  ".join("-" * width for width in widths))
        show(line)
