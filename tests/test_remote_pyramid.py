"""Pyramids over ``dvid://``: the same as at a path, on our server; what Janelia's has of them."""

import pickle

import dask
import fake_dvid
import numpy as np
import pytest
from scaling import BLOCK, WHOLE, noise
from serving import serving

from diced import (
    AccessError,
    AlreadyExistsError,
    BadIndexError,
    DicedStore,
    EngineError,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from diced.downsample import reduce
from diced.server import native_pyramid, scales

ABOUT = ("name", "kind", "dtype", "numdims", "channels", "block_shape", "codec", "units",
         "voxel_size", "bounds", "shape", "versioned", "locked", "islabel3D", "number")  # fmt: skip


@pytest.fixture
def store(server):
    with DicedStore(server.url.replace("http", "dvid"), user="ann", patience=20.0) as store:
        yield store


@pytest.fixture
def repo(store):
    return store.create_repo("r")


@pytest.fixture
def em(repo):
    em = repo.create_array("em", "uint8", block_shape=BLOCK, voxel_size=(40, 8, 8), units="nm")
    em[WHOLE] = noise(0)
    return em


def local(server, array):
    """Return the server's own array, at the version of a remote one."""
    return server.store.open_repo(uuid=array._repo.uuid)[array.name]


def assert_same(here, there):
    """Check that two pyramids are the same to whoever reads them."""
    assert len(here) == len(there) and here.method == there.method
    assert here.steps[: here.top] == there.steps[: there.top]
    for mine, other in zip(here[1:], there[1:], strict=True):
        for name in ABOUT:
            assert getattr(mine, name) == getattr(other, name), (mine, name)
        assert np.array_equal(mine.fill, other.fill)
        assert sorted(mine.blocks()) == sorted(other.blocks())
        np.testing.assert_array_equal(mine[...], other[...])


# -- reading -------------------------------------------------------------------------------


def test_a_level_reads_as_at_a_path(server, em):
    level, other = em.level(1), local(server, em).level(1)
    assert level.source is em and level.number == 1 and em.level(0) is em
    for index in (..., (slice(-4, 10, 3), 5, slice(27, -5, -2)), (0, 0, 0), (slice(0, 2),) * 3,
                  np.s_[1000:1002, 0:2, 0:2], np.s_[-30:40, 3, :]):  # fmt: skip
        np.testing.assert_array_equal(level[index], other[index])
    out = np.empty((4, 4, 4), np.uint8)
    assert level.read(np.s_[0:4, 0:4, 0:4], out=out) is out
    np.testing.assert_array_equal(out, other[0:4, 0:4, 0:4])
    np.testing.assert_array_equal(np.asarray(level), np.asarray(other))
    place = (0.5, 1, 2), (0.2, 1, 0), (0, 0.1, 1), (9, 11)
    np.testing.assert_array_equal(level.plane(*place), other.plane(*place))
    np.testing.assert_array_equal(level.to_dask(np.s_[0:9, 1, 3:8]).compute(), other[0:9, 1, 3:8])
    again = pickle.loads(pickle.dumps(level))
    assert again.bounds == other.bounds and again.voxel_size == other.voxel_size
    np.testing.assert_array_equal(again[...], other[...])
    assert dict(level.attrs) == {} and "level 1" in repr(level) and "0 stored" in repr(em.pyramid())
    assert [each.name for each in em.pyramid()] == ["em", "em_1", "em_2", "em_3"]
    assert em.pyramid()[-1].number == 3
    with pytest.raises(BadIndexError):
        em.pyramid()[4]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ({"dtype": "uint8", "fill": 7}, {}),
        ({"dtype": "uint8", "codec": "jpeg:80"}, {}),
        ({"dtype": "float32", "units": "nm"}, {"axes": [1, 2]}),
        ({"dtype": "uint16", "channels": 3}, {"method": "nearest"}),
        ({"dtype": "uint8", "voxel_size": (40, 8, 8)}, {"axes": "isotropic"}),
        ({"dtype": "uint8", "versioned": False}, {"axes": (0,), "method": "mode"}),
        ({"islabel3D": True, "block_shape": (16, 16, 16)}, {}),
    ],
)
def test_all_kinds_of_arrays(server, repo, kind, how, stored):
    array = repo.create_array("a", **{"block_shape": BLOCK, **kind})
    tail = () if array.channels is None else (array.channels,)
    values = np.random.default_rng(2).integers(0, 9, (30, 21, 40, *tail)).astype(array.dtype)
    array[-7:23, 3:24, 0:40] = values
    other = local(server, array)
    if stored:
        assert array.update_pyramid(3, **how) > 0
        assert_same(array.pyramid(), other.pyramid())
        assert array.pyramid().status() == other.pyramid().status() != []
        kept = repo["a_1"]
        assert kept.kind == array.kind
        np.testing.assert_array_equal(kept[...], other.level(1)[...])
    assert_same(array.pyramid(3, **how), other.pyramid(3, **how))
    array[0:9, 5:9, 30:33] = 3
    assert_same(array.pyramid(3, **how), other.pyramid(3, **how))
    assert array.pyramid(3, **how).status() == other.pyramid(3, **how).status()


def test_dask_tells_levels_apart_that_are_made_differently(em):
    levels = [em.pyramid(1, **how)[1] for how in ({}, {"method": "nearest"}, {"axes": [2]})]
    em._repo.lock_node("so that tokens are of content")
    found = dask.compute(*(each.to_dask() for each in levels))
    for each, values in zip(levels, found, strict=True):
        np.testing.assert_array_equal(values, each[...])


def test_a_server_that_ends_stops_an_update(server, em):
    server.app.site.ending = True
    told = server.post(f"node/{em._repo.uuid}/em/diced/pyramid", {"levels": 2}).json
    assert told["complete"] is False and list(told["blocks"]) == ["1"]
    server.app.site.ending = False
    assert server.post(f"node/{em._repo.uuid}/em/diced/pyramid").json["complete"] is True


@pytest.mark.parametrize("shape", [(40,), (30, 20)])
def test_fewer_dimensions(server, repo, shape):
    array = repo.create_array("a", "int16", dims=len(shape), block_shape=(8,) * len(shape), fill=-1)
    array[tuple(slice(-3, n) for n in shape)] = 100
    assert_same(array.pyramid(2), local(server, array).pyramid(2))


def test_lossy_arrays_are_read_without_their_jpeg(server, repo):
    array = repo.create_array("a", "uint8", codec="jpeg:80")
    array[0:64, 0:64, 0:64] = noise(3, shape=(64, 64, 64))
    wanted = local(server, array).level(1)[...]
    with DicedStore(repo.store.url, jpeg=True) as other:
        np.testing.assert_array_equal(other.open_repo("r")["a"].level(1)[...], wanted)


def test_an_empty_array(repo):
    array = repo.create_array("a", "uint8", block_shape=BLOCK, fill=9)
    assert len(array.pyramid()) == 1 and array.update_pyramid() == 0
    assert array.level(2).bounds is None and array.level(2).shape == (0, 0, 0)
    assert array.level(2)[0, 0, 0:3].tolist() == [9, 9, 9]


# -- storing -------------------------------------------------------------------------------


def test_updates_after_edits(server, em):
    calls = []
    assert em.update_pyramid(3, progress=lambda *told: calls.append(told)) > 0
    assert [level for level, _ in calls] == [1, 2, 3]
    other = local(server, em)
    assert all(each["complete"] for each in em.pyramid().status())
    em[0:5, 7:20, 3:9] = 200
    assert not any(each["complete"] for each in em.pyramid().status())
    assert_same(em.pyramid(), other.pyramid())
    assert em.update_pyramid() == 2 + 1 + 1  # as at a path
    assert em.update_pyramid() == 0
    assert em.pyramid().status() == other.pyramid().status()
    assert [log["user"] for log in em._repo.operations()][-1] == "ann"


def test_an_update_is_many_requests(server, em, monkeypatch):
    wanted = local(server, em).level(3)[...]
    monkeypatch.setattr(native_pyramid, "SECONDS", 0)
    monkeypatch.setattr("diced.levels.COMMIT_BYTES", 4 * 8**3)
    calls = []
    before = em._repo.store.server.requests
    total = em.update_pyramid(3, progress=lambda *told: calls.append(told))
    assert em._repo.store.server.requests - before > 20
    last = dict(calls)
    assert sorted(last) == [1, 2, 3] and sum(last.values()) == total
    assert calls == sorted(calls)  # each level grows, and the next one follows
    assert all(each["complete"] for each in em.pyramid().status())
    np.testing.assert_array_equal(em.level(3)[...], wanted)


def test_partly_stored(server, em, monkeypatch):
    path = f"node/{em._repo.uuid}/em/diced/pyramid"
    monkeypatch.setattr("diced.levels.COMMIT_BYTES", 4 * 8**3)
    told = server.post(path, {"levels": 2, "seconds": 0}).json
    assert told["complete"] is False and list(told["blocks"]) == ["1"]
    status = em.pyramid().status()
    assert [each["complete"] for each in status] == [False, False]
    assert status == local(server, em).pyramid().status()
    assert_same(em.pyramid(), local(server, em).pyramid())


def test_versions(server, repo, em):
    repo.lock_node("first")
    root = repo.uuid
    assert em.locked and em.update_pyramid(2) > 0
    level = em.level(1)
    first = level[...]
    np.testing.assert_array_equal(level.snapshot().read(...), first)
    repo.create_branch()
    repo.change_version(repo.branches()["master"])
    em[0:20, 0:20, 0:20] = 1
    assert level[0, 0, 0] == 1 and not np.array_equal(level[...], first)
    assert_same(em.pyramid(), local(server, em).pyramid())
    assert em.update_pyramid() > 0
    bound = level.to_dask()
    repo.change_version(root)
    np.testing.assert_array_equal(level[...], first)
    assert bound.compute()[16, 0, 8] == 1  # at the version where it was made
    assert [each["complete"] for each in em.pyramid().status()] == [True, True]


def test_deleting(server, repo, em):
    em.update_pyramid(2, axes=[1, 2], method="nearest")
    level = em.level(2)
    wanted = level[...]
    em.pyramid().delete()
    assert "em_1" not in repo and em.pyramid().status() == []
    np.testing.assert_array_equal(level[...], wanted)  # of what it was a handle of
    em.update_pyramid(2)
    with pytest.raises(InvalidError, match="delete it"):  # and of no other one
        level[0, 0, 0]
    with pytest.raises(InvalidError, match="'mean'"):
        em.pyramid(method="nearest")
    assert_same(em.pyramid(), local(server, em).pyramid())
    level = em.level(1)
    repo.delete_array("em")
    with pytest.raises(NotFoundError):
        level[...]
    repo.create_array("em", "uint8")
    with pytest.raises(NotFoundError, match="another"):
        em.pyramid()


def test_a_level_follows_voxel_sizes_that_were_changed(server, repo, em):
    em.update_pyramid(2, axes="isotropic")
    server.post(f"node/{repo.uuid}/em/resolution", [8.0, 8.0, 8.0])
    assert em.voxel_size == (8, 8, 8)
    assert_same(em.pyramid(), local(server, em).pyramid())
    pickled = pickle.loads(pickle.dumps(em.level(2)))
    np.testing.assert_array_equal(pickled[...], em.level(2)[...])


def test_attributes_of_stored_levels(server, em):
    with pytest.raises(ReadOnlyError):
        em.level(1).attrs["a"] = 1
    em.update_pyramid(1)
    em.level(1).attrs["a"] = 1
    assert dict(local(server, em).level(1).attrs) == dict(em.level(1).attrs) == {"a": 1}
    assert dict(em.attrs) == {}


# -- what is refused -----------------------------------------------------------------------


def test_levels_cannot_be_written(repo, em):
    level = em.level(1)
    with pytest.raises(ReadOnlyError, match="'em'"):
        level[0, 0, 0] = 1
    with pytest.raises(ReadOnlyError), level.batch():
        pass
    with pytest.raises(ReadOnlyError):
        level.session()
    with pytest.raises(ReadOnlyError):
        level.write_plane((0, 0, 0), (0, 1, 0), (0, 0, 1), np.zeros((2, 2)))
    with pytest.raises(ReadOnlyError):
        level.from_dask(level.to_dask())
    assert level.sessions() == []
    for call in (level.pyramid, level.update_pyramid, lambda: level.level(1)):
        with pytest.raises(InvalidError):
            call()
    em.update_pyramid(1)
    with pytest.raises(InvalidError):
        repo["em_1"].pyramid()
    with pytest.raises(ReadOnlyError):
        repo["em_1"][0, 0, 0] = 1


@pytest.mark.parametrize(
    "how",
    [{"levels": -1}, {"levels": 99}, {"levels": "2"}, {"levels": True}, {"levels": 1.5},
     {"axes": [3]}, {"axes": []}, {"axes": "stored"}, {"axes": [0.5]}, {"axes": "0,1"},
     {"method": "median"}, {"method": 3}],
)  # fmt: skip
def test_arguments_are_as_at_a_path(server, em, how):
    for array in (em, local(server, em)):
        with pytest.raises(InvalidError):
            array.pyramid(**how)
        with pytest.raises(InvalidError):
            array.update_pyramid(**how)


def test_four_dimensions(repo):
    array = repo.create_array("a", "uint8", dims=4, block_shape=(4,) * 4)
    with pytest.raises(InvalidError, match="dimensions"):
        array.pyramid()


def test_names_that_are_taken(server, repo, em):
    repo.create_array("em_1", "uint8")
    em.update_pyramid(1)
    assert em.level(1).name == local(server, em).level(1).name != "em_1"
    assert_same(em.pyramid(), local(server, em).pyramid())
    with pytest.raises(AlreadyExistsError):
        repo.create_array("em_1", "uint8")


def test_read_only_stores(em):
    with DicedStore(em._repo.store.url, readonly=True) as store:
        array = store.open_repo("r")["em"]
        assert array.level(1)[0, 0, 0] == em.level(1)[0, 0, 0]
        for call in (array.update_pyramid, array.pyramid().delete):
            with pytest.raises(ReadOnlyError):
                call()


BAD_QUERIES = (
    "levels=-1", "levels=25", "levels=99999999999999999999", "levels=x", "axes=0,1,2,0,3",
    "axes=3", "axes=,", "axes=-1", "axes=isotropically", "method=median", "method=%00",
    "axes=1%2C2%2C" + "9" * 5000,
)  # fmt: skip
BAD_BODIES = (
    b"[]", b"nothing", b'{"levels": "3"}', b'{"levels": -1}', b'{"levels": 1e9}',
    b'{"levels": true}', b'{"levels": [1]}', b'{"axes": "0,1"}', b'{"axes": {}}', b'{"axes": 1}',
    b'{"axes": [0, [1]]}', b'{"axes": [true]}', b'{"axes": [0, 0, 0, 0, 3]}', b'{"axes": [null]}',
    b'{"method": ["mean"]}', b'{"method": "avg"}', b'{"seconds": -1}', b'{"seconds": 1e9}',
    b'{"seconds": true}', b'{"seconds": NaN}', b'{"seconds": "1"}', b'{"axes": ' + b"[" * 5000,
)  # fmt: skip


def test_hostile_input(server, em):
    uuid = em._repo.uuid
    path = f"node/{uuid}/em/diced/pyramid"
    for query in BAD_QUERIES:
        server.refused("GET", f"{path}?{query}")
        if not query.startswith("levels"):
            server.refused("GET", f"node/{uuid}/em/raw/0_1_2/1_1_1/0_0_0?scale=1&{query}")
    for body in BAD_BODIES:
        assert len(server.refused("POST", path, body)) < 1000, body
    server.refused("POST", path, b" " * (2**20 + 1), status=413)
    server.instance(uuid, "keyvalue", "kv")
    for method in ("GET", "POST", "DELETE"):
        server.refused(method, f"node/{uuid}/kv/diced/pyramid")
        server.refused(method, f"node/{uuid}/nothing/diced/pyramid")
    assert em.pyramid().status() == []
    em.update_pyramid(1)
    for method in ("GET", "POST", "DELETE"):
        server.refused(method, f"node/{uuid}/em_1/diced/pyramid")


def test_answers_that_are_not_diceds(em, monkeypatch):
    pyramid = em.pyramid(1)
    told = []
    monkeypatch.setattr(native_pyramid.scales, "of_query", lambda *_: told.append(1))
    with pytest.raises(EngineError):
        em.pyramid(1)
    assert told
    ask = type(em._repo.store.server).ask

    def lie(self, method, path, **more):
        reply = ask(self, "GET", "diced")
        return reply._replace(body=b'{"id": 3, "complete": 1}') if "pyramid" in path else reply

    monkeypatch.setattr(type(em._repo.store.server), "ask", lie)
    with pytest.raises(EngineError, match="diced's"):
        pyramid.update()
    with pytest.raises((EngineError, NotFoundError)):
        em.pyramid(1)


# -- rights --------------------------------------------------------------------------------

TOKENS = {name: f"token-of-{name}-0123456789" for name in ("reader", "writer", "root")}
ACCESS = {
    "default": "none",
    "users": {
        "reader": {"token": TOKENS["reader"], "rights": {"r": "read"}},
        "writer": {"token": TOKENS["writer"], "rights": {"r": "write"}},
        "root": {"token": TOKENS["root"], "rights": {"*": "admin"}},
    },
}


def test_rights():
    with serving("memory://", access=ACCESS) as server:
        where = server.url.replace("http", "dvid")

        def opened(name):
            return DicedStore(where, token=TOKENS[name], patience=5.0)

        with opened("root") as store:
            em = store.create_repo("r").create_array("em", "uint8", block_shape=BLOCK)
            em[WHOLE] = noise(0)
            uuid = em._repo.uuid
        with opened("reader") as store:
            em = store.open_repo("r")["em"]
            level = em.level(1)
            assert level[...].any() and em.pyramid().status() == []
            for call in (em.update_pyramid, em.pyramid().delete):
                with pytest.raises(AccessError):
                    call()
        with opened("writer") as store:
            em = store.open_repo("r")["em"]
            store.open_repo("r").lock_node("done")
            assert em.update_pyramid(2) > 0
            with pytest.raises((LockedError, ReadOnlyError)):
                em[0, 0, 0] = 1
            em.pyramid().delete()
        for method in ("GET", "POST", "DELETE"):
            server.refused(method, f"node/{uuid}/em/diced/pyramid", b"{}", status=401)


def test_a_server_that_only_reads(server, em):
    with serving(server.app.options.location, mode="readonly") as other:
        path = f"node/{em._repo.uuid}/em/diced/pyramid"
        assert other.get(path).json["method"] == "mean"
        for method in ("POST", "DELETE"):
            assert "read-only" in other.refused(method, path, b"{}")


# -- Janelia's server ----------------------------------------------------------------------


class Labels:
    """A labelmap of a server that keeps two levels."""

    def __init__(self, repo, fake, monkeypatch):
        server = repo.store.server
        server.post_json(f"repo/{repo.uuid}/instance", {"typename": "labelmap", "dataname": "seg"})
        self.data = fake.repos[repo.root].instances["seg"]
        values = np.random.default_rng(4).integers(0, 5, (64, 64, 64)).astype(np.uint64)
        self.levels = [values]
        for _ in range(2):
            self.levels.append(reduce(self.levels[-1], (2, 2, 2), "mode"))
        node = fake.repos[repo.root].nodes[repo.root]
        self.data.put(node, (0, 0, 0), values)
        self.data.extents[node.uuid] = ([0, 0, 0], [63, 63, 63])
        raw, told = fake_dvid.Fake.raw, type(self.data).json

        def scaled(me, method, node, data, rest, query, body):
            kept = data.values
            number = int(query.get("scale", 0))
            if number and (data is not self.data or method != "GET" or "axes" in query):
                raise fake_dvid.Bad("scale is of labels")
            block = np.zeros((64, 64, 64), np.uint64)
            few = self.levels[number]
            block[: len(few), : len(few), : len(few)] = few
            try:
                data.values = {node.uuid: {(0, 0, 0): block}} if number else kept
                return raw(me, method, node, data, rest, query, body)
            finally:
                data.values = kept

        def info(data, node):
            found = told(data, node)
            if data is self.data:
                found["Extended"]["MaxDownresLevel"] = 2
            return found

        monkeypatch.setattr(fake_dvid.Fake, "raw", scaled)
        monkeypatch.setattr(type(self.data), "json", info)


@pytest.fixture
def janelias():
    with fake_dvid.serving() as fake, DicedStore(fake.url, patience=20.0) as store:
        yield fake, store.create_repo("r")


def test_labels_of_janelias_server(janelias, monkeypatch):
    fake, repo = janelias
    labels = Labels(repo, fake, monkeypatch)
    seg = repo["seg"]
    pyramid = seg.pyramid()
    assert (len(pyramid), pyramid.method) == (3, "mode")
    for number, level in enumerate(pyramid):
        wanted = labels.levels[number]
        assert level.bounds == tuple(slice(0, n) for n in wanted.shape)
        assert level.voxel_size == (8.0 * 2**number,) * 3 and level.islabel3D
        np.testing.assert_array_equal(level[level.bounds], wanted)
        np.testing.assert_array_equal(level[3:9, 5, 2:11:3], wanted[3:9, 5, 2:11:3])
        again = pickle.loads(pickle.dumps(level))
        np.testing.assert_array_equal(again[level.bounds], wanted)
    assert seg.level(1).name == "seg_1" and seg.pyramid(1, axes=[0, 1, 2], method="mode").top == 1
    assert [each["complete"] for each in pyramid.status()] == [True, True]
    with pytest.raises(ReadOnlyError):
        pyramid[1][0, 0, 0] = 1
    with pytest.raises(InvalidError, match="0 to 2"):
        seg.level(3)
    for how in ({"axes": [1, 2]}, {"axes": "isotropic"}, {"method": "mean"}):
        with pytest.raises(UnsupportedError, match="'mode'"):
            seg.pyramid(**how)
    for call in (seg.update_pyramid, pyramid.delete):
        with pytest.raises(UnsupportedError, match="dvid://"):
            call()


def test_images_of_janelias_server(janelias):
    _, repo = janelias
    em = repo.create_array("em", "uint8")
    assert em.level(0) is em
    for call in (em.pyramid, em.update_pyramid, lambda: em.level(1)):
        with pytest.raises(UnsupportedError, match="em_1"):
            call()


# -- what reviews found --------------------------------------------------------------------


def test_reads_that_compute_too_much_are_refused(server, em, monkeypatch):
    monkeypatch.setattr(scales, "MOST_VOXELS", 2 * 8**4)
    node = f"node/{em._repo.uuid}"
    here = local(server, em)
    wanted = [here.level(number)[...] for number in (1, 2, 3)]  # at a path nothing is refused
    for path in ("em/raw/0_1_2/8_8_8/0_0_0?scale=2", "em/raw/0_1_2/2_2_2/0_0_0?scale=5",
                 "em/raw/0_1/64_32/0_0_0?scale=3&method=nearest",
                 "em/subvolblocks/8_8_8/0_0_0?scale=2&compression=uncompressed",
                 "em/specificblocks?blocks=0,0,0,0,0,1&scale=2&compression=uncompressed",
                 "em/blocks/0_0_0/1?scale=2"):  # fmt: skip
        told = server.ask("GET", f"{node}/{path}")
        assert told.status == 400 and b"diced pyramid or POST diced/pyramid" in told.body, path
    with pytest.raises(InvalidError, match="store the levels first"):
        em.level(2)[0:8, 0:8, 0:8]
    assert server.ask("GET", f"{node}/em/raw/0_1_2/4_4_4/0_0_0?scale=2").status == 200
    em.update_pyramid(1)  # level 2 is made of 8 blocks of it, level 3 of 64
    np.testing.assert_array_equal(em.level(2)[0:8, 0:8, 0:8], wanted[1][8:16, 0:8, 8:16])
    with pytest.raises(InvalidError, match="store the levels first"):
        em.level(3)[-8:8, 0:8, -8:8]
    em.update_pyramid(3)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(em.level(number)[...], wanted[number - 1])
    em[...] = 5  # so that nothing of what is stored serves
    for path in ("em_2/raw/0_1_2/8_8_8/0_0_0", "em/raw/0_1_2/8_8_8/0_0_0?scale=2"):
        assert server.ask("GET", f"{node}/{path}").status == 400
    precomputed = server.ask("GET", f"/api/page/{node}/precomputed/em/2/0-8_0-8_0-8")
    assert precomputed.status == 400 and b"store the levels first" in precomputed.body
    assert server.ask("GET", f"/api/page/{node}/thumbnail/em").status == 200
    page = server.ask("GET", f"/api/page/{node}/tile/em/xy/4_4/8_8/0_0_0")
    assert page.status == 200 and set(page.body) == {5}


def test_what_an_array_lacks_costs_nothing(server, repo, monkeypatch):
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    array[0:8, 0:8, 0:8] = array[4000:4008, 4000:4008, 4000:4008] = 9
    monkeypatch.setattr(scales, "MOST_VOXELS", 8**4)
    told = server.ask("GET", f"node/{repo.uuid}/a/raw/0_1_2/8_8_8/0_0_0?scale=9")
    assert told.status == 200 and len(told.body) == 8**3


def test_axes_and_methods_are_checked_as_at_a_path(server, em):
    here = local(server, em)
    for each in (here, em):
        for axes in (5, 1.5, [], [3], [[1]]):
            with pytest.raises(InvalidError, match="axes to halve are some of 0 to 2"):
                each.pyramid(axes=axes)
        for method in ("", [], {}, 0, False):
            with pytest.raises(InvalidError, match="a method is one of"):
                each.pyramid(method=method)
    assert_same(em.pyramid(2, axes=[2, 1, 2, 1, 2]), here.pyramid(2, axes=[1, 2]))
    path = f"node/{em._repo.uuid}/em/diced/pyramid"
    assert server.ask("GET", path + "?levels=1&axes=2,1,2,1,2").json["axes"] == [1, 2]
    told = server.post(path, {"levels": 1, "axes": [0, 1, 2, 1, 2]})
    assert told.json["complete"] is True
    for method in ("", [], {}):
        assert server.ask("POST", path, {"levels": 1, "method": method}).status == 400


def test_attributes_of_a_level_whose_pyramid_was_deleted(server, em):
    em.update_pyramid(1)
    levels = [em.level(1), local(server, em).level(1)]
    em.pyramid().delete()
    assert [dict(level.attrs) for level in levels] == [{}, {}]


def test_updates_of_high_levels_are_many_requests(server, repo, monkeypatch):
    monkeypatch.setattr("diced.levels.COMMIT_BYTES", 4 * 8**3)
    array = repo.create_array("a", "uint8", block_shape=BLOCK)
    other = local(server, array)
    with other.batch():
        for step in range(12):
            other[256 * step, 256 * step, 256 * step] = step + 1
    path = f"node/{repo.uuid}/a/diced/pyramid"
    told = []
    while not told or not told[-1]["complete"]:
        told.append(server.post(path, {"levels": 5, "seconds": 0, "method": "mode"}).json)
    for level in ("1", "4", "5"):
        assert [each["blocks"][level] for each in told if level in each["blocks"]] == [4, 4, 4]
    assert other.level(5)[0:2, 0:2, 0:2][0, 0, 0] == 1 and other.level(5)[88, 88, 88] == 12
