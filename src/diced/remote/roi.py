"""Regions of interest of a server."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diced._compress import lz4_decompress
from diced.errors import DicedException, EngineError
from diced.remote.http import Reply, spell
from diced.remote.kinds import RemoteKind
from diced.roi import RoiArray, check_spans
from diced.spans import Array, check_box, check_points
from diced.spec import check_text

MOST_VOXELS = 2**26  # of a mask that the server is asked for
MOST_POINTS = 2**20  # that the server is asked about


class RemoteRoi(RemoteKind, RoiArray):
    """A region of interest on a server, at the version that its repo object is at.

    All is as of `RoiArray`. Spans come and go in one request, so `snapshot` works at open versions,
    too: it reads them. What DVID answers only in part, such as what is beyond 32-bit coordinates,
    large masks and many points, is found here out of all spans.
    """

    _rows: Array | None = None

    # -- reading ---------------------------------------------------------------------------

    def snapshot(self) -> RemoteRoi:
        """Return the region as it is now: all spans are read, and asked from then on."""
        found = RemoteRoi(self._repo, self._spec)
        found._rows = self.spans()
        return found

    def __len__(self) -> int:
        return len(self.spans())

    @property
    def extents(self) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
        """First and last block, ZYX, of the box of all spans; None if there is none."""
        rows = self.spans()
        if not len(rows):
            return None
        z0, y0, x0, _ = rows.min(axis=0).tolist()
        z1, y1, _, x1 = rows.max(axis=0).tolist()
        return (z0, y0, x0), (z1, y1, x1)

    def spans(self) -> Array:
        """Return all spans, int32 of shape (spans, 4): z, y, x0, x1, sorted."""
        if self._rows is not None:
            return self._rows.copy()
        return _read_spans(self._ask("GET", "roi"))

    def mask(self, lo: Sequence[int], hi: Sequence[int]) -> Array:
        """Tell of each voxel of a box whether it is inside; as `RoiArray.mask`."""
        lo, hi = check_box(lo, hi)
        shape = [b - a for a, b in zip(lo, hi, strict=True)]
        ours = self._repo.store.ours
        # DVID divides negative coordinates the other way round.
        least = -(2**31) if ours else 0
        if (
            self._rows is not None
            or not 1 <= math.prod(shape) <= MOST_VOXELS
            or min(lo) < least
            or max(hi) > 2**31
        ):
            return super().mask(lo, hi)
        size, offset = ("_".join(str(each) for each in reversed(end)) for end in (shape, lo))
        found = np.empty(shape, np.uint8)
        if ours:
            reply = self._ask("GET", "mask", "0_1_2", size, offset, query={"compression": "lz4"})
            lz4_decompress(reply.body, found)
        else:
            path = spell("node", self._repo.uuid, self.name, "mask", "0_1_2", size, offset)
            self._repo.store.server.fill(path, found.data.cast("B"))
        return np.asarray(found != 0)

    def contains(self, points: Any) -> Array:
        """Tell of each voxel whether it is inside; as `RoiArray.contains`."""
        voxels = check_points(points)
        least, most = (-(2**63), 2**63 - 1) if self._repo.store.ours else (0, 2**31 - 1)
        if (
            self._rows is not None
            or not 1 <= len(voxels) <= MOST_POINTS
            or voxels.size == 0
            or voxels.min() < least
            or voxels.max() > most
        ):
            return super().contains(points)
        body = json.dumps(voxels[:, ::-1].tolist(), separators=(",", ":")).encode()
        reply = self._ask("POST", "ptquery", body=body)
        found = reply.json(list)
        if len(found) != len(voxels) or not all(isinstance(each, bool) for each in found):
            raise EngineError(
                f"the answer is not {len(voxels)} times true or false [{reply.request}]"
            )
        return np.array(found, np.bool_)

    # -- writing ---------------------------------------------------------------------------

    def set_spans(self, spans: Any, *, operation: str = "put spans") -> None:
        """Replace all spans, in one request; as `RoiArray.set_spans`.

        Raises
        ------
        InvalidError, BadIndexError, LockedError, ReadOnlyError
        """
        self._repo._check_writable(self._spec)
        try:
            check_text(f"{self.name!r}: the operation", operation)
            rows = check_spans(spans)
        except DicedException:
            self._check_open()
            raise
        query = self._named(operation)
        if not len(rows):
            self._alter(lambda: self._ask("DELETE", "roi", query=query))
            return
        body = json.dumps(rows.tolist(), separators=(",", ":")).encode()
        self._alter(lambda: self._ask("POST", "roi", query=query, body=body))

    # -- place -----------------------------------------------------------------------------

    def _among(self, first: Array, last: Array) -> Array:
        """Return all spans: of some rows only nobody tells."""
        return self._rows if self._rows is not None else self.spans()


def _read_spans(reply: Reply) -> Array:
    """Return the spans that an answer holds, in hardly more memory than they take."""
    body = reply.body.strip()
    text = body.translate(None, b"[] \t\r\n")
    count = (text.count(b",") + 1) // 4 if text else 0
    marks = [body.count(each) for each in (b"[", b"]", b",")]
    sound = marks == [count + 1, count + 1, max(0, 4 * count - 1)]
    sound = sound and not text.translate(None, b"0123456789,-")
    try:
        if body == b"null" or (sound and not count):
            return np.empty((0, 4), np.int32)
        if sound:
            return check_spans(np.fromstring(text, np.int64, sep=",").reshape(count, 4))
    except (ValueError, OverflowError):
        pass
    raise EngineError(f"the answer is no list of spans; it begins {body[:60]!r} [{reply.request}]")
