"""Whether OpenAPI documents are valid, by openapi-spec-validator, in a process of its own.

Rules of this file:
- The daemon's process never imports the validator: it takes hundreds of MB and seconds on a large document.
- A document that is not valid is still used for what can be read of it; this says what is wrong.
- Nothing is fetched: a reference to another machine is a problem, files below the document's folder are read.
"""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from apicost.catalog import documents
from apicost.problems import InputError, Problem

MAX_PROBLEMS = 50  # per document
MAX_FACT_CHARS = 300
CHILD_BYTES = 4 << 30
SECONDS_PER_DOCUMENT = 300  # GitHub's document takes 20 s

EFFECT = "its requests are matched and counted all the same; what depends on this part may be missing"


def validate_documents(files: Sequence[Path]) -> list[Problem]:
    """What openapi-spec-validator finds wrong in OpenAPI documents, file by file.

    Runs a child process for each; takes seconds for a large document. Nothing is raised.
    """
    return [problem for file in files for problem in _validated(Path(file))]


def _validated(file: Path) -> list[Problem]:
    command = [sys.executable, "-m", "apicost.catalog.validate", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_PER_DOCUMENT, check=False)
    except subprocess.TimeoutExpired:
        return [_unchecked(file, f"took longer than {SECONDS_PER_DOCUMENT} s to validate")]
    try:
        return msgspec.json.decode(done.stdout, type=list[Problem])
    except msgspec.DecodeError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return [_unchecked(file, f"validation ended with {done.returncode}: {''.join(last)[:MAX_FACT_CHARS]}")]


def _unchecked(file: Path, fact: str) -> Problem:
    return Problem(place=str(file), fact=fact, effect="the document was not validated", fix="split the document")


def main() -> int:
    """The child: validate argv[1] under limits, print the problems as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    path = Path(sys.argv[1])
    try:
        problems = list(itertools.islice(_problems(path), MAX_PROBLEMS))
    except InputError as error:
        problems = list(error.problems)
    sys.stdout.buffer.write(msgspec.json.encode(problems))
    return 0


def _problems(path: Path) -> Iterator[Problem]:
    from jsonschema.exceptions import best_match
    from jsonschema_path import SchemaPath
    from openapi_spec_validator.shortcuts import get_validator_cls
    from openapi_spec_validator.validation.exceptions import ValidatorDetectError

    raw = documents.read_bytes(path)
    data = documents.whole(raw, str(path))
    if not isinstance(data, dict):
        fact = "is not a mapping"
        yield Problem(place=str(path), fact=fact, effect="it is not used", fix="write an OpenAPI document")
        return
    try:
        validator = get_validator_cls(data)
    except ValidatorDetectError:
        fact = "names no OpenAPI version that can be validated"
        yield Problem(place=str(path), fact=fact, effect=EFFECT, fix="write such as 'openapi: 3.1.0' at the top")
        return
    tree = SchemaPath.from_dict(data, base_uri=path.resolve().as_uri(), handlers=Handlers(path))
    checks = validator(tree)
    # The two halves of its iter_errors(), apart: where the second fails on a reference, the first has still spoken.
    schema_errors = checks.schema_validator.iter_errors(data)
    for errors in (schema_errors, checks.root_validator(checks.schema_path)):
        try:
            for error in errors:
                worst = best_match([error]) or error
                fact = " ".join(str(worst.message).split())[:MAX_FACT_CHARS]
                where = tuple(worst.absolute_path)
                fix = f"write it as OpenAPI {data.get('openapi') or data.get('swagger')} says"
                [place] = documents.places(path, raw, [where])
                yield Problem(place=place, fact=fact, effect=EFFECT, fix=fix)
        except Exception as error:  # it raises whatever its libraries do on a reference that can't be followed
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_FACT_CHARS]
            fact = f"can't be validated further: {reason}"
            yield Problem(place=str(path), fact=fact, effect=EFFECT, fix="mend what it names")


class Handlers(dict[str, Any]):
    """How the libraries may read what a document refers to: files below its folder, and nothing else.

    They fetch by themselves what no handler is named for, so this one answers for every scheme.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(file=_Below(path))

    def __contains__(self, scheme: object) -> bool:
        return True

    def __missing__(self, scheme: str) -> Any:
        return _refuse


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri!r} leads to another machine, and nothing is fetched")


class _Below:
    """Reads referred files below the document's folder."""

    def __init__(self, root: Path) -> None:
        self.folder = root.resolve().parent

    def __call__(self, uri: str) -> Any:
        target = Path(unquote(urlsplit(uri).path)).resolve()
        if not target.is_relative_to(self.folder):
            raise ValueError(f"{uri!r} leads out of the folder {str(self.folder)!r}")
        try:
            return documents.whole(documents.read_bytes(target), str(target))
        except InputError as error:
            raise ValueError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
