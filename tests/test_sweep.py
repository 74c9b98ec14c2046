"""Sweeping what was deleted: however often that is stopped, and nothing else."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deletions import (
    ABROAD,
    BOX,
    PLACES,
    at,
    fill,
    lane,
    objects,
    open_,
    place,  # noqa: F401 - a fixture
)

from diced import fsck, keys
from diced import handle as handles
from diced.cli.main import main
from diced.errors import EngineError
from diced.repo import FILES


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let handles at locked versions ask each time whether their array was deleted."""
    monkeypatch.setattr(handles, "LOCKED_AGE", 0.0)



@at(*PLACES)
@pytest.mark.parametrize("what", ["repo", "array"])
def test_a_sweep_goes_on_after_an_error_at_any_deletion(
    url: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_(url)
    monkeypatch.setattr(store, "_sweep_later", lambda *_: None)
    repo, _ = fill(store, versions=2), fill(store, "kept", "a")
    home, dead = repo._history.home.prefix, lane(repo, "a")
    real, every = store.engine.delete, list[int]()
    doomed = len(objects(url, home if what == "repo" else dead))
    store.delete_repo("r") if what == "repo" else repo.delete_array("a")

    def delete(key: str) -> None:
        every.append(1)
        if len(every) == failures + 1:
            raise EngineError("not now")
        real(key)

    monkeypatch.setattr(store.engine, "delete", delete)
    failures = 0
    while failures < 200:
        every.clear()
        try:
            store.sweep()
            break
        except EngineError:
            failures += 1
    assert 3 < failures <= doomed + 50
    assert objects(url, home if what == "repo" else dead) == []
    assert store.sweep() == 0 and fsck.check(store, full=True).problems == []
    assert store.open_repo("kept")["a"][BOX].any()


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import far
from diced import DicedStore
print("ready", flush=True)
with DicedStore({url!r}, durability="process", max_age=0) as store:
    store.sweep()
"""


@at(*ABROAD)
def test_a_sweep_goes_on_after_a_kill(url: str) -> None:
    store = open_(url)
    kept = fill(store, "kept", "abc")
    for name in "rst":
        fill(store, name, "ab", 2)
    repo = store.open_repo("t")
    store._sweep_later = lambda *_: None  # type: ignore[method-assign]
    for name in "rs":
        store.delete_repo(name)
    kept.delete_array("b")
    code = CHILD.format(tests=str(Path(__file__).parent), url=url)
    rng = random.Random(3)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.005, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert kept["a"][BOX].any() and repo["b"][BOX].any()
    store.sweep()
    homes = {key.split("/")[1] for key in objects(url)}
    assert homes == {kept._id, repo._id}
    with open_(url) as other:
        assert other.sweep() == 0 and fsck.check(other, full=True).ok
        assert other.open_repo("kept")["c"][BOX].any()


@at(*PLACES)
def test_two_sweep_beside_readers_and_writers(url: str) -> None:
    store, other = open_(url), open_(url)
    for each in (store, other):
        each._sweep_later = lambda *_: None  # type: ignore[method-assign]
    kept = fill(store, "kept", "abc")
    gone = [fill(store, name) for name in "xyz"]
    array = other.open_repo("kept")["a"]
    for name in "xyz":
        store.delete_repo(name)
    kept.delete_array("b")
    with ThreadPoolExecutor(4) as threads:
        sweeps = [threads.submit(each.sweep) for each in (store, other)]
        for value in range(1, 9):
            array[0:8, 0:8, 0:8] = value
            assert (kept["a"][0:8, 0:8, 0:8] == value).all() and kept["c"][BOX].any()
        assert sum(each.result() for each in sweeps) > 0
    for repo in gone:
        assert objects(url, repo._history.home.prefix) == []
    assert store.sweep() == 0 and fsck.check(other, full=True).problems == []


@at(*PLACES)
def test_what_only_a_dead_array_refers_to_goes_and_no_more(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diced.compose.RIDING_BYTES", 0)
    store = open_(url)
    repo = fill(store, "r", "ab", 3)
    going = repo["a"].session()
    going[BOX] = 4
    home, expected = repo._history.home.prefix, repo["b"][BOX]
    packs, segments = objects(url, keys.pages(home)), objects(url, keys.segments(home))
    repo.delete_array("a")
    assert store.sweep() > 0
    assert len(objects(url, keys.pages(home))) < len(packs)
    left = objects(url, keys.segments(home))
    if store.engine.grows:
        assert left == segments  # a process has one for all arrays
    else:
        assert len(left) == 3 * 3 + 3  # of what was written to the other, and the files
    found = open_(url).open_repo("r")
    for node in found.versions():
        found.change_version(node.uuid)
        assert found["b"][BOX].any() and found["b"].bounds is not None
        assert len(found[FILES]["notes"]) == 900
    found.change_version(repo.uuid)
    assert np.array_equal(found["b"][BOX], expected)
    assert fsck.check(store, full=True).problems == []


# -- behind the calls --------------------------------------------------------------------------


@at(*PLACES)
def test_it_is_swept_behind_the_call_and_errors_stay_there(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_(url)
    repo, prefix = fill(store), ""
    prefix = lane(repo, "a")
    with monkeypatch.context() as patch:
        patch.setattr(store.engine, "delete", refuse)
        repo.delete_array("a")
        wait()
    assert objects(url, prefix) != []
    with open_(url) as other:
        other.open_repo("r")  # goes on with it
        wait()
        assert objects(url, prefix) == []
        home = repo._history.home.prefix
        other.delete_repo("r")
        wait()
        assert objects(url, home) == []
        assert other.sweep() > 0 == other.sweep()  # tells what was removed meanwhile


def refuse(key: str) -> None:
    """Stand in for a deletion."""
    raise EngineError(f"{key} stays")


def wait() -> None:
    """Wait for background sweeps."""
    for thread in threading.enumerate():
        if thread.name == "diced-sweep":
            thread.join()


EXIT = """
from diced import DicedStore
store = DicedStore({url!r}, durability="process")
for name in "rst":
    store.delete_repo(name)
"""


@at(*ABROAD)
def test_the_interpreter_ends_beside_a_sweep(url: str) -> None:
    with open_(url) as store:
        for name in "rst":
            fill(store, name)
    code = EXIT.format(url=url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    with open_(url) as store:
        assert store.list_repos() == []
        store.sweep()
    assert objects(url) == []


@at("disk")
def test_no_directory_is_left(url: str, tmp_path: Any) -> None:
    with open_(url) as store:
        repo = fill(store)
        prefix = lane(repo, "a")
        repo.delete_array("a")
        store.sweep()
        assert not (tmp_path / "s" / prefix).exists()
        store.delete_repo("r")
        store.sweep()
    assert not (tmp_path / "s" / "r").exists() or not list((tmp_path / "s" / "r").iterdir())


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run a command and return what it printed."""

    def run(*argv: str) -> str:
        capsys.readouterr()
        assert main([*argv]) == 0
        return capsys.readouterr().out

    yield run


@at("disk")
def test_commands_say_what_they_removed(url: str, said: Callable[..., str]) -> None:
    with open_(url) as store:
        repo = fill(store)
        many = len(objects(url, lane(repo, "a")))
    assert f"deleted array 'a' and removed {many} objects" in said("delete", url, "r", "a", "-y")
    many = len(objects(url))
    assert f"deleted repo 'r' and removed {many} objects" in said("delete", url, "r", "-y")
    assert "removed 0 objects" in said("sweep", url)
    with open_(url) as store:
        home = keys.record(keys.lane(keys.repo_home(keys.new_id()), "meta", keys.NO_NODE), 1)
        store.engine.put_if_absent(home, b"", b"0" * 16)
    assert "removed 0 objects" in said("sweep", url)
    assert "removed 1 object" in said("sweep", url, "--orphans")
