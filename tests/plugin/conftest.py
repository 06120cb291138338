"""Gateways for the plugin's tests: nginx with the small host, a sink for its lines, and upstreams.

With APICOST_TEST_GATEWAY=apisix in the environment the same tests run on the APISIX whose command is on PATH.
"""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from apicost.demo import gateway as demo
from apicost.demo.upstreams import Upstreams
from tests.conftest import skip_or_fail
from tests.plugin.sink import TOKEN, Sink


@pytest.fixture(scope="session")
def upstreams():
    with Upstreams() as running:
        yield running


@pytest.fixture
def make_gateway(tmp_path, upstreams):
    """Start gateways with the plugin; they and their sinks end with the test."""
    yield from _maker(tmp_path, upstreams)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, upstreams):
    """One gateway with one worker, and its sink, for tests that only look at lines."""
    for make in _maker(tmp_path_factory.mktemp("shared"), upstreams):
        yield make(workers=1)


def _maker(folder: Path, upstreams):
    kind = {"host": demo.Gateway, "apisix": demo.ApisixGateway}[os.environ.get("APICOST_TEST_GATEWAY", "host")]
    if kind is demo.Gateway and not (
        shutil.which("nginx") and Path("/usr/lib/nginx/modules/ngx_http_lua_module.so").exists()
    ):
        skip_or_fail("nginx with its Lua module (packages nginx-light and libnginx-mod-http-lua)")
    number = itertools.count()
    started = []

    def make(sink: Sink | None = None, *, workers: int = 1, more_lua: str = "", change=None, plugins=None, **metadata):
        prefix = folder / f"gateway-{next(number)}"
        (prefix / "spool").mkdir(parents=True)
        sink = sink or Sink()
        metadata = {
            "receiver": sink.receiver, "token": TOKEN, "node": "test-node", "spool_dir": str(prefix / "spool"),
            "flush_interval": 0.1, "timeout": 1000, **metadata,
        }  # fmt: skip
        content = demo.resources(upstreams, {k: v for k, v in metadata.items() if v is not None})
        if change:
            change(content)
        more = {"plugins": plugins} if plugins else {}
        running = kind(prefix, content, workers=workers, more_lua=more_lua, **more)
        started.append((running, sink))
        running.start()
        running.sink = sink
        running.spool = prefix / "spool"
        return running

    yield make
    for running, sink in started:
        running.stop(timeout_s=3)
        sink.close()
