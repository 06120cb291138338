"""A laboratory for the probe: cgroups, two network namespaces over veth, a capture, small servers.

Everything is named after this process and removed at the end, also after a failure. Addresses are of
the ranges set aside for benchmarks and documentation (198.18.0.0/15, 2001:db8::/32).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apicost.ingest import cgroups

ROOT = Path(__file__).resolve().parents[2]
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_numbers = itertools.count()


def unique(prefix: str = "apicost-probe") -> str:
    """A name that no other process and no other call has."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


@contextlib.contextmanager
def cgroup(parent: Path | None = None) -> Iterator[Path]:
    """A cgroup of its own; whoever is still in it at the end is killed."""
    folder = (parent or cgroups.mount()) / unique()
    folder.mkdir()
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            (folder / "cgroup.kill").write_text("1")
        for _ in range(100):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.02)


def start(arguments: Sequence[str], folder: Path | None = None, namespace: str = "", **options) -> subprocess.Popen:
    """Start a program inside a cgroup and a network namespace from its first instruction on."""
    if namespace:
        arguments = ["ip", "netns", "exec", namespace, *arguments]

    def enter() -> None:
        if folder is not None:
            (folder / "cgroup.procs").write_text("0")

    return subprocess.Popen(arguments, preexec_fn=enter, **options)


def stop(process: subprocess.Popen) -> None:
    """End a process that we started, and wait for it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr, process.stdin):
        if stream:
            stream.close()


@dataclass(slots=True)
class Wire:
    """Two namespaces and the veth pair between them; `near` is the gateway's side."""

    near: str
    far: str
    near_device: str
    far_device: str
    near_ipv4: str = "198.18.77.1"
    far_ipv4: str = "198.18.77.2"
    near_ipv6: str = "2001:db8:77::1"
    far_ipv6: str = "2001:db8:77::2"


@contextlib.contextmanager
def wire(*, segment: bool = True) -> Iterator[Wire]:
    """A veth pair between two new namespaces.

    segment: no TSO and no GRO, so that each side's capture shows what a wire would carry; the stack
    still hands super-packets through the hooks (generic segmentation happens right before the device).
    """
    tag = f"{os.getpid()}{next(_numbers)}"
    made = Wire(f"apc-n{tag}", f"apc-f{tag}", f"apn{tag}"[:15], f"apf{tag}"[:15])
    sides = (
        (made.near, made.near_device, made.near_ipv4, made.near_ipv6),
        (made.far, made.far_device, made.far_ipv4, made.far_ipv6),
    )
    try:
        for namespace, *_ in sides:
            run("ip", "netns", "add", namespace)
        run(
            "ip", "link", "add", made.near_device, "netns", made.near,
            "type", "veth", "peer", "name", made.far_device, "netns", made.far,
        )  # fmt: skip
        for namespace, device, ipv4, ipv6 in sides:
            inside = ("ip", "netns", "exec", namespace)
            run(*inside, "ip", "link", "set", "lo", "up")
            run(*inside, "ip", "address", "add", f"{ipv4}/24", "dev", device)
            run(*inside, "ip", "address", "add", f"{ipv6}/64", "dev", device, "nodad")
            run(*inside, "ip", "link", "set", device, "up")
            if segment:
                run(*inside, "ethtool", "-K", device, "tso", "off", "gro", "off", "lro", "off", check=False)
        yield made
    finally:
        for namespace, *_ in sides:
            run("ip", "netns", "del", namespace, check=False)


def run(*arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr or done.stdout}")
    return done


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread's new sockets belong to a namespace."""
    libc_setns = os.setns if hasattr(os, "setns") else _setns
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    target = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        libc_setns(target, 0x40000000)
        yield
    finally:
        libc_setns(before, 0x40000000)
        os.close(before)
        os.close(target)


def _setns(descriptor: int, kind: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, kind):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(slots=True)
class Capture:
    """A running tcpdump; `packets()` after `finish()`."""

    process: subprocess.Popen
    file: Path
    dropped: int = -1
    report: str = ""

    def finish(self) -> None:
        """Stop; `dropped` is what passed the filter and is not in the file, -1 where that is not known."""
        size = -1
        while size != (size := self.file.stat().st_size):
            time.sleep(1.2)  # the kernel hands packets over once a second, or when a block is full
        self.process.send_signal(signal.SIGINT)
        self.report = self.process.stderr.read()
        self.process.wait()
        self.process.stderr.close()
        counts = [int(line.split()[0]) for line in self.report.splitlines() if " packet" in line]
        if len(counts) == 3:  # captured, received by filter, dropped by kernel
            self.dropped = max(counts[1] - counts[0], 0) + counts[2]

    def packets(self) -> Iterator[Packet]:
        return read_capture(self.file)


@contextlib.contextmanager
def capture(namespace: str, device: str, expression: str) -> Iterator[Capture]:
    """A capture of headers on one device, with a buffer large enough to drop nothing."""
    folder = Path(tempfile.mkdtemp(prefix="apicost-capture-"))
    os.chmod(folder, 0o777)  # tcpdump gives up root
    file = folder / "capture.pcap"
    command = ["tcpdump", "-i", device, "-s", "128", "-B", "262144", "-U", "-w", str(file), expression]
    process = start(command, namespace=namespace, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        for line in process.stderr:
            if "listening on" in line:
                break
        else:
            raise RuntimeError("tcpdump did not start")
        yield Capture(process, file)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True, frozen=True)
class Packet:
    """One captured TCP packet."""

    unix_ns: int
    source: str
    source_port: int
    target: str
    target_port: int
    wire_bytes: int
    payload: int
    flags: int
    sequence: int
    acknowledged: int


def read_capture(file: Path) -> Iterator[Packet]:
    """The TCP packets of a pcap file of Ethernet frames."""
    with open(file, "rb") as stream:
        header = stream.read(24)
        magic = struct.unpack("<I", header[:4])[0]
        scale = 1 if magic == 0xA1B23C4D else 1000
        while head := stream.read(16):
            seconds, fraction, length, _ = struct.unpack("<IIII", head)
            frame = stream.read(length)
            kind = struct.unpack_from("!H", frame, 12)[0]
            ip = frame[14:]
            if kind == 0x0800:
                size, protocol, at = struct.unpack_from("!H", ip, 2)[0], ip[9], (ip[0] & 15) * 4
                source, target = socket.inet_ntop(2, ip[12:16]), socket.inet_ntop(2, ip[16:20])
            elif kind == 0x86DD:
                size, protocol, at = struct.unpack_from("!H", ip, 4)[0] + 40, ip[6], 40
                source, target = socket.inet_ntop(10, ip[8:24]), socket.inet_ntop(10, ip[24:40])
                while protocol in (0, 43, 60):
                    protocol, at = ip[at], at + (ip[at + 1] + 1) * 8
            else:
                continue
            if protocol != 6:
                continue
            ports = struct.unpack_from("!HHII", ip, at)
            data = (ip[at + 12] >> 4) * 4
            yield Packet(
                seconds * 1_000_000_000 + fraction * scale,
                source, ports[0], target, ports[1], size, size - at - data, ip[at + 13], ports[2], ports[3],
            )  # fmt: skip


@dataclass(slots=True)
class Seen:
    """What the capture shows of one connection, as the server sees it."""

    in_wire_bytes: int = 0
    out_wire_bytes: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_payload_bytes: int = 0
    out_payload_bytes: int = 0
    late: list[tuple[str, Packet]] = field(default_factory=list)  # after the server's socket was gone
    late_reason: str = ""


def connections(packets: Iterator[Packet], server_port: int) -> dict[tuple[str, int, int], list[Seen]]:
    """Captured packets by (client, client port, nth use of that port), counted as the server sees them.

    Packets that come after the server's socket has gone are kept apart in `late`: after a reset in
    either direction, or after the peer acknowledged the server's FIN (the kernel may then hold a time-wait
    socket instead, which cgroup programs are not run for).
    """
    found: dict[tuple[str, int, int], list[Seen]] = defaultdict(list)
    gone: dict[tuple[str, int], str] = {}
    fin_end: dict[tuple[str, int], int] = {}
    for packet in packets:
        way = "in" if packet.target_port == server_port else "out"
        key = (packet.source, packet.source_port) if way == "in" else (packet.target, packet.target_port)
        uses = found[(*key, server_port)]
        if way == "in" and packet.flags & (SYN | ACK) == SYN and (not uses or key in gone or uses[-1].out_packets):
            uses.append(Seen())
            gone.pop(key, None)
            fin_end.pop(key, None)
        if not uses:
            uses.append(Seen())
        seen = uses[-1]
        if key in gone:
            seen.late.append((way, packet))
            seen.late_reason = gone[key]
            continue
        for name, value in (("wire_bytes", packet.wire_bytes), ("packets", 1), ("payload_bytes", packet.payload)):
            setattr(seen, f"{way}_{name}", getattr(seen, f"{way}_{name}") + value)
        if packet.flags & RST:
            gone[key] = "reset"
        elif way == "out" and packet.flags & FIN:
            fin_end[key] = (packet.sequence + packet.payload + 1) & 0xFFFFFFFF
        elif way == "in" and key in fin_end and packet.acknowledged == fin_end[key] and not packet.flags & FIN:
            gone[key] = "time-wait"
    return found


SERVER = """
import socket, ssl, sys, threading
host, tls = sys.argv[1], sys.argv[2:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, 0)); listener.listen(1024)
if tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(*tls)
def serve(connection):
    try:
        if tls: connection = context.wrap_socket(connection, server_side=True)
        stream = connection.makefile("rb")
        while line := stream.readline():      # "UP DOWN\\n", then UP bytes; DOWN bytes come back
            up, down = map(int, line.split())
            stream.read(up)
            if down < 0: return               # close first
            connection.sendall(b"x" * down)
    except OSError: pass
    finally: connection.close()
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""


@contextlib.contextmanager
def server(
    folder: Path | None, host: str = "127.0.0.1", namespace: str = "", certificate: Sequence[str] = ()
) -> Iterator[int]:
    """A server that is told with each request how much comes and how much to answer; yields its port."""
    process = start(
        [sys.executable, "-c", SERVER, host, *certificate], folder, namespace, stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(process.stdout.readline())
    finally:
        stop(process)


def ask(connection: socket.socket, up: int, down: int) -> tuple[int, int]:
    """One request of that server; returns (payload sent, payload received), closing requests aside."""
    request = f"{up} {down}\n".encode() + b"y" * up
    connection.sendall(request)
    left = down
    while left > 0:
        got = len(connection.recv(min(left, 1 << 20)))
        if got == 0:
            raise ConnectionError("the server closed early")
        left -= got
    return len(request), down


def until(condition, seconds: float = 10.0) -> bool:
    """Wait for something that the kernel or another process does in its own time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def totals(table, name: str) -> int:
    return int(np.asarray(table.column(name).to_numpy()).sum())
