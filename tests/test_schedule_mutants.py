"""The checker of schedules notices when the protocol is broken."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import scheduled
import schedules
from pytest import MonkeyPatch

from diced import combine, log, proposal, state, versioned
from diced.combine import Combiner
from diced.versioned import Lane

ENOUGH = 6000  # schedules in which every mutant is caught: most of them in the first hundred
# Where to begin with those that few schedules catch: from 0 on it took a minute.
FIRST = {"a_refusal_is_believed_at_once": 1900, "only_the_last_record_is_read_again": 2450}

Mutant = Callable[[MonkeyPatch], None]
MUTANTS: dict[str, Mutant] = {}


def mutant(change: Mutant) -> Mutant:
    MUTANTS[change.__name__] = change
    return change


def rewritten(patch: MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace a method by one of which a piece of source is another."""
    plain = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(plain))
    assert source.count(old) == 1, f"{name} has changed: adapt the mutant"
    names: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source.replace(old, new), name, "exec")
    exec(code, inspect.getmodule(plain).__dict__, names)  # type: ignore[union-attr]
    patch.setattr(owner, name, names[name])


@mutant
def a_refusal_is_believed_at_once(patch: MonkeyPatch) -> None:
    def refuse(self: Combiner, part: proposal.Part, last: int) -> None:
        part.outcome = proposal.REFUSED
        self._lane.least = max(self._lane.least, last)

    patch.setattr(Combiner, "_refuse", refuse)


@mutant
def only_the_last_record_is_read_again(patch: MonkeyPatch) -> None:
    rewritten(patch, Combiner, "_refuse", "part.since + 1", "last")


@mutant
def gathered_whatever_changed(patch: MonkeyPatch) -> None:
    patch.setattr(Combiner, "_allows", lambda *_: True)


@mutant
def gathered_if_unknown_what_changed(patch: MonkeyPatch) -> None:
    rewritten(
        patch, Combiner, "_allows", "touched(names, base, state) != {}",
        "touched(names, base, state)",
    )  # fmt: skip


@mutant
def outcomes_are_ignored(patch: MonkeyPatch) -> None:
    patch.setattr(Combiner, "_decide", lambda *_: None)


@mutant
def parts_read_what_others_write(patch: MonkeyPatch) -> None:
    patch.setattr(proposal.Joint, "_writes", lambda *_: False)


@mutant
def parts_write_what_others_write(patch: MonkeyPatch) -> None:
    plain = proposal.Joint.add
    patch.setattr(proposal.Joint, "add", lambda self, part, strict=False: plain(self, part))


@mutant
def nothing_is_touched(patch: MonkeyPatch) -> None:
    patch.setattr(Lane, "touched", lambda *_: {})


@mutant
def the_unknown_is_not_touched(patch: MonkeyPatch) -> None:
    plain = Lane.touched
    patch.setattr(Lane, "touched", lambda *each: plain(*each) or {})


@mutant
def nothing_is_locked(patch: MonkeyPatch) -> None:
    patch.setattr(Lane, "check_open", lambda *_: None)


@mutant
def gathered_after_the_lock(patch: MonkeyPatch) -> None:
    rewritten(patch, Combiner, "_gather", "state.locked or ", "")


@mutant
def every_state_is_fresh(patch: MonkeyPatch) -> None:
    patch.setattr(Lane, "_is_fresh", lambda *_: True)


@mutant
def ones_own_commit_is_not_awaited(patch: MonkeyPatch) -> None:
    rewritten(patch, Lane, "_is_fresh", " and state.number >= self.least", "")


@mutant
def readers_see_newer_records(patch: MonkeyPatch) -> None:
    plain = state.Overlay.get
    patch.setattr(state.Overlay, "get", lambda self, space, key, _: plain(self, space, key, 1e9))


@mutant
def frames_of_the_second_part_are_the_firsts(patch: MonkeyPatch) -> None:
    patch.setattr(log, "shift", lambda entry, _by: entry)


@mutant
def the_last_record_is_not_listed(patch: MonkeyPatch) -> None:
    plain = log.CommitLog.tail
    patch.setattr(log.CommitLog, "tail", lambda self, known: max(known, plain(self, known) - 1))


@mutant
def snapshots_are_one_late(patch: MonkeyPatch) -> None:
    rewritten(
        patch, Lane, "_snapshot", "self.log.put_snapshot(state.number,",
        "self.log.put_snapshot(head.update(number=state.number + 1) or state.number + 1,",
    )  # fmt: skip


@mutant
def the_dead_are_waited_for(patch: MonkeyPatch) -> None:
    patch.setattr(combine, "PATIENCE", 1e12)


@mutant
def nobody_gathers(patch: MonkeyPatch) -> None:
    patch.setattr(Combiner, "_turn", lambda _self: 1e12)


@mutant
def an_own_put_is_denied(patch: MonkeyPatch) -> None:
    rewritten(patch, scheduled.Bucket, "put_fresh", "return bool(there == value)", "return False")


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, monkeypatch: MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    first = FIRST.get(name, 0)
    totals, bad = schedules.many(range(first, first + ENOUGH), most=1, show=False)
    assert bad, f"none of {ENOUGH} schedules fails"
    print(f"{name}: caught by schedule {bad[0]}, {totals['schedules']} were run")


def test_a_failure_tells_all(monkeypatch: MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(versioned.Lane, "touched", lambda *_: {})
    _, (seed,) = schedules.many(range(ENOUGH), most=1)
    first = capsys.readouterr().out
    assert f"schedule {seed}\n" in first
    assert "put -> True" in first
    assert schedules.main(["--one", str(seed)]) == 1
    assert capsys.readouterr().out == first
