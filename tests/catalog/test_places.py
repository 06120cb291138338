"""Where values of a document stand."""

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from apicost.catalog import documents
from apicost.catalog.openapi import Source, load_apis

keys = st.text(st.sampled_from('ab"\\/{}[],: é\n'), max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def pointers(value, here=()):
    """Every place in a value."""
    yield here
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in pairs:
        yield from pointers(below, (*here, key))


@given(st.dictionaries(keys, values, min_size=1, max_size=3), st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_lines_of_json_are_those_of_its_tree(tmp_path_factory, data, indent, ascii_only):
    """Against a parser that keeps the place of each value; keys and texts may look like JSON themselves."""
    path = tmp_path_factory.getbasetemp() / "places.json"
    raw = json.dumps(data, indent=indent, ensure_ascii=ascii_only).encode()
    every = list(pointers(data))
    lines = [int(place.rpartition(":")[2]) for place in documents.places(path, raw, every)]
    if indent == "\t" or b"\\/" in raw:
        return  # which is no YAML
    tree = yaml.compose(raw, Loader=documents._Loader)
    assert lines == [documents._line(tree, pointer) for pointer in every]


def test_the_nearest_place_that_exists_is_given(tmp_path):
    """A pointer that leads nowhere ends where it last led, in JSON of any size."""
    raw = b'\xef\xbb\xbf{\n "a": [\n  1,\n  {"b": 2}\n ]\n}' + b" " * documents.LINES_UP_TO_BYTES
    wanted = [("a", 1, "b"), ("a", 7), ("a", 1, "none", "deeper"), ("none",), ()]
    found = documents.places(tmp_path / "x.json", raw, wanted)
    assert [int(place.rpartition(":")[2]) for place in found] == [4, 2, 4, 1, 1]


def test_text_that_only_begins_like_json_is_yaml(tmp_path):
    """A flow mapping without quotes."""
    assert documents.places(tmp_path / "x.yaml", b"{a: 1,\n b: 2}", [("b",)]) == [f"{tmp_path}/x.yaml:2"]


def test_hosts_with_the_same_operations_share_what_is_compiled(tmp_path):
    """Mirrors and regions cost nothing: one trie and one place for all of them."""
    path = tmp_path / "api.json"
    servers = [{"url": f"https://{name}.example/v1"} for name in "abc"]
    path.write_text(json.dumps({"openapi": "3.1.0", "servers": servers, "paths": {"/x": {"get": {}}}}))
    index = load_apis([Source(id="api", documents=(path,))]).index
    [place] = index.apis[0].places
    assert [host.pieces for host in place.hosts] == [("a.example",), ("b.example",), ("c.example",)]
    roots = {id(index._default.resolve(f"{name}.example").targets[0].root) for name in "abc"}
    assert len(roots) == 1


def test_a_document_full_of_doubles_is_told_so_once(tmp_path):
    """The first are named, the rest counted."""
    path = tmp_path / "api.json"
    paths = {f"/x#{number}": {"get": {"operationId": f"o{number}"}} for number in range(50)}
    path.write_text(json.dumps({"openapi": "3.1.0", "paths": paths}))
    facts = [problem.fact for problem in load_apis([Source(id="api", documents=(path,))]).problems]
    assert len(facts) == 6 and facts[-1] == "has 44 more operations or ids that stand twice"
