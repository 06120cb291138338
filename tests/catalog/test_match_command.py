"""`apicost match`: the JSON lines that scripts rely on."""

import io
import json
from pathlib import Path

import pytest

from apicost import cli

SPECS = Path(__file__).parents[2] / "specs"
SHOP, MEDIA = str(SPECS / "shop.yaml"), str(SPECS / "media.yaml")


@pytest.fixture
def run(capsys, monkeypatch):
    def run(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            code = cli.main(["match", *map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


def test_a_matched_request(run):
    """Exactly these keys, in this order."""
    code, [line], err = run("--spec", SHOP, "GET", "https://shop.example/v1/orders/17/?x=1")
    assert (code, err) == (0, "")
    assert list(line.items()) == [
        ("api", "shop"),
        ("operation_id", "getOrder"),
        ("method", "GET"),
        ("path_template", "/v1/orders/{orderId}"),
        ("spec", SHOP),
        ("flags", ["loose-match"]),
    ]


@pytest.mark.parametrize(
    ("method", "url", "state"),
    [
        ("GET", "http://shop.example/v1/nothing", "undocumented-path"),
        ("PATCH", "http://shop.example/v1/orders", "undocumented-method"),
        ("GET", "http://other.example/v1/orders", "unknown-host"),
    ],
)
def test_an_unmatched_request_is_an_answer_too(run, method, url, state):
    """One key, and exit code 0: the question was answered."""
    assert run("--spec", SHOP, "--spec", MEDIA, method, url) == (0, [{"unmatched": state}], "")


def test_a_batch_has_one_line_for_each_request_in_order(run, tmp_path):
    """From a file and from standard input."""
    lines = "get http://shop.example/v1/orders\nPUT http://media.example/files/a%2Fb\nGET http://x/\n" * 3
    expected = ["listOrders", "uploadFile", "unknown-host"] * 3
    file = tmp_path / "requests"
    file.write_text(lines)
    for source, stdin in ((file, ""), ("-", lines)):
        code, out, _ = run("--spec", SHOP, "--spec", MEDIA, "--batch", source, stdin=stdin)
        assert code == 0
        assert [line.get("operation_id") or line.get("unmatched") for line in out] == expected


def test_a_line_that_is_no_request_keeps_its_place_and_is_named(run):
    """Line N of the output answers line N of the input; exit code 2."""
    code, out, err = run("--spec", SHOP, "--batch", "-", stdin="GET\nGET http://shop.example/v1/orders\nGET x\n")
    assert code == 2
    assert ["error" in line for line in out] == [True, False, True]
    assert "-:1:" in err and "-:3:" in err


def test_a_bad_document_is_reported_and_does_not_stop_the_others(run, tmp_path):
    """File and place on standard error, answers on standard output."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("openapi: 3.1.0\npaths: [")
    code, [line], err = run("--spec", bad, "--spec", SHOP, "GET", "http://shop.example/v1/products")
    assert (code, line["operation_id"]) == (0, "listProducts")
    assert f"{bad}:" in err and "effect:" in err and "fix:" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["GET", "/a"],
        ["--spec", SHOP],
        ["--spec", SHOP, "GET"],
        ["--spec", SHOP, "GET", "no-url"],
        ["--spec", "missing.yaml", "GET", "/a"],
        ["--spec", SHOP, "--batch", "missing.txt"],
        ["--spec", SHOP, "--batch", "-", "GET", "/a"],
        ["--config", "missing.yaml", "GET", "/a"],
    ],
)
def test_what_can_not_be_answered_exits_with_2(run, arguments):
    """Nothing on standard output, a reason on standard error."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, [])
    assert err


def test_documents_of_one_name_are_told_apart(run, tmp_path):
    """a/openapi.yaml and b/openapi.yaml are openapi and openapi-2; a bare path is on any host."""
    for folder, path in (("a", "/one"), ("b", "/two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "openapi.yaml").write_text(f"openapi: 3.1.0\npaths: {{{path}: {{get: {{}}}}}}")
    specs = ["--spec", tmp_path / "a" / "openapi.yaml", "--spec", tmp_path / "b" / "openapi.yaml"]
    assert run(*specs, "GET", "/one")[1][0]["api"] == "openapi"
    assert run(*specs, "GET", "http://any.example:8080/two")[1][0]["api"] == "openapi-2"


def test_an_ambiguous_answer_names_the_alternatives(run, tmp_path):
    """So that its reader can tell which documents overlap."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("openapi: 3.1.0\npaths: {/a: {get: {operationId: get}}}")
    _, [line], _ = run("--spec", tmp_path / "one.yaml", "--spec", tmp_path / "two.yaml", "GET", "/a")
    assert line["flags"] == ["ambiguous-operation"]
    assert line["alternatives"] == ["two:get"]


def test_bindings_of_a_configuration(run, tmp_path):
    """-c takes the APIs of apicost.yaml; --route-id, --service-id and --upstream-path say the rest of a usage line."""
    (tmp_path / "apicost.yaml").write_text(
        f"apis:\n- id: shop\n  documents: [{SHOP}]\n  route_ids: [r1]\n  path_seen: upstream\n"
    )
    config = ["-c", tmp_path / "apicost.yaml"]
    _, [line], _ = run(*config, "--route-id", "r1", "--upstream-path", "/v1/orders", "GET", "http://10.0.0.1/x")
    assert (line["api"], line["operation_id"]) == ("shop", "listOrders")
    assert run(*config, "GET", "http://10.0.0.1/v1/orders")[1] == [{"unmatched": "unknown-host"}]


def test_help_shows_examples(run, capsys):
    """What a newcomer needs to begin."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["match", "--help"])
    assert ended.value.code == 0
    assert "apicost match --spec shop.yaml GET" in capsys.readouterr().out
