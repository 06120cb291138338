"""Bad usage lines: each is refused or contained with a reason, and nothing else is lost."""

import json
import socket

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.ingest import careful, line_form, lines
from apicost.ingest import values as values_of
from apicost.ingest.lines import Limits, parse_batch
from bench import receiver_workload as sample

GOOD = sample.line(n=0)


def batch_of(*texts, received_unix_ns=0, **header):
    return parse_batch(
        sample.body(sample.header(count=len(texts), **header), list(texts)), received_unix_ns=received_unix_ns
    )


def cell(name, value):
    """A good line with raw bytes in one column."""
    cells = GOOD.split(b"\t")
    cells[line_form.NAMES.index(name)] = value
    return b"\t".join(cells)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b"", "columns"),
        (b"\t\t", "columns"),
        (GOOD + b"\t", "columns"),
        (GOOD.replace(b"/v1/orders", b"/v1\torders"), "columns"),
        (cell("n", b"x"), "not-a-number"),
        (cell("n", b""), "missing"),
        (cell("n", b"-1"), "out-of-bounds"),
        (cell("status", b"20O"), "not-a-number"),
        (cell("status", b"1000"), "out-of-bounds"),
        (cell("status", b"-200"), "out-of-bounds"),
        (cell("peer_port", b"65536"), "out-of-bounds"),
        (cell("local_port", b"-1"), "out-of-bounds"),
        (cell("request_bytes", b"9007199254740993"), "out-of-bounds"),
        (cell("request_bytes", b"99999999999999999999999999"), "out-of-bounds"),
        (cell("response_bytes", b"1e3"), "not-a-number"),
        (cell("content_length", b"-1"), "out-of-bounds"),
        (cell("content_length", b"-4611686018427387904"), "out-of-bounds"),
        (cell("request_time", b"nan"), "not-a-number"),
        (cell("request_time", b"inf"), "not-a-number"),
        (cell("request_time", b"-0.001"), "out-of-bounds"),
        (cell("request_time", b"1e300"), "out-of-bounds"),
        (cell("msec", b"99999999999"), "out-of-bounds"),
        (cell("log_us", b"1" * 17), "out-of-bounds"),
        (cell("method", b""), "missing"),
        (cell("path", b""), "missing"),
        (cell("http_version", b"SPDY/3"), "http-version"),
        (cell("connection_requests", b"2147483648"), "out-of-bounds"),
    ],
)
def test_a_bad_line_is_refused_with_its_position_and_the_others_kept(bad, kind):
    """Before, between and after good lines; the reason is one printable line."""
    batch = batch_of(sample.line(n=0), bad, sample.line(n=2), bad)
    assert batch.table["line_no"].to_pylist() == [1, 3]
    assert [(r.position, r.kind) for r in batch.refused] == [(2, kind), (4, kind)]
    assert all(r.reason.isprintable() and len(r.reason) < 200 for r in batch.refused)
    assert not batch.half


@pytest.mark.parametrize(
    ("text", "kind", "column", "kept"),
    [
        (cell("path", b"/a\x00b"), "control-characters", "path", "/a%00b"),
        (cell("path", b"/a\r"), "control-characters", "path", "/a%0D"),
        (cell("host", b"a\x7f"), "control-characters", "host", "a%7f"),
        (cell("path", b"/\xff\xfe"), "not-utf-8", "path", "/%FF%FE"),
        (cell("path", b"/\xed\xa0\x80"), "not-utf-8", "path", "/%ED%A0%80"),
        (cell("path", b"/" + b"x" * 2_048), "long-text", "path", line_form.LOST_VALUE),
        (cell("consumer", b"x" * 1_025), "long-text", "consumer", line_form.LOST_VALUE),
        (cell("peer_addr", b"300.1.2.3"), "address", "peer_lo", 0),
        (cell("peer_addr", b"example.com"), "address", "peer_lo", 0),
        (cell("request_id", b"<script>"), "request-id", "request_id", None),
        (cell("request_id", b"g" * 32), "request-id", "request_id", None),
        (cell("request_id", b"ABCDEF" + b"0" * 26), "request-id", "request_id", None),
        (cell("access_before_us", b"999999999999"), "before-boot", "access_mono_ns", -1),
        (cell("upstream_status", b"200, 200"), "upstream-tries", "attempt_status", [200, 200]),
        (cell("upstream_status", b""), "upstream-tries", "attempt_status", [-1]),
        (cell("upstream_status", b"ok"), "upstream-tries", "attempt_status", [-1]),
        (cell("upstream_bytes_sent", b"-5"), "upstream-tries", "attempt_sent_bytes", [-1]),
        (cell("upstream_addr", b", ".join([b"a:1"] * 70)), "upstream-tries", "attempt_status", [200] + [-1] * 63),
    ],
)
def test_a_value_that_cannot_be_trusted_is_contained(text, kind, column, kept):
    """The call is kept, the value claims nothing, and the kind is counted."""
    batch = batch_of(sample.line(n=0), text)
    assert not batch.refused
    assert batch.contained == {kind: 1}
    assert batch.table[column].to_pylist()[1] == kept


def test_a_path_at_the_limit_is_kept():
    """Only what is longer is contained."""
    path = "/" + "x" * 2_047
    assert batch_of(sample.line(path=path)).table["path"].to_pylist() == [path]


def test_a_cut_line_is_refused_and_keeps_no_number():
    """Half a batch keeps its good lines; the number of the cut one may still come with the whole batch."""
    body = sample.body(sample.header(count=3), [sample.line(n=n) for n in range(3)])
    batch = parse_batch(body[: body.rindex(b"\t") + 5])
    assert batch.half is False and batch.lines == 3
    assert batch.table["line_no"].to_pylist() == [1, 2]
    assert [(r.position, r.kind, r.number) for r in batch.refused] == [(3, "cut", None)]
    missing = parse_batch(sample.body(sample.header(count=3), [sample.line(n=0)]))
    assert missing.half and missing.table.num_rows == 1


def test_refused_lines_know_their_numbers_where_they_can():
    """So that they count as refused and not as lost as well."""
    batch = batch_of(sample.line(n=0), b"junk", sample.line(n=2), cell("status", b"x"), first=10)
    assert [r.number for r in batch.refused] == [11, 10]
    torn = batch_of(b"half a", b"line", sample.line(n=1), first=10)
    assert [r.number for r in torn.refused] == [10, None], "one number can't be two lines"


def test_a_junk_tail_never_takes_the_number_of_the_next_batch():
    """A value with a raw line break makes two lines of one; the next batch's first number stays free."""
    batch = parse_batch(sample.body(sample.header(count=2), [sample.line(n=0), b"half a", b"line"]))
    assert [r.number for r in batch.refused] == [2, None]


@pytest.mark.parametrize("seconds", [-86_400, -60, 60, 200])
def test_a_clock_that_was_set_is_noticed(seconds):
    """Where the header's pair and $msec disagree, the one nearer to the time of receipt holds."""
    now = sample.BASE_UNIX_NS
    text = cell("msec", f"{now / 1e9 + seconds:.3f}".encode())
    by_pair = batch_of(text, received_unix_ns=now + 1_000_000)
    assert by_pair.contained == {"clock-jump": 1}
    assert abs(by_pair.table["log_unix_ns"][0].as_py() - now) < 2_000_000
    by_msec = batch_of(text, received_unix_ns=now + seconds * 1_000_000_000 + 1_000_000)
    assert abs(by_msec.table["log_unix_ns"][0].as_py() - now - seconds * 1_000_000_000) < 2_000_000


def test_nothing_was_logged_in_the_future():
    """A gateway whose clock is years ahead does not write into years ahead."""
    received = sample.BASE_UNIX_NS - 10 * 365 * 86_400_000_000_000
    batch = batch_of(sample.line(), received_unix_ns=received)
    assert batch.contained == {"clock-future": 1}
    assert batch.table["log_unix_ns"].to_pylist() == [received]
    assert batch.table["started_unix_ns"][0].as_py() <= received


def test_a_million_distinct_paths_leave_nothing_behind():
    """Nothing is kept from batch to batch: the module's memory does not grow with traffic."""

    def run(first):
        texts = [sample.line(n=n, path=f"/{first}/{n}", peer_addr=f"10.{n % 200}.{n // 200}.1") for n in range(2_000)]
        return parse_batch(sample.body(sample.header(count=len(texts)), texts)).table.num_rows

    run(0)
    before = pa.total_allocated_bytes()
    assert sum(run(first) for first in range(1, 6)) == 10_000
    assert pa.total_allocated_bytes() <= before


def test_a_line_that_slips_through_the_careful_way_costs_itself_alone(monkeypatch):
    """If the two ways ever disagree, the lines around it are kept."""
    mend = careful._mend
    monkeypatch.setattr(careful, "_mend", lambda text, contained: text if b"SLIP" in text else mend(text, contained))
    slip = cell("status", b"SLIP")
    batch = batch_of(sample.line(n=0), b"junk", slip, sample.line(n=3, host="B"), slip, sample.line(n=5))
    assert [(r.position, r.kind) for r in batch.refused] == [(2, "columns"), (3, "unreadable"), (5, "unreadable")]
    assert batch.table["line_no"].to_pylist() == [1, 4, 6]
    assert batch.table["host"].to_pylist()[1] == "b"


octets = st.one_of(st.integers(0, 300).map(str), st.sampled_from(["", "00", "01", "1e", "-1", " 1", "0001", "\u0661"]))
hosts = st.one_of(
    st.lists(octets, min_size=1, max_size=6).map(".".join),
    st.ip_addresses().map(str),
    st.sampled_from(["::ffff:1.2.3.4", "::1.2.3", "1.2.3.4%eth0", "fe80::1%lo", "unix:", "...", "1..2.3", ".1.2.3"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(hosts, min_size=1, max_size=6))
def test_addresses_are_read_as_strictly_as_the_system_does(texts):
    """All at once, and each as inet_pton has it."""
    high, low, bad = values_of.addresses(pa.array(texts, pa.string()).dictionary_encode())
    expected = []
    for text in texts:
        try:
            packed = socket.inet_pton(socket.AF_INET, text)
            expected.append((0, 0xFFFF_0000_0000 | int.from_bytes(packed)))
        except (OSError, ValueError):
            try:
                packed = socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
                expected.append((int.from_bytes(packed[:8]), int.from_bytes(packed[8:])))
            except (OSError, ValueError):
                expected.append((0, 0))
    assert list(zip(high.tolist(), low.tolist(), strict=True)) == expected
    known = sum(1 for text, pair in zip(texts, expected, strict=True) if any(pair) or text in ("::", "unix:"))
    assert bad == len(texts) - known


# -- laws --------------------------------------------------------------------------------------

numerals = st.one_of(
    st.integers(-5, 1 << 70).map(str),
    st.floats().map(str),
    st.sampled_from(["", " ", " 5", "5 ", "+5", "0x1F", "0x", "007", "1e2", ".5", "5.", "1_000", "-", "\u0665", "NULL",
                     "nan", "NaN", "inf", "-0", "-0.0", "0x8000000000000000", "1E400", "--5"]),
)  # fmt: skip
words = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", " ", "-", ", ", " : ", "a, b", "200, 502", "1 : 2", "NULL", '"', '"a', "\\", "::1", "unix:",
                     "HTTP/2", "A:80", "x=1&y", "0.001, -", ",", "a :b", " :", ": ", ", , ", "1,2", ", 1", "1, ",
                     "a,b", "0x1F", "(over-long)"]),
    st.integers(0, 999).map(str),
)  # fmt: skip
raw_bytes = st.binary(max_size=12).filter(lambda b: b"\n" not in b and b"\t" not in b)
values = st.one_of(numerals, words).map(lambda t: t.replace("\t", " ").replace("\n", " ").encode(errors="replace"))
odd_cells = st.dictionaries(st.sampled_from(line_form.NAMES), st.one_of(values, raw_bytes), min_size=0, max_size=3)


@st.composite
def odd_lines(draw):
    """Lines of which some have odd cells, and some are no lines at all."""
    out = []
    for n in range(draw(st.integers(0, 6))):
        cells = sample.line(n=n).split(b"\t")
        for name, value in draw(odd_cells).items():
            cells[line_form.NAMES.index(name)] = value
        text = b"\t".join(cells)
        out.append(draw(st.sampled_from([text, text, text, text, text[:40], b"", text + b"\t"])))
    return out


LAW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@LAW
@given(odd_lines())
def test_the_two_ways_of_reading_agree(texts):
    """A line means the same whether it is read with the whole batch or taken apart."""
    body = sample.body(sample.header(count=len(texts)), texts)
    quick, careful = parse_batch(body), parse_batch(body, careful_always=True)
    assert quick.table.to_pylist() == careful.table.to_pylist()
    assert quick.refused == careful.refused
    assert quick.contained == careful.contained


@LAW
@given(odd_lines())
def test_lines_do_not_touch_each_other(texts):
    """Each line is refused or kept, and kept as the same, as when it comes alone."""
    together = parse_batch(sample.body(sample.header(count=len(texts)), texts))
    records.check(together.table, records.LINE, "test")
    refused = {r.position for r in together.refused}
    rows = iter(together.table.to_pylist())
    for position, text in enumerate(texts, 1):
        alone = parse_batch(sample.body(sample.header(count=1), [text]))
        if position in refused:
            assert alone.table.num_rows == 0
        else:
            assert alone.table.to_pylist() == [next(rows)]
    assert len(refused) + together.table.num_rows == len(texts)


@LAW
@given(st.binary(max_size=300), st.integers(0, 3))
def test_no_body_raises_anything_but_a_refusal(junk, good):
    """Junk after good lines costs the junk alone."""
    body = sample.body(sample.header(count=good), [sample.line(n=n) for n in range(good)]) + junk
    batch = parse_batch(body)
    assert batch.table.num_rows >= good
    assert batch.lines >= good


@LAW
@given(st.binary(max_size=200))
def test_no_header_raises_anything_but_a_refusal(junk):
    """Bytes that are no batch are refused as a whole."""
    try:
        parse_batch(junk)
    except lines.BatchRefused as refusal:
        assert refusal.status in (400, 413, 415)


@LAW
@given(st.dictionaries(st.sampled_from([*sample.header()]), st.one_of(st.integers(), st.text(max_size=5), st.none())))
def test_any_header_value_is_taken_or_refused(changes):
    """Absurd headers refuse the batch; what is taken fits its columns."""
    head = sample.header() | changes | {"count": 1}
    body = json.dumps(head).encode() + b"\n" + GOOD + b"\n"
    try:
        batch = parse_batch(body, Limits())
    except lines.BatchRefused:
        return
    records.check(batch.table, records.LINE, "test")
