"""Where the gateway's sockets live: cgroup2 folders, by process or by listening port.

A socket belongs for life to the cgroup that its process was in when it was made, and an accepted
connection to its listener's. So a gateway must have started inside the cgroup that is probed: moving it
there later leaves its listeners behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


class ProbeError(Exception):
    """Why the probe can't count, and what to do about it. The rest of apicost goes on without it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}\n  fix: {fix}")
        self.reason = reason
        self.fix = fix


def mount() -> Path:
    """Where the cgroup2 hierarchy is mounted; on a hybrid system that is not /sys/fs/cgroup.

    Raises ProbeError where there is none.
    """
    for line in (PROC / "mounts").read_text().splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1].encode().decode("unicode_escape"))
    raise ProbeError(
        "no cgroup2 hierarchy is mounted",
        "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
    )


def of_process(pid: int) -> Path:
    """The cgroup2 folder of a process.

    Raises ProbeError: no such process, or it sits in the root cgroup, where probing it would count
    every socket of the machine.
    """
    try:
        text = (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        raise ProbeError(f"there is no process {pid}", "start the gateway first, then the probe") from None
    path = next((line[3:] for line in text.splitlines() if line.startswith("0::")), "/")
    if path == "/":
        folder = f"{mount()}/gateway"
        raise ProbeError(
            f"process {pid} is in the root cgroup, so its traffic can't be told from the machine's",
            f"start the gateway inside a cgroup of its own, which systemd and containers do; by hand: "
            f"mkdir {folder}; sh -c 'echo $$ > {folder}/cgroup.procs; exec GATEWAY' (moving it while it "
            "runs is not enough: sockets stay with the cgroup they were made in)",
        )
    if path.endswith(" (deleted)"):
        raise ProbeError(f"the cgroup of process {pid} was removed", "restart the gateway")
    return mount() / path.lstrip("/")


def processes(cgroup: Path) -> list[int]:
    """The processes in a cgroup and below it, in order; empty where it is gone."""
    found: set[int] = set()
    for file in [cgroup / "cgroup.procs", *cgroup.rglob("cgroup.procs")]:
        try:
            found |= {int(line) for line in file.read_text().split()}
        except OSError:
            continue
    return sorted(found - {0})


def listening_ports(pid: int) -> set[int]:
    """TCP ports that anyone listens on in the network namespace of a process."""
    return {port for port, _ in _listeners(pid)}


def find_gateway_cgroup(ports: Sequence[int] = (), pid_file: str = "") -> Path:
    """The gateway's cgroup2 folder: by its master's pid file, or by who listens on one of `ports`.

    Raises ProbeError: not running, not to be seen, in the root cgroup, or several in different cgroups.
    """
    if pid_file:
        try:
            return of_process(int(Path(pid_file).read_text()))
        except (OSError, ValueError) as error:
            raise ProbeError(
                f"no process number in {pid_file}: {error}",
                "start the gateway first, or mend probe.pid_file",
            ) from None
    owners = port_owners(ports)
    if not owners:
        listed = ", ".join(map(str, ports)) or "(none given)"
        raise ProbeError(
            f"nothing listens on port {listed}, as far as this process can see",
            "start the gateway first; run as root to see other users' sockets; or set probe.cgroup",
        )
    cgroups = {of_process(pid): pid for pid in reversed(owners)}
    if len(cgroups) > 1:
        listed = ", ".join(f"{path} (process {pid})" for path, pid in cgroups.items())
        raise ProbeError(f"the gateway's ports are held in several cgroups: {listed}", "set probe.cgroup")
    return next(iter(cgroups))


def port_owners(ports: Iterable[int]) -> list[int]:
    """Processes with a listening socket on one of the ports, in any network namespace, in order."""
    wanted = set(ports)
    by_namespace: dict[str, set[str]] = {}
    owners = []
    for pid in sorted(int(entry.name) for entry in PROC.glob("[0-9]*")):
        try:
            namespace = str((PROC / str(pid) / "ns" / "net").readlink())
            if namespace not in by_namespace:
                by_namespace[namespace] = {f"socket:[{inode}]" for port, inode in _listeners(pid) if port in wanted}
            sockets = by_namespace[namespace]
            if sockets and any(str(fd.readlink()) in sockets for fd in (PROC / str(pid) / "fd").iterdir()):
                owners.append(pid)
        except OSError:
            continue
    return owners


def _listeners(pid: int) -> Iterator[tuple[int, str]]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / str(pid) / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                yield int(fields[1].rpartition(":")[2], 16), fields[9]
