"""How a lane's changes become records where every step is a slow request: buckets.

Threads of a process queue, and the one whose turn it is commits for all. Between processes, a
writer that keeps losing the race for the next number leaves its change as a *proposal*, and whoever
puts the next record gathers the proposals it finds into that record. So contending writers cost
one record per round, not one each.

A gatherer takes a proposal only if no key that it reads or writes has changed since the state it
was based on, which whoever can put record N + 1 knows for certain. That makes it harmless to meet a
proposal twice, or after its writer gave up and wrote again: then its keys have changed. Names of
proposals that were refused stand in the record too. Nothing here needs a clock to be right.

A writer that is refused again and again, because a quicker one keeps changing what it merges, asks
in a record of its own for a turn, and others hold back what would touch those keys for a moment.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diced import keys, log, pool
from diced.compose import compose
from diced.errors import DicedException
from diced.inbox import Inbox
from diced.log import Reads, Record
from diced.proposal import MOST_KEYS, REFUSED, Joint, Part, joined, proposal
from diced.segment import sync_all
from diced.state import Prepare, State, Touched, hits
from diced.tidy import delete_later

if TYPE_CHECKING:
    from diced.versioned import Lane

# A proposal that was based on a state so many records ago is refused.
EXPIRY = 512
# Outcomes that a lane remembers, so that nobody's commit is taken twice.
REMEMBERED = 16384
# A lane where proposals were seen, or races lost, is contended for so many seconds.
CONTENDED = 30.0
# Durations of a request: where records come at shorter intervals, it is no use to try alone.
BUSY = 4.0
# A writer asks for a turn each time it was refused so often; others wait for so long at least.
PATIENT = 8
LEAST_HOLD = 0.25
# Where so many proposals are gathered at once, the gatherer goes on for some rounds; a round takes
# so many requests' time.
CROWD = 4
TERM = 64
ROUND = 5.0
# Of records put quickly one after the other, every such one is followed by a look for proposals.
LOOK = 8
# Seconds that a request is taken to last at most.
SLOWEST = 1.0
# Of a request, what lies between two looks for the next record.
POLL = 1.0
# Durations of a request after which a writer that was to gather is taken for dead.
PATIENCE = 12


class Combiner:
    """The commits of one lane in this process.

    Parameters
    ----------
    lane : Lane

    Attributes
    ----------
    turn : threading.Lock
        Held by the thread that commits for all.
    """

    def __init__(self, lane: Lane):
        self._lane = lane
        self._outcomes: dict[str, int] = {}
        self._contended = float("-inf")  # until when
        self._crowd = 1  # proposals in the last combined record, one's own included
        self._request = 0.02  # seconds, a running mean
        self._inbox = Inbox(lane, self._outcomes)
        self._asked: dict[str, tuple[float, Reads]] = {}  # until when, and for what
        self._puts: list[float] = []  # when the newest records were, since the last look around
        self._stamps: list[float] = []  # seconds of the day when the newest records were made
        self.renew_lock()

    def renew_lock(self) -> None:
        """Make the lock anew: at birth and after a fork."""
        self.turn = threading.Lock()
        self._serving = False
        self._waiting: dict[str, Part] = {}

    def note(self, number: int, record: Record) -> None:
        """Be told of every record that the lane takes in."""
        heads = record.commits()
        for head in heads:
            self._outcomes[head["txid"]] = number
            part = self._waiting.get(head["txid"])
            if part is not None:  # however many outcomes come before it is looked at
                part.landed = number
            self._asked.pop(head.get("after", ""), None)
        if "ask" in record.head:
            until = time.monotonic() + max(LEAST_HOLD, PATIENCE * self._request)
            self._asked[record.head["ask"]] = until, record.reads
        hours, minutes, seconds = record.head["time"][11:-1].split(":")
        self._stamps.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds))
        del self._stamps[:-16]
        for txid in record.head.get("void", ()):
            self._outcomes.setdefault(txid, REFUSED)
        while len(self._outcomes) > REMEMBERED:
            del self._outcomes[next(iter(self._outcomes))]
        if "gathered" in record.head:
            self._crowd = record.head["gathered"]
            self._contended = time.monotonic() + CONTENDED

    def commit(self, prepare: Prepare, state: State, op: str, user: str) -> int:
        """Commit one change; as `Lane.commit`, `state` being what it begins with."""
        lane = self._lane
        touched: Touched | None = None
        refused, after = 0, ""
        while True:
            try:
                change = prepare(state, touched)
            except DicedException:
                if (newer := self._newer(state)) is None:
                    raise
                state, touched = newer, None
                continue
            if change is None:
                if (newer := self._newer(state)) is None:
                    return state.number
                state, touched = newer, None
                continue
            record, data, frames = compose(lane, state, change, op, user, after)
            if frames is not None:
                sync_all(frames.segments)
            part = Part(record, data)
            self._waiting[part.txid] = part
            try:
                while part.outcome is None:
                    if self._serving and not part.alone:
                        time.sleep(self._request / 4)  # the thread that serves takes it along
                        continue
                    with self.turn:
                        while part.outcome is None:  # else another thread has done it
                            self._round()
            finally:
                self._waiting.pop(part.txid, None)
            if isinstance(part.outcome, DicedException):
                raise part.outcome
            if part.outcome != REFUSED:
                return part.outcome
            refused += 1
            if refused % PATIENT == 0:
                after = self._ask(change.reads)
            newer = lane.refresh()
            lane.check_open(newer)
            touched = lane.touched(change.reads, state.number, newer)
            state = newer

    def _newer(self, state: State) -> State | None:
        """Return a state that has more than this one, if there is any.

        What a commit begins with may be old. That is noticed of what is written, but not of what is
        refused or needs no writing.
        """
        newer = self._lane.refresh()
        self._lane.check_open(newer)
        return newer if newer.number > state.number else None

    # -- rounds ----------------------------------------------------------------------------

    def _round(self) -> None:
        """Try once to commit what waits; a lost race may decide all, some or none of it."""
        parts = [part for part in list(self._waiting.values()) if part.outcome is None]
        parts = [part for part in parts if part.alone][:1] or parts
        try:
            free = [part for part in parts if not self._is_held(part)]
            if not free:
                time.sleep(self._request)
                self._settle_known(parts)
                self._lane.probe()
                return
            parts = free
            if parts[0].alone:
                self._alone(parts[0])
            elif time.monotonic() < self._contended:
                self._propose(parts)
            elif not self._direct(parts) and (self._is_busy() or not self._direct(parts)):
                self._contended = time.monotonic() + CONTENDED
        except DicedException as error:
            # What was sent may have landed; whether it did is not known to the callers.
            for part in parts:
                if part.outcome is None:
                    part.outcome = error

    def _ask(self, reads: Reads | None) -> str:
        """Ask others, by a record, to leave some keys alone for a moment; return the question."""
        lane = self._lane
        question = log.new_txid()
        head = {
            "txid": question, "node": lane.node_id, "parts": [], "ask": question, "op": "ask",
            "time": log.now(),
        }  # fmt: skip
        with self.turn:
            for _ in range(PATIENCE):
                state = lane.probe()
                lane.check_open(state)
                few = reads is not None and sum(map(len, reads.values())) <= MOST_KEYS
                record = Record(
                    log.DATA, {**head, "base": state.number}, {}, reads if few else None
                )
                if self._put(state, record, record.encode(), []):
                    break
        return question

    def _is_held(self, part: Part) -> bool:
        """Tell whether another writer asked for keys of this part."""
        now = time.monotonic()
        self._asked = {key: each for key, each in self._asked.items() if each[0] > now}
        return any(
            question != part.record.head.get("after") and (not reads or part.meets(reads))
            for question, (_, reads) in self._asked.items()
        )

    def _alone(self, part: Part) -> None:
        state = self._settle_known([part])
        if part.outcome is None and not self._put(state, part.record, part.data, [part]):
            time.sleep(random.uniform(0, self._request))
            self._lane.probe()

    def _is_busy(self) -> bool:
        """Catch up after a lost race, and tell whether the next one would be lost as well.

        By the times in the newest records: clocks may differ, and all that is at stake is work.
        """
        lane = self._lane
        before = lane.known().number
        lane.probe()
        stamps = sorted(self._stamps[-(lane.known().number - before) :][-4:])
        gaps = [(b - a) % 86400 for a, b in itertools.pairwise(stamps)]
        close = bool(gaps) and sum(gaps) / len(gaps) < BUSY * self._request
        return close or time.monotonic() < self._contended  # others gather already

    def _direct(self, parts: list[Part]) -> bool:
        """Put all that can go into the next record; False after a lost race."""
        state = self._settle_known(parts)
        mine = Joint(parts).parts
        if not mine:
            return True
        won = self._put(state, *self._joined(state, mine), mine)
        self._look_around()
        return won

    def _look_around(self) -> None:
        """See now and then whether others wait, who lose all races to one that never pauses."""
        self._puts = [*self._puts[1 - LOOK :], time.monotonic()]
        quick = self._puts[-1] - self._puts[0] < LOOK * BUSY * self._request
        if len(self._puts) == LOOK and quick:
            if next(self._inbox.names(), None) is not None:
                self._contended = time.monotonic() + CONTENDED
            self._puts = []

    def _settle_known(self, parts: Sequence[Part]) -> State:
        """Decide parts as far as the known state tells, and return it."""
        lane = self._lane
        state = lane.known()
        for part in parts:
            if part.outcome is not None:
                continue
            self._decide(part, state.number)
            if part.outcome is None:
                whole = "whole" in part.record.head
                reads = None if whole else part.record.reads
                touched = lane.touched(reads, part.record.head["base"], state)
                if touched is None and part.since is not None and not whole:
                    self._look_back(part, state.number)
                elif touched != {}:
                    self._refuse(part, state.number)
            if not part.outcome:  # undecided, or to be made anew
                try:
                    lane.check_open(state)
                except DicedException as error:
                    part.outcome = error
        return state

    def _decide(self, part: Part, last: int) -> None:
        """Decide a part if the records that were read, the `last` of them at most, name it."""
        outcome = part.landed or self._outcomes.get(part.txid)
        if outcome == REFUSED:
            self._refuse(part, last)
        elif outcome is not None:
            part.outcome = outcome
            self._lane.least = max(self._lane.least, outcome)

    def _refuse(self, part: Part, last: int) -> None:
        """Have a part made anew, unless a record up to `last` holds it.

        It can be in one that this process did not read: a snapshot leads past records, and a
        listing can be later than the put beside it. Whoever refused it then did not know either.
        """
        log_ = self._lane.log
        if part.since is not None:
            numbers = range(part.since + 1, last + 1)
            for number, record in zip(numbers, log_.read_many(numbers), strict=True):
                self.note(number, record)
        part.outcome = outcome = part.landed or self._outcomes.get(part.txid, REFUSED)
        self._lane.least = max(self._lane.least, outcome or last)

    def _look_back(self, part: Part, last: int) -> None:
        """Decide a part that was sent, by records that this process passed over.

        That these are not known is no reason to make it anew: they are to others, who may take
        the proposal that is still there.
        """
        lane = self._lane
        numbers = range(part.record.head["base"] + 1, last + 1)
        touched = False
        for number, record in zip(numbers, lane.log.read_many(numbers), strict=True):
            self.note(number, record)
            touched = touched or bool(hits(part.record.reads, [lane.whole(record).delta]))
        if part.landed or touched:
            part.outcome = part.landed or REFUSED
            lane.least = max(lane.least, last)

    def _joined(
        self, state: State, parts: list[Part], void: Sequence[str] = (), gathered: int = 0
    ) -> tuple[Record, bytes]:
        lane = self._lane
        durability = lane.home.engine.durability
        return joined(lane.node_id, durability, state.number, parts, void, gathered)

    def _put(self, state: State, record: Record, data: bytes, mine: list[Part]) -> bool:
        """Put a record after a state; False after a lost race."""
        number = state.number + 1
        began = time.monotonic()
        unsent = [part for part in mine if part.since is None]
        for part in unsent:
            part.since = state.number  # an error or interrupt leaves open what became of it
        won = self._lane.log.put(number, data, record.head["txid"])
        # One answer that took long, by retries say, must not slow down what follows.
        took = min(time.monotonic() - began, 4 * self._request, SLOWEST)
        self._request += (took - self._request) / 4
        if won:
            self._lane.checked = max(self._lane.checked, began)  # nobody was before it
            held = {head["txid"] for head in record.commits()}
            for part in mine:
                if part.txid in held:
                    part.outcome = number
            self._lane.least = max(self._lane.least, number)
            self._lane.published(number, record)
        else:
            for part in unsent:
                part.since = None
        return won

    # -- proposals -------------------------------------------------------------------------

    def _propose(self, parts: list[Part]) -> None:
        """Leave parts as a proposal, and wait until it was gathered, or gather it."""
        lane = self._lane
        self._settle_known(parts)
        mine = Joint(parts).parts
        if not mine:
            return
        key = keys.proposal(lane.log.prefix, mine[0].txid)
        data = b"".join(proposal(part) for part in mine)
        for part in mine:
            part.since = lane.known().number if part.since is None else part.since
        tail: list[int] = []

        def begin(put: bool) -> None:
            # A record that is listed may hold the proposal already: `_refuse` sees to that.
            if put:
                lane.home.engine.put_fresh(key, data, bytes.fromhex(mine[0].txid))
            else:
                tail.append(lane.log.tail(lane.known().number))

        try:
            pool.for_each(begin, (True, False), 2)
            self._wait(mine, tail[0], key)
        finally:
            delete_later(lane.home.engine, key)

    def _wait(self, mine: list[Part], number: int, own: str) -> None:
        """Wait for records after `number` that decide these parts; gather when none comes."""
        lane = self._lane
        turn, attempt = self._turn(), 0
        while any(part.outcome is None for part in mine):
            record = lane.log.find(number + 1)
            if record is not None:
                number += 1
                self._meet(mine, number, record)
                turn, attempt = self._turn(), 0
            elif time.monotonic() < turn:
                pause = POLL * self._request
                time.sleep(max(0.0, min(pause, turn - time.monotonic())))
            else:
                last = self._gather(mine, number, own, attempt)
                if last == number:  # another does, and may have died
                    attempt += 1
                    turn = time.monotonic() + attempt * PATIENCE * self._request
                else:
                    number, turn, attempt = last, self._turn(), 0

    def _meet(self, mine: list[Part], number: int, record: Record) -> None:
        """See what a record says of these parts, without taking in those before it."""
        lane = self._lane
        self.note(number, record)
        for part in mine:
            if part.outcome is None:
                self._decide(part, number)
        if record.type == log.LOCK:
            lane.probe(number)
            self._settle_known(mine)

    def _turn(self) -> float:
        """Return when to gather if nobody has: spread so that few waiters begin at once.

        Where many wait, whoever gathered last goes on with it, and is given time.
        """
        least = ROUND if self._crowd >= CROWD and TERM else 0.0
        return time.monotonic() + (least + random.uniform(0.0, self._crowd / 2)) * self._request

    def _gather(self, mine: list[Part], number: int, own: str, attempt: int) -> int:
        """Put a record with these parts and the proposals of others; return the last number.

        Only one writer does so for each number, the one that claims it, and later another one if
        nothing came of that: a hint that saves work.
        """
        lane = self._lane
        engine = lane.home.engine
        found: list[list[str]] = []
        claim = keys.claim(lane.log.prefix, number + 1, attempt)
        stamp = bytes.fromhex(log.new_txid())
        claimed: list[bool] = []

        def look(what: int) -> None:
            if what == 0:
                claimed.append(engine.put_fresh(claim, stamp, stamp))
            elif what == 1:
                found.append(list(self._inbox.names()))
            else:
                lane.probe(number)

        pool.for_each(look, (2, 1, 0), 3)
        state = self._settle_known(mine)
        live = Joint(mine)
        if claimed[0]:
            delete_later(engine, claim, 2 * PATIENCE * self._request)
        if state.locked or (mine and not live.parts) or state.number > number or not claimed[0]:
            return state.number
        void: list[str] = []
        gathered = int(bool(mine))
        for parts in self._inbox.open(found[0], own):
            # What does not fit now is found outdated, or not, by the next one that gathers.
            gathered += any(
                [
                    self._allows(state, part, void) and live.add(part, strict=True)
                    for part in parts
                    if part.txid not in self._outcomes and not self._is_held(part)
                ]
            )
        if not live.parts:
            return number
        if mine and gathered == 1 and not void:
            self._contended = float("-inf")  # nobody else is here any more
        won = self._put(state, *self._joined(state, live.parts, void, gathered), mine)
        self._inbox.forget()
        if won and gathered >= CROWD:
            self._serve_later()
        return max(number + 1, lane.known().number)  # lost or won, the next one is there

    def _serve_later(self) -> None:
        """Have a thread of this process go on gathering for others for a while."""
        if not self._serving and TERM:
            self._serving = True
            try:
                threading.Thread(target=self._serve, name="diced-gather", daemon=True).start()
            except RuntimeError:
                self._serving = False  # no more threads here, or the interpreter is ending

    def _serve(self) -> None:
        """Gather again at once: who has just done it is up to date, and others need not race."""
        try:
            for _ in range(TERM):
                with self.turn:
                    waiting = list(self._waiting.values())
                    self._settle_known(waiting)
                    mine = Joint(waiting).parts
                    number = self._lane.known().number
                    if self._gather(mine, number, "", 0) == number:
                        return
                    if self._crowd < CROWD:
                        return
        except DicedException:
            return  # others gather for themselves
        finally:
            self._serving = False

    def _allows(self, state: State, part: Part, void: list[str]) -> bool:
        """Tell whether a proposal still holds; else it is added to the refused."""
        record = part.record
        base = record.head["base"]
        names: Reads = {space: list(each) for space, each in record.reads.items()}
        for space, changes in record.delta.items():
            names.setdefault(space, []).extend(changes)
        if state.number - base > EXPIRY or self._lane.touched(names, base, state) != {}:
            void.append(part.txid)
            return False
        return True
