"""`apicost replay`: recorded flow and usage files through the same pipeline as a live run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apicost import config
from apicost.problems import InputError, Problem


def main(argv: list[str]) -> int:
    """Replay one recorded run into a ledger; 0 done, 2 where the recording can't be read."""
    parser = argparse.ArgumentParser(
        prog="apicost replay",
        description="Run a recorded folder (flows.parquet, lines.parquet, clock.json; apicost.yaml beside "
        "them says which documents and prices apply) through correlation, matching and metering into a ledger.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the recorded run")
    parser.add_argument("--ledger", type=Path, required=True, metavar="PATH", help="ledger folder; made where missing")
    parser.add_argument("-c", "--config", type=Path, help="configuration (default: DIR/apicost.yaml)")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="cut the run into N steps (default: 1)")
    arguments = parser.parse_args(argv)
    file = arguments.config or arguments.folder / "apicost.yaml"
    settings = config.load(file)
    if arguments.steps < 1:
        raise _problem("--steps", f"{arguments.steps} is not a number of steps", "write 1 or more")

    from apicost import run

    outcome = run.replay(arguments.folder, arguments.ledger, settings, steps=arguments.steps)
    print(f"{outcome.exchanges:,} requests replayed into {arguments.ledger}", file=sys.stderr)
    for name, count in sorted(outcome.counts.items()):
        print(f"  {name.replace('_', ' ')}: {count:,}", file=sys.stderr)
    return 0


def _problem(place: str, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=place, fact=fact, effect="nothing was replayed", fix=fix)])
