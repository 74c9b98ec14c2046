"""Finds out by experiment what a location can promise to several writers.

Two processes, on one host or two, do the same steps through the engine and meet only in the
location itself. All that a probe writes lies below one key of its own, which is removed at its end,
or by the next probe if it was killed; what it found is kept with `findings.save`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from diced import jsontext
from diced.engine import findings
from diced.engine.base import Engine, fresh_name
from diced.engine.local import LocalEngine
from diced.errors import CorruptError, EngineError, NotFoundError

SCRATCH = "probe-tmp"
PATIENCE = 90.0  # seconds for the other process; above every usual attribute cache
STALE_AFTER = 900.0  # seconds after which another host's unfinished probe is removed
ROUNDS = 32
PINGS = 12
LAG = 10.0  # seconds that a listing or a deletion is watched for
MAIN, OTHER = "a", "b"

Say = Callable[[str], None]


class Side:
    """One of the two processes, and how it meets the other.

    Parameters
    ----------
    engine : Engine
    run : str
        Name of this probe.
    me : {"a", "b"}
        "a" leads.
    alive : callable
        Raises if waiting for the other is in vain.
    """

    def __init__(self, engine: Engine, run: str, me: str, alive: Callable[[], None]) -> None:
        self.engine = engine
        self.prefix = f"{SCRATCH}/{run}"
        self.me = me
        self.peer = OTHER if me == MAIN else MAIN
        self.alive = alive

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def tell(self, name: str, value: Any = None) -> None:
        """Leave a message under a name of one's own."""
        data = jsontext.dumps({"value": value, "from": self.me})
        if not self.engine.put_if_absent(self.key(f"{name}-{self.me}"), data, b"probe"):
            raise EngineError(f"somebody else writes in {self.prefix!r} of {self.engine.url}")

    def hear(self, name: str, patience: float = PATIENCE) -> Any:
        """Wait for the other's message of a name, and return it."""
        key = self.key(f"{name}-{self.peer}")
        end = time.monotonic() + patience
        pause = 0.001
        while not self.engine.exists(key):
            self.alive()
            if time.monotonic() > end:
                raise EngineError(
                    f"the other process of the probe did not answer within {patience:.0f} s, or "
                    f"what it wrote in {self.engine.url} cannot be seen here"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return jsontext.loads(self.engine.get(key))["value"]

    def meet(self, name: str, value: Any = None) -> Any:
        """Wait until both are here; return what the other brought."""
        self.tell(name, value)
        return self.hear(name)

    # ---- the steps, the same on both sides

    def race(self) -> dict[str, Any]:
        """Create the same keys at once; return what each side was told, and read."""
        won, read, times = [], [], []
        for number in range(ROUNDS):
            self.meet(f"go/{number:03d}")
            data = f"{self.me} {number} {fresh_name()}".encode()
            begin = time.perf_counter()
            won.append(self.engine.put_if_absent(self.key(f"race/{number:03d}"), data, data))
            times.append(time.perf_counter() - begin)
            read.append(self.engine.get(self.key(f"race/{number:03d}")).decode())
        return {"won": won, "read": read, "ms": 1e3 * median(times)}

    def pings(self) -> list[tuple[float, float]]:
        """Answer each other at once; return (seconds of the round, the other's clock ahead)."""
        found = []
        for number in range(PINGS):
            name = f"ping/{number:03d}"
            self.meet(f"ready/{number:03d}")
            if self.me == MAIN:
                time.sleep(0.05)  # so that the other has looked in vain, and may believe that
                sent = time.time()
                begin = time.perf_counter()
                self.tell(name)
                there = float(self.hear(name))
                took = time.perf_counter() - begin
                found.append((took, there - sent - took / 2))
            else:
                self.hear(name)
                self.tell(name, time.time())
        return found

    def causes(self) -> int:
        """Look for what was written before something seen; return how often it was not there."""
        stale = 0
        for number in range(PINGS):
            key = self.key(f"cause/{number:03d}")
            if self.me == MAIN:
                self.hear(f"looked/{number:03d}")
                self.engine.put_if_absent(key, b"cause", b"probe")
                self.tell(f"caused/{number:03d}")
            else:
                self.engine.exists(key)
                self.tell(f"looked/{number:03d}")
                self.hear(f"caused/{number:03d}")
                stale += not self.engine.exists(key)
        return stale

    def listing(self) -> tuple[float | None, float | None]:
        """Return for how long a listing, and a look, showed an older state; None: too long."""
        names = [self.key(f"list/{number}") for number in range(8)]
        list(self.engine.list(self.key("list")))
        for each in names[:4]:
            if self.me == MAIN:
                self.engine.put_if_absent(each, b"listed", b"probe")
        self.meet("listed")
        list(self.engine.list(self.key("list")))
        self.engine.exists(names[0])
        self.meet("seen")
        if self.me == MAIN:
            for each in names[4:]:
                self.engine.put_if_absent(each, b"listed", b"probe")
            for each in names[:2]:
                self.engine.delete(each)
        self.meet("changed")
        listed = _lag(lambda: list(self.engine.list(self.key("list"))) == names[2:])
        return listed, _lag(lambda: not self.engine.exists(names[0]))

    def growth(self) -> list[str]:
        """Read what the other appends; return what was wrong."""
        wrong: list[str] = []
        first, more = bytes(range(256)) * 5, bytes(range(255, -1, -1)) * 40
        if self.me == MAIN:
            with self.engine.appender(self.key("grown")) as log:
                log.append([first])
                if not self.engine.grows:
                    log.append([more])
                log.sync()
                self.tell("begun", log.key)
                self.hear("read")
                if self.engine.grows:
                    log.append([more])
                    log.sync()
                self.meet("grown")
                self.hear("done")
                return wrong
        key = self.hear("begun")
        self._compare(key, 0, first, wrong)
        self.tell("read")
        self.meet("grown")
        whole = first + more
        for start, length in ((len(first), len(more)), (1000, 700), (len(whole) - 1, 1)):
            self._compare(key, start, whole[start : start + length], wrong)
        try:
            self.engine.get(key, len(whole) - 1, 2)
            wrong.append("a range past the end of an object is not refused")
        except CorruptError:
            pass
        try:
            self.engine.get(self.key("nothing"))
            wrong.append("a missing object can be read")
        except NotFoundError:
            pass
        self.tell("done")
        return wrong

    def _compare(self, key: str, start: int, wanted: bytes, wrong: list[str]) -> None:
        try:
            got = self.engine.get(key, start, len(wanted))
        except CorruptError as error:
            wrong.append(f"what the other process appended cannot be read: {error}")
            return
        if got != wanted:
            wrong.append("a range of an object that the other process wrote holds other bytes")

    def steps(self, say: Say) -> dict[str, Any]:
        """Do everything; return what this side saw."""
        say("creating the same keys at once")
        race = self.race()
        say("looking for each other's writes")
        pings, stale = self.pings(), self.causes()
        say("listing, appending and reading")
        listed, deleted = self.listing()
        return {
            "race": race,
            "pings": pings,
            "stale": stale,
            "listed": listed,
            "deleted": deleted,
            "wrong": self.growth(),
        }


def _lag(right: Callable[[], bool]) -> float | None:
    """Return the seconds until something is so, 0 if it is at once, None if not within `LAG`."""
    begin = time.monotonic()
    if right():
        return 0.0
    while time.monotonic() - begin < LAG:
        time.sleep(0.02)
        if right():
            return time.monotonic() - begin
    return None


def lead(
    engine: Engine, hosts: int, start: Callable[[str], Callable[[], None]], say: Say
) -> dict[str, Any]:
    """Probe a location together with a process that `join` runs in.

    Parameters
    ----------
    engine : Engine
        Open for writing.
    hosts : int
        1 or 2; how many the two processes are on.
    start : callable
        Takes the name of this probe and has the other process started; returns what raises if
        that has ended.
    say : callable
        Takes a line on what is being done.

    Returns
    -------
    dict
        What was found, as kept at the location; ``ok`` is the verdict.

    Raises
    ------
    UnsupportedError
        If the location cannot tell writers apart; nothing is kept.
    """
    sweep(engine)
    run = fresh_name()
    begin = {"place": _place(), "pid": os.getpid(), "time": time.time(), "hosts": hosts}
    mark = f"{SCRATCH}/{run}/begin"
    try:
        engine.put_if_absent(mark, jsontext.dumps(begin), b"probe")
        side = Side(engine, run, MAIN, start(run))
        other = side.meet("host", os.uname().nodename)
        mine = side.steps(say)
        theirs = side.meet("report", None)
        found = _findings(engine, hosts, mine, theirs)
        found["other"] = other
    finally:
        _remove(engine, run)
    _keep(engine, found)
    return found


def join(engine: Engine, run: str | None, alive: Callable[[], None], say: Say) -> None:
    """Be the other process: of the probe `run`, or of one that waits for another host."""
    if run is None:
        say("waiting for a probe with --hosts 2")
        run = _waiting(engine, alive)
    side = Side(engine, run, OTHER, alive)
    side.meet("host", os.uname().nodename)
    mine = side.steps(say)
    side.tell("report", mine)


def sweep(engine: Engine) -> int:
    """Remove what probes that were killed left behind; return how many there were."""
    removed = 0
    for run in sorted({key.split("/")[1] for key in engine.list(SCRATCH)}):
        begun = _begun(engine, run)
        if begun.get("place") == _place():
            over = not _runs(int(begun["pid"]))
        else:
            over = time.time() - float(begun.get("time", 0)) > STALE_AFTER
        if over:
            _remove(engine, run)
            removed += 1
    return removed


def _begun(engine: Engine, run: str) -> dict[str, Any]:
    try:
        found = jsontext.loads(engine.get(f"{SCRATCH}/{run}/begin"))
    except (NotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _place() -> str:
    """Return what tells this host from others, and its containers from each other."""
    place = os.uname().nodename
    for each in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):  # another system than Linux
            place += f" {os.stat(each).st_ino}" if "/ns/" in each else " " + _line(each)
    return place


def _line(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.readline().strip()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _waiting(engine: Engine, alive: Callable[[], None]) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for run in sorted({key.split("/")[1] for key in engine.list(SCRATCH)}):
            begun = _begun(engine, run)
            recent = abs(time.time() - float(begun.get("time", 0))) < STALE_AFTER
            joined = engine.exists(f"{SCRATCH}/{run}/host-{OTHER}")
            if begun.get("hosts") == 2 and recent and not joined:
                return run
        alive()
        time.sleep(0.1)
    raise EngineError(f"no probe with --hosts 2 waits at {engine.url}")


def _remove(engine: Engine, run: str) -> None:
    """Remove a probe's objects, and on a disk their directories; the mark last."""
    mark = f"{SCRATCH}/{run}/begin"
    for key in engine.list(f"{SCRATCH}/{run}"):
        if key != mark:
            engine.delete(key)
    engine.delete(mark)
    if isinstance(engine, LocalEngine):
        engine.prune(SCRATCH)


def _keep(engine: Engine, found: dict[str, Any]) -> None:
    findings.save(engine, found)
    if isinstance(engine, LocalEngine):
        engine.prune(findings.PREFIX)  # of the record before


def refused(engine: Engine, hosts: int, why: str) -> dict[str, Any]:
    """Keep, and return, that a location does not tell writers apart."""
    found = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": os.uname().nodename,
        "hosts": hosts,
        "url": engine.url,
        "file_system": getattr(engine, "kind", None),
        "writers": False,
        "problems": [why],
        "ok": False,
    }
    _keep(engine, found)
    return found


def _findings(
    engine: Engine, hosts: int, mine: dict[str, Any], theirs: dict[str, Any]
) -> dict[str, Any]:
    problems: list[str] = []
    winners = list(zip(mine["race"]["won"], theirs["race"]["won"], strict=True))
    both, none = winners.count((True, True)), winners.count((False, False))
    if both:
        problems.append(f"of {ROUNDS} keys that both processes created, {both} had two winners")
    if none:
        problems.append(f"of {ROUNDS} keys that both processes created, {none} had no winner")
    wrong = 0
    for (won, _), here, there in zip(
        winners, mine["race"]["read"], theirs["race"]["read"], strict=True
    ):
        wrong += here != there or here[0] != (MAIN if won else OTHER)
    if wrong:
        problems.append(f"{wrong} keys do not hold the bytes of the process that was told it won")
    problems += mine["wrong"] + theirs["wrong"]
    if theirs["stale"]:
        problems.append(f"{theirs['stale']} of {PINGS} writes could not be seen after a later one")
    lags = [mine["listed"], theirs["listed"]]
    if None in lags:
        problems.append(f"a listing still showed an older state after {LAG:.0f} s")
    naming = getattr(engine, "naming", "service")
    network = bool(getattr(engine, "network", engine.remote))
    if naming == "rename" and network and hosts == 1:
        problems.append(
            "the file system makes no hard links, and that renaming replaces nothing was seen on "
            "one host only: use --hosts 2"
        )
    took, ahead = min(mine["pings"])
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": os.uname().nodename,
        "hosts": hosts,
        "url": engine.url,
        "file_system": getattr(engine, "kind", None),
        "network": network,
        "naming": naming,
        "durability": engine.durability,
        "rounds": ROUNDS,
        "won": [sum(won for won, _ in winners), sum(won for _, won in winners)],
        "writers": not (both or none or wrong),
        "create_ms": round(mine["race"]["ms"], 3),
        "fresh_s": round(max(took for took, _ in mine["pings"]), 4),
        "stale": theirs["stale"],
        "listed_s": None if None in lags else round(max(lags), 3),
        "deleted_s": theirs["deleted"] and round(theirs["deleted"], 3),
        "clock_s": round(ahead, 4),
        "clock_error_s": round(took / 2, 4),
        "problems": problems,
        "ok": not problems,
    }
