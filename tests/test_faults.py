"""Every call to the operating system fails once: nothing acknowledged is lost, nothing is half.

Each operation of a user's runs on a copy of a small store with its k-th call failing, for every
k. Then a healthy process reads: an acknowledged operation is there, another is absent or whole, a
retry succeeds, and fsck finds no error.
"""

import errno
import shutil

import numpy as np
import pytest
from flaky import FlakyOs

from diced import (
    AccessError,
    DicedException,
    DicedStore,
    EngineError,
    LocationError,
    NoSpaceError,
    NotFoundError,
    fsck,
    registry,
    storefile,
)
from diced.engine import open_engine
from diced.engine.local import LocalEngine

DATA = np.arange(20 * 20, dtype=np.uint16).reshape(20, 20)
FAULTS = {
    "full": {"number": errno.ENOSPC},
    "io": {"number": errno.EIO},
    "io after": {"number": errno.EIO, "after": True},
    "short": {"short": True},
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store with two versions, of which the newest is open and has an array and a file."""
    path = tmp_path_factory.mktemp("template") / "store"
    with DicedStore(path, durability="process") as store:
        repo = store.create_repo("r")
        array = repo.create_array("a", np.uint16, 2, block_shape=(8, 8))
        array[0:20, 0:20] = DATA
        repo.files["f"] = b"old" * 200
        repo.lock_node("first")
        repo.change_version(repo.create_branch("second"))
        array[0:4, 0:4] = 9
    return path


@pytest.fixture
def flaky(monkeypatch):
    """Open a store whose operating system is a FlakyOs."""
    system = FlakyOs()

    def open_flaky(location, **options):
        options.pop("create")
        return LocalEngine(location, system=system, **options)

    registry.register("engine", "flaky", open_flaky, replace=True)
    return system


def open_second(store):
    return store.open_repo("r", version="master")


def write(repo):
    repo["a"][3:18, -5:13] = 7


def was_written(repo):
    values = set(np.unique(repo["a"][3:18, -5:13]).tolist())
    return values == {7} if 7 in values and (repo["a"][3:18, -5:-1] == 7).all() else None


def put(repo):
    repo.files.put_many({"f": b"new" * 300, "g": b"g"})


def was_put(repo):
    found = (repo.files["f"][:3], repo.files.get("g"))
    return {(b"new", b"g"): True, (b"old", None): None}.get(found, False)


def create(repo):
    repo.create_array("b", np.uint8, 1)[0:9] = 3


def was_created(repo):
    return True if "b" in repo and (repo["b"][0:9] == 3).all() else None


def lock(repo):
    repo.lock_node("done")


def was_locked(repo):
    return True if repo.locked else None


OPERATIONS = {
    "write": (write, was_written),
    "put": (put, was_put),
    "create": (create, was_created),
    "lock": (lock, was_locked),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call_failing_once(tmp_path, template, flaky, name, fault):
    operation, was_done = OPERATIONS[name]
    k = 0
    while True:
        path = tmp_path / str(k)
        shutil.copytree(template, path)
        flaky.fail_at = None
        store = DicedStore(f"flaky://{path}", durability="power", threads=1)
        repo = open_second(store)
        vars(flaky).update(FAULTS["io"] | {"after": False, "short": False} | FAULTS[fault])
        flaky.calls.clear()
        flaky.fail_at = k
        error = None
        try:
            operation(repo)
        except DicedException as raised:
            error = raised
        reached = len(flaky.calls) > k
        flaky.fail_at = None
        if error is not None:
            assert isinstance(error, NoSpaceError if fault == "full" else EngineError), error
        with DicedStore(path, create=False) as healthy:
            repo = open_second(healthy)
            done = was_done(repo)
            assert done is not False, f"half done after call {k}"
            assert done or error is not None, f"acknowledged but lost after call {k}: {error!r}"
            assert (repo["a"][18:20, 15:20] == DATA[18:20, 15:20]).all()
            if not done:
                try_again(operation, repo)
                assert was_done(open_second(healthy)) is True
            report = fsck.check(healthy, full=True)
            assert report.ok, (k, report.problems)
        store.close()
        shutil.rmtree(path)
        if not reached:
            assert error is None
            assert k > 5
            return
        k += 1


def try_again(operation, repo):
    if operation is create and "b" in repo:
        repo["b"][0:9] = 3  # the creation had been acknowledged, the write not
    else:
        operation(repo)


def test_a_store_that_another_process_makes_meanwhile(tmp_path, monkeypatch):
    with open_engine(str(tmp_path)) as engine:
        uuid = storefile.open_store(engine, True)
        get, asked = engine.get, []

        def late(key, *more):
            asked.append(key)
            if len(asked) == 1:
                raise NotFoundError(key)
            return get(key, *more)

        monkeypatch.setattr(engine, "get", late)
        assert storefile.open_store(engine, True) == uuid
        assert len(asked) == 2


def test_places_that_cannot_be_opened(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a store")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "something").write_text("else")
    for place, why in [
        (file, "not a directory"),
        (folder, "neither a diced store nor empty"),
        (file / "below", "not"),
        ("gopher://x", "gopher"),
    ]:
        with pytest.raises(LocationError, match=why):
            DicedStore(place)
    with pytest.raises(LocationError, match="no"):
        DicedStore(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()


def test_refused_access_is_named(tmp_path, template, flaky):
    path = tmp_path / "s"
    shutil.copytree(template, path)
    store = DicedStore(f"flaky://{path}")
    repo = open_second(store)
    vars(flaky).update({"number": errno.EACCES, "after": False, "short": False})
    write(repo)
    flaky.calls.clear()
    repo["a"][0, 0] = 4
    flaky.fail_at = flaky.calls.index("link")
    flaky.calls.clear()
    with pytest.raises(AccessError, match="ermission"):
        repo["a"][0, 0] = 5
    assert repo["a"][0, 0] == 4
    store.close()
