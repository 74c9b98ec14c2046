"""Network file systems: what clients' caches hide, lost answers, and disks without links.

Most of it runs on a simulated one. Where the variable DICED_TEST_MOUNTS names two mounts of one
directory, separated by a colon, the last tests run on those.
"""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from engine_contract import EngineContract, run_together
from flaky import FlakyOs
from netsim import Client

from diced import (
    AccessError,
    DicedStore,
    EngineError,
    InvalidError,
    UnsupportedError,
    fsck,
    registry,
)
from diced.engine import findings, netfs, open_engine
from diced.engine.local import LocalEngine, open_local


@pytest.fixture
def mount(tmp_path):
    """Make engines of clients of one directory."""
    root = tmp_path / "s"
    root.mkdir()

    def make(network=True, durability="power", naming=None, **behaviour):
        system = Client(**behaviour)
        return LocalEngine(
            str(root), system=system, network=network, durability=durability, naming=naming
        )

    make.root = root
    return make


def looks(engine, key):
    """Look for a key in every way; return what was found, all the same or the test fails."""

    def got(action):
        try:
            return action() == b"there"
        except KeyError:
            return False

    def borrowed():
        handle = engine.borrow(key)
        engine.give_back(handle)
        return b"there"

    found = {
        engine.exists(key),
        key in list(engine.list("")),
        key in list(engine.list(key.rpartition("/")[0])),
        got(lambda: engine.get(key)),
        got(lambda: engine.get(key, 0, 5)),
        got(lambda: engine.peek(key, 5)),
        got(borrowed),
        got(lambda: b"there" if engine.size(key) == 5 else b""),
    }
    assert len(found) == 1, (key, found)
    return found.pop()


@pytest.mark.parametrize("key", ["lane/e0/0001", "a/b", "top-level/x"])
def test_a_new_key_is_seen_at_once(mount, key):
    """Also if its directory was missing when it was looked for."""
    reader, writer = mount(), mount()
    for _ in range(2):
        assert looks(reader, key) is False
    assert writer.put_if_absent(key, b"there", b"t")
    assert looks(reader, key) is True
    assert looks(reader, key.rpartition("/")[0] + "/other") is False
    assert writer.put_if_absent(key.rpartition("/")[0] + "/other", b"there", b"t")
    assert looks(reader, key.rpartition("/")[0] + "/other") is True


def test_the_simulation_hides_what_others_do(mount):
    """Or the tests above and below would pass for any engine."""
    reader, writer = mount(network=False), mount()
    assert not reader.exists("a/b")
    assert list(reader.list("")) == []
    writer.put_if_absent("a/b", b"1", b"t")
    assert not reader.exists("a/b")
    assert list(reader.list("")) == []


def test_on_a_local_disk_nobody_is_asked(tmp_path):
    engine = LocalEngine(str(tmp_path), system=Client(), network=False)
    engine.put_if_absent("a/b", b"1", b"t")
    assert engine.exists("a/b") and not engine.exists("a/c")
    assert list(engine.list("")) == ["a/b"]
    assert engine._os.asked == 0
    assert not open_local(str(tmp_path)).network


def test_a_name_that_seemed_missing_can_be_deleted(mount):
    one, other = mount(), mount()
    assert not one.exists("a/b")
    other.put_if_absent("a/b", b"1", b"t")
    one.delete("a/b")
    assert not os.path.exists(mount.root / "a/b")
    one.delete("a/b")


@pytest.mark.parametrize("durability", ["power", "process"])
def test_growth_is_seen(mount, durability):
    reader, writer = mount(), mount(durability=durability)
    with writer.appender("s") as log:
        for number in range(5):
            offset = log.append([bytes([number]) * 100])
            log.sync()
            assert reader.get(log.key, offset, 100) == bytes([number]) * 100
            out = bytearray(50)
            reader.read_into(log.key, offset + 50, out)
            assert out == bytes([number]) * 50
        with pytest.raises(Exception, match="too short"):
            reader.get(log.key, offset, 101)


def test_bytes_are_synced_for_other_hosts_at_any_durability(tmp_path):
    system = FlakyOs()
    system.ask_server = netfs.ask_server
    engine = LocalEngine(str(tmp_path), durability="process", system=system, network=True)
    for write in (
        lambda: engine.put_if_absent("a/b", b"x", b"t"),
        lambda: engine.put_unique("a", [b"x"]),
    ):
        system.calls.clear()
        write()
        assert "fdatasync" in system.calls
        if "link" in system.calls:
            assert system.calls.index("fdatasync") < system.calls.index("link")
    with engine.appender("a") as log:
        log.append([b"x"])
        system.calls.clear()
        log.sync()
        assert "fdatasync" in system.calls


def test_no_file_without_a_name_on_a_network(mount):
    engine = mount(durability="process")
    with engine.stage("a", b"x", b"t") as staged:
        staged.write()
        assert len(os.listdir(mount.root / ".tmp")) == 1


def test_stale_handles(mount):
    engine = mount()
    keys = [engine.put_unique("a", [bytes([i]) * 100]) for i in range(3)]
    for key in keys:
        engine.get(key, 0, 10)
    assert list(engine.list("")) == sorted(keys)
    engine._os.restart()
    assert list(engine.list("")) == sorted(keys)
    for i, key in enumerate(keys):
        assert engine.get(key, 5, 50) == bytes([i]) * 50
    other = mount()
    engine._os.restart()
    other.delete(keys[0])
    with pytest.raises(KeyError):
        engine.get(keys[0], 5, 50)


# ---- links whose answer is lost


@pytest.mark.parametrize("naming", ["link", "rename"])
def test_lost_answers_and_one_winner(mount, naming):
    engines = [mount(lost=0.4, seed=i, naming=naming) for i in range(3)]
    for round_ in range(40):
        key = f"race/{round_:03d}"
        if round_ % 2:
            for each in engines:
                assert not each.exists(key)
        won = run_together(
            3,
            lambda who, key=key: engines[who].put_if_absent(
                key, b"%d %s" % (who, os.urandom(8)), b"t"
            ),
        )
        assert sorted(won) == [False, False, True]
        assert engines[0].get(key)[:1] == b"%d" % won.index(True)
    assert sum(each._os.lost_links for each in engines) > 3
    assert os.listdir(mount.root / ".tmp") == []


def test_a_lost_answer_when_the_name_cannot_be_read(mount):
    """The count of links is asked of the server, not of the cache."""
    engine = mount(lost=1.0)
    with engine.stage("a", b"mine", b"t") as staged:
        staged.write()
        staged.sync()
        engine._os.stat(staged._temp)  # now one link is remembered
        os.mkdir(mount.root / "a")
        staged._compare = None  # reading it would fail
        assert staged.name("a/b") is True
    assert engine.get("a/b") == b"mine"


def test_a_name_that_was_taken_and_has_gone(mount):
    """Whether it was ours cannot be told, so neither True nor False is right."""
    engine = mount()

    def link(source, target, **options):
        raise FileExistsError(errno.EEXIST, "exists", target)

    engine._os.link = link
    with pytest.raises(EngineError, match="cannot tell"):
        engine.put_if_absent("a/b", b"mine", b"t")


@pytest.fixture
def simulated():
    """A store's scheme: each store is a host of its own, whose links' answers get lost."""
    seeds = iter(range(1000))

    def open_simulated(location, **options):
        options.pop("create")
        return LocalEngine(
            location, system=Client(lost=0.1, seed=next(seeds)), network=True, **options
        )

    registry.register("engine", "netsim", open_simulated, replace=True)
    return "netsim://"


def write_rows(store, who, of, rounds):
    """Write every row that is `who`'s, some times, into blocks that all writers share."""
    array = store.open_repo("r", version="master")["a"]
    for round_ in range(1, rounds + 1):
        for row in range(who, 12, of):
            array[row : row + 1, 0:20] = round_ * 10 + who


def check_rows(store, of, rounds):
    array = store.open_repo("r", version="master")["a"]
    for row in range(12):
        assert (array[row : row + 1, 0:20] == rounds * 10 + row % of).all(), row
    report = fsck.check(store, full=True)
    assert report.ok, report.problems


def make_rows(location):
    with DicedStore(location) as store:
        store.create_repo("r").create_array("a", np.uint16, 2, block_shape=(8, 8))


def test_no_update_is_lost_between_hosts(tmp_path, simulated):
    (tmp_path / "s").mkdir()
    location = f"{simulated}{tmp_path}/s"
    make_rows(location)
    stores = [DicedStore(location) for _ in range(3)]
    run_together(3, lambda who: write_rows(stores[who], who, 3, 4))
    for store in stores:
        check_rows(store, 3, 4)
        store.close()


# ---- disks without links


@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK], ids=errno.errorcode.get
)
@pytest.mark.parametrize("network", [True, False])
def test_without_links_nothing_is_written(mount, network, number):
    engine = mount(network=network, links=False, renames=False)
    engine._nameless = None
    engine._os.links_error = number
    for key in ("a", "a/b/c"):
        with pytest.raises(UnsupportedError, match="link") as caught:
            engine.put_if_absent(key, b"x", b"t")
        assert str(mount.root) in str(caught.value)
        assert "readonly" in str(caught.value)
        assert list(engine.list("")) == []
    assert os.listdir(mount.root / ".tmp") == []
    (mount.root / "k").write_bytes(b"1")
    reader = mount(network=network, links=False)
    assert reader.get("k") == b"1"


def test_a_store_is_refused_without_links_and_read_nevertheless(tmp_path, monkeypatch):
    system = Client(links=False)

    def open_linkless(location, **options):
        options.pop("create")
        return LocalEngine(location, system=system, network=True, **options)

    registry.register("engine", "linkless", open_linkless, replace=True)
    with pytest.raises(UnsupportedError, match="link"):
        DicedStore(f"linkless://{tmp_path}")
    assert os.listdir(tmp_path) in ([], [".tmp"])
    with DicedStore(tmp_path) as store:
        store.create_repo("r").create_array("a", np.uint8, 1)[0:5] = 3
    with DicedStore(f"linkless://{tmp_path}", readonly=True) as store:
        assert (store.open_repo("r")["a"][0:5] == 3).all()
    with DicedStore(f"linkless://{tmp_path}") as store, pytest.raises(UnsupportedError):
        store.open_repo("r")["a"][0:5] = 4
    with DicedStore(tmp_path) as store:
        assert (store.open_repo("r")["a"][0:5] == 3).all()
        assert fsck.check(store, full=True).ok


def test_a_link_that_is_not_permitted_is_no_lack_of_links(mount):
    engine = mount()
    real = engine._os.link

    def link(source, target, **options):
        if "/.tmp/" not in target:
            raise PermissionError(errno.EPERM, "immutable", target)
        real(source, target, **options)

    engine._os.link = link
    with pytest.raises(AccessError):
        engine.put_if_absent("a/b", b"x", b"t")
    assert os.listdir(mount.root / ".tmp") == []


@pytest.mark.parametrize(("hosts", "used"), [(1, False), (2, True)])
def test_renaming_after_a_probe_of_two_hosts(mount, hosts, used):
    engine = mount(links=False)
    findings.save(engine, {"naming": "rename", "writers": True, "hosts": hosts, "time": "2"})
    if used:
        assert engine.put_if_absent("a/b", b"x", b"t") is True
        assert engine.put_if_absent("a/b", b"y", b"t") is False
        assert engine.get("a/b") == b"x"
    else:
        with pytest.raises(UnsupportedError):
            engine.put_if_absent("a/b", b"x", b"t")


def test_renaming_of_the_real_system(tmp_path):
    """Where the kernel offers it; else it is refused as a whole."""
    with open_local(str(tmp_path / "s"), naming="rename") as engine:
        try:
            assert engine.put_if_absent("a/b", b"first", b"t") is True
        except UnsupportedError as error:
            assert "rename" in str(error)
            assert list(engine.list("")) == []
            return
        assert engine.put_if_absent("a/b", b"first", b"t") is True
        assert engine.put_if_absent("a/b", b"other", b"t") is False
        won = run_together(8, lambda who: engine.put_if_absent("c", b"%d" % who, b"t"))
        assert sorted(won) == [False] * 7 + [True]
        assert engine.get("c") == b"%d" % won.index(True)
        assert os.listdir(tmp_path / "s/.tmp") == []


def test_unknown_naming(tmp_path):
    with pytest.raises(InvalidError, match="copy"):
        open_local(str(tmp_path), naming="copy")


# ---- the parts


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "lustre", "gpfs", "ceph", "9p", "virtiofs", "cifs",
                                  "fuse", "fuse.sshfs", "fuse.gcsfuse"])  # fmt: skip
def test_network_file_systems(kind):
    assert netfs.is_network(kind)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", "zfs", None]
)
def test_local_file_systems(kind):
    assert not netfs.is_network(kind)


@pytest.mark.parametrize("statx", [True, False])
def test_asking_the_server(tmp_path, monkeypatch, statx):
    if not statx:
        monkeypatch.setattr(netfs, "_function", lambda *names: None)
    file = tmp_path / "é"
    file.write_bytes(b"x")
    assert netfs.ask_server(str(file)) == 1
    os.link(file, tmp_path / "b")
    assert netfs.ask_server(str(file)) == 2
    assert netfs.ask_server(str(tmp_path)) >= 1
    with pytest.raises(FileNotFoundError):
        netfs.ask_server(str(tmp_path / "absent"))


class TestNetworkEngine(EngineContract):
    """The contract, with every look taken twice."""

    @pytest.fixture
    def location(self, tmp_path, monkeypatch):
        monkeypatch.setattr("diced.engine.local.file_system", lambda path: "nfs4")
        return str(tmp_path / "store")


# ---- two mounts of one directory


@pytest.fixture
def mounts():
    """A directory on each of two mounts that is the same one."""
    given = os.environ.get("DICED_TEST_MOUNTS", "")
    if not given:
        pytest.skip("DICED_TEST_MOUNTS names no two mounts of one directory")
    name = os.urandom(6).hex()
    places = [os.path.join(each, name) for each in given.split(":")]
    os.mkdir(places[0])
    return places


if "DICED_TEST_MOUNTS" in os.environ:

    class TestMount(EngineContract):
        @pytest.fixture
        def location(self, mounts):
            return mounts[0] + "/store"


def test_new_keys_across_mounts(mounts):
    with open_engine(mounts[0]) as here, open_engine(mounts[1]) as there:
        assert here.network and there.network
        for number in range(30):
            key = f"lane/{number // 10}/{number}"
            assert looks(there, key) is False
            assert here.put_if_absent(key, b"there", b"t")
            assert looks(there, key) is True
            assert there.put_if_absent(key, b"other", b"t") is False


def test_one_winner_across_mounts(mounts):
    engines = [open_engine(each) for each in mounts * 2]
    for round_ in range(50):
        key = f"race/{round_:03d}"
        won = run_together(
            4, lambda who, key=key: engines[who].put_if_absent(key, b"%d" % who, b"t")
        )
        assert sorted(won) == [False] * 3 + [True]
        assert engines[0].get(key) == engines[1].get(key) == b"%d" % won.index(True)


def test_growth_across_mounts(mounts):
    with (
        open_engine(mounts[0], durability="process") as here,
        open_engine(mounts[1]) as there,
        here.appender("s") as log,
    ):
        for number in range(30):
            offset = log.append([bytes([number]) * 700])
            log.sync()
            assert there.get(log.key, offset, 700) == bytes([number]) * 700


WRITER = """
import sys
sys.path.insert(0, sys.argv[4])
from test_shared_disks import write_rows
from diced import DicedStore
with DicedStore(sys.argv[1]) as store:
    write_rows(store, int(sys.argv[2]), 4, int(sys.argv[3]))
"""


def test_no_update_is_lost_across_mounts(mounts):
    make_rows(mounts[0] + "/store")
    here = os.path.dirname(__file__)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, mounts[who % 2] + "/store", str(who), "5", here]
        )
        for who in range(4)
    ]
    assert [each.wait(600) for each in writers] == [0] * 4
    for each in mounts:
        with DicedStore(each + "/store") as store:
            check_rows(store, 4, 5)
