"""A home: the subtree of keys that one store or repo keeps its lanes, pages and segments in.

Owns the process's caches and active segment for it, and turns pointers into frames.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection
from functools import partial
from typing import Any

from diced import keys
from diced.blockcache import BlockCache
from diced.engine.aside import Aside
from diced.engine.base import Descriptor, Engine, Staged
from diced.errors import CorruptError, NotFoundError
from diced.index import PackBuilder, PageCache
from diced.segment import Frame, Pointer, SegmentWriter


class Home:
    """Pages, segments and their caches below one prefix of an engine.

    Parameters
    ----------
    engine : Engine
    prefix : str
    cache_bytes : int
        Budget of decoded index pages.
    block_cache_bytes : int
        Budget of decoded blocks; 0: none are kept, and `block_cache` is None.
    """

    def __init__(self, engine: Engine, prefix: str, cache_bytes: int, block_cache_bytes: int = 0):
        self.engine = engine
        self.prefix = prefix
        self.writer = SegmentWriter(engine, prefix)
        self.load = PageCache(self._read_page, cache_bytes)
        self.block_cache = BlockCache(block_cache_bytes) if block_cache_bytes else None
        _HOMES.add(self)

    def _read_page(self, pointer: Pointer) -> bytes:
        pack, offset, length = pointer
        key = keys.pack(self.prefix, pack)
        try:
            return self.engine.get(key, offset, length)
        except NotFoundError:
            raise CorruptError(
                f"index pages {key} are missing; 'diced fsck --rebuild' makes them anew"
            ) from None

    def new_pack(self) -> PackBuilder:
        """Return an empty pack under a fresh id."""
        return PackBuilder(int.from_bytes(os.urandom(8), "little"))

    def write_pack(self, pack: PackBuilder) -> None:
        """Store a pack, if it holds anything, before anything refers to it."""
        if len(pack):
            self.engine.put_if_absent(
                keys.pack(self.prefix, pack.object_id), pack.tobytes(), os.urandom(16)
            )

    def store(self, staged: Staged, segments: Collection[int]) -> Staged:
        """Store a staged record and make the segments it points into durable; return it."""
        try:
            # Written before either sync begins: a journal then takes both files at once.
            staged.write()
            if self.engine.durability == "power" and segments:
                _syncs.both(staged.sync, partial(self.writer.sync, segments))
            else:
                self.writer.sync(segments)
                staged.sync()
        except BaseException:
            staged.close()
            raise
        return staged

    def read_frame(self, pointer: Pointer) -> Frame:
        """Return the verified frame that a pointer leads to."""
        segment, offset, length = pointer
        key = keys.segment(self.prefix, segment)
        try:
            data = self.engine.get(key, offset, length)
        except NotFoundError:
            raise CorruptError(f"segment {key} is missing") from None
        frame = Frame(memoryview(data))
        if frame.size != length:
            raise CorruptError(f"segment {key} at {offset}: {frame.size} bytes, not {length}")
        return frame

    def borrow(self, segment: int) -> Descriptor | None:
        """Return a segment's open file for `Engine.give_back`; None if it is missing."""
        try:
            return self.engine.borrow(keys.segment(self.prefix, segment))
        except NotFoundError:
            return None

    def read_into(self, segment: int, offset: int, out: Any) -> None:
        """Fill a buffer from a segment."""
        key = keys.segment(self.prefix, segment)
        try:
            self.engine.read_into(key, offset, out)
        except NotFoundError:
            raise CorruptError(f"segment {key} is missing") from None

    def close(self) -> None:
        """Close the active segment, and let the memory of blocks go."""
        self.writer.close()
        if self.block_cache is not None:
            self.block_cache.clear()


_syncs = Aside("diced-sync")
_HOMES: weakref.WeakSet[Home] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for home in list(_HOMES):
        home.writer.forget()
        home.load.renew_lock()
        if home.block_cache is not None:
            home.block_cache.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
