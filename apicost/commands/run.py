"""`apicost run`: the sidecar beside a gateway."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from apicost import config, memory
from apicost.problems import InputError, Problem


def main(argv: list[str]) -> int:
    """Run until SIGTERM; 0 after a clean stop, 2 where configuration or host don't allow a start."""
    parser = argparse.ArgumentParser(
        prog="apicost run",
        description="Run the sidecar: probe, receiver, correlation, ledger, metrics. Prints one line of JSON "
        "when it is ready; SIGTERM drains and detaches; SIGHUP reads documents and prices again.",
    )
    parser.add_argument("-c", "--config", default="apicost.yaml", help="configuration file (default: apicost.yaml)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done, not only what goes wrong")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    settings = config.load(arguments.config)
    memory.tame()
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
