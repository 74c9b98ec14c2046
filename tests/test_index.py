"""Trees against a dict: random changes, shared pages, old roots, damage; and the page cache."""

from __future__ import annotations

import random
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diced import index
from diced.errors import CorruptError, InvalidError
from diced.index import PackBuilder, PageCache
from diced.page import decode_page, encode_page


class Pages:
    """Packs in memory, and a `load` that counts."""

    def __init__(self):
        self.packs = {}
        self.loaded = []

    def load(self, pointer):
        self.loaded.append(pointer)
        return decode_page(self.read(pointer))

    def read(self, pointer):
        pack, offset, length = pointer
        return self.packs[pack].tobytes()[offset : offset + length]

    def pack(self):
        pack = PackBuilder(len(self.packs) + 1)
        self.packs[pack.object_id] = pack
        return pack

    def apply(self, root, changes):
        """Return the new root and the number of pages written."""
        pack = self.pack()
        new = index.apply(self.load, root, sorted(dict(changes).items()), pack)
        return new, len(pack._chunks)

    def build(self, model):
        return self.apply(None, model)[0]


def leaves(pages, root):
    found = [pointer for pointer, level in index.pages(pages.load, root) if level == 0]
    return [pages.load(pointer) for pointer in found]


def assert_tree(pages, root, model):
    """The tree holds the model, is sound, and no page but the last of a level is small."""
    items = sorted(model.items())
    assert list(index.scan(pages.load, root)) == items
    assert index.count(pages.load, root) == len(model)
    assert (root is None) == (not model)
    found = list(index.pages(pages.load, root))
    assert len(set(found)) == len(found)
    for level in range(max((level for _, level in found), default=-1) + 1):
        *rest, last = [pages.load(pointer) for pointer, at in found if at == level]
        for page in rest:
            assert cost(page) >= index.PAGE_COST // 4 or any(each > 4000 for each in costs(page))
        for page in [*rest, last]:
            assert cost(page) <= index.PAGE_COST or len(page) == 1
        if found[0][1] and level == found[0][1]:
            assert len(last) > 1 or last.level


def costs(page):
    return [
        max(16, len(key) + (len(entry) if isinstance(entry, bytes) else 0))
        for key, entry in page.items()
    ]


def cost(page):
    return sum(costs(page))


def number(value, width=12):
    return int(value).to_bytes(width, "big")


def grid_model(numbers, pack=1):
    return {number(n): (pack, 1000 * int(n), int(n) % 1000) for n in numbers}


# Long keys and values make deep trees of few entries.
deep_keys = st.integers(0, 400).map(lambda n: number(n, 2) + b"k" * (4000 if n % 3 else 10))
deep_values = st.one_of(
    st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)),
    st.binary(max_size=3),
    st.integers(0, 9).map(lambda n: bytes((n,)) * 9000),
)
flat_keys = st.binary(max_size=4)


def change_lists(keys, size):
    delta = st.dictionaries(keys, st.one_of(deep_values, st.none()), max_size=size)
    return st.lists(delta, min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.one_of(change_lists(deep_keys, 120), change_lists(flat_keys, 60)), st.randoms())
def test_changes_like_a_dict(steps, rng):
    pages, root, model = Pages(), None, {}
    history = []
    for delta in steps:
        before, old = root, dict(model)
        root, written = pages.apply(root, delta)
        for key, entry in delta.items():
            if entry is None:
                model.pop(key, None)
            else:
                model[key] = entry
        assert_tree(pages, root, model)
        if model == old:
            assert root == before
            assert written == 0
        changed = {k for k in old.keys() | model.keys() if old.get(k) != model.get(k)}
        wanted = [(k, old.get(k), model.get(k)) for k in sorted(changed)]
        assert list(index.diff(pages.load, before, root)) == wanted
        assert list(index.diff(pages.load, root, before)) == [(k, b, a) for k, a, b in wanted]
        history.append((root, dict(model)))
        probes = sorted([*rng.sample(sorted(model), min(len(model), 9)), *delta, b"", b"zz"])
        assert index.get_many(pages.load, root, probes) == [model.get(key) for key in probes]
        for key in probes:
            assert index.get(pages.load, root, key) == model.get(key)
        start, stop = sorted(rng.sample(probes, 2))
        within = [item for item in sorted(model.items()) if start <= item[0] < stop]
        assert list(index.scan(pages.load, root, start, stop)) == within
        assert list(index.scan(pages.load, root, start, stop, reverse=True)) == within[::-1]
    for root, model in history:
        assert list(index.scan(pages.load, root)) == sorted(model.items())


def test_empty_tree():
    pages = Pages()
    assert pages.apply(None, {}) == (None, 0)
    assert pages.apply(None, {b"absent": None}) == (None, 0)
    assert index.get(pages.load, None, b"") is None
    assert index.get_many(pages.load, None, [b"a", b"b"]) == [None, None]
    assert list(index.scan(pages.load, None)) == []
    assert list(index.pages(pages.load, None)) == []
    assert index.count(pages.load, None) == 0
    assert list(index.diff(pages.load, None, None)) == []
    root = pages.build({b"": b"x"})
    assert index.get(pages.load, root, b"") == b"x"
    assert pages.apply(root, {b"": None}) == (None, 0)


def test_building_gives_full_pages():
    pages = Pages()
    model = grid_model(range(4096 * 10 + 1))
    root = pages.build(model)
    assert [len(page) for page in leaves(pages, root)] == [4096] * 10 + [1]
    assert_tree(pages, root, model)


def test_building_with_values_keeps_pages_near_64_kib():
    pages = Pages()
    model = {number(n): bytes(1000 + n % 7) for n in range(500)}
    root = pages.build(model)
    sizes = [cost(page) for page in leaves(pages, root)]
    assert all(60_000 < size <= 65_536 for size in sizes[:-1])


def test_three_levels():
    pages = Pages()
    model = {number(n, 4) + b"k" * 3000: (1, n, 1) for n in range(1000)}
    root = pages.build(model)
    assert pages.load(root).level == 2
    assert_tree(pages, root, model)
    root, written = pages.apply(root, {number(500, 4): (2, 2, 2)})
    assert written <= 5
    model[number(500, 4)] = (2, 2, 2)
    assert_tree(pages, root, model)


def test_small_change_writes_one_path():
    pages = Pages()
    model = grid_model(range(0, 200_000, 2))
    root = pages.build(model)
    before = set(index.pages(pages.load, root))
    pages.loaded.clear()
    changed, written = pages.apply(root, {number(100_000): (5, 5, 5)})
    assert written == 2
    assert len(set(pages.loaded)) == 2
    after = set(index.pages(pages.load, changed))
    assert len(after - before) == len(before - after) == 2
    assert index.get(pages.load, changed, number(100_000)) == (5, 5, 5)
    assert index.get(pages.load, root, number(100_000)) == (1, 100_000_000, 0)


def test_change_of_nothing_writes_nothing():
    pages = Pages()
    model = grid_model(range(10_000))
    root = pages.build(model)
    same = dict(list(model.items())[::100]) | {b"absent": None, b"": None}
    assert pages.apply(root, same) == (root, 0)


def test_split_leaves_two_halves():
    pages = Pages()
    root = pages.build(grid_model(range(0, 8192, 1)))
    root, written = pages.apply(root, {number(5) + b"x": (2, 2, 2)})
    assert [len(page) for page in leaves(pages, root)] == [2048, 2049, 4096]
    assert written == 3


def test_growth_at_the_end_fills_pages():
    pages, root, model = Pages(), None, {}
    for start in range(0, 10_000, 500):
        step = grid_model(range(start, start + 500))
        model |= step
        root, written = pages.apply(root, step)
        assert written <= 3
    assert [len(page) for page in leaves(pages, root)] == [4096, 4096, 1808]
    assert_tree(pages, root, model)


def test_deletes_do_not_leave_small_pages():
    pages = Pages()
    model = grid_model(range(20_480))
    root = pages.build(model)
    rng = random.Random(3)
    order = sorted(model)
    rng.shuffle(order)
    while order:
        batch, order = order[:1500], order[1500:]
        root, _ = pages.apply(root, dict.fromkeys(batch))
        for key in batch:
            del model[key]
        assert_tree(pages, root, model)
        if len(model) > 5000:
            assert len(leaves(pages, root)) <= len(model) / 1024 + 1
    assert root is None


def test_deleting_a_range_drops_its_pages_unread():
    pages = Pages()
    model = grid_model(range(40_960))
    root = pages.build(model)
    gone = dict.fromkeys(sorted(model)[4096 * 3 : 4096 * 5])
    root, written = pages.apply(root, gone)
    assert written == 1
    assert [len(page) for page in leaves(pages, root)] == [4096] * 8
    assert_tree(pages, root, {k: v for k, v in model.items() if k not in gone})


def test_a_small_rest_joins_its_right_neighbour():
    pages = Pages()
    model = grid_model(range(4096 * 4))
    root = pages.build(model)
    gone = dict.fromkeys(sorted(model)[4096 : 4096 + 4000])
    root, written = pages.apply(root, gone)
    assert written == 3
    assert [len(page) for page in leaves(pages, root)] == [4096, 2096, 2096, 4096]


def test_scan_is_lazy():
    pages = Pages()
    root = pages.build(grid_model(range(40_960)))
    pages.loaded.clear()
    items = index.scan(pages.load, root, number(5000), number(30_000))
    assert pages.loaded == []
    assert next(items)[0] == number(5000)
    assert len(pages.loaded) == 2
    assert next(index.scan(pages.load, root, reverse=True))[0] == number(40_959)
    assert len(list(index.scan(pages.load, root, number(4096), number(8192)))) == 4096
    assert len(pages.loaded) == 2 + 2 + 2
    assert list(index.scan(pages.load, root, number(9), number(9))) == []
    assert list(index.scan(pages.load, root, number(9), number(8))) == []


def test_get_many_loads_each_leaf_once():
    pages = Pages()
    model = grid_model(range(40_960))
    root = pages.build(model)
    cache = PageCache(pages.read, 1 << 30)
    keys = sorted(model)[4096:12_288]
    reads = []
    cache._read = lambda pointer: reads.append(pointer) or pages.read(pointer)
    assert index.get_many(cache, root, keys) == [model[key] for key in keys]
    assert len(reads) == 3


def test_count_and_pages_read_no_leaf():
    pages = Pages()
    root = pages.build(grid_model(range(40_960)))
    pages.loaded.clear()
    assert index.count(pages.load, root) == 40_960
    assert len(list(index.pages(pages.load, root))) == 11
    assert set(pages.loaded) == {root}


def test_diff_skips_shared_pages():
    pages = Pages()
    root = pages.build(grid_model(range(200_000)))
    changed, _ = pages.apply(root, {number(7): None, number(150_000) + b"x": b"new"})
    pages.loaded.clear()
    assert list(index.diff(pages.load, root, changed)) == [
        (number(7), (1, 7000, 7), None),
        (number(150_000) + b"x", None, b"new"),
    ]
    assert len(set(pages.loaded)) <= 7
    assert list(index.diff(pages.load, root, root)) == []


def test_diff_of_trees_of_other_heights():
    pages = Pages()
    small = pages.build(grid_model(range(4096)))
    large, _ = pages.apply(small, grid_model(range(4096, 20_000)))
    assert pages.load(small).level < pages.load(large).level
    pages.loaded.clear()
    found = list(index.diff(pages.load, small, large))
    assert [key for key, _, _ in found] == [number(n) for n in range(4096, 20_000)]
    assert pages.loaded.count(small) == 1


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"]])
def test_unsorted_deltas_are_refused(keys):
    with pytest.raises(InvalidError, match="ascending"):
        index.apply(Pages().load, None, [(key, b"") for key in keys], PackBuilder(1))


def test_lookups_of_many_keys_in_many_leaves():
    pages = Pages()
    model = {b"%x" % n: (1, n, n % 7) for n in range(0, 60_000, 3)}
    root = pages.build(model)
    cache = PageCache(pages.read, 1 << 30)
    rng = random.Random(5)
    for count in (1, 2, 30, 3000, 60_000):
        keys = sorted(b"%x" % n for n in rng.sample(range(-9, 60_009), count))
        assert index.get_many(cache, root, tuple(keys)) == [model.get(key) for key in keys]
    assert index.get_many(cache, root, []) == []
    twice = sorted([*list(model)[:50], *list(model)[:50]])
    assert index.get_many(cache, root, twice) == [model[key] for key in twice]


def test_unsorted_lookups_are_refused():
    with pytest.raises(InvalidError, match="ascending"):
        index.get_many(Pages().load, None, [b"b", b"a"])


def wrong_trees():
    """Yield trees whose pages are sound one by one, but do not belong together."""

    def page(keys, entries, level=0, counts=None):
        return pack.add(encode_page(keys, entries, level, counts))

    pages = Pages()
    pack = pages.pack()
    low, high = page([b"a", b"b"], [b"1", b"2"]), page([b"m", b"n"], [b"3", b"4"])
    good = page([b"a", b"m"], [low, high], 1, [2, 2])
    assert len(list(index.scan(pages.load, good))) == 4
    yield "swapped", page([b"a", b"m"], [high, low], 1, [2, 2]), pages
    yield "same", page([b"a", b"m"], [low, low], 1, [2, 2]), pages
    yield "below its range", page([b"a", b"l"], [low, high], 1, [2, 2]), pages
    yield "beyond its range", page([b"a", b"b", b"m"], [low, low, high], 1, [2, 2, 2]), pages
    yield "level", page([b"a", b"m"], [low, high], 2, [2, 2]), pages
    yield "count", page([b"a", b"m"], [low, high], 1, [2, 3]), pages
    yield "too deep", page([b"a", b"m"], [low, high], 200, [2, 2]), pages
    yield "empty", page([], []), pages
    yield "tombstone", page([b"a"], [None]), pages
    inner = page([b"a"], [page([b"a", b"z"], [b"1", b"2"])], 1, [2])
    yield "deep", page([b"a", b"m"], [inner, page([b"m"], [high], 1, [2])], 2, [2, 2]), pages
    # A page that points to its own place.
    size = len(page([b"a"], [(1, 0, 0)], 1, [1]))
    loop = Pages()
    loop_pack = loop.pack()
    loop_pack.add(encode_page([b"a"], [(1, 0, size)], 1, [1]))
    yield "loop", (1, 0, len(loop_pack)), loop


@pytest.mark.parametrize("case", [name for name, _, _ in wrong_trees()])
def test_pages_that_do_not_belong_are_noticed(case):
    root, pages = next((root, pages) for name, root, pages in wrong_trees() if name == case)
    with pytest.raises(CorruptError):
        list(index.scan(pages.load, root))
    with pytest.raises(CorruptError):
        for key in (b"a", b"m"):
            index.get(pages.load, root, key)
    with pytest.raises(CorruptError):
        index.apply(pages.load, root, [(b"a0", b""), (b"m0", b"")], PackBuilder(9))
    with pytest.raises(CorruptError):
        list(index.diff(pages.load, root, None))


def test_what_was_found_right_is_not_believed_of_another_tree():
    """One cache, one leaf: sound where it was found first, and not what other trees say."""
    pages = Pages()
    pack = pages.pack()

    def page(keys, entries, level=0, counts=None):
        return pack.add(encode_page(keys, entries, level, counts))

    leaf = page([b"a", b"z"], [b"1", b"2"])
    inner = page([b"a"], [leaf], 1, [2])
    high = page([b"m"], [page([b"m"], [b"3"])], 1, [1])
    beyond = page([b"a", b"m"], [inner, high], 2, [2, 1])
    counted = page([b"a", b"b"], [leaf, page([b"b"], [b"3"])], 1, [3, 1])
    named = page([b"A"], [leaf], 1, [2])
    cache = PageCache(pages.read, 1 << 20)
    for _ in range(2):
        assert index.get(cache, inner, b"z") == b"2"
        for root in (beyond, counted, named):
            with pytest.raises(CorruptError, match="not the page"):
                index.get(cache, root, b"a")


def test_size_of_a_scattered_grid():
    """200 commits of random subsets, random presence and lengths: below 8 bytes per block."""
    rng = np.random.default_rng(11)
    numbers = np.sort(rng.choice(400_000, 200_000, replace=False))
    for objects in (1, 200):
        where = np.zeros((len(numbers), 3), np.int64)
        end = 0
        for commit in range(200):
            chosen = (
                np.arange(len(numbers))
                if commit == 0
                else np.flatnonzero(rng.random(len(numbers)) < 0.01)
            )
            sizes = rng.integers(1, 300_001, len(chosen))
            ends = end + sizes.cumsum()
            where[chosen] = np.stack(
                [np.full(len(chosen), 1 << 40 | commit % objects), ends - sizes, sizes], axis=1
            )
            end = int(ends[-1]) if objects == 1 else 0
        keys = [b"\xe0\0\0\0" + number(n, 8) for n in numbers]
        pages = Pages()
        pack = pages.pack()
        delta = list(zip(keys, map(tuple, where.tolist()), strict=True))
        root = index.apply(pages.load, None, delta, pack)
        assert len(pack) < 6 * len(numbers)
        cache = PageCache(pages.read, 1 << 30)
        assert list(index.scan(cache, root)) == delta


class TestPageCache:
    def stored(self, count):
        pages = Pages()
        pack = pages.pack()
        found = [pack.add(encode_page([number(n)], [bytes(1000)], 0)) for n in range(count)]
        return pages, found

    def test_keeps_what_was_used_last(self):
        pages, found = self.stored(4)
        reads = []

        def read(pointer):
            reads.append(pointer)
            return pages.read(pointer)

        cache = PageCache(read, 3 * pages.load(found[0]).nbytes)
        for at in (0, 1, 2, 0, 3, 0):
            assert cache(found[at]).key(0) == number(at)
        assert reads == [found[at] for at in (0, 1, 2, 3)]
        cache(found[1])
        assert reads[-1] == found[1]
        assert len(cache) == 3
        assert cache.nbytes <= cache.budget_bytes

    def test_a_new_page_goes_after_old_ones_that_are_in_use(self):
        pages, found = self.stored(5)
        reads = []
        cache = PageCache(lambda pointer: reads.append(pointer) or pages.read(pointer), 0)
        cache.budget_bytes = 3 * pages.load(found[0]).nbytes
        for at in (0, 1, 2, 0, 1, 2, 3, 3, 1, 2, 4, 2, 3, 4):
            assert cache(found[at]).key(0) == number(at)
        assert reads == [found[at] for at in (0, 1, 2, 3, 4)]
        assert len(cache) == 3

    def test_without_budget(self):
        pages, found = self.stored(1)
        cache = PageCache(pages.read, 0)
        assert cache(found[0]).key(0) == number(0)
        assert (len(cache), cache.nbytes) == (0, 0)

    def test_damage_names_the_page(self):
        pages, found = self.stored(1)
        cache = PageCache(lambda pointer: pages.read(pointer)[:-1], 1 << 20)
        with pytest.raises(CorruptError, match="index page at 0 of object 0000000000000001"):
            cache(found[0])
        assert len(cache) == 0

    def test_a_slow_read_blocks_nobody(self):
        pages, found = self.stored(2)
        entered, go_on = threading.Event(), threading.Event()

        def read(pointer):
            if pointer == found[0]:
                entered.set()
                assert go_on.wait(30)
            return pages.read(pointer)

        cache = PageCache(read, 1 << 20)
        slow = threading.Thread(target=cache, args=(found[0],))
        slow.start()
        assert entered.wait(30)
        assert cache(found[1]).key(0) == number(1)
        go_on.set()
        slow.join()
        assert len(cache) == 2

    def test_many_threads(self):
        pages, found = self.stored(30)
        cache = PageCache(pages.read, 10 * pages.load(found[0]).nbytes)
        wrong = []

        def work(seed):
            rng = random.Random(seed)
            for _ in range(300):
                at = rng.randrange(30)
                if cache(found[at]).key(0) != number(at):
                    wrong.append(at)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert cache.nbytes == sum(page.nbytes for page in cache._kept.values())
        assert cache.nbytes <= cache.budget_bytes


def test_nothing_points_outside_its_tree():
    pages = Pages()
    root = pages.build(grid_model(range(9000)))
    found = [pointer for pointer, _ in index.pages(pages.load, root)]
    extents = sorted((offset, offset + length) for _, offset, length in found)
    assert all(a[1] == b[0] for a, b in pairwise(extents))
    assert extents[-1][1] == len(pages.packs[1])
