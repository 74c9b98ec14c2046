"""The hash that names blobs, against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diced._fnv import fnv128


@given(st.binary(max_size=300))
def test_hashes_are_fnv1(data):
    value = 0x6C62272E07BB014262B821756295C58D
    for byte in data:
        value = value * (2**88 + 0x13B) % 2**128 ^ byte
    assert fnv128(data) == value.to_bytes(16, "big")


def test_hashes_of_large_and_odd_buffers():
    data = bytes(range(256)) * 40
    assert fnv128(memoryview(data)) == fnv128(bytearray(data)) == fnv128(data)
    # Of the page that defines it.
    assert fnv128(b"") == bytes.fromhex("6c62272e07bb014262b821756295c58d")
    with pytest.raises(ValueError, match="contiguous"):
        fnv128(memoryview(data)[::2])
    with pytest.raises(ValueError, match="buffer"):
        fnv128("text")
