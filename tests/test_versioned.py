"""Lanes: a state sees the records up to its own and none after."""

from __future__ import annotations

import numpy as np
import pytest

from diced import DicedStore, grid


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
