"""`apicost run`: the sidecar beside a gateway."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib.abc
import logging
import os
import sys

from apicost import config
from apicost.problems import InputError, Problem


def main(argv: list[str]) -> int:
    """Run until SIGTERM; 0 after a clean stop, 2 where configuration or host don't allow a start."""
    parser = argparse.ArgumentParser(
        prog="apicost run",
        description="Run the sidecar: probe, receiver, correlation, ledger, metrics. Prints one line of JSON "
        "when it is ready; SIGTERM drains and detaches; SIGHUP reads documents and prices again.",
    )
    parser.add_argument(
        "-c", "--config", default="apicost.yaml", help="configuration file (default: apicost.yaml)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done, not only what goes wrong")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    settings = config.load(arguments.config)
    _tame_memory()
    from apicost.daemon import Daemon  # only now: help and a bad configuration answer at once

    try:
        asyncio.run(Daemon(settings).serve())
    except OSError as error:
        raise InputError(
            [
                Problem(
                    place=arguments.config,
                    fact=str(error),
                    effect="the sidecar does not start",
                    fix="mend this, or see `apicost doctor`",
                )
            ]
        ) from error
    return 0


class _NoPandas(importlib.abc.MetaPathFinder):
    """Keeps pandas out of this process: PyArrow would load it, 36 MB, only to check types against it."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError("pandas stays out of the sidecar")


def _tame_memory() -> None:
    """Few malloc arenas, Arrow on the same allocator, no pandas: freed batches go back to the system."""
    sys.meta_path.insert(0, _NoPandas())
    # Read when libarrow is loaded: its C++ parts ask for the default pool, whatever Python sets later.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    # aiohttp makes client contexts with every trusted certificate at import; this process is no TLS client.
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    os.environ.setdefault("SSL_CERT_DIR", os.devnull)
    import pyarrow as pa

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-8, 2)  # M_ARENA_MAX
        libc.mallopt(-1, 1 << 20)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
