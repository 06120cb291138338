"""The configuration file apicost.yaml: read strictly, every problem at once, defaults that suit one node.

Paths in the file are relative to the file's own folder.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apicost import yamlfile
from apicost.core.conformance.accepted import Ignore
from apicost.core.conformance.finding import OFF, RULES, SEVERITIES, Settings
from apicost.problems import InputError, Problem
from apicost.report.focus.settings import FocusSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverSettings:
    """Where usage lines come in, and what is refused."""

    listen: str = "127.0.0.1:9555"  # HOST:PORT, or unix:PATH
    token_file: Path = Path("/etc/apicost/token")  # mode 0600; the plugin sends it as bearer token
    exit_spool_dir: Path = Path("/var/spool/apicost")  # what workers wrote while they were stopped
    max_body_bytes: int = 8 << 20
    max_lines_per_batch: int = 20_000
    max_batches_per_s: int = 2_000
    max_path_bytes: int = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """What the kernel counts, and how much memory it gets for it."""

    enabled: bool = True
    cgroup: str = ""  # the gateway's cgroup2 folder; empty: found by `pid_file` or `gateway_ports`
    pid_file: str = ""  # the gateway's master process
    gateway_ports: tuple[int, ...] = (9080, 9443)  # listening ports of the gateway, to find its cgroup
    control_ports: tuple[int, ...] = (2379,)  # peers on these ports are control traffic (etcd)
    map_entries: int = 65_536
    ring_bytes: int = 2 << 20  # about 9,000 turns; it is read ten times a second
    sweep_s: float = 1.0
    loader_python: str = "/usr/bin/python3"  # the interpreter that has bcc


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelateSettings:
    """How long the join waits, and how overhead is shared."""

    step_s: float = 2.0  # one correlation step every so often
    # After its last byte, how long a flow's bytes wait for their usage line: longer than a line for its flow.
    line_wait_s: float = 15.0
    # How long a usage line waits for its flow. A quiet flow is seen a sweep and a seal later, so less than
    # 8 s makes requests of equal size take each other's bytes.
    flow_wait_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """One API: its documents and the traffic that is its own."""

    id: str
    documents: tuple[Path, ...] = ()
    title: str = ""
    owner: str = ""
    team: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()  # replaces the documents' servers' hosts; "*" is any
    base_path: str | None = None  # replaces the servers' base path
    strip_prefix: str = ""  # removed from the request's path before matching
    route_ids: tuple[str, ...] = ()  # traffic of these routes is this API's
    service_ids: tuple[str, ...] = ()
    path_seen: str = "client"  # "client": documents describe the path before the gateway's rewrite; "upstream": after
    multi_segment: tuple[str, ...] = ()  # names of path parameters that may span "/"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How long what is kept."""

    exchange_days: int = 14
    minute_days: int = 62
    hour_days: int = 1_100


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """What becomes of client addresses before they are stored: full, truncate (/24, /48) or hash."""

    client_addresses: str = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceSettings:
    """Which deviations from the documents are told, and how loudly."""

    severity: Mapping[str, str] = field(default_factory=dict)  # rule: error, warning, info or off
    ignore: tuple[Ignore, ...] = ()  # each with a reason and a day on which it ends
    shadow_min_calls: int = 3  # fewer calls of an undocumented endpoint are noise
    shadow_min_clients: int = 1
    orphan_days: float = 7.0  # how long an operation must not be called before it is told
    status_min_calls: int = 100  # calls of an operation before a documented status counts as never seen
    soft_404_paths: int = 8  # so many undocumented paths with the same answer are a "not found" page
    # Where the plugin looks for API keys, as its metadata says: keys elsewhere leave no trace in usage lines.
    api_key_headers: tuple[str, ...] = ("apikey", "x-api-key")
    api_key_query: tuple[str, ...] = ("apikey",)
    min_requests: int = 20  # fewer in the window: too little traffic to call it clean
    metrics_every_s: float = 300.0  # how often findings are counted for /metrics; 0 never
    checker_memory_bytes: int = 768 << 20  # address space of the process that validates sampled bodies
    checker_idle_s: float = 300.0  # it ends after so long without a sample

    def rules(self) -> Settings:
        """The same for the judge."""
        return Settings(
            severity=self.severity,
            shadow_min_calls=self.shadow_min_calls,
            shadow_min_clients=self.shadow_min_clients,
            orphan_days=self.orphan_days,
            status_min_calls=self.status_min_calls,
            soft_404_paths=self.soft_404_paths,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything `apicost run` needs."""

    node: str = field(default_factory=socket.gethostname)
    state_dir: Path = Path("/var/lib/apicost")  # spool/ and ledger/ lie here
    web: str = "127.0.0.1:9556"  # /metrics, /healthz, status page
    prices: Path | None = None
    run_as: str = ""  # started as root: become this user once the probe is attached
    record_dir: Path | None = None  # keep a copy of what came in, for `apicost replay`; grows without bound
    receiver: ReceiverSettings = field(default_factory=ReceiverSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    correlate: CorrelateSettings = field(default_factory=CorrelateSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    conformance: ConformanceSettings = field(default_factory=ConformanceSettings)
    focus: FocusSettings = field(default_factory=FocusSettings)
    apis: tuple[ApiSettings, ...] = ()
    file: str = ""

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"

    @property
    def ledger_dir(self) -> Path:
        return self.state_dir / "ledger"


_CHOICES = {"path_seen": ("client", "upstream"), "client_addresses": ("full", "truncate", "hash")}


def load(path: Path | str) -> Config:
    """Read a configuration file.

    Raises InputError with every problem in it: unknown keys (with the nearest known one), wrong types,
    addresses and files that don't exist.
    """
    document = yamlfile.load(path, max_bytes=4 << 20)
    reader = _Reader(document, Path(path).resolve().parent)
    config = reader.config()
    if reader.problems:
        raise InputError(reader.problems)
    return dataclasses.replace(config, file=str(path))


class _Reader:
    """Turns a YAML document into the dataclasses above, collecting problems as it goes."""

    def __init__(self, document: yamlfile.Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.problems: list[Problem] = []

    def config(self) -> Config:
        data = self.document.data
        if data is None:
            data = {}
        values = self._section(Config, data, (), skip=("file",))
        config: Config = Config(**values)
        seen: dict[str, int] = {}
        for index, api in enumerate(config.apis):
            if api.id in seen:
                self._problem(("apis", index), f"API id {api.id!r} stands twice", "give each API an id of its own")
            seen[api.id] = index
        for name, path in (("receiver", config.receiver.listen), ("web", config.web)):
            if not _is_listen(path):
                self._problem((name,), f"{path!r} is not HOST:PORT or unix:PATH", 'write such as "127.0.0.1:9555"')
        return config

    def _section(self, cls: type, data: Any, path: tuple[str | int, ...], skip: tuple[str, ...] = ()) -> dict[str, Any]:
        if not isinstance(data, dict):
            self._problem(path, f"{data!r} is not a mapping", "write keys and values, indented")
            return {}
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in skip}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in fields:
                near = _nearest(key, fields)
                hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(fields))}"
                self._problem((*path, key), f"unknown key {key!r}", hint)
                continue
            good, converted = self._convert(str(fields[key].type), value, (*path, key))
            if good:
                values[key] = converted
        return values

    def _convert(self, kind: str, value: Any, path: tuple[str | int, ...]) -> tuple[bool, Any]:
        sections: dict[str, type] = {
            section.__name__: section
            for section in (
                ReceiverSettings,
                ProbeSettings,
                CorrelateSettings,
                StoreSettings,
                PrivacySettings,
                ConformanceSettings,
                FocusSettings,
            )
        }
        key = path[-1]
        if kind in sections:
            return True, sections[kind](**self._section(sections[kind], {} if value is None else value, path))
        if kind == "tuple[ApiSettings, ...]":
            return self._apis(value, path)
        if kind == "tuple[Ignore, ...]":
            return self._ignores(value, path)
        if key == "severity" and isinstance(value, dict):
            return True, self._severities(value, path)
        if kind.startswith("tuple["):
            inner = kind[len("tuple[") : -len(", ...]")]
            items = value if isinstance(value, list) else [value]
            converted = [self._convert(inner, item, (*path, i)) for i, item in enumerate(items)]
            return all(good for good, _ in converted), tuple(v for _, v in converted)
        if kind == "Mapping[str, str]" and isinstance(value, dict):
            return True, {str(k): str(v) for k, v in value.items()}
        if kind in ("Path", "Path | None") and isinstance(value, str):
            return True, (self.folder / value)
        if kind == "bool" and isinstance(value, bool):
            return True, value
        if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
            return self._not_negative(value, path)
        if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
            return self._not_negative(float(value), path)
        if kind in ("str", "str | None") and isinstance(value, str | int) and not isinstance(value, bool):
            choices = _CHOICES.get(str(key))
            if choices and value not in choices:
                self._problem(path, f"{key}: {value!r} is none of {', '.join(choices)}", f"write {choices[0]}")
                return False, None
            return True, str(value)
        wanted = kind.replace("tuple[", "list of ").replace(", ...]", "")
        self._problem(path, f"{key}: {value!r} is not of type {wanted}", f"write a value of type {wanted}")
        return False, None

    def _not_negative(self, value: float, path: tuple[str | int, ...]) -> tuple[bool, Any]:
        if value < 0 and path[-1] != "priority":
            self._problem(path, f"{path[-1]}: {value} is negative", "write a number of 0 or more")
            return False, None
        return True, value

    def _apis(self, value: Any, path: tuple[str | int, ...]) -> tuple[bool, Any]:
        if not isinstance(value, list):
            self._problem(path, "apis is not a list", "write one '- id: ...' for each API")
            return False, None
        apis = []
        for index, entry in enumerate(value):
            values = self._section(ApiSettings, entry, (*path, index))
            if not values.get("id"):
                self._problem((*path, index), "this API has no id", "write id: NAME")
                continue
            for document in values.get("documents", ()):
                if not document.is_file():
                    self._problem(
                        (*path, index, "documents"),
                        f"document {str(document)!r} does not exist",
                        "name a file",
                    )
            apis.append(ApiSettings(**values))
        return True, tuple(apis)

    def _severities(self, value: Mapping[Any, Any], path: tuple[str | int, ...]) -> dict[str, str]:
        """Severities by rule; YAML reads a bare off as false."""
        found = {}
        for rule, severity in value.items():
            severity = OFF if severity is False else severity
            if rule not in RULES:
                near = _nearest(str(rule), RULES)
                fix = f"did you mean {near!r}?" if near else "docs/rules.md lists the rules"
                self._problem((*path, rule), f"there is no rule {rule!r}", fix)
            elif severity not in (*SEVERITIES, OFF):
                choices = ", ".join((*SEVERITIES, OFF))
                self._problem((*path, rule), f"{severity!r} is no severity", f"write one of {choices}")
            else:
                found[str(rule)] = str(severity)
        return found

    def _ignores(self, value: Any, path: tuple[str | int, ...]) -> tuple[bool, Any]:
        """Ignores: each has a rule, a reason and a day on which it ends."""
        if not isinstance(value, list):
            self._problem(path, "ignore is not a list", "write one '- rule: ...' for each")
            return False, None
        found = []
        for index, entry in enumerate(value):
            where = (*path, index)
            texts = {str(k): str(v) for k, v in entry.items()} if isinstance(entry, dict) else {}
            known = {field.name for field in dataclasses.fields(Ignore)} - {"place"}
            faults = [f"unknown key {key!r}" for key in texts.keys() - known]
            faults += [f"this ignore has no {key}" for key in ("rule", "reason", "expires") if not texts.get(key)]
            if texts.get("rule") and texts["rule"] != "*" and texts["rule"] not in RULES:
                faults.append(f"there is no rule {texts['rule']!r}")
            try:
                expires = datetime.date.fromisoformat(texts.pop("expires", "0001-01-01"))
            except ValueError:
                faults.append("expires is no day")
            for fault in faults:
                fix = "write rule, reason and expires: YYYY-MM-DD; api, method, path and detail narrow it down"
                self._problem(where, fault, fix)
            if not faults:
                found.append(Ignore(expires=expires, place=self.document.place(*where), **texts))
        return True, tuple(found)

    def _problem(self, path: tuple[str | int, ...], fact: str, fix: str) -> None:
        place = self.document.place(*path)
        effect = "the configuration is not used; a running daemon keeps the last good one"
        self.problems.append(Problem(place=place, fact=fact, effect=effect, fix=fix))


def _nearest(key: str, known: Mapping[str, Any]) -> str | None:
    import difflib

    found = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _is_listen(value: str) -> bool:
    if value.startswith("unix:"):
        return len(value) > len("unix:")
    host, _, port = value.rpartition(":")
    if not port.isdigit() or int(port) > 65_535 or not host:
        return False
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
