"""The tour: write a volume, lock it, edit a branch, read both versions back, check every voxel.

Owns what is told and measured on the way. It uses diced only as any program would.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diced.array import DicedArray
from diced.demo.volumes import em_slabs, label_slabs
from diced.errors import CorruptError, InvalidError, LockedError, NotFoundError, UnsupportedError
from diced.repo import DicedRepo
from diced.store import DicedStore

if TYPE_CHECKING:
    from tqdm import tqdm

DESCRIPTION = "made by diced demo; each demo replaces it"
SHAPE = (512, 512, 1024)
THICKNESS = 64
PAINTED = (1 << 33) + (1 << 32)  # the label a body is repainted with
Volume = npt.NDArray[Any]
Say = Callable[[str], None]


class _Source(NamedTuple):
    """A volume that can be made or read as often as needed, slab by slab."""

    name: str
    label: bool
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    slabs: Callable[[], Iterable[Volume]]


class _Edit(NamedTuple):
    """One change of the branch: what stands in a box afterwards."""

    start: tuple[int, int, int]
    values: Volume

    def box(self) -> tuple[slice, ...]:
        """Return the box as an index."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.values.shape, strict=True))

    def apply(self, slab: Volume, first: int) -> None:
        """Make the change in a slab whose first plane is `first`."""
        low = max(self.start[0], first)
        high = min(self.start[0] + len(self.values), first + len(slab))
        if low < high:
            _, *across = self.box()
            part = self.values[low - self.start[0] : high - self.start[0]]
            slab[(slice(low - first, high - first), *across)] = part


def run_demo(
    stack: Sequence[str] = (),
    location: str = "demo.diced",
    *,
    shape: tuple[int, int, int] = SHAPE,
    seed: int = 0,
    say: Say = print,
) -> None:
    """Show what diced does, and check every voxel of it.

    Parameters
    ----------
    stack : sequence of str
        Image files, folders or patterns that make a volume, a plane or more per file, in order of
        name. Without any, an EM volume and its segmentation are made up.
    location : str
        Where the store is, or will be. A repo ``demo`` of an earlier demo is replaced.
    shape : tuple of int
        Size of made-up volumes, ZYX.
    seed : int
        Made-up volumes of the same seed are the same.
    say : callable
        Gets each line that tells what happens.

    Raises
    ------
    CorruptError
        Something read back differs from what was written.
    InvalidError, NotFoundError, UnsupportedError
        The stack cannot be read.
    """
    sources = [_stack_source(_files(stack))] if stack else _made_sources(shape, seed)
    with DicedStore(location) as store:
        say(f"store      {store.url}; what is written is as safe as {store.durability!r} promises")
        repo = _fresh_repo(store)
        arrays = [_write(repo, source, say) for source in sources]
        _tell_size(location, say)

        root = repo.uuid
        repo.lock_node("as imported")
        say(f"lock       version {root[:8]} can never change again")
        try:
            arrays[0][0, 0, 0] = 0
        except LockedError as error:
            say(f"           a write there is refused: {error}")
        else:
            raise CorruptError(f"the locked version {root} took a write")

        child = repo.create_branch("edits", branch="edits")
        repo.change_version(child)
        say(f"branch     version {child[:8]}, a child that holds only what changes")
        edits = [_edit(array, source, say) for array, source in zip(arrays, sources, strict=True)]
        _tell_size(location, say)

        before = store.open_repo("demo", version=root)
        for array, source, edit in zip(arrays, sources, edits, strict=True):
            _verify(before[source.name], array, source, edit, say)
        for array in arrays:
            _sample(array, say)
        for uuid, note in repo.get_commit_log():
            say(f"log        {uuid[:8]}  {note}")


def _fresh_repo(store: DicedStore) -> DicedRepo:
    if "demo" in dict(store.list_repos()):
        found = store.repo_info("demo")["description"]
        if found != DESCRIPTION:
            raise InvalidError(f"{store.url} has a repo 'demo' of your own; name another store")
        store.delete_repo("demo")
        store.sweep()
    return store.create_repo("demo", DESCRIPTION)


def _write(repo: DicedRepo, source: _Source, say: Say) -> DicedArray:
    array: DicedArray = repo.create_array(source.name, source.dtype, islabel3D=source.label)
    first, clock = 0, _Clock()
    with _bar(f"writing {source.name}", source) as bar:
        for slab in source.slabs():
            with clock:
                array[first : first + len(slab), : slab.shape[1], : slab.shape[2]] = slab
            first += len(slab)
            clock.count += slab.nbytes
            bar.update(slab.nbytes)
    say(f"write      {source.name}: {_size(source)}, {source.dtype}: {clock}")
    return array


def _edit(array: DicedArray, source: _Source, say: Say) -> _Edit:
    """Change something in the middle: paint one body another colour, or invert a patch."""
    size = [min(length, 200 if source.label else 100) for length in source.shape]
    # 3 off the middle, so that no block is covered whole unless it has to be
    start = tuple(
        max(0, min(length // 2 - each // 2 + 3, length - each))
        for length, each in zip(source.shape, size, strict=True)
    )
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    values = array[box]
    if source.label:
        body = values[tuple(n // 2 for n in size)]
        chosen = values == body
        values[chosen] = PAINTED
        done = f"body {body} painted over: {np.count_nonzero(chosen):,} voxels"
    else:
        values = np.iinfo(source.dtype).max - values
        done = f"a patch of {_by(size)} inverted"
    clock = _Clock()
    with clock, array.batch("demo edit"):
        array[box] = values
    say(f"edit       {source.name}: {done}, one commit of {clock.seconds * 1e3:.0f} ms")
    return _Edit((start[0], start[1], start[2]), values)


def _verify(before: DicedArray, after: DicedArray, source: _Source, edit: _Edit, say: Say) -> None:
    first, clock = 0, _Clock()
    with _bar(f"checking {source.name}", source) as bar:
        for slab in source.slabs():
            box = (slice(first, first + len(slab)), *(slice(n) for n in slab.shape[1:]))
            for array, edited in ((before, False), (after, True)):
                if edited:
                    edit.apply(slab, first)
                with clock:
                    found = array[box]
                clock.count += found.nbytes
                if not np.array_equal(found, slab):
                    wrong = np.argwhere(found != slab)
                    where = tuple(int(v) for v in wrong[0] + [first, 0, 0])
                    raise CorruptError(
                        f"array {source.name!r}, {'branch' if edited else 'locked version'}: "
                        f"{len(wrong)} voxels differ from what was written, the first at {where}"
                    )
                del found
            first += len(slab)
            bar.update(slab.nbytes)
    say(f"verify     {source.name}: both versions, every voxel as it was written: read {clock}")


def _sample(array: DicedArray, say: Say) -> None:
    """Time what a viewer and an algorithm do: cut-outs anywhere, single voxels."""
    rng = np.random.default_rng(0)
    size = [min(length, 128) for length in array.shape]
    cuts, voxels = _Clock(), _Clock()
    for _ in range(24):
        start = [
            int(rng.integers(0, length - n + 1))
            for length, n in zip(array.shape, size, strict=True)
        ]
        with cuts:
            cut = array[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        cuts.count += cut.nbytes
    for _ in range(200):
        place = tuple(int(rng.integers(0, length)) for length in array.shape)
        with voxels:
            array[place]
    say(
        f"read       {array.name}: cut-outs of {_by(size)} anywhere: {cuts}; "
        f"a voxel: {voxels.seconds / 200 * 1e6:.0f} us"
    )


class _Clock:
    """Adds up the time of the blocks it guards; prints as bytes, seconds and MB/s."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0
        self._from = 0.0

    def __enter__(self) -> _Clock:
        self._from = time.perf_counter()
        return self

    def __exit__(self, *_error: object) -> None:
        self.seconds += time.perf_counter() - self._from

    def __str__(self) -> str:
        return (
            f"{self.count / 1e6:,.0f} MB in {self.seconds:.2f} s, "
            f"{self.count / 1e6 / max(self.seconds, 1e-9):,.0f} MB/s"
        )


@contextmanager
def _bar(task: str, source: _Source) -> Iterator[tqdm[Any]]:
    from tqdm import tqdm  # 20 ms

    total = source.dtype.itemsize
    for length in source.shape:
        total *= length
    # disable=None: silent unless a person watches
    with tqdm(total=total, desc=task, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        yield bar


def _by(size: Iterable[int]) -> str:
    return " x ".join(str(each) for each in size)


def _size(source: _Source) -> str:
    return _by(source.shape)


def _tell_size(location: str, say: Say) -> None:
    """Tell what the store takes on a local disk."""
    place = os.path.expanduser(location)
    if not os.path.isdir(place):
        return
    taken = 0
    for folder, _, names in os.walk(place):
        for name in names:
            taken += os.stat(os.path.join(folder, name)).st_blocks * 512
    say(f"disk       {taken / 1e6:,.1f} MB in {location}")


# -- what goes in ----------------------------------------------------------------------------


def _made_sources(shape: tuple[int, int, int], seed: int) -> list[_Source]:
    def image() -> Iterator[Volume]:
        return em_slabs(shape, seed, THICKNESS)

    def labels() -> Iterator[Volume]:
        return label_slabs(shape, seed, THICKNESS)

    return [
        _Source("grayscale", False, np.dtype(np.uint8), shape, image),
        _Source("segmentation", True, np.dtype(np.uint64), shape, labels),
    ]


def _files(stack: Sequence[str]) -> list[str]:
    """Return the files that paths, folders and patterns name, each set in order of name."""
    found: list[str] = []
    for each in stack:
        place = os.path.expanduser(each)
        if os.path.isdir(place):
            names = sorted(name for name in os.listdir(place) if not name.startswith("."))
            some = [path for name in names if os.path.isfile(path := os.path.join(place, name))]
        elif os.path.isfile(place):
            some = [place]
        else:
            some = sorted(glob.glob(place))
        if not some:
            raise NotFoundError(f"no image file matches {each!r}")
        found += some
    return found


def _read_planes(path: str) -> Volume:
    """Return the planes of one image file, (planes, Y, X)."""
    try:
        if path.lower().endswith((".tif", ".tiff")):
            import tifffile

            pixels = np.asarray(tifffile.imread(path))
        else:
            from PIL import Image

            with Image.open(path) as image:
                pixels = np.asarray(image)
    except ImportError as error:
        raise UnsupportedError(
            f"reading {path} needs {error.name}; install it with: pip install 'diced[images]'"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidError(f"{path} is not an image that can be read: {error}") from None
    planes = pixels[np.newaxis] if pixels.ndim == 2 else pixels
    if planes.ndim != 3 or planes.dtype not in (np.uint8, np.uint16) or pixels.shape[-1] in (3, 4):
        raise InvalidError(
            f"{path} must be grey with 8 or 16 bits; it is {pixels.dtype} of shape {pixels.shape}"
        )
    return planes


def _stack_source(files: list[str]) -> _Source:
    first = _read_planes(files[0])
    # A file of many planes may stand anywhere, but to count the planes all would have to be read.
    several = len(first) > 1 or len(files) == 1
    depth = sum(len(_read_planes(path)) for path in files) if several else len(files)

    def slabs() -> Iterator[Volume]:
        waiting: list[Volume] = []
        held = 0
        for number, path in enumerate(files, 1):
            planes = _read_planes(path)
            if planes.shape[1:] != first.shape[1:] or planes.dtype != first.dtype:
                raise InvalidError(
                    f"{path} is {planes.dtype} of {planes.shape[1:]}; "
                    f"{files[0]} is {first.dtype} of {first.shape[1:]}"
                )
            if not several and len(planes) > 1:
                raise InvalidError(f"{path} has {len(planes)} planes; the files before it have one")
            waiting.append(planes)
            held += len(planes)
            if held >= THICKNESS or number == len(files):
                yield np.concatenate(waiting)
                waiting, held = [], 0

    shape = (depth, first.shape[1], first.shape[2])
    return _Source("grayscale", False, first.dtype, shape, slabs)
