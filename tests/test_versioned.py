"""Lanes: a state sees the records up to its own and none after."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from diced import DicedStore, fsck, grid, versioned


@pytest.mark.parametrize("rooted", [False, True])
def test_an_old_state_sees_what_it_saw(rooted: bool) -> None:
    """Lookups of many keys join the tree with an overlay that has grown since."""
    with DicedStore("memory://") as store:
        repo = store.create_repo("r")
        array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
        if rooted:
            array[0:40] = 99
            repo.lock_node("below")
            repo.change_version(repo.create_branch("above"))
        rng = np.random.default_rng(0)
        lane = array._blocks().lane
        keys = grid.Cut((0,), (64,), (4,)).keys
        model = {key: b"\x01\x63" for key in keys[:10]} if rooted else {}
        seen = [(lane.refresh(), dict(model))]
        for value in range(1, 30):
            with array.batch():
                for block in rng.choice(16, 3, replace=False).tolist():
                    array[4 * block : 4 * block + 4] = value
                    model[keys[block]] = bytes((1, value))
            seen.append((lane.refresh(), dict(model)))
        for state, wanted in seen:
            assert lane.get_many(state, 0, keys) == [wanted.get(key) for key in keys]
            assert lane.get_many(state, 0, keys[3:5]) == [wanted.get(key) for key in keys[3:5]]
            assert [lane.get(state, 0, key) for key in keys] == [wanted.get(key) for key in keys]


@pytest.mark.parametrize("where", ["parse_box", "delta_size", "State"])
def test_a_fold_that_was_interrupted_counts_nothing_twice(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LOCK record lists each commit once, or fsck would tell of damage."""
    with DicedStore("memory://") as store:
        repo = store.create_repo("r")
        array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
        lane = array._blocks().lane
        array[0:4] = 1
        for value in range(2, 5):
            with monkeypatch.context() as patch:

                def interrupt(*args: object) -> None:
                    raise KeyboardInterrupt

                patch.setattr(versioned, where, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    array[0:4] = value
            assert (array[0:4] == value).all()
        array[4:8] = 9
        assert len(lane._txids) == lane.refresh().number == len(set(lane._txids))
        assert lane._recent_size == sum(map(versioned.delta_size, lane._recent.values()))
        repo.lock_node("done")
        report = fsck.check(store)
        assert report.ok and not report.problems


def test_a_snapshot_that_was_interrupted_counts_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever an interrupt comes, what is kept of a lane belongs to one snapshot."""
    with DicedStore("memory://") as store:
        repo = store.create_repo("r")
        array = repo.create_array("a", np.uint8, 1, block_shape=(4,))
        lane = array._blocks().lane
        lane._snapshot_records = 4
        real = versioned.Overlay
        for value in range(1, 40):
            with monkeypatch.context() as patch:

                def interrupt(value: int = value) -> versioned.Overlay:
                    if value % 3 == 0:
                        raise KeyboardInterrupt
                    return real()

                patch.setattr(versioned, "Overlay", interrupt)
                with contextlib.suppress(KeyboardInterrupt):
                    array[0:4] = value
            assert (array[0:4] == value).all()
            state = lane.refresh()
            assert len(lane._txids) == state.number - lane._snapshot_number
        repo.lock_node("done")
        assert not fsck.check(store).problems
