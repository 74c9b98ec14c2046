"""Checking what entries of regions and graphs hold, and saying what their keys stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from diced import graph, roi
from diced.elements import EDGE, STAMP, VERTEX, WEIGHT
from diced.errors import CorruptError
from diced.log import Entry
from diced.segment import MAX_KEY


class KindCheck:
    """The check of entries of one kind of array; this one is of kinds that hold any bytes."""

    def name(self, space: int, key: bytes) -> str:
        """Return what messages call a key."""
        return f"key {key.decode(errors='backslashreplace')!r}"

    def value(self, space: int, key: bytes, data: bytes) -> None:
        """Check a value, inline or of a frame.

        Raises
        ------
        CorruptError
        """

    def entries(
        self, space: int, changes: Mapping[bytes, Entry | None]
    ) -> Iterator[tuple[bytes, str]]:
        """Yield (key, what is wrong with it) of changes that belong together."""
        for key, entry in changes.items():
            if isinstance(entry, bytes):
                try:
                    self.value(space, key, entry)
                except CorruptError as error:
                    yield key, str(error)


class _RoiCheck(KindCheck):
    def name(self, space: int, key: bytes) -> str:
        if space == roi.PARTS and len(key) == roi.NUMBER.size:
            return f"part {roi.NUMBER.unpack(key)[0]}"
        if space == roi.DIRECTORY and key == roi.SPANS:
            return "the directory"
        return super().name(space, key)

    def value(self, space: int, key: bytes, data: bytes) -> None:
        if space == roi.PARTS and len(key) == roi.NUMBER.size:
            rows = roi.unpack(data, "the part")
            if not 1 <= len(rows) <= roi.PART or (rows[:, 3] < rows[:, 2]).any():
                raise CorruptError(f"{len(rows)} spans, or one that ends before it begins")
            if not roi.ascend(rows).all():
                raise CorruptError("the spans are not in order")
        elif space == roi.DIRECTORY and key == roi.SPANS:
            roi.parse_directory(data, "the directory")
        else:
            raise CorruptError("a region has no such key")


class _GraphCheck(KindCheck):
    def name(self, space: int, key: bytes) -> str:
        if space in (graph.VERTICES, graph.STAMPS) and len(key) == VERTEX.size:
            what = f"vertex {VERTEX.unpack(key)[0]}"
            return what if space == graph.VERTICES else f"the stamp of {what}"
        if space == graph.EDGES and len(key) == EDGE.size:
            return "edge {} to {}".format(*EDGE.unpack(key))
        if space == graph.PROPERTIES and len(key) > _property_head(key):
            at = _property_head(key)
            of = self.name(graph.VERTICES if key[:1] == b"v" else graph.EDGES, key[1:at])
            return f"property {key[at:].decode(errors='backslashreplace')!r} of {of}"
        return super().name(space, key)

    def value(self, space: int, key: bytes, data: bytes) -> None:
        if space in (graph.VERTICES, graph.EDGES):
            struct = VERTEX if space == graph.VERTICES else EDGE
            if len(key) != struct.size or not all(struct.unpack(key)):
                raise CorruptError("a graph has no such key")
            if len(data) != WEIGHT.size or not math.isfinite(WEIGHT.unpack(data)[0]):
                raise CorruptError(f"its {len(data)} bytes are no weight")
        elif space == graph.STAMPS:
            if len(key) != VERTEX.size or len(data) != STAMP.size:
                raise CorruptError(f"its {len(data)} bytes are no stamp")
        elif space != graph.PROPERTIES or len(key) <= _property_head(key):
            raise CorruptError("a graph has no such key")

    def entries(
        self, space: int, changes: Mapping[bytes, Entry | None]
    ) -> Iterator[tuple[bytes, str]]:
        yield from super().entries(space, changes)
        if space == graph.PROPERTIES:
            return
        for key, entry in changes.items():
            if isinstance(entry, tuple):
                yield key, "it is no number, but a frame"
            # Both directions are written together, so what holds of changes holds of all.
            elif space == graph.EDGES and (
                key[8:] + key[:8] not in changes or changes[key[8:] + key[:8]] != entry
            ):
                yield key, "the edge back is not the same"


def _property_head(key: bytes) -> int:
    """Return the bytes before the name in a property's key."""
    return {b"v": 1 + VERTEX.size, b"e": 1 + EDGE.size}.get(key[:1], MAX_KEY)


_CHECKS = {"roi": _RoiCheck(), "labelgraph": _GraphCheck()}
_ANY = KindCheck()


def check_of(kind: str) -> KindCheck:
    """Return the check of a kind."""
    return _CHECKS.get(kind, _ANY)
