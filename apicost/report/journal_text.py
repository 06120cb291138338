"""Names and text as Beancount takes them: parts of accounts, and strings.

Rules of this file:
- An account part is ASCII and made so that the name can be read back from it: two names never share one.
- A string keeps every character that can be seen; the others are written as \\u{HEX}, so that no name that came with
  a request breaks a line, turns the direction of writing or moves a terminal's cursor.
"""

from __future__ import annotations

import string
import unicodedata

_PLAIN = frozenset(string.ascii_letters + string.digits)
# Categories of Unicode: control, format (zero width, direction), surrogates, line and paragraph separators.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def account_part(name: str) -> str:
    """A name as one part of an account, legal in Beancount and never that of another name.

    Letters, digits and single hyphens stand as they are, the first letter in upper case; any other character is
    --HEX-. At the end `--` says that the name itself begins with a capital, `--x` that an X was put before a name that
    begins with something else than a letter or digit.
    """
    if not name or name[0] not in _PLAIN:
        return _escaped("X" + name) + "--x"
    if name[0].isupper():
        return _escaped(name) + "--"
    return _escaped(name[0].upper() + name[1:])


def _escaped(name: str) -> str:
    following = [*name[1:], ""]
    return "".join(
        c if c in _PLAIN or (c == "-" and after in _PLAIN) else f"--{ord(c):x}-"
        for c, after in zip(name, following, strict=True)
    )


def shown(text: str) -> str:
    """Text with every character that can't be seen as \\u{HEX}; two texts are never shown alike."""
    text = text.replace("\\u{", "\\u{5c}u{")
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in _UNSEEN else c for c in text)


def quoted(text: str) -> str:
    """A Beancount string."""
    return '"' + shown(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
