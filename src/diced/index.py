"""Copy-on-write B+trees of index pages: pure algorithms over `load` and a pack.

A tree is its root: the pointer of its top page, or None when it has no keys. Pages never change;
`apply` writes the pages it must and points to the others, so versions share them. A page above the
leaves holds, per child, the child's first key, its pointer and the number of keys under it.

Owns the shape of trees; knows no medium. `load` is a callable that returns the decoded page of a
pointer, usually a `PageCache`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from diced import _index, pool
from diced.errors import CorruptError, InvalidError
from diced.page import Entry, PackBuilder, Page, PageCache, Pointer, encode_page, page_name

Load = Callable[[Pointer], Page]
Root = Pointer | None
Delta = Sequence[tuple[bytes, Entry | None]]

__all__ = [
    "Entry",
    "PackBuilder",
    "PageCache",
    "Pointer",
    "Root",
    "apply",
    "count",
    "diff",
    "get",
    "get_many",
    "pages",
    "scan",
    "warm",
]

# A page is full at 4,096 short keys or at 64 KiB of keys and inline values, whichever is first.
PAGE_COST = 1 << 16
_ENTRY_COST = PAGE_COST // 4096
_LEAST_COST = PAGE_COST // 4  # a page below this takes in its right neighbour when rewritten
_MAX_LEVEL = 31
_MORE, _EDGE, _END = range(3)


def get(load: Load, root: Root, key: bytes) -> Entry | None:
    """Return the entry of a key, or None.

    Raises
    ------
    CorruptError
        As from every function here: a page on the way is damaged or not the one expected.
    """
    return None if root is None else _leaf(load, root, key)[0].get(key)


def get_many(load: Load, root: Root, keys: Sequence[bytes]) -> list[Entry | None]:
    """Return the entries, or None, of keys in ascending order; goes down once per leaf."""
    wanted = keys if isinstance(keys, list) else list(keys)
    if _index.descent(wanted) >= 0:
        raise InvalidError("keys to look up must be in ascending order")
    if root is None:
        return [None] * len(wanted)
    found: list[Entry | None] = []
    start = 0
    while start < len(wanted):
        leaf, bound = _leaf(load, root, wanted[start])
        end = len(wanted) if bound is None else bisect_left(wanted, bound, start)
        found += leaf.get_many(wanted, start, end)
        start = end
    return found


def warm(load: Load, root: Root, keys: Sequence[bytes]) -> None:
    """Load the pages that `get_many` of ascending keys will ask for, each level's side by side."""
    if root is None or not keys:
        return
    level = [_top(load, root)]
    while level[0].level:
        wanted: list[Pointer] = []
        for number, page in enumerate(level):
            last = level[number + 1].key(0) if number + 1 < len(level) else None
            stop = len(keys) if last is None else bisect_left(keys, last)
            start = bisect_left(keys, page.key(0)) if number else 0
            while start < stop:
                at = max(page.slot(keys[start]), 0)
                wanted.append(page.entry(at))  # type: ignore[arg-type]
                if at + 1 == len(page):
                    break
                start = bisect_left(keys, page.key(at + 1), start, stop)
        level = list(pool.map_ordered(load, wanted, pool.LIMIT))


def scan(
    load: Load, root: Root, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
) -> Iterator[tuple[bytes, Entry]]:
    """Yield (key, entry) with ``start <= key < stop`` in order, or from the last to the first.

    A page is loaded when its first item is asked for, and none outside the range is.
    """
    if root is None or (stop is not None and start >= stop):
        return
    for leaf, first, last in _leaves(load, _top(load, root), None, start, stop, reverse):
        keys, entries = leaf.key_range(first, last), leaf.entry_range(first, last)
        if reverse:
            keys.reverse()
            entries.reverse()
        # A tree has no tombstones; _check saw to it.
        yield from zip(keys, entries, strict=True)


def _leaves(
    load: Load, page: Page, bound: bytes | None, start: bytes, stop: bytes | None, reverse: bool
) -> Iterator[tuple[Page, int, int]]:
    last = len(page) if stop is None else page.position(stop)
    if page.level == 0:
        first = page.position(start)
        if first < last:
            yield page, first, last
        return
    children = range(max(page.slot(start), 0), last)
    for at in reversed(children) if reverse else children:
        child, below = _child(load, page, at, bound)
        yield from _leaves(load, child, below, start, stop, reverse)


def pages(load: Load, root: Root) -> Iterator[tuple[Pointer, int]]:
    """Yield (pointer, level) of every page, parents first; leaves are not loaded."""
    if root is not None:
        page = _top(load, root)
        yield root, page.level
        yield from _pages(load, page, None)


def _pages(load: Load, page: Page, bound: bytes | None) -> Iterator[tuple[Pointer, int]]:
    for at in range(len(page) if page.level else 0):
        yield page.entry(at), page.level - 1  # type: ignore[misc]
        if page.level > 1:
            yield from _pages(load, *_child(load, page, at, bound))


def count(load: Load, root: Root) -> int:
    """Return the number of keys, which the top page knows."""
    return 0 if root is None else _top(load, root).count


def diff(load: Load, a: Root, b: Root) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """Yield (key, entry in a, entry in b) where they differ; pages that both share are skipped."""
    if a == b:
        return
    x, y = _Cursor(load, a), _Cursor(load, b)
    while x.key is not None or y.key is not None:
        if y.key is None or (x.key is not None and x.key < y.key):
            if x.level >= 0:
                x.enter()
            else:
                yield x.key, x.item, None  # type: ignore[misc]
                x.step()
        elif x.key is None or y.key < x.key:
            if y.level >= 0:
                y.enter()
            else:
                yield y.key, None, y.item
                y.step()
        elif x.level > y.level:
            x.enter()
        elif y.level > x.level:
            y.enter()
        elif x.item == y.item:
            x.step()
            y.step()
        elif x.level >= 0:
            x.enter()
            y.enter()
        else:
            yield x.key, x.item, y.item
            x.step()
            y.step()


class _Cursor:
    """A place in a tree: a page not yet entered (`level` >= 0) or an entry of a leaf (-1).

    `key` is the page's first or the entry's; None after the end. Since a shared page begins with
    the same key in both trees, two cursors that advance by key meet at it before entering it.
    """

    __slots__ = ("_load", "_stack", "_top", "item", "key", "level")

    def __init__(self, load: Load, root: Root):
        self._load = load
        self._stack: list[tuple[Page, int, bytes | None]] = []
        self._top = None if root is None else _top(load, root)
        self.item: Entry | None = root
        self.key = None if self._top is None else self._top.key(0)
        self.level = -1 if self._top is None else self._top.level

    def enter(self) -> None:
        """Go to the first child of the page."""
        if self._stack:
            page, at, bound = self._stack[-1]
            child, below = _child(self._load, page, at, bound)
            self._stack.append((child, 0, below))
        elif self._top is not None:
            self._stack.append((self._top, 0, None))
        self._settle()

    def step(self) -> None:
        """Go past the page or entry."""
        if self._stack:
            page, at, bound = self._stack[-1]
            self._stack[-1] = page, at + 1, bound
        self._settle()

    def _settle(self) -> None:
        while self._stack:
            page, at, _ = self._stack[-1]
            if at < len(page):
                self.key, self.level, self.item = page.key(at), page.level - 1, page.entry(at)
                return
            self._stack.pop()
            if self._stack:
                page, at, bound = self._stack[-1]
                self._stack[-1] = page, at + 1, bound
        self.key = None


def apply(load: Load, root: Root, delta: Delta, pack: PackBuilder) -> Root:
    """Return the root of the tree changed by `delta`; the old root stays valid.

    Parameters
    ----------
    delta : sequence of (key, entry)
        Keys strictly ascending; None removes a key, present or not.
    pack : PackBuilder
        Receives the new pages: the changed leaves, joined with a neighbour where they got small,
        and those above them. Nothing if nothing changes.
    """
    keys = [key for key, _ in delta]
    if _index.descent(keys, equal=True) >= 0:
        raise InvalidError("keys of a delta must be strictly ascending")
    changes = [
        change
        for change, old in zip(delta, get_many(load, root, keys), strict=True)
        if change[1] != old
    ]
    if not changes:
        return root
    build = _Build(load, pack, changes)
    if root is None:
        build.add(0, build.keys, [entry for _, entry in changes], None)
    else:
        build.merge(_top(load, root), None, 0, len(changes))
    return build.finish()


class _Level:
    """What the next pages of one level will hold."""

    __slots__ = ("cost", "costs", "counts", "entries", "keys")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.entries: list[Entry | None] = []
        self.counts: list[int] = []
        self.costs: list[int] = []
        self.cost = 0

    def cuts(self, mode: int) -> list[int]:
        """Return where the pages end that can be written now.

        With _MORE to come, what would leave too small a rest waits. At an _EDGE, before a page
        that is kept, the last two share their content. At the tree's _END pages are full, and
        only the last may be small, so that growth at the end fills one page after another.
        """
        sums = list(accumulate(self.costs))
        ends: list[int] = []
        at = done = 0
        while at < len(sums):
            end = max(at + 1, bisect_right(sums, done + PAGE_COST, at))
            rest = self.cost - sums[end - 1]
            if rest < _LEAST_COST:
                if mode == _MORE:
                    break
                if mode == _EDGE and rest:
                    half = max(at + 1, bisect_right(sums, (done + self.cost + 1) // 2, at, end))
                    if self.cost - sums[half - 1] <= PAGE_COST:
                        end = half
            ends.append(end)
            at, done = end, sums[end - 1]
        return ends


class _Build:
    """Takes a changed tree from left to right and writes its new pages.

    `levels[i]` collects the content of the next page of level i. A page of the old tree is kept
    as it is when everything collected to its left makes pages of decent size, else it is taken in.
    """

    def __init__(self, load: Load, pack: PackBuilder, changes: Delta):
        self.keys = [key for key, _ in changes]
        self._changes = changes
        self._load = load
        self._pack = pack
        self._levels: list[_Level] = []

    def add(
        self,
        number: int,
        keys: list[bytes],
        entries: Sequence[Entry | None],
        counts: Sequence[int] | None,
    ) -> None:
        """Append entries to the next pages of a level."""
        while len(self._levels) <= number:
            self._levels.append(_Level())
        level = self._levels[number]
        costs = [
            max(_ENTRY_COST, len(key) + len(entry))
            if isinstance(entry, bytes)
            else max(_ENTRY_COST, len(key))
            for key, entry in zip(keys, entries, strict=True)
        ]
        level.keys += keys
        level.entries += entries
        level.counts += counts or ()
        level.costs += costs
        level.cost += sum(costs)
        if level.cost >= PAGE_COST + _LEAST_COST:
            self._write(number, _MORE)

    def merge(self, page: Page, bound: bytes | None, start: int, stop: int) -> None:
        """Append a page of the old tree, changed by ``changes[start:stop]``."""
        if page.level == 0:
            self._merge_leaf(page, self._changes[start:stop])
            return
        at = 0
        while start < stop:
            place = max(page.slot(self.keys[start]), 0)
            self._keep(page, bound, at, place)
            child, below = _child(self._load, page, place, bound)
            end = stop if below is None else bisect_left(self.keys, below, start, stop)
            self.merge(child, below, start, end)
            start, at = end, place + 1
        self._keep(page, bound, at, len(page))

    def finish(self) -> Root:
        """Write what is left and return the root."""
        number = 0
        while number < len(self._levels):
            level = self._levels[number]
            if not any(above.keys for above in self._levels[number + 1 :]):
                if number and len(level.keys) == 1:
                    return level.entries[0]  # type: ignore[return-value]
                if not level.keys:
                    return None
            self._write(number, _END)
            number += 1
        return None

    def _merge_leaf(self, page: Page, changes: Delta) -> None:
        keys: list[bytes] = []
        entries: list[Entry | None] = []
        old_keys, old_entries = page.keys, page.entry_range(0, len(page))
        done = 0
        for key, entry in changes:
            at = page.position(key)
            keys += old_keys[done:at]
            entries += old_entries[done:at]
            done = at + (at < len(old_keys) and old_keys[at] == key)
            if entry is not None:
                keys.append(key)
                entries.append(entry)
        self.add(0, keys + old_keys[done:], entries + old_entries[done:], None)

    def _keep(self, page: Page, bound: bytes | None, start: int, stop: int) -> None:
        """Append unchanged children of a page."""
        while start < stop and not self._settle(page.level):
            child, below = _child(self._load, page, start, bound)
            if child.level:
                self._keep(child, below, 0, len(child))
            else:
                self.add(0, child.keys, child.entry_range(0, len(child)), None)
            start += 1
        if start < stop:
            self.add(
                page.level,
                page.key_range(start, stop),
                page.entry_range(start, stop),
                page.counts(start, stop),
            )

    def _settle(self, number: int) -> bool:
        """Write out all levels below `number`, or return False if one has too little."""
        for below, level in enumerate(self._levels[:number]):
            if level.keys:
                if level.cost < _LEAST_COST:
                    return False
                self._write(below, _EDGE)
        return True

    def _write(self, number: int, mode: int) -> None:
        level = self._levels[number]
        if number > _MAX_LEVEL:
            raise InvalidError(f"the tree would have more than {_MAX_LEVEL + 1} levels")
        start = 0
        keys: list[bytes] = []
        pointers: list[Pointer] = []
        counts: list[int] = []
        for end in level.cuts(mode):
            below = level.counts[start:end] if number else None
            data = encode_page(level.keys[start:end], level.entries[start:end], number, below)
            keys.append(level.keys[start])
            pointers.append(self._pack.add(data))
            counts.append(end - start if below is None else sum(below))
            start = end
        for column in (level.keys, level.entries, level.counts, level.costs):
            del column[:start]
        level.cost = sum(level.costs)
        if keys:
            self.add(number + 1, keys, pointers, counts)


def _check(page: Page, pointer: Pointer) -> None:
    if not len(page) or page.has_tombstones:
        raise CorruptError(f"{page_name(pointer)}: is empty or part of a delta, not of a tree")


def _top(load: Load, root: Pointer) -> Page:
    page = load(root)
    _check(page, root)
    if page.level > _MAX_LEVEL:
        raise CorruptError(f"{page_name(root)}: level {page.level}; trees end at {_MAX_LEVEL}")
    return page


def _leaf(load: Load, root: Pointer, key: bytes) -> tuple[Page, bytes | None]:
    """Return the leaf where `key` belongs and the key that all of its keys are below."""
    page, bound = _top(load, root), None
    while page.level:
        page, bound = _child(load, page, max(page.slot(key), 0), bound)
    return page, bound


def _child(load: Load, page: Page, at: int, bound: bytes | None) -> tuple[Page, bytes | None]:
    """Load a child and return it with the key that all of its keys are below, None if none."""
    pointer: Pointer = page.entry(at)  # type: ignore[assignment]
    child = load(pointer)
    last = at + 1 == len(page)
    below = bound if last else page.key(at + 1)
    # What was found right once stays so, but for a bound that comes from above: `page` can be in
    # several trees. The rest costs as much as the whole way down.
    if child.place == page.serial + at and (below is None or not last):
        return child, below
    _check(child, pointer)
    if (
        child.level != page.level - 1
        or child.key(0) != page.key(at)
        or (below is not None and child.key(len(child) - 1) >= below)
        or [child.count] != page.counts(at, at + 1)
    ):
        raise CorruptError(f"{page_name(pointer)}: is not the page that its parent says")
    child.place = page.serial + at
    return child, below
