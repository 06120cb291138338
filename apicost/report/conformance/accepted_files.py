"""Baselines: files of findings that are known. JSON, one line a finding, so that a finding more is a line more."""

from __future__ import annotations

import json
import re
from pathlib import Path

from apicost import durable
from apicost.problems import InputError, Problem
from apicost.report.conformance.outcome import Outcome

VERSION = 1
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


def write(path: Path, outcome: Outcome) -> None:
    """Write the outcome's findings, ignored ones aside, as a baseline. Raises InputError."""
    rows = sorted(
        json.dumps(
            {
                "fingerprint": finding.fingerprint,
                "rule": finding.rule,
                "api": finding.api,
                "method": finding.method,
                "path_template": finding.path_template,
                "detail": finding.detail,
            },
            ensure_ascii=False,
        )
        for finding in (told.finding for told in outcome.told if told.state != "ignored")
    )
    text = f'{{"apicost_baseline": {VERSION}, "findings": [\n' + ",\n".join(rows) + "\n]}\n"
    try:
        durable.write_bytes(path, text.encode())
    except OSError as failure:
        raise _error(path, f"can't be written: {failure.strerror}", "name a file in a folder that exists") from None


def read(path: Path) -> frozenset[str]:
    """Fingerprints of a baseline. Raises InputError."""
    fix = "write it with --write-baseline"
    try:
        data = json.loads(path.read_bytes())
        if data["apicost_baseline"] != VERSION:
            raise _error(path, f"is a baseline of version {data['apicost_baseline']}", fix)
        found = frozenset(str(entry["fingerprint"]) for entry in data["findings"])
    except OSError as failure:
        raise _error(path, f"can't be read: {failure.strerror}", fix) from None
    except (ValueError, KeyError, TypeError):
        raise _error(path, "is no baseline", fix) from None
    if strange := [text for text in found if not _FINGERPRINT.fullmatch(text)]:
        raise _error(path, f"{strange[0]!r} is no fingerprint", fix)
    return found


def _error(path: Path, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=str(path), fact=fact, effect="no finding is taken as known", fix=fix)])
