"""`apicost conformance` from end to end: recorded runs and archives in, findings and exit codes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apicost import cli, config, resources, run

SPECS = resources.folder("specs")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger that holds the recorded run of the demo."""
    folder = tmp_path_factory.mktemp("conformance") / "ledger"
    recorded = resources.folder("sample-run")
    run.replay(recorded, folder, config.load(recorded / "apicost.yaml"), steps=3)
    return folder


def command(ledger: Path, *more: str) -> list[str]:
    here = resources.folder("sample-run")
    return ["conformance", "-c", str(here / "apicost.yaml"), "--ledger", str(ledger), "--since", "2026-11-01", *more]


def judged(ledger: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    cli.main(command(ledger, "--format", "json", *more))
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_demo_shows_a_shadow_a_deprecated_operation_and_an_undocumented_status(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These three and nothing else, each with its cost; exit code 1 for the error."""
    assert cli.main(command(ledger)) == 1
    capsys.readouterr()
    data = judged(ledger, capsys)
    found = {(f["rule"], f["api"], f["method"], f["path_template"], f["detail"], f["count"]) for f in data["findings"]}
    assert found == {
        ("shadow-endpoint", "shop", "GET", "/v1/internal/debug", "", 6),
        ("undocumented-status", "media", "POST", "/transcode", "status 503", 8),
        ("deprecated-in-use", "shop", "GET", "/v1/products/{sku}/legacy-price", "", 6),
    }
    assert all(float(f["cost"]) > 0 and f["currency"] == "EUR" and f["bytes"] > 0 for f in data["findings"])
    assert all(f["document"] and f["line"] for f in data["findings"])
    assert data["requests"] == 456 and data["coverage"]["operations_seen"] == 15


def test_severity_baseline_and_api_decide_the_exit_code(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """media has warnings alone; what a baseline knows does not count; an unknown API is an input error."""
    assert cli.main(command(ledger, "--api", "media")) == 0
    assert cli.main(command(ledger, "--api", "media", "--fail-on", "warning")) == 1
    known = str(tmp_path / "known.json")
    assert cli.main(command(ledger, "--write-baseline", known)) == 1
    assert cli.main(command(ledger, "--baseline", known, "--fail-on", "info")) == 0
    capsys.readouterr()
    data = judged(ledger, capsys, "--baseline", known)
    assert {f["state"] for f in data["findings"]} == {"known"}
    assert judged(ledger, capsys, "--baseline", known, "--new-only")["findings"] == []
    assert cli.main(command(ledger, "--api", "nothing")) == 2
    assert cli.main(command(ledger, "--since", "soon")) == 2


def test_too_little_traffic_is_not_called_clean(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in the window: exit code 3, and the reason."""
    assert cli.main(command(ledger, "--until", "2026-11-02")) == 3
    assert "too few" in capsys.readouterr().err
    assert cli.main(command(ledger, "--until", "2026-11-02", "--min-requests", "0")) == 0


def test_drift_says_what_is_new(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a window without traffic everything is new."""
    data = judged(ledger, capsys, "--against", "2026-10-01")
    assert len(data["drift"]["new"]) == 3 and data["drift"]["fixed"] == []


def test_an_archive_is_judged_with_its_bodies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No ledger, no price book: a deviating request body, and no value of it in the output."""
    body = '{"lines": [{"sku": 70707, "count": 1}]}'
    headers = [{"name": "apikey", "value": "k"}, {"name": "Content-Type", "value": "application/json"}]
    order = {"id": "1", "status": "open", "lines": []}
    entry = {
        "startedDateTime": "2026-11-23T10:00:00Z",
        "time": 3,
        "request": {"method": "POST", "url": "http://shop.example/v1/orders", "httpVersion": "HTTP/1.1",
                    "headers": headers, "headersSize": 90, "bodySize": len(body),
                    "postData": {"mimeType": "application/json", "text": body}},
        "response": {"status": 201, "headers": [{"name": "Content-Type", "value": "application/json"}],
                     "headersSize": 80, "bodySize": 20,
                     "content": {"size": 20, "mimeType": "application/json", "text": json.dumps(order)}},
    }  # fmt: skip
    file = tmp_path / "traffic"
    file.write_text(json.dumps({"log": {"version": "1.2", "entries": [entry]}}))
    arguments = ["conformance", "--spec", str(SPECS / "shop.yaml"), "--from", str(file), "--format", "json"]
    assert cli.main(arguments) == 1
    out = capsys.readouterr().out
    (found,) = json.loads(out)["findings"]
    assert (found["rule"], found["detail"], found["count"]) == ("request-schema", "/lines/*/sku type", 1)
    assert "70707" not in out and found["cost"] is None
    entry["request"]["postData"]["text"] = body.replace("70707", '"A7"')
    file.write_text(json.dumps({"log": {"version": "1.2", "entries": [entry]}}))
    assert cli.main(arguments) == 0


def test_without_a_usable_document_nothing_is_judged(tmp_path: Path) -> None:
    """Exit code 2, never a clean result."""
    broken = tmp_path / "broken.yaml"
    broken.write_text("openapi: [")
    assert cli.main(["conformance", "--spec", str(broken), "--from", str(resources.folder("sample-run"))]) == 2


def test_an_archive_shows_keys_in_any_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key in a header that no plugin looks for: with it nothing is missing, without it security-missing."""
    document = tmp_path / "api.yaml"
    document.write_text(
        "openapi: 3.1.0\ninfo: {title: T, version: '1'}\nservers: [{url: 'http://a.example'}]\n"
        "security: [{key: []}]\npaths:\n  /x:\n    get: {operationId: x, responses: {'200': {description: ok}}}\n"
        "components: {securitySchemes: {key: {type: apiKey, in: header, name: X-Tenant-Key}}}\n"
    )
    codes = []
    for headers in ([{"name": "x-tenant-key", "value": "k"}], []):
        entry = {
            "startedDateTime": "2026-11-23T10:00:00Z", "time": 1,
            "request": {"method": "GET", "url": "http://a.example/x", "httpVersion": "HTTP/1.1", "headers": headers},
            "response": {"status": 200, "headers": [], "content": {}},
        }  # fmt: skip
        file = tmp_path / "traffic"
        file.write_text(json.dumps({"log": {"entries": [entry]}}))
        codes.append(cli.main(["conformance", "--spec", str(document), "--from", str(file), "--format", "ndjson"]))
        rules = [json.loads(line)["rule"] for line in capsys.readouterr().out.splitlines()]
        assert rules == ([] if headers else ["security-missing"])
    assert codes == [0, 1]


@pytest.mark.parametrize(
    ("query", "headers", "found"),
    [
        ("?page=1&filter[a]=1&ids[]=2", {"X-Req": "1"}, []),
        ("?page=1&filter%5Ba%5D=1&ids%5B%5D=2&gr%C3%B6%C3%9Fe=1", {"X-Req": "1"}, []),
        ("?page=1&other=2", {"X-Req": "1"}, [("undocumented-query-param", "query 'other'")]),
        ("?filter[a]=1", {"X-Req": "1"}, [("missing-required-param", "query 'page'")]),
        ("?page=abc", {"X-Req": "1"}, [("request-schema", "query page type")]),
        ("?page=1", {"X-Other": "1"}, [("missing-required-param", "header X-Req")]),
    ],
)
def test_parameters_of_an_archive_are_read_as_the_document_means_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], query: str, headers: dict[str, str], found: list[Any]
) -> None:
    """Deep objects, brackets, encoded names; each deviation is told once and without the value."""
    string = {"type": "string"}
    parameters = [
        {"name": "filter", "in": "query", "style": "deepObject", "schema": {"additionalProperties": string}},
        {"name": "ids[]", "in": "query", "schema": {"type": "array", "items": string}},
        {"name": "größe", "in": "query", "schema": string},
        {"name": "X-Req", "in": "header", "required": True, "schema": string},
        {"name": "page", "in": "query", "required": True, "schema": {"type": "integer"}},
    ]
    get = {"operationId": "x", "parameters": parameters, "responses": {"200": {"description": "ok"}}}
    document = tmp_path / "api.json"
    servers = [{"url": "http://a.example"}]
    info = {"title": "T", "version": "1"}
    document.write_text(
        json.dumps({"openapi": "3.1.0", "info": info, "servers": servers, "paths": {"/x": {"get": get}}})
    )
    request = {"method": "GET", "url": f"http://a.example/x{query}", "httpVersion": "HTTP/1.1"}
    request |= {"headers": [{"name": name, "value": value} for name, value in headers.items()]}
    entry = {"startedDateTime": "2026-11-23T10:00:00Z", "request": request, "response": {"status": 200}}
    file = tmp_path / "traffic"
    file.write_text(json.dumps({"log": {"entries": [entry]}}))
    cli.main(["conformance", "--spec", str(document), "--from", str(file), "--format", "ndjson"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(f["rule"], f["detail"]) for f in told] == found
