"""The PDF: the page's text on A4, the same bytes for the same page, and nothing from outside it."""

import subprocess

import pytest

from apicost.problems import InputError
from apicost.report import pdf

PAGE = "<html lang='en'><p>52.27 EUR for shop</p><svg viewBox='0 0 200 20'><text x='1' y='15'>Oct</text></svg></html>"


def text_of(document, tmp_path):
    """The text of a PDF as a reader's program finds it."""
    file = tmp_path / "page.pdf"
    file.write_bytes(document)
    return subprocess.run(["pdftotext", "-layout", file, "-"], check=True, capture_output=True, text=True).stdout


def test_the_pdf_says_what_the_page_says(tmp_path):
    """Text of the page and of its drawings is text in the PDF, not a picture."""
    assert {"52.27 EUR for shop", "Oct"} <= {line.strip() for line in text_of(pdf.pdf(PAGE), tmp_path).splitlines()}


def test_the_same_page_gives_the_same_bytes():
    """No time of the run and no random identity is in the file; another page is another file."""
    assert pdf.pdf(PAGE) == pdf.pdf(PAGE)
    assert pdf.pdf(PAGE) != pdf.pdf(PAGE.replace("52", "53"))


@pytest.mark.parametrize("outside", ["file:///etc/hostname", "http://198.18.0.1/x.png"])
def test_a_page_that_asks_for_more_is_refused(outside):
    """Nothing is fetched while the PDF is made, from the network or from this machine's files."""
    with pytest.raises(ValueError, match="not self-contained"):
        pdf.pdf(f"<p>x</p><img src='{outside}'>")


def test_a_machine_without_text_layout_says_what_to_install(monkeypatch):
    """Where Pango is missing there is no traceback but the packages' names, and whoever asks before is told why."""
    monkeypatch.setattr("builtins.__import__", no_pango(__import__))
    assert "libpango" in (pdf.why_not() or "")
    with pytest.raises(InputError, match="install Debian's libpango"):
        pdf.pdf(PAGE)


def no_pango(load):
    """An import that fails as WeasyPrint's does without the library."""

    def failing(name, *arguments, **named):
        if name == "weasyprint":
            raise OSError("cannot load library 'libpango-1.0-0'\nmore")
        return load(name, *arguments, **named)

    return failing
