"""`apicost spec draft` and `apicost spec annotate` from end to end, over the recorded run of the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from apicost import cli, config, resources, run
from apicost.catalog.validate import validate_documents

SAMPLE = resources.folder("sample-run")
SPECS = resources.folder("specs")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger that holds the recorded run of the demo."""
    folder = tmp_path_factory.mktemp("spec") / "ledger"
    run.replay(SAMPLE, folder, config.load(SAMPLE / "apicost.yaml"), steps=3)
    return folder


def of_ledger(action: str, ledger: Path, *more: str) -> list[str]:
    at = ["-c", str(SAMPLE / "apicost.yaml"), "--ledger", str(ledger), "--since", "2026-11-01"]
    return ["spec", action, *at, *more]


def test_a_draft_beside_the_document_ends_the_shadow(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's hidden endpoint is drafted; with the draft among the API's documents nothing is undocumented."""
    draft = tmp_path / "missing.yaml"
    assert cli.main(of_ledger("draft", ledger, "--api", "shop", "-o", str(draft))) == 0
    assert "1 operations drafted" in capsys.readouterr().err
    assert validate_documents([draft]) == []
    data = yaml.safe_load(draft.read_text())
    operation = data["paths"]["/internal/debug"]["get"]
    assert (operation["x-apicost-calls"], operation["operationId"]) == (6, "getInternalDebug")
    both = tmp_path / "apicost.yaml"
    settings = yaml.safe_load((SAMPLE / "apicost.yaml").read_text())
    settings["prices"] = str(SPECS / "prices.yaml")
    for api in settings["apis"]:
        api["documents"] = [str(SPECS / f"{api['id']}.yaml"), *([str(draft)] if api["id"] == "shop" else [])]
    both.write_text(yaml.safe_dump(settings))
    known = ["conformance", "-c", str(both), "--ledger", str(ledger), "--since", "2026-11-01", "--api", "shop"]
    cli.main([*known, "--format", "json"])
    assert [f["rule"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["deprecated-in-use"]
    # Another API's document ends it as well, also where --api asks for the shop alone.
    settings["apis"][0]["documents"].pop()
    settings["apis"].append({"id": "ops", "documents": [str(draft)]})
    both.write_text(yaml.safe_dump(settings))
    cli.main([*known, "--format", "json"])
    data = json.loads(capsys.readouterr().out)
    assert [f["rule"] for f in data["findings"]] == ["deprecated-in-use"]
    assert list(data["coverage"]["apis"]) == ["shop"]


def test_drafts_of_files_and_what_can_not_be_drafted(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive needs no ledger; JSON by name or by word; an API without traffic is 3, one that is none 2."""
    archive = tmp_path / "a.har"
    archive.write_text(json.dumps(_archive("https://shop.example/v1/hidden/17?page=2", "https://old.example/a")))
    given = ["spec", "draft", "--spec", str(SPECS / "shop.yaml"), "--from", str(archive)]
    out = tmp_path / "draft.json"
    assert cli.main([*given, "--api", "shop", "-o", str(out)]) == 0
    assert list(json.loads(out.read_text())["paths"]) == ["/hidden/{hiddenId}"]
    assert "page" in out.read_text() and "2" not in json.loads(out.read_text())["paths"]["/hidden/{hiddenId}"]["get"]
    capsys.readouterr()
    assert cli.main([*given, "--host", "old.example", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["servers"] == [{"url": "https://old.example"}]
    assert cli.main([*given, "--host", "none.example"]) == 3
    assert cli.main([*given, "--api", "none"]) == 2
    assert cli.main(given) == 2
    assert cli.main([*given, "--host", "<script>"]) == 2
    assert cli.main(of_ledger("draft", ledger, "--api", "media")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["paths"] == {}


def _archive(*urls: str) -> dict[str, Any]:
    entries = [
        {
            "startedDateTime": "2026-11-20T10:00:00.000Z", "time": 5,
            "request": {"method": "GET", "url": url, "httpVersion": "HTTP/1.1", "headers": [], "queryString": [],
                        "cookies": [], "headersSize": -1, "bodySize": 0},
            "response": {"status": 200, "statusText": "", "httpVersion": "HTTP/1.1", "headers": [], "cookies": [],
                         "content": {"size": 2, "mimeType": "application/json"}, "redirectURL": "", "headersSize": -1,
                         "bodySize": 2},
            "cache": {}, "timings": {"send": 0, "wait": 5, "receive": 0},
        }
        for url in urls
    ]  # fmt: skip
    return {"log": {"version": "1.2", "creator": {"name": "t", "version": "1"}, "entries": entries}}


def test_annotated_documents_are_valid_say_what_the_ledger_says_and_change_nothing_else(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls add up to the matched ones, never-called operations say 0, comments stay, and twice is the same."""
    out = tmp_path / "annotated"
    assert cli.main(of_ledger("annotate", ledger, "--out", str(out))) == 0
    files = [out / "shop" / "shop.yaml", out / "media" / "media.yaml"]
    assert validate_documents(files) == []
    operations = [
        operation
        for file in files
        for item in yaml.safe_load(file.read_text())["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict) and "responses" in operation
    ]
    cli.main(["conformance", *of_ledger("", ledger)[2:], "--format", "json"])
    data = json.loads(capsys.readouterr().out)
    assert len(operations) == data["coverage"]["operations"]
    assert sum(operation["x-apicost-calls"] > 0 for operation in operations) == data["coverage"]["operations_seen"]
    assert sum(operation["x-apicost-calls"] for operation in operations) == data["matched"]
    called = [operation for operation in operations if operation["x-apicost-calls"]]
    assert all(float(one["x-apicost-cost"]) > 0 and one["x-apicost-mean-latency-ms"] >= 0 for one in called)
    for file in files:
        lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("x-apicost-")]
        assert lines == (SPECS / file.name).read_text().splitlines()
    legacy = next(o for o in operations if o["operationId"] == "getLegacyPrice" or o.get("deprecated"))
    deprecated = next(f for f in data["findings"] if f["rule"] == "deprecated-in-use")
    assert (legacy["x-apicost-calls"], legacy["x-apicost-cost"]) == (deprecated["count"], deprecated["cost"])


def test_annotate_refuses_to_write_over_a_document(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original stays; an unknown API is an input error, a window without traffic is too little."""
    (tmp_path / "shop").mkdir()
    document = tmp_path / "shop" / "shop.yaml"
    document.write_bytes((SPECS / "shop.yaml").read_bytes())
    own = ["spec", "annotate", "--spec", str(document), "--ledger", str(ledger), "--since", "2026-11-01"]
    assert cli.main([*own, "--out", str(tmp_path)]) == 2
    assert document.read_bytes() == (SPECS / "shop.yaml").read_bytes()
    assert cli.main([*own, "--out", str(tmp_path / "x"), "--api", "none"]) == 2
    assert cli.main([*own, "--out", str(tmp_path / "x"), "--until", "2026-11-02"]) == 3
    assert not (tmp_path / "x").exists()


def test_the_output_in_the_documentation_is_the_commands(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """README and docs/conformance.md show what the demo's run gives."""
    cli.main(["conformance", *of_ledger("", ledger)[2:]])
    shown = capsys.readouterr().out.partition("\n\nhow to mend")[0]
    root = Path(__file__).parents[2]
    for page in ("README.md", "docs/conformance.md"):
        text = (root / page).read_text()
        assert [line for line in shown.splitlines() if line.rstrip() not in text] == [], page
