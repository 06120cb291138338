"""What becomes of client addresses before exchanges are stored.

Scopes are looked up before this (`core/meter.py`): truncating must not move a client to another network.
Addresses of backends are the operator's own and stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost import durable
from apicost.core import records

CHOICES = ("full", "truncate", "hash")
KEY_BYTES = 32
_MAPPED = np.uint64(0xFFFF)  # bits 32 to 47 of the lower half where an IPv4 address is carried
_HASHED = 0xFD  # first byte of a hashed address: fd00::/8, so that it can't be taken for a public one


def with_privacy(exchanges: pa.Table, choice: str, *, key: bytes = b"") -> pa.Table:
    """The batch with its clients' addresses kept ("full"), cut ("truncate") or keyed-hashed ("hash").

    exchanges: columns as in `records.EXCHANGE`.
    truncate: IPv4 to /24, IPv6 to /48. hash: 120 bits of BLAKE2b under `key`, shown as fd00::/8; equal
    addresses stay equal, and without the key (`address_key`) four billion guesses lead nowhere.
    An unknown address (zeros) stays unknown. Raises ValueError for another choice, or a hash without key.
    """
    if choice == "full":
        return exchanges
    hi = records.numbers(exchanges, "peer_hi").astype(np.uint64, copy=False)
    lo = records.numbers(exchanges, "peer_lo").astype(np.uint64, copy=False)
    if choice == "truncate":
        hi, lo = _truncate(hi, lo)
    elif choice == "hash":
        if not key:
            raise ValueError("client addresses can't be hashed without a key: four billion guesses would undo it")
        hi, lo = _hash(hi, lo, key)
    else:
        raise ValueError(f"client_addresses {choice!r} is none of {', '.join(CHOICES)}")
    for name, column in (("peer_hi", hi), ("peer_lo", lo)):
        at = exchanges.schema.get_field_index(name)
        exchanges = exchanges.set_column(at, exchanges.schema.field(at), pa.array(column, pa.uint64()))
    return exchanges


def address_key(folder: Path) -> bytes:
    """The ledger's key for hashing, made at the first call; whoever has it can find addresses by guessing.

    Raises OSError when it can't be read or written.
    """
    path = folder / "address.key"
    with contextlib.suppress(FileNotFoundError):
        key = path.read_bytes()
        if len(key) >= KEY_BYTES:
            return key
    key = os.urandom(KEY_BYTES)

    def put(temporary: Path) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(key)

    durable.write_file(path, put)
    return key


Halves = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


def _truncate(hi: npt.NDArray[np.uint64], lo: npt.NDArray[np.uint64]) -> Halves:
    mapped = (hi == 0) & (lo >> np.uint64(32) == _MAPPED)
    return (
        np.where(mapped, hi, hi & np.uint64(0xFFFF_FFFF_FFFF_0000)),
        np.where(mapped, lo & np.uint64(0xFFFF_FFFF_FFFF_FF00), np.uint64(0)),
    )


def _hash(hi: npt.NDArray[np.uint64], lo: npt.NDArray[np.uint64], key: bytes) -> Halves:
    # One hash per distinct address: a batch has far fewer clients than requests.
    pairs = np.empty((len(hi), 2), ">u8")
    pairs[:, 0], pairs[:, 1] = hi, lo
    found, back = np.unique(pairs.view("V16").ravel(), return_inverse=True)
    hashed = np.zeros((len(found), 2), ">u8")
    for at, address in enumerate(found.tolist()):
        if any(address):
            digest = hashlib.blake2b(address, key=key[:64], digest_size=15).digest()
            hashed[at] = np.frombuffer(bytes([_HASHED]) + digest, ">u8")
    whole = hashed[back].astype(np.uint64)
    return whole[:, 0], whole[:, 1]
