"""The configuration file: read strictly, every problem at once."""

from pathlib import Path

import pytest

from apicost import config
from apicost.problems import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "apicost.yaml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_defaults(tmp_path):
    """Nothing has to be configured on one node."""
    got = config.load(write(tmp_path, ""))
    assert got.receiver == config.ReceiverSettings()
    assert got.apis == ()


def test_values_land_where_they_belong(tmp_path):
    """
    node: gw-1
    state_dir: state
    receiver: {listen: "127.0.0.1:1", token_file: token}
    probe: {enabled: false, gateway_ports: [80, 443], sweep_s: 2}
    apis:
      - id: shop
        documents: [shop.yaml]
        tags: {tier: gold}
        route_ids: ["1", 2]
    """
    (tmp_path / "shop.yaml").write_text("openapi: 3.1.0")
    got = config.load(write(tmp_path, test_values_land_where_they_belong.__doc__))
    assert got.node == "gw-1"
    assert got.state_dir == tmp_path / "state"
    assert got.receiver.token_file == tmp_path / "token"
    assert got.probe.gateway_ports == (80, 443)
    assert got.probe.sweep_s == 2.0
    assert got.apis[0].route_ids == ("1", "2")
    assert got.apis[0].documents == (tmp_path / "shop.yaml",)
    assert got.apis[0].tags == {"tier": "gold"}


def test_all_problems_come_at_once_with_their_lines(tmp_path):
    """Unknown keys, wrong types, missing files and doubled ids in one go."""
    path = write(
        tmp_path,
        "recever: {}\n"
        "receiver: {listen: nowhere}\n"
        "probe: {enabled: maybe, sweep_s: -1}\n"
        "privacy: {client_addresses: none}\n"
        "apis:\n"
        "  - {id: a, documents: [gone.yaml]}\n"
        "  - {id: a}\n"
        "  - {title: nameless}\n",
    )
    with pytest.raises(InputError) as caught:
        config.load(path)
    lines = [problem.place.rsplit(":", 1)[1] for problem in caught.value.problems]
    text = str(caught.value)
    assert sorted(lines) == ["1", "2", "3", "3", "4", "6", "7", "8"]
    assert "did you mean 'receiver'" in text
    assert "fix: " in text and "effect: " in text


@pytest.mark.parametrize("value", ["127.0.0.1:9555", "[::1]:9555", "localhost:0", "unix:/run/apicost.sock"])
def test_listen_addresses_that_are_taken(tmp_path, value):
    """HOST:PORT in both families, and Unix sockets."""
    assert config.load(write(tmp_path, f'web: "{value}"')).web == value


def test_conformance_says_severities_and_ignores(tmp_path: Path) -> None:
    """`off` is the word, not YAML's false; an ignore keeps its day and its place."""
    file = tmp_path / "apicost.yaml"
    file.write_text(
        "conformance:\n  severity: {loose-match: off, shadow-endpoint: info}\n  ignore:\n"
        "    - {rule: deprecated-in-use, api: shop, reason: until March, expires: 2027-03-01}\n"
    )
    found = config.load(file).conformance
    assert found.severity == {"loose-match": "off", "shadow-endpoint": "info"}
    (ignore,) = found.ignore
    assert (ignore.expires.isoformat(), ignore.place) == ("2027-03-01", f"{file}:4")
    assert found.rules().severity_of("shadow-endpoint") == "info"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("severity: {lose-match: off}", "loose-match"),
        ("severity: {loose-match: loud}", "loud"),
        ("ignore: {rule: loose-match}", "not a list"),
        ("ignore: [{rule: loose-match, expires: 2027-01-01}]", "no reason"),
        ("ignore: [{rule: loose-match, reason: because}]", "no expires"),
        ("ignore: [{rule: loose-match, reason: because, expires: soon}]", "no day"),
        ("ignore: [{rule: nothing, reason: because, expires: 2027-01-01}]", "'nothing'"),
        ("ignore: [{rule: loose-match, reason: because, expires: 2027-01-01, apis: x}]", "'apis'"),
    ],
)
def test_conformance_that_says_nothing_usable_is_a_problem(tmp_path: Path, text: str, told: str) -> None:
    """An ignore without reason or end, or with a name that fits nothing, is never taken silently."""
    file = tmp_path / "apicost.yaml"
    file.write_text(f"conformance:\n  {text}\n")
    with pytest.raises(InputError) as caught:
        config.load(file)
    assert told in str(caught.value) and str(file) in str(caught.value)


def test_names_in_focus_files_are_configured(tmp_path: Path) -> None:
    """Who bills whom: an account that is a number is text all the same; an unknown name is told with the nearest."""
    got = config.load(write(tmp_path, "focus: {billing_account_id: 4711, provider_name: Platform, region_id: eu-1}"))
    assert (got.focus.billing_account_id, got.focus.provider_name, got.focus.region_id) == ("4711", "Platform", "eu-1")
    assert got.focus.service_name == "API Gateway"
    with pytest.raises(InputError, match="billing_account_id"):
        config.load(write(tmp_path, "focus: {billing_acount_id: a}"))
