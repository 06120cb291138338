"""Client addresses before they are stored."""

import ipaddress

import pytest

from apicost.core import records
from apicost.store.lake import Lake, with_privacy
from tests.store.batches import exchange, table

CLIENTS = ["192.0.2.77", "2001:db8:1:2::3", None, "192.0.2.77", "192.0.2.78"]


def clients(batch) -> list[str]:
    """The addresses of a batch as text."""
    pairs = zip(records.numbers(batch, "peer_hi").tolist(), records.numbers(batch, "peer_lo").tolist(), strict=True)
    found = [ipaddress.IPv6Address(hi << 64 | lo) for hi, lo in pairs]
    return [str(ip.ipv4_mapped or ip) for ip in found]


@pytest.fixture
def batch():
    return table([exchange(peer=client, upstream_peer="198.51.100.5") for client in CLIENTS])


def test_full_leaves_addresses(batch):
    """The operator's choice, and the default."""
    assert with_privacy(batch, "full") is batch


def test_truncate_keeps_the_network(batch):
    """/24 for IPv4, /48 for IPv6; an unknown address stays unknown."""
    cut = with_privacy(batch, "truncate")
    assert clients(cut) == ["192.0.2.0", "2001:db8:1::", "::", "192.0.2.0", "192.0.2.0"]


def test_a_hash_is_stable_within_a_ledger_alone(tmp_path, batch):
    """Equal clients stay equal, different ones differ, another ledger's hashes are others."""
    with Lake.open(tmp_path / "one") as lake:
        first = clients(lake.with_privacy(batch, "hash"))
    with Lake.open(tmp_path / "one") as lake:
        assert clients(lake.with_privacy(batch, "hash")) == first
    with Lake.open(tmp_path / "two") as lake:
        other = clients(lake.with_privacy(batch, "hash"))
    assert first[0] == first[3] and len(set(first)) == 4 and first[2] == "::"
    assert not set(first) & (set(other) - {"::"}) and not set(first) & set(CLIENTS)
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network("fd00::/8") for a in first if a != "::")
    assert (tmp_path / "one" / "address.key").stat().st_mode & 0o777 == 0o600


def test_a_hash_without_key_is_refused(batch):
    """Without a secret, trying all addresses would undo it."""
    with pytest.raises(ValueError, match="without a key"):
        with_privacy(batch, "hash")
    with pytest.raises(ValueError, match="none of full, truncate, hash"):
        with_privacy(batch, "some")


@pytest.mark.parametrize("choice", ["truncate", "hash"])
def test_nothing_else_changes(batch, choice):
    """Backends' addresses and every other column stay; the columns are still those of EXCHANGE."""
    changed = records.check(with_privacy(batch, choice, key=b"k" * 32), records.EXCHANGE, "test")
    rest = [name for name in batch.column_names if name not in ("peer_hi", "peer_lo")]
    assert changed.select(rest).equals(batch.select(rest))
