"""`apicost spec`: what is wrong with OpenAPI documents, what is missing from them, and what was measured of them."""

from __future__ import annotations

import importlib
import sys

ACTIONS = {
    "lint": "what in documents makes the naming of requests unsafe",
    "draft": "OpenAPI for the traffic that no document describes",
    "annotate": "documents with the measured usage, latency and cost of each operation",
}

USAGE = """usage: apicost spec ACTION [OPTIONS]        apicost spec ACTION --help says more

{actions}
"""


def main(argv: list[str]) -> int:
    """Run one action; each `apicost.commands._spec_ACTION` has a `main(argv) -> int` of its own."""
    usage = USAGE.format(actions="\n".join(f"  {name:<9} {what}" for name, what in ACTIONS.items()))
    if argv[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if not argv or argv[0] not in ACTIONS:
        what = f"no action {argv[0]!r}" if argv else "no action given"
        print(f"apicost spec: {what}\n\n{usage}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"apicost.commands._spec_{argv[0]}").main(argv[1:]))
