"""What in documents makes matching unsafe: each fault with a case that has it and one that has not."""

import itertools
import json
import re
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apicost import cli
from apicost.catalog import faults as faults_module
from apicost.catalog.faults import LINT_RULES
from apicost.catalog.lint import lint
from apicost.catalog.openapi import Source, load_apis
from apicost.core.conformance.finding import SEVERITIES
from tests.catalog.documents_made import openapi_documents
from tests.laws.slow_match import pattern_of

HEAD = 'openapi: 3.1.0\nservers: [{url: "https://s.example"}]\n'


@pytest.fixture
def write(tmp_path):
    def write(text, name="api.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text) if isinstance(text, str) else json.dumps(text))
        return path

    return write


def paths(*keys, method="get", server="https://s.example"):
    """A document with one operation for each key, with ids and declared parameters."""
    items = {}
    for number, key in enumerate(keys):
        names = [part.partition("}")[0] for part in key.split("{")[1:]]
        parameters = [{"name": name, "in": "path", "required": True} for name in names]
        items[key] = {method: {"operationId": f"op{number}", "parameters": parameters}}
    return {"openapi": "3.1.0", "servers": [{"url": server}], "paths": items}


def rules(*files):
    faults, _ = lint(files)
    return [(fault.rule, sorted(name for _, name in fault.operations)) for fault in faults]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (paths("/a", "/b/{x}"), []),
        (paths("/a/{x}", "/a/{y}"), [("spec-identical-templates", ["op0", "op1"])]),
        (paths("/a#one", "/a#two"), [("spec-identical-templates", ["op0", "op1"])]),
        (paths("/a?k=1", "/a?k=2"), []),
        # A literal is more specific than a parameter; only where each is so somewhere, a request may be meant for both.
        (paths("/a/{x}", "/a/b"), []),
        (paths("/a/{x}", "/{y}/b"), [("overlapping-templates", ["op0", "op1"])]),
        (paths("/a/{x}/c", "/{y}/b/d"), []),
        (paths("/a/{x}", "/{y}/b/c"), []),
        (paths("/a/{x}.json", "/a/{x}"), []),
        (paths("/a/{x}-z", "/a/z-{x}"), [("ambiguous-operation", ["op0", "op1"])]),
        (paths("/a/{x}.json", "/a/b{x}"), [("overlapping-templates", ["op0", "op1"])]),
        (paths("/a/b{x}", "/a/bc{x}"), []),
        (paths("/a/b{x}", "/a/c{x}"), []),
        (paths("/a/{x}.json/{y}", "/a/b/c", "/{z}/b/c"), []),
        (paths("/{x}/a/{y}", "/{x}/{y}/a"), [("overlapping-templates", ["op0", "op1"])]),
        (paths("/{x}{y}"), [("adjacent-parameters", ["op0"])]),
        (paths("/{x}-{y}"), []),
        (paths("/a", server="/v1"), [("server-mismatch", [])]),
        (paths("/a", server="//h/v1"), []),
        (paths("/a", server="https://{h}.example/v1"), []),
    ],
)
def test_templates_and_servers(write, document, expected):
    """Compared is what the matcher compares."""
    assert rules(write(document)) == expected


def test_templates_that_differ_in_their_methods_merge(write):
    """GitHub's document has three such pairs; nothing is unsafe about them."""
    document = paths("/a/{x}")
    document["paths"] |= paths("/a/{y}", method="post")["paths"]
    document["paths"]["/a/{y}"]["post"]["operationId"] = "other"
    assert rules(write(document)) == []


def test_ids_and_parameters(write):
    """Missing and duplicate ids; parameters that the template lacks, and that no one declares. Path items count."""
    path = write(
        HEAD
        + textwrap.dedent("""\
        paths:
          /a/{x}:
            parameters: [{$ref: "#/components/parameters/X"}]
            get: {operationId: same}
            post: {operationId: same, parameters: [{name: y, in: path, required: true}]}
          /b/{z}:
            put: {parameters: [{name: z, in: query}]}
        components: {parameters: {X: {name: x, in: path, required: true}}}
        """)
    )
    faults, problems = lint([path])
    assert problems == []
    assert [(fault.rule, fault.method, fault.place.rpartition(":")[2]) for fault in faults] == [
        ("duplicate-operation-id", "GET", "6"),
        ("unused-path-parameter", "POST", "7"),
        ("missing-operation-id", "PUT", "9"),
        ("undeclared-path-parameter", "PUT", "9"),
    ]


@pytest.mark.parametrize("said", ["", "servers: []\n", "servers: [{}]\n"])
def test_a_document_without_servers(write, said):
    """Its traffic can be anyone's."""
    path = write("openapi: 3.1.0\n" + said + "paths: {/a: {get: {operationId: a}}}\n")
    faults, _ = lint([path])
    assert [fault.rule for fault in faults] == (["no-servers"] if said != "servers: [{}]\n" else ["server-mismatch"])


def test_the_same_operation_in_two_documents(write):
    """Method, host and template decide, parameter names and base path aside; another host is another operation."""
    one = write(paths("/v1/a/{x}", "/v1/b"), "one.json")
    two = write(paths("/a/{y}", server="https://s.example/v1"), "two.json")
    far = write(paths("/v1/a/{x}", server="https://t.example"), "far.json")
    faults, _ = lint([one, two, far])
    assert [(fault.rule, fault.operations) for fault in faults] == [
        ("cross-spec-duplicate", (("two", "op0"), ("one", "op0")))
    ]
    assert "its requests count for 'two'" in faults[0].detail
    assert [name for _, name in faults[0].operations] == ["op0", "op0"]


def test_who_wins_is_who_the_matcher_takes(write):
    """The first named operation of a duplicate is the matcher's answer."""
    one, two = write(paths("/v1/a"), "one.json"), write(paths("/a", server="https://s.example/v1"), "two.json")
    for files in itertools.permutations([one, two]):
        faults, _ = lint(files)
        index = load_apis([Source(id=file.stem, documents=(file,)) for file in files]).index
        assert index.find("GET", "s.example", "/v1/a").api == faults[0].operations[0][0]


texts = st.sampled_from(["a", "b", "{p}", "{p}.j", "a{p}", "{p}-{q}", "ab"])
template_lists = st.lists(
    st.lists(texts, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts)),
    min_size=2,
    max_size=5,
    unique=True,
)


WORDS = ["a", "b", "ab", "x", "x.j", "a.j", "ax", "x-y", "a-b", "a-x.j", "x-y.j", "ax.j", "x.j-y"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(template_lists)
def test_two_templates_that_fit_one_path_are_told_unless_one_is_narrower(tmp_path, keys):
    """Against trying texts: a pair is a fault where some path fits both, and neither fits all that the other does."""
    path = tmp_path / "api.json"
    path.write_text(json.dumps(paths(*keys)))
    told = set()
    for fault in lint([path])[0]:
        first, *others = [name for _, name in fault.operations]
        if fault.rule in ("overlapping-templates", "ambiguous-operation"):
            told |= {frozenset((first, other)) for other in others}
        elif fault.rule == "spec-identical-templates":
            told |= set(map(frozenset, itertools.combinations((first, *others), 2)))
    fitting = [
        [{word for word in WORDS if re.fullmatch(pattern_of(f"/{part}"), word)} for part in key[1:].split("/")]
        for key in keys
    ]
    for one, other in itertools.combinations(range(len(keys)), 2):
        ours, theirs = fitting[one], fitting[other]
        if len(ours) == len(theirs):
            both = list(zip(ours, theirs, strict=True))
            narrower = all(a <= b for a, b in both), all(b <= a for a, b in both)
            crossing = all(a & b for a, b in both) and narrower not in ((True, False), (False, True))
        else:
            crossing = False
        assert (frozenset((f"op{one}", f"op{other}")) in told) is crossing, (keys[one], keys[other])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(openapi_documents())
def test_any_document_can_be_linted(tmp_path, document):
    """Nothing is raised, and every fault has a known rule and names a place."""
    path = tmp_path / "api.json"
    path.write_text(json.dumps(document))
    faults, _ = lint([path, path])
    assert all(fault.rule in LINT_RULES and fault.place.startswith(str(path)) for fault in faults)


def test_the_walk_is_bounded(write, monkeypatch):
    """Templates that all overlap end in one fault that says so."""
    monkeypatch.setattr(faults_module, "MAX_STEPS", 50)
    keys = ["/".join(["", *parts]) for parts in itertools.product(["a", "b", "{x}"], repeat=3)]
    found = [rule for rule, _ in rules(write(paths(*keys)))]
    assert found.count("too-many-overlaps") == 1


@pytest.mark.parametrize("severity", [*SEVERITIES, "never"])
def test_the_command(write, capsys, severity):
    """Exit code 1 from --fail-on on; JSON with every fault."""
    path = write(paths("/{x}{y}"))
    code = cli.main(["spec", "lint", str(path), "--format", "json", "--fail-on", severity])
    data = json.loads(capsys.readouterr().out)
    assert code == int(severity in ("warning", "info"))
    [fault] = data["faults"]
    assert (fault["rule"], fault["severity"]) == ("adjacent-parameters", "warning")
    assert fault["operations"] == [{"api": "api", "operation_id": "op0"}]
    assert fault["pointer"] == "/paths/~1{x}{y}/get" and data["documents"] == [str(path)]


def test_the_command_on_what_is_no_document(write, capsys, tmp_path):
    """Exit code 2, and the others are still judged."""
    good, bad = write(paths("/{x}{y}"), "good.json"), write("- 1\n", "bad.yaml")
    assert cli.main(["spec", "lint", str(bad), str(good), str(tmp_path / "none.yaml")]) == 2
    captured = capsys.readouterr()
    assert "adjacent-parameters" in captured.out and "1 faults: 1 warning" in captured.out
    assert "is not a mapping" in captured.err and "none.yaml" in captured.err


def test_an_unknown_action_is_a_usage_error(capsys):
    """`apicost spec` alone, and with a wrong word."""
    assert cli.main(["spec"]) == cli.main(["spec", "mend"]) == 2
    assert "lint" in capsys.readouterr().err
