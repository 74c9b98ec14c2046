"""How many requests does each public call make on a bucket?

`COUNTS`, of request_counts.py, is what the tests insist on and what docs/gcs.md shows. After a
change that is meant, ``python -m tests.test_requests --update`` measures, and writes both anew;
``--write-docs`` writes only the page; ``--log TEXT`` prints the requests of the calls whose names
hold TEXT, and with ``--latency 0.02`` how deep they are.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fake_gcs
from request_counts import COUNTS

from diced import DicedArray, DicedRepo, DicedStore
from diced.files import KeyValueArray
from diced.session import WriteSession

TABLE = pathlib.Path(__file__).with_name("request_counts.py")
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "gcs.md"
BEGIN, END = "<!-- requests: begin -->\n", "<!-- requests: end -->\n"
MAX_AGE = 100.0
TIMES = ("first", "again", "later")
LETTERS = {"insert": "i", "list": "l", "get": "g", "stat": "s", "delete": "d"}
WORDS = {letter: word for word, letter in LETTERS.items()}


@dataclass
class Row:
    """A call: `run` gets a `Place` and how many times it ran before, `before` runs uncounted.

    `versions` it can be made at; `needs` is what is opened before, uncounted; `alters` the store.
    """

    name: str
    run: Callable[["Place", int], Any]
    versions: tuple[str, ...] = ("open", "locked")
    before: Callable[["Place", int], Any] | None = None
    needs: str = "handles"
    alters: bool = False


class Place:
    """A store opened just now, and handles of what `build` made, at one version of it."""

    def __init__(self, url, version, needs):
        self.url = url
        if needs == "nothing":
            return
        self.store = DicedStore(url, max_age=MAX_AGE)
        if needs == "store":
            return
        self.repo = self.store.open_repo("fly", version="one" if version == "locked" else "master")
        self.array, self.files = self.repo["em"], self.repo.files
        self.session = None


RANDOM = np.random.default_rng(5).integers(0, 2**63, (48, 40, 40), dtype=np.uint64)
LARGE = RANDOM.tobytes()[: 320 * 1024]
BLOCK = np.s_[0:8, 0:8, 0:8]
MANY = np.s_[0:32, 0:32, 0:32]  # 64 blocks
WIDE = np.s_[0:40, 0:32, 0:32]  # more bytes than ride behind a record


def build(url):
    """Make a store with two repos; one has a locked version and an open child, both written."""
    store = DicedStore(url)
    store.create_repo("other")
    repo = store.create_repo("fly")
    array = repo.create_array("em", np.uint64, block_shape=(8, 8, 8))
    array[WIDE] = RANDOM[WIDE]
    repo.files.put_many({"small": b"s" * 200, "large": LARGE})
    repo.lock_node("first")
    repo.tag("one")
    repo.change_version(repo.create_branch())
    array[BLOCK] = RANDOM[8:16, :8, :8]
    repo.files["more"] = b"m" * 200
    store.close()
    return url


# -- calls ---------------------------------------------------------------------------------


def _write(place, index, i):
    place.array[index] = RANDOM[i : i + 44, :40, :40][tuple(slice(s.stop - s.start) for s in index)]


def _batch(place, i):
    with place.array.batch():
        for z in (0, 8, 16):
            place.array[z : z + 8, 0:8, 0:8] = RANDOM[z + i : z + i + 8, :8, :8]


def _child(place, i):
    """Go to an open version with a block and a file written, so that it can be locked."""
    if i:
        place.repo.change_version(place.repo.create_branch())
    _write(place, BLOCK, i)
    place.files["more"] = bytes([i])


def _lock(place, i):
    if i:
        place.repo.change_version(place.repo.create_branch())
    place.repo.lock_node("x")


def _begin(place, _i):
    place.session = place.array.session()


def _three(place, i):
    for z in (0, 8, 16):
        place.session[z : z + 8, 0:8, 0:8] = RANDOM[z + i : z + i + 8, :8, :8]


def _begun(place, i):
    _begin(place, i)
    _three(place, i)


def _array(place, i):
    place.repo.create_array(f"more{i}", np.uint8)


DESCRIPTION = [
    "dtype", "numdims", "get_numdims", "ndim", "islabel3D", "block_shape", "chunks", "channels",
    "fill", "codec", "name", "kind", "versioned",
]  # fmt: skip
ONLY_OPEN: dict[str, Any] = {"versions": ("open",), "alters": True}
OF_STORE: dict[str, Any] = {"versions": ("open",), "needs": "store"}
NEW_STORE: dict[str, Any] = {"versions": ("open",), "needs": "nothing"}


def _row(name, run, **options):
    return Row(name, run, **options)


GROUPS: dict[str, list[Row]] = {
    "Stores": [
        _row("`DicedStore(new)`", lambda p, i: DicedStore(f"{p.url}-{i}"), **NEW_STORE),
        _row("`DicedStore(there)`", lambda p, i: DicedStore(p.url), **NEW_STORE),
        _row("`DicedStore(there, readonly=True)`", lambda p, i: DicedStore(p.url, readonly=True),
             **NEW_STORE),
        _row("`store.create_repo`", lambda p, i: p.store.create_repo(f"r{i}"), **OF_STORE,
             alters=True),
        _row("`store.open_repo(name)`", lambda p, i: p.store.open_repo("fly"), **OF_STORE),
        _row("`store.open_repo(name, version=)`",
             lambda p, i: p.store.open_repo("fly", version="one"), **OF_STORE),
        _row("`store.open_repo(uuid=)`, one of 2 repos",
             lambda p, i: p.store.open_repo(uuid="one"), **OF_STORE),
        _row("`store.list_repos`", lambda p, i: p.store.list_repos(), **OF_STORE),
        _row("`store.get_repouuid`, `store.repo_info`",
             lambda p, i: (p.store.get_repouuid("fly"), p.store.repo_info("fly")), **OF_STORE),
        _row("`store.rename_repo`",
             lambda p, i: p.store.rename_repo(["fly", "r0", "r1"][i], f"r{i}"), **OF_STORE,
             alters=True),
        _row("`store.describe_repo`", lambda p, i: p.store.describe_repo("fly", f"{i}"),
             **OF_STORE, alters=True),
        _row("read `store.info`", lambda p, i: dict(p.store.info), **OF_STORE),
        _row("change `store.info`", lambda p, i: p.store.info.update(i=i), **OF_STORE,
             alters=True),
        _row("`store.delete_repo`, the sweep of its 2 objects behind it included",
             lambda p, i: p.store.delete_repo(f"r{i}"), **OF_STORE, alters=True,
             before=lambda p, i: p.store.create_repo(f"r{i}").create_array("a", np.uint8)),
        _row("`store.sweep`, nothing to do", lambda p, i: p.store.sweep(), **OF_STORE),
        _row("`store.close`", lambda p, i: p.store.close(), **OF_STORE),
    ],
    "Repos": [
        _row("`repo.uuid`, `repo.root`, `repo.get_current_version`",
             lambda p, i: (p.repo.uuid, p.repo.root, p.repo.get_current_version())),
        _row("`repo.name`, `repo.description`", lambda p, i: (p.repo.name, p.repo.description)),
        _row("`repo.locked`", lambda p, i: p.repo.locked),
        _row("`repo.get_array`", lambda p, i: p.repo.get_array("em")),
        _row("`repo.list_instances`", lambda p, i: p.repo.list_instances()),
        _row("`repo.list_instances(True)`", lambda p, i: p.repo.list_instances(True)),
        _row("`repo.create_array`", _array, **ONLY_OPEN),
        _row("`repo.delete_array`, the sweep of its 1 object behind it included",
             lambda p, i: p.repo.delete_array(f"more{i}"), **ONLY_OPEN,
             before=lambda p, i: (_array(p, i), p.repo[f"more{i}"].__setitem__(BLOCK, 1))),
        _row("`repo.lock_node`, 1 array and 1 file written", lambda p, i: p.repo.lock_node("x"),
             **ONLY_OPEN, before=_child),
        _row("`repo.create_branch`", lambda p, i: p.repo.create_branch(), versions=("locked",),
             alters=True),
        _row("`repo.change_version`", lambda p, i: p.repo.change_version(p.repo.uuid)),
        _row("`repo.versions`, `repo.branches`, `repo.tags`",
             lambda p, i: (p.repo.versions(), p.repo.branches(), p.repo.tags())),
        _row("`repo.get_commit_log`", lambda p, i: p.repo.get_commit_log()),
        _row("`repo.note`, `repo.log`", lambda p, i: (p.repo.note, p.repo.log)),
        _row("`repo.tag`", lambda p, i: p.repo.tag(f"t{i}"), versions=("locked",), alters=True),
        _row("`repo.set_note`", lambda p, i: p.repo.set_note(f"{i}"), **ONLY_OPEN),
        _row("`repo.add_log`", lambda p, i: p.repo.add_log(f"{i}"), alters=True),
        _row("`repo.reserve_ids`", lambda p, i: p.repo.reserve_ids(9), alters=True),
        _row("`repo.operations(name)`", lambda p, i: list(p.repo.operations("em"))),
    ],
    "Arrays": [
        _row("`array.dtype`, `array.block_shape` and what else it is created with",
             lambda p, i: [getattr(p.array, each) for each in DESCRIPTION]),
        _row("`array.voxel_size`, `array.units`, read `array.attrs`",
             lambda p, i: (p.array.voxel_size, p.array.units, dict(p.array.attrs))),
        _row("`array.locked`", lambda p, i: p.array.locked),
        _row("change `array.attrs`", lambda p, i: p.array.attrs.update(i=i), alters=True),
        _row("`array.get_extents`, `array.bounds`, `array.shape`, `array.size`, `array.nbytes`",
             lambda p, i: (p.array.get_extents(), p.array.bounds, p.array.shape, p.array.size,
                           p.array.nbytes)),
        _row("`array.blocks`", lambda p, i: list(p.array.blocks())),
        _row("read 1 voxel", lambda p, i: p.array[i, 20, 20]),
        _row("`array.read` of 64 blocks, up to 8 MiB of one segment", lambda p, i: p.array[MANY]),
        _row("read where nothing was written", lambda p, i: p.array[900:950, 0, 0]),
        _row("write, up to 288 KiB of whole blocks", lambda p, i: _write(p, BLOCK, i),
             **ONLY_OPEN),
        _row("write, up to 32 MiB of whole blocks", lambda p, i: _write(p, WIDE, i + 1),
             **ONLY_OPEN),
        _row("write of part of a block", lambda p, i: _write(p, np.s_[20:23, 0:5, 0:5], i),
             **ONLY_OPEN),
        _row("write of parts of 8 blocks of one segment",
             lambda p, i: _write(p, np.s_[20:28, 4:12, 4:12], i), **ONLY_OPEN),
        _row("`array.batch` of 3 writes", _batch, **ONLY_OPEN),
        _row("`array.snapshot`", lambda p, i: p.array.snapshot()),
        _row("`array.plane` through 16 blocks",
             lambda p, i: p.array.plane((20, 0, 0), (0, 1, 0), (0, 0, 1), (32, 32))),
        _row("`array.write_plane` through 16 blocks",
             lambda p, i: p.array.write_plane((20, 0, 0), (0, 1, 0), (0, 0, 1),
                                              RANDOM[i, :32, :32]), **ONLY_OPEN),
        _row("`array.pyramid`, `array.level`", lambda p, i: (p.array.pyramid(), p.array.level(1))),
        _row("read 1 block of `array.level(1)` that is not stored",
             lambda p, i: p.array.level(1)[:8, :8, :8]),
        # How often its threads ask for the same varies where there is something to do.
        _row("`array.update_pyramid` with nothing to do", lambda p, i: p.array.update_pyramid(2),
             alters=True, before=lambda p, i: p.array.update_pyramid(2)),
        _row("`array.to_dask`, `compute` of 64 blocks",
             lambda p, i: p.array.to_dask(MANY).compute(scheduler="sync")),
        _row("`array.from_dask`, 2 chunks",
             lambda p, i: p.array.from_dask(_dask(i), scheduler="sync"), **ONLY_OPEN),
    ],
    "Write sessions": [
        _row("`array.session`", _begin, **ONLY_OPEN),
        _row("3 writes through one object, each up to 288 KiB: `session.write`", _three,
             **ONLY_OPEN, before=_begin),
        _row("`session.commit` of 3 parts", lambda p, i: p.session.commit(), **ONLY_OPEN,
             before=_begun),
        _row("`session.discard` of 3 parts", lambda p, i: p.session.discard(), **ONLY_OPEN,
             before=_begun),
        _row("`array.session(resume=)`", lambda p, i: p.array.session(resume=p.session.id),
             **ONLY_OPEN, before=_begin),
        _row("`array.sessions`", lambda p, i: p.array.sessions()),
        _row("`session.parts`, `session.array`", lambda p, i: (p.session.parts(), p.session.array),
             **ONLY_OPEN, before=_begun),
    ],
    "Files and other keyvalue arrays": [
        _row("`repo.files`", lambda p, i: p.repo.files),
        _row("`repo.upload_filedata`, up to 288 KiB", lambda p, i:
             p.repo.upload_filedata("small", b"%d" % i), **ONLY_OPEN),
        _row("`repo.upload_filedata`, more", lambda p, i:
             p.repo.upload_filedata("large", LARGE[i:]), **ONLY_OPEN),
        _row("`repo.download_filedata`, up to 256 bytes",
             lambda p, i: p.repo.download_filedata("small")),
        _row("`repo.download_filedata`, more", lambda p, i: p.repo.download_filedata("large")),
        _row("`repo.list_files`", lambda p, i: p.repo.list_files()),
        _row("`repo.delete_file`", lambda p, i: p.repo.delete_file(["small", "large", "more"][i]),
             **ONLY_OPEN),
        _row("`files.put_many` of 3", lambda p, i:
             p.files.put_many(dict.fromkeys("abc", b"%d" % i)), **ONLY_OPEN),
        _row("`files.delete_many` of 3",
             lambda p, i: p.files.delete_many([["small", "large", "more"][i], "x", "y"]),
             **ONLY_OPEN),
        _row("`files.get`, `in`, up to 256 bytes",
             lambda p, i: (p.files.get("small"), "small" in p.files)),
        _row("`files.find`, more than 256 bytes", lambda p, i: p.files.find("large")),
        _row("`files.get_many`, `files.sizes` of 2, 1 of more than 256 bytes", lambda p, i:
             (list(p.files.get_many(["small", "large"])), list(p.files.sizes(["small", "large"])))),
        _row("`files.keys`, `len`", lambda p, i: (list(p.files.keys()), len(p.files))),
        _row("`files.items`, 1 of more than 256 bytes", lambda p, i: list(p.files.items())),
    ],
}  # fmt: skip
ROWS = {row.name: row for group in GROUPS.values() for row in group}

# Not a call, or nothing that another row does not say.
PLAIN = {
    "DicedStore": {"renew", "closed", "acting", "batch_bytes", "serve"},
    "DicedRepo": set(),
    "DicedArray": {"describe"},
    "KeyValueArray": {"describe", "name", "kind", "versioned", "locked", "attrs"},
    "WriteSession": {"begin", "resume", "store"},
}


def _dask(i):
    import dask.array

    return dask.array.from_array(RANDOM[i : i + 16, :8, :8].copy(), chunks=(8, 8, 8))


# -- measuring -----------------------------------------------------------------------------


class Clock:
    """Inside, the time can be put forward."""

    def __init__(self):
        self.ahead = 0.0

    def __enter__(self):
        plain = self._plain = time.monotonic
        time.monotonic = lambda: plain() + self.ahead
        return self

    def __exit__(self, *_error):
        time.monotonic = self._plain


def settle():
    """Wait for what goes on behind the calls."""
    for thread in threading.enumerate():
        if thread.name.startswith("diced-sweep"):
            thread.join()


def measure(server, names=None, each=None):
    """Return what `COUNTS` should say; `each` is called after every call of a row."""
    found: dict[str, dict[str, list[str]]] = {}
    shared = build(server.url())
    with Clock() as clock:
        for name in ROWS if names is None else names:
            row = ROWS[name]
            found[name] = {}
            for version in row.versions:
                url = build(server.url()) if row.alters else shared
                place = Place(url, version, row.needs)
                cells = []
                for i, when in enumerate(TIMES):
                    if row.before is not None:
                        row.before(place, i)
                    settle()
                    clock.ahead += 2 * MAX_AGE * (when == "later")
                    server.clear()
                    if name != "`store.close`" or i == 0:
                        row.run(place, i)
                    settle()
                    cells.append(_cell(server.count()))
                    if each is not None:
                        each(name, version, when)
                found[name][version] = cells
                if row.needs != "nothing":
                    place.store.close()
    return found


def _cell(counts):
    """Return counts as ``1l 2g``: letters of operations after their numbers."""
    return " ".join(f"{counts[each]}{LETTERS[each]}" for each in LETTERS if counts.get(each))


# -- the page ------------------------------------------------------------------------------


def markdown():
    """Return the tables of the page."""
    lines = []
    for title, rows in GROUPS.items():
        both = any(len(row.versions) == 2 and _differ(row) for row in rows)
        heads = ["first", "again", "later"]
        if both:
            heads = [f"{each}, {at}" for at in ("open", "locked") for each in heads]
        lines += [f"### {title}", "", "| call | " + " | ".join(heads) + " |"]
        lines += ["|---" * (len(heads) + 1) + "|"]
        for row in rows:
            cells: list[str] = []
            for version in ("open", "locked") if both else row.versions[:1]:
                cells += COUNTS[row.name].get(version, ["-"] * 3)
            lines.append("| " + " | ".join([row.name, *map(_words, cells)]) + " |")
        lines.append("")
    return "\n".join(lines)


def _differ(row):
    counts = COUNTS[row.name]
    return counts["open"] != counts["locked"]


def _words(cell):
    if cell in ("", "-"):
        return {"": "0", "-": ""}[cell]
    return ", ".join(f"{part[:-1]} {WORDS[part[-1]]}" for part in cell.split())


def _split(page):
    before, rest = page.split(BEGIN)
    shown, after = rest.split(END)
    return before, shown, after


def write_docs():
    """Put the tables into the page."""
    before, _, after = _split(PAGE.read_text())
    PAGE.write_text(before + BEGIN + markdown() + END + after)


def update(server):
    """Measure, and write down what was found: for the tests, and on the page."""
    COUNTS.update(measure(server))
    lines = [
        f"    {json.dumps(name)}: {{\n"
        + "".join(f'        "{at}": {json.dumps(cells)},\n' for at, cells in COUNTS[name].items())
        + "    },\n"
        for name in ROWS
    ]
    head = TABLE.read_text().partition("= {\n")[0]
    TABLE.write_text(f"{head}= {{\n{''.join(lines)}}}\n")
    write_docs()


# -- tests ---------------------------------------------------------------------------------


def test_each_call_makes_the_requests_that_are_written_down(gcs):
    gcs.clear()  # or skip
    found = measure(gcs)
    wrong = [
        f"{name} at {version}, {when}: {got or 0} wanted {wanted or 0}"
        for name in ROWS
        for version in ROWS[name].versions
        for when, got, wanted in zip(
            TIMES, found[name][version], COUNTS[name][version], strict=True
        )
        if got != wanted
    ]
    assert not wrong, "\n".join(wrong)


def test_the_page_shows_the_same_table():
    assert set(COUNTS) == set(ROWS)
    assert _split(PAGE.read_text())[1] == markdown(), "python -m tests.test_requests --write-docs"


def test_no_public_call_is_left_out():
    shown = {match for name in ROWS for match in re.findall(r"`(\w+)\.(\w+)", name)}
    shown |= {("array", each) for each in DESCRIPTION}
    for kind, called in {
        DicedStore: "store", DicedRepo: "repo", DicedArray: "array", KeyValueArray: "files",
        WriteSession: "session",
    }.items():  # fmt: skip
        public = {each for each in dir(kind) if not each.startswith("_")} - PLAIN[kind.__name__]
        missing = public - {name for of, name in shown if of == called}
        assert not missing, (kind, missing)


def main(argv=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="tests.test_requests", description=__doc__)
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--log", metavar="TEXT")
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args(argv)
    if options.write_docs:
        write_docs()
    if not options.update and options.log is None:
        return
    with fake_gcs.start() as server:
        os.environ.update(server.environ())
        if options.update:
            update(server)
        else:
            show(server, options.log, options.latency)


def show(server, text, latency):
    """Print the requests of calls; with latency, how deep they are, too."""

    def each(name, version, when):
        log = server.log()
        deep = f", {server.depth()} deep" if latency else ""
        print(f"{name} at {version}, {when}: {len(log)}{deep}")
        for request in log:
            key = request.key.partition("/")[2]
            print(f"    {request.start - log[0].start:.3f} {request.operation} {key}"
                  f" {request.status}")  # fmt: skip

    server.latency(latency)
    measure(server, [name for name in ROWS if text in name], each)


if __name__ == "__main__":
    main()
