"""The importer: a source into an array, one commit per slab, finished slabs skipped.

Progress is kept nowhere but in the commits themselves: the operation of a slab's commit names a
digest of what was written (files, place, type), so it is there exactly if the voxels are.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from diced import grid
from diced.array import DicedArray
from diced.errors import DicedException, InvalidError, UnsupportedError
from diced.ingest.estimate import Estimate, estimate
from diced.ingest.stack import Box, Source
from diced.repo import DicedRepo
from diced.spec import ArraySpec
from diced.walk import plural

VERB = "ingest"
# 1-D and 2-D slabs of one block would be small commits; volumes' are of one block's thickness.
LEAST_SLAB = 4 * 2**20
# Where every object is a request, a slab is as many blocks thick as make this: its record and its
# last segment, which is not full, are then a small part of what is sent.
REMOTE_SLAB = 256 * 2**20

Progress = Callable[[int, int], None]


class Result(NamedTuple):
    """What an ingest did; boxes are ZYX, sizes in slabs and in bytes of voxels."""

    array: str
    version: str
    start: tuple[int, ...]
    stop: tuple[int, ...]
    slabs: int
    skipped: int
    written: int


class _Slab(NamedTuple):
    """One commit: a box of the array, the box of the source that goes there, its digest."""

    box: Box
    source: Box
    digest: str
    nbytes: int


def default_memory() -> int:
    """Return a quarter of the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def ingest(
    repo: DicedRepo,
    name: str,
    source: Source,
    offset: Sequence[int] | None = None,
    *,
    labels: bool = False,
    dims: int | None = None,
    force: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[Estimate], None] | None = None,
    verb: str = VERB,
    **options: Any,
) -> Result:
    """Write a source into an array of a repo's current version, which is created if missing.

    Each slab of one block's thickness, or on a bucket of as many as make 256 MiB, aligned with the
    blocks, is one commit, so a whole block is written once. Slabs whose commits are found among
    those that led to this version are skipped without opening their files; they are found by the
    names, sizes and modification times of the files, and are not skipped if a later ingest wrote
    other files over them. What others painted over them since stays.

    Parameters
    ----------
    repo : DicedRepo
    name : str
        Name of the array.
    source : Source
    offset : sequence of int, optional
        Where the source's first voxel goes, ZYX; the origin by default.
    labels : bool
        Create a label array.
    dims : int, optional
        Dimensions of a new array; 2 for a single image that is no volume.
    force : bool
        Write finished slabs again.
    memory : int, optional
        Bytes that may be held; slabs beyond it are split along axis 1, for which images are
        decoded once per part. A quarter of the machine's by default.
    progress : callable, optional
        Called with (bytes done, bytes in all) after each slab, skipped ones included.
    announce : callable, optional
        Called with an `Estimate` of what is to be written, before it is.
    verb : str
        First word of the commits' operations. Any other makes them edits, which nothing resumes.
    **options
        For `DicedRepo.create_array`: ``block_shape`` (also one size for all axes), ``codec``,
        ``voxel_size``, ``units``, ... An existing array must agree with those given.

    Returns
    -------
    Result

    Raises
    ------
    InvalidError
        A file cannot be read or does not fit; committed slabs stay.
    LockedError, NotFoundError, UnsupportedError
    """
    array = _target(repo, name, source, labels, dims, options)
    slabs = _plan(array._spec, source, offset, _bounded(repo, memory), repo.remote)
    total = sum(slab.nbytes for slab in slabs)
    todo = _todo(repo, array, slabs, force or verb != VERB)
    if announce is not None:
        announce(_estimate(array._spec, todo))
    finished = total - sum(slab.nbytes for slab in todo)
    if progress is not None:
        progress(finished, total)
    skipped = len(slabs) - len(todo)
    written = 0
    with contextlib.closing(_voxels(source, todo, repo.store.threads, skipped)) as parts:
        for slab in todo:
            values = next(parts)
            with array.batch(f"{verb} {slab.digest}"):
                array[_index(slab.box)] = values.reshape(
                    tuple(b - a for a, b in zip(*slab.box, strict=True))
                    + (() if array.channels is None else (array.channels,))
                )
            written += slab.nbytes
            if progress is not None:
                progress(finished + written, total)
    start = tuple(min(each) for each in zip(*(slab.box[0] for slab in slabs), strict=True))
    stop = tuple(max(each) for each in zip(*(slab.box[1] for slab in slabs), strict=True))
    return Result(name, repo.uuid, start, stop, len(slabs), skipped, written)


def foresee(
    repo: DicedRepo,
    name: str,
    source: Source,
    offset: Sequence[int] | None = None,
    *,
    labels: bool = False,
    dims: int | None = None,
    force: bool = False,
    memory: int | None = None,
    **options: Any,
) -> Estimate:
    """Return what `ingest` of the same arguments would take on a bucket; nothing is written."""
    if name in repo:
        array = _target(repo, name, source, labels, dims, options)
        slabs = _plan(array._spec, source, offset, _bounded(repo, memory), repo.remote)
        return _estimate(array._spec, _todo(repo, array, slabs, force))
    dtype, dims, given = _fields(name, source, labels, dims, options)
    fields = DicedArray.describe(
        name, dtype=dtype, dims=dims, islabel3D=labels, channels=source.channels, **given
    )
    spec = ArraySpec("", {**fields, "name": name, "kind": "image", "versioned": True, "node": ""})
    memory = _bounded(repo, memory)
    return _estimate(spec, _plan(spec, source, offset, memory, repo.remote))


def _bounded(repo: DicedRepo, memory: int | None) -> int:
    """Return the memory for slabs, so that the half of it that one may have is one batch."""
    memory = memory or default_memory()
    most = repo.store.batch_bytes
    return memory if most is None else min(memory, 2 * most)


def _estimate(spec: ArraySpec, todo: list[_Slab]) -> Estimate:
    itemsize = spec.dtype.itemsize * (spec.channels or 1)
    return estimate((slab.box for slab in todo), spec.block_shape, itemsize)


def _voxels(
    source: Source, todo: list[_Slab], threads: int, skipped: int
) -> Generator[np.ndarray, None, None]:
    """Yield the voxels of each slab; errors say what is stored and how to go on."""
    number = skipped
    parts = source.read([slab.source for slab in todo], threads)
    with contextlib.closing(parts):
        while True:
            try:
                values = next(parts, None)
            except DicedException as error:
                raise type(error)(
                    f"{error}; {number} of {plural(len(todo) + skipped, 'slabs')} are stored, and"
                    " the same command goes on from there once this is mended"
                ) from error
            if values is None:
                return
            number += 1
            yield values


# -- the array -----------------------------------------------------------------------------


def _target(
    repo: DicedRepo,
    name: str,
    source: Source,
    labels: bool,
    dims: int | None,
    options: dict[str, Any],
) -> DicedArray:
    """Return the array, checked or created."""
    if name in repo:
        given = {key: value for key, value in options.items() if value is not None}
        array = repo.get_array(name)
        if not isinstance(array, DicedArray):
            raise InvalidError(f"array {name!r} is of kind {array.kind!r}; it holds no voxels")
        if labels and not array.islabel3D:
            raise InvalidError(f"array {name!r} exists, and holds no labels")
        for key, value in given.items():
            _agree(array, key, value)
        _fit(name, array.numdims, array.channels, source)
        if dims is not None and dims != array.numdims:
            raise InvalidError(f"array {name!r} exists with {array.numdims} dimensions; got {dims}")
        return array
    dtype, dims, given = _fields(name, source, labels, dims, options)
    created: DicedArray = repo.create_array(
        name, dtype, dims, islabel3D=labels, channels=source.channels, **given
    )
    return created


def _fields(
    name: str, source: Source, labels: bool, dims: int | None, options: dict[str, Any]
) -> tuple[np.dtype[Any], int, dict[str, Any]]:
    """Return the type, dimensions and options of a new array."""
    given = {key: value for key, value in options.items() if value is not None}
    dims = len(source.shape) if dims is None else dims
    _fit(name, dims, source.channels, source)
    if isinstance(given.get("block_shape"), int):
        given["block_shape"] = (given["block_shape"],) * dims
    return np.dtype(np.uint64) if labels else source.dtype, dims, given


def _fit(name: str, dims: int, channels: int | None, source: Source) -> None:
    """Raise unless a source fits an array's axes; a single plane may lose its first."""
    have = len(source.shape)
    if dims != have and not (dims == have - 1 and source.shape[0] == 1):
        raise InvalidError(
            f"array {name!r} has {dims} dimensions; the files have {have}, {source.shape}"
        )
    if channels != source.channels:
        raise InvalidError(
            f"array {name!r} has {channels or 'no'} channels; the files have"
            f" {source.channels or 'none'}"
        )


def _agree(array: DicedArray, key: str, value: Any) -> None:
    """Raise if an option for the creation is not what the existing array has."""
    have = getattr(array, key)
    if isinstance(have, tuple):
        wanted = (value,) * len(have) if isinstance(value, (str, int, float)) else tuple(value)
    else:
        wanted = value
        if key == "codec":
            # "zstd" is "zstd:3" in full.
            wanted = have if str(have).startswith(f"{value}:") else value
    if not np.array_equal(np.asarray(wanted), np.asarray(have)):
        raise InvalidError(f"array {array.name!r} exists with {key} {have}; got {value}")


# -- slabs ---------------------------------------------------------------------------------


def _plan(
    spec: ArraySpec, source: Source, offset: Sequence[int] | None, memory: int, remote: bool
) -> list[_Slab]:
    """Cut a source into slabs, aligned with the blocks of the array."""
    import hashlib  # 9 ms

    dims = spec.dims
    if offset is not None and len(offset) != dims:
        raise InvalidError(f"array {spec.name!r} needs an offset of {dims} numbers; got {offset}")
    lo = tuple(offset) if offset is not None else (0,) * dims
    shape = source.shape[len(source.shape) - dims :]
    hi = tuple(a + n for a, n in zip(lo, shape, strict=True))
    item = source.dtype.itemsize * (source.channels or 1)
    slabs = []
    least = REMOTE_SLAB if remote else LEAST_SLAB if dims < 3 else 0
    for low, high in _boxes(lo, hi, spec.block_shape, item, memory, least):
        inside = (
            tuple(a - o for a, o in zip(low, lo, strict=True)),
            tuple(b - o for b, o in zip(high, lo, strict=True)),
        )
        if len(source.shape) > dims:
            inside = ((0, *inside[0]), (1, *inside[1]))
        files = source.identity(inside[0][0], inside[1][0])
        what = [files, inside, (low, high), source.dtype.str, source.channels]
        digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()
        slabs.append(_Slab((low, high), inside, digest, _volume(low, high) * item))
    return slabs


def _boxes(
    lo: tuple[int, ...],
    hi: tuple[int, ...],
    block_shape: tuple[int, ...],
    item: int,
    memory: int,
    least: int,
) -> Iterator[Box]:
    """Yield boxes one block thick, or as many as make `least` bytes at most, split along axis 1
    where they exceed half the memory."""
    size = [b - a for a, b in zip(lo, hi, strict=True)]
    plane = item * int(np.prod(size[1:], dtype=np.int64))
    thick = block_shape[0]
    thick *= max(1, min(least, memory // 2) // (plane * thick))
    parts = [_cuts(lo[0], hi[0], thick)]
    if len(size) > 1:
        # Half: the next slab is read while one is written.
        row = item * min(thick, size[0]) * int(np.prod(size[2:], dtype=np.int64))
        rows = max(1, memory // 2 // (row * block_shape[1])) * block_shape[1]
        parts.append(_cuts(lo[1], hi[1], rows))
        for z0, z1 in parts[0]:
            for y0, y1 in parts[1]:
                yield (z0, y0, *lo[2:]), (z1, y1, *hi[2:])
        return
    for z0, z1 in parts[0]:
        yield (z0,), (z1,)


def _cuts(lo: int, hi: int, step: int) -> list[tuple[int, int]]:
    """Cut an interval at multiples of `step`."""
    first = lo // step * step
    return [(max(lo, at), min(hi, at + step)) for at in range(first, hi, step)]


def _volume(lo: Sequence[int], hi: Sequence[int]) -> int:
    return int(np.prod([b - a for a, b in zip(lo, hi, strict=True)], dtype=np.int64))


def _index(box: Box) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(*box, strict=True))


# -- progress ------------------------------------------------------------------------------


def _todo(repo: DicedRepo, array: DicedArray, slabs: list[_Slab], force: bool) -> list[_Slab]:
    """Return the slabs that are not stored yet, or all."""
    done = set() if force else _finished(repo, array, slabs)
    return [slab for slab in slabs if slab.digest not in done]


def _finished(repo: DicedRepo, array: DicedArray, slabs: list[_Slab]) -> set[str]:
    """Return the digests of slabs that were committed, and not ingested over since."""
    wanted = {slab.digest: slab.box for slab in slabs}
    found: dict[str, int] = {}
    others: list[tuple[int, grid.Box]] = []
    try:
        operations = repo.operations(array.name)
    except UnsupportedError:
        return set()  # a server that keeps no such record: all is written again
    for at, each in enumerate(operations):
        box = each["box"]
        verb, _, digest = each["operation"].partition(" ")
        if verb != VERB or box is None:
            continue
        if digest in wanted:
            found[digest] = at
        else:
            others.append((at, box))
    if not others:
        return set(found)
    when = np.array([at for at, _ in others])
    low = np.array([box[0] for _, box in others])
    high = np.array([box[1] for _, box in others])
    kept = set()
    for digest, at in found.items():
        lo, hi = wanted[digest]
        over = (when > at) & (low < hi).all(axis=1) & (high > lo).all(axis=1)
        if not over.any():
            kept.add(digest)
    return kept
