"""apicost probe: flows and turns as the kernel counts them, nothing else."""

from __future__ import annotations

import argparse
import ipaddress
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from apicost.core.records import Role, SnapshotKind
from apicost.ingest import cgroups
from apicost.ingest.probe import Options, Probe, ProbeError, find_gateway_cgroup

COUNTERS = (
    "in_wire_bytes", "out_wire_bytes", "in_payload_bytes", "out_payload_bytes", "in_packets", "out_packets",
)  # fmt: skip
PROTOCOLS = {6: "tcp", 17: "udp"}
READ_EVERY_S = 0.05


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="apicost probe",
        description="Counts every packet of a cgroup's connections in the kernel and prints each connection "
        "(flow) and each request-answer stretch of it (turn), totals last. Needs root.",
        epilog="exit codes: 0 done, 2 usage error or the probe can't be attached",
    )
    where = made.add_mutually_exclusive_group()
    where.add_argument("--cgroup", type=Path, help="cgroup2 folder of the gateway")
    where.add_argument("--pid", type=int, help="a process of the gateway: its cgroup is probed")
    made.add_argument("--port", type=int, action="append", default=[], help="port the gateway listens on")
    made.add_argument("--control-port", type=int, action="append", default=[], help="port of control traffic")
    made.add_argument("--seconds", type=float, help="stop after so long (default: at Ctrl-C or SIGTERM)")
    made.add_argument("--json", action="store_true", help="one JSON object a line: turns, flows, totals last")
    made.add_argument("--map-entries", type=int, default=65_536, help="connections counted at once (65536)")
    made.add_argument("--ring-bytes", type=int, default=8 << 20, help="room for finished turns (8388608)")
    made.add_argument("--python", default="/usr/bin/python3", help="interpreter that has bcc")
    return made


@dataclass(slots=True)
class _Flow:
    """What was already printed of an open flow."""

    printed: list[int] = field(default_factory=lambda: [0] * len(COUNTERS))
    last: dict[str, Any] = field(default_factory=dict)


class Printer:
    """FLOW batches to turn and flow objects, of which the turns are a partition of the flow.

    A turn is printed when the next begins; the last one, which takes up all that follows, with its flow.
    Where the ring lost records, a turn stands for several (its `seq` jumps) and no byte is missing.
    """

    def __init__(self, mono_to_unix_ns: int) -> None:
        self._shift = mono_to_unix_ns
        self._open: dict[int, _Flow] = {}
        self.totals = dict.fromkeys(("flows", "turns", *COUNTERS), 0)

    def feed(self, batch: pa.Table) -> Iterator[dict[str, Any]]:
        """Objects that this batch completes, in order."""
        for row in batch.to_pylist():
            state = self._open.setdefault(row["flow"], _Flow())
            if row["kind"] == SnapshotKind.TURN:
                yield self._turn(state, row)
                continue
            state.last = row
            if row["kind"] == SnapshotKind.CLOSED:
                del self._open[row["flow"]]
                yield self._turn(state, row)
                yield self._flow(row, closed=True)

    def finish(self) -> Iterator[dict[str, Any]]:
        """The flows that are still open, as last seen."""
        for state in self._open.values():
            if state.last:
                yield self._turn(state, state.last)
                yield self._flow(state.last, closed=False)
        self._open.clear()

    def _turn(self, state: _Flow, row: dict[str, Any]) -> dict[str, Any]:
        counts = [row[name] for name in COUNTERS]
        share = [now - before for now, before in zip(counts, state.printed, strict=True)]
        state.printed = counts
        starts = [t for t in (row["request_first_mono_ns"], row["response_first_mono_ns"]) if t]
        ends = [t for t in (row["request_last_mono_ns"], row["response_last_mono_ns"]) if t]
        self.totals["turns"] += 1
        return {
            "type": "turn",
            "flow": str(row["flow"]),
            "seq": row["turn"],
            **_ends(row),
            "first_unix_ns": min(starts or [row["born_mono_ns"]]) + self._shift,
            "last_unix_ns": max(ends or [row["last_mono_ns"]]) + self._shift,
            **dict(zip(COUNTERS, share, strict=True)),
        }

    def _flow(self, row: dict[str, Any], *, closed: bool) -> dict[str, Any]:
        counts = {name: row[name] for name in COUNTERS}
        self.totals["flows"] += 1
        for name, count in counts.items():
            self.totals[name] += count
        ends = _ends(row)
        return {
            "type": "flow",
            "flow": str(row["flow"]),
            "role": ends.pop("role"),
            "protocol": PROTOCOLS.get(row["protocol"], str(row["protocol"])),
            **ends,
            "closed": closed,
            "ttl_min": row["ttl_min"],
            "ttl_max": row["ttl_max"],
            "retransmitted_segments": row["in_resent_packets"] + row["out_resent_packets"],
            "srtt_us": row["srtt_us"],
            **counts,
        }


def _ends(row: dict[str, Any]) -> dict[str, str]:
    return {
        "role": Role(row["role"]).name.lower(),
        "local": endpoint(row["local_hi"], row["local_lo"], row["local_port"]),
        "peer": endpoint(row["peer_hi"], row["peer_lo"], row["peer_port"]),
    }


def endpoint(high: int, low: int, port: int) -> str:
    """ADDR:PORT, or [ADDR]:PORT for IPv6, of an address in two halves."""
    address = ipaddress.IPv6Address(high << 64 | low)
    return f"{address.ipv4_mapped}:{port}" if address.ipv4_mapped else f"[{address}]:{port}"


def totals(printer: Printer, losses: dict[str, int]) -> dict[str, Any]:
    """The last object: sums of the flows, and what is in no flow."""
    beyond = ("overflow", "no_socket", "other")
    return {
        "type": "totals",
        **printer.totals,
        "overflow_bytes": sum(losses[f"{name}_{way}_bytes"] for name in beyond for way in ("in", "out")),
        "ring_lost": losses["ring_lost"],
    }


def main(argv: list[str]) -> int:
    """Probe until told to stop; 0, or 2 where the probe can't be attached."""
    asked = parser().parse_args(argv)
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _frame: stop.append(got))
    try:
        options = _options(asked)
        probe = Probe.open(options)
    except ProbeError as error:
        print(f"apicost probe: {error}", file=sys.stderr)
        return 2
    show = _show_json if asked.json else _show_line
    printer = Printer(time.time_ns() - time.monotonic_ns())
    print(f"apicost probe: attached to {options.cgroup}", file=sys.stderr, flush=True)
    with probe:
        until = time.monotonic() + asked.seconds if asked.seconds is not None else float("inf")
        try:
            while not stop and time.monotonic() < until and not probe.stale():
                time.sleep(min(READ_EVERY_S, max(0.0, until - time.monotonic())))
                _print(printer.feed(probe.read()), show)
            _print(printer.feed(probe.read(final=True)), show)
            _print(printer.finish(), show)
            _print([totals(printer, probe.losses())], show)
        except BrokenPipeError:
            return 0
        if probe.stale():
            print(f"apicost probe: {probe.stale()}", file=sys.stderr)
    return 0


def _options(asked: argparse.Namespace) -> Options:
    if asked.pid is not None:
        cgroup = cgroups.of_process(asked.pid)
    else:
        cgroup = asked.cgroup or find_gateway_cgroup(asked.port or (9080, 9443))
    return Options(
        cgroup=cgroup,
        gateway_ports=tuple(asked.port),
        control_ports=tuple(asked.control_port),
        map_entries=asked.map_entries,
        ring_bytes=asked.ring_bytes,
        loader_python=asked.python,
    )


def _print(objects: Any, show: Any) -> None:
    for item in objects:
        show(item, sys.stdout)
    sys.stdout.flush()


def _show_json(item: dict[str, Any], out: TextIO) -> None:
    out.write(json.dumps(item, separators=(",", ":")) + "\n")


def _show_line(item: dict[str, Any], out: TextIO) -> None:
    counts = (
        f"in {item['in_wire_bytes']:>11,} B ({item['in_payload_bytes']:,} payload, {item['in_packets']:,} packets)  "
        f"out {item['out_wire_bytes']:>11,} B ({item['out_payload_bytes']:,} payload, "
        f"{item['out_packets']:,} packets)"
    )
    if item["type"] == "totals":
        out.write(f"total  {item['flows']} flows, {item['turns']} turns  {counts}\n")
        out.write(f"       in no flow: {item['overflow_bytes']:,} B; turns lost: {item['ring_lost']:,}\n")
        return
    name = f"{item['type']:<5}  {item['role']:<10} {item['peer']} -> {item['local']}"
    if item["role"] != "downstream":
        name = f"{item['type']:<5}  {item['role']:<10} {item['local']} -> {item['peer']}"
    state = "" if item["type"] == "turn" else ("  closed" if item["closed"] else "  open")
    out.write(f"{name}  {counts}{state}\n")
