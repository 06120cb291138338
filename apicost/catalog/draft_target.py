"""Where a draft of what is missing belongs: the servers, base paths and taken names of an API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apicost.catalog.extract import Server as ServerObject
from apicost.catalog.extract import extract
from apicost.catalog.openapi import ApiSource
from apicost.catalog.servers import configured_base, configured_host, expand
from apicost.core.conformance.contract import Contracts
from apicost.core.conformance.draft import Server, Target
from apicost.core.naming.operations import HostPattern
from apicost.core.naming.paths import Segment

_VARIABLE = re.compile(r"\{([^{}]*)\}")


def of_api(source: ApiSource, contracts: Contracts, title: str = "", host: str | None = None) -> Target:
    """The target for an API's undocumented traffic, on one host or on any."""
    root, others = _servers(source)
    return Target(
        api=source.id,
        host=host,
        title=title,
        servers=tuple(root or _configured(source)),
        others=tuple(others),
        prefix=configured_base(source.strip_prefix)[1],
        fixed_base=source.base_path is not None,
        taken=frozenset(one.operation_id for one in contracts.operations.values() if one.api == source.id),
    )


def of_host(host: str) -> Target:
    """The target for traffic of a host that no document names. A usage line has no scheme: https is assumed."""
    return Target(api=None, host=host, title=host, servers=(Server(url=f"https://{host}", host=host),))


def _servers(source: ApiSource) -> tuple[list[Server], list[Server]]:
    """The servers of the API's documents as such, and those of their paths and operations."""
    root: dict[tuple[object, ...], Server] = {}
    others: dict[tuple[object, ...], Server] = {}
    for file in source.documents:
        for number, servers in enumerate(extract(Path(file)).servers):
            for server in servers:
                for one in _written(source, server):
                    (others if number else root).setdefault((one.url, one.host, one.base), one)
    return list(root.values()), [one for key, one in others.items() if key not in root]


def _written(source: ApiSource, server: ServerObject) -> Iterator[Server]:
    """A server as its document writes it, with what the configuration replaces."""
    variables = _defined(server.url, server.variables)
    url = f"https:{server.url}" if server.url.startswith("//") else server.url
    for pattern, base, segments in expand(server.url, server.variables, lambda *_: None):
        if source.base_path is not None:
            base, segments = configured_base(source.base_path)
        if source.hosts:
            yield from _on_hosts(source, base, segments)
        else:
            yield Server(url=url, variables=variables, host=_text(pattern), base=segments)


def _configured(source: ApiSource) -> Iterator[Server]:
    """The servers of an API without a usable document."""
    if source.hosts:
        yield from _on_hosts(source, *configured_base(source.base_path or ""))
    elif source.base_path:
        base, segments = configured_base(source.base_path)
        yield Server(url=base, base=segments)


def _on_hosts(source: ApiSource, base: str, segments: tuple[Segment, ...]) -> Iterator[Server]:
    for host in source.hosts:
        url = base or "/"
        if "*" not in host:
            url = f"https://{host}{base}"
        variables = _defined(url, {})
        yield Server(url=url, variables=variables, host=_text(configured_host(host)), base=segments)


def _text(pattern: HostPattern) -> str:
    """As `contracts` writes hosts; "" for any."""
    return "*".join(pattern.pieces)


def _defined(url: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The Server Variable Objects of a URL; OpenAPI wants each defined, and with a default."""
    found = {}
    for name in dict.fromkeys(_VARIABLE.findall(url)):
        own = variables.get(name, {})
        enum = own.get("enum") or []
        default = own.get("default", enum[0] if enum else name)
        found[name] = {**({"enum": enum} if enum else {}), "default": default}
    return found
