"""Templates inferred from paths: what is a value, what it is called, and that each path fits its own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core.conformance.contract import Former
from apicost.core.conformance.fold import fold
from apicost.core.conformance.infer import MANY, SELDOM, TOO_MANY, Inference, Parameter
from apicost.core.conformance.templates import Templates
from apicost.core.naming.paths import PARAMETER, parse_template

WORDS = [f"{a}{b}" for a in ("lion", "wolf", "bear", "deer", "goat", "crow") for b in "abcdefghijklmnopqrstuvwxyz"]


def inferred(*paths, documented=(), calls=None):
    return Inference(documented)(paths, calls)


def test_markers_are_parameters_named_by_the_word_before_them():
    """In singular; a second one of the same name has a number; their kind is their type."""
    (found,) = Inference().templates(["/orders/{int}/entries/{uuid}/{date}"])
    assert found.text == "/orders/{orderId}/entries/{entryId}/{id}"
    assert found.parameters == (
        Parameter("orderId", "integer"),
        Parameter("entryId", "string", "uuid"),
        Parameter("id", "string", "date"),
    )
    assert inferred("/a/{int}/a/{int}") == ["/a/{aId}/a/{aId2}"]
    assert inferred("/order-items/{int}", "/boxes/{int}", "/status/{int}") == [
        "/order-items/{orderItemId}",
        "/boxes/{boxId}",
        "/status/{statusId}",
    ]


def test_a_word_alone_stays_a_word():
    """A template too wide hides an endpoint: some words, a version, and what an API is made of."""
    paths = ["/v2/oauth2/token", "/v2/users/search", "/v2/users/me", "/v2/users/export.csv"]
    assert inferred(*paths) == paths


def test_values_beside_each_other_are_a_parameter():
    """Three that look like values, or one beside a marker; words beside them stay."""
    assert inferred("/u/a1", "/u/b-2", "/u/c@x", "/u/me") == ["/u/{uId}", "/u/{uId}", "/u/{uId}", "/u/me"]
    assert inferred("/u/{int}", "/u/a1", "/u/me") == ["/u/{uId}", "/u/{uId}", "/u/me"]
    assert inferred("/u/a1", "/u/b-2") == ["/u/a1", "/u/b-2"]
    assert inferred("/f/a1.csv", "/f/b2.csv", "/f/c3.csv") == ["/f/{fId}.csv"] * 3
    assert inferred("/f/a1.csv", "/f/b2.json", "/f/c3") == ["/f/{fId}"] * 3


def test_many_words_are_values_where_they_are_seldom_or_go_on_alike():
    """Words that an API is made of are called often, and go on each in its own way."""
    names = WORDS[:MANY]
    seldom, often = [SELDOM] * MANY, [SELDOM + 1] * MANY
    assert set(inferred(*(f"/u/{name}" for name in names), calls=seldom)) == {"/u/{uId}"}
    assert set(inferred(*(f"/u/{name}" for name in names), calls=often)) == {f"/u/{name}" for name in names}
    assert set(inferred(*(f"/u/{name}/inbox" for name in names), calls=often)) == {"/u/{uId}/inbox"}
    own = [f"/u/{name}/{WORDS[50 + n]}" for n, name in enumerate(names)]
    assert inferred(*own, calls=often) == own
    assert inferred(*(f"/u/{name}" for name in names[1:]), calls=seldom[1:]) == [f"/u/{name}" for name in names[1:]]


def test_the_documents_come_first():
    """Their parameter, by its name, and their literal text beside it; what stands beside mixed segments is no rule."""
    known = ("/v1/users/{user}", "/v1/users/me/keys", "/v1/files/{name}.json")
    assert inferred("/v1/users/anna/notes/{int}", documented=known) == ["/v1/users/{user}/notes/{noteId}"]
    assert inferred("/v1/users/me/notes", documented=known) == ["/v1/users/me/notes"]
    twice = ("/v1/users/{who}", "/v1/users/{id}/x")
    assert inferred("/v1/users/1/y", documented=twice) == inferred("/v1/users/1/y", documented=twice[::-1])
    assert inferred("/v1/files/notes", documented=known) == ["/v1/files/notes"]
    (found,) = Inference(known).templates(["/v1/users/{int}"])
    assert found.parameters == (Parameter("user", "integer", documented=True),)


def test_a_marker_is_the_literal_that_folds_to_it():
    """A base path such as "/2010-04-01" comes as {date}; of two such nobody knows, and a parameter takes either."""
    assert inferred("/{date}/calls", documented=["/2010-04-01/accounts"]) == ["/2010-04-01/calls"]
    assert inferred("/{date}/calls", documented=["/2010-04-01/a", "/2011-04-01/a"]) == ["/{id}/calls"]
    assert inferred("/{date}/calls", documented=["/2010-04-01/a", "/{day}"]) == ["/{day}/calls"]


def test_braces_of_clients_are_no_parameters():
    """They are written as what they stand for."""
    assert inferred("/a/{x", "/b/x}y{int}") == ["/a/%7Bx", "/b/x%7Dy%7Bint%7D"]


SEGMENTS = st.one_of(
    st.sampled_from(["users", "orders", "me", "v1", "", "2010-04-01", "a1", "b2", "c3", "x.csv", "{int}", "{date}"]),
    st.sampled_from(WORDS[:30]),
    st.text(st.characters(blacklist_characters="/?#", blacklist_categories=["Cs"]), max_size=4),
)  # fmt: skip
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: fold("/" + "/".join(parts)))
CALLED = st.lists(st.tuples(PATHS, st.integers(1, 9)), min_size=1, max_size=40, unique_by=lambda one: one[0])
DOCUMENTED = st.lists(
    st.lists(st.sampled_from(["users", "orders", "{p}", "{q}", "v1", "2010-04-01", "{n}.json"]), min_size=1, max_size=4)
    .map(lambda parts: "/" + "/".join(parts)), max_size=4,
)  # fmt: skip


@settings(deadline=None)
@given(CALLED, DOCUMENTED)
def test_each_path_fits_its_own_template(called, documented):
    """By the rules that the judge and the matcher find operations by."""
    paths = [path for path, _ in called]
    for path, template in zip(paths, Inference(documented).templates(paths, [n for _, n in called]), strict=True):
        former = Former(api="a", operation_id="", method="GET", path_template=template.text, spec="", pointer="")
        assert Templates([former]).fitting(path, lambda _: True), (path, template.text)
        names = [parameter.name for parameter in template.parameters]
        assert len(set(names)) == len(names)
        assert sum(len(s.pieces) - 1 for s in parse_template(template.text).segments) == len(names)


@settings(deadline=None)
@given(CALLED, DOCUMENTED, st.randoms(use_true_random=False))
def test_the_order_of_paths_changes_nothing(called, documented, random):
    """Nor that of the documented templates."""
    before = dict(zip([p for p, _ in called], Inference(documented)(*zip(*called, strict=True)), strict=True))
    random.shuffle(called)
    random.shuffle(documented)
    assert dict(zip([p for p, _ in called], Inference(documented)(*zip(*called, strict=True)), strict=True)) == before


@settings(deadline=None, max_examples=25)
@given(
    st.integers(TOO_MANY, len(WORDS)), st.lists(st.sampled_from(["a", "b", "{int}"]), max_size=2), st.integers(1, 1_000)
)
def test_no_literal_is_kept_among_too_many(count, behind, calls):
    """However often each is called, and whatever follows it."""
    paths = [
        "/".join(["/u", word, *behind, *(["own" + word] if n % 2 else [])]) for n, word in enumerate(WORDS[:count])
    ]
    for template in Inference()(paths, [calls] * count):
        assert parse_template(template).segments[1].rank == PARAMETER
