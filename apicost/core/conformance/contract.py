"""What a document promises of its operations, as far as traffic without bodies can be held against it.

Plain data, made by `catalog/contracts` and read by `judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The words for credentials are those of the usage line's `auth_kinds`.
AUTH_KINDS = frozenset(("basic", "bearer", "digest", "other", "apikey", "cookie", "mtls"))
# Besides: a key in the Authorization header itself, whose scheme no document says. Any of AUTHORIZATION_KINDS is one.
AUTHORIZATION = "authorization"
AUTHORIZATION_KINDS = frozenset(("basic", "bearer", "digest", "other"))
QUERY = "query"  # a key in a query parameter that the plugin does not look for: its name alone tells


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryParameter:
    """One query parameter. prefix: names are `name[...]` (deepObject), so any name that begins so is this one.

    name: as the document writes it, not percent-encoded (a usage line has `ids%5B%5D` for `ids[]`).
    """

    name: str
    required: bool = False
    deprecated: bool = False
    prefix: bool = False
    pointer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One credential that an alternative asks for.

    kind: a word of AUTH_KINDS, AUTHORIZATION or QUERY; "" where no usage line can tell (a key in a
        header that the plugin does not look for): such an alternative counts as fulfilled.
    query_name: name of the query parameter that carries it, "" for none.
    """

    name: str
    kind: str
    query_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """status: "200", "4XX" or "default". types: media ranges, lower case; () where no content is described."""

    status: str
    types: tuple[str, ...] = ()
    pointer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """One operation. `operation_id`, `method` and `path_template` are as the matcher names them.

    query_open: any query name is allowed (a free-form exploded object, or a querystring parameter).
    request_types: media ranges of the body, "*/*" where a body is described without any; None where none is described.
    responses: () where the document names no status: then any is as good.
    security: alternatives, each a set of schemes that go together; () where none is required. An empty
        alternative means that credentials are optional.
    servers: hosts as the documents' servers and the configuration name them for this base path, lower case, "*" for
        one or more characters ("*.shop.example"); () is any host.
    """

    api: str
    operation_id: str
    method: str
    path_template: str
    spec: str
    pointer: str
    deprecated: bool = False
    query: tuple[QueryParameter, ...] = ()
    query_open: bool = False
    request_types: tuple[str, ...] | None = None
    request_required: bool = False
    responses: tuple[Response, ...] = ()
    security: tuple[tuple[Scheme, ...], ...] = ()
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """An operation that an earlier version of an API's documents had and the present one has not."""

    api: str
    operation_id: str
    method: str
    path_template: str
    spec: str
    pointer: str
    last_unix_s: int = 0  # when it was last in the documents


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFault:
    """What in the documents themselves makes matching unsafe; found without traffic.

    rule: spec-identical-templates, cross-spec-duplicate, ambiguous-operation, server-mismatch (relative server),
        or one that only `spec lint` shows: missing-operation-id, duplicate-operation-id, adjacent-parameters, ...
    operations: (api, operation_id) of those concerned. detail: one sentence. place: FILE:LINE where known.
    """

    rule: str
    api: str
    operations: tuple[tuple[str, str], ...]
    method: str
    path_template: str
    detail: str
    document: str
    pointer: str
    fix: str
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contracts:
    """All operations of all APIs with what was said of them.

    operations: (api, method, path_template) -> contract.
    prefixes: API id -> what the gateway strips from a client's path before a template is compared with it ("/gw");
        APIs without are left out.
    """

    operations: Mapping[tuple[str, str, str], Contract] = field(default_factory=dict)
    former: tuple[Former, ...] = ()
    faults: tuple[DocumentFault, ...] = ()
    documents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # API id -> its files
    unreadable: tuple[str, ...] = ()  # of those files: nobody knows what they promise
    prefixes: Mapping[str, str] = field(default_factory=dict)

    def client_template(self, operation: Contract | Former) -> str:
        """The operation's template as clients' paths have it: behind the prefix that the gateway strips today."""
        return self.prefixes.get(operation.api, "") + operation.path_template
