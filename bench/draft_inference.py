"""How many templates are inferred exactly from traffic of operations that the document lacks.

usage: .venv/bin/python bench/draft_inference.py [--requests N] [--rounds N]

Traffic is made from GitHub's own OpenAPI document (npm @octokit/openapi). In each round some of its templates are
taken out, requests to them are made with values for their parameters, folded as the pipeline folds them, and templates
are inferred from those paths in the light of what is left of the document. Recovered exactly: the same segments are
parameters and the same text is literal; names of parameters are not compared. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from match_speed import document

from apicost.catalog.openapi import Source, load_apis
from apicost.core.conformance.fold import fold
from apicost.core.conformance.infer import Inference
from apicost.core.conformance.templates import Templates

PARAMETER = re.compile(r"\{([^{}]*)\}")
NUMBERS = ("id", "number", "_id")


class Known(NamedTuple):
    """A template that is still documented."""

    path_template: str
    method: str = "GET"


def word(random_: random.Random) -> str:
    """A name as people give them: letters, sometimes a hyphen, seldom a digit."""
    parts = ["".join(random_.choices(string.ascii_lowercase, k=random_.randint(3, 9)))]
    if random_.random() < 0.3:
        parts.append("".join(random_.choices(string.ascii_lowercase, k=random_.randint(2, 6))))
    return "-".join(parts) + (str(random_.randint(1, 99)) if random_.random() < 0.1 else "")


def value(name: str, random_: random.Random) -> str:
    """A value for a parameter, by its name."""
    if name.endswith("sha"):
        return "".join(random_.choices("0123456789abcdef", k=40))
    if name.endswith(NUMBERS):
        return str(random_.randint(1, 10**8))
    return word(random_)


def bare(template: str) -> str:
    """The template without its parameters' names."""
    return PARAMETER.sub("{}", template)


def round_of(templates: list[str], share: float, requests: int, random_: random.Random) -> dict[str, int]:
    """One round: what was held out, what of it was recovered, what else was inferred."""
    held = set(random_.sample(templates, round(share * len(templates))))
    known = [template for template in templates if template not in held]
    # Owners, repositories and the like are used again and again; a request takes one of these.
    pools: dict[str, list[str]] = {}
    paths: dict[str, int] = {}
    for template in sorted(held):
        for _ in range(requests):

            def put(found: re.Match[str]) -> str:
                pool = pools.setdefault(found[1], [value(found[1], random_) for _ in range(200)])
                return random_.choice(pool)

            path = fold(PARAMETER.sub(put, template))
            paths[path] = paths.get(path, 0) + 1
    documented = Templates(Known(template) for template in known)
    seen = sorted(path for path in paths if not documented.fitting(path, lambda _: True))
    inferred = Inference(known)(seen, [paths[path] for path in seen])
    visible = {bare(t) for t in held} - {bare(t) for t in known}
    found = {bare(template) for template in inferred}
    # Text where the API has a parameter: a value that was taken for a word.
    words = {text for template in templates for text in bare(template).split("/")}
    kept = {text for template in found for text in template.split("/") if text not in words}
    return {
        "held": len(visible),
        "recovered": len(visible & found),
        "inferred": len(found),
        "paths": len(seen),
        "values_kept_as_words": len(kept),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=30, help="requests to each template that is held out")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    catalog = load_apis([Source(id="github", documents=(document(),))])
    templates = sorted({operation.path_template for operation in catalog.operations})
    out: dict[str, object] = {"templates": len(templates), "requests_each": options.requests}
    for share in (0.1, 0.3, 0.5, 1.0):
        random_ = random.Random(f"held {share}")
        rounds = [round_of(templates, share, options.requests, random_) for _ in range(options.rounds)]
        sums = {name: sum(found[name] for found in rounds) for name in rounds[0]}
        out[f"held_{share:.0%}"] = {**sums, "recovered_share": round(sums["recovered"] / max(sums["held"], 1), 4)}
    print(json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
