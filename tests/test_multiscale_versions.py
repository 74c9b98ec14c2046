"""Pyramids: a level is always that of its array's state, whatever of it is stored.

Versions, locks, interruptions, and writers and updaters beside each other.
"""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling import BLOCK, HI, LO, WHOLE, assert_levels, box, em, expected, is_complete, noise  # noqa: F401

from diced import DicedStore
from diced.errors import ReadOnlyError
from diced.fsck import check
from diced.levels import Levels
from diced.usage import usage

# -- versions ------------------------------------------------------------------------------


def test_every_version_has_its_own(em, repo):
    first = noise(0)
    em.update_pyramid(3)
    root = repo.lock_node("done")
    child = repo.create_branch("more")
    repo.change_version(child)
    assert is_complete(em)  # what the parent has is good here
    em[10:12, 20:30, 20:30] = 3
    second = first.copy()
    second[34:36, 20:30, 28:38] = 3
    assert_levels(em, second)
    assert em.update_pyramid() == 1 + 1 + 1  # only what differs
    assert is_complete(em)
    repo.change_version(root)
    assert_levels(em, first)
    assert is_complete(em)
    repo.change_version(child)
    assert_levels(em, second)


def test_a_locked_version_can_be_updated(em, repo):
    root = repo.lock_node("raw data")
    assert em.update_pyramid(3) > 0
    assert is_complete(em)
    assert em.pyramid().status()[0]["source_upto"] == -1
    assert_levels(em, noise(0))
    repo.change_version(repo.create_branch())
    assert is_complete(em)
    assert em.update_pyramid() == 0
    repo.change_version(root)
    assert em.update_pyramid() == 0


def test_locking_an_incomplete_pyramid(em, repo):
    em.update_pyramid(2)
    em[0:8, 0:8, 0:8] = 0
    values = noise(0)
    values[24:32, 0:8, 8:16] = 0
    repo.lock_node("in the middle")
    assert not is_complete(em)
    assert_levels(em, values, 2)
    repo.change_version(repo.create_branch())
    assert_levels(em, values, 2)
    assert em.update_pyramid() == 2


def test_an_ancestor_finds_what_a_descendant_stored(em, repo):
    root = repo.lock_node("")
    child = repo.create_branch()
    repo.change_version(child)
    em.update_pyramid(2)
    repo.change_version(root)
    assert is_complete(em)
    assert_levels(em, noise(0), 2)


def test_many_versions_share_blocks(em, repo, store):
    em.update_pyramid(2)
    values = noise(0)
    for number in range(12):
        repo.lock_node(str(number))
        repo.change_version(repo.create_branch())
        em[number, 0:8, 0:8] = number
        values[24 + number, 0:8, 8:16] = number
        assert em.update_pyramid() == 2
    assert_levels(em, values, 2)
    blocks = {each["name"]: each["blocks"] for each in usage(store)["repos"][0]["arrays"]}
    assert blocks["em_1"] <= 5 * 4 * 5 + 12 * 2


def test_unversioned_arrays(repo):
    em = repo.create_array("em", "uint8", versioned=False, block_shape=BLOCK)
    em[WHOLE] = noise(5)
    em.update_pyramid(3)
    assert is_complete(em)
    repo.lock_node("")
    repo.change_version(repo.create_branch())
    assert is_complete(em) and not em.level(1).versioned
    assert_levels(em, noise(5))


# -- interruptions and company -------------------------------------------------------------


class Stop(Exception):
    pass


def test_an_update_can_be_stopped_and_goes_on(em, monkeypatch):
    monkeypatch.setattr("diced.levels.COMMIT_BYTES", 8 * 512)
    seen = []

    def stop(level, done):
        seen.append((level, done))
        if len(seen) == 3:
            raise Stop

    with pytest.raises(Stop):
        em.update_pyramid(3, progress=stop)
    assert not is_complete(em)
    assert_levels(em, noise(0))
    done = seen[-1][1]
    total = 5 * 3 * 5 + 3 * 2 * 3 + 2 * 1 * 2
    assert 0 < done < total
    rest = em.update_pyramid()
    assert is_complete(em) and rest < total
    assert_levels(em, noise(0))


def test_large_reads_look_for_all_that_differs(em, monkeypatch):
    monkeypatch.setattr("diced.levels.DIRECT", 8)
    values = noise(0)
    em.update_pyramid(3)
    for step in range(4):
        em[step, 8 * step, 0:50] = step
        values[24 + step, 8 * step, 8:58] = step
        assert_levels(em, values)
    assert not is_complete(em)
    em.update_pyramid()
    assert_levels(em, values)


def test_writers_and_updaters_side_by_side(em, monkeypatch):
    monkeypatch.setattr("diced.levels.COMMIT_BYTES", 4 * 512)
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:  # shown by the test
            errors.append(error)

    def write():
        for step in range(30):
            em[step - 10, 0:40, step : step + 8] = step

    def update():
        for _ in range(3):
            em.update_pyramid(2)

    def read():
        for _ in range(10):
            with_levels = em.level(1)[0:4, 0:4, 0:4]
            assert with_levels.shape == (4, 4, 4)

    threads = [threading.Thread(target=guarded, args=(each,))
               for each in (write, update, update, read)]  # fmt: skip
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors
    assert_levels(em, em[WHOLE], 2)
    em.update_pyramid()
    assert is_complete(em)
    assert_levels(em, em[WHOLE], 2)


UPDATER = """
import sys
from diced import DicedStore
from diced import levels
levels.COMMIT_BYTES = 4 * 512
em = DicedStore(sys.argv[1], durability="process").open_repo("r")["em"]
for step in range(6):
    em[step, 0:32, int(sys.argv[2]) : int(sys.argv[2]) + 4] = 10 * step + int(sys.argv[2])
    em.update_pyramid(2)
"""


def test_several_processes_update(tmp_path):
    path = tmp_path / "store"
    with DicedStore(path, durability="process") as store:
        em = store.create_repo("r", "").create_array("em", "uint8", block_shape=BLOCK)
        em[WHOLE] = noise(0)
        runs = [
            subprocess.Popen([sys.executable, "-c", UPDATER, str(path), str(place)])
            for place in (0, 30)
        ]
        assert [each.wait(120) for each in runs] == [0, 0]
        assert_levels(em, em[WHOLE], 2)
        em.update_pyramid()
        assert is_complete(em)
        assert_levels(em, em[WHOLE], 2)
        assert check(store, full=True).problems == []


def test_a_bucket(gcs):
    with DicedStore(f"gs://{gcs.bucket}/s", max_age=0.0) as store:
        em = store.create_repo("r", "").create_array("em", "uint8", block_shape=BLOCK)
        em[WHOLE] = noise(0)
        em.update_pyramid(2)
        assert is_complete(em)
        assert_levels(em, noise(0), 2)
    with DicedStore(f"gs://{gcs.bucket}/s", max_age=0.0) as store:
        repo = store.open_repo("r")
        em = repo["em"]
        assert is_complete(em)
        em[0, 0, 0] = 255
        values = noise(0)
        values[24, 0, 8] = 255
        assert em.update_pyramid() == 2
        assert_levels(em, values, 2)
        assert check(store, full=True).problems == []
        em.pyramid().delete()
        store.sweep()
        assert check(store, full=True).problems == []
        assert_levels(em, values, 2)


def test_readonly_stores(tmp_path):
    with DicedStore(tmp_path / "s", durability="process") as store:
        em = store.create_repo("r", "").create_array("em", "uint8", block_shape=BLOCK)
        em[WHOLE] = noise(0)
        em.update_pyramid(1)
        em[0, 0, 0] = 1
    with DicedStore(tmp_path / "s", readonly=True) as store:
        em = store.open_repo("r", readonly=True)["em"]
        values = noise(0)
        values[24, 0, 8] = 1
        assert_levels(em, values, 2)
        with pytest.raises(ReadOnlyError):
            em.update_pyramid()


# -- anything ------------------------------------------------------------------------------

WRITE, UPDATE, LOCK, CHECK = "write", "update", "lock", "check"
corners = st.tuples(*(st.integers(a, b - 1) for a, b in zip(LO, HI, strict=True)))
steps = st.lists(
    st.one_of(
        st.tuples(st.just(WRITE), corners, st.tuples(*[st.integers(1, 20)] * 3),
                  st.integers(0, 255)),
        st.tuples(st.just(UPDATE), st.integers(1, 3)),
        st.tuples(st.just(LOCK)),
        st.tuples(st.just(CHECK), st.integers(1, 3)),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(steps, st.sampled_from([(2, 2, 2), (1, 2, 2), (2, 1, 1)]), st.booleans())
def test_whatever_happens(script, factors, small):
    axes = [axis for axis, factor in enumerate(factors) if factor == 2]
    values = np.zeros([b - a for a, b in zip(LO, HI, strict=True)], np.uint8)
    with DicedStore("memory://") as store, pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr("diced.levels.DIRECT", 4)
            patch.setattr("diced.levels.COMMIT_BYTES", 2 * 512)
            patch.setattr("diced.levels.WHOLE_LEVEL", 2)
        repo = store.create_repo("r", "")
        em = repo.create_array("em", "uint8", block_shape=BLOCK)
        seen = {}
        for step in script:
            if step[0] == WRITE:
                where = tuple(slice(a, min(a + n, b))
                              for a, n, b in zip(step[1], step[2], HI, strict=True))  # fmt: skip
                em[where] = step[3]
                values[tuple(slice(each.start - a, each.stop - a)
                             for each, a in zip(where, LO, strict=True))] = step[3]  # fmt: skip
            elif step[0] == UPDATE:
                em.update_pyramid(step[1], axes=axes)
                status = em.pyramid().status()
                assert all(each["complete"] for each in status if each["level"] <= step[1])
            elif step[0] == LOCK:
                seen[repo.lock_node("")] = values.copy()
                repo.change_version(repo.create_branch())
            else:
                level = em.pyramid(step[1], axes=axes)[step[1]]
                wanted = expected(values, step[1], factors)
                np.testing.assert_array_equal(level[box(step[1], factors)], wanted)
        seen[repo.uuid] = values
        for uuid, then in seen.items():
            repo.change_version(uuid)
            for number in (1, 2, 3):
                level = em.pyramid(number, axes=axes)[number]
                wanted = expected(then, number, factors)
                np.testing.assert_array_equal(level[box(number, factors)], wanted)
        assert check(store, full=True).problems == []


def test_reads_of_a_complete_pyramid_compute_nothing(em, monkeypatch):
    em.update_pyramid(3)

    def refuse(*_args):
        raise AssertionError("computed")

    monkeypatch.setattr(Levels, "_compute", refuse)
    assert_levels(em, noise(0))
