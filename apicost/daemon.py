"""The sidecar process: probe, receiver, correlation steps, pages; started by `apicost run`.

Threads: the event loop (receiver and pages), the probe reader, the stepper. The receiver's own writer
thread belongs to the receiver. What they share is the spool, which is safe between threads; everything
else has one owner.

Order of stopping: the receiver takes no more, the probe is read once more and detached, what is sealed is worked
off for `STOP_S` at most. What is left of it stays in the spool, and what is open in the ledger's carry, for the next
start: that works it off, and ends the former session, while it takes lines and reads the probe already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from aiohttp import web

from apicost import __version__, memory, run
from apicost import config as configuration
from apicost.catalog.sample_host import SampleHost
from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.join.watermark import Watermark
from apicost.ingest import exit_spool, receiver, segment_files, spool
from apicost.ingest import probe as probing
from apicost.ingest.samples import SampleQueue
from apicost.problems import InputError
from apicost.store import lake
from apicost.web import app as pages
from apicost.web import findings

log = logging.getLogger("apicost")

PROBE_READ_S = 0.1  # the ring holds about 9,000 turns: a tenth of a second leaves room for 90,000/s
SEAL_S = 0.5  # how often flow snapshots become a sealed segment
RETRY_PROBE_S = 10.0
HOUSEKEEPING_S = 5.0
COMPACT_S = 600.0
STOP_S = 5.0  # how long what is sealed is worked off after SIGTERM
SAMPLES_S = 5.0  # how often what sampled bodies showed becomes a segment
SAMPLES_KNOWN_S = 3_600.0  # how long the ledger knows a batch of samples: a gateway sends one again at once or never
SESSION_SHIFT = 48  # socket cookies stay far below 2**48: the bits above tell one probe session from the next


def clock_now() -> Clock:
    """Both clocks, read together."""
    return Clock(mono_ns=time.monotonic_ns(), unix_ns=time.time_ns())


@dataclass(slots=True)
class Shared:
    """What the pages show; written by one thread each, read by the event loop."""

    probe_state: str = "off: not started"
    failures: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    step_counts: Counter[str] = field(default_factory=Counter)
    step_levels: dict[str, int] = field(default_factory=dict)  # as of the last step
    steps: int = 0
    step_seconds: float = 0.0
    late_s: float = 0.0  # by how much waits are held back, since lines or flows come late
    backlog_s: float = 0.0  # age of what the last step read
    flow_rows: int = 0


class Daemon:
    """One sidecar for one gateway node."""

    def __init__(self, config: configuration.Config) -> None:
        """Open everything that must work; raises InputError or OSError naming what doesn't."""
        self.config = config
        self.shared = Shared()
        self.stopping = threading.Event()
        self.stop_probe = threading.Event()
        for folder in (config.state_dir, config.spool_dir, config.ledger_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.token = receiver.read_token(config.receiver.token_file, create=True)
        self.spool = spool.Spool.open(config.spool_dir, node=config.node)
        self.ledger = lake.Lake.open(config.ledger_dir)
        for finding in (*self.spool.repairs, *self.ledger.repairs):
            log.warning("start-up repair: %s", finding)
        self.knowledge = run.load_knowledge(config.apis, config.prices, cache=config.state_dir / "cache")
        self._note_knowledge()
        self.seen_files = self._watched()
        self.pipeline = run.Pipeline(
            self.ledger, run.correlate_settings(config), node=config.node, privacy=config.privacy.client_addresses
        )
        for finding in self.pipeline.repairs:
            log.warning("start-up repair: %s", finding)
        # Segments up to this one are of former runs; their flows end before those of this one begin.
        self.former_segment: int | None = max((ref.number for ref in self.spool.sealed()), default=0)
        self.former_clock: Clock | None = None
        self.watermark = Watermark()
        self.flows_mono_ns = 0  # all packets up to then are in the spool; the probe's thread writes it
        self.read_flows_mono_ns = 0  # the same of what steps have taken
        self.stop_by_s = float("inf")
        self.session = self._next_session()
        settings = config.conformance
        self.sample_queue = SampleQueue()
        self.samples = SampleHost(
            self.sample_queue,
            cache=config.state_dir / "cache",
            memory_bytes=settings.checker_memory_bytes,
            idle_s=settings.checker_idle_s,
        )
        self._kept_samples: deque[tuple[float, str]] = deque()
        self.probe: probing.Probe | None = None
        self._first_probe_try = threading.Event()
        self._compaction: subprocess.Popen[bytes] | None = None
        self.findings = findings.Tally(now_s=time.monotonic())
        self.receiver_url = ""
        self.web_url = ""

    # -- start and stop -------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run until SIGTERM or SIGINT; then drain and leave nothing attached."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, done.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        app = receiver.make_app(self._receiver_options(), self.spool, self.sample_queue)
        runners: list[web.AppRunner] = []
        threads: list[threading.Thread] = []
        try:
            self.app = app
            runners.append(receiver.make_runner(app))
            self.receiver_url = await _listen(runners[0], self.config.receiver.listen)
            runners.append(web.AppRunner(pages.make_app(self.status), access_log=None, shutdown_timeout=STOP_S))
            self.web_url = await _listen(runners[1], self.config.web)
            for name, target in (("probe", self._probe_loop), ("steps", self._step_loop)):
                threads.append(threading.Thread(target=target, name=name, daemon=True))
            for thread in threads:
                thread.start()
            self.samples.start(self.config.apis)
            await asyncio.to_thread(self._first_probe_try.wait)
            memory.give_back_library_pages()
            self._announce()
            await done.wait()
        finally:
            if runners:
                await runners[0].cleanup()
            await asyncio.to_thread(self.samples.stop)
            self.stop_probe.set()
            if threads:
                await asyncio.to_thread(threads[0].join)
                self.stop_by_s = time.monotonic() + STOP_S
                self.stopping.set()
                await asyncio.to_thread(threads[1].join)
            for runner in runners[1:]:
                await runner.cleanup()
            self.close()

    def close(self) -> None:
        """Give everything back."""
        self.findings.close()
        if self._compaction is not None and self._compaction.poll() is None:
            self._compaction.terminate()  # what it has not committed is removed by the next one
            try:
                self._compaction.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._compaction.kill()
        left = self.spool.backlog()["rows"]
        if left:
            log.warning("%d rows wait in the spool for the next start", left)
        self.spool.close()
        self.ledger.close()

    def _announce(self) -> None:
        import orjson

        line = {"ready": True, "receiver": self.receiver_url, "probe": self.shared.probe_state, "pid": os.getpid()}
        line["web"] = self.web_url
        sys.stdout.write(orjson.dumps(line).decode() + "\n")
        sys.stdout.flush()

    def _receiver_options(self) -> Any:
        settings = self.config.receiver
        return receiver.Options(
            token=self.token,
            max_body_bytes=settings.max_body_bytes,
            max_lines_per_batch=settings.max_lines_per_batch,
            max_batches_per_s=settings.max_batches_per_s,
            max_path_bytes=settings.max_path_bytes,
        )

    def _next_session(self) -> int:
        """A number for this run's probe session, so that a flow of an earlier one is never continued."""
        path = self.config.state_dir / "session"
        try:
            last = int(path.read_text())
        except (OSError, ValueError):
            last = 0
        path.write_text(f"{last + 1}\n")
        return (last + 1) % (1 << (64 - SESSION_SHIFT))

    # -- the probe's thread ---------------------------------------------------------------------

    def _probe_loop(self) -> None:
        """Attach, read, seal; attach again after the gateway's cgroup has gone."""
        if not self.config.probe.enabled:
            self.shared.probe_state = "off: probe.enabled is false"
            self._first_probe_try.set()
            return
        while not self.stop_probe.is_set():
            self.flows_mono_ns = time.monotonic_ns()
            try:
                self.probe = probing.Probe.open(self._probe_options())
            except probing.ProbeError as error:
                self._probe_off(str(error))
                self._first_probe_try.set()
                self.stop_probe.wait(RETRY_PROBE_S)
                continue
            self.shared.probe_state = "attached"
            self.shared.problems.pop("probe", None)
            self._drop_privileges()
            self._first_probe_try.set()
            try:
                self._read_until_stopped(self.probe)
            except probing.ProbeError as error:
                self._probe_off(str(error))
                if self.config.run_as and not self.stop_probe.is_set():
                    # The loader's rights are gone: end, so that the supervisor starts anew with them.
                    log.warning("ending, to be started again with the right to attach")
                    os.kill(os.getpid(), signal.SIGTERM)
            finally:
                self.probe.close()
                self.probe = None

    def _probe_off(self, reason: str) -> None:
        state = f"off: {reason}"
        if self.shared.probe_state != state:
            log.warning("probe %s; usage lines go on, their bytes are marked as app bytes", state)
        self.shared.probe_state = state
        self.shared.problems["probe"] = f"the probe is {state}"

    def _read_until_stopped(self, probe: probing.Probe) -> None:
        """Read and seal until the daemon stops or the gateway's cgroup goes; every flow then ends as it stands."""
        waiting: list[pa.Table] = []
        before: dict[str, int] = {}
        sealed_s = time.monotonic()
        try:
            while not self.stop_probe.wait(PROBE_READ_S):
                clock = clock_now()  # before the reading: all up to then is in it
                waiting.append(probe.read())
                if time.monotonic() - sealed_s >= SEAL_S:
                    sealed_s = time.monotonic()
                    before = self._seal(probe, waiting, before, clock)
                    gone = probe.stale()
                    if gone:
                        raise probing.ProbeError(gone, "the probe attaches again when the gateway is back")
        finally:
            clock = clock_now()
            waiting.append(_ended(probe.read(final=True)))
            self._seal(probe, waiting, before, clock)

    def _seal(
        self, probe: probing.Probe, waiting: list[pa.Table], before: dict[str, int], clock: Clock
    ) -> dict[str, int]:
        """Make what was read durable; on a full disk it stays in memory for the next try.

        clock: all packets up to then were read.
        """
        losses = probe.losses()
        flows = pa.concat_tables(waiting) if waiting else records.empty(records.FLOW)
        if flows.num_rows:
            salted = records.numbers(flows, "flow").astype(np.uint64) | np.uint64(self.session << SESSION_SHIFT)
            flows = flows.set_column(0, "flow", pa.array(salted))
        new = {name: value - before.get(name, 0) for name, value in losses.items() if name in COUNTED_LOSSES}
        try:
            self.spool.add_flows(flows, losses=new, clock=clock)
        except OSError as error:
            self.shared.failures["disk"] = f"flow snapshots cannot be made durable: {error}"
            return before
        self.shared.failures.pop("disk", None)
        self.flows_mono_ns = clock.mono_ns
        self.shared.flow_rows += flows.num_rows
        waiting.clear()
        return losses

    def _probe_options(self) -> probing.Options:
        settings = self.config.probe
        listen = self.config.receiver.listen.rpartition(":")[2]
        control = [*settings.control_ports, *([int(listen)] if listen.isdigit() else [])]
        if self.receiver_url.startswith("http:"):
            control.append(int(self.receiver_url.rpartition(":")[2]))
        cgroup = Path(settings.cgroup) if settings.cgroup else None
        if cgroup is None:
            cgroup = probing.find_gateway_cgroup(ports=settings.gateway_ports, pid_file=settings.pid_file)
        return probing.Options(
            cgroup=cgroup,
            gateway_ports=settings.gateway_ports,
            control_ports=tuple(sorted({port for port in control if port})),
            map_entries=settings.map_entries,
            ring_bytes=settings.ring_bytes,
            sweep_s=settings.sweep_s,
            loader_python=settings.loader_python,
        )

    def _drop_privileges(self) -> None:
        """Become the configured user: what needed root is done, and the kernel side needs none any more.

        A gateway that comes back in a new cgroup needs the loader again: see `_probe_loop`.
        """
        name = self.config.run_as
        if not name or os.geteuid() != 0:
            return
        user = pwd.getpwnam(name)
        for path in (self.config.state_dir, *self.config.state_dir.rglob("*")):
            with contextlib.suppress(OSError):
                os.chown(path, user.pw_uid, user.pw_gid)
        probing.drop_privileges(name)
        log.info("running as %s, without capabilities", name)

    # -- the steps' thread ----------------------------------------------------------------------

    def _step_loop(self) -> None:
        """A correlation step every `step_s`, at once while more is sealed than one takes; housekeeping in between."""
        housekept_s = compacted_s = samples_s = time.monotonic()
        behind = True  # what was acknowledged before the last stop
        while not self.stopping.wait(0 if behind else self.config.correlate.step_s):
            behind = self._guarded("ledger", self._piece) is True
            now_s = time.monotonic()
            self._guarded("findings", self._count_findings)
            if now_s - housekept_s >= HOUSEKEEPING_S:
                housekept_s = now_s
                self._guarded("housekeeping", self._housekeeping)
            if now_s - samples_s >= SAMPLES_S:
                samples_s = now_s
                self._guarded("samples", self._keep_samples)
            if now_s - compacted_s >= COMPACT_S:
                compacted_s = now_s
                self._guarded("compaction", self._compact)
                memory.give_back_library_pages()  # of what is done seldom, such as reading new documents
        while self._guarded("ledger", self._piece) and time.monotonic() < self.stop_by_s:
            pass
        self._guarded("samples", self._keep_samples)

    def _keep_samples(self) -> None:
        """Commit what the sample checker found; on a full disk it stays in memory for the next try."""
        results = self.samples.take()
        try:
            kept = run.keep_samples(self.ledger, results) if results else []
        except OSError:
            self.samples.give_back(results)
            raise
        now_s = time.monotonic()
        self._kept_samples.extend((now_s, identity) for identity in kept)
        known = self._kept_samples
        old = []
        while known and now_s - known[0][0] > SAMPLES_KNOWN_S:
            old.append(known.popleft()[1])
        if old:
            self.ledger.forget(old)

    def _guarded(self, part: str, work: Any) -> Any:
        """What a part returns; what goes wrong (None) is shown and tried again, and never ends the daemon."""
        try:
            result = work()
        except Exception as error:
            if part not in self.shared.failures:
                log.exception("%s: %s", part, error)
            self.shared.failures[part] = f"{part}: {type(error).__name__}: {error}"
            return None
        self.shared.failures.pop(part, None)
        return result

    def _piece(self) -> bool:
        """One correlation step; says whether sealed segments are left for another."""
        started = time.monotonic()
        read_mono_ns = time.monotonic_ns()
        flows_mono_ns = read_mono_ns if self.probe is None else self.flows_mono_ns
        sealed = self.spool.sealed(max_rows=MAX_STEP_ROWS)
        behind = self.spool.backlog()["segments"] > len(sealed)
        former = self.former_segment is not None
        if self.former_segment is not None:
            sealed = [ref for ref in sealed if ref.number <= self.former_segment]
            if not sealed:
                self._end_former_session()
                return True
        if sealed and (behind or former):
            # Read up to the last of them, and of flows up to the last that is theirs.
            read_mono_ns = sealed[-1].clock.mono_ns
            ends = [ref.clock.mono_ns for ref in sealed if ref.kind == segment_files.FLOWS]
            known = self.probe is not None or former
            flows_mono_ns = max([*ends, self.read_flows_mono_ns]) if known else read_mono_ns
        self.read_flows_mono_ns = flows_mono_ns
        consumed = self.ledger.consumed([ref.id for ref in sealed])
        taken = [ref for ref in sealed if ref.id not in consumed]
        self.spool.drop([ref for ref in sealed if ref.id in consumed])
        arrived = list(self.spool.read(taken))
        if self.config.record_dir is not None:
            _record(self.config.record_dir, *arrived)
        # A former run may have been before a reboot: its clock is that of its segments.
        clock = self.former_clock = sealed[-1].clock if former else clock_now()
        came = [np.full(ref.rows, ref.clock.mono_ns) for ref in taken if ref.kind == segment_files.LINES]
        now_mono_ns = self.watermark.advance(
            read_mono_ns, flows_mono_ns, arrived[1], np.concatenate([np.zeros(0, np.int64), *came])
        )
        outcome = self.pipeline.step(
            self.knowledge,
            arrived.pop(0),  # given away, so that the step can let go of them before the next stage
            arrived.pop(0),
            arrived.pop(0),
            inputs=[ref.id for ref in taken],
            clock=clock,
            now_mono_ns=now_mono_ns,
        )
        self.spool.drop(taken)
        self.ledger.forget([ref.id for ref in taken])
        self.shared.calls.update(outcome.calls_by_api)
        self.shared.step_levels = {name: outcome.counts.pop(name, 0) for name in STEP_LEVELS}
        self.shared.step_counts.update(outcome.counts)
        del outcome
        memory.give_back()
        self.shared.steps += 1
        self.shared.step_seconds += time.monotonic() - started
        self.shared.late_s = (read_mono_ns - now_mono_ns) / 1e9
        self.shared.backlog_s = max(started - read_mono_ns / 1e9, 0.0)
        return behind or former

    def _end_former_session(self) -> None:
        """Give out what former runs left open: nobody counts their flows any further."""
        self.pipeline.end_session(self.knowledge, self.former_clock or clock_now())
        self.former_segment = None
        self.watermark = Watermark()
        self.read_flows_mono_ns = 0

    def _housekeeping(self) -> None:
        exit_spool.pick_up(self.config.receiver.exit_spool_dir, self.spool)
        files = self._watched()
        if files != self.seen_files:
            self.seen_files = files
            self._reload()

    def _compact(self) -> None:
        """Merge small segments and apply retention in a process of its own, one at a time."""
        if self._compaction is not None and self._compaction.poll() is None:
            return
        keep = self.config.store
        command = [sys.executable, "-m", "apicost.store.compact", str(self.config.ledger_dir)]
        command += ["--exchange-days", str(keep.exchange_days), "--minute-days", str(keep.minute_days)]
        command += ["--hour-days", str(keep.hour_days)]
        self._compaction = subprocess.Popen(command)

    def _count_findings(self) -> None:
        """Let a child judge the month so far, where calls came or documents changed since the last time."""
        if self.config.file:
            options = ["--config", self.config.file, "--ledger", str(self.config.ledger_dir)]
            state = (self.shared.calls.total(), id(self.knowledge))
            every_s = self.config.conformance.metrics_every_s
            self.findings.tick(every_s, options, state, now_s=time.monotonic())

    # -- configuration while running ------------------------------------------------------------

    def _watched(self) -> dict[str, tuple[int, int]]:
        files = [Path(self.config.file)] if self.config.file else []
        files += [self.config.prices] if self.config.prices else []
        files += [document for api in self.config.apis for document in api.documents]
        found = {}
        for path in files:
            with contextlib.suppress(OSError):
                stat = path.stat()
                found[str(path)] = (stat.st_mtime_ns, stat.st_size)
        return found

    def _reload_soon(self) -> None:
        self.seen_files = {}

    def _reload(self) -> None:
        """Take new documents, prices and bindings; keep the last good ones where the new are bad."""
        try:
            config = configuration.load(self.config.file) if self.config.file else self.config
            knowledge = run.load_knowledge(config.apis, config.prices, cache=config.state_dir / "cache")
        except InputError as error:
            first = str(error.problems[0]).splitlines()[0]
            self.shared.problems["configuration"] = f"the last good configuration is kept: {first}"
            log.error("configuration not taken, the last good one is kept:\n%s", error)
            return
        self.knowledge = knowledge
        self.config = config
        self.samples.use(config.apis)
        self.shared.problems.pop("configuration", None)
        self._note_knowledge()
        log.info("configuration taken: %d operations", knowledge.operations)

    def _note_knowledge(self) -> None:
        try:
            self.ledger.note_operations(self.knowledge.named, int(time.time()))
        except OSError as error:  # operations that leave the documents before the next load are not remembered
            log.warning("the documents' operations are not noted in the ledger: %s", error)
        problems = self.knowledge.problems
        if problems:
            first = str(problems[0]).splitlines()[0]
            self.shared.problems["documents"] = f"{len(problems)} problem(s) in OpenAPI documents, first: {first}"
            for problem in problems:
                log.warning("%s", problem)
        else:
            self.shared.problems.pop("documents", None)

    # -- what the pages show --------------------------------------------------------------------

    def status(self) -> pages.Status:
        """Called by the event loop for every look at a page."""
        counters: dict[str, float] = {f"receiver_{k}": v for k, v in receiver.counters(self.app).items()}
        counters |= {f"step_{k}": v for k, v in self.shared.step_counts.items()}
        counters["steps"] = self.shared.steps
        counters["conformance_failures"] = self.findings.failures
        counters["step_seconds"] = self.shared.step_seconds
        counters["flow_snapshots"] = self.shared.flow_rows
        gauges: dict[str, float] = {"probe_attached": float(self.shared.probe_state == "attached")}
        probe = self.probe
        if probe is not None:
            for name, value in probe.losses().items():
                (counters if name in COUNTED_LOSSES else gauges)[f"probe_{name}"] = value
        gauges |= {f"step_{name}": value for name, value in self.shared.step_levels.items()}
        gauges["step_late_seconds"] = self.shared.late_s
        gauges["step_backlog_seconds"] = self.shared.backlog_s
        gauges["resident_bytes"] = memory.resident_bytes()
        gauges["arrow_bytes"] = pa.total_allocated_bytes()
        counters |= self.samples.figures()
        gauges |= {"samples_waiting": self.sample_queue.samples, "samples_checker_running": self.samples.running}
        gauges |= {f"spool_{k}": v for k, v in self.spool.backlog().items()}
        return pages.Status(
            node=self.config.node,
            failures=tuple(self.shared.failures.values()),
            problems=(*self.shared.problems.values(), *filter(None, [self.samples.problem])),
            facts=(
                ("version", __version__),
                ("probe", self.shared.probe_state),
                ("receiver", self.receiver_url),
                ("ledger", str(self.config.ledger_dir)),
                ("operations known", f"{self.knowledge.operations:,}"),
            ),
            counters=counters,
            gauges=gauges,
            api_calls=dict(self.shared.calls),
            findings=self.findings.last,
        )


MAX_STEP_ROWS = 20_000  # of snapshots and lines: bounds the memory of a step, some 1.5 kB a row while it runs
# What a step counts of how things stand, not of what happened.
STEP_LEVELS = ("connections_waiting", "flows_open", "lines_waiting")
# Losses that only grow while a probe is attached; the rest are levels.
COUNTED_LOSSES = frozenset(
    {"ring_lost", "ring_records", "timewait_closes"}
    | {
        f"{name}_{direction}_{unit}"
        for name in ("overflow", "no_socket", "other")
        for direction in ("in", "out")
        for unit in ("bytes", "packets")
    }
)


def _ended(flows: pa.Table) -> pa.Table:
    """Flows as they stand at the probe's end: open ones end here, since nobody counts them any further."""
    kinds = records.numbers(flows, "kind").copy()
    kinds[kinds == records.SnapshotKind.OPEN] = records.SnapshotKind.CLOSED
    return flows.set_column(flows.schema.get_field_index("kind"), "kind", pa.array(kinds, pa.uint8()))


def _record(folder: Path, flows: pa.Table, lines: pa.Table, completeness: pa.Table) -> None:
    from apicost.ingest import replay

    if flows.num_rows or lines.num_rows or completeness.num_rows:
        replay.record(folder, flows, lines, clock_now(), completeness)


async def _listen(runner: web.AppRunner, where: str) -> str:
    """Serve on HOST:PORT (port 0: any free one) or unix:PATH; returns where it is."""
    await runner.setup()
    try:
        if where.startswith("unix:"):
            path = where.removeprefix("unix:")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            await web.UnixSite(runner, path).start()
            return where
        host, _, port = where.rpartition(":")
        await web.TCPSite(runner, host.strip("[]"), int(port)).start()
    except OSError as error:
        await runner.cleanup()
        raise OSError(
            f"cannot listen on {where}: {error.strerror or error}; name a free address in apicost.yaml"
        ) from None
    return f"http://{host}:{runner.addresses[0][1]}"
