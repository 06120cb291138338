"""The receiver over HTTP: who is let in, what is refused, and when 200 is said."""

import asyncio
import contextlib
import gzip
import json
import logging
import os
import zlib

import aiohttp
import pytest
from aiohttp import web

from apicost.ingest import receiver
from apicost.ingest import writer as writing
from apicost.ingest.lines import BatchRefused, Limits
from apicost.ingest.receiver import Options, read_token
from apicost.ingest.spool import Spool, SpoolError
from apicost.problems import InputError
from bench import receiver_workload as sample

TOKEN = "a-token-of-some-length"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


class Client:
    def __init__(self, session, url, app, spool, samples=None):
        self.session, self.url, self.app, self.spool, self.samples = session, url, app, spool, samples

    async def post(self, body, headers=None, path="/v1/usage"):
        async with self.session.post(self.url + path, data=body, headers=KNOWN if headers is None else headers) as r:
            return r.status, json.loads(await r.read() or b"null"), r.headers

    @property
    def counts(self):
        return receiver.counters(self.app)


@contextlib.asynccontextmanager
async def serving(folder, samples=None, **options):
    spool = Spool.open(folder / "spool")
    app = receiver.make_app(Options(**({"token": TOKEN} | options)), spool, samples)
    running = receiver.make_runner(app)
    await running.setup()
    await web.TCPSite(running, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(session, f"http://127.0.0.1:{running.addresses[0][1]}", app, spool, samples)
    finally:
        await running.cleanup()
        spool.close()


def with_server(**options):
    """Run an async test against a receiver of its own."""

    def decorate(test):
        def run(tmp_path):
            async def go():
                async with asyncio.timeout(60):
                    async with serving(tmp_path, **options) as client:
                        await test(client)

            asyncio.run(go())

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


def lines_of(spool):
    return spool.read(spool.sealed())[1]["line_no"].to_pylist()


@with_server()
async def test_an_accepted_batch_is_durable_and_a_second_one_a_duplicate(client):
    """200 says how many lines were taken; a resend takes none."""
    body = sample.body(sample.header(count=3), [sample.line(n=0), b"junk", sample.line(n=2)])
    status, answer, _ = await client.post(body)
    assert (status, answer) == (
        200,
        {
            "accepted": 2,
            "refused": [{"line": 2, "reason": "1 columns, expected 47"}],
            "refused_lines": 1,
            "duplicate": False,
        },
    )
    status, answer, _ = await client.post(body)
    assert (status, answer["accepted"], answer["duplicate"]) == (200, 0, True)
    assert lines_of(client.spool) == [1, 3]
    assert client.counts["lines_accepted"] == 2 and client.counts["lines_refused_columns"] == 1


@with_server()
async def test_a_wrong_or_missing_token_is_refused(client):
    """401 before anything else is looked at."""
    body = sample.realistic(3)
    tokens = ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN]
    for given in tokens:
        status, _, headers = await client.post(body, {"Authorization": given})
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), given
    assert (await client.post(body, {}))[0] == 401
    assert client.counts["requests_refused_token"] == len(tokens) + 1
    assert lines_of(client.spool) == []
    assert (await client.post(body, {"Authorization": f"bearer  {TOKEN}"}))[0] == 200


@with_server(max_body_bytes=10_000)
async def test_an_oversized_body_is_refused(client):
    """413, whether its size is told or not."""
    assert (await client.post(b"x" * 10_001))[0] == 413

    async def endless():
        with contextlib.suppress(Exception):
            for _ in range(100):
                yield b"x" * 1_000

    assert (await client.post(endless()))[0] == 413
    assert (await client.post(sample.realistic(3)))[0] == 200


@with_server(max_lines_per_batch=10)
async def test_too_many_lines_are_refused(client):
    """413 with a reason."""
    status, answer, _ = await client.post(sample.realistic(11))
    assert status == 413 and "11 lines" in answer["error"]


@with_server()
async def test_compressed_bodies_are_refused_and_never_inflated(client):
    """A bomb of 256 MB in 256 kB costs neither memory nor time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(256)] + [packer.flush()])
    assert len(bomb) < 1 << 19
    before = peak_bytes()
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"):
        with contextlib.suppress(aiohttp.ClientConnectionError):
            assert (await client.post(bomb, KNOWN | {"Content-Encoding": encoding}))[0] == 415, encoding
    assert peak_bytes() - before < 64 << 20
    assert client.counts["requests_refused_encoding"] == 6
    small = gzip.compress(sample.realistic(3))
    assert (await client.post(small, KNOWN | {"Content-Encoding": "gzip"}))[0] == 415
    assert (await client.post(sample.realistic(3), KNOWN | {"Content-Encoding": "identity"}))[0] == 200


def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(text.split()[1]) << 10 for text in status if text.startswith("VmHWM"))


@with_server(max_batches_per_s=5)
async def test_too_many_batches_are_told_when_to_come_again(client):
    """429 with Retry-After, and then they are taken."""
    answers = [await client.post(sample.realistic(1, first=n)) for n in range(1, 9)]
    assert [status for status, _, _ in answers][:5] == [200] * 5
    late = next(headers for status, _, headers in answers if status == 429)
    await asyncio.sleep(int(late["Retry-After"]))
    assert (await client.post(sample.realistic(1, first=9)))[0] == 200


@with_server(max_inflight_bytes=1_000_000)
async def test_bytes_in_memory_are_bounded(client):
    """A body that is being sent holds its room; others are told to come again."""
    started = asyncio.Event()
    release = asyncio.Event()

    async def slow():
        yield sample.realistic(1)
        started.set()
        await release.wait()

    held = asyncio.create_task(client.post(slow()))
    await started.wait()
    while not client.app[receiver._RECEIVER]._inflight_bytes:
        await asyncio.sleep(0.01)
    status, _, headers = await client.post(sample.realistic(3, first=10))
    assert (status, headers["Retry-After"]) == (429, "1")
    release.set()
    assert (await held)[0] == 200
    assert (await client.post(sample.realistic(3, first=10)))[0] == 200


@with_server(body_timeout_s=0.2)
async def test_a_body_that_never_comes_is_given_up(client):
    """408, and its room is free again."""

    async def stalled():
        yield b"{"
        await asyncio.sleep(5)

    with contextlib.suppress(aiohttp.ClientConnectionError):
        assert (await client.post(stalled()))[0] == 408
    assert client.counts["requests_refused_body_timeout"] == 1
    assert client.app[receiver._RECEIVER]._inflight_bytes == 0


@with_server()
async def test_another_version_and_an_unreadable_header_are_refused_for_good(client):
    """415 and 400: the gateway does not send them again."""
    assert (await client.post(sample.body(sample.header(apicost=2), [])))[0] == 415
    assert (await client.post(b"nonsense\n"))[0] == 400
    assert (await client.post(b""))[0] == 400


@with_server()
async def test_what_cannot_be_made_durable_is_asked_for_again(client):
    """503 with Retry-After; the same batch is taken when there is room."""
    add_lines = client.spool.add_lines
    client.spool.add_lines = lambda batches: (_ for _ in ()).throw(SpoolError(28, "No space left on device"))
    status, _, headers = await client.post(sample.realistic(3))
    assert status == 503 and int(headers["Retry-After"]) > 0
    assert client.counts["batches_not_durable"] == 1
    client.spool.add_lines = add_lines
    status, answer, _ = await client.post(sample.realistic(3))
    assert (status, answer["accepted"]) == (200, 3)


@with_server()
async def test_one_bad_batch_of_a_group_does_not_touch_the_others(client):
    """Many at once: each has its own answer, and each line is there once."""
    bodies = [sample.realistic(5, first=1 + 5 * n) if n % 4 else b"nonsense" for n in range(40)]
    answers = await asyncio.gather(*(client.post(body) for body in bodies * 2))
    assert [status for status, _, _ in answers] == [200 if n % 4 else 400 for n in range(40)] * 2
    assert sum(answer.get("accepted", 0) for _, answer, _ in answers) == 150
    assert sorted(lines_of(client.spool)) == [m for n in range(40) if n % 4 for m in range(1 + 5 * n, 6 + 5 * n)]


@with_server()
async def test_only_the_first_refusals_are_listed_and_all_are_counted(client):
    """An answer stays small."""
    _, answer, _ = await client.post(sample.body(sample.header(count=500), [b"junk"] * 500))
    assert len(answer["refused"]) == receiver.SHOWN_REFUSALS and answer["refused_lines"] == 500
    assert client.counts["lines_refused_columns"] == 500


def test_log_lines_cannot_be_forged(tmp_path, monkeypatch, caplog):
    """What a gateway sends reaches the log escaped, on one line."""

    def refuse(*_):
        raise BatchRefused(400, "header", "x\nCRITICAL all is lost\u2028\x1b[2J")

    monkeypatch.setattr(writing, "parse_batch", refuse)
    with contextlib.closing(Spool.open(tmp_path)) as spool, caplog.at_level(logging.WARNING):
        assert writing.Writer(spool, Limits()).take([b"x"])[0].status == 400
    messages = [record.getMessage() for record in caplog.records]
    assert messages and all(text.isascii() and text.isprintable() for text in messages)


def test_batches_submitted_while_stopping_are_finished_or_refused(tmp_path):
    """Each gets an answer: durable, or 503."""

    async def go():
        async with serving(tmp_path) as client:
            writer = client.app[receiver._RECEIVER].writer
            bodies = [sample.realistic(5, first=1 + 5 * n) for n in range(30)]
            tasks = [asyncio.create_task(writer.add(body)) for body in bodies]
            await asyncio.sleep(0)
            await asyncio.to_thread(writer.stop)
            outcomes = [(await task).status for task in tasks] + [(await writer.add(bodies[0])).status]
            assert set(outcomes) <= {200, 503} and outcomes[-1] == 503
            assert len(lines_of(client.spool)) == 5 * outcomes.count(200)
            writer.stop = lambda: None

    asyncio.run(go())


def test_a_missing_token_file_is_made_with_mode_0600(tmp_path):
    """Random, long, and the same at the next start."""
    path = tmp_path / "etc" / "token"
    made = read_token(path, create=True)
    assert len(made) >= 32 and path.stat().st_mode & 0o777 == 0o600
    assert read_token(path, create=True) == read_token(path) == made


@pytest.mark.parametrize(
    ("mode", "content", "message"),
    [
        (0o644, TOKEN, "mode 0644"),
        (0o620, TOKEN, "mode 0620"),
        (0o600, "", "no token"),
        (0o600, "short", "no token"),
        (0o600, "two words\non two lines!", "no token"),
        (0o600, "umlaut-\u00fc-umlaut-\u00fc-umlaut", "no token"),
    ],
)
def test_a_token_file_that_protects_nothing_is_a_problem(tmp_path, mode, content, message):
    """Place, fact, effect and fix."""
    path = tmp_path / "token"
    path.write_text(content)
    os.chmod(path, mode)
    with pytest.raises(InputError, match=message) as error:
        read_token(path)
    assert str(path) in str(error.value) and "fix:" in str(error.value)


def test_a_missing_token_file_is_a_problem(tmp_path):
    """Unless it may be made."""
    with pytest.raises(InputError, match="cannot be read"):
        read_token(tmp_path / "none")
