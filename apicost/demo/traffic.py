"""Mixed traffic with a client that counts its own sockets' bytes.

Rules of this file:
- Each request is remembered with the raw bytes its socket sent and received (TLS and framing included),
  so that a live run can be compared with what the kernel and the gateway said.
- Everything is bounded: a number of requests, a timeout per read.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

READ_TIMEOUT_S = 15.0


@dataclass(slots=True, kw_only=True)
class Sent:
    """One request as its client saw it.

    sent_bytes, received_bytes: raw bytes of the socket between this request's first byte and its
    response's last; -1 where a connection carries several at once (HTTP/2).
    """

    kind: str
    method: str
    host: str
    path: str
    status: int
    client_port: int
    sent_bytes: int
    received_bytes: int


@dataclass(slots=True)
class Connection:
    """One client connection that counts what crosses its socket; plain or TLS."""

    address: tuple[str, int]
    tls: bool = False
    alpn: str = "http/1.1"
    server_name: str = "shop.example"
    sent: int = 0
    received: int = 0
    _sock: socket.socket = field(init=False)
    _ssl: ssl.SSLObject | None = field(init=False, default=None)
    _in: ssl.MemoryBIO = field(init=False)
    _out: ssl.MemoryBIO = field(init=False)
    _buffer: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        self._sock = socket.create_connection(self.address, timeout=READ_TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the demo's certificate is made for the occasion
            context.set_alpn_protocols([self.alpn])
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._ssl = context.wrap_bio(self._in, self._out, server_hostname=self.server_name)
            self._handshake(self._ssl)

    @property
    def port(self) -> int:
        """The client's port."""
        return int(self._sock.getsockname()[1])

    def send(self, data: bytes) -> None:
        """Write all of it."""
        if self._ssl is None:
            self._sock.sendall(data)
            self.sent += len(data)
            return
        for start in range(0, len(data), 1 << 18):
            self._ssl.write(data[start : start + (1 << 18)])
            self._flush()

    def read(self, limit: int = 1 << 18) -> bytes:
        """What has come, at least a byte; empty at the end of the stream."""
        if self._buffer:
            out, self._buffer = self._buffer[:limit], self._buffer[limit:]
            return out
        if self._ssl is None:
            data = self._sock.recv(limit)
            self.received += len(data)
            return data
        while True:
            try:
                return self._ssl.read(limit)
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def unread(self, data: bytes) -> None:
        """Put back what belongs to the next message."""
        self._buffer = data + self._buffer

    def reset(self) -> None:
        """Go away at once, as an aborting client does (RST)."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def close(self) -> None:
        """Close in good order."""
        if self._ssl is not None:
            with contextlib.suppress(ssl.SSLError, OSError):
                self._ssl.unwrap()
            with contextlib.suppress(OSError):
                self._flush()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._sock.close()

    def _handshake(self, tls: ssl.SSLObject) -> None:
        while True:
            try:
                tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    raise ConnectionError("the gateway closed during the TLS handshake") from None

    def _flush(self) -> None:
        data = self._out.read()
        if data:
            self._sock.sendall(data)
            self.sent += len(data)

    def _fill(self) -> bool:
        data = self._sock.recv(1 << 18)
        self.received += len(data)
        self._in.write(data)
        return bool(data)


def request(
    wire: Connection,
    method: str,
    host: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    kind: str = "plain",
    chunked: bool = False,
) -> Sent:
    """Send one HTTP/1.1 request and read its response to the end.

    Raises ConnectionError where the stream ends inside the response.
    """
    sent_before, received_before = wire.sent, wire.received
    wire.send(_head(method, host, path, body, headers, chunked))
    if body:
        wire.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
    status = _read_response(wire, method)
    return Sent(
        kind=kind,
        method=method,
        host=host,
        path=path.partition("?")[0],
        status=status,
        client_port=wire.port,
        sent_bytes=wire.sent - sent_before,
        received_bytes=wire.received - received_before,
    )


def _head(
    method: str, host: str, path: str, body: bytes | None, headers: dict[str, str] | None, chunked: bool = False
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "User-Agent: apicost-demo"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines.append("Content-Type: application/json")
        lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _read_response(wire: Connection, method: str) -> int:
    data = b""
    while b"\r\n\r\n" not in data:
        more = wire.read()
        if not more:
            raise ConnectionError("the stream ended before the response's head")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status == 100:
        wire.unread(rest)
        return _read_response(wire, method)
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if method == "HEAD" or status in (101, 204, 304):
        wire.unread(rest)
    elif fields.get(b"transfer-encoding") == b"chunked":
        while not rest.endswith(b"0\r\n\r\n"):
            rest += _more(wire)
    elif b"content-length" in fields:
        left = int(fields[b"content-length"]) - len(rest)
        while left > 0:
            left -= len(_more(wire))
        if left < 0:
            wire.unread(rest[left:])
    else:
        while wire.read():
            pass
    return status


def _more(wire: Connection) -> bytes:
    data = wire.read()
    if not data:
        raise ConnectionError("the stream ended inside the response's body")
    return data


def pipelined(wire: Connection, host: str, paths: list[str], headers: dict[str, str] | None = None) -> list[int]:
    """Several GETs written at once, answered in order; returns their statuses."""
    wire.send(b"".join(_head("GET", host, path, None, headers) for path in paths))
    return [_read_response(wire, "GET") for _ in paths]


def abort(address: tuple[str, int], host: str, path: str, headers: dict[str, str], after_bytes: int) -> Sent:
    """Ask for something large and go away after some of it."""
    wire = Connection(address)
    wire.send(_head("GET", host, path, None, headers))
    while wire.received < after_bytes:
        if not wire.read(4096):
            break
    port = wire.port
    wire.reset()
    return Sent(
        kind="abort",
        method="GET",
        host=host,
        path=path.partition("?")[0],
        status=499,
        client_port=port,
        sent_bytes=wire.sent,
        received_bytes=wire.received,
    )


def websocket(address: tuple[str, int], host: str, path: str, headers: dict[str, str], messages: int) -> Sent:
    """Upgrade, send masked text frames, read the echoes, close."""
    wire = Connection(address)
    upgrade = {
        **headers,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "YXBpY29zdC1kZW1vLWtleQ==",
        "Sec-WebSocket-Version": "13",
    }
    wire.send(_head("GET", host, path, None, upgrade))
    status = _read_response(wire, "GET")
    if status == 101:
        for number in range(messages):
            payload = f"message {number}".encode().ljust(100, b".")
            wire.send(bytes([0x81, 0x80 | len(payload)]) + b"\0\0\0\0" + payload)  # mask of zeros: payload as it is
            got = 0
            while got < len(payload) + 2:
                got += len(_more(wire))
        wire.send(bytes([0x88, 0x80]) + b"\0\0\0\0")
        with contextlib.suppress(OSError):
            while wire.read():
                pass
    port = wire.port
    wire.close()
    return Sent(
        kind="websocket",
        method="GET",
        host=host,
        path=path,
        status=status,
        client_port=port,
        sent_bytes=wire.sent,
        received_bytes=wire.received,
    )


def http2(
    address: tuple[str, int], host: str, calls: list[tuple[str, str, bytes]], headers: dict[str, str]
) -> list[Sent]:
    """Requests side by side on one HTTP/2 connection; (method, path, body) each.

    Needs the h2 package; raises ImportError where it is missing.
    """
    import h2.config
    import h2.connection
    import h2.events

    wire = Connection(address, tls=True, alpn="h2", server_name=host)
    state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    state.initiate_connection()
    streams: dict[int, Sent] = {}
    waiting: dict[int, bytes] = {}
    for method, path, body in calls:
        stream = state.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]
        fields += [(name.lower(), value) for name, value in headers.items()]
        if body:
            fields.append(("content-length", str(len(body))))
        state.send_headers(stream, fields, end_stream=not body)
        if body:
            waiting[stream] = body
        streams[stream] = Sent(
            kind="http2",
            method=method,
            host=host,
            path=path.partition("?")[0],
            status=0,
            client_port=wire.port,
            sent_bytes=-1,
            received_bytes=-1,
        )
    open_streams = set(streams)
    while open_streams:
        for stream, body in list(waiting.items()):
            room = min(state.local_flow_control_window(stream), state.max_outbound_frame_size, len(body))
            if room:
                state.send_data(stream, body[:room], end_stream=room == len(body))
                waiting[stream] = body[room:]
            if not waiting[stream]:
                del waiting[stream]
        wire.send(state.data_to_send())
        data = wire.read()
        if not data:
            break
        for event in state.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                found = {str(name): str(value) for name, value in event.headers}
                streams[event.stream_id].status = int(found[":status"])
            elif isinstance(event, h2.events.DataReceived):
                state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                open_streams.discard(event.stream_id)
        wire.send(state.data_to_send())
    state.close_connection()
    wire.send(state.data_to_send())
    wire.close()
    return list(streams.values())


def sizes(seed: int, count: int) -> Iterator[int]:
    """Body sizes as APIs have them: many small, some large, always the same for a seed."""
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.choice((0, 1, 37, 200, 900, 1400, 1500, 4_000, 16_384, 70_000, 300_000))


def mixed(
    plain: tuple[str, int], secure: tuple[str, int], keys: dict[str, str], *, rounds: int = 6, pause_s: float = 0.0
) -> list[Sent]:
    """The demo's traffic: every kind that a gateway sees in a day, in some seconds.

    plain, secure: the gateway's HTTP and HTTPS addresses. keys: consumer name to API key.
    Returns what was sent, in order of completion.
    """
    done: list[Sent] = []
    consumers = itertools.cycle(keys.values())
    for turn in range(rounds):
        key = {"apikey": next(consumers)}
        done += _shop_by_keepalive(plain, key, turn)
        done += _shop_by_tls(secure, key, turn)
        done += _media(plain, secure, key, turn)
        done += _faults(plain, key, turn)
        time.sleep(pause_s)
    return done


def _shop_by_keepalive(plain: tuple[str, int], key: dict[str, str], turn: int) -> list[Sent]:
    wire = Connection(plain)
    out = []
    for number, size in enumerate(sizes(turn, 12)):
        out.append(request(wire, "GET", "shop.example", f"/v1/orders/{turn}{number}?size={size}", headers=key))
        out.append(request(wire, "POST", "shop.example", "/v1/orders", body=b"x" * size, headers=key))
    out.append(request(wire, "GET", "shop.example", "/v1/products?page=2&limit=50", headers=key))
    out.append(request(wire, "GET", "shop.example", "/v1/products/sku-7/legacy-price", headers=key))
    out.append(request(wire, "POST", "shop.example", "/v1/orders", body=b"c" * 5000, headers=key, chunked=True))
    out.append(request(wire, "DELETE", "shop.example", f"/v1/orders/{turn}", headers=key))
    out.append(request(wire, "GET", "shop.example", "/v1/internal/debug", headers=key, kind="undocumented"))
    paths = [f"/v1/products/sku-{i}" for i in range(5)]
    before = wire.sent, wire.received
    statuses = pipelined(wire, "shop.example", paths, key)
    sent, received = wire.sent - before[0], wire.received - before[1]
    for index, (path, status) in enumerate(zip(paths, statuses, strict=True)):
        # The five were written at once: the first remembers the bytes of all.
        out.append(
            Sent(
                kind="pipelined",
                method="GET",
                host="shop.example",
                path=path,
                status=status,
                client_port=wire.port,
                sent_bytes=sent if index == 0 else 0,
                received_bytes=received if index == 0 else 0,
            )
        )
    wire.close()
    return out


def _shop_by_tls(secure: tuple[str, int], key: dict[str, str], turn: int) -> list[Sent]:
    wire = Connection(secure, tls=True)
    out = []
    for number, size in enumerate(sizes(turn + 100, 8)):
        path = f"/v1/orders/{turn}{number}/invoice.pdf?size={size}"
        out.append(request(wire, "GET", "shop.example", path, headers=key, kind="tls"))
        out.append(
            request(wire, "PUT", "shop.example", f"/v1/orders/{number}", body=b"y" * size, headers=key, kind="tls")
        )
    wire.close()
    calls = [("GET", f"/v1/products/sku-{i}?size={i * 977}", b"") for i in range(8)]
    calls += [("POST", "/v1/products/sku-1/images", b"i" * 30_000), ("GET", "/v1/orders", b"")]
    with contextlib.suppress(ImportError):
        out += http2(secure, "shop.example", calls, key)
    return out


def _media(plain: tuple[str, int], secure: tuple[str, int], key: dict[str, str], turn: int) -> list[Sent]:
    out = []
    wire = Connection(plain)
    for size in (0, 65_536, 1_000_000, 5_000_000 if turn % 2 == 0 else 2_000_000):
        out.append(
            request(wire, "GET", "media.example", f"/files/film-{size}?size={size}", headers=key, kind="download")
        )
        out.append(
            request(wire, "PUT", "media.example", f"/files/film-{size}", body=b"u" * size, headers=key, kind="upload")
        )
    out.append(request(wire, "GET", "media.example", "/stream?events=5", headers=key, kind="sse"))
    wire.close()
    out.append(websocket(plain, "media.example", "/ws", key, messages=5))
    return out


def _faults(plain: tuple[str, int], key: dict[str, str], turn: int) -> list[Sent]:
    out = [abort(plain, "media.example", "/files/long?size=5000000", key, after_bytes=100_000)]
    wire = Connection(plain)
    out.append(request(wire, "GET", "shop.example", "/v1/orders", kind="401"))
    out.append(request(wire, "GET", "nowhere.example", "/", headers=key, kind="404"))
    out.append(request(wire, "POST", "media.example", "/transcode?status=503", body=b"{}", headers=key, kind="5xx"))
    out.append(request(wire, "POST", "media.example", "/transcode", body=b"{}", headers=key, kind="transcode"))
    for number in range(3):  # this route's upstream has nodes that refuse or hang up: the gateway tries again
        out.append(request(wire, "GET", "shop.example", f"/v1/products/retry-{number}", headers=key, kind="retry"))
    wire.close()
    return out
