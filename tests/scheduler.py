"""Threads of which exactly one runs at a time, in an order that a seed decides.

A task gives way only at points: another may go on there. Time is virtual. Requests fail, answers
are lost, effects come late, processes die and threads are interrupted where the seed says so.
What a request is stands in `tests/scheduled.py`, what tasks do in `tests/schedules.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any, Protocol


class Died(BaseException):
    """The process is dead: the thread unwinds, and nothing it does has an effect."""


class Interrupted(BaseException):
    """As if Ctrl-C had come: the thread gives up what it does, its process lives on."""


class Lock(Protocol):
    """What only one task has."""

    owner: Task | None


class Process:
    """What tasks share that live and die together.

    Attributes
    ----------
    dead : bool
    crowded : bool
        More than one task runs in it.
    skew : float
        Seconds by which its clock is wrong, for what it writes into records.
    """

    def __init__(self, name: str, crowded: bool, skew: float):
        self.name = name
        self.crowded = crowded
        self.skew = skew
        self.dead = False


class Task:
    """A thread's work: `fn` is called once. `error` is what came out of it."""

    __slots__ = (
        "baton", "children", "error", "flying", "fn", "inside", "interruptible", "lock", "name",
        "parent", "priority", "process", "scheduler", "wake",
    )  # fmt: skip

    def __init__(self, process: Process, name: str, fn: Callable[[], object]):
        self.process = process
        self.name = name
        self.fn = fn
        self.wake = 0.0
        self.lock: Lock | None = None  # that it waits for
        self.children = 0  # that it waits for
        self.parent: Task | None = None
        self.flying: Callable[[], object] | None = None  # the effect of a put on its way
        self.interruptible = False
        self.inside = False  # what is done side by side
        self.error: BaseException | None = None
        self.priority = 0.0


class Hand:
    """A thread that runs one task after another, whenever it is given the baton."""

    def __init__(self) -> None:
        self.baton = threading.Lock()
        self.baton.acquire()
        self.task: Task | None = None
        threading.Thread(target=self._serve, name="schedule", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self.baton.acquire()
            task, self.task = self.task, None
            assert task is not None
            scheduler: Scheduler = task.scheduler
            try:
                if not task.process.dead:
                    task.fn()
            except Died:
                pass
            except BaseException as error:
                task.error = error
            _idle.append(self)
            scheduler.ended(task)
            del task, scheduler


_idle: list[Hand] = []


class Scheduler:
    """Which task runs next, what time it is, and what goes wrong.

    Parameters
    ----------
    random : Random
    sticky : float
        How likely a task goes on at a point where another could.
    ranked : bool
        Tasks have priorities, which change at a few steps; else all are alike.
    tick : float
        Seconds between two points, at most.
    faults : float
        How likely a request fails or loses its answer.
    late : float
        How likely, at each point, something that is due (a deletion, say) happens.
    premature : float
        How likely a sleeper is woken too early.
    parallel : bool
        What the library does side by side becomes tasks; else it is done in any order.
    page : int
        Names in one answer to a listing.
    events : dict
        step -> "kill", "interrupt", "stall" (a moment in which nobody does anything), "slow" (the
        task's request takes long) or "demote" (its priority is the lowest from now on)
    calm : int
        The step after which nothing goes wrong any more, and all tasks are treated alike.
    limit : int
        The step at which tasks that are not at their end are stuck.
    """

    def __init__(
        self, random: Random, *, sticky: float, ranked: bool, tick: float, faults: float,
        late: float, premature: float, parallel: bool, page: int, events: dict[int, str],
        calm: int, limit: int,
    ):  # fmt: skip
        self.random = random
        self._draw = random.random
        self._sticky, self._ranked, self._tick = sticky, ranked, tick
        self._faults, self._late, self._premature = faults, late, premature
        self.parallel, self.page = parallel, page
        self._events, self._calm, self._limit = events, calm, limit
        self.objects: dict[str, bytes] = {}
        self.live: list[Task] = []
        self.aside: list[Task] = []  # begun by the library
        self.current: Task | None = None
        self.now = 100.0
        self.steps = 0
        self.deaths = 0
        self.interrupts = 0
        self.stuck = ""
        self.trace: list[tuple[int, float, str, str, str]] = []
        self._pending: list[tuple[float, Process | None, str, Callable[[], object]]] = []
        self._dying: list[Task] = []
        self._over = threading.Lock()
        self._over.acquire()

    # -- tasks -----------------------------------------------------------------------------

    def spawn(self, process: Process, name: str, fn: Callable[[], object]) -> Task:
        """Add a task; it begins when it is chosen."""
        task = Task(process, name, fn)
        hand = _idle.pop() if _idle else Hand()
        hand.task = task
        task.baton, task.scheduler = hand.baton, self
        task.priority = self._draw()
        self.live.append(task)
        return task

    def run(self) -> None:
        """Run all tasks to their ends."""
        self.current = self._choose(None)
        self.current.baton.release()
        self._over.acquire()

    def ended(self, task: Task) -> None:
        """Go on with another task, for this one is done."""
        self.live.remove(task)
        if task.parent is not None:
            task.parent.children -= 1
        if not self.live:
            self.current = None
            self._over.release()
            return
        self.current = self._choose(None)
        self.current.baton.release()

    def note(self, what: str, key: str = "") -> None:
        """Add a line to the trace."""
        assert self.current is not None
        self.trace.append((self.steps, self.now, self.current.name, what, key))

    def point(self) -> None:
        """Maybe let others go on."""
        task = self.current
        assert task is not None
        if task.process.dead:
            raise Died
        self.steps += 1
        self.now += self._tick * self._draw()
        if self.steps in self._events:
            self._meet(self._events[self.steps], task)
        if self.steps == self._calm:
            self._sticky = self._faults = self._premature = 0.0
            self._ranked = False
            self._late = max(self._late, 0.1)
            self._events = {}
        elif self.steps == self._limit:
            self._abort("no end")
        if self._pending and self._draw() < self._late:
            self._land()
        self.switch(task)
        task.wake = 0.0

    def switch(self, task: Task) -> None:
        """Let the next task go on, and return when it is this one's turn."""
        chosen = self._choose(task)
        if chosen is not task:
            self.current = chosen
            chosen.baton.release()
            task.baton.acquire()
        if task.process.dead:
            raise Died

    def _choose(self, task: Task | None) -> Task:
        while self._dying:
            dying = self._dying.pop()
            if dying in self.live:
                return dying
        now = self.now
        able = [
            each
            for each in self.live
            if not each.children and (each.lock is None or each.lock.owner is None)
        ]
        ready = [each for each in able if each.wake <= now]
        if self._premature and self._draw() < self._premature:
            ready = able
        if not ready:
            if not able:
                self._abort("deadlock")
                return self._dying.pop()
            self.now = min(each.wake for each in able)
            ready = [each for each in able if each.wake <= self.now]
        if len(ready) == 1:
            return ready[0]
        if self._ranked:
            return max(ready, key=lambda each: each.priority)
        if self._sticky and task in ready and self._draw() < self._sticky:
            return task
        return ready[int(self._draw() * len(ready))]

    def _abort(self, why: str) -> None:
        self.stuck = why
        for each in self.live:
            each.process.dead = True
        self._dying = list(self.live)

    # -- what goes wrong -------------------------------------------------------------------

    def _meet(self, event: str, task: Task) -> None:
        if event == "slow":
            task.wake = max(task.wake, self.now + self._tick * self.random.choice((10, 50, 200)))
        elif event == "stall":
            self.now += self.random.choice((1.0, 10.0, 100.0))
        elif event == "demote":
            task.priority = -self.steps
        elif event == "interrupt":
            if task.interruptible:
                self.interrupts += 1
                self.note("INTERRUPTED")
                raise Interrupted
        else:
            alive = sorted({each.process.name: each.process for each in self.live}.items())
            if len(alive) > 1:
                self._kill(self.random.choice(alive)[1])

    def _kill(self, process: Process) -> None:
        """A process dies; each request that is on its way arrives, or does not."""
        process.dead = True
        self.deaths += 1
        self.note(f"{process.name} DIES")
        for each in self.live:
            if each.process is process:
                self._dying.append(each)
                if each.flying is not None and self._draw() < 0.5:
                    self.later(0.0, None, f"put of dead {each.name}", each.flying)
        self._pending = [
            each for each in self._pending if each[1] is not process or self._draw() < 0.5
        ]

    def later(
        self, after: float, process: Process | None, what: str, effect: Callable[[], object]
    ) -> None:
        """Have something happen in so many seconds or later, or never."""
        self._pending.append((self.now + after, process, what, effect))

    def _land(self) -> None:
        due = [each for each in self._pending if each[0] <= self.now]
        if due:
            chosen = due[int(self._draw() * len(due))]
            self._pending.remove(chosen)
            self.trace.append((self.steps, self.now, "-", "late " + chosen[2], str(chosen[3]())))

    def fault(self, put: bool) -> str:
        """Return what goes wrong with a request."""
        if not self._faults or self._draw() >= self._faults:
            return ""
        kinds = ("before", "after", "late", "reset", "lost", "lost", "twice")
        return self.random.choice(kinds) if put else "before"

    # -- what the library uses -------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Let others go on for so long, or a bit."""
        task = self.current
        assert task is not None
        task.wake = self.now + seconds
        self.point()

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Do what a pool of threads may do."""
        task = self.current
        if task is None or task.inside:
            yield from map(fn, items)
            return
        jobs = list(items)
        results: dict[int, Any] = {}

        def job(number: int) -> None:
            results[number] = fn(jobs[number])

        interruptible, task.interruptible, task.inside = task.interruptible, False, True
        try:
            if self.parallel and 1 < len(jobs) < 5:
                self._side_by_side(task, [lambda each=each: job(each) for each in range(len(jobs))])
            else:
                for number in self.random.sample(range(len(jobs)), len(jobs)):
                    job(number)
        finally:
            task.interruptible, task.inside = interruptible, False
        yield from (results[number] for number in range(len(jobs)))

    def _side_by_side(self, task: Task, jobs: list[Callable[[], None]]) -> None:
        children = []
        for number, job in enumerate(jobs):
            child = self.spawn(task.process, f"{task.name}/{number}", job)
            child.parent, child.priority, child.inside = task, task.priority, True
            children.append(child)
        task.children = len(children)
        self.switch(task)
        for child in children:
            if child.error is not None:
                raise child.error
