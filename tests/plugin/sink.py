"""A receiver for the plugin's tests: keeps every body as it came, and fails as it is told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SCHEMA = json.loads((Path(__file__).parents[2] / "specs" / "usage-line.schema.json").read_text())
COLUMNS = [column["name"] for column in SCHEMA["x-columns"]]
TOKEN = "sink-token-93f1"


@dataclass
class Sink:
    """Listens on a free loopback port, or on a Unix socket where `path` is given.

    answer: status to answer; 0 takes the body and says nothing until `answer` changes.
    delay_s: wait before each answer. hang_up: close after the body instead of answering.
    """

    path: str = ""
    answer: int = 200
    delay_s: float = 0.0
    hang_up: bool = False
    posts: list[list] = field(default_factory=list)  # [status answered or 0, headers, body], in order of arrival
    connections: int = 0

    def __post_init__(self) -> None:
        family = socket.AF_UNIX if self.path else socket.AF_INET
        self._listener = socket.socket(family)
        self._listener.bind(self.path or ("127.0.0.1", 0))
        self.receiver = f"unix:{self.path}" if self.path else "http://{}:{}".format(*self._listener.getsockname())
        if self.path:
            Path(self.path).chmod(0o666)
        self._closed = False
        self._open: list[socket.socket] = []
        self.listen()

    def listen(self) -> None:
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        self.refuse()
        for connection in self._open:
            connection.close()

    def refuse(self) -> None:
        """From now on nobody listens here."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which close() does not
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        try:
            while line := stream.readline():
                headers = {":request": line.decode().strip()}
                while (line := stream.readline().decode().strip()) != "":
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers["content-length"]))
                status = self.answer
                if headers.get("authorization") != f"Bearer {TOKEN}":
                    status = 401
                post = [0, headers, body]
                self.posts.append(post)
                if self.hang_up:
                    return
                while self.answer == 0 and not self._closed:
                    time.sleep(0.02)
                time.sleep(self.delay_s)
                post[0] = status or self.answer
                text = json.dumps({"accepted": 0, "refused": [], "duplicate": False}).encode()
                stream.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (post[0], len(text), text))
                stream.flush()
        except (OSError, ValueError, KeyError):
            pass
        finally:
            connection.close()

    def bodies(self, status: int | None = 200, path: str = "/v1/usage") -> list[bytes]:
        """Bodies posted to a path and answered with a status; whatever the answer where it is None."""
        return [
            body
            for answered, headers, body in list(self.posts)
            if (status is None or answered == status) and headers[":request"].split()[1] == path
        ]

    def batches(self) -> dict[tuple[int, int, int], tuple[dict, list[dict[str, str]]]]:
        """What was taken: (pid, start, batch) -> header and lines."""
        return read_batches(self.bodies())

    def lines(self) -> list[dict[str, str]]:
        """The lines taken, each batch once; `line_no` and `pid` are added."""
        return [line for _, lines in self.batches().values() for line in lines]

    def wait_for(self, count: int, timeout_s: float = 8.0) -> list[dict[str, str]]:
        """The lines, once there are so many of them.

        Raises AssertionError after the timeout.
        """
        deadline = time.monotonic() + timeout_s
        while len(self.lines()) < count:
            assert time.monotonic() < deadline, f"{len(self.lines())} of {count} lines came"
            time.sleep(0.02)
        return self.lines()


def read_batches(bodies: list[bytes]) -> dict[tuple[int, int, int], tuple[dict, list[dict[str, str]]]]:
    """Bodies by batch identity; the same identity must have the same bytes."""
    found: dict[tuple[int, int, int], tuple[dict, list[dict[str, str]]]] = {}
    raw: dict[tuple[int, int, int], bytes] = {}
    for body in bodies:
        first, *rest = body.decode("utf-8").split("\n")
        header = json.loads(first)
        key = (header["worker"]["pid"], header["worker"]["started_unix_ms"], header["batch"])
        assert raw.setdefault(key, body) == body, "one identity, different bytes"
        assert rest[-1] == "" and len(rest) - 1 == header["count"], "the header counts other lines than follow"
        lines = []
        for line in rest[:-1]:
            values = line.split("\t")
            assert len(values) == len(COLUMNS), line
            named = dict(zip(COLUMNS, values, strict=True))
            named["line_no"] = str(header["first"] + int(named["n"]))
            named["pid"] = str(header["worker"]["pid"])
            lines.append(named)
        found[key] = (header, lines)
    return found
