"""The servers behind the demo's gateway: sizes on demand, uploads, streams, WebSocket, failures.

Runs as a process of its own, outside the gateway's cgroup: `python -m apicost.demo.upstreams` binds free
loopback ports, prints them as one line of JSON and serves until its standard input closes.

Query parameters of every path: `size` (bytes of the response body), `status`, `delay_ms`, `chunked=1`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from types import TracebackType

from aiohttp import WSMsgType, web

MAX_SIZE = 64 << 20
_FILLER = bytes(random.Random(7).randbytes(64 << 10))  # not compressible, the same in every run


async def _chunks(size: int) -> AsyncIterator[bytes]:
    while size > 0:
        yield _FILLER[: min(size, len(_FILLER))]
        size -= len(_FILLER)


def _number(request: web.Request, name: str, default: int) -> int:
    try:
        return max(0, min(int(request.query[name]), MAX_SIZE))
    except (KeyError, ValueError):
        return default


async def _answer(
    request: web.Request, *, size: int, status: int = 200, content_type: str = "application/json"
) -> web.StreamResponse:
    """Read the request's body to its end, then answer with so many bytes."""
    async for _ in request.content.iter_chunked(64 << 10):
        pass
    await asyncio.sleep(_number(request, "delay_ms", 0) / 1000)
    status = _number(request, "status", status)
    size = 0 if status == 204 else _number(request, "size", size)
    response = web.StreamResponse(status=status, headers={"Content-Type": content_type})
    if "chunked" not in request.query and status != 204:
        response.content_length = size
    await response.prepare(request)
    async for chunk in _chunks(size):
        await response.write(chunk)
    await response.write_eof()
    return response


async def _orders(request: web.Request) -> web.StreamResponse:
    posted = request.method == "POST"
    return await _answer(request, size=180 if posted else 2400, status=201 if posted else 200)


async def _order(request: web.Request) -> web.StreamResponse:
    return await _answer(request, size=420, status=204 if request.method == "DELETE" else 200)


async def _invoice(request: web.Request) -> web.StreamResponse:
    return await _answer(request, size=200_000, content_type="application/pdf")


async def _products(request: web.Request) -> web.StreamResponse:
    return await _answer(request, size=9000)


async def _image(request: web.Request) -> web.StreamResponse:
    return await _answer(request, size=60, status=201)


async def _file(request: web.Request) -> web.StreamResponse:
    stored = request.method == "PUT"
    return await _answer(
        request, size=0 if stored else 10_000, status=201 if stored else 200, content_type="application/octet-stream"
    )


async def _stream(request: web.Request) -> web.StreamResponse:
    """Server-sent events: `events` of them, `interval_ms` apart."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    for number in range(_number(request, "events", 10)):
        await response.write(f"id: {number}\ndata: tick {number}\n\n".encode())
        await asyncio.sleep(_number(request, "interval_ms", 50) / 1000)
    await response.write_eof()
    return response


async def _echo(request: web.Request) -> web.StreamResponse:
    """A WebSocket that says back what it hears."""
    connection = web.WebSocketResponse()
    await connection.prepare(request)
    async for message in connection:
        if message.type == WSMsgType.TEXT:
            await connection.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await connection.send_bytes(message.data)
    return connection


async def _transcode(request: web.Request) -> web.StreamResponse:
    """Fails every third time."""
    counter = request.app[_TRANSCODED]
    counter[0] += 1
    return await _answer(request, size=90, status=503 if counter[0] % 3 == 0 else 202)


_TRANSCODED = web.AppKey("transcoded", list)


def make_app() -> web.Application:
    """All of the demo's upstream services in one application."""
    app = web.Application(client_max_size=MAX_SIZE)
    app[_TRANSCODED] = [0]
    routes = app.router
    routes.add_route("*", "/v1/orders", _orders)
    routes.add_route("*", "/v1/orders/{order}", _order)
    routes.add_route("GET", "/v1/orders/{order}/invoice.pdf", _invoice)
    routes.add_route("GET", "/v1/products", _products)
    routes.add_route("GET", "/v1/products/{sku}", _order)
    routes.add_route("POST", "/v1/products/{sku}/images", _image)
    routes.add_route("*", "/files/{name}", _file)
    routes.add_route("GET", "/stream", _stream)
    routes.add_route("GET", "/ws", _echo)
    routes.add_route("POST", "/jobs/transcode", _transcode)  # the gateway rewrites /transcode to it
    routes.add_route("*", "/{anything:.*}", _order)
    return app


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a request's head and close without an answer: the gateway has to try elsewhere."""
    try:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()


async def _serve() -> None:
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # aborting clients are part of the demo
    runner = web.AppRunner(make_app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    closing = await asyncio.start_server(_hang_up, "127.0.0.1", 0)
    # Bound but not listening: connecting is refused, and nobody else gets the port.
    refusing = socket.socket()
    refusing.bind(("127.0.0.1", 0))
    ports = {
        "good": runner.addresses[0][1],
        "closing": closing.sockets[0].getsockname()[1],
        "refusing": refusing.getsockname()[1],
    }
    print(json.dumps(ports), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    closing.close()
    await runner.cleanup()
    refusing.close()


class Upstreams:
    """The upstream servers as a context manager; `good`, `closing` and `refusing` are "ADDR:PORT"."""

    def __init__(self) -> None:
        self.good = self.closing = self.refusing = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Upstreams:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "apicost.demo.upstreams"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the upstream servers did not start: exit code {self._process.wait()}")
        ports = json.loads(line)
        self.good, self.closing, self.refusing = (
            f"127.0.0.1:{ports[name]}" for name in ("good", "closing", "refusing")
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve())
