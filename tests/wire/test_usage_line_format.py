"""What a usage batch means: each column of the wire format, and what becomes of it in LINE."""

import json
from pathlib import Path

import pytest

from apicost.core import records
from apicost.ingest import line_form
from apicost.ingest.lines import BatchRefused, Limits, parse_batch
from bench import receiver_workload as sample

SCHEMA = json.loads((Path(__file__).parents[2] / "specs" / "usage-line.schema.json").read_text())
KINDS = {line_form.INTEGER: "integer", line_form.NUMBER: "number", line_form.WORD: "string", line_form.PLAIN: "string"}


def one(**values):
    """The single LINE row of a batch with one line."""
    batch = parse_batch(sample.body(sample.header(count=1), [sample.line(**values)]))
    assert not batch.refused, batch.refused
    return batch.table.to_pylist()[0]


def test_the_reader_knows_exactly_the_columns_of_the_schema():
    """Order, type and necessity of each column are those that specs/usage-line.schema.json publishes."""
    published = [(c["name"], c["type"], c["required"]) for c in SCHEMA["x-columns"]]
    assert [(name, KINDS[kind], required) for name, kind, required in line_form.WIRE] == published


def test_the_reader_knows_exactly_the_header_of_the_schema():
    """Every header field the schema requires is read, and no other."""
    assert list(line_form.Header.__struct_fields__) == SCHEMA["required"]
    assert SCHEMA["properties"]["apicost"]["const"] == line_form.VERSION


def test_a_batch_becomes_a_line_table():
    """The columns are LINE's, in the order of the body, numbered from the header's `first`."""
    body = sample.body(sample.header(first=41, count=3, pid=7), [sample.line(n=n) for n in (0, 1, 3)])
    batch = parse_batch(body)
    records.check(batch.table, records.LINE, "test")
    assert batch.table["line_no"].to_pylist() == [41, 42, 44]
    assert set(batch.table["worker_pid"].to_pylist()) == {7}
    assert not batch.half


def test_a_batch_without_lines_is_fine():
    """A worker may only report what it dropped."""
    batch = parse_batch(sample.body(sample.header(dropped=9), []))
    records.check(batch.table, records.LINE, "test")
    assert batch.table.num_rows == 0 and batch.header.dropped == 9


def test_times_are_told_on_both_clocks():
    """Monotonic times count from the header's base; the start is $msec less $request_time."""
    row = one(log_us=2_000_000, access_before_us=1_500, header_before_us="", request_time="0.250")
    assert row["log_mono_ns"] == sample.BASE_MONO_NS + 2_000_000_000
    assert row["access_mono_ns"] == row["log_mono_ns"] - 1_500_000
    assert row["header_mono_ns"] == -1
    assert row["log_unix_ns"] == sample.BASE_UNIX_NS + 2_000_000_000
    assert row["started_unix_ns"] == sample.BASE_UNIX_NS - 250_000_000


@pytest.mark.parametrize(
    ("text", "high", "low"),
    [
        ("10.1.2.3", 0, 0xFFFF0A010203),
        ("2001:db8::1", 0x20010DB800000000, 1),
        ("::ffff:10.1.2.3", 0, 0xFFFF0A010203),
        ("fe80::1%eth0", 0xFE80000000000000, 1),
        ("unix:", 0, 0),
        ("unix:/run/gw.sock", 0, 0),
    ],
)
def test_addresses_are_two_halves(text, high, low):
    """IPv4 is mapped, a Unix socket has no address."""
    row = one(peer_addr=text, peer_port="")
    assert (row["peer_hi"], row["peer_lo"], row["peer_port"]) == (high, low, -1)


@pytest.mark.parametrize(
    ("host", "tls", "kept"),
    [
        ("API.Example.com", "", "api.example.com"),
        ("api.example.com:80", "", "api.example.com"),
        ("api.example.com:443", "", "api.example.com:443"),
        ("api.example.com:443", "TLSv1.3", "api.example.com"),
        ("api.example.com:80", "TLSv1.3", "api.example.com:80"),
        ("api.example.com:8443", "TLSv1.3", "api.example.com:8443"),
        ("", "", None),
    ],
)
def test_hosts_are_lower_case_without_default_port(host, tls, kept):
    """What is the default port depends on whether the connection is TLS."""
    assert one(host=host, tls_version=tls)["host"] == kept


def test_hosts_of_plain_and_tls_lines_in_one_batch_do_not_mix():
    """The same text may mean two hosts."""
    texts = [("a:443", ""), ("a:443", "TLSv1.3"), ("", "TLSv1.2"), ("A", "")]
    body = sample.body(
        sample.header(count=4), [sample.line(n=n, host=h, tls_version=t) for n, (h, t) in enumerate(texts)]
    )
    assert parse_batch(body).table["host"].to_pylist() == ["a:443", "a", None, "a"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("b&a&b", "a,b"),
        ("", None),
        ("&&", None),
        ("*&limit", "*,limit"),
        ("token=SECRET&a=1", "a,token"),
        ("a,b&c", "a%2Cb,c"),
        ("&".join(f"n{i:02}" for i in range(40)), ",".join(f"n{i:02}" for i in range(32)) + ",(more)"),
    ],
)
def test_query_names_are_sorted_once_each_and_never_values(sent, kept):
    """At most 32 names; a value that the gateway left in goes no further."""
    assert one(query_names=sent)["query_names"] == kept


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("Application/JSON; charset=utf-8", "application/json"), ("text/plain", "text/plain"), (";x", None)],
)
def test_media_types_lose_their_parameters(sent, kept):
    """Lower case, nothing after the semicolon."""
    row = one(request_content_type=sent, response_content_type=sent)
    assert row["request_content_type"] == row["response_content_type"] == kept


@pytest.mark.parametrize(
    ("sent", "version"),
    [("HTTP/1.0", 10), ("HTTP/1.1", 11), ("HTTP/2.0", 20), ("HTTP/2", 20), ("HTTP/3.0", 30), ("HTTP/0.9", 10)],
)
def test_http_versions_are_numbers(sent, version):
    """10, 11, 20 or 30."""
    assert one(http_version=sent)["http_version"] == version


def tries(**values):
    names = ("addr", "status", "sent_bytes", "received_bytes", "connect_ms", "response_ms")
    row = one(**values)
    return [row[f"attempt_{name}"] for name in names]


NO_UPSTREAM = dict.fromkeys(
    ("upstream_scheme", "upstream_addr", "upstream_status", "upstream_bytes_sent", "upstream_bytes_received",
     "upstream_connect_time", "upstream_response_time"), "",
)  # fmt: skip


def test_a_request_without_upstream_has_no_tries():
    """401, 404 and the like."""
    assert tries(**NO_UPSTREAM) == [[], [], [], [], [], []]


def test_one_try():
    """The ordinary case."""
    assert tries() == [["10.0.1.1:8080"], [200], [180], [410], [0], [1]]


def test_a_client_that_went_away_leaves_dashes():
    """nginx writes "-" where it has nothing: -1 here."""
    assert tries(upstream_status="-", upstream_response_time="-")[1:2] == [[-1]]
    assert tries(upstream_connect_time="-")[4] == [-1]


def test_retries_and_internal_redirects_are_tries():
    """As measured on a gateway whose first two backends refused; " : " separates internal redirects."""
    assert tries(
        upstream_addr="127.0.0.1:1982, 127.0.0.1:1981 : 127.0.0.1:1980",
        upstream_status="502, 502 : 200",
        upstream_bytes_sent="0, 166 : 166",
        upstream_bytes_received="0, 0 : 382",
        upstream_connect_time="-, 0.001 : 0.000",
        upstream_response_time="0.000, 0.002 : 1.250",
    ) == [
        ["127.0.0.1:1982", "127.0.0.1:1981", "127.0.0.1:1980"],
        [502, 502, 200],
        [0, 166, 166],
        [0, 0, 382],
        [-1, 1, 0],
        [0, 2, 1250],
    ]


def test_tries_of_different_lines_stay_with_their_lines():
    """No upstream, one try and two tries in one batch."""
    two = {
        "upstream_addr": "a:1, b:2", "upstream_status": "502, 200", "upstream_bytes_sent": "1, 2",
        "upstream_bytes_received": "3, 4", "upstream_connect_time": "0.001, 0.002", "upstream_response_time": "-, 0.5",
    }  # fmt: skip
    body = sample.body(
        sample.header(count=3), [sample.line(n=0, **NO_UPSTREAM), sample.line(n=1), sample.line(n=2, **two)]
    )
    table = parse_batch(body).table
    assert table["attempt_addr"].to_pylist() == [[], ["10.0.1.1:8080"], ["a:1", "b:2"]]
    assert table["attempt_response_ms"].to_pylist() == [[], [1], [-1, 500]]


def test_absent_is_minus_one_or_null():
    """Every optional column left empty: no zero and no empty text is made up."""
    optional = {name: "" for name, _, required in line_form.WIRE if not required}
    row = one(**optional)
    for column in records.LINE:
        value = row[column.name]
        assert value != "", column.name
    assert row["content_length"] == row["llm_prompt_tokens"] == row["tls_read_bytes"] == row["local_port"] == -1
    assert row["host"] is row["route_id"] is row["request_id"] is row["consumer"] is None


def test_utf8_paths_stay():
    """Bytes beyond ASCII are kept where they are UTF-8."""
    assert one(path="/caf\u00e9".encode())["path"] == "/caf\u00e9"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"no line end", 400),
        (b"not json\n", 400),
        (b'{"apicost":2}\n', 415),
        (b'{"apicost":"1"}\n', 400),
        (b'{"apicost":1}\n', 400),
        (b"[" * 5_000 + b"\n", 400),
        (b"\xff\xfe\n", 400),
        (b" " * 20_000 + b"\n", 400),
        (json.dumps(sample.header(node="")).encode() + b"\n", 400),
        (json.dumps(sample.header(node="gw\n1")).encode() + b"\n", 400),
        (json.dumps(sample.header(node="n" * 129)).encode() + b"\n", 400),
        (json.dumps(sample.header(first=0)).encode() + b"\n", 400),
        (json.dumps(sample.header(batch=0)).encode() + b"\n", 400),
        (json.dumps(sample.header(pid=0)).encode() + b"\n", 400),
        (json.dumps(sample.header(pid=1.5)).encode() + b"\n", 400),
        (json.dumps(sample.header(base_unix_ns=1 << 63)).encode() + b"\n", 400),
        (json.dumps(sample.header(started_unix_ms=-1)).encode() + b"\n", 400),
    ],
)
def test_a_header_that_cannot_be_used_refuses_the_batch(raw, status):
    """400 for what is unreadable or absurd, 415 for another version; the reason is one printable line."""
    with pytest.raises(BatchRefused) as refusal:
        parse_batch(raw)
    assert refusal.value.status == status
    assert refusal.value.reason.isprintable()


def test_more_lines_than_allowed_refuse_the_batch():
    """413: the gateway must make smaller batches."""
    body = sample.body(sample.header(count=3), [sample.line(n=n) for n in range(3)])
    with pytest.raises(BatchRefused) as refusal:
        parse_batch(body, Limits(max_lines=2))
    assert refusal.value.status == 413


def test_fields_a_later_plugin_adds_to_the_header_do_no_harm():
    """The schema allows additional header fields."""
    assert parse_batch(sample.body(sample.header(plugin="0.2"), [])).table.num_rows == 0
