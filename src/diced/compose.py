"""A change made into the bytes of its commit record, and what becomes of its frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diced import log
from diced.log import Delta, Record
from diced.segment import COMMIT, Frames, frame_header
from diced.state import Change, State

if TYPE_CHECKING:
    from diced.versioned import Lane

# Sections larger than this go to a COMMIT frame and the record only points there.
INLINE_BODY = 48 * 1024
# A commit whose frames are at most this much is one request: they ride behind the record. A block
# of 64-cubed bytes that does not compress is a little more than 256 KiB.
RIDING_BYTES = 288 * 1024


def compose(
    lane: Lane, state: State, change: Change, op: str, user: str, after: str = ""
) -> tuple[Record, bytes, Frames | None]:
    """Return a change's record without its number, its bytes, and frames not yet durable.

    On a disk every commit also leaves a COMMIT frame, so that segments alone can rebuild the
    index. Where a request costs more than some bytes, few frames ride behind the record.

    `after` is the question (`combine`) that this commit asked first.
    """
    remote = lane.home.engine.remote
    head: dict[str, Any] = {
        "txid": log.new_txid(),
        "node": lane.node_id,
        "base": state.number,
        "durability": lane.home.engine.durability,
        "user": user,
        "time": log.now(),
        "op": op,
        "box": change.box,
    }
    if after:
        head["after"] = after
    if remote and change.reads is None:
        head["whole"] = True
    frames = change.frames
    # Far from the last number that a pointer can name: others may come first.
    rides = remote and frames is not None and state.number < log.LAST_RIDDEN - 2**20
    riding = frames.riding(RIDING_BYTES) if rides and frames is not None else None
    if riding is not None:
        delta = _ride(change.delta, riding[0])
        record = Record(log.DATA, dict(head), delta, change.reads, riding[1])
        body = record.encode()
        if record.size <= INLINE_BODY:
            return record, body, None
    if remote and frames is not None and frames.segments:
        head["own"] = frames.own()
    record = Record(log.DATA, head, change.delta, change.reads)
    data = body = record.encode()
    stored = frames is not None and len(frames.segments) > 0
    if len(body) > INLINE_BODY or (lane.journal and (stored or not remote)):
        frames = lane.home.frames() if frames is None else frames
        header = frame_header(COMMIT, 0, 0, 0, lane.lane_bytes, b"", len(body), body)
        segment, offset = frames.append([header, body])
        if len(body) > INLINE_BODY:
            pointer = (segment, offset, len(header) + len(body))
            data = Record(log.DATA, {**head, "body": pointer}).encode()
    return record, data, frames


def _ride(delta: Delta, segment: int) -> Delta:
    """Return a delta whose pointers into one segment lead behind the delta's own record."""
    return {
        space: {
            key: log.rider(entry[1], entry[2])
            if isinstance(entry, tuple) and entry[0] == segment
            else entry
            for key, entry in changes.items()
        }
        for space, changes in delta.items()
    }
