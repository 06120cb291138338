"""Network scopes: which network an address belongs to."""

import ipaddress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core.scopes import Scopes
from tests.store.batches import halves


def scope(scopes: Scopes, address: str) -> str:
    hi, lo = halves(address)
    found = scopes.classify(np.array([hi], np.uint64), np.array([lo], np.uint64))
    return scopes.names[found[0]]


def test_the_first_match_wins():
    """A narrow network listed before a wide one is found; listed after it, never."""
    narrow_first = Scopes([("zone", ["10.1.0.0/20"]), ("region", ["10.0.0.0/8"])])
    wide_first = Scopes([("region", ["10.0.0.0/8"]), ("zone", ["10.1.0.0/20"])])
    assert [scope(narrow_first, a) for a in ("10.1.0.1", "10.1.16.0", "10.0.255.255")] == [
        "zone",
        "region",
        "region",
    ]
    assert scope(wide_first, "10.1.0.1") == "region"


def test_what_no_network_holds_is_unknown():
    """Never "internet" by default; loopback and private ranges mean nothing unless listed."""
    scopes = Scopes([("office", ["192.0.2.0/24"])])
    assert {scope(scopes, a) for a in ("127.0.0.1", "10.0.0.1", "::1", "192.0.1.255", "192.0.3.0")} == {"unknown"}


def test_ipv4_and_ipv6_are_kept_apart():
    """ "::/0" is not IPv4, though IPv4 is carried in IPv6's form."""
    scopes = Scopes([("six", ["::/0"]), ("four", ["0.0.0.0/0"])])
    assert scope(scopes, "198.51.100.9") == "four"
    assert [scope(scopes, a) for a in ("::1", "2001:db8::1", "ffff::", "::fffe:ffff:ffff")] == ["six"] * 4


def test_an_unknown_address_has_no_scope():
    """All zeros stands for no address, even where everything is listed."""
    assert scope(Scopes([("all", ["::/0"])]), "::") == "unknown"


def test_a_name_may_stand_twice():
    """One scope, many entries."""
    scopes = Scopes([("a", ["10.0.0.0/8"]), ("b", ["11.0.0.0/8"]), ("a", ["12.0.0.0/8"])])
    assert scopes.names == ("a", "b", "unknown")
    assert scope(scopes, "12.0.0.1") == "a"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "office", ""])
def test_what_is_no_network_is_refused(text):
    """Host bits set is a mistake to tell, not to guess about."""
    with pytest.raises(ValueError):
        Scopes([("a", [text])])


networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda t: str(ipaddress.ip_network((t[0] >> (32 - t[1]) << (32 - t[1]), t[1])))
    ),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda t: str(ipaddress.IPv6Network((t[0] >> (128 - t[1]) << (128 - t[1]), t[1])))
    ),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(networks, max_size=4)), max_size=5), st.data())
def test_classifying_is_asking_each_network_in_turn(rules, data):
    """The compiled tables say what a plain walk through the list says."""
    listed = [(name, ipaddress.ip_network(text)) for name, texts in rules for text in texts]
    # Addresses at the edges of the networks, where mistakes live.
    edges = [n.network_address for _, n in listed] + [n.broadcast_address for _, n in listed]
    address = data.draw(st.one_of(st.sampled_from(edges) if edges else st.nothing(), st.ip_addresses()))
    if address.version == 6 and (address.ipv4_mapped or int(address) == 0):
        return  # these two stand for an IPv4 address and for none
    plain = next((name for name, n in listed if n.version == address.version and address in n), "unknown")
    assert scope(Scopes(rules), str(address)) == plain
