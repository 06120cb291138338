"""The gateway's own routes, from its Admin API or a standalone `apisix.yaml`.

Rules of this file:
- What a route does not say itself comes from its service and plugin config, as the gateway merges them: the route's own
  plugin wins over the plugin config's, that over the service's.
- Nothing is written to the gateway: GET only, bounded in size and time. The key is sent in a header and never printed.
- Sources: APISIX documentation of the Admin API (`{"total":N,"list":[{"key","value"}]}` from 3.0 on,
  `{"node":{"nodes":[...]}}` before) and of the standalone mode.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apicost import yamlfile
from apicost.core.conformance.served import Rewrite, Route
from apicost.problems import InputError, Problem

LOGGER = "apicost-logger"
KINDS = ("routes", "services", "plugin_configs", "global_rules")
MAX_BYTES = 64 << 20
PAGE = 500  # the most that the Admin API gives at once
MAX_PAGES = 1_000
TIMEOUT_S = 10

Objects = dict[str, list[dict[str, Any]]]


def from_file(path: Path) -> list[Route]:
    """Routes of a standalone `apisix.yaml` (or the same as JSON). Raises InputError."""
    data = yamlfile.load(path, max_bytes=MAX_BYTES).data
    if not isinstance(data, Mapping) or not any(kind in data for kind in KINDS):
        raise _error(str(path), "has no routes", "write 'routes:' with a list, as APISIX's standalone mode reads it")
    return _routes({kind: _objects(data.get(kind)) for kind in KINDS}, str(path))


def from_admin(url: str, key: str) -> list[Route]:
    """Routes as the Admin API at `url` (such as http://127.0.0.1:9180) lists them. Raises InputError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _error(url, "is no http or https URL", "write such as --admin http://127.0.0.1:9180")
    base = url.rstrip("/")
    if not base.endswith("/apisix/admin"):
        base += "/apisix/admin"
    found: Objects = {kind: _listed(f"{base}/{kind}", key, optional=kind != "routes") for kind in KINDS}
    return _routes(found, url)


def _listed(url: str, key: str, *, optional: bool) -> list[dict[str, Any]]:
    """All objects of one kind, page by page. optional: a gateway too old to know the kind has none of it."""
    objects: list[dict[str, Any]] = []
    seen: set[str] = set()
    for page in range(1, MAX_PAGES + 1):
        data = _get(f"{url}?page={page}&page_size={PAGE}", key, optional)
        listed = data.get("list")
        if listed is None:
            node = data.get("node")
            listed = node.get("nodes") if isinstance(node, Mapping) else []
        fresh = [entry for entry in _objects(listed) if str(entry.get("key")) not in seen]
        seen.update(str(entry.get("key")) for entry in fresh)
        objects += [dict(entry["value"]) for entry in fresh if isinstance(entry.get("value"), Mapping)]
        # A gateway that knows no pages gives the same list again.
        if len(fresh) < PAGE:
            return objects
    return objects


def _get(url: str, key: str, optional: bool) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"X-API-KEY": key, "Accept": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            raw = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            if optional and error.code in (400, 404):
                return {}
        hint = (
            "put the admin key into APICOST_ADMIN_KEY or --admin-key-file"
            if error.code in (401, 403)
            else "name the Admin API's own port, such as http://127.0.0.1:9180"
        )
        raise _error(url, f"answers {error.code}", hint) from None
    except (OSError, ValueError) as error:
        fix = "see that the gateway runs and that this host may reach its Admin API; standalone gateways: --file"
        raise _error(url, f"can't be read: {error}", fix) from None
    if len(raw) > MAX_BYTES:
        raise _error(url, f"answers more than {MAX_BYTES >> 20} MiB", "check that this is an Admin API")
    try:
        data = json.loads(raw)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise _error(url, "answers no JSON object", "name the Admin API's address")
    return data


def _objects(value: Any) -> list[dict[str, Any]]:
    return [dict(entry) for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _routes(found: Objects, place: str) -> list[Route]:
    services = {str(entry.get("id")): entry for entry in found["services"]}
    configs = {str(entry.get("id")): entry for entry in found["plugin_configs"]}
    everywhere = {name for rule in found["global_rules"] for name in _plugins(rule)}
    routes = []
    for number, entry in enumerate(found["routes"]):
        if entry.get("status") == 0:
            continue  # switched off
        service = services.get(str(entry.get("service_id")), {})
        config = configs.get(str(entry.get("plugin_config_id")), {})
        plugins = {**_plugins(service), **_plugins(config), **_plugins(entry)}
        routes.append(
            Route(
                id=str(entry.get("id", number)),
                name=_text(entry.get("name")),
                service_id=_text(entry.get("service_id")),
                uris=tuple(_texts(entry.get("uris")) or _texts(entry.get("uri"))) or ("/*",),
                hosts=tuple(
                    _texts(entry.get("hosts"))
                    or _texts(entry.get("host"))
                    or _texts(service.get("hosts"))
                    or _texts(service.get("host"))
                ),
                methods=tuple(text.upper() for text in _texts(entry.get("methods"))),
                rewrite=_rewrite(plugins.get("proxy-rewrite")),
                logged=LOGGER in plugins or LOGGER in everywhere,
                place=f"{place}: route {entry.get('id', number)}",
            )
        )
    return routes


def _plugins(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Plugins that are switched on."""
    plugins = entry.get("plugins")
    if not isinstance(plugins, Mapping):
        return {}
    return {str(name): conf for name, conf in plugins.items() if not _disabled(conf)}


def _disabled(conf: Any) -> bool:
    meta = conf.get("_meta") if isinstance(conf, Mapping) else None
    return isinstance(meta, Mapping) and meta.get("disable") is True


def _rewrite(conf: Any) -> Rewrite | None:
    """What proxy-rewrite does to the path; None where it leaves it."""
    if not isinstance(conf, Mapping):
        return None
    uri, pairs = _text(conf.get("uri")), _texts(conf.get("regex_uri"))
    if uri is None and not pairs:
        return None
    return Rewrite(uri=uri, pairs=tuple(zip(pairs[::2], pairs[1::2], strict=False)))


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _error(place: str, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=place, fact=fact, effect="the gateway's routes are not known", fix=fix)])
