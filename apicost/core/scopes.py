"""Network scopes: which part of the network an address belongs to, by the price book's own list.

Rules of this file:
- First match wins, in the order written. An address that no network holds is "unknown", never "internet".
- Loopback and private ranges mean nothing by themselves: only what is listed counts.
- "0.0.0.0/0" is all of IPv4 and "::/0" all of IPv6: an IPv6 network never catches the IPv4 addresses
  that are carried mapped (::ffff:a.b.c.d), unless it lies within that mapped block itself.
"""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

UNKNOWN = "unknown"

_MAPPED = 0xFFFF << 32  # ::ffff:0:0, where IPv4 lies
_MAPPED_END = _MAPPED + (1 << 32)
_HALF = 1 << 64


class Scopes:
    """An ordered list of named networks, compiled for classifying addresses by the million.

    names: the scopes in order, without repeats; `UNKNOWN` stands last.
    """

    __slots__ = ("_high_scopes", "_high_starts", "_low_scopes", "_low_starts", "names")

    def __init__(self, rules: Iterable[tuple[str, Iterable[str]]] = ()) -> None:
        """Compile (name, networks) pairs; a name may stand more than once.

        networks: CIDR text such as "10.0.0.0/8", "2001:db8::/32" or a single address.
        Raises ValueError quoting a network that is none, host bits included.
        """
        names: list[str] = []
        layers: list[tuple[int, int, str]] = []
        for name, networks in rules:
            if name != UNKNOWN and name not in names:
                names.append(name)
            layers += [(start, end, name) for text in networks for start, end in _ranges(text)]
        self.names = (*names, UNKNOWN)
        place = {name: at for at, name in enumerate(self.names)}
        starts, owners = _flatten(layers)
        scopes = [place[owner] for owner in owners]
        # From each start on, the scope beside it holds, up to the next start. One table for addresses
        # whose upper half is zero (IPv4 among them), searched as integers, and one for all others, which
        # begins with the scope that is in force where the first ends.
        split = bisect.bisect_left(starts, _HALF)
        self._low_starts = np.array(starts[:split], np.uint64)
        self._low_scopes = np.array(scopes[:split], np.int32)
        self._high_starts = np.array([s.to_bytes(16, "big") for s in [_HALF, *starts[split:]]], "S16")
        self._high_scopes = np.array([scopes[split - 1], *scopes[split:]], np.int32)

    def classify(self, hi: npt.NDArray[np.generic], lo: npt.NDArray[np.generic]) -> npt.NDArray[np.int32]:
        """Positions in `names`, one per address; an address of all zeros is not known, so UNKNOWN.

        hi, lo: uint64, upper and lower half.
        """
        upper, lower = hi.astype(np.uint64, copy=False), lo.astype(np.uint64, copy=False)
        # NumPy searches to the right of equal starts: the range that begins at the address holds it.
        found = self._low_scopes[np.searchsorted(self._low_starts, lower, side="right") - 1]
        wide = np.flatnonzero(upper)
        if wide.size:
            keys = np.empty((wide.size, 2), ">u8")
            keys[:, 0], keys[:, 1] = upper[wide], lower[wide]
            at = np.searchsorted(self._high_starts, keys.view("S16").ravel(), side="right") - 1
            found[wide] = self._high_scopes[at]
        found[(upper == 0) & (lower == 0)] = len(self.names) - 1
        return found


def _ranges(text: str) -> list[tuple[int, int]]:
    """The half-open ranges of 128-bit addresses that a network means."""
    network = ipaddress.ip_network(text)
    start = int(network.network_address)
    end = start + network.num_addresses
    if network.version == 4:
        return [(start + _MAPPED, end + _MAPPED)]
    if start < _MAPPED and end >= _MAPPED_END:  # it surrounds the mapped block: leave a hole there
        return [(start, _MAPPED), (_MAPPED_END, end)]
    return [(start, end)]


def _flatten(layers: list[tuple[int, int, str]]) -> tuple[list[int], list[str]]:
    """Disjoint ranges from overlapping ones, the earliest layer winning: starts and who holds from there."""
    edges = sorted({0, *(edge for start, end, _ in layers for edge in (start, end) if edge < 1 << 128)})
    owners = [UNKNOWN] * len(edges)
    free = list(range(len(edges)))  # edges that no earlier layer has taken, in order
    for start, end, name in layers:
        first = bisect.bisect_left(free, bisect.bisect_left(edges, start))
        last = bisect.bisect_left(free, bisect.bisect_left(edges, end))
        for at in free[first:last]:
            owners[at] = name
        del free[first:last]
    return edges, owners
