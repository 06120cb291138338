"""Recorded traffic: told apart by content, read with suspicion, judged like a gateway's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost import resources
from apicost.ingest import har, recorded
from apicost.problems import InputError


def entry(url: str = "http://shop.example/v1/orders", status: int = 200, **more: Any) -> dict[str, Any]:
    request = {"method": "GET", "url": url, "httpVersion": "HTTP/1.1", "headers": [], "headersSize": 90, "bodySize": 0}
    response = {"status": status, "headers": [], "content": {"size": 10}, "headersSize": 80, "bodySize": 20}
    request |= more.pop("request", {})
    response |= more.pop("response", {})
    start = {"startedDateTime": "2026-11-23T10:00:00.5+01:00", "time": 250}
    return {**start, **more, "request": request, "response": response}


def archive(folder: Path, *entries: Any) -> recorded.Recorded:
    path = folder / "traffic.json"
    path.write_text(json.dumps({"log": {"version": "1.2", "entries": entries}}))
    return recorded.load(path)


def header(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


def test_an_entry_becomes_a_line(tmp_path: Path) -> None:
    """Names and kinds, never values; bytes as the archive counts them; times in UTC."""
    asked = {
        "method": "POST",
        "headers": [header("Authorization", "Bearer s3cret"), header("X-API-Key", "k"), header("Cookie", "a=b")],
        "postData": {"mimeType": "Application/JSON; charset=utf-8", "text": "{}"},
        "bodySize": 2,
    }
    found = archive(tmp_path, entry("https://Shop.example:443/v1/a%2Fb?page=1&secret", 201, request=asked))
    (line,) = found.lines.to_pylist()
    assert (line["method"], line["host"], line["path"], line["query_names"]) == (
        "POST", "shop.example", "/v1/a%2Fb", "*,page",
    )  # fmt: skip
    assert (line["status"], line["response_source"], line["auth_kinds"]) == (201, "upstream", "bearer,apikey,cookie")
    assert (line["request_content_type"], line["request_bytes"], line["response_bytes"]) == (
        "application/json",
        92,
        100,
    )
    assert line["log_unix_ns"] == 1_795_424_400_750_000_000
    assert "s3cret" not in str(line) and not found.flows.num_rows and not found.notes
    assert found.messages[0].request_body == b"{}"


def test_entries_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    """An aborted request, another scheme, no time, no mapping: the others stay."""
    bad = [entry(status=0), entry("data:text/plain,x"), {**entry(), "startedDateTime": "soon"}, 7, {}]
    found = archive(tmp_path, *bad, entry())
    assert found.lines.num_rows == 1 and len(found.messages) == 1
    assert "5 entries" in found.notes[0] and "credentials" in found.notes[1]


def test_line_numbers_lead_to_messages(tmp_path: Path) -> None:
    """Lines are in the order of time, and messages with them."""
    late = {**entry("http://a.example/late"), "startedDateTime": "2026-11-23T11:00:00Z"}
    found = archive(tmp_path, late, entry("http://a.example/early"))
    lines = {line["line_no"]: line["path"] for line in found.lines.to_pylist()}
    assert {number: m.url.rpartition("/")[2] for number, m in enumerate(found.messages, 1)} == {1: "early", 2: "late"}
    assert lines == {1: "/early", 2: "/late"}


def test_usage_lines_and_recorded_runs_are_known_by_what_they_hold(tmp_path: Path) -> None:
    """A usage batch called .har is still usage lines."""
    body = har.read(_saved(tmp_path, entry(), entry())).body
    disguised = tmp_path / "traffic.har"
    disguised.write_bytes(body + body)  # the same batch twice counts once
    found = recorded.load(disguised)
    assert (found.kind, found.lines.num_rows) == ("usage lines", 2)
    assert recorded.load(resources.folder("sample-run")).kind == "recorded run"


def _saved(folder: Path, *entries: Any) -> Path:
    path = folder / "saved"
    path.write_text(json.dumps({"log": {"entries": entries}}))
    return path


@pytest.mark.parametrize("content", ["", "{", "[]", '{"log": {}}', '{"apicost": 9}\n', "GET /\n", "\x00\x01"])
def test_what_is_neither_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    """No traceback, no silent nothing."""
    path = tmp_path / "x"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        recorded.load(path)
    assert str(path) in str(caught.value)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["url", "method", "httpVersion", "headers", "headersSize", "bodySize", "postData"])


@given(st.dictionaries(FIELDS, ANY), st.dictionaries(st.sampled_from(["status", "headers", "content"]), ANY), ANY)
def test_no_archive_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any], answered: dict[str, Any], time: Any
) -> None:
    """Whatever stands in an entry, it is a line or it is counted as left out; its neighbour is not touched."""
    strange = entry(request=asked, response=answered, time=time)
    path = tmp_path_factory.mktemp("har") / "x"
    path.write_text(json.dumps({"log": {"entries": [strange, entry()]}}))
    made = har.read(path)
    found = recorded.load(path)
    assert len(made.messages) + made.left_out == 2
    refused = sum("malformed" in note for note in found.notes)
    assert found.lines.num_rows + refused == len(made.messages) and found.lines.num_rows >= 1
