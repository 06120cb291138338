"""`apicost doctor`: what this host has and lacks, and how to mend it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from apicost import config, resources
from apicost.problems import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at.

    state: good, bad (something asked for cannot work) or note (works with less).
    """

    check: str
    state: str
    what: str
    fix: str = ""


def main(argv: list[str]) -> int:
    """0 when all is good, 1 when something asked for cannot work, 2 for a bad configuration file."""
    parser = argparse.ArgumentParser(
        prog="apicost doctor",
        description="Look at this host and the configuration; say what is missing and the remedy.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, help="configuration file (default: ./apicost.yaml where it exists)"
    )
    parser.add_argument("--json", action="store_true", help="one object a line on standard output")
    arguments = parser.parse_args(argv)
    file = arguments.config or (Path("apicost.yaml") if Path("apicost.yaml").exists() else None)
    settings = config.load(file) if file else config.Config()
    findings = list(look(settings, configured=file is not None))
    if arguments.json:
        import orjson

        for finding in findings:
            print(orjson.dumps(asdict(finding)).decode())
    else:
        _print(findings)
    return 1 if any(finding.state == "bad" for finding in findings) else 0


def look(settings: config.Config, *, configured: bool) -> Iterator[Finding]:
    """Every check, in the order in which a newcomer meets trouble."""
    yield from _files()
    yield from _kernel(settings)
    yield from _places(settings, configured)
    if configured:
        yield from _knowledge(settings)
    yield from _gateway(settings)


def _files() -> Iterator[Finding]:
    for name, use in (("bpf", "the probe's source"), ("apisix", "the gateway plugin"), ("specs", "sample documents")):
        try:
            yield Finding(check=f"files: {name}", state="good", what=f"{use}: {resources.folder(name)}")
        except FileNotFoundError as error:
            yield Finding(check=f"files: {name}", state="bad", what=str(error), fix="reinstall apicost")


def _kernel(settings: config.Config) -> Iterator[Finding]:
    from apicost.ingest import cgroups, probe

    bad = "bad" if settings.probe.enabled else "note"
    options = None
    try:
        where = Path(settings.probe.cgroup) if settings.probe.cgroup else None
        found = where or cgroups.find_gateway_cgroup(settings.probe.gateway_ports, settings.probe.pid_file)
        options = probe.Options(cgroup=found, loader_python=settings.probe.loader_python)
    except cgroups.ProbeError as error:
        yield Finding(check="kernel: the gateway's cgroup", state="note", what=error.reason, fix=error.fix)
    for check, good, what, fix in probe.diagnose(options if settings.probe.enabled else None):
        yield Finding(check=f"kernel: {check}", state="good" if good else bad, what=what, fix="" if good else fix)
    if not settings.probe.enabled:
        yield Finding(
            check="kernel: probe",
            state="note",
            what="switched off by probe.enabled: bytes are the gateway's own counts, marked app-only",
            fix="set probe.enabled: true",
        )


def _places(settings: config.Config, configured: bool) -> Iterator[Finding]:
    for name, folder in (("state_dir", settings.state_dir), ("exit spool", settings.receiver.exit_spool_dir)):
        yield _folder(name, folder, "bad" if configured else "note")
    yield _token(settings.receiver.token_file)
    for name, where in (("receiver", settings.receiver.listen), ("web", settings.web)):
        yield _port(name, where)
    free = shutil.disk_usage(_nearest_existing(settings.state_dir)).free
    state = "good" if free > 1 << 30 else "note"
    yield Finding(
        check="disk",
        state=state,
        what=f"{free / (1 << 30):.1f} GiB free for the ledger",
        fix="" if state == "good" else "free some space",
    )


def _folder(name: str, folder: Path, worst: str) -> Finding:
    place = _nearest_existing(folder)
    if os.access(place, os.W_OK | os.X_OK):
        made = "" if place == folder else f" (will be made below {place})"
        return Finding(check=f"folder: {name}", state="good", what=f"{folder} is writable{made}")
    return Finding(
        check=f"folder: {name}",
        state=worst,
        what=f"{folder} is not writable for uid {os.getuid()}",
        fix=f"chown it to the user that runs apicost, or set {name} in apicost.yaml",
    )


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _token(path: Path) -> Finding:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return Finding(check="token", state="good", what=f"{path} will be made with a random token at the first start")
    except OSError as error:
        return Finding(
            check="token", state="bad", what=f"{path}: {error.strerror}", fix="run as a user that may read it"
        )
    if mode & 0o077:
        return Finding(check="token", state="bad", what=f"{path} has mode {mode:04o}", fix=f"chmod 0600 {path}")
    return Finding(check="token", state="good", what=f"{path} is readable by its owner only")


def _port(name: str, where: str) -> Finding:
    if where.startswith("unix:"):
        return Finding(check=f"port: {name}", state="good", what=where)
    host, _, port = where.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            what = f"{where}: {error.strerror}"
            return Finding(
                check=f"port: {name}",
                state="note",
                what=what,
                fix="fine if apicost runs already; else choose another port",
            )
    return Finding(check=f"port: {name}", state="good", what=f"{where} is free")


def _knowledge(settings: config.Config) -> Iterator[Finding]:
    from apicost import run

    try:
        known = run.load_knowledge(settings.apis, settings.prices)
    except InputError as error:
        for problem in error.problems:
            yield Finding(check="price book", state="bad", what=f"{problem.place}: {problem.fact}", fix=problem.fix)
        return
    for problem in known.problems:
        yield Finding(check="OpenAPI document", state="note", what=f"{problem.place}: {problem.fact}", fix=problem.fix)
    yield Finding(
        check="OpenAPI documents",
        state="good" if known.operations else "note",
        what=f"{known.operations} operations of {len(settings.apis)} API(s)",
        fix="" if known.operations else "list APIs with their documents under `apis:`",
    )
    if settings.prices is None:
        yield Finding(check="price book", state="note", what="none: usage stays unpriced", fix="set `prices:`")


def _gateway(settings: config.Config) -> Iterator[Finding]:
    listening = [port for port in settings.probe.gateway_ports if _answers(port)]
    if listening:
        yield Finding(check="gateway", state="good", what=f"listens on {', '.join(map(str, listening))}")
    else:
        ports = ", ".join(map(str, settings.probe.gateway_ports))
        yield Finding(
            check="gateway",
            state="note",
            what=f"nothing listens on {ports}",
            fix="start the gateway, or set probe.gateway_ports to where it listens",
        )
    if importlib.util.find_spec("h2") is None:
        yield Finding(check="demo", state="note", what="the h2 package is missing: the demo sends no HTTP/2")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.3):
            return True
    except OSError:
        return False


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    mark = {"good": "[green]ok  [/]", "bad": "[red]BAD [/]", "note": "[yellow]note[/]"}
    for finding in findings:
        console.print(f"{mark[finding.state]} {escape(finding.check)}: {escape(finding.what)}")
        if finding.fix:
            console.print(f"       fix: {escape(finding.fix)}")
    bad = sum(finding.state == "bad" for finding in findings)
    notes = sum(finding.state == "note" for finding in findings)
    console.print(f"{len(findings)} checks, {bad} bad, {notes} notes")
    sys.stderr.flush()
