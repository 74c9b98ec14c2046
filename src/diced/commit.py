"""How a lane's changes become records where naming is cheap and syncing is not: disks, memory.

Threads store their records side by side, sharing syncs, and take turns only to name them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from diced.compose import compose
from diced.engine.base import Staged
from diced.log import Record
from diced.state import Change, Prepare, State

if TYPE_CHECKING:
    from diced.versioned import Lane


class Committer:
    """The commits of one lane in this process.

    Parameters
    ----------
    lane : Lane

    Attributes
    ----------
    turn : threading.Lock
        Held while a record is given its number.
    """

    def __init__(self, lane: Lane):
        self._lane = lane
        self.renew_lock()

    def renew_lock(self) -> None:
        """Make the lock anew: at birth and after a fork."""
        self.turn = threading.Lock()

    def note(self, number: int, record: Record) -> None:
        """Be told of every record that the lane takes in."""

    def commit(self, prepare: Prepare, state: State, op: str, user: str) -> int:
        """Commit one change; as `Lane.commit`, `state` being what it begins with."""
        lane = self._lane
        change = prepare(state, None)
        if change is None:
            lane.settle(state.number)
            return state.number
        staged, record = self._stage(state, change, op, user)
        try:
            with self.turn:
                lost = 0
                while True:
                    # A writer that lost once queues for its turn: a hint that keeps contention
                    # fair. Until then naming itself tells whether another process came first.
                    with lane.queue(lost):
                        newer = lane.refresh() if lost else lane.known()
                        lane.check_open(newer)
                        touched = lane.touched(change.reads, state.number, newer)
                        state = newer
                        if touched != {}:
                            change = prepare(state, touched)
                            if change is None:
                                break
                            staged.close()
                            staged, record = self._stage(state, change, op, user)
                        if lane.log.name(staged, state.number + 1):
                            lane.published(state.number + 1, record)
                            break
                    lost += 1
            if change is None:
                lane.settle(state.number)
                return state.number
            staged.settle()
            lane.settled(state.number + 1)
            return state.number + 1
        finally:
            staged.close()

    def _stage(self, state: State, change: Change, op: str, user: str) -> tuple[Staged, Record]:
        """Make a change's frames and record durable (I2); the record lacks only its number."""
        lane = self._lane
        record, data, frames = compose(lane, state, change, op, user)
        segments = frames.segments if frames is not None else ()
        return lane.home.store(lane.log.stage(data, record.head["txid"]), segments), record
