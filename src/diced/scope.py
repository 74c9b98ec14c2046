"""What all checks of a home share: what is known of its pages, segments and records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from diced import log, pool
from diced.errors import NotFoundError
from diced.home import Home
from diced.log import Pointer
from diced.report import UNCHECKED, Problem, Progress, Report
from diced.segment import Frame
from diced.walk import UNREADABLE, Pages

if TYPE_CHECKING:
    from diced.lanecheck import LaneCheck

FRAMES = 16  # frames that one task of the pool decodes
# Where a request is slow, frames that lie together come by one.
FETCH_GAP = 64 * 1024
FETCH_BYTES = 1024 * 1024
QUEUED = 4096  # frames that wait to be read side by side
RECORD_SIZES = 1 << 16  # kept at once


class Scope:
    """What the checks of one home's lanes share.

    Attributes
    ----------
    name : str
        What messages call the home.
    ends : dict of int to int
        Segment -> end of the last frame that an entry refers to.
    threads : int
        Requests or frames that are dealt with at once.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        report: Report,
        full: bool,
        threads: int,
        progress: Progress | None,
    ):
        self.home = home
        self.name = name
        self.report = report
        self.full = full
        self.remote = home.engine.remote
        self.threads = pool.LIMIT if self.remote else threads
        self.progress = progress or (lambda _text: None)
        self.pages = Pages(home, UNREADABLE)
        self.ends: dict[int, int] = {}
        self._sizes: dict[str, int | None] = {}  # of segments
        self._riding: dict[str, int | None] = {}  # of records that frames ride behind
        self._queue: list[_Queued] = []

    def covered(self, lane_id: str, pointer: Pointer) -> str | None:
        """Return what is wrong with the range of a lane's pointer (missing or short), or None."""
        segment, offset, length = pointer
        key, start = self.home.locate(lane_id, segment, offset)
        rides = bool(offset & log.RIDES)
        known = self._riding if rides else self._sizes
        size = known.get(key)
        # What a request has shown is final where objects are stored whole, before their records.
        if key not in known or (not self.remote and (size is None or size < start + length)):
            size = self.learn(key, rides)
        if size is None:
            return "missing-frames" if rides else "missing-segment"
        if not rides:
            self.ends[segment] = max(self.ends.get(segment, 0), min(start + length, size))
        if size >= start + length:
            return None
        return "short-record" if rides else "short-segment"

    def learn(self, key: str, rides: bool) -> int | None:
        """Ask for the size of a segment, or of a record with frames behind it."""
        try:
            size = self.home.engine.size(key)
        except NotFoundError:
            size = None
        self.note(key, size, rides)
        return size

    def note(self, key: str, size: int | None, rides: bool) -> None:
        """Take in the size of a segment, or of a record with frames behind it."""
        if rides and len(self._riding) >= RECORD_SIZES:
            self._riding.clear()
        (self._riding if rides else self._sizes)[key] = size

    def learn_ahead(self, lane_id: str, pointers: Iterable[Pointer]) -> None:
        """Ask for the sizes of records side by side, where requests are slow."""
        if self.remote:
            riding = (each for each in pointers if each[1] & log.RIDES)
            found = {self.home.locate(lane_id, *each[:2])[0] for each in riding}
            wanted = sorted(found - self._riding.keys())[:RECORD_SIZES]
            pool.for_each(lambda key: self.learn(key, True), wanted, self.threads)

    # -- frames ----------------------------------------------------------------------------

    def read_later(self, check: LaneCheck, space: int, key: bytes, pointer: Pointer) -> None:
        """Read and decode a frame, together with others."""
        place, start = self.home.locate(check.lane.id, *pointer[:2])
        self._queue.append(_Queued(place, start, check, space, key, pointer))
        if len(self._queue) >= QUEUED:
            self.drain()

    def drain(self) -> None:
        """Read the frames that wait, and report what is wrong with them."""
        queue = sorted(self._queue, key=lambda each: each[:2])
        self._queue = []
        for problems in pool.map_ordered(self._read, list(self._groups(queue)), self.threads):
            for each in problems:
                if each.kind in UNCHECKED:
                    self.report.unchecked(*each[1:])
                else:
                    self.report.error(*each[1:])

    def _groups(self, queue: list[_Queued]) -> Iterator[list[_Queued]]:
        """Yield frames of one task: a few, or what one request fetches."""
        group: list[_Queued] = []
        for each in queue:
            if group:
                end = group[-1].start + group[-1].pointer[2]
                together = each.place == group[0].place and each.start - end <= FETCH_GAP
                if not (
                    together and each.start + each.pointer[2] - group[0].start <= FETCH_BYTES
                    if self.remote
                    else len(group) < FRAMES
                ):
                    yield group
                    group = []
            group.append(each)
        if group:
            yield group

    def _read(self, group: list[_Queued]) -> list[Problem]:
        first, wrong = group[0].start, []
        data = self._fetch(group) if self.remote and len(group) > 1 else None
        for each in group:
            check, pointer = each.check, each.pointer
            try:
                if data is None:
                    frame = self.home.read_frame(check.lane.id, pointer)
                else:
                    frame = Frame(data[each.start - first : each.start - first + pointer[2]])
                check.decode(frame, each.space, each.key, pointer)
            except UNREADABLE as error:
                wrong.append(check.unread(each.space, each.key, each.place, each.start, error))
        return wrong

    def _fetch(self, group: list[_Queued]) -> memoryview | None:
        """Read all frames of a group at once; None if something is in the way of that."""
        start, end = group[0].start, max(each.start + each.pointer[2] for each in group)
        try:
            return memoryview(self.home.engine.get(group[0].place, start, end - start))
        except UNREADABLE:
            return None


class _Queued(NamedTuple):
    place: str
    start: int
    check: LaneCheck
    space: int
    key: bytes
    pointer: Pointer
