"""A home: the subtree of keys that one store or repo keeps its lanes, pages and segments in.

Owns the process's caches and active segment for it, and turns pointers into frames.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection
from functools import partial
from typing import Any

from diced import forks, keys
from diced.blockcache import BlockCache
from diced.engine.appender import Appender
from diced.engine.aside import Aside
from diced.engine.base import Descriptor, Engine, Staged
from diced.errors import CorruptError, NotFoundError
from diced.index import PackBuilder, PageCache
from diced.log import MAX_RIDING, RIDE_BITS, RIDES
from diced.segment import Frame, Frames, Pointer, SegmentWriter, sync_all


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
        self._held: weakref.WeakValueDictionary[int, Appender] = weakref.WeakValueDictionary()
        self.load = PageCache(self._read_page, cache_bytes)
        self.block_cache = BlockCache(block_cache_bytes) if block_cache_bytes else None
        forks.watch(self)

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

    def frames(self) -> Frames:
        """Return a place for the frames of one commit."""
        if self.engine.grows:
            return Frames(self.writer)
        # Private to the commit: its object is stored whole, and need not wait for others.
        return Frames(SegmentWriter(self.engine, self.prefix, self._held))

    def store(self, staged: Staged, segments: Collection[Appender]) -> Staged:
        """Store a staged record and make the segments it points into durable; return it."""
        try:
            # Written before either sync begins: a journal then takes both files at once.
            staged.write()
            if self.engine.durability == "power" and segments:
                _syncs.both(staged.sync, partial(sync_all, segments))
            else:
                sync_all(segments)
                staged.sync()
        except BaseException:
            staged.close()
            raise
        return staged

    def locate(self, lane_id: str, segment: int, offset: int) -> tuple[str, int]:
        """Return the object and the offset in it that a pointer of a lane means."""
        if offset & RIDES:
            number = (offset ^ RIDES) >> RIDE_BITS
            prefix = keys.lane(self.prefix, lane_id, f"{segment:016x}")
            return keys.record(prefix, number), offset & (MAX_RIDING - 1)
        return keys.segment(self.prefix, segment), offset

    def read_frame(self, lane_id: str, pointer: Pointer) -> Frame:
        """Return the verified frame that a pointer of a lane leads to."""
        segment, offset, length = pointer
        key, start = self.locate(lane_id, segment, offset)
        try:
            data = self._unstored(segment, offset, length)
            if data is None:
                data = self.engine.get(key, start, length)
        except NotFoundError:
            raise CorruptError(f"segment {key} is missing") from None
        frame = Frame(memoryview(data))
        if frame.size != length:
            raise CorruptError(f"segment {key} at {start}: {frame.size} bytes, not {length}")
        return frame

    def borrow(self, segment: int) -> Descriptor | None:
        """Return a segment's open file for `Engine.give_back`; None if it is missing."""
        try:
            return self.engine.borrow(keys.segment(self.prefix, segment))
        except NotFoundError:
            return None

    def read_into(self, lane_id: str, segment: int, offset: int, out: Any) -> None:
        """Fill a buffer from where a pointer of a lane leads."""
        key, start = self.locate(lane_id, segment, offset)
        try:
            data = self._unstored(segment, offset, len(out))
            if data is not None:
                out[:] = data
            else:
                self.engine.read_into(key, start, out)
        except NotFoundError:
            raise CorruptError(f"segment {key} is missing") from None

    def _unstored(self, segment: int, offset: int, length: int) -> bytes | None:
        """Return what a commit of this process has appended and not stored yet."""
        holder = self._held.get(segment) if self._held else None
        return None if holder is None else holder.held(offset, length)

    def close(self) -> None:
        """Close the active segment, and let the memory of blocks go."""
        self.writer.close()
        if self.block_cache is not None:
            self.block_cache.clear()

    def after_fork(self) -> None:
        """Make locks anew, and take another segment than the parent's."""
        self.writer.forget()
        self.load.renew_lock()
        if self.block_cache is not None:
            self.block_cache.renew_lock()


_syncs = Aside("diced-sync")
