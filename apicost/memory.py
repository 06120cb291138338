"""The sidecar's memory: what is kept out of the process, and how freed memory goes back to the system.

Measured with bench/daemon_memory.py; what each line is worth stands beside it.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import os
import resource
import sys

_LIBC = ctypes.CDLL(None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_MADV_DONTNEED = 4  # asm-generic/mman-common.h


class _NoPandas(importlib.abc.MetaPathFinder):
    """Keeps pandas out of this process: PyArrow would load it, 36 MB, only to check types against it."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError("pandas stays out of this process")


def lean() -> None:
    """Arrow on malloc, no pandas: a report of a wide month takes 110 MB less. Call it before Arrow is loaded."""
    sys.meta_path.insert(0, _NoPandas())
    # Read when libarrow is loaded: its C++ parts ask for the default pool, whatever Python sets later (35 MB).
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"


def tame() -> None:
    """As `lean`, and few malloc arenas, at some CPU time: for the sidecar. Call it before Arrow is loaded."""
    lean()
    # aiohttp makes client contexts with every trusted certificate at import; this process is no TLS client.
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    os.environ.setdefault("SSL_CERT_DIR", os.devnull)
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 2)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, 1 << 20)
        _LIBC.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def give_back() -> None:
    """Return freed batches to the system: malloc would keep them, tens of megabytes of holes per thread."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def give_back_library_pages() -> None:
    """Let go of pages of libraries that were touched only while loading and starting: 59 MB fall to 22 in use.

    They are clean, stay in the page cache and come back where they are used again. Pages that the loader has
    relocated or anything has written are this process's own and stay: dropping those would lose their content.
    """
    if not hasattr(_LIBC, "madvise"):
        return
    for start, end in _clean_libraries():
        _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _clean_libraries() -> list[tuple[int, int]]:
    """Address ranges of shared libraries of which this process has no page of its own."""
    found = []
    place = (0, 0)
    library = False
    with open("/proc/self/smaps") as stream:
        for line in stream:
            name, *fields = line.split(maxsplit=5)
            if not name.endswith(":"):  # a mapping's head: range, rights, offset, device, inode, path
                start, end = name.split("-")
                place = int(start, 16), int(end, 16)
                library = "w" not in fields[0] and fields[3] != "0" and ".so" in fields[-1]
            elif name == "Anonymous:" and library and fields[0] == "0":
                found.append(place)
    return found


def resident_bytes() -> int:
    """The process's resident set."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()
