"""Names in a journal: two never share an account, and text is read back as it was (apicost/report/journal_text.py)."""

import re

from beancount.core.account import is_valid
from beancount.parser import parser
from hypothesis import example, given
from hypothesis import strategies as st

from apicost.report.journal_text import account_part, quoted, shown

texts = st.text(st.characters(codec="utf-8"), max_size=30) | st.text("ax-XSs_.5", max_size=8)
NAMED = [("shop", "Shop"), ("2fa", "2fa"), ("egress-internet", "Egress-internet"), ("Shop", "Shop--")]


def name_of(part):
    """The inverse of `account_part`, written by its description."""
    body, prefixed = part.removesuffix("--x"), part.endswith("--x")
    capital = not prefixed and body.endswith("--")
    body = body.removesuffix("--") if capital else body
    body = re.sub("--([0-9a-f]+)-", lambda found: chr(int(found[1], 16)), body)
    if prefixed:
        return body[1:]
    return body if capital else body[0].lower() + body[1:]


def test_ordinary_names_are_legible():
    """A name of lower-case letters, digits and hyphens is itself, with a capital."""
    assert [account_part(name) for name, _ in NAMED] == [part for _, part in NAMED]


@given(texts)
@example("")
@example("-")
@example("a--")
@example("_")
@example("x_")
@example("x--5f-")
@example("Shop--x")
def test_an_account_part_tells_its_name(name):
    """Each name can be read back from its account part, so no two names share one; and the account is legal."""
    assert name_of(account_part(name)) == name
    assert is_valid(f"Expenses:Gateway:2026-10:{account_part(name)}")


@given(texts, texts)
def test_two_names_are_two_accounts(one, other):
    """Different names have different account parts, also where they differ in case alone or run into each other."""
    assert (account_part(one) == account_part(other)) is (one == other)
    joined, swapped = f"{account_part(one)}:{account_part(other)}", f"{account_part(other)}:{account_part(one)}"
    assert (joined == swapped) is (one == other)


@given(texts)
@example("\\u{a}")
@example("\\\\u{a}\n")
def test_text_is_read_back(text):
    """Beancount reads a quoted text as what is shown, one line long, and that can be turned back into the text."""
    source = f"2026-10-01 custom {quoted(text)} {quoted(text)}\n"
    assert source.count("\n") == 1
    entries, errors, _ = parser.parse_string(source, dedent=False)
    assert not errors
    assert entries[0].type == entries[0].values[0].value == shown(text)
    assert re.sub(r"\\u\{([0-9a-f]+)\}", lambda found: chr(int(found[1], 16)), shown(text)) == text
