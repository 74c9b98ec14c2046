"""Ends of programs, in order or not: no hang, no noise, no process left, nothing half visible."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_processes import WAIT, Place, make_place


@pytest.fixture(params=["process", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request, tmp_path)


BEGIN = """
import atexit, math, os, sys, threading, time
import numpy as np
from diced import DicedStore
store = DicedStore({location!r}, durability={durability!r}, create=False)
repo = store.open_repo("r")
array = repo["a"]
array[:16, :16, :16] = 1
big = np.arange(64**3, dtype=np.uint32).reshape((64,) * 3)
def busy():
    for turn in range(1, 10**9):
        array[:32, :32, 256:288] = turn
def beside(work):
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.05)
"""

# Name: what the program does then, its exit code, and the last line it leaves on stderr.
ENDS: dict[str, tuple[str, int, str]] = {
    "at the end": ("array[:64, :64, :64] = big", 0, ""),
    "closed": ("array[:64, :64, :64] = big; array[:64, :64, :64]; store.close()", 0, ""),
    "at once": ("beside(busy); os._exit(3)", 3, ""),
    "exit": ("beside(busy); sys.exit(4)", 4, ""),
    "exit in a thread": ("beside(sys.exit); beside(busy)", 0, ""),
    "error": ("beside(busy); 1 / 0", 1, "ZeroDivisionError: division by zero"),
    "readers": ("for _ in range(4): beside(lambda: [array[:64, :64, :64] for _ in range(999)])",
                0, ""),
    "closed under a writer": ("threading.excepthook = print; beside(busy); store.close()", 0, ""),
    "in a batch": ("with array.batch('never'): array[:64, :64, :64] = big; sys.exit(0)", 0, ""),
    "a batch left open": ("each = array.batch('never'); each.__enter__(); array[0, 0, 0] = 9",
                          0, ""),
    "a session left open": ("each = array.session('never'); each[:16, :16, :16] = 9", 0, ""),
    "half-way": ("each = repo.operations('a'); next(each); it = array.blocks(); next(it)\n"
                 "me = [each, it]; me.append(me)", 0, ""),
    "a map half-way": ("from diced import pool\n"
                       "each = pool.map_ordered(lambda n: array[n, 0, 0], range(99), 4)\n"
                       "next(each); me = [each]; me.append(me)", 0, ""),
    "last words": ("atexit.register(lambda: array.__setitem__((slice(0, 64),) * 3, big))", 0, ""),
    "waiting": ("from diced import combine\n"
                "lane = array._writable().lane\n"
                "if lane.home.engine.remote: lane._committer._contended = math.inf\n"
                "for _ in range(3): beside(busy)", 0, ""),
}  # fmt: skip


def begin_program(place: Place, code: str) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own that complains of all that is left open."""
    program = BEGIN.format(location=place.location, durability=place.durability) + code
    where = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": where},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what is read line by line takes nothing from what comes after
        start_new_session=True,
    )


def end_program(process: subprocess.Popen[bytes], wait: float = WAIT) -> tuple[str, str]:
    """Wait for the program's end; return what it wrote to stdout and stderr."""
    try:
        stdout, stderr = process.communicate(timeout=wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # -X dev: it tells where its threads are
        pytest.fail(f"the program hangs: {process.communicate()[1].decode()}")
    assert not in_session(process.pid)
    return stdout.decode(), stderr.decode()


def in_session(leader: int) -> list[str]:
    """Return the processes of a session, by /proc where there is one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(path.parent.name)
    return found


def test_programs_end(place: Place) -> None:
    names = list(ENDS)
    for first in range(0, len(names), 4):  # side by side, for most of it is waiting
        places = [place.beside(name.replace(" ", "-")) for name in names[first : first + 4]]
        programs = []
        for each, name in zip(places, names[first:], strict=False):
            each.create().close()
            programs.append(begin_program(each, ENDS[name][0]))
        for each, name, process in zip(places, names[first:], programs, strict=False):
            _, stderr = end_program(process)
            found = process.returncode, stderr.strip().rpartition("\n")[2]
            assert found == ENDS[name][1:], (name, stderr)
            check_after(each, ENDS[name][0])


def check_after(place: Place, code: str) -> None:
    with place.open() as store:
        array = store.open_repo("r")["a"]
        assert len(np.unique(array[:32, :32, 256:288])) == 1  # whole, or not there
        if "big" in code and "never" not in code:
            assert array[63, 63, 63] == 64**3 - 1
        else:
            assert (array[:16, :16, :16] == 1).all()
        array[0, 0, 0] = 5
    assert place.operations()["never"] == 0


INTERRUPTED = """
print("ready", flush=True)
for turn in range(1, 10**9):
    with array.batch(f"{{os.getpid()}} {{turn}}"):
        value = turn + {number} * 10**6  # nobody else writes it
        array[:48, :48, 256:304] = value * big[:48, :48, :48] if {number} else value
        array[:16, :16, 1024:1040] = value
    print(turn, flush=True)
"""


def test_a_signal_amid_a_commit(place: Place) -> None:
    """The commit that was going on is there wholly or not at all, and holds up nobody."""
    place.create().close()
    signals = [signal.SIGINT, signal.SIGINT, signal.SIGTERM]
    programs = [begin_program(place, INTERRUPTED.format(number=n)) for n in range(3)]
    for each in programs:
        assert each.stdout.readline() == b"ready\n"
    slow = place.gcs is not None and place.gcs.fake
    if slow:
        place.gcs.latency(0.1)
    time.sleep(1.2)
    for each, how in zip(programs, signals, strict=True):
        each.send_signal(how)
    acknowledged: dict[int, list[str]] = {}
    for each, how in zip(programs, signals, strict=True):
        stdout, stderr = end_program(each, 2.0 if slow else WAIT)
        assert each.returncode == -how
        assert stderr.strip().endswith("KeyboardInterrupt" if how == signal.SIGINT else "")
        assert "Exception ignored" not in stderr
        acknowledged[each.pid] = stdout.split()
    if slow:
        place.gcs.latency(0)
    with place.open() as store:
        array = store.open_repo("r")["a"]
        turn = int(array[0, 0, 1024])
        assert (array[:16, :16, 1024:1040] == turn).all()
        first = array[:48, :48, 256:304]
        big = np.arange(64**3, dtype=np.uint32).reshape((64,) * 3)[:48, :48, :48]
        assert (first == turn).all() or (first == turn * big).all()
        array[0, 0, 0] = 5
    done = place.operations()
    for pid, turns in acknowledged.items():
        found = [name for name in done.elements() if name.startswith(f"{pid} ")]
        assert {f"{pid} {turn}" for turn in turns} <= set(found)
        assert len(found) - len(turns) in (0, 1)
