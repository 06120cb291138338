"""The whole way on this machine: kernel, gateway, correlation, ledger, against a client that counts its sockets."""

import glob
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from apicost import config
from apicost import run as wiring
from apicost.core import records
from apicost.core.clock import Clock
from apicost.demo import live
from apicost.ingest import replay
from apicost.store import lake

pytestmark = [pytest.mark.kernel, pytest.mark.gateway]


@pytest.fixture(scope="module")
def run(tmp_path_factory, kernel_or_skip):
    return live.run(tmp_path_factory.mktemp("live"), rounds=2, record=True)


@pytest.fixture(scope="module")
def exchanges(run):
    """All rows of the run's ledger, after what still waited at the stop was given out."""
    settings = config.load(run.config)
    knowledge = wiring.load_knowledge(settings.apis, settings.prices)
    with lake.Lake.open(settings.ledger_dir) as ledger:
        pipeline = wiring.Pipeline(ledger, wiring.correlate_settings(settings), node=settings.node)
        pipeline.end_session(knowledge, Clock(mono_ns=time.monotonic_ns(), unix_ns=time.time_ns()))
    files = glob.glob(str(run.config.parent / "state/ledger/**/exchanges-*.parquet"), recursive=True)
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).unify_dictionaries()


def columns(table, *names):
    return [table.column(name).to_pylist() for name in names]


def test_every_request_is_accounted_once(run, exchanges):
    """Each request that the client sent is one exchange, and nothing else is."""
    requests = exchanges.filter(pc.equal(exchanges["kind"], int(records.RowKind.EXCHANGE)))
    sent = Counter((s.method, s.host, s.path) for s in run.sent)
    assert Counter(zip(*columns(requests, "method", "host", "path"), strict=True)) == sent


def test_payload_bytes_are_those_of_the_client_s_sockets(run, exchanges):
    """HTTP/1.1, plain and TLS: what the client's socket sent and received is what the exchange carries."""
    got = Counter(
        zip(
            *columns(
                exchanges,
                "method",
                "host",
                "path",
                "status",
                "downstream_in_payload_bytes",
                "downstream_out_payload_bytes",
            ),
            strict=True,
        )
    )
    compared = 0
    for sent in run.sent:
        # Side by side requests have no bytes of their own at the socket; an aborting client reads less than is sent.
        if sent.kind in ("http2", "pipelined", "abort"):
            continue
        key = (sent.method, sent.host, sent.path, sent.status, sent.sent_bytes, sent.received_bytes)
        assert got[key] > 0, f"no exchange with the bytes of {sent}"
        got[key] -= 1
        compared += 1
    assert compared > 100


def test_pipelined_requests_sum_to_their_connection_s_bytes(run, exchanges):
    """Five requests written at once share what the client counted for the five."""
    pipelined = [sent for sent in run.sent if sent.kind == "pipelined"]
    wanted_in = sum(sent.sent_bytes for sent in pipelined)
    wanted_out = sum(sent.received_bytes for sent in pipelined)
    flows = Counter()
    rows = zip(
        *columns(
            exchanges, "path", "http_version", "kind", "downstream_in_payload_bytes", "downstream_out_payload_bytes"
        ),
        strict=True,
    )
    paths = {sent.path for sent in pipelined}
    for path, version, kind, into, out in rows:
        if path in paths and version == 11 and kind == 1:
            flows["in"] += into
            flows["out"] += out
    assert (flows["in"], flows["out"]) == (wanted_in, wanted_out)


def test_ledger_bytes_are_the_kernel_s(run, exchanges):
    """Exchanges + overhead + unattributed = the kernel's count, each direction, over all flows of the run."""
    flows = replay.load(run.config.parent / "recorded").flows
    flow, kind = records.numbers(flows, "flow"), records.numbers(flows, "kind")
    closed = kind == records.SnapshotKind.CLOSED
    assert closed.any()
    assert len(np.unique(flow[closed])) == closed.sum(), "one final snapshot per flow"
    assert set(flow) == set(flow[closed]), "every flow of the run has ended"
    for direction in ("in", "out"):
        kernel = int(records.numbers(flows, f"{direction}_wire_bytes")[closed].sum())
        ledger = sum(pc.sum(exchanges[f"{leg}_{direction}_wire_bytes"]).as_py() for leg in records.LEGS)
        assert ledger == kernel


def test_each_request_finds_its_operation(exchanges):
    """Documented, undocumented and unknown traffic land where they belong."""
    rows = set(zip(*columns(exchanges, "path", "api", "operation_id", "match_state"), strict=True))
    assert ("/v1/internal/debug", "shop", None, "undocumented-path") in rows
    assert ("/", None, None, "unknown-host") in rows
    assert ("/files/film-0", "media", "downloadFile", "matched") in rows
    assert ("/v1/products/sku-0", "shop", "getProduct", "matched") in rows


def test_nothing_stays_attached(run):
    """After SIGTERM the run's cgroup is gone, and so is everything that was attached to it."""
    assert "apicost-demo" in run.config.read_text()
    cgroup = run.config.read_text().split("cgroup: ")[1].split("}")[0]
    assert not glob.glob(cgroup)
