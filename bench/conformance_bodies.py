"""How many sampled exchanges with bodies are validated in a second, on one core.

usage: .venv/bin/python bench/conformance_bodies.py [--cache DIR]

Workloads of made-up exchanges that conform, values different each time:
- orders: specs/shop.yaml, POST /v1/orders with both bodies
- lists: specs/shop.yaml, GET /v1/orders with two query parameters and one to five orders
- issues: GitHub's document (npm @octokit/openapi), GET /repos/{owner}/{repo}/issues with four query parameters and one
  to five issues, made of the document's own example
- changed: the same, each with one field of a wrong type, another each time

openapi_core_per_s is openapi-core's own `OpenAPI` object on the same exchanges, with the matcher as its path finder
and no validation of the document; the matching is not counted.
Prints one JSON object; CPU time of this process, peak memory of the whole.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from match_speed import document
from openapi_core import Config, OpenAPI

from apicost.catalog import bodies
from apicost.catalog.bodies import Checker, Exchange
from apicost.catalog.openapi import Source

SHOP = Path(__file__).parents[1] / "specs" / "shop.yaml"
JSON = {"content-type": "application/json; charset=utf-8"}
COUNT, RAW_COUNT = 3_000, 30


def exchange(method: str, host: str, path: str, status: int, query: str, sent: Any, got: Any) -> Exchange:
    """One exchange with JSON bodies."""
    return Exchange(
        method=method, host=host, path=path, status=status, query=query, request_headers=JSON, response_headers=JSON,
        request_body=None if sent is None else orjson.dumps(sent), response_body=orjson.dumps(got),
    )  # fmt: skip


def order(number: int) -> dict[str, Any]:
    """An order of the sample shop."""
    lines = [{"sku": f"S-{i}", "count": i + 1} for i in range(number % 4 + 1)]
    return {"id": f"o{number}", "status": "open", "lines": lines, "total": f"{number}.00"}


def orders() -> list[Exchange]:
    made = [order(number) for number in range(COUNT)]
    sent = [{"lines": one["lines"], "note": "n" * (number % 90)} for number, one in enumerate(made)]
    return [exchange("POST", "shop.example", "/v1/orders", 201, "", s, g) for s, g in zip(sent, made, strict=True)]


def lists() -> list[Exchange]:
    pages = [[order(number + i) for i in range(number % 5 + 1)] for number in range(COUNT)]
    return [
        exchange("GET", "shop.example", "/v1/orders", 200, f"page={number + 1}&status=open", None, page)
        for number, page in enumerate(pages)
    ]


def issues(file: Path) -> list[Exchange]:
    """Issues as the document's example has them; text, numbers and dates are new in each."""
    example = orjson.loads(file.read_bytes())["components"]["examples"]["issue-items"]["value"][0]
    chosen = random.Random(7)
    made = []
    for number in range(COUNT):
        page = [copy.deepcopy(example) for _ in range(number % 5 + 1)]
        for one in page:
            one.update(id=chosen.randrange(1 << 31), number=chosen.randrange(9_999), title="t" * chosen.randrange(80))
            one.update(comments=chosen.randrange(30), body="b" * chosen.randrange(400))
            one.update(created_at=f"2026-{chosen.randrange(1, 13):02}-11T{chosen.randrange(24):02}:11:22Z")
            one["user"].update(login=f"u{chosen.randrange(9_999)}", id=chosen.randrange(1 << 31))
        path = f"/repos/o{number % 50}/r{number % 70}/issues"
        query = f"state=open&per_page=100&page={number + 1}&sort=created"
        made.append(exchange("GET", "api.github.com", path, 200, query, None, page))
    return made


def changed(conforming: Sequence[Exchange]) -> list[Exchange]:
    """The same with one field of the first element that is now a list."""
    out = []
    for number, one in enumerate(conforming):
        page = orjson.loads(one.response_body or b"")
        names = sorted(page[0])
        page[0][names[number % len(names)]] = [number]
        out.append(exchange(one.method, one.host, one.path, one.status, one.query or "", None, page))
    return out


def raw(checker: Checker, made: Sequence[Exchange]) -> float:
    """CPU seconds that openapi-core takes by itself."""
    config = Config(path_finder_cls=bodies._Finder, spec_validator_cls=None)
    apps = {file: OpenAPI(one.spec, config=config) for file, one in checker._documents.items() if one}
    spent = 0.0
    for number, one in enumerate((made[0], *made)):
        operation = checker.operation(one)
        assert operation is not None
        app = apps[operation.spec]
        request: Any = bodies._Request(operation.pointer, one, {})
        response: Any = SimpleNamespace(
            status_code=one.status, headers=JSON, content_type="application/json", data=one.response_body
        )
        start = time.process_time()
        list(app.iter_request_errors(request))
        list(app.iter_response_errors(request, response))
        spent += (time.process_time() - start) if number else 0.0  # the first fills openapi-core's own caches
    return spent


def main() -> None:
    """Validate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder with the npm package; bench-cache/ without")
    options = parser.parse_args()
    github = options.cache / "package/generated/api.github.com.json" if options.cache else document()
    checker = Checker([Source(id="shop", documents=(SHOP,)), Source(id="github", documents=(github,))])
    figures: dict[str, Any] = {}
    conforming = issues(github)
    for name, made in {
        "orders": orders(),
        "lists": lists(),
        "issues": conforming,
        "changed": changed(conforming),
    }.items():
        start = time.process_time()
        first = checker.check(made[0])
        cold = time.process_time() - start
        start = time.process_time()
        found = [checker.check(one) for one in made]
        spent = time.process_time() - start
        sizes = [len(one.request_body or b"") + len(one.response_body or b"") for one in made]
        alone = raw(checker, made[:RAW_COUNT])
        assert name == "changed" or not first
        figures[name] = {
            "per_s": round(len(made) / spent),
            "openapi_core_per_s": round(RAW_COUNT / alone),
            "mean_body_bytes": sum(sizes) // len(sizes),
            "deviations": sum(map(len, found)),
            "cold_s": round(cold, 2),
        }
    figures["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6
    print(json.dumps({**figures, "problems": [str(problem) for problem in checker.problems]}, indent=1))


if __name__ == "__main__":
    main()
