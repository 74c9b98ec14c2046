"""A peer's process: does one turn after another, as told through a pipe, and waits in between."""

from __future__ import annotations

import faulthandler
import traceback
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.peers.bench import Bench, SkipOp, Task
from benchmarks.peers.ops import OPS


def serve(task: Task, conn: Connection) -> None:
    """Answer ``(operation, round)`` by a dict of its ``series``, a ``skip`` or an ``error``.

    The first answer, ``ready``, comes without a question. None ends the process, as does a pipe
    that is closed at the other end.
    """
    faulthandler.enable()  # a library that crashes says where
    bench = Bench(task)
    conn.send({"ready": True})
    while True:
        try:
            asked = conn.recv()
        except EOFError:
            return
        if asked is None:
            return
        conn.send(_turn(bench, *asked))


def _turn(bench: Bench, op: str, turn: int) -> dict[str, Any]:
    try:
        return {"series": OPS[op].run(bench, op, turn)}
    except SkipOp as reason:
        return {"skip": str(reason)}
    except Exception as error:
        # Whatever a library raises ends this turn only; the report names it.
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
