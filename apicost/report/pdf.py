"""The report's page as a PDF: the same HTML, laid out for A4 by WeasyPrint.

Rules of this file:
- Nothing is fetched: a page that asks for anything outside itself is refused.
- No clock and no random identity: the same page with the same fonts gives the same bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any

from apicost.problems import InputError, Problem

PLACE = "the PDF"


def pdf(html: str) -> bytes:
    """A self-contained page as a PDF, by its print style.

    Raises InputError where the text layout library (Pango) is missing, ValueError where the page asks for anything
    outside itself.
    """
    weasyprint = _layout()
    identity = hashlib.blake2b(html.encode(), digest_size=16).hexdigest().encode()
    nothing = weasyprint.urls.URLFetcher(allowed_protocols=(), fail_on_errors=True)
    try:
        page = weasyprint.HTML(string=html, url_fetcher=nothing)
        return bytes(page.write_pdf(pdf_identifier=identity, pdf_tags=True))
    except weasyprint.urls.FatalURLFetchingError as failure:
        raise ValueError(f"the page is not self-contained: {failure}") from None


def why_not() -> str | None:
    """Why no PDF can be made on this machine; None where one can."""
    try:
        _layout()
    except InputError as failure:
        return failure.problems[0].fact
    return None


def _layout() -> Any:
    """WeasyPrint, which needs the system's Pango. Raises InputError."""
    try:
        import weasyprint
    except OSError as failure:  # the Python package is there, the system's library is not
        raise InputError([Problem(
            place=PLACE, fact=f"no text layout: {str(failure).splitlines()[0]}",
            effect="no PDF is written",
            fix="install Debian's libpango-1.0-0, libpangoft2-1.0-0 and libharfbuzz-subset0",
        )]) from None  # fmt: skip
    return weasyprint
