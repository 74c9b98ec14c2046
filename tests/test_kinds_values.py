"""Long values: stored in units, read in part, never read wrong."""

from __future__ import annotations

import secrets
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diced import DicedStore, keys, values
from diced.errors import CorruptError, InvalidError
from diced.fsck import check
from diced.segment import UNIT, VALUE, frame_header
from diced.state import Change
from diced.walk import frame_heads

MIB = 2**20
UNIT_BYTES = values.UNIT_BYTES
SIZES = [
    0, 1, 256, 257, values.AT_ONCE, values.AT_ONCE + 1, UNIT_BYTES - 1, UNIT_BYTES, UNIT_BYTES + 1,
    2 * UNIT_BYTES, 9 * UNIT_BYTES + 7,
]  # fmt: skip


def data_of(size: int, how: str) -> bytes:
    """Return bytes that compress, that do not, or that do in every second unit."""
    noise = np.random.default_rng(size).bytes(size)
    if how == "noise":
        return noise
    if how == "text":
        return (b"twelve bytes" * (size // 12 + 1))[:size]
    parts = [noise[at : at + UNIT_BYTES] for at in range(0, size, UNIT_BYTES)]
    return b"".join(b"." * len(each) if i % 2 else each for i, each in enumerate(parts))


@pytest.fixture(params=["memory", "local", "gcs"])
def array(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    location = f"memory://{secrets.token_hex(8)}"
    if request.param == "gcs":
        location = request.getfixturevalue("gcs").url()
    elif request.param == "local":
        location = str(tmp_path / "store")
    with DicedStore(location, durability="process") as store:
        yield store.create_repo("r").create_array("it", kind="keyvalue")


@pytest.mark.parametrize("how", ["noise", "text", "mixed"])
def test_any_size_there_and_back(array: Any, how: str) -> None:
    given = {f"{size}": data_of(size, how) for size in SIZES}
    array.put_many(given)
    assert dict(array.items()) == given
    assert dict(array.sizes(given)) == {name: len(data) for name, data in given.items()}
    for name, data in given.items():
        found = array.find(name)
        assert found.size == len(data)
        assert bytes(found.read()) == data
        assert b"".join(found.pieces()) == data
        size = len(data)
        for start, stop in ((0, 1), (size - 1, size), (size // 2, size // 2 + 5), (size, size + 9),
                            (UNIT_BYTES - 1, UNIT_BYTES + 1), (5, 2), (-3, None)):  # fmt: skip
            assert bytes(found.read(start, stop)) == data[start:stop]
            assert b"".join(found.pieces(start, stop)) == data[start:stop]
    assert check(array._repo.store, full=True).problems == []


LONG = data_of(4 * UNIT_BYTES + 100, "mixed")


@pytest.fixture(scope="module")
def long_value() -> Iterator[Any]:
    with DicedStore("memory://", durability="process") as store:
        array = store.create_repo("r").create_array("it", kind="keyvalue")
        array["long"] = LONG
        yield array.find("long")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(LONG) + 9), st.integers(0, len(LONG) + 9))
def test_any_part(long_value: Any, start: int, stop: int) -> None:
    assert bytes(long_value.read(start, stop)) == LONG[start:stop]


def test_a_handle_reads_what_was_there_when_it_was_found(array: Any) -> None:
    array["it"] = LONG
    found = array.find("it")
    array["it"] = b"short"
    assert bytes(found.read(5 * 10**5, 2 * 10**6)) == LONG[5 * 10**5 : 2 * 10**6]
    del array["it"]
    assert b"".join(found.pieces()) == LONG


def test_a_part_reads_only_its_units(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array["it"] = data = data_of(12 * UNIT_BYTES, "noise")
    with DicedStore(array._repo.store.url, readonly=True) as store:
        found = store.open_repo("r")["it"].find("it")
        engine, read = store.engine, []
        whole = engine.read_into

        def counted(key: str, offset: int, out: Any) -> Any:
            read.append(len(out))
            return whole(key, offset, out)

        monkeypatch.setattr(engine, "read_into", counted)
        assert (
            bytes(found.read(5 * UNIT_BYTES + 3, 5 * UNIT_BYTES + 9))
            == (data[5 * UNIT_BYTES + 3 : 5 * UNIT_BYTES + 9])
        )
        assert read == [UNIT_BYTES]
        read.clear()
        assert b"".join(found.pieces(1)) == data[1:]
        assert sum(read) == len(data)
        assert max(read) == values.FETCH_BYTES


def test_memory_does_not_grow_with_what_is_read_in_pieces(tmp_path: Path) -> None:
    with DicedStore(tmp_path / "s", durability="process") as store:
        array = store.create_repo("r").create_array("it", kind="keyvalue")
        array["it"] = bytes(128 * MIB)
        found = array.find("it")
        tracemalloc.start()
        try:
            assert sum(map(len, found.pieces())) == 128 * MIB
            assert tracemalloc.get_traced_memory()[1] < 6 * values.FETCH_BYTES
        finally:
            tracemalloc.stop()


def test_undivided_frames_of_any_length_are_read(array: Any) -> None:
    """As they were written before long values had units."""
    lane = array._lane()
    for name, payload, codec, raw in (
        (b"raw", LONG, values.RAW, len(LONG)),
        (b"lz4", values.lz4_compress(LONG), values.LZ4, len(LONG)),
    ):
        frames = lane.home.frames()
        head = frame_header(VALUE, codec, 0, 0, lane.lane_bytes, name, raw, payload)
        segment, offset = frames.append([head, payload])
        entry = segment, offset, len(head) + len(payload)
        change = Change({0: {name: entry}}, {}, None, frames)
        lane.commit(lambda _state, _touched, change=change: change, op="old", user="me")
        found = array.find(name.decode())
        assert found.size == raw
        assert bytes(found.read(7, 2 * UNIT_BYTES)) == LONG[7 : 2 * UNIT_BYTES]
        assert b"".join(found.pieces()) == array[name.decode()] == LONG
    assert check(array._repo.store, full=True).problems == []


def test_every_damaged_byte_is_noticed() -> None:
    rng = np.random.default_rng(0)
    with DicedStore(f"memory://{secrets.token_hex(8)}", durability="process") as store:
        repo = store.create_repo("r")
        array = repo.create_array("it", kind="keyvalue")
        array["it"] = LONG
        objects = store.engine._shelf.objects
        (key,) = (each for each in objects if each.endswith(".seg"))
        head = next(each for each in frame_heads(store.engine, key) if each.kind == VALUE)
        data = bytes(objects[key])
        body = 36 + len("it")
        units = -(-len(LONG) // UNIT_BYTES)
        places = [*range(body + units * UNIT.size), *rng.integers(body, head.size, 40).tolist()]
        for at in places:
            at += head.offset
            objects[key] = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
            with pytest.raises(CorruptError):
                array["it"]
            with pytest.raises(CorruptError):
                b"".join(array.find("it").pieces())
        # A unit that is not read does not matter.
        at = head.offset + head.size - 1
        objects[key] = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        assert bytes(array.find("it").read(0, UNIT_BYTES)) == LONG[:UNIT_BYTES]
        (problem,) = check(store, full=True).problems
        assert problem.kind == "bad-frame" and "unit 4" in problem.message
        assert keys.segment(repo._history.home.prefix, keys.object_id(key)) in problem.message


@pytest.mark.parametrize(
    "change",
    [
        {"raw": len(LONG) + UNIT_BYTES}, {"raw": len(LONG) - UNIT_BYTES}, {"raw": 2**31 - 1},
        {"raw": len(LONG) + 1}, {"codec": 2}, {"units": 4}, {"end": -1}, {"end": 1},
    ],
)  # fmt: skip
def test_sealed_frames_that_lie_are_refused(change: dict[str, int]) -> None:
    """Checksums are right, and yet a header or a table is not."""
    with DicedStore(f"memory://{secrets.token_hex(8)}", durability="process") as store:
        array = store.create_repo("r").create_array("it", kind="keyvalue")
        lane = array._lane()
        parts = [LONG[at : at + UNIT_BYTES] for at in range(0, len(LONG), UNIT_BYTES)]
        table, end = b"", len(parts) * UNIT.size
        for part in parts:
            end += len(part)
            shown = end + (change.get("end", 0) if part is parts[-1] else 0)
            table += UNIT.pack(shown, values.crc32c(part))
        table = table[: change.get("units", len(parts)) * UNIT.size]
        stored = len(table) + len(LONG)
        head = frame_header(
            VALUE, change.get("codec", 0), 0, 0, lane.lane_bytes, b"it",
            change.get("raw", len(LONG)), table, stored,
        )  # fmt: skip
        frames = lane.home.frames()
        segment, offset = frames.append([head, table, *parts])
        entry = segment, offset, len(head) + stored
        made = Change({0: {b"it": entry}}, {}, None, frames)
        lane.commit(lambda _state, _touched: made, op="lie", user="me")
        with pytest.raises(CorruptError):
            array["it"]
        with pytest.raises(CorruptError):
            b"".join(array.find("it").pieces())
        assert [each.kind for each in check(store, full=True).problems] == ["bad-frame"]


def test_too_long_a_value_is_refused(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_VALUE", 3 * UNIT_BYTES)
    array["most"] = bytes(3 * UNIT_BYTES)
    with pytest.raises(InvalidError, match="at most"):
        array["more"] = bytes(3 * UNIT_BYTES + 1)
    assert list(array) == ["most"]
