"""Laws of matching, on generated catalogues and paths."""

import re
from urllib.parse import quote

from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core.naming.match import Api, Index
from tests.core.match_documents import place
from tests.laws.slow_match import Line, fits, segments_of, slow_find

# Few names, so that generated templates collide and generated paths hit them.
WORDS = st.sampled_from(["a", "b", "ab", "a.json", "x:go", "", "a b", "é"])
SEGMENTS = st.sampled_from(
    ["a", "b", "ab", "a%20b", "a.json", "{p}", "{q}", "{p}.json", "a{p}", "{p}b", "{p}:go", "{p}.{q}", "{+r}",
     "{+r}:go", "a{+r}", "%C3%A9"]
)  # fmt: skip
METHODS = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "DELETE"])
HOSTS = st.sampled_from(["", "", "s.example", "t.example", "*.example", "s.*"])
templates = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
slashed = st.builds(lambda t, slash: t + slash, templates, st.sampled_from(["", "", "", "/"]))
lines = st.builds(
    Line,
    api=st.just(""),
    method=METHODS,
    base=st.sampled_from(["", "", "/a", "/{v}", "/a/b"]),
    template=slashed,
    host=HOSTS,
    priority=st.just(0),
)


@st.composite
def catalogues(draw):
    """APIs with a priority each; every operation at one place, the order of the documents being the order of lines."""
    groups = draw(st.lists(st.lists(lines, min_size=1, max_size=4), min_size=1, max_size=3))
    out = []
    for number, group in enumerate(groups):
        priority = draw(st.integers(0, 1))
        out.extend(Line(f"api{number}", o.method, o.base, o.template, o.host, priority) for o in group)
    return out


raw_words = st.one_of(
    WORDS.map(lambda word: quote(word, safe=":")),
    WORDS.filter(bool).map(lambda word: "".join(f"%{byte:02X}" for byte in word.encode())),
    st.sampled_from(["a%2Fb", "%2e", "..", ".", "%ff", "%", "v.w", "a.b.json", "aab"]),
)
raw_paths = st.lists(raw_words, min_size=1, max_size=5).map(lambda parts: "/" + "/".join(parts))
request_hosts = st.sampled_from(["s.example", "S.Example:443", "t.example", "u.example", "other.test", ""])


def compiled(catalogue):
    apis = {}
    for line in catalogue:
        apis.setdefault(line.api, []).append(line)
    return Index(
        [
            Api(
                id=name,
                priority=own[0].priority,
                places=tuple(place(name, line.name, line.host, line.base) for line in own),
            )
            for name, own in apis.items()
        ]
    )


def quick_find(index, method, host, path):
    match = index.find(method, host, path)
    # Whose an undocumented path is comes from claims, not from templates: tests/core/test_match_bindings.py.
    api = None if match.state == "undocumented-path" else match.api
    return (match.state, api, match.operation and match.operation.operation_id, match.flags)


@settings(max_examples=400, deadline=None)
@given(catalogues(), st.lists(st.tuples(METHODS, request_hosts, raw_paths), min_size=1, max_size=8))
def test_the_index_answers_as_the_rules_read_straight(catalogue, requests):
    """Against a matcher without an index that tries every template (tests/laws/slow_match.py)."""
    index = compiled(catalogue)
    for request in requests:
        assert quick_find(index, *request) == slow_find(catalogue, *request), (catalogue, request)


@st.composite
def example_requests(draw):
    """An operation of a catalogue and a path made from its template."""
    catalogue = draw(catalogues())
    line = draw(st.sampled_from(catalogue))
    path = re.sub(r"\{[^}]*\}", lambda _: draw(st.sampled_from(["7", "z-1", "a%2Fb", "%20"])), line.path)
    return catalogue, line, path


@settings(max_examples=200, deadline=None)
@given(example_requests())
def test_a_path_made_from_a_template_is_documented(example):
    """The template it was made from fits, so the answer is that operation or one at least as good."""
    catalogue, line, path = example
    host = line.host.replace("*", "s") or "s.example"
    match = compiled(catalogue).find(line.method, host, path)
    assert match.state == "matched"
    assert "loose-match" not in match.flags


@settings(max_examples=200, deadline=None)
@given(catalogues(), st.randoms(use_true_random=False), METHODS, request_hosts, raw_paths)
def test_the_order_of_documents_decides_nothing_but_declared_ties(catalogue, random, method, host, path):
    """Where no tie is flagged, shuffled documents give the same answer."""
    match = quick_find(compiled(catalogue), method, host, path)
    if "ambiguous-operation" in match[3]:
        return
    shuffled = list(catalogue)
    random.shuffle(shuffled)
    again = quick_find(compiled(shuffled), method, host, path)
    if match[0] == "undocumented-method" or match[2] == "cors-preflight":
        # Equal templates of several APIs: whose it is was a tie between APIs, which only a method would flag.
        assert again[0] == match[0] and again[2] == match[2]
    else:
        assert again == match


@settings(max_examples=150, deadline=None)
@given(catalogues(), METHODS, raw_paths, st.data())
def test_percent_encoding_what_need_not_be_encoded_changes_nothing(catalogue, method, path, data):
    """RFC 3986, section 6.2.2.2: %61 is a."""
    letters = [at for at, c in enumerate(path) if c.isascii() and c.isalpha() and "%" not in path[max(0, at - 2) : at]]
    at = data.draw(st.sampled_from(letters)) if letters else None
    encoded = path if at is None else f"{path[:at]}%{ord(path[at]):02x}{path[at + 1 :]}"
    index = compiled(catalogue)
    assert quick_find(index, method, "s.example", encoded) == quick_find(index, method, "s.example", path)


@settings(max_examples=150, deadline=None)
@given(catalogues(), METHODS, raw_paths)
def test_a_concrete_template_wins_over_all_templated_ones(catalogue, method, path):
    """Under the same host, where a template without parameters fits and documents the method, it is the answer."""
    everywhere = [Line(o.api, o.method, o.base, o.template, "", 0) for o in catalogue]
    segments = segments_of(path)
    concrete = {o.name for o in everywhere if "{" not in o.path and o.method == method and fits(o.path, segments)}
    match = compiled(everywhere).find(method, "s.example", path)
    if concrete:
        assert match.operation.operation_id in concrete


@settings(max_examples=100, deadline=None)
@given(catalogues(), st.lists(st.tuples(METHODS, request_hosts, raw_paths), max_size=30))
def test_a_batch_answers_as_one_by_one(catalogue, requests):
    """Whatever repeats, and in whatever order."""
    index = compiled(catalogue)
    methods, hosts, paths = map(list, zip(*requests, strict=True)) if requests else ([], [], [])
    batch = index.find_batch(methods, hosts, paths)
    assert [batch.matches[code] for code in batch.codes.tolist()] == [index.find(*request) for request in requests]
