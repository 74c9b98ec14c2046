"""What every engine must do.

Subclass `EngineContract` and give it a `location` fixture: a location nobody else uses, which
`diced.engine.open_engine` understands and which does not exist yet.
"""

import os
import random
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diced.engine import Engine, open_engine
from diced.errors import (
    CorruptError,
    EngineError,
    InvalidError,
    LocationError,
    NotFoundError,
    ReadOnlyError,
)

BAD_KEYS = [
    "", "/", "/a", "a/", "a//b", "..", "a/..", "../a", "a/../b", ".", "a/./b", ".tmp/a", "a/.b",
    "A", "a b", "a\\b", "a\0", "a\n", "é", "a:b", "a%2fb", "a" * 600, None, 7, b"a",
]  # fmt: skip


def run_together(count, work):
    """Call work(0..count-1), each on its own thread, all released at once; return the results."""
    barrier = threading.Barrier(count)

    def one(number):
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def fork():
    """Fork, threads or no threads."""
    with warnings.catch_warnings():
        # Newer Pythons warn of forking a threaded process, which is the very thing under test.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def run_forked(work, timeout=60):
    """Call work() in a forked child; return its exit code, 0 unless it raised."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(timeout)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class EngineContract:
    turns = True  # whether `turn` does anything

    @pytest.fixture
    def location(self, tmp_path):
        raise NotImplementedError

    @pytest.fixture
    def engine(self, location):
        with open_engine(location) as engine:
            yield engine

    # ---- opening

    def test_url_reaches_the_same_objects(self, engine):
        engine.put_if_absent("a/b", b"there", b"t")
        with open_engine(engine.url, create=False) as again:
            assert again.get("a/b") == b"there"
            assert again.url == engine.url

    @pytest.mark.parametrize("options", [{"create": False}, {"readonly": True}])
    def test_missing_location_is_not_made(self, location, options):
        with pytest.raises(LocationError):
            open_engine(location, **options)
        with pytest.raises(LocationError):
            open_engine(location, create=False)

    def test_attributes(self, location):
        with open_engine(location, durability="process") as engine:
            assert isinstance(engine, Engine)
            assert engine.durability == "process"
            assert engine.readonly is False
            assert engine.url in repr(engine)
        with open_engine(location) as engine:
            assert engine.durability == "power"

    def test_unknown_durability(self, location):
        with pytest.raises(InvalidError, match="fast"):
            open_engine(location, durability="fast")

    def test_closed(self, location):
        engine = open_engine(location)
        engine.put_if_absent("a", b"1", b"t")
        engine.close()
        engine.close()
        for call in (
            lambda: engine.get("a"),
            lambda: engine.exists("a"),
            lambda: engine.put_if_absent("b", b"1", b"t"),
            lambda: engine.list(""),
        ):
            with pytest.raises(EngineError, match="closed"):
                call()

    def test_readonly(self, location):
        with open_engine(location) as engine:
            engine.put_if_absent("a", b"1", b"t")
        with open_engine(location, readonly=True) as engine:
            assert engine.readonly
            assert engine.get("a") == b"1"
            assert list(engine.list("")) == ["a"]
            for call in (
                lambda: engine.put_if_absent("b", b"1", b"t"),
                lambda: engine.put_if_absent("a", b"1", b"t"),
                lambda: engine.put_unique("b", [b"1"]),
                lambda: engine.delete("a"),
            ):
                with pytest.raises(ReadOnlyError):
                    call()
            with pytest.raises(ReadOnlyError):
                engine.appender("b")
            with engine.turn("a"):
                pass
            assert list(engine.list("")) == ["a"]

    # ---- keys

    @pytest.mark.parametrize("key", BAD_KEYS, ids=repr)
    def test_bad_keys(self, engine, key):
        for call in (
            lambda: engine.put_if_absent(key, b"", b"t"),
            lambda: engine.put_unique(key, [b""]),
            lambda: engine.get(key),
            lambda: engine.read_into(key, 0, bytearray(1)),
            lambda: engine.exists(key),
            lambda: engine.size(key),
            lambda: engine.delete(key),
            lambda: engine.turn(key).__enter__(),
        ):
            with pytest.raises(InvalidError):
                call()
        if key:
            with pytest.raises(InvalidError):
                engine.list(key)
        assert list(engine.list("")) == []

    def test_bad_suffix(self, engine):
        with pytest.raises(InvalidError):
            engine.put_unique("a", [b""], "/../x")

    @pytest.mark.parametrize("key", ["a", "0", "a/b/c", "a_b-c.d/e000000/0000000127", "x" * 200])
    def test_good_keys(self, engine, key):
        assert engine.put_if_absent(key, b"v", b"t")
        assert engine.get(key) == b"v"
        assert list(engine.list("")) == [key]

    # ---- put_if_absent

    def test_put_creates_once(self, engine):
        assert engine.put_if_absent("a/b", b"first", b"t1") is True
        assert engine.put_if_absent("a/b", b"other", b"t2") is False
        assert engine.put_if_absent("a/b", b"longer than first", b"t3") is False
        assert engine.get("a/b") == b"first"

    def test_own_earlier_attempt_counts(self, engine):
        assert engine.put_if_absent("a/b", b"first", b"t1") is True
        assert engine.put_if_absent("a/b", b"first", b"t1") is True
        assert list(engine.list("")) == ["a/b"]

    def test_put_keeps_no_reference(self, engine):
        data = bytearray(b"before")
        engine.put_if_absent("a", data, b"t")
        data[:] = b"after!"
        assert engine.get("a") == b"before"

    def test_put_takes_any_buffer(self, engine):
        engine.put_if_absent("a", np.arange(6, dtype="<u2").reshape(2, 3), b"t")
        assert engine.get("a") == np.arange(6, dtype="<u2").tobytes()
        with pytest.raises(InvalidError):
            engine.put_if_absent("b", np.zeros((4, 4))[:, 1], b"t")
        assert not engine.exists("b")

    def test_empty_object(self, engine):
        assert engine.put_if_absent("a", b"", b"t")
        assert engine.exists("a")
        assert engine.size("a") == 0
        assert engine.get("a") == b""
        assert engine.get("a", 0, 0) == b""

    def test_race_has_one_winner(self, engine):
        for round_ in range(20):
            key = f"race/{round_:04d}"
            won = run_together(
                8, lambda who, key=key: engine.put_if_absent(key, b"data of %d" % who, b"t")
            )
            assert sorted(won) == [False] * 7 + [True]
            assert engine.get(key) == b"data of %d" % won.index(True)
        assert len(list(engine.list("race"))) == 20

    # ---- put_unique

    def test_put_unique(self, engine):
        keys = {engine.put_unique("segs/x", [b"ab", b"", memoryview(b"cd")], ".seg") for _ in "123"}
        assert len(keys) == 3
        for key in keys:
            folder, shard, name = key.rsplit("/", 2)
            assert folder == "segs/x"
            assert name.endswith(".seg")
            digits = name.removesuffix(".seg")
            assert len(digits) == 16 and int(digits, 16) >= 0 and shard == digits[:2]
            assert engine.get(key) == b"abcd"
        assert list(engine.list("segs")) == sorted(keys)

    def test_put_unique_of_a_generator(self, engine):
        key = engine.put_unique("p", (bytes([i]) * i for i in range(5)))
        assert engine.get(key) == b"\1\2\2\3\3\3\4\4\4\4"

    def test_put_unique_whose_source_fails(self, engine):
        def chunks():
            yield b"some"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            engine.put_unique("p", chunks())
        assert list(engine.list("")) == []

    def test_big_value(self, engine):
        chunk = random.Random(1).randbytes(1 << 20)
        key = engine.put_unique("big", (chunk for _ in range(24)))
        assert engine.size(key) == 24 << 20
        assert engine.get(key) == chunk * 24
        assert engine.put_if_absent("big/one", chunk * 3, b"t")
        assert engine.put_if_absent("big/one", chunk * 3, b"t")
        assert not engine.put_if_absent("big/one", chunk * 2 + chunk[::-1], b"t")

    # ---- reading

    def test_missing(self, engine):
        for key in ("a", "a/b"):
            for call in (
                lambda key=key: engine.get(key),
                lambda key=key: engine.get(key, 5, 2),
                lambda key=key: engine.get(key, 0, 0),
                lambda key=key: engine.read_into(key, 0, bytearray(3)),
                lambda key=key: engine.read_into(key, 0, bytearray()),
                lambda key=key: engine.size(key),
            ):
                with pytest.raises(NotFoundError, match=key):
                    call()
            assert engine.exists(key) is False

    def test_folder_is_no_object(self, engine):
        engine.put_if_absent("a/b/c", b"1", b"t")
        assert not engine.exists("a/b")
        for call in (
            lambda: engine.get("a/b"),
            lambda: engine.get("a/b", 1, 2),
            lambda: engine.read_into("a", 0, bytearray(2)),
            lambda: engine.size("a"),
        ):
            with pytest.raises(NotFoundError):
                call()

    def test_ranges(self, engine):
        data = bytes(range(100))
        engine.put_if_absent("a", data, b"t")
        for start, length in [(0, 100), (0, 1), (99, 1), (10, 20), (0, 0), (100, 0), (50, None),
                              (100, None)]:  # fmt: skip
            wanted = data[start:] if length is None else data[start : start + length]
            assert engine.get("a", start, length) == wanted
            out = bytearray(len(wanted))
            engine.read_into("a", start, out)
            assert out == wanted

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, 101), (100, 1), (101, 0), (200, 5), (0, 1 << 40), (1 << 62, 1 << 62), (1 << 70, 4)],
    )
    def test_range_past_the_end(self, engine, start, length):
        engine.put_if_absent("some/key", bytes(100), b"t")
        with pytest.raises(CorruptError, match="some/key"):
            engine.get("some/key", start, length)
        if length < 1000:
            with pytest.raises(CorruptError, match="some/key"):
                engine.read_into("some/key", start, bytearray(length))

    def test_start_past_the_end(self, engine):
        engine.put_if_absent("a", bytes(100), b"t")
        with pytest.raises(CorruptError):
            engine.get("a", 101)

    def test_negative_range(self, engine):
        engine.put_if_absent("a", bytes(100), b"t")
        for call in (
            lambda: engine.get("a", -1),
            lambda: engine.get("a", 0, -1),
            lambda: engine.read_into("a", -1, bytearray(1)),
        ):
            with pytest.raises(InvalidError):
                call()

    def test_read_into_arrays(self, engine):
        values = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
        engine.put_if_absent("a", b"head" + values.tobytes(), b"t")
        out = np.zeros_like(values)
        engine.read_into("a", 4, out)
        np.testing.assert_array_equal(out, values)
        for bad in (out[:, ::2], bytes(4)):
            with pytest.raises(InvalidError):
                engine.read_into("a", 0, bad)

    def test_many_objects_read_at_once(self, engine):
        data = {f"o/{i:03d}": bytes([i % 256]) * (i + 1) for i in range(300)}
        for key, value in data.items():
            engine.put_if_absent(key, value, b"t")

        def work(seed):
            chance = random.Random(seed)
            for key in chance.choices(list(data), k=400):
                value = data[key]
                start = chance.randrange(len(value))
                assert engine.get(key, start, len(value) - start) == value[start:]
                out = bytearray(len(value))
                engine.read_into(key, 0, out)
                assert out == value

        run_together(8, work)

    # ---- listing and deleting

    def test_list_order_and_after(self, engine):
        keys = ["a", "b/a/c", "b/a-c", "b/a.c", "b/ab", "b/a0", "b/z/1/2", "b/z/1.x", "b-c", "b.d",
                "bb/x", "c/0000000009", "c/0000000010"]  # fmt: skip
        for key in keys:
            engine.put_if_absent(key, b"", b"t")
        assert list(engine.list("")) == sorted(keys)
        for prefix in ("b", "b/a", "b/z", "c", "a", "nothing", "b/z/1/2"):
            below = sorted(key for key in keys if key.startswith(prefix + "/"))
            assert list(engine.list(prefix)) == below
            for after in [*keys, "b/", "b/z/", "b/z/0", "~", "c/0000000009x"]:
                expected = [key for key in below if key > after]
                assert list(engine.list(prefix, after)) == expected, (prefix, after)

    def test_list_while_deleting(self, engine):
        keys = [f"d/{i:02d}/{j}" for i in range(5) for j in range(5)]
        for key in keys:
            engine.put_if_absent(key, b"", b"t")
        seen = []
        for key in engine.list("d"):
            seen.append(key)
            engine.delete(key)
        assert seen == keys
        assert list(engine.list("")) == []

    def test_delete(self, engine):
        engine.put_if_absent("a/b", b"1234", b"t")
        assert engine.get("a/b", 1, 2) == b"23"
        engine.delete("a/b")
        engine.delete("a/b")
        engine.delete("never/was")
        assert not engine.exists("a/b")
        with pytest.raises(NotFoundError):
            engine.get("a/b", 1, 2)
        assert engine.put_if_absent("a/b", b"5678", b"t")
        assert engine.get("a/b", 1, 2) == b"67"

    # ---- turns

    def test_turns_of_threads(self, engine):
        inside = []
        seen = []

        def work(number):
            for _ in range(20):
                with engine.turn("lane/1"):
                    inside.append(number)
                    seen.append(len(inside))
                    inside.remove(number)

        run_together(4, work)
        assert len(seen) == 80
        if self.turns:
            assert max(seen) == 1

    def test_turns_nest(self, engine):
        with engine.turn("a"), engine.turn("a"), engine.turn("b"):
            engine.put_if_absent("a", b"1", b"t")
        with engine.turn("a"):
            pass
        assert list(engine.list("")) == ["a"]

    def test_turn_ends_with_an_error(self, engine):
        with pytest.raises(ZeroDivisionError), engine.turn("a"):
            raise ZeroDivisionError
        with engine.turn("a"):
            pass

    def test_turn_survives_fork(self, engine, monkeypatch):
        monkeypatch.setattr("diced.engine.base.Turns.PATIENCE", 0.05)

        def child():
            with engine.turn("a"):
                pass

        with engine.turn("a"):
            assert run_forked(child) == 0
        with engine.turn("a"):
            pass

    # ---- appenders

    @pytest.fixture
    def growing(self, engine):
        if not engine.grows:
            with engine.appender("s") as log:
                log.append([b"all"])
                log.sync()
                with pytest.raises(EngineError, match="no more"):
                    log.append([b"too late"])
                assert engine.get(log.key) == b"all"
            pytest.skip("objects of this engine are whole from their birth")
        return engine

    def test_append_and_sync(self, engine):
        with engine.appender("segs/s", ".seg") as log:
            assert log.key.startswith("segs/s/") and log.key.endswith(".seg")
            assert [log.append([b"abc", b"d"]), log.append([]), log.append([b"e"])] == [0, 4, 4]
            log.sync()
            log.sync()
            assert engine.get(log.key) == b"abcde"
            assert not log.failed
        with engine.appender("other") as log:
            log.append([b"begun"])
            log.finish()
            assert engine.get(log.key) == b"begun"
            with pytest.raises(EngineError):
                log.append([b"more"])

    def test_threads_append_to_one_object(self, engine):
        with engine.appender("s") as log:
            places = run_together(8, lambda who: log.append([bytes([who]) * (who + 1)]))
            run_together(8, lambda _who: log.sync())
            whole = engine.get(log.key)
        assert len(whole) == 36
        for who, at in enumerate(places):
            assert whole[at : at + who + 1] == bytes([who]) * (who + 1)

    def test_append(self, growing):
        with growing.appender("segs/s", ".seg") as log:
            assert log.key.startswith("segs/s/") and log.key.endswith(".seg")
            assert log.size == 0
            assert log.append([b"abc"]) == 0
            assert log.append([b"", memoryview(b"de"), bytearray(b"f")]) == 3
            assert log.append([]) == 6
            assert log.append([np.arange(3, dtype=np.uint8)]) == 6
            assert log.size == 9
            log.sync()
            log.sync()
            assert growing.get(log.key) == b"abcdef\0\1\2"
            assert log.append([b"more"]) == 9
            log.sync()
            assert growing.get(log.key, 9, 4) == b"more"
            assert not log.failed
        assert list(growing.list("segs")) == [log.key]
        assert growing.size(log.key) == 13

    def test_peek(self, engine):
        engine.put_if_absent("a", bytes(range(10)), b"t")
        engine.put_if_absent("none", b"", b"t")
        assert engine.peek("a", 4) == bytes(range(4))
        assert engine.peek("a", 10) == engine.peek("a", 1 << 20) == bytes(range(10))
        assert engine.peek("none", 5) == b""
        with pytest.raises(NotFoundError, match="b"):
            engine.peek("b", 5)

    def test_reader_sees_growth(self, growing):
        with growing.appender("s") as log:
            for number in range(10):
                offset = log.append([bytes([number]) * 7])
                log.sync()
                out = bytearray(7)
                growing.read_into(log.key, offset, out)
                assert out == bytes([number]) * 7
                with pytest.raises(CorruptError):
                    growing.get(log.key, offset, 8)

    def test_appends_of_many_pieces(self, growing):
        pieces = [bytes([i % 251]) * (i % 5) for i in range(5000)]
        with growing.appender("s") as log:
            log.append([b"x"])
            assert log.append(pieces) == 1
            log.sync()
            assert growing.get(log.key) == b"x" + b"".join(pieces)

    def test_appends_from_threads(self, growing):
        with growing.appender("s") as log:

            def work(who):
                chance = random.Random(who)
                mine = []
                for number in range(40):
                    data = bytes([who]) * chance.randrange(1, 5000)
                    cut = chance.randrange(len(data) + 1)
                    offset = log.append([data[:cut], data[cut:]])
                    if number % 4 == 0:
                        log.sync()
                        assert growing.get(log.key, offset, len(data)) == data
                    mine.append((offset, data))
                return mine

            placed = sorted(one for each in run_together(8, work) for one in each)
            log.sync()
            whole = growing.get(log.key)
        end = 0
        for offset, data in placed:
            assert offset == end
            assert whole[offset : offset + len(data)] == data
            end = offset + len(data)
        assert end == len(whole) == log.size

    def test_closed_appender(self, growing):
        log = growing.appender("s")
        log.append([b"x"])
        log.close()
        log.close()
        with pytest.raises(EngineError, match=log.key):
            log.append([b"y"])
        with pytest.raises(EngineError, match=log.key):
            log.sync()
        assert growing.get(log.key) == b"x"

    def test_append_of_strided_data(self, growing):
        with growing.appender("s") as log:
            with pytest.raises(InvalidError):
                log.append([np.zeros((4, 4))[:, 1]])
            assert log.append([b"fine"]) == 0

    def test_child_may_not_append(self, growing):
        with growing.appender("s") as log:
            log.append([b"parent"])

            def child():
                for call in (lambda: log.append([b"child!"]), log.sync):
                    with pytest.raises(EngineError, match="process"):
                        call()
                log.close()
                own = growing.appender("s")
                own.append([b"own"])
                own.sync()
                assert growing.get(own.key) == b"own"
                assert growing.get(log.key, 0, 6) == b"parent"

            assert run_forked(child) == 0
            assert log.append([b" goes on"]) == 6
            log.sync()
            assert growing.get(log.key) == b"parent goes on"

    def test_engine_survives_fork_while_busy(self, growing):
        stop = threading.Event()
        log = growing.appender("s")
        log.append([b"0123456789"])

        def churn():
            while not stop.is_set():
                growing.get(log.key, 2, 3)
                log.append([b"more"])
                log.sync()
                with growing.turn("a"):
                    pass

        def child():
            assert growing.get(log.key, 2, 3) == b"234"
            with growing.turn("a"):
                growing.put_unique("c", [b"child"])

        threads = [threading.Thread(target=churn) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            codes = [run_forked(child, timeout=20) for _ in range(10)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            log.close()
        assert codes == [0] * 10
