"""The loader: compiles the probe, attaches it, hands the descriptors over and exits.

A program of its own, run as `PYTHON -I loader.py FD OPTIONS`: bcc brings 134 MB of LLVM into whoever
imports it, and loading needs privileges that counting doesn't. Standard library and bcc only, since it
runs under whichever interpreter has bcc (Debian's /usr/bin/python3), not in the daemon's environment.

Rules of this file:
- Attachments are BPF links: they live as long as their descriptors, which end up in the daemon alone.
  When it dies, however it dies, the kernel detaches everything.
- The answer on FD is one message: {"ok": [names of the descriptors sent along]}, or {"reason", "fix"}.
- No kernel headers: bcc is pointed at a small tree written here, since the probe uses UAPI types only
  and bcc brings linux/bpf.h itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Last on the path: the environment's packages must not hide Debian's (PyPI has another `bcc`).
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from apicost import scratch
from apicost.ingest import bpfsys

HOOKS = {
    "flow_in": bpfsys.CGROUP_INET_INGRESS,
    "flow_out": bpfsys.CGROUP_INET_EGRESS,
    "flow_tcp": bpfsys.CGROUP_SOCK_OPS,
}
TABLES = ("seats", "flows", "handshakes", "ring", "batches", "slots")
DESCRIPTORS = (*HOOKS, *TABLES)

CAPABILITIES = "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 12, 21, 38, 39

_TYPES = """
#ifndef APICOST_TYPES_H
#define APICOST_TYPES_H
typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#define true 1
#define false 0
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __always_inline inline __attribute__((always_inline))
#endif
"""


class Refused(Exception):
    """Why the probe can't be attached, and what to do about it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


def write_headers(tree: Path) -> None:
    """Lay out what bcc looks for in a kernel's source: types, two macros, and names without content."""
    release = [int(part) for part in os.uname().release.split("-")[0].split(".")[:2]]
    files = {
        "include/linux/types.h": _TYPES,
        "include/uapi/linux/types.h": _TYPES,
        "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
        "include/linux/version.h": "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
        f"#define LINUX_VERSION_CODE KERNEL_VERSION({release[0]}, {release[1]}, 0)\n",
        "include/asm/page.h": f"#define PAGE_SIZE {resource.getpagesize()}\n",
    }
    empty = (
        "uapi/linux/bpf.h", "uapi/linux/if_packet.h", "uapi/linux/if_ether.h", "uapi/linux/ptrace.h",
        "linux/log2.h", "linux/bpf_common.h",
    )  # fmt: skip
    files |= dict.fromkeys((f"include/{name}" for name in empty), "")
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def lacking_capabilities() -> list[str]:
    """Names of the capabilities that this process lacks for loading and attaching the probe.

    CAP_SYS_ADMIN does for CAP_BPF and CAP_PERFMON. Without CAP_PERFMON the verifier allows no
    arithmetic on pointers, which reading headers in place needs.
    """
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    admin = bool(effective >> _CAP_SYS_ADMIN & 1)
    needed = (("CAP_BPF", _CAP_BPF, admin), ("CAP_NET_ADMIN", _CAP_NET_ADMIN, False),
              ("CAP_PERFMON", _CAP_PERFMON, admin))  # fmt: skip
    return [name for name, bit, covered in needed if not (effective >> bit & 1 or covered)]


def check_privileges() -> None:
    """Raises Refused where the kernel would refuse to load or attach for lack of capabilities."""
    lacking = lacking_capabilities()
    if lacking:
        raise Refused(
            f"loading eBPF needs the capabilities {CAPABILITIES}; this process lacks {', '.join(lacking)}",
            "start it as root (it drops privileges after attaching), or give the service "
            "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
        )


def compile_probe(options: dict[str, Any]) -> Any:
    """The compiled module. Raises Refused: bcc missing, or the source doesn't compile."""
    try:
        import bcc
    except ImportError as error:
        raise Refused(
            f"bcc is not there for {sys.executable}: {error}",
            "apt-get install python3-bpfcc (PyPI's package named bcc is something else), "
            "or set probe.loader_python to the interpreter that has it",
        ) from None
    if not hasattr(bcc, "BPF"):
        raise Refused(
            f"the module bcc at {bcc.__file__} is not the BPF compiler collection",
            "remove PyPI's package named bcc and apt-get install python3-bpfcc",
        )
    source = Path(options["sources"]) / "flow_probe.c"
    if not source.exists():
        raise Refused(f"the probe's source is not at {source}", "install apicost anew")
    try:
        with scratch.folder("headers") as tree:
            write_headers(tree)
            os.environ["BCC_KERNEL_SOURCE"] = str(tree)
            flags = [
                f"-I{options['sources']}",
                f"-DSEATS={int(options['seats'])}",
                f"-DFLOW_ENTRIES={int(options['flow_entries'])}",
                f"-DHANDSHAKE_ENTRIES={int(options['handshake_entries'])}",
                f"-DBATCHES={int(options['batches'])}",
                f"-DRING_PAGES={int(options['ring_bytes']) // resource.getpagesize()}",
                "-Wno-macro-redefined",
            ]
            return bcc.BPF(src_file=str(source), cflags=flags)
    except Exception as error:
        raise Refused(
            f"bcc could not compile the probe: {error}",
            "see the compiler's words above; bcc 0.26 on Debian 12 is known to work",
        ) from None


def load_programs(module: Any) -> dict[str, int]:
    """Descriptors of the three programs. Raises Refused where the verifier says no."""
    import bcc

    programs = {}
    for name, hook in HOOKS.items():
        kind = bcc.BPF.SOCK_OPS if hook == bpfsys.CGROUP_SOCK_OPS else bcc.BPF.CGROUP_SKB
        try:
            programs[name] = int(module.load_func(name, kind).fd)
        except Exception as error:
            raise Refused(
                f"the kernel refused the program {name}: {error}",
                f"this is Linux {os.uname().release}; the probe needs 5.8 or later with CONFIG_CGROUP_BPF. "
                "The verifier's words are above",
            ) from None
    return programs


def mark_ports(module: Any, ports: list[int]) -> None:
    """Set the bits of the gateway's listening ports."""
    words: dict[int, int] = {}
    for port in ports:
        words[port >> 6] = words.get(port >> 6, 0) | 1 << (port & 63)
    table = module["listening"]
    for word, bits in words.items():
        table[table.Key(word)] = table.Leaf(bits)


def attach(programs: dict[str, int], cgroup: str) -> dict[str, int]:
    """Links of the programs to a cgroup. Raises Refused: gone, no cgroup2, or held by someone else."""
    try:
        folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Refused(
            f"the cgroup {cgroup} can't be opened: {error.strerror}",
            "start the gateway first, or name its cgroup (probe.cgroup); a restart may have made a new one",
        ) from None
    links = {}
    try:
        for name, hook in HOOKS.items():
            try:
                links[name] = bpfsys.link(programs[name], folder, hook)
            except OSError as error:
                raise _attach_refused(error, cgroup, hook) from None
    finally:
        os.close(folder)
    return links


def _attach_refused(error: OSError, cgroup: str, hook: int) -> Refused:
    if error.errno == errno.EPERM:
        held = holder(cgroup, hook)
        if held:
            return Refused(
                f"attaching to {cgroup} is not permitted: {held} and lets no other program in",
                "detach that program, or have it attached with the multi flag (BPF_F_ALLOW_MULTI)",
            )
        return Refused(f"attaching to {cgroup} is not permitted", f"run the loader with {CAPABILITIES}")
    if error.errno in (errno.EBADF, errno.EINVAL):
        return Refused(
            f"{cgroup} is not a folder of a cgroup2 hierarchy that takes programs ({error.strerror})",
            "name a folder under the cgroup2 mount (grep cgroup2 /proc/mounts)",
        )
    return Refused(f"attaching to {cgroup} failed: {error.strerror}", "see `apicost doctor`")


def holder(cgroup: str, hook: int) -> str:
    """Who keeps others off this cgroup: program, its id, where, and the process that has it; "" nobody."""
    place = os.path.realpath(cgroup)
    while os.path.exists(os.path.join(place, "cgroup.procs")):
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags, programs = bpfsys.attached(folder, hook)
        except OSError:
            programs = []
        finally:
            os.close(folder)
        if programs and not flags & bpfsys.ALLOW_MULTI:
            return "; ".join(f"program {_program(number)} is attached to {place}" for number in programs)
        place = os.path.dirname(place)
    return ""


def _program(number: int) -> str:
    try:
        name = bpfsys.program_info(number)[0]
    except OSError:
        name = "?"
    return f"{name!r} (id {number}{_owner(number)})"


def _owner(number: int) -> str:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            for info in (entry / "fdinfo").iterdir():
                if f"prog_id:\t{number}\n" in info.read_text():
                    return f", held by process {entry.name} {(entry / 'comm').read_text().strip()!r}"
        except OSError:
            continue
    return ", held by no process"


def main(arguments: list[str]) -> int:
    """FD OPTIONS: attach, answer on the socket FD, exit 0; 1 where it was refused."""
    channel = socket.socket(fileno=int(arguments[0]))
    options = json.loads(arguments[1])
    try:
        check_privileges()
        with contextlib.suppress(OSError, ValueError):  # before Linux 5.11 tables count against this limit
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        module = compile_probe(options)
        programs = load_programs(module)
        mark_ports(module, options["ports"])
        links = attach(programs, options["cgroup"])
    except Refused as refused:
        channel.sendall(json.dumps({"reason": refused.reason, "fix": refused.fix}).encode())
        return 1
    tables = {name: int(module[name].map_fd) for name in TABLES if name != "ring"}
    tables["ring"] = int(module.get_table("ring").map_fd)
    descriptors = [(links | tables)[name] for name in DESCRIPTORS]
    socket.send_fds(channel, [json.dumps({"ok": list(DESCRIPTORS)}).encode()], descriptors)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # bcc's clean-up would detach and unload one by one; the kernel does it faster.
    os._exit(status)
