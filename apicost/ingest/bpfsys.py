"""The bpf() system call, by ctypes: the few commands that the probe needs, without bcc or libbpf.

Rules of this file:
- Standard library only: the loader child uses it under an interpreter that has nothing else.
- A failed call raises OSError with the kernel's errno; what it means is the caller's to say.
- Structures are packed by hand after `union bpf_attr` in linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Any

# asm/unistd.h; the numbers are part of the kernel's ABI.
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

MAP_LOOKUP_ELEM = 1
MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
PROG_LOAD = 5
PROG_ATTACH = 8
PROG_DETACH = 9
PROG_TEST_RUN = 10
PROG_GET_FD_BY_ID = 13
OBJ_GET_INFO_BY_FD = 15
PROG_QUERY = 16
MAP_LOOKUP_AND_DELETE_ELEM = 21
MAP_LOOKUP_BATCH = 24
MAP_DELETE_BATCH = 27
LINK_CREATE = 28

CGROUP_INET_INGRESS = 0
CGROUP_INET_EGRESS = 1
CGROUP_SOCK_OPS = 3

ALLOW_MULTI = 2  # flag of an attachment that lets others attach too

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: Any) -> int:
    """One bpf() call. attributes: a ctypes buffer holding `union bpf_attr`, changed in place.

    Returns what the kernel returns, a descriptor for some commands. Raises OSError.
    """
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf() has no known number on {platform.machine()}")
    result = int(_libc.syscall(number, command, ctypes.byref(attributes), ctypes.sizeof(attributes)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def attributes(layout: str, *values: int) -> Any:
    """`union bpf_attr` from a struct layout; 128 bytes, the rest zero as the kernel demands."""
    return ctypes.create_string_buffer(struct.pack("=" + layout, *values).ljust(128, b"\0"), 128)


def lookup(map_fd: int, key: Any, value: Any, *, delete: bool = False) -> bool:
    """Copy the value of `key` into `value` (both ctypes buffers), and delete it at once if asked.

    Returns False where there is no such key.
    """
    command = MAP_LOOKUP_AND_DELETE_ELEM if delete else MAP_LOOKUP_ELEM
    try:
        bpf(command, attributes("IIQQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
    except FileNotFoundError:
        return False
    return True


def delete_batch(map_fd: int, keys_address: int, count: int) -> int:
    """Delete `count` keys that lie one after the other; returns how many were there."""
    attr = attributes("QQQQIIQQ", 0, 0, keys_address, 0, count, map_fd, 0, 0)
    try:
        bpf(MAP_DELETE_BATCH, attr)
    except FileNotFoundError:
        # The kernel stops at a key that is gone and says how far it came.
        return int(struct.unpack_from("=I", attr.raw, 32)[0])
    return count


def lookup_batch(
    map_fd: int, cursor: Any, first: bool, keys_address: int, values_address: int, room: int
) -> tuple[int, bool]:
    """Copy up to `room` entries; returns (how many, whether there are more).

    cursor: a ctypes buffer that the kernel keeps its place in; `first` starts anew.
    Raises OSError(ENOSPC) where one hash bucket holds more than `room`.
    """
    place = ctypes.addressof(cursor)
    attr = attributes("QQQQIIQQ", 0 if first else place, place, keys_address, values_address, room, map_fd, 0, 0)
    try:
        bpf(MAP_LOOKUP_BATCH, attr)
    except FileNotFoundError:
        return int(struct.unpack_from("=I", attr.raw, 32)[0]), False
    return int(struct.unpack_from("=I", attr.raw, 32)[0]), True


def link(program_fd: int, cgroup_fd: int, attach_type: int) -> int:
    """Attach a program to a cgroup by a link; it stays as long as the returned descriptor does."""
    return bpf(LINK_CREATE, attributes("IIII", program_fd, cgroup_fd, attach_type, 0))


def attached(cgroup_fd: int, attach_type: int) -> tuple[int, list[int]]:
    """(attach flags, program ids) of a cgroup and one kind of hook."""
    ids = (ctypes.c_uint32 * 64)()
    attr = attributes("IIIIQI", cgroup_fd, attach_type, 0, 0, ctypes.addressof(ids), 64)
    bpf(PROG_QUERY, attr)
    flags, _, count = struct.unpack_from("=IQI", attr.raw, 12)
    return int(flags), list(ids[: int(count)])


def program_info(program_id: int) -> tuple[str, int, int]:
    """(name, run time in ns, run count) of a loaded program; the latter two need kernel.bpf_stats_enabled.

    Raises OSError: gone, or not ours to see (needs CAP_SYS_ADMIN).
    """
    fd = bpf(PROG_GET_FD_BY_ID, attributes("III", program_id, 0, 0))
    try:
        info = ctypes.create_string_buffer(256)
        attr = attributes("IIQ", fd, 216, ctypes.addressof(info))
        bpf(OBJ_GET_INFO_BY_FD, attr)
    finally:
        os.close(fd)
    name = info.raw[64:80].split(b"\0")[0].decode("ascii", "replace")
    run_time_ns, run_count = struct.unpack_from("=QQ", info.raw, 192)
    return name, int(run_time_ns), int(run_count)
