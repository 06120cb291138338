"""The probe in the daemon: drains the ring, sweeps the flow table, knows what was lost.

Rules of this file:
- No privilege is needed once `Probe.open` returned: descriptors came from the loader, and reading a
  table by descriptor is free to anyone (Linux 5.19 and later; before that keep CAP_BPF).
- Counters are cumulative. A snapshot that is read twice or missed costs nothing but freshness.
- A flow's last snapshot, CLOSED, comes once: when TCP closed it and a grace for late packets (a reset
  follows the close) is over.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import pwd
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost import resources
from apicost.core import records
from apicost.core.records import SnapshotKind
from apicost.ingest import bpfsys, cgroups, loader, wire
from apicost.ingest.cgroups import ProbeError, find_gateway_cgroup
from apicost.ingest.turns import Batches, Ring, Turns, batch_count

__all__ = [
    "Options", "Probe", "ProbeError", "diagnose", "drop_privileges", "find_gateway_cgroup", "probe_sources",
]  # fmt: skip

_SECOND_NS = 1_000_000_000
# Half of it is MOVE_NS in bpf/flow_probe.c.
CLOSE_GRACE_NS = _SECOND_NS // 4  # a reset leaves microseconds after the close; queues add milliseconds
UDP_IDLE_NS = 60 * _SECOND_NS  # a UDP peer is silent this long: gone
HANDSHAKE_IDLE_NS = 70 * _SECOND_NS  # the kernel sends SYN-ACK again for 63 s
FINISHED_IDLE_NS = 70 * _SECOND_NS  # both sides said FIN, or one RST, and no more came
UNWATCHED_IDLE_NS = 24 * 3600 * _SECOND_NS  # older than the probe, and silent for a day
ACK_SLACK_NS = _SECOND_NS  # bare acknowledgements come in later than what they answer, and move no clock
OPEN_TIMEOUT_S = 60.0
HANDSHAKE_ENTRIES = 16_384
SEATS_SHARE = 4  # one flow in so many has a seat where the table is full: 4 MB of 65,536 flows
_CHUNK = 8_192  # entries copied per call: 1.9 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to probe, and how much memory it gets."""

    cgroup: Path  # the gateway's cgroup2 folder
    gateway_ports: tuple[int, ...] = ()  # tell the side of connections older than the probe
    control_ports: tuple[int, ...] = ()  # etcd and the like: role CONTROL
    map_entries: int = 65_536
    ring_bytes: int = 8 << 20  # power of two, whole pages
    sweep_s: float = 1.0
    loader_python: str = "/usr/bin/python3"  # the interpreter that has bcc


def probe_sources() -> Path:
    """The folder with flow_probe.c and flow_events.h: in the package, or in a checkout.

    Raises ProbeError where neither has it.
    """
    try:
        return resources.folder("bpf")
    except FileNotFoundError as error:
        raise ProbeError(f"the probe's source is missing: {error}", "install apicost anew") from None


class Table:
    """One of the probe's hash tables, copied out in batches."""

    def __init__(self, descriptor: int, key: np.dtype[np.void] | np.dtype[np.uint64]) -> None:
        self.descriptor = descriptor
        self._cursor = ctypes.create_string_buffer(64)
        self._keys: npt.NDArray[np.void] = np.zeros(_CHUNK, key)
        self._values = np.zeros(_CHUNK, wire.FLOW_EVENT)

    def chunks(self) -> Iterator[tuple[npt.NDArray[np.void], npt.NDArray[np.void]]]:
        """(keys, values) of all entries, a few thousand at a time; views that the next chunk overwrites."""
        first = more = True
        while more:
            count, more = bpfsys.lookup_batch(
                self.descriptor, self._cursor, first, self._keys.ctypes.data, self._values.ctypes.data, _CHUNK
            )
            first = False
            if count:
                yield self._keys[:count], self._values[:count]

    def delete(self, keys: npt.NDArray[np.void]) -> None:
        """Remove entries that nothing adds to any more."""
        keys = np.ascontiguousarray(keys)
        done = 0
        while done < len(keys):
            address = keys.ctypes.data + done * keys.itemsize
            done += bpfsys.delete_batch(self.descriptor, address, len(keys) - done)
            if done < len(keys):  # that one is gone already
                done += 1

    def take(self, keys: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Remove entries that may still change, one by one: copy and removal are one act."""
        taken = np.zeros(len(keys), wire.FLOW_EVENT)
        keys = np.ascontiguousarray(keys)
        count = 0
        for number in range(len(keys)):
            key = ctypes.c_char.from_address(keys.ctypes.data + number * keys.itemsize)
            value = ctypes.c_char.from_address(taken.ctypes.data + count * taken.itemsize)
            count += bpfsys.lookup(self.descriptor, key, value, delete=True)
        return taken[:count]


class Seats:
    """The probe's table of seated connections, in this process's memory."""

    def __init__(self, descriptor: int, count: int) -> None:
        self._map = mmap.mmap(descriptor, count * wire.FLOW_EVENT.itemsize, mmap.MAP_SHARED)
        self._rows = np.frombuffer(self._map, wire.FLOW_EVENT, count)
        self._words = np.frombuffer(self._map, np.uint64).reshape(count, -1)
        self._flow_word = wire.FLOW_EVENT.fields["flow"][1] // 8  # type: ignore[index]
        self._unseated = np.empty(0, np.int64)

    def taken(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.void], npt.NDArray[np.bool_]]:
        """(seats, copies of their flows, which were unseated before) of all flows that are more than begun."""
        seats = np.flatnonzero(self._rows["flow"])
        values = self._rows[seats]
        unseated = np.isin(seats, self._unseated)
        whole = (values["sock"] != 0) | (values["closed_ns"] != 0) | unseated
        # Not those that the kernel gave to another connection while they were copied.
        whole &= (self._rows["flow"][seats] == values["flow"]) & (self._rows["sock"][seats] == values["sock"])
        return seats[whole], values[whole], unseated[whole]

    def unseat(self, seats: npt.NDArray[np.int64]) -> None:
        """No packet finds these from now on; one that has found its seat already may still be adding to it."""
        self._rows["sock"][seats] = 0
        self._unseated = seats

    def clear(self, seats: npt.NDArray[np.int64]) -> None:
        """Give seats back. The kernel takes those whose `flow` is 0, so that is written last."""
        self._words[seats, : self._flow_word] = 0
        self._words[seats, self._flow_word + 1 :] = 0
        self._words[seats, self._flow_word] = 0


class Probe:
    """An attached probe. Not thread-safe. As a context manager it detaches at the end."""

    def __init__(self, options: Options, descriptors: dict[str, int]) -> None:
        self.options = options
        self._descriptors = descriptors
        ring = Ring(descriptors["ring"], options.ring_bytes)
        self._turns = Turns(ring, Batches(descriptors["batches"], batch_count()))
        self._seats = Seats(descriptors["seats"], seats_of(options.map_entries))
        self._flows = Table(descriptors["flows"], np.dtype(np.uint64))
        self._handshakes = Table(descriptors["handshakes"], wire.HANDSHAKE_KEY)
        self._inode = os.stat(options.cgroup).st_ino
        self._swept_ns = 0
        self._used = {"map_used": 0, "handshakes_used": 0, "timewait_closes": 0}

    @classmethod
    def open(cls, options: Options) -> Probe:
        """Compile, attach and take over. Takes about two seconds and 150 MB, in a process of its own.

        Needs the loader's privileges at this moment only. Raises ProbeError.
        """
        page = resource.getpagesize()
        if options.ring_bytes < page or options.ring_bytes & (options.ring_bytes - 1):
            raise ProbeError(f"ring_bytes {options.ring_bytes} is not a power of two of whole pages", f"set {8 << 20}")
        return cls(options, _load(options))

    def read(self, now_mono_ns: int | None = None, *, final: bool = False) -> pa.Table:
        """What is new since the last call, as a FLOW batch: turns, then (each `sweep_s`) open flows that
        had packets since the last sweep, then flows that closed.

        Call it several times a second: the ring holds 40,234 turns in its 8 MiB.
        final: sweep now, without grace; every flow comes out as it stands, and half-done handshakes too.
        """
        now = time.monotonic_ns() if now_mono_ns is None else now_mono_ns
        parts = [(self._turns.read(), SnapshotKind.TURN)]
        if final or now - self._swept_ns >= self.options.sweep_s * _SECOND_NS:
            opened, closed = self._sweep(now, final)
            # A turn that ended while the sweep ran stands before the flow's later counters.
            parts += [(self._turns.read(), SnapshotKind.TURN)]
            parts += [(opened, SnapshotKind.OPEN), (closed, SnapshotKind.CLOSED)]
        ports = self.options.control_ports
        tables = [wire.decode(events, kind, ports) for events, kind in parts if len(events)]
        return pa.concat_tables(tables) if tables else records.empty(records.FLOW)

    def _sweep(self, now: int, final: bool) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
        """(open flows that changed, flows now closed and removed)."""
        opened, closed, used = [], [], 0
        certain: list[npt.NDArray[np.void]] = []  # nothing is added to these any more
        doubtful: list[npt.NDArray[np.void]] = []  # idle so long that they count as gone
        grace_ns = 0 if final else CLOSE_GRACE_NS
        seen_ns = 0 if final else max(self._swept_ns - ACK_SLACK_NS, 0)
        seats, values, unseated = self._seats.taken()
        used += len(values)
        shut = unseated | _shut(values, now, grace_ns)
        idle = ~shut & _idle(values, now)
        closed.append(values[shut])
        opened.append(values[~shut & ~idle & (values["last_ns"] >= seen_ns)])
        self._seats.clear(seats[shut])
        self._seats.unseat(seats[idle])  # and is read for the last time in the next sweep
        for keys, values in self._flows.chunks():
            used += len(values)
            shut = _shut(values, now, grace_ns)
            idle = ~shut & _idle(values, now)
            fresh = ~shut & ~idle & (values["last_ns"] >= seen_ns)
            closed.append(values[shut])
            opened.append(values[fresh])
            certain.append(keys[shut].copy())
            doubtful.append(keys[idle].copy())
        # Deleted only now: a deletion would move the place in the table that the kernel keeps.
        for gone in certain:
            self._flows.delete(gone)
        closed += [self._flows.take(keys) for keys in doubtful if len(keys)]
        half_done = []
        shaking = 0
        for keys, values in self._handshakes.chunks():
            shaking += len(values)
            given_up = values["last_ns"] + np.uint64(HANDSHAKE_IDLE_NS) < now
            half_done.append(keys[given_up | final].copy())
        for keys in half_done:
            taken = self._handshakes.take(keys)
            wire.name_handshakes(taken)
            closed.append(taken)
        self._swept_ns = now
        gone_all = _joined(closed)
        self._used["map_used"] = used
        self._used["handshakes_used"] = shaking
        self._used["timewait_closes"] += int(_ends_in_timewait(gone_all).sum())
        return _joined(opened), gone_all

    def losses(self) -> dict[str, int]:
        """What was not counted or not passed on, since attaching; all cumulative but the `_used` ones.

        overflow_*: bytes and packets of connections that found a table full: counted, in no flow.
        no_socket_*, other_*: packets without a socket cookie; neither TCP nor UDP, or not to be parsed.
        ring_records, ring_lost: turns ended, and those that found the ring full (their flow's next
        record has their bytes). A loss is known when a later turn of the same CPU is read.
        timewait_closes: connections that the gateway closed first; the kernel's time-wait sockets
        answer the peer's FIN unseen, about two packets without payload each.
        map_used, map_entries, handshakes_used: entries at the last sweep, and room.
        """
        slots = self._slots()
        counts = {}
        for name, which in (
            ("overflow", ("overflow", "handshake")), ("no_socket", ("no_socket",)), ("other", ("other",)),
        ):  # fmt: skip
            for direction in ("in", "out"):
                for unit, field in (("bytes", "wire_bytes"), ("packets", "packets")):
                    counts[f"{name}_{direction}_{unit}"] = sum(
                        int(slots[slot][f"{direction}_{field}"]) for slot in which
                    )
        refused = int(slots["ring"]["out_packets"])
        counts |= {"ring_records": self._turns.ended() + refused, "ring_lost": self._turns.lost + refused}
        return counts | self._used | {"map_entries": self.options.map_entries}

    def _slots(self) -> dict[str, np.void]:
        found = {}
        value = np.zeros(1, wire.SLOT)
        for index, name in enumerate(wire.SLOT_NAMES):
            key = ctypes.c_uint32(index)
            bpfsys.lookup(self._descriptors["slots"], key, ctypes.c_char.from_address(value.ctypes.data))
            found[name] = value[0].copy()
        return found

    def stale(self) -> str:
        """Why the probe sees nothing any more: its cgroup was removed or made anew; "" while all is well."""
        try:
            inode = os.stat(self.options.cgroup).st_ino
        except OSError:
            return f"the cgroup {self.options.cgroup} is gone: the gateway was stopped"
        if inode != self._inode:
            return f"the cgroup {self.options.cgroup} was made anew: the gateway was restarted"
        return ""

    def close(self) -> None:
        """Detach. What was not read is lost; `read(final=True)` first."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def seats_of(map_entries: int) -> int:
    """How many of the table's flows are seats: a power of two."""
    return max(2, 1 << (map_entries // SEATS_SHARE).bit_length() >> 1)


def _joined(parts: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    return np.concatenate(parts) if parts else np.empty(0, wire.FLOW_EVENT)


def _shut(values: npt.NDArray[np.void], now: int, grace_ns: int) -> npt.NDArray[np.bool_]:
    """Closed by the kernel's word, and silent for the grace since."""
    closed = values["closed_ns"]
    shut: npt.NDArray[np.bool_] = (closed != 0) & (np.maximum(closed, values["last_ns"]) + np.uint64(grace_ns) <= now)
    return shut


def _idle(values: npt.NDArray[np.void], now: int) -> npt.NDArray[np.bool_]:
    """Nobody will tell of their end, so long silence has to."""
    silent_ns = np.int64(now) - values["last_ns"].astype(np.int64)
    into, out = values["in"]["tcp_flags"], values["out"]["tcp_flags"]
    finished = (into & out & wire.FIN | (into | out) & wire.RST) != 0
    idle: npt.NDArray[np.bool_] = (
        ((values["protocol"] == wire.UDP) & (silent_ns > UDP_IDLE_NS))
        | (finished & (silent_ns > FINISHED_IDLE_NS))
        | ((values["watched"] == 0) & (silent_ns > UNWATCHED_IDLE_NS))
    )
    return idle


def _ends_in_timewait(values: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    into, out = values["in"]["tcp_flags"], values["out"]["tcp_flags"]
    first: npt.NDArray[np.bool_] = (out & wire.FIN != 0) & (into & wire.FIN == 0) & ((into | out) & wire.RST == 0)
    return first


def _load(options: Options) -> dict[str, int]:
    """Run the loader; returns the descriptors by name. Raises ProbeError with its reason or last words."""
    ports = set(options.gateway_ports)
    for pid in cgroups.processes(options.cgroup)[:1]:
        ports |= cgroups.listening_ports(pid)
    wanted = {
        "sources": str(probe_sources()),
        "cgroup": str(options.cgroup),
        "seats": seats_of(options.map_entries),
        "flow_entries": max(options.map_entries - seats_of(options.map_entries), 1),
        "handshake_entries": min(HANDSHAKE_ENTRIES, options.map_entries),
        "ring_bytes": options.ring_bytes,
        "batches": batch_count(),
        "ports": sorted(ports),
    }
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as words:
        program = str(Path(__file__).with_name("loader.py"))
        try:
            child = subprocess.Popen(
                [options.loader_python, "-I", program, str(theirs.fileno()), json.dumps(wanted)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                close_fds=True,
            )
        except OSError as error:
            raise ProbeError(
                f"the loader can't be started with {options.loader_python}: {error.strerror}",
                "set probe.loader_python to the interpreter that has bcc (Debian: /usr/bin/python3)",
            ) from None
        theirs.close()
        ours.settimeout(OPEN_TIMEOUT_S)
        try:
            message, descriptors, _, _ = socket.recv_fds(ours, 1 << 20, 16)
        except TimeoutError:
            child.kill()
            message, descriptors = b"", []
        child.wait()
        words.seek(0)
        said = words.read().decode("utf-8", "replace").strip()
    if not message:
        raise ProbeError(
            f"the loader ended without an answer (status {child.returncode}): {_tail(said)}",
            "`apicost doctor` looks at what it needs",
        )
    answer = json.loads(message)
    if "ok" not in answer:
        detail = f"\n{_tail(said)}" if said else ""
        raise ProbeError(answer["reason"] + detail, answer["fix"])
    return dict(zip(answer["ok"], descriptors, strict=True))


def _tail(text: str, lines: int = 12) -> str:
    return "\n".join(text.splitlines()[-lines:])


def drop_privileges(user: str = "nobody") -> None:
    """Go on as an unprivileged user without any capability; for root only, after `Probe.open`.

    Raises ProbeError where there is no such user, OSError where this process may not change.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ProbeError(f"there is no user {user!r}", "name one that exists") from None
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)  # from root this clears all capabilities


def diagnose(options: Options | None = None) -> list[tuple[str, bool, str, str]]:
    """What this host has and lacks for the probe: (check, good, what was found, fix).

    options: what would be probed; without it the checks of the cgroup are left out.
    """
    return [*_host_checks(options.loader_python if options else "/usr/bin/python3"), *_cgroup_checks(options)]


def _host_checks(python: str) -> Iterator[tuple[str, bool, str, str]]:
    release = os.uname().release
    recent = tuple(int(part) for part in release.split("-")[0].split(".")[:2]) >= (5, 12)
    yield "kernel", recent, f"Linux {release}", "the probe needs Linux 5.12 or later (ring buffer, links, atomics)"
    btf = Path("/sys/kernel/btf/vmlinux").exists()
    yield "btf", True, "present" if btf else "absent; the probe does without", ""
    try:
        yield "cgroup2", True, f"mounted at {cgroups.mount()}", ""
    except ProbeError as error:
        yield "cgroup2", False, error.reason, error.fix
    lacking = loader.lacking_capabilities()
    yield (
        "capabilities", not lacking,
        f"lacking: {', '.join(lacking)} (CAP_SYS_ADMIN does for CAP_BPF and CAP_PERFMON)"
        if lacking else loader.CAPABILITIES,
        "start as root, or with AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
    )  # fmt: skip
    fix = "apt-get install python3-bpfcc (PyPI's package named bcc is something else)"
    try:
        asked = [python, "-I", "-c", "import bcc; bcc.BPF; print(bcc.__version__)"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        good = done.returncode == 0
        found = done.stdout.strip() if good else _tail(done.stderr, 1)
        yield "bcc", good, f"{found} for {python}", fix
    except (OSError, subprocess.TimeoutExpired) as error:
        yield "bcc", False, f"{python}: {error}", fix
    try:
        yield "probe source", True, str(probe_sources()), ""
    except ProbeError as error:
        yield "probe source", False, error.reason, error.fix


def _cgroup_checks(options: Options | None) -> Iterator[tuple[str, bool, str, str]]:
    if options is None:
        return
    if not (options.cgroup / "cgroup.procs").exists():
        yield "gateway cgroup", False, f"{options.cgroup} is not a cgroup", "start the gateway; see probe.cgroup"
        return
    count = len(cgroups.processes(options.cgroup))
    yield (
        "gateway cgroup", count > 0, f"{options.cgroup}: {count} processes", "start the gateway in this cgroup"
    )  # fmt: skip
    try:
        with Probe.open(options):
            yield "attach", True, "the probe loads and attaches", ""
    except ProbeError as error:
        yield "attach", False, error.reason, error.fix
