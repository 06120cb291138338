"""A gateway with the plugin for the demo, the tests and the benchmarks.

On a machine with an `apisix` command that is used, in standalone mode; otherwise nginx with its Lua module
and the project's own small host for APISIX plugins (apisix/host/). Both read the same resources.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from apicost import resources as carried
from apicost.demo.upstreams import Upstreams

CONSUMERS = {"acme": "acme-demo-key", "globex": "globex-demo-key"}  # user name -> API key
CERTIFICATE_HOSTS = ("shop.example", "media.example", "localhost")
_MODULES = Path("/usr/lib/nginx/modules")
_START_S = 15.0


class GatewayError(RuntimeError):
    """The gateway can't be started; the message says what is missing or what it printed."""


def lua_dir() -> Path:
    """The folder that holds `plugins/` and `host/`: in the wheel, or in the checkout.

    Its parent is what a Lua path needs: PARENT/?.lua finds apisix.plugins.apicost-logger.
    Raises GatewayError where neither has it.
    """
    try:
        return carried.folder("apisix")
    except FileNotFoundError as error:
        raise GatewayError(str(error)) from None


def resources(upstreams: Upstreams, metadata: Mapping[str, Any], *, plugin: bool = True) -> dict[str, Any]:
    """The demo's routes, services and consumers, as the sections of APISIX's standalone apisix.yaml.

    metadata: settings of the plugin (receiver, token, node, ...).
    """

    def upstream(*nodes: str, **more: Any) -> dict[str, Any]:
        return {"type": "roundrobin", "nodes": dict.fromkeys(nodes, 1), **more}

    key_auth: dict[str, Any] = {"key-auth": {}}
    flaky = upstream(upstreams.refusing, upstreams.closing, upstreams.good, retries=2)
    routes: list[dict[str, Any]] = [
        {"id": "orders", "uris": ["/v1/orders", "/v1/orders/*"], "service_id": "shop", "plugins": key_auth},
        {"id": "products", "uri": "/v1/products", "service_id": "shop"},
        # Two of its three nodes fail, so that some requests need a second or third try.
        {"id": "product", "uri": "/v1/products/*", "methods": ["GET"], "service_id": "shop", "upstream": flaky},
        {"id": "product-images", "uri": "/v1/products/*", "methods": ["POST"], "service_id": "shop"},
        {"id": "internal", "uri": "/v1/internal/*", "service_id": "shop"},
        {"id": "files", "uri": "/files/*", "service_id": "media"},
        {"id": "stream", "uri": "/stream", "service_id": "media"},
        {"id": "ws", "uri": "/ws", "service_id": "media", "enable_websocket": True},
        {
            "id": "transcode",
            "uri": "/transcode",
            "service_id": "media",
            "plugins": {"proxy-rewrite": {"uri": "/jobs/transcode"}},
        },
    ]
    hosts = {"shop": "shop.example", "media": "media.example"}
    return {
        "routes": [{**route, "name": route["id"], "host": hosts[route["service_id"]]} for route in routes],
        "services": [{"id": name, "name": name, "upstream": upstream(upstreams.good)} for name in hosts],
        "consumers": [{"username": name, "plugins": {"key-auth": {"key": key}}} for name, key in CONSUMERS.items()],
        "global_rules": [{"id": "1", "plugins": {"apicost-logger": {}}}] if plugin else [],
        "plugin_metadata": [{"id": "apicost-logger", **metadata}] if plugin else [],
    }


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different loopback ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Certificate and key for the demo's hosts, valid for two days.

    Raises GatewayError without openssl.
    """
    certificate, key = folder / "demo.crt", folder / "demo.key"
    names = ",".join(f"DNS:{name}" for name in CERTIFICATE_HOSTS)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=shop.example", "-addext", f"subjectAltName={names},IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        raise GatewayError("openssl is not installed: install the package openssl") from None
    return certificate, key


_NGINX_CONF = """\
# Written by apicost for one run.
{user}
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
worker_processes {workers};
worker_shutdown_timeout 5s;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log {log_level};
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {prefix}/tmp/body;
    proxy_temp_path {prefix}/tmp/proxy;
    fastcgi_temp_path {prefix}/tmp/fastcgi;
    uwsgi_temp_path {prefix}/tmp/uwsgi;
    scgi_temp_path {prefix}/tmp/scgi;
    client_max_body_size 64m;
    keepalive_requests 100000;
    lua_package_path "{lua}/../?.lua;{lua}/host/?.lua;{more_lua};";
    lua_code_cache on;
    # As APISIX's default: whoever connects from loopback may say whom it speaks for.
    real_ip_header X-Real-IP;
    set_real_ip_from 127.0.0.1;
    map $http_upgrade $upstream_connection {{ default upgrade; "" ""; }}
    init_worker_by_lua_block {{ require("host").init_worker("{prefix}/resources.json") }}
    exit_worker_by_lua_block {{ require("host").exit_worker() }}
    upstream apisix_backend {{
        server 0.0.0.1;
        balancer_by_lua_block {{ require("host").balance() }}
        keepalive 64;
        keepalive_requests 100000;
    }}
    server {{
        listen 127.0.0.1:{http_port};
        listen 127.0.0.1:{https_port} ssl http2;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {{
            set $upstream_scheme http;
            set $upstream_uri "";
            set $apisix_request_id $request_id;  # as APISIX does from 3.16 on
            set $llm_model "";  # and these from 3.14 on: a model's answer that tells no tokens leaves them at 0
            set $llm_prompt_tokens 0;
            set $llm_completion_tokens 0;
            access_by_lua_block {{ require("host").access() }}
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upstream_connection;
            proxy_pass $upstream_scheme://apisix_backend$upstream_uri;
            header_filter_by_lua_block {{ require("host").header_filter() }}
            body_filter_by_lua_block {{ require("host").body_filter() }}
            log_by_lua_block {{ require("host").log() }}
        }}
    }}
}}
"""


class Gateway:
    """nginx with the small host and the plugin, in the foreground as a child process.

    prefix: an existing folder for everything it writes.
    content: what `resources` gives; more keys: `plugin_attr`, `apisix_version` (emulated).
    cgroup: an existing cgroup2 folder; the process enters it before nginx starts, so that all workers are in it.
    plugins: names in load order. more_lua: further Lua path templates, each ending in ";".
    """

    def __init__(
        self,
        prefix: Path,
        content: Mapping[str, Any],
        *,
        cgroup: Path | None = None,
        workers: int = 2,
        plugins: Sequence[str] = ("key-auth", "proxy-rewrite", "apicost-logger"),
        more_lua: str = "",
        log_level: str = "warn",
    ) -> None:
        self.prefix = prefix
        self.http_port, self.https_port = free_ports(2)
        self.content = {**content, "plugins": list(plugins)}
        self.process: subprocess.Popen[bytes] | None = None
        self.self_signed: tuple[Path, Path]  # certificate and key, once started
        self._cgroup, self._workers, self._more_lua, self._log_level = cgroup, workers, more_lua, log_level

    @property
    def error_log(self) -> Path:
        return self.prefix / "error.log"

    @property
    def pid(self) -> int:
        """The master process."""
        assert self.process is not None, "the gateway is not running"
        return self.process.pid

    def worker_pids(self) -> list[int]:
        """The worker processes that are now alive, old ones of a reload included."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def start(self) -> Gateway:
        """Write the configuration and run; returns when the port answers.

        Raises GatewayError naming what is missing, or with the last lines that nginx printed.
        """
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if nginx is None or not (_MODULES / "ngx_http_lua_module.so").is_file():
            raise GatewayError("nginx with its Lua module is missing: install nginx-light, libnginx-mod-http-lua")
        (self.prefix / "tmp").mkdir(parents=True, exist_ok=True)
        certificate, key = self.self_signed = self_signed(self.prefix)
        configuration = self.prefix / "nginx.conf"
        configuration.write_text(
            _NGINX_CONF.format(
                user="user root;" if os.geteuid() == 0 else "",
                modules=_MODULES,
                workers=self._workers,
                prefix=self.prefix,
                log_level=self._log_level,
                lua=lua_dir(),
                more_lua=self._more_lua,
                http_port=self.http_port,
                https_port=self.https_port,
                certificate=certificate,
                key=key,
            )
        )
        self.write_resources()
        command = [nginx, "-p", str(self.prefix), "-e", str(self.error_log), "-c", str(configuration)]
        self._run(command)
        return self

    def write_resources(self) -> None:
        """Write `content` for the next (re)load; it holds tokens, so only the owner may read it."""
        path = self.prefix / "resources.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(self.content))

    def _run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        if self._cgroup is not None:
            # The shell moves itself before it becomes the gateway: no worker is ever outside.
            enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
            command = ["/bin/sh", "-c", enter, str(self._cgroup), *command]
        with open(self.prefix / "output.txt", "wb") as output:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.prefix,
                env=None if environment is None else {**os.environ, **environment},
            )
        deadline = time.monotonic() + _START_S
        # Workers come after all ports are bound: without one, the port's answer may be a start about to fail.
        while not (self.worker_pids() and _answers(self.http_port)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise GatewayError(f"the gateway did not start:\n{self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        """The ends of what it printed and logged."""
        texts = [
            path.read_text(errors="replace") for path in (self.prefix / "output.txt", self.error_log) if path.exists()
        ]
        return "\n".join(text[-2000:] for text in texts)

    def reload(self) -> None:
        """New workers; the old ones finish what they have. Returns at once."""
        self.write_resources()
        os.kill(self.pid, signal.SIGHUP)

    def stop(self, *, graceful: bool = True, timeout_s: float = 10.0) -> None:
        """End it: gracefully (open requests finish) or at once (SIGTERM); killed after `timeout_s`."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT if graceful else signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                workers = self.worker_pids()
                self.process.kill()
                self.process.wait()
                for worker in workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)
        self.process = None

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class ApisixGateway(Gateway):
    """A real APISIX in standalone mode with a prefix of its own, as a child process in the foreground.

    Needs the `apisix` and `openresty` commands of an installation; it shares that one's Lua code and
    changes nothing in it. Takes the same arguments as `Gateway`.
    """

    def worker_pids(self) -> list[int]:
        """As `Gateway.worker_pids`; the privileged agent, which answers nothing, is none of them."""

        def title(pid: int) -> bytes:
            try:
                return Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has just ended
                return b""

        return [pid for pid in super().worker_pids() if title(pid).startswith(b"nginx: worker process")]

    def start(self) -> Gateway:
        """As `Gateway.start`; the prefix gets a `conf/` and links to the installation's code."""
        command, openresty, home = shutil.which("apisix"), shutil.which("openresty"), _apisix_home()
        if command is None or openresty is None or home is None:
            raise GatewayError("no APISIX here: `apisix`, `openresty` and its Lua code are needed")
        # `apisix init` takes the folder it is called in as its home when it finds its code there.
        (self.prefix / "logs").mkdir(parents=True, exist_ok=True)
        for name, target in (("apisix", home / "apisix"), ("deps", home / "deps"), ("ui", home / "ui")):
            if target.exists() and not (self.prefix / name).exists():
                (self.prefix / name).symlink_to(target)
        conf = home / "conf" if (home / "conf").is_dir() else _APISIX_CONF
        shutil.copytree(conf, self.prefix / "conf", dirs_exist_ok=True)
        self.self_signed = self_signed(self.prefix)
        self.write_resources()
        environment = {"APISIX_STAND_ALONE": "true"}
        made = subprocess.run(
            [command, "init"], cwd=self.prefix, env={**os.environ, **environment}, capture_output=True, text=True
        )
        if made.returncode != 0:
            raise GatewayError(f"apisix init failed:\n{made.stdout}{made.stderr}")
        configuration = self.prefix / "conf" / "nginx.conf"
        arguments = ["-p", str(self.prefix), "-c", str(configuration), "-g", "daemon off;"]
        self._run([openresty, *arguments], environment)
        return self

    @property
    def error_log(self) -> Path:
        return self.prefix / "logs" / "error.log"

    def write_resources(self) -> None:
        """config.yaml and apisix.yaml; a running gateway takes up the latter within a second or two."""
        certificate, key = self.self_signed
        ssl = {"id": "demo", "cert": certificate.read_text(), "key": key.read_text(), "snis": list(CERTIFICATE_HOSTS)}
        sections = {
            name: value for name, value in self.content.items() if isinstance(value, list) and name in _SECTIONS
        }
        path = self.prefix / "conf" / "apisix.yaml"
        before = int(path.stat().st_mtime) if path.exists() else 0
        _write_yaml(path, {**sections, "ssls": [ssl]}, end="#END\n")
        # APISIX reads the file again when its time has changed, in whole seconds.
        newer = max(int(time.time()), before + 1)
        os.utime(path, (newer, newer))
        https: dict[str, Any] = {"ip": "127.0.0.1", "port": self.https_port}
        if _apisix_version(self.prefix) < (3, 9):
            https["enable_http2"] = True  # later versions have it on for all ports and refuse it here
        settings: dict[str, Any] = {
            "apisix": {
                "node_listen": [{"ip": "127.0.0.1", "port": self.http_port}],
                "enable_admin": False,
                "enable_control": False,  # its port is fixed, and another APISIX may run here
                "enable_ipv6": False,
                "extra_lua_path": f"{lua_dir().parent}/?.lua;{self._more_lua}",
                "ssl": {"enable": True, "listen": [https]},
            },
            "deployment": {"role": "data_plane", "role_data_plane": {"config_provider": "yaml"}},
            "nginx_config": {
                "worker_processes": self._workers,
                "worker_shutdown_timeout": "5s",
                "error_log_level": self._log_level,
            },
            "plugins": self.content["plugins"],
        }
        if os.geteuid() == 0:
            settings["nginx_config"]["user"] = "root"
        if "plugin_attr" in self.content:
            settings["plugin_attr"] = self.content["plugin_attr"]
        _write_yaml(self.prefix / "conf" / "config.yaml", settings)


_APISIX_HOMES = (Path("/usr/local/apisix"), Path("/usr/local/share/lua/5.1"))  # packages; luarocks
_APISIX_CONF = Path("/usr/local/apisix/conf")
_SECTIONS = ("routes", "services", "consumers", "global_rules", "plugin_metadata")


def _apisix_home() -> Path | None:
    """The folder whose `apisix/` is the Lua code that the `apisix` command runs; None without one.

    A command that lies in a source tree (or is a link into one) belongs to that tree.
    """
    command = shutil.which("apisix")
    tree = [Path(command).resolve().parents[1]] if command else []
    return next((home for home in (*tree, *_APISIX_HOMES) if (home / "apisix" / "cli" / "apisix.lua").is_file()), None)


def _apisix_version(prefix: Path) -> tuple[int, ...]:
    """(3, 18, 0) and so on, of the code that the `apisix` command finds in `prefix`.

    Raises GatewayError where it does not say.
    """
    ran = subprocess.run(["apisix", "version"], cwd=prefix, capture_output=True, text=True, check=False)
    found = re.findall(r"^(\d+)\.(\d+)\.(\d+)", ran.stdout, re.MULTILINE)
    if not found:
        raise GatewayError(f"apisix version names no version:\n{ran.stdout}{ran.stderr}")
    return tuple(map(int, found[-1]))


class _BlockDumper(yaml.SafeDumper):
    """Texts of several lines as literal blocks."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _BlockDumper.represent_text)


def _write_yaml(path: Path, content: Mapping[str, Any], end: str = "") -> None:
    """Block style throughout: the YAML reader of older APISIX takes no flow-style mappings, no folded texts."""

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: filled(v) for k, v in value.items()} or {"_meta": {"disable": False}}
        if isinstance(value, list | tuple):
            return [filled(item) for item in value]
        return value

    path.touch(mode=0o600)
    text = yaml.dump(filled(content), Dumper=_BlockDumper, sort_keys=False, default_flow_style=False, width=1 << 20)
    path.write_text(text + end)


def best_gateway() -> type[Gateway]:
    """The real APISIX where its commands are on PATH, else nginx with the small host."""
    return ApisixGateway if shutil.which("apisix") and shutil.which("openresty") else Gateway


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
