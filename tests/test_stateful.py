"""The whole public API against a dict-of-numpy model, by random programs.

Longer: ``python -m tests.stateful_run --examples 2000 --seed 1``.
"""

from __future__ import annotations

import itertools
import pickle
import shutil
import tempfile
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import from_dtype
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import FIRST_BLOCK, LAST_BLOCK, Content, Kind, Repo, key_order, same

import diced
from diced import blocks, compose, encoding, grid, index, segment, versioned
from diced.engine import memory

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
BLOCK_SHAPES = [(4,), (7,), (5, 3), (1, 6), (8, 8, 8), (3, 4, 5), (2, 6, 1), (2, 2, 2, 2)]
CODECS = [None, None, "raw", "lz4", "zstd:3", "gzip"]
LABEL_CODECS = [None, "label", "label+lz4", "label+zstd"]
REPO_NAMES = ["fly", "mouse/2", "ñ é", ".."]
ARRAY_NAMES = ["gray", "labels", "a/../b", "Ünï", "*", ".hidden"]
BRANCHES = [None, None, "side", "fix/1", "x y"]

# Limits so small that a short program meets snapshots, body frames, tall trees, many segments.
SMALL = [
    (versioned, "SNAPSHOT_RECORDS", 3),
    (versioned, "SNAPSHOT_ENTRIES", 12),
    (versioned, "META_SNAPSHOT_RECORDS", 4),
    (compose, "INLINE_BODY", 300),
    (versioned, "RECENT", 5),
    (index, "PAGE_COST", 2048),
    (index, "_ENTRY_COST", 512),
    (index, "_LEAST_COST", 512),
    (blocks, "JOIN_GAP", 64),
    (blocks, "READ_BYTES", 500),
    (blocks, "PARALLEL_BLOCKS", 1),
    (blocks, "OPEN_AT_ONCE", 2),
    (encoding, "GROUP_BYTES", 500),
    (encoding, "GROUP_BLOCKS", 1),
    (grid, "BLOCKS_PER_PIECE", 3),
    (segment, "ROLL_BYTES", 4000),
    (segment, "MAX_UNSYNCED", 2),
]

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6)
KEYS = st.one_of(
    st.sampled_from(
        ["a", "ab", "b", "/", "../x", ".", "..", "\0", "a\0", "a\0b", "Ω", "\U0010ffff", "\uffff",
         "a" * 300, "c:\\", "%2f", " ", "\n"]
    ),
    TEXT,
)  # fmt: skip
VALUES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([0, 1, 255, 256, 257, 90000]).map(lambda size: bytes(size)),
    st.integers(0, 2**32 - 1).map(lambda n: np.random.default_rng(n).bytes(1 + n % 3000)),
)
JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    TEXT,
    st.lists(st.integers(), max_size=3),
)

_names = itertools.count()


def elements(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    """Values of a dtype; one NaN only, since conversions need not keep the others' bits."""
    if dtype.kind == "f":
        odd = [dtype.type(x) for x in ("nan", "inf", "-0.0", "0.0", "1.5")]
        return st.one_of(st.sampled_from(odd), from_dtype(dtype, allow_nan=False))
    return from_dtype(dtype)


class StoreMachine(RuleBasedStateMachine):
    """Programs over one store: up to three repos, a second store object beside the first."""

    engines = ("local", "memory")
    server: Any = None  # the fake bucket's, where "gcs" is among the engines

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.models: dict[str, Repo] = {}
        self.repos: dict[str, diced.DicedRepo] = {}
        self.at: dict[str, str] = {}  # repo -> version its handle is at
        self.arrays: dict[tuple[str, str], diced.DicedArray] = {}
        self.info: dict[str, Any] = {}

    @initialize(
        data=st.data(),
        small=st.booleans(),
        block_cache=st.sampled_from([0, 6000, 2**24]),
    )
    def begin(self, data: st.DataObject, small: bool, block_cache: int) -> None:
        engine = data.draw(st.sampled_from(self.engines), label="engine")
        self.options: dict[str, Any] = {"block_cache_bytes": block_cache}
        if small:
            for module, name, value in SMALL:
                self.stack.enter_context(mock.patch.object(module, name, value))
        if engine == "memory":
            name = f"stateful{next(_names)}"
            self.location = f"memory://{name}"
            self.stack.callback(memory.forget, name)
        elif engine == "gcs":
            self.location = self.server.url()
            self.options["max_age"] = 0  # the second store object must not be behind
        else:
            self.location = tempfile.mkdtemp(prefix="diced-stateful-")
            self.stack.callback(shutil.rmtree, self.location, True)
        self.store = self.open()
        self.other = self.open()
        self.stack.callback(lambda: (self.store.close(), self.other.close()))
        self._create("fly", "first")
        for name in ARRAY_NAMES[:2]:  # without arrays most rules have nothing to do
            self.add_array(data, "fly", name, True)

    def teardown(self) -> None:
        self.stack.close()

    def open(self, **options: Any) -> diced.DicedStore:
        return diced.DicedStore(
            self.location,
            durability="process",
            user="tester",
            **self.options,
            **options,
        )

    # -- choices ---------------------------------------------------------------------------

    def pick_repo(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.models)), label="repo")

    def pick_array(self, data: st.DataObject) -> tuple[str, str, Any, Content]:
        """Choose an array that the repo handle shows: repo, name, handle, content."""
        names = [
            (repo, name)
            for repo, model in sorted(self.models.items())
            for name in model.visible(self.at[repo])
        ]
        repo, name = data.draw(st.sampled_from(names), label="array")
        handle = self.arrays.get((repo, name))
        if handle is None:
            handle = self.arrays[repo, name] = self.repos[repo].get_array(name)
        return repo, name, handle, self.models[repo].content(self.at[repo], name)

    def has_arrays(self) -> bool:
        return any(model.visible(self.at[repo]) for repo, model in self.models.items())

    def draw_item(
        self, data: st.DataObject, content: Content, axis: int, beyond: int, ends: bool
    ) -> Any:
        lo, hi = content.kind.lo[axis] - beyond, content.kind.hi[axis] + beyond
        kinds = ["slice", "slice", "blocks", "blocks", "int", "step", "back"] + ["open"] * ends
        kind = data.draw(st.sampled_from(kinds))
        if kind == "int":
            number = data.draw(st.integers(lo, hi - 1))
            return data.draw(st.sampled_from([number, np.int64(number), np.int32(number)]))
        a, b = sorted(data.draw(st.tuples(st.integers(lo, hi), st.integers(lo, hi))))
        if kind == "slice":
            return slice(a, b)
        if kind == "blocks":
            size = content.kind.block_shape[axis]
            a, b = sorted(data.draw(st.tuples(*[st.integers(FIRST_BLOCK, LAST_BLOCK - 1)] * 2)))
            return slice(a * size, (b + 1) * size)
        step = data.draw(st.integers(1, 5))
        if kind == "step":
            return slice(a, b, step)
        if kind == "back":
            return slice(b - 1, a - 1, -step)
        return data.draw(
            st.sampled_from([slice(None), slice(None, None, step), slice(None, None, -step)])
        )

    def draw_index(
        self, data: st.DataObject, content: Content, beyond: int = 0, ends: bool = True
    ) -> Any:
        kind = content.kind
        if data.draw(st.integers(0, 3)) == 0:  # whole blocks, which writes treat differently
            spans = [sorted(data.draw(st.tuples(*[st.integers(FIRST_BLOCK, LAST_BLOCK - 1)] * 2)))
                     for _ in kind.block_shape]  # fmt: skip
            whole = zip(spans, kind.block_shape, strict=True)
            return tuple(slice(a * size, (b + 1) * size) for (a, b), size in whole)
        items = [self.draw_item(data, content, axis, beyond, ends) for axis in range(kind.dims)]
        if kind.channels is not None and data.draw(st.booleans()):
            last = kind.channels - 1
            items.append(
                data.draw(st.sampled_from([slice(None), 0, last, slice(0, last), slice(last, 9)]))
            )
        if ends and data.draw(st.integers(0, 5)) == 0:
            keep = data.draw(st.integers(0, len(items) - 1))
            channels = 0 if kind.channels is None else 1
            tail = items[kind.dims :]
            head = items[: min(keep, kind.dims)]
            items = [*head, Ellipsis, *tail] if len(tail) == channels else [*head, Ellipsis]
        return items[0] if len(items) == 1 else tuple(items)

    def draw_value(self, data: st.DataObject, content: Content, index: Any) -> Any:
        """Draw what to write: scalar, broadcast row, full array; native or big-endian."""
        dtype = content.kind.dtype
        shape = content.result_shape(index)
        kind = data.draw(st.sampled_from(["scalar", "python", "full", "full", "row", "big", "few"]))
        value = data.draw(elements(dtype))
        if kind == "scalar":
            return np.asarray(value, dtype)[()]
        if kind == "python":
            return np.asarray(value, dtype)[()].item()
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        if kind == "row" and shape:
            shape = data.draw(st.sampled_from([shape[1:], shape[-1:], (1,) * len(shape)]))
        size = int(np.prod(shape, dtype=np.int64))
        if kind == "few":
            noise = rng.integers(0, 2, size).astype(dtype)
        elif dtype.kind == "f":
            noise = rng.standard_normal(size).astype(dtype)
        else:
            noise = np.frombuffer(rng.bytes(size * dtype.itemsize), dtype).copy()
            noise = noise if dtype.kind != "b" else rng.integers(0, 2, size).astype(bool)
        noise[: size // 3] = value
        noise = noise.reshape(shape)
        if kind == "big":
            return noise.astype(dtype.newbyteorder(">"))
        if kind == "full" and noise.ndim > 1 and data.draw(st.booleans()):
            return np.asfortranarray(noise)
        return noise

    # -- store -----------------------------------------------------------------------------

    def _create(self, name: str, description: str) -> None:
        repo = self.store.create_repo(name, description)
        self.models[name] = Repo(name, description, repo.uuid)
        self.repos[name] = repo
        self.at[name] = repo.uuid
        assert repo.name == name and repo.root == repo.uuid and not repo.locked

    @rule(name=st.sampled_from(REPO_NAMES), description=TEXT)
    def create_repo(self, name: str, description: str) -> None:
        if name in self.models:
            with pytest.raises(diced.AlreadyExistsError):
                self.other.create_repo(name)
        elif len(self.models) < 3:
            self._create(name, description)

    @rule(data=st.data(), new=st.sampled_from(REPO_NAMES))
    def rename_repo(self, data: st.DataObject, new: str) -> None:
        old = self.pick_repo(data)
        if new in self.models:
            with pytest.raises(diced.AlreadyExistsError):
                self.store.rename_repo(old, new)
            return
        self.store.rename_repo(old, new)
        for table in (self.models, self.repos, self.at):
            table[new] = table.pop(old)  # type: ignore[attr-defined]
        self.models[new].name = new
        self.arrays = {
            (new if repo == old else repo, name): each for (repo, name), each in self.arrays.items()
        }

    @rule(data=st.data(), text=TEXT)
    def describe_repo(self, data: st.DataObject, text: str) -> None:
        name = self.pick_repo(data)
        self.other.describe_repo(name, text)
        self.models[name].description = text

    @precondition(lambda self: len(self.models) > 1)
    @rule(data=st.data(), sweep=st.booleans())
    def delete_repo(self, data: st.DataObject, sweep: bool) -> None:
        name = self.pick_repo(data)
        self.store.delete_repo(name)
        with pytest.raises(diced.NotFoundError):
            self.repos[name].add_log("gone")
        for table in (self.models, self.repos, self.at):
            del table[name]  # type: ignore[attr-defined]
        self.arrays = {key: each for key, each in self.arrays.items() if key[0] != name}
        if sweep:
            self.store.sweep()
        for store in (self.store, self.other):
            with pytest.raises(diced.NotFoundError):
                store.open_repo(name)

    @rule(key=TEXT, value=JSON, drop=st.booleans())
    def edit_info(self, key: str, value: Any, drop: bool) -> None:
        if drop and self.info:
            key = sorted(self.info)[0]
            del self.store.info[key], self.info[key]
        else:
            self.store.info[key] = self.info[key] = value

    @rule(which=st.sampled_from(["first", "second"]))
    def reopen(self, which: str) -> None:
        if which == "second":
            self.other.close()
            self.other = self.open()
            return
        self.store.close()
        self.store = self.open()
        self.arrays.clear()
        for name in self.models:
            self.repos[name] = self.store.open_repo(name, version=self.at[name])

    # -- arrays ----------------------------------------------------------------------------

    @rule(data=st.data(), name=st.sampled_from(ARRAY_NAMES), versioned=st.integers(0, 4))
    def create_array(self, data: st.DataObject, name: str, versioned: int) -> None:
        self.add_array(data, self.pick_repo(data), name, versioned > 0)

    def add_array(self, data: st.DataObject, repo: str, name: str, versioned: bool) -> None:
        model, handle, at = self.models[repo], self.repos[repo], self.at[repo]
        label = data.draw(st.integers(0, 3)) == 0
        options: dict[str, Any] = {"versioned": versioned}
        if label:
            block = data.draw(st.sampled_from([(8, 8, 8), (8, 16, 8), (16, 8, 8)]))
            dtype = np.dtype("uint64")
            options |= {"islabel3D": True, "codec": data.draw(st.sampled_from(LABEL_CODECS))}
            channels, fill = None, 0
        else:
            block = data.draw(st.sampled_from(BLOCK_SHAPES))
            dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
            channels = data.draw(st.sampled_from([None, None, None, 1, 3]))
            fill = data.draw(st.sampled_from([0, 0, 1]))
            if channels == 3 and data.draw(st.booleans()):
                fill = [1, 0, 1]
            options |= {"codec": data.draw(st.sampled_from(CODECS)), "fill": fill}
            options["channels"] = channels
        attrs = data.draw(st.dictionaries(TEXT, JSON, max_size=2))
        kind = Kind(dtype, block, channels, np.asarray(fill).astype(dtype), label, versioned, at)
        arguments = (name, dtype if data.draw(st.booleans()) else diced.ArrayDtype[dtype.name])
        options |= {"dims": len(block), "block_shape": block, "attrs": attrs}
        if model.versions[at].locked and kind.versioned:
            with pytest.raises(diced.LockedError):
                handle.create_array(*arguments, **options)
        elif name in model.kinds:
            with pytest.raises(diced.AlreadyExistsError):
                handle.create_array(*arguments, **options)
        else:
            array = handle.create_array(*arguments, **options)
            self.arrays[repo, name] = array
            model.create(at, name, kind, attrs)
            assert (array.name, array.dtype, array.numdims) == (name, dtype, len(block))
            assert array.block_shape == block and array.islabel3D == label
            assert array.channels == channels and array.versioned == kind.versioned

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data(), sweep=st.booleans())
    def delete_array(self, data: st.DataObject, sweep: bool) -> None:
        repo, name, handle, _ = self.pick_array(data)
        self.repos[repo].delete_array(name)
        self.models[repo].delete(name)
        del self.arrays[repo, name]
        with pytest.raises(diced.NotFoundError):
            handle[(0,) * handle.numdims] = 1
        with pytest.raises(diced.NotFoundError):
            self.repos[repo].get_array(name)
        if sweep:
            self.store.sweep()

    def _locked(self, repo: str, name: str) -> bool:
        model = self.models[repo]
        return model.kinds[name].versioned and model.versions[self.at[repo]].locked

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        repo, name, handle, content = self.pick_array(data)
        index = self.draw_index(data, content)
        value = self.draw_value(data, content, index)
        if self._locked(repo, name):
            with pytest.raises(diced.LockedError):
                handle[index] = value
            return
        handle[index] = value
        content.write(index, value)
        if data.draw(st.booleans()):
            beside = self.beside(repo)[name]
            assert same(beside[index], content.read(index))

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data())
    def write_box(self, data: st.DataObject) -> None:
        # Once more, because writes are what the other rules need most.
        repo, name, handle, content = self.pick_array(data)
        if self._locked(repo, name):
            return
        lo, hi = content.kind.lo, content.kind.hi
        corners = [sorted(data.draw(st.tuples(st.integers(a, b - 1), st.integers(a, b - 1))))
                   for a, b in zip(lo, hi, strict=True)]  # fmt: skip
        index = tuple(slice(a, b + 1) for a, b in corners)
        value = self.draw_value(data, content, index)
        handle[index] = value
        content.write(index, value)

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data())
    def refused_write(self, data: st.DataObject) -> None:
        repo, name, handle, content = self.pick_array(data)
        if self._locked(repo, name):
            return
        dtype = content.kind.dtype
        box = tuple(slice(b, b + 2) for b in content.kind.lo)
        bad: list[Any] = ["text", object(), 1j, [[1, 2], [3]], np.zeros((2,) * 9)]
        if dtype.kind == "b":
            bad += [2, -1, np.uint8(7), 0.5]
        elif dtype.kind in "iu":
            limits = np.iinfo(dtype)
            bad += [limits.max + 1, limits.min - 1, 0.5, float("nan"), np.float32(1.5)]
            if dtype.itemsize < 8:
                bad.append(np.int64(limits.max) + 1)
        with pytest.raises(diced.InvalidError):
            handle[box] = data.draw(st.sampled_from(bad))
        wrong = [(0,) * 9, (slice(None),) * 10, (..., ...), (True,) * content.kind.dims]
        with pytest.raises(diced.BadIndexError):
            handle[data.draw(st.sampled_from(wrong))] = 0

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data(), count=st.integers(1, 5), fails=st.integers(0, 3))
    def batch(self, data: st.DataObject, count: int, fails: int) -> None:
        repo, name, handle, content = self.pick_array(data)
        if self._locked(repo, name):
            with pytest.raises(diced.LockedError), handle.batch():
                raise AssertionError("entered a batch at a locked version")
            return
        draft = content.copy()
        beside = self.beside(repo)[name]
        everything = tuple(
            slice(a, b) for a, b in zip(content.kind.lo, content.kind.hi, strict=True)
        )
        try:
            with handle.batch("mixed"):
                for _ in range(count):
                    index = self.draw_index(data, content, ends=False)
                    value = self.draw_value(data, content, index)
                    handle[index] = value
                    draft.write(index, value)
                    if isinstance(value, np.ndarray) and value.flags.writeable:
                        value[...] = 0  # the batch must have its own copy
                    if data.draw(st.booleans()):
                        chosen = self.draw_index(data, content, 3, ends=False)
                        assert same(handle[chosen], draft.read(chosen))
                assert same(beside[everything], content.read(everything))
                if fails == 0:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert same(handle[everything], content.read(everything))
            return
        self.models[repo].set_content(self.at[repo], name, draft)

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        repo, name, handle, content = self.pick_array(data)
        if data.draw(st.booleans()):
            handle = self.beside(repo)[name]
        index = self.draw_index(data, content, beyond=5)
        wanted = content.read(index)
        assert same(handle[index], wanted)
        out = np.empty(wanted.shape, wanted.dtype)
        if out.ndim and data.draw(st.booleans()):  # numpy makes a 0-d array 1-d here
            out = np.asfortranarray(out)
        assert handle.read(index, out=out) is out
        assert same(out, wanted)

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data(), key=TEXT, value=JSON)
    def edit_attrs(self, data: st.DataObject, key: str, value: Any) -> None:
        repo, name, handle, _ = self.pick_array(data)
        attrs = self.models[repo].attrs[name]
        if key in attrs:
            del handle.attrs[key], attrs[key]
        handle.attrs.update({key: value, "n": len(attrs)})
        attrs |= {key: value, "n": len(attrs)}

    @precondition(lambda self: self.has_arrays())
    @rule(data=st.data())
    def pickled(self, data: st.DataObject) -> None:
        repo, name, handle, content = self.pick_array(data)
        copy = pickle.loads(pickle.dumps(handle))
        assert same(copy[...], content.read(...))
        assert copy.locked == self._locked(repo, name)

    # -- versions --------------------------------------------------------------------------

    @rule(data=st.data(), message=TEXT)
    def lock(self, data: st.DataObject, message: str) -> None:
        repo = self.pick_repo(data)
        version = self.models[repo].versions[self.at[repo]]
        if version.locked:
            with pytest.raises(diced.LockedError):
                self.repos[repo].lock_node(message)
            return
        with pytest.raises(diced.LockedError):
            self.repos[repo].create_branch("too early")
        handle = self.repos[repo] if data.draw(st.booleans()) else self.beside(repo)
        assert handle.lock_node(message) == version.uuid
        version.locked, version.note = True, message

    @rule(data=st.data(), branch=st.sampled_from(BRANCHES), note=TEXT, go=st.booleans())
    def branch(self, data: st.DataObject, branch: str | None, note: str, go: bool) -> None:
        repo = self.pick_repo(data)
        model, at = self.models[repo], self.at[repo]
        if not model.versions[at].locked:
            self.repos[repo].lock_node("before a branch")
            model.versions[at].locked, model.versions[at].note = True, "before a branch"
        if len(model.versions) > 6:
            return
        if branch in model.branches():
            with pytest.raises(diced.AlreadyExistsError):
                self.repos[repo].create_branch(note, branch)
            return
        uuid = self.repos[repo].create_branch(note, branch)
        model.add_child(at, uuid, branch, note)
        assert self.repos[repo].uuid == at
        if go:
            self.repos[repo].change_version(uuid)
            self.at[repo] = uuid

    @rule(
        data=st.data(),
        how=st.sampled_from(["uuid", "prefix", "branch", "tag", "parent", "none"]),
    )
    def change_version(self, data: st.DataObject, how: str) -> None:
        repo = self.pick_repo(data)
        model, handle = self.models[repo], self.repos[repo]
        to = data.draw(st.sampled_from(list(model.versions)))
        if how == "none":
            with pytest.raises(diced.NotFoundError):
                handle.change_version("no such version")
            return
        if how == "branch":
            name = data.draw(st.sampled_from(list(model.branches())))
            to = model.branches()[name]
            handle.change_version(name)
        elif how == "tag" and model.tags:
            name = data.draw(st.sampled_from(sorted(model.tags)))
            to = model.tags[name]
            handle.change_version(name)
        elif how == "parent" and model.versions[to].parent is not None:
            handle.change_version(to + "~1")
            to = str(model.versions[to].parent)
        else:
            handle.change_version(to[:20] if how == "prefix" else to)
        self.at[repo] = to

    @rule(data=st.data(), name=st.sampled_from(["v1", "v2", "release ü"]))
    def tag(self, data: st.DataObject, name: str) -> None:
        repo = self.pick_repo(data)
        model = self.models[repo]
        if not model.versions[self.at[repo]].locked:
            with pytest.raises(diced.LockedError):
                self.repos[repo].tag(name)
        elif name in model.tags:
            with pytest.raises(diced.AlreadyExistsError):
                self.repos[repo].tag(name)
        else:
            self.repos[repo].tag(name)
            model.tags[name] = self.at[repo]

    @rule(data=st.data(), text=TEXT, kind=st.sampled_from(["note", "log"]))
    def annotate(self, data: st.DataObject, text: str, kind: str) -> None:
        repo = self.pick_repo(data)
        version = self.models[repo].versions[self.at[repo]]
        if kind == "log":
            self.repos[repo].add_log(text)
            version.log.append(text)
        elif version.locked:
            with pytest.raises(diced.LockedError):
                self.repos[repo].set_note(text)
        else:
            self.repos[repo].set_note(text)
            version.note = text

    # -- files -----------------------------------------------------------------------------

    @rule(data=st.data(), values=st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
    def put_files(self, data: st.DataObject, values: dict[str, bytes]) -> None:
        repo = self.pick_repo(data)
        version = self.models[repo].versions[self.at[repo]]
        if version.locked:
            with pytest.raises(diced.LockedError):
                self.repos[repo].files.put_many(values)
            return
        if len(values) == 1:
            [(name, value)] = values.items()
            self.repos[repo].upload_filedata(name, value)
        else:
            self.repos[repo].files.put_many(values)
        version.files.update(values)
        with pytest.raises(diced.InvalidError):
            self.repos[repo].files.put_many({"fine": b"", "": b"no name"})
        for name in values:
            assert self.beside(repo).download_filedata(name) == values[name]

    @rule(data=st.data(), name=KEYS)
    def delete_file(self, data: st.DataObject, name: str) -> None:
        repo = self.pick_repo(data)
        version = self.models[repo].versions[self.at[repo]]
        if version.files and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(version.files)))
        if version.locked:
            with pytest.raises(diced.LockedError):
                self.repos[repo].delete_file(name)
        elif name not in version.files:
            with pytest.raises(diced.NotFoundError):
                self.repos[repo].delete_file(name)
        else:
            self.repos[repo].delete_file(name)
            del version.files[name]
            with pytest.raises(diced.NotFoundError):
                self.repos[repo].download_filedata(name)

    @rule(data=st.data(), prefix=st.one_of(st.just(""), KEYS), ends=st.tuples(KEYS, KEYS))
    def list_files(self, data: st.DataObject, prefix: str, ends: tuple[str, str]) -> None:
        repo = self.pick_repo(data)
        files = self.models[repo].versions[self.at[repo]].files
        start = data.draw(st.sampled_from([None, ends[0]]))
        stop = data.draw(st.sampled_from([None, ends[1]]))
        wanted = [
            (name, files[name])
            for name in key_order(files)
            if name.startswith(prefix)
            and (start is None or name.encode() >= start.encode())
            and (stop is None or name.encode() < stop.encode())
        ]
        assert list(self.beside(repo).files.items(prefix, start, stop)) == wanted
        assert list(self.repos[repo].files.keys(prefix, start, stop)) == [n for n, _ in wanted]

    # -- what always holds -----------------------------------------------------------------

    def beside(self, repo: str) -> diced.DicedRepo:
        """Open the repo, at the same version, through the other store object."""
        return self.other.open_repo(repo, version=self.at[repo])

    @invariant()
    def repos_agree(self) -> None:
        if not self.models:
            return
        wanted = sorted((name, model.root) for name, model in self.models.items())
        assert self.store.list_repos() == self.other.list_repos() == wanted
        assert dict(self.other.info) == self.info

    @invariant()
    def versions_agree(self) -> None:
        for name, model in self.models.items():
            repo, at = self.repos[name], self.at[name]
            version = model.versions[at]
            assert (repo.name, repo.uuid, repo.root) == (name, at, model.root)
            assert repo.description == model.description
            assert repo.locked == version.locked
            assert repo.note == version.note
            assert [line.split("  ", 1)[1] for line in repo.log] == version.log
            assert repo.tags() == model.tags
            assert repo.branches() == model.branches()
            assert [
                (each.uuid, list(each.parents), each.branch, each.note, each.locked)
                for each in repo.versions()
            ] == [
                (each.uuid, [each.parent] if each.parent else [], each.branch, each.note,
                 each.locked)
                for each in model.versions.values()
            ]  # fmt: skip
            assert repo.get_commit_log() == [
                (each.uuid, each.note if each.locked else "(open node)")
                for each in model.lineage(at)
            ]
            assert repo.list_files() == key_order(version.files)

    @invariant()
    def arrays_agree(self) -> None:
        for name, model in self.models.items():
            repo, at = self.repos[name], self.at[name]
            assert [(each, kind.value) for each, kind in repo.list_instances()] == [
                (each, model.kinds[each].dtype.type) for each in model.visible(at)
            ]
            for each in model.visible(at):
                content, array = model.content(at, each), repo[each]
                self.extents_agree(array, content)
                assert array.locked == self._locked(name, each)
                assert dict(array.attrs) == model.attrs[each]

    def extents_agree(self, array: diced.DicedArray, content: Content) -> None:
        lo, hi = content.extents
        extents = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
        assert array.get_extents() == (extents if len(lo) > 1 else extents[0])
        assert array.shape == tuple(
            b - a for a, b in zip(lo, hi, strict=True)
        ) + content.kind.tail  # fmt: skip
        box = content.box
        assert array.bounds == (box and tuple(map(slice, *box)))

    def everything_agrees(self, store: diced.DicedStore) -> None:
        """Read every array at every version; run at the end of every program."""
        for name, model in self.models.items():
            for uuid, version in model.versions.items():
                repo = store.open_repo(uuid=uuid)
                assert repo.name == name
                assert dict(repo.files.items()) == version.files
                for each in model.visible(uuid):
                    content, array = model.content(uuid, each), repo[each]
                    window = tuple(
                        slice(FIRST_BLOCK * size - 2, LAST_BLOCK * size + 2)
                        for size in content.kind.block_shape
                    )
                    assert same(array[window], content.read(window)), (name, uuid, each)
                    self.extents_agree(array, content)
                    assert set(array.blocks()) == content.blocks
                    boxes = [op["box"] for op in repo.operations(each) if op["box"]]
                    if content.box is None:
                        assert not boxes
                    else:
                        assert np.min([box[0] for box in boxes], axis=0).tolist() == list(
                            content.box[0]
                        )
                        assert np.max([box[1] for box in boxes], axis=0).tolist() == list(
                            content.box[1]
                        )


class CheckedMachine(StoreMachine):
    """Ends each program with a full comparison, by a fresh and a read-only store object."""

    def teardown(self) -> None:
        try:
            if self.models:
                self.everything_agrees(self.other)
                with self.open(readonly=True) as fresh:
                    self.everything_agrees(fresh)
                    with pytest.raises(diced.ReadOnlyError):
                        fresh.create_repo("another")
                with self.open() as fresh:
                    fresh.sweep()
                    self.everything_agrees(fresh)
        finally:
            super().teardown()


def machine_settings(examples: int, steps: int = 40, **options: Any) -> settings:
    """The settings of all runs: no deadlines, since disks have none."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )


TestStore = CheckedMachine.TestCase
TestStore.settings = machine_settings(100)


def test_programs_on_a_bucket(gcs: Any) -> None:
    machine = type("BucketMachine", (CheckedMachine,), {"engines": ("gcs",), "server": gcs})
    run_state_machine_as_test(machine, settings=machine_settings(20))
