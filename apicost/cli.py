"""The command line: one thin function per command, in `apicost/commands/`.

Rules of this file:
- A command's module is imported only when that command runs: `apicost --help` stays quick.
- Exit codes: 0 done, 1 findings or differences at or above the asked level, 2 usage or input error,
  3 too little data to say.
- Machine-readable output goes to standard output, everything for people to standard error.
"""

from __future__ import annotations

import importlib
import sys

from apicost import __version__, memory
from apicost.problems import InputError

COMMANDS = {
    "run": "the sidecar: probe, receiver, correlator, ledger, metrics",
    "probe": "flows and turns as the kernel counts them, nothing else",
    "replay": "recorded flow and usage files through the same pipeline",
    "match": "the operation that a request belongs to",
    "report": "the monthly report: page, PDF, workbook, CSV",
    "export": "a month as CSV, Parquet, XLSX or JSON: usage, charges, FOCUS, journal",
    "prices": "check a price book, or compare two",
    "conformance": "what the traffic does that the documents do not say, and its cost",
    "routes": "the gateway's routes against the OpenAPI documents",
    "close": "freeze a month as it is signed; what comes later is a correction",
    "verify": "closed months against their checksums and a second rating",
    "explain": "how a charge came to be, down to quantities and price-book lines",
    "reconcile": "a provider's bill against the month, cause by cause",
    "focus": "check FOCUS cost-and-usage files",
    "spec": "OpenAPI documents: lint, drafts of what is missing, measured usage in them",
    "doctor": "what this host has and lacks, and how to mend it",
    "demo": "live traffic through a gateway on this machine, and its report",
}
# These read a whole month; Arrow is not loaded before they are.
OF_A_MONTH = frozenset(("report", "export", "explain", "reconcile", "close", "verify"))

USAGE = """apicost: what each API behind an Apache APISIX gateway really costs

usage: apicost COMMAND [OPTIONS]        apicost COMMAND --help says more

{commands}

exit codes: 0 done, 1 findings or differences, 2 usage or input error, 3 too little data to say
"""


def usage() -> str:
    """The text of `apicost --help`."""
    return USAGE.format(commands="\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items()))


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Each `apicost.commands.NAME` has `main(argv: list[str]) -> int` and an argparse parser of its own.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"apicost {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"apicost: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    if argv is None and name in OF_A_MONTH:  # else the process is somebody else's
        memory.lean()
    try:
        return int(importlib.import_module(f"apicost.commands.{name}").main(arguments[1:]))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
