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
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

UNKNOWN = "unknown"

_MAPPED = 0xFFFF << 32  # ::ffff:0:0, where IPv4 lies
_MAPPED_END = _MAPPED + (1 << 32)
_HALF = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scopes:
    """An ordered list of named networks, compiled for classifying addresses by the million.

    names: the scopes in order, without repeats; `UNKNOWN` stands last.
    """

    names: tuple[str, ...] = (UNKNOWN,)
    # From each start (lower, upper half) on, `_names_at` says the scope, up to the next start.
    # One table for addresses whose upper half is zero (IPv4 among them), one for all others.
    _low_starts: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1, np.uint64), repr=False)
    _low_scopes: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32), repr=False)
    _high_starts: npt.NDArray[np.bytes_] = field(default_factory=lambda: np.array([b"\0" * 16], "S16"), repr=False)
    _high_scopes: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32), repr=False)

    @classmethod
    def of(cls, rules: Iterable[tuple[str, Iterable[str]]] = ()) -> Scopes:
        """Compile (name, networks) pairs; a name may stand more than once.

        networks: CIDR text such as "10.0.0.0/8", "2001:db8::/32" or a single address.
        Raises ValueError quoting a network that is none, host bits included.
        """
        names: list[str] = []
        layers: list[tuple[int, int, int]] = []
        for name, networks in rules:
            if name != UNKNOWN and name not in names:
                names.append(name)
            for text in networks:
                layers += [(start, end, _position(names, name)) for start, end in _ranges(text)]
        names.append(UNKNOWN)
        unknown = len(names) - 1
        starts, scopes = _flatten([(s, e, unknown if n < 0 else n) for s, e, n in layers], unknown)
        low = [(s, n) for s, n in zip(starts, scopes, strict=True) if s < _HALF]
        # The upper table begins with the scope that is in force where the lower one ends.
        high = [(_HALF, low[-1][1]), *((s, n) for s, n in zip(starts, scopes, strict=True) if s >= _HALF)]
        return cls(
            names=tuple(names),
            _low_starts=np.array([s for s, _ in low], np.uint64),
            _low_scopes=np.array([n for _, n in low], np.int32),
            _high_starts=np.array([s.to_bytes(16, "big") for s, _ in high], "S16"),
            _high_scopes=np.array([n for _, n in high], np.int32),
        )

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


def _position(names: list[str], name: str) -> int:
    return names.index(name) if name in names else -1


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


def _flatten(layers: list[tuple[int, int, int]], unknown: int) -> tuple[list[int], list[int]]:
    """Disjoint ranges from overlapping ones: the earliest layer wins. Starts and what holds from there."""
    edges = sorted({0, *(e for s, t, _ in layers for e in (s, t) if e < 1 << 128)})
    owner = [unknown] * len(edges)
    free = list(range(len(edges)))  # edges that no earlier layer has taken, in order
    for start, end, name in layers:
        first = bisect.bisect_left(free, bisect.bisect_left(edges, start))
        last = bisect.bisect_left(free, bisect.bisect_left(edges, end))
        for at in free[first:last]:
            owner[at] = name
        del free[first:last]
    return edges, owner
