"""POST /v1/samples: what is taken, what is refused, and that nothing of it reaches the disk."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost.ingest import samples
from apicost.ingest.lines import BatchRefused
from apicost.ingest.samples import SampleBatch, SampleQueue, parse_samples
from bench import receiver_workload as lines
from bench.samples_workload import body, sample
from tests.ingest.test_receiver import KNOWN, serving

SECRET = b"4111111111111111"


def with_server(queue, **options):
    """Run an async test against a receiver with a queue of samples."""

    def decorate(test):
        def run(tmp_path):
            async def go():
                async with asyncio.timeout(60), serving(tmp_path, samples=queue() if queue else None, **options) as c:
                    await test(c, tmp_path)

            asyncio.run(go())

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


@with_server(SampleQueue)
async def test_samples_are_taken_into_memory_and_never_to_disk(client, folder):
    """200 says how many wait; no file below the state folder holds a byte of them."""
    posted = body([sample(1, SECRET), sample(2, {"card": SECRET.decode()})])
    status, answer, _ = await client.post(posted, path="/v1/samples")
    assert (status, answer) == (
        200,
        {"accepted": 2, "refused": [], "refused_samples": 0, "dropped": 0, "duplicate": False},
    )
    assert client.samples.samples == 2
    batch = client.samples.get(1)
    assert next(samples.read_sample(line).request_body for line in batch.lines) == SECRET
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert SECRET not in content and json.loads(batch.lines[0])["request_body"].encode() not in content, path


@with_server(SampleQueue)
async def test_who_has_no_token_leaves_nothing(client, _):
    """401, and the queue stays empty."""
    assert (await client.post(body([sample()]), {"Authorization": "Bearer no"}, "/v1/samples"))[0] == 401
    assert (await client.post(body([sample()]), {}, "/v1/samples"))[0] == 401
    assert client.samples.samples == 0


@with_server(SampleQueue, max_body_bytes=2_000)
async def test_what_is_too_large_or_encoded_is_refused_unread(client, _):
    """413 and 415, as for usage lines."""
    assert (await client.post(body([sample(got=b"x" * 2_000)]), path="/v1/samples"))[0] == 413
    headers = {**KNOWN, "Content-Encoding": "gzip"}
    assert (await client.post(body([sample()]), headers, "/v1/samples"))[0] == 415
    assert client.samples.samples == 0


@with_server(SampleQueue, max_sample_batches_per_s=3)
async def test_too_many_batches_are_told_to_wait(client, _):
    """429 beyond the rate, and usage lines have a rate of their own."""
    answers = [(await client.post(body([sample()], batch=n + 1), path="/v1/samples"))[0] for n in range(6)]
    assert answers[:3] == [200, 200, 200] and answers.count(429) >= 2
    assert (await client.post(lines.realistic(2)))[0] == 200


@with_server(None)
async def test_a_receiver_without_a_checker_takes_none(client, _):
    """404: nobody would look at them."""
    assert (await client.post(body([sample()]), path="/v1/samples"))[0] == 404


@with_server(lambda: SampleQueue(max_samples=3))
async def test_a_full_queue_drops_and_counts(client, _):
    """What does not fit is dropped; a batch of which nothing fits is told to wait."""
    answer = (await client.post(body([sample(n) for n in range(1, 6)]), path="/v1/samples"))[1]
    assert (answer["accepted"], answer["dropped"]) == (3, 2)
    status, _, headers = await client.post(body([sample()], batch=2), path="/v1/samples")
    assert (status, headers["Retry-After"]) == (429, "1")
    assert client.samples.counts == {"received": 6, "dropped": 3, "refused": 0, "dropped_by_gateways": 0}


@with_server(SampleQueue)
async def test_a_batch_that_comes_twice_counts_once(client, _):
    """A resend over a new connection is known by its identity."""
    assert (await client.post(body([sample()]), path="/v1/samples"))[1]["accepted"] == 1
    answer = (await client.post(body([sample()]), path="/v1/samples"))[1]
    assert (answer["accepted"], answer["duplicate"]) == (0, True)
    assert client.samples.samples == 1


BAD = {
    "no JSON": b"{",
    "a header value": sample() | {"authorization": "Bearer x"},
    "query values": sample() | {"query": "a=1"},
    "no method": {k: v for k, v in sample().items() if k != "method"},
    "absurd status": sample(status=1000),
    "negative bytes": sample(request_bytes=-1),
    "a body that is no base64": sample(request_body="{}"),
    "a number as path": sample(path=7),
    "a long path": sample(path="/" * 3_000),
    "a body beyond the bound": sample(got=b"x" * (samples.MAX_BODY_BYTES + 1)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_refused_with_its_place(name):
    """The others of its batch are kept."""
    batch = parse_samples(body([sample(1), BAD[name], sample(3)]))
    assert [refusal.position for refusal in batch.refused] == [2] and batch.refused[0].reason
    assert [json.loads(line)["line_no"] for line in batch.lines] == [1, 3]


@pytest.mark.parametrize(
    ("posted", "status"),
    [
        (b"", 400),
        (b"{}\n", 400),
        (body([], apicost=2), 415),
        (body([], node=""), 400),
        (body([], node="a\nb"), 400),
        (body([], batch=0), 400),
        (body([], worker={"pid": 0, "started_unix_ms": 1}), 400),
        (body([b"{}"] * 1_001), 413),
    ],
)
def test_a_header_that_is_no_use_refuses_the_batch(posted, status):
    """As for usage lines: 400, 415 for another version, 413 for too many."""
    with pytest.raises(BatchRefused) as refused:
        parse_samples(posted)
    assert refused.value.status == status


def test_a_cut_batch_loses_only_its_last_sample():
    """A sample without an end is refused as cut."""
    whole = body([sample(1), sample(2)])
    batch = parse_samples(whole[:-20])
    assert len(batch.lines) == 1
    assert [(refusal.position, refusal.kind) for refusal in batch.refused] == [(2, "cut")]


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_raise_anything_else(junk):
    """Whatever comes, it is a batch or a refusal."""
    for posted in (junk, body([junk.replace(b"\n", b"")])):
        try:
            batch = parse_samples(posted)
        except BatchRefused:
            continue
        for line in batch.lines:
            samples.read_sample(line)


@given(st.lists(st.one_of(st.integers(1, 12), st.none()), max_size=30), st.integers(1, 20), st.integers(1, 400))
def test_every_sample_is_waiting_dropped_or_given_out(steps, most, most_bytes):
    """Bounds hold at every step and nothing vanishes uncounted: received = given out + waiting + dropped."""
    queue = SampleQueue(max_samples=most, max_bytes=most_bytes)
    given_out = 0
    for number, step in enumerate(steps):
        if step is None:
            batch = queue.get(0)
            given_out += len(batch.lines) if batch else 0
        else:
            queue.offer(SampleBatch(identity=f"b{number}", node="n", lines=[b"x" * 30] * step))
        assert queue.samples <= most and queue.bytes <= most_bytes
        assert queue.counts["received"] == given_out + queue.samples + queue.counts["dropped"]
    waiting = queue.samples
    dropped = queue.counts["dropped"]
    queue.close()
    assert (queue.samples, queue.bytes, queue.counts["dropped"]) == (0, 0, dropped + waiting)
    assert queue.get(0) is None
