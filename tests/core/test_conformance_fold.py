"""What folding makes of single paths, and what it promises of all."""

import re
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apicost.core.conformance.fold import LONGEST, MOST_SEGMENTS, fold, fold_all, printable
from apicost.core.naming import paths

FOLDED = {
    "17": "{int}",
    "-5": "{int}",
    "0" * 100: "{int}",
    "3F2504E0-4F89-11D3-9A0C-0305E82C3301": "{uuid}",
    "%7B3f2504e0-4f89-11d3-9a0c-0305e82c3301%7D": "{uuid}",
    "507f1f77bcf86cd799439011": "{hex}",
    "sha256:" + "a1" * 32: "{hex}",
    "0x1234abcd": "{hex}",
    "a" * 16: "{hex}",
    "2026-11-07": "{date}",
    "2026-11": "{date}",
    "2026-11-07T12:00:00.123Z": "{date}",
    "20261107T120000+0100": "{date}",
    "2026-11-07%2012:00": "{date}",
    "ann@example.com": "{email}",
    "ann%40mail.example.com": "{email}",
    "192.0.2.1": "{ip}",
    "192.0.2.1:8080": "{ip}",
    "2001:db8::1": "{ip}",
    "[2001:db8::1]:443": "{ip}",
    "fe80::1%25eth0": "{ip}",
    "W3Jhbmdlcl9vYmplY3Q0NTY": "{token}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U": "{token}",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV": "{token}",
    "x" * 65: "{long}",
    "%C3%A9" * 11: "{long}",
}
KEPT = (
    "", "users", "v1", "12abc", "1.5", "1.2.3-rc1", "2026-13", "999.1.1.1", "deadbeef", "caf%C3%A9", "a%2Fb", "a+b",
    "getOrderByCustomerIdV2", "MyComponentHTTPServer2Handler", "Release-Notes-For-2026-Part-2", "x" * 64, "g" * 16,
    "a@b", "::", "{int}", "{more}",
)  # fmt: skip


@pytest.mark.parametrize(("segment", "wanted"), FOLDED.items())
def test_what_names_one_thing_is_folded(segment, wanted):
    """Numbers, UUIDs, hashes, dates, addresses and tokens become their kind, encoded or not."""
    assert fold(f"/things/{segment}/parts") == f"/things/{wanted}/parts"


@pytest.mark.parametrize("segment", [s for s in KEPT if s != "::"])
def test_what_may_be_a_word_stays_as_it_was_sent(segment):
    """Words, versions, short hex and names with numbers in them are literals for all that is known."""
    assert fold(f"/things/{segment}/parts") == f"/things/{segment}/parts"


def test_paths_are_brought_into_the_matchers_form():
    """Dot segments go, encoded or not; double slashes, trailing slashes and case stay; a query is cut off."""
    assert fold("/a/../B/%2e%2E/c//./d/?x=1#y") == "/c//d/"
    assert fold("/a/..") == "/" and fold("/") == "/" and fold("") == ""


def test_what_is_no_path_is_folded_too():
    """`OPTIONS *` and the authority of CONNECT have no slash in front."""
    assert (fold("*"), fold("backend:443"), fold("192.0.2.1:443")) == ("*", "backend:443", "{ip}")


def test_long_paths_end_in_more():
    """The 25th segment and what follows it are one."""
    assert fold("/a" * 24) == "/a" * 24
    assert fold("/a" * 25) == fold("/a" * 900) == "/a" * 24 + "/{more}"


def test_nothing_that_cannot_be_shown_gets_through():
    """Control characters, line separators and marks that turn text round are percent-encoded."""
    assert fold("/a\x00b\n/\x85\u2028\u202e") == "/a%00b%0A/%C2%85%E2%80%A8%E2%80%AE"


_pieces = st.one_of(
    st.sampled_from([*FOLDED, *KEPT, ".", "..", "%2e", "%", "%zz", "\u202e", "\x7f", "Ab1" * 7]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=70),
    st.from_regex(r"[A-Za-z0-9+_.:@%=-]{0,70}", fullmatch=True),
)
any_path = st.lists(_pieces, max_size=30).map(lambda parts: "/" + "/".join(parts)) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=80
)


@given(any_path)
@example("/" + "a@" + "b." * 30_000)
@example("/" + "aA" * 40_000 + "1!")
def test_a_folded_path_is_short_printable_and_final(path):
    """Whatever was sent: bounded, without control characters, and the same when folded again."""
    folded = fold(path)
    assert len(folded) <= LONGEST and folded.isprintable()
    assert fold(folded) == folded
    assert folded.count("/") <= MOST_SEGMENTS + 1


@given(st.lists(any_path, max_size=9))
@example(["/1111111111111111/2222222222222222/3"])
@example(
    ["/{}/{}".format(*["3F2504E0-4F89-11D3-9A0C-0305E82C3301"] * 2), "/deadbeefdeadbeef/deadbeefdeadbeef\n", "/1\n"]
)
def test_a_column_is_folded_as_its_paths_are(few):
    """Folding many at once is folding each, few or thousands."""
    for some in (few, [*few, *(f"/{n:x}/{n}/{n}/{n:016x}/{n:016x}" for n in range(99))]):
        places, folded = fold_all(pa.array(some, pa.string()))
        assert [folded[place] for place in places] == [fold(path) for path in some]


@given(st.lists(_pieces.filter(lambda s: not re.search("[/?#]", s)), min_size=1, max_size=20))
def test_segments_stay_in_their_places(parts):
    """As many segments as the matcher sees, and those that stay decode to what it sees."""
    path = "/" + "/".join(parts)
    seen, kept = paths.split_path(path), paths.split_path(fold(path))
    assert len(seen) == len(kept)
    for before, after in zip(seen, kept, strict=True):
        assert after == before or (after.startswith("{") and after.endswith("}")) or not before.isprintable()


@given(st.text(max_size=20))
def test_encoding_changes_no_kind(text):
    """A segment is folded as its decoded text is: percent-encoding all of it hides nothing."""
    kinds = {"{int}", "{uuid}", "{hex}", "{date}", "{email}", "{ip}", "{token}"}
    plain, encoded = fold("/" + quote(text, safe="")), fold("/" + "".join(f"%{b:02X}" for b in text.encode()))
    assert plain == encoded or not {plain[1:], encoded[1:]} & kinds


def test_printable_text_is_untouched():
    """Spaces and letters of any script are printable."""
    assert printable("é 日本") == "é 日本"
