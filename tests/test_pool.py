"""The shared thread pool: order, bounds, errors, sharing, forking and leaving."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest

from diced import pool
from diced.errors import EngineError, InvalidError
from diced.pool import default_threads, for_each, map_ordered


def helpers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("diced-io")]


def uneven(item):
    time.sleep((item * 7919 % 5) / 2000)
    return item * item


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_order(threads, count):
    assert list(map_ordered(uneven, range(count), threads)) == [i * i for i in range(count)]
    assert list(map_ordered(uneven, iter(range(count)), threads)) == [i * i for i in range(count)]


@pytest.mark.parametrize("window", [1, 2, 5, 1000])
def test_window_bounds_what_is_in_flight(window):
    taken = []

    def source():
        for item in range(60):
            taken.append(item)
            yield item

    results = map_ordered(uneven, source(), 4, window)
    for number, result in enumerate(results):
        assert result == number * number
        # The one just yielded has left the window; two are read ahead to see if there are two.
        assert len(taken) <= max(2, number + 1 + window)
    assert len(taken) == 60


def test_tasks_overlap():
    barrier = threading.Barrier(4)
    assert list(map_ordered(lambda _: barrier.wait(30) >= 0, range(4), 4)) == [True] * 4


def test_no_more_than_threads_at_once():
    running, most, lock = [], [], threading.Lock()

    def work(item):
        with lock:
            running.append(item)
            most.append(len(running))
        time.sleep(0.002)
        with lock:
            running.remove(item)

    for_each(work, range(100), 3)
    assert max(most) <= 3


def test_inline_starts_no_thread():
    code = """
import threading
from diced.pool import for_each, map_ordered
here = threading.get_ident()
same = lambda _: threading.get_ident() == here
assert all(map_ordered(same, range(5), 1))
assert all(map_ordered(same, [0], 8))
assert all(map_ordered(same, iter([0]), 8))
for_each(same, [], 8)
assert threading.active_count() == 1
assert list(map_ordered(abs, range(2), 8)) == [0, 1]
assert threading.active_count() <= 2
"""
    assert run_python(code) == 0


def run_python(code, timeout=60):
    code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    return subprocess.run([sys.executable, "-c", code], timeout=timeout, check=False).returncode


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("bad", [0, 1, 7, 39])
def test_error(threads, bad):
    begun = []

    def work(item):
        begun.append(item)
        if item == bad:
            raise ZeroDivisionError(item)
        time.sleep(0.001)
        return item

    results = map_ordered(work, range(40), threads)
    got = []
    with pytest.raises(ZeroDivisionError):
        for result in results:
            got.append(result)
    assert got == list(range(len(got))) and len(got) <= bad
    assert len(begun) <= bad + 1 + 2 * threads
    assert list(results) == []


def test_error_waits_for_running_tasks():
    running = threading.Event()
    finished = []

    def work(item):
        if item == 0:
            assert running.wait(30)
            raise ZeroDivisionError
        running.set()
        time.sleep(0.05)
        finished.append(item)

    with pytest.raises(ZeroDivisionError):
        for_each(work, range(2), 2)
    assert finished == [1]


@pytest.mark.parametrize("threads", [1, 4])
def test_error_of_the_source(threads):
    def source():
        yield from range(10)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for_each(uneven, source(), threads)


def test_interrupt_in_a_task():
    def work(item):
        if item == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_each(work, range(10), 4)
    assert list(map_ordered(abs, range(9), 4)) == list(range(9))


def test_interrupt_of_the_caller():
    """A signal that interrupts the waiting caller leaves no task running."""
    state = []

    def work(item):
        state.append("+")
        time.sleep(0.01)
        state.append("-")

    def interrupt(*_):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            for_each(work, range(10_000), 4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    done = len(state)
    time.sleep(0.03)
    assert len(state) == done
    assert 0 <= state.count("+") - state.count("-") <= 1  # the interrupted one was the caller's


def test_closing_early():
    done = []

    def work(item):
        time.sleep(0.005)
        done.append(item)
        return item

    results = map_ordered(work, range(1000), 4)
    assert next(results) == 0
    results.close()
    count = len(done)
    assert count <= 9
    time.sleep(0.03)
    assert len(done) == count


def test_forgotten_iterators_do_no_harm():
    for _ in range(50):
        results = map_ordered(uneven, range(1000), 4)
        assert next(results) == 0
        cycle = [results]
        cycle.append(cycle)
        del results, cycle
    gc.collect()
    assert list(map_ordered(uneven, range(9), 4)) == [i * i for i in range(9)]


def test_nothing_is_kept_after_the_end():
    class Thing:
        pass

    things = [Thing() for _ in range(20)]
    held = Thing()

    def work(thing, held=held):
        return [thing, held]

    refs = [weakref.ref(thing) for thing in [*things, held]]
    made = list(map_ordered(work, things, 4))
    del things, made, held, work
    deadline = time.monotonic() + 10
    while any(ref() is not None for ref in refs) and time.monotonic() < deadline:
        time.sleep(0.005)  # idle helpers are about to drop the job
    assert all(ref() is None for ref in refs)


def test_nested_maps_run_inline():
    def inner(item):
        time.sleep(0.001)
        return threading.get_ident(), item

    def outer(item):
        found = list(map_ordered(inner, range(5), 8))
        assert {who for who, _ in found} == {threading.get_ident()}
        assert [value for _, value in found] == list(range(5))
        return item

    assert list(map_ordered(outer, range(20), 4)) == list(range(20))
    # Afterwards this thread is no task any more.
    barrier = threading.Barrier(2)
    for_each(lambda _: barrier.wait(30), range(2), 2)


def test_a_map_feeds_a_map():
    inner = map_ordered(uneven, range(60), 3)
    assert list(map_ordered(lambda item: item + 1, inner, 3)) == [i * i + 1 for i in range(60)]


def test_users_share_a_saturated_pool(monkeypatch):
    monkeypatch.setattr(pool, "LIMIT", 2)
    monkeypatch.setattr(pool, "_pool", pool._Pool())
    outcomes = []

    def user(number):
        for _ in range(3):
            values = list(map_ordered(uneven, range(number, number + 20), 8))
            outcomes.append(values == [i * i for i in range(number, number + 20)])

    users = [threading.Thread(target=user, args=(number,)) for number in range(12)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(60)
    assert outcomes == [True] * 36


def test_blocked_helpers_stop_nobody(monkeypatch):
    """With every helper stuck in one user's tasks, another user's call still ends."""
    monkeypatch.setattr(pool, "LIMIT", 2)
    monkeypatch.setattr(pool, "_pool", pool._Pool())
    go_on = threading.Event()
    stuck = threading.Thread(target=for_each, args=(lambda _: go_on.wait(60), range(3), 3))
    stuck.start()
    try:
        assert list(map_ordered(uneven, range(30), 8)) == [i * i for i in range(30)]
        assert stuck.is_alive()
    finally:
        go_on.set()
        stuck.join(60)


def test_number_of_helpers_is_bounded(monkeypatch):
    monkeypatch.setattr(pool, "LIMIT", 3)
    monkeypatch.setattr(pool, "_pool", pool._Pool())
    before = len(helpers())
    for_each(uneven, range(100), 50)
    assert len(helpers()) - before <= 3


def test_no_thread_to_be_had(monkeypatch):
    monkeypatch.setattr(pool, "_pool", pool._Pool())

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(map_ordered(abs, range(20), 8)) == list(range(20))


@pytest.mark.parametrize(("threads", "window"), [(0, None), (-1, None), (2, 0)])
def test_bad_arguments(threads, window):
    with pytest.raises(InvalidError):
        map_ordered(abs, [1, 2], threads, window)


def test_default_threads():
    assert 1 <= default_threads() <= 8


def forked(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a threaded process
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(30)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_child_has_its_own_pool():
    for_each(uneven, range(20), 4)

    def child():
        assert list(map_ordered(uneven, range(50), 4)) == [i * i for i in range(50)]
        barrier = threading.Barrier(3)
        for_each(lambda _: barrier.wait(20), range(3), 3)

    assert forked(child) == 0
    assert list(map_ordered(uneven, range(50), 4)) == [i * i for i in range(50)]


def test_map_does_not_cross_a_fork():
    results = map_ordered(uneven, range(1000), 4)
    assert next(results) == 0

    def child():
        with pytest.raises(EngineError, match="fork"):
            next(results)
        results.close()

    assert forked(child) == 0
    assert next(results) == 1
    results.close()


def test_fork_while_busy():
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            for_each(uneven, range(10), 3)

    users = [threading.Thread(target=churn) for _ in range(3)]
    for thread in users:
        thread.start()
    try:
        codes = [forked(lambda: for_each(uneven, range(20), 4)) for _ in range(10)]
    finally:
        stop.set()
        for thread in users:
            thread.join(30)
    assert codes == [0] * 10


@pytest.mark.parametrize(
    "ending",
    ["", "next(results)", "import atexit; atexit.register(for_each, time.sleep, [0] * 9, 4)"],
)
def test_exit_does_not_hang(ending):
    code = f"""
import time
from diced.pool import for_each, map_ordered
for_each(time.sleep, [0.001] * 20, 4)
results = map_ordered(lambda item: time.sleep(0.01), range(100), 4)
{ending}
"""
    assert run_python(code) == 0


def test_import_is_light():
    code = """
import diced.pool
assert "concurrent.futures" not in sys.modules
assert "asyncio" not in sys.modules
"""
    assert run_python(code) == 0
