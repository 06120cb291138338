"""POST /v1/usage: usage batches from gateway workers, answered with 200 only when they are durable.
POST /v1/samples: sampled bodies, answered with 200 once they wait in memory for the checker.

Rules of this file:
- Whatever can be refused is refused from the headers, before a byte of the body is read.
- Bodies are taken as sent: a Content-Encoding is refused, so there is nothing to inflate.
- What is held in memory is bounded by `max_inflight_bytes`, however many connections there are.
- Nothing from outside reaches the log but through `ascii()`: a line break can't forge a log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from aiohttp import web

from apicost.ingest.exit_spool import PickedUp, pick_up
from apicost.ingest.line_form import Refusal
from apicost.ingest.lines import BatchRefused, Limits
from apicost.ingest.samples import SampleQueue, parse_samples
from apicost.ingest.spool import Spool
from apicost.ingest.writer import Outcome, Writer
from apicost.problems import InputError, Problem

SHOWN_REFUSALS = 100  # of one batch, in the answer; all are counted
STOP_S = 5.0  # how long requests that are being answered hold up a stop
MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_BYTES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the receiver takes and what it refuses."""

    token: str
    max_body_bytes: int = 8 << 20
    max_lines_per_batch: int = 20_000
    max_batches_per_s: int = 2_000
    max_sample_batches_per_s: int = 100
    max_path_bytes: int = 2_048
    max_inflight_bytes: int = 24 << 20
    body_timeout_s: float = 30.0

    @property
    def limits(self) -> Limits:
        return Limits(max_lines=self.max_lines_per_batch, max_path_bytes=self.max_path_bytes)


def make_app(options: Options, spool: Spool, samples: SampleQueue | None = None) -> web.Application:
    """The receiver as an aiohttp application. Its writer thread lives from start-up to clean-up.

    samples: where sampled bodies wait; None takes none.
    """
    app = web.Application(client_max_size=options.max_body_bytes)
    receiver = _Receiver(options, Writer(spool, options.limits), samples)
    app[_RECEIVER] = receiver
    app.router.add_post("/v1/usage", receiver.usage)
    app.router.add_post("/v1/samples", receiver.sampled)

    async def start(_: web.Application) -> None:
        receiver.writer.start()

    async def stop(_: web.Application) -> None:
        await asyncio.to_thread(receiver.writer.stop)

    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """A runner with what a receiver wants: bodies as sent, no access log, no lingering over refused bodies."""
    return web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        lingering_time=1.0,
        keepalive_timeout=300,
        shutdown_timeout=STOP_S,
    )


def counters(app: web.Application) -> dict[str, int]:
    """What was taken and what was refused, by reason, since the start."""
    receiver = app[_RECEIVER]
    return dict(sorted((receiver.counts + receiver.writer.counts).items()))


def read_token(path: Path, *, create: bool = False) -> str:
    """The bearer token in a file of mode 0600.

    create: make the file with a random token where it is missing.
    Raises InputError: missing, readable by others, too short, not plain text.
    """
    if create and not path.exists():
        _create_token(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _token_problem(
            path, f"cannot be read: {error.strerror}", "write a token into it, or let `apicost run` make it"
        ) from None
    with open(descriptor, "rb") as stream:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        raw = stream.read(MAX_TOKEN_BYTES + 1)
    if mode & 0o077:
        raise _token_problem(path, f"has mode {mode:04o}: others can read or change it", f"chmod 0600 {path}")
    token = raw.strip().decode("ascii", errors="replace")
    if not MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_BYTES or not token.isascii() or not token.isprintable():
        raise _token_problem(
            path,
            f"holds no token of {MIN_TOKEN_CHARACTERS} or more printable ASCII characters on one line",
            "remove the file and let `apicost run` make it, or write a long random word",
        )
    return token


def _create_token(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise
        except OSError as error:
            raise _token_problem(path, f"cannot be made: {error.strerror}", "name a writable place") from None
        with open(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")


def _token_problem(path: Path, fact: str, fix: str) -> InputError:
    return InputError(
        [Problem(place=str(path), fact=fact, effect="the receiver does not start without a token", fix=fix)]
    )


class _Rate:
    """A bucket of one second's batches."""

    def __init__(self, most_per_s: int) -> None:
        self._most = self._allowance = float(most_per_s)
        self._allowed_at_s = time.monotonic()

    def allows(self) -> bool:
        now_s = time.monotonic()
        self._allowance = min(self._most, self._allowance + (now_s - self._allowed_at_s) * self._most)
        self._allowed_at_s = now_s
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


class _Receiver:
    """The handlers and what they keep: rates, the bytes in memory, and counts of the event loop's thread."""

    def __init__(self, options: Options, writer: Writer, samples: SampleQueue | None) -> None:
        self.options = options
        self.writer = writer
        self.samples = samples
        self.counts: Counter[str] = Counter()
        self._token = options.token.encode()
        self._inflight_bytes = 0
        self._usage_rate = _Rate(options.max_batches_per_s)
        self._sample_rate = _Rate(options.max_sample_batches_per_s)

    async def usage(self, request: web.Request) -> web.Response:
        """One batch of usage lines."""
        return await self._with_body(request, self._usage_rate, self._add_lines)

    async def sampled(self, request: web.Request) -> web.Response:
        """One batch of sampled bodies."""
        return await self._with_body(request, self._sample_rate, self._add_samples)

    async def _with_body(
        self, request: web.Request, rate: _Rate, take: Callable[[bytes], Awaitable[web.Response]]
    ) -> web.Response:
        """Refuse what can be refused unread, else read the body and give it on."""
        options = self.options
        if not self._knows(request.headers.get("Authorization", "")):
            return self._refuse(401, "token", "the bearer token is missing or wrong")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            return self._refuse(415, "encoding", "compressed bodies are not taken; send the batch as it is")
        expected = request.content_length
        if expected is not None and expected > options.max_body_bytes:
            return self._refuse(413, "body_too_large", f"a body has at most {options.max_body_bytes} bytes")
        if not rate.allows():
            return self._refuse(429, "rate", "too many batches", retry_after_s=1)
        # A chunked body doesn't say its size: room is kept for the largest.
        reserved = options.max_body_bytes if expected is None else expected
        if self._inflight_bytes + reserved > options.max_inflight_bytes and self._inflight_bytes:
            return self._refuse(429, "memory", "too many bytes on their way", retry_after_s=1)
        self._inflight_bytes += reserved
        try:
            try:
                async with asyncio.timeout(options.body_timeout_s):
                    body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                return self._refuse(413, "body_too_large", f"a body has at most {options.max_body_bytes} bytes")
            except TimeoutError:
                return self._refuse(408, "body_timeout", "the body did not come")
            self.counts["body_bytes"] += len(body)
            return await take(body)
        finally:
            self._inflight_bytes -= reserved

    async def _add_lines(self, body: bytes) -> web.Response:
        return self._answer(await self.writer.add(body))

    async def _add_samples(self, body: bytes) -> web.Response:
        if self.samples is None:
            return self._refuse(404, "samples", "sampled bodies are not taken here")
        try:
            batch = parse_samples(body, time.time_ns())
        except BatchRefused as problem:
            return self._refuse(problem.status, "samples", problem.reason)
        offered = self.samples.offer(batch)
        if offered.full:
            return self._refuse(429, "samples", "too many samples wait", retry_after_s=1)
        self.counts["answers_200"] += 1
        answer = {
            "accepted": offered.accepted,
            "refused": _shown(batch.refused),
            "refused_samples": len(batch.refused),
            "dropped": offered.dropped,
            "duplicate": offered.duplicate,
        }
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def _answer(self, outcome: Outcome) -> web.Response:
        if outcome.batch is None or outcome.added is None:
            retry_after_s = 2 if outcome.status == 503 else None
            return self._refuse(outcome.status, "batch", outcome.reason, retry_after_s=retry_after_s)
        refused = outcome.batch.refused
        answer = {
            "accepted": outcome.added.accepted,
            "refused": _shown(refused),
            "refused_lines": len(refused),
            "duplicate": outcome.added.duplicate,
        }
        self.counts["answers_200"] += 1
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def _refuse(self, status: int, kind: str, reason: str, retry_after_s: int | None = None) -> web.Response:
        self.counts[f"answers_{status}"] += 1
        self.counts[f"requests_refused_{kind}"] += 1
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        if retry_after_s is not None:
            headers["Retry-After"] = str(retry_after_s)
        body = msgspec.json.encode({"error": reason})
        response = web.Response(status=status, body=body, content_type="application/json", headers=headers)
        if kind not in ("batch", "samples"):
            response.force_close()  # the rest of the body is not read
        return response

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode(errors="replace")
        return hmac.compare_digest(given, self._token) and scheme.lower() == "bearer"


def _shown(refused: tuple[Refusal, ...]) -> list[dict[str, object]]:
    return [{"line": r.position, "reason": r.reason} for r in refused[:SHOWN_REFUSALS]]


_RECEIVER = web.AppKey("apicost.receiver", _Receiver)

__all__ = ["Options", "PickedUp", "counters", "make_app", "make_runner", "pick_up", "read_token"]
