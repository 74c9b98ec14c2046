"""The mutation log of an instance, told from the commits that there are: nothing else is kept.

``GET mutations`` gives those of one version, ``GET mutations-range/<first>/<last>`` those of the
versions from one to another on one line, oldest first, as a JSON list. What a keyvalue instance did
is told key by key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diced import keys, log
from diced.dag import Node
from diced.errors import CorruptError, InvalidError, NotFoundError
from diced.files import SPACE
from diced.log import Record
from diced.server import streams
from diced.server.answer import Answer, to_json
from diced.server.call import Call
from diced.server.routes import Route
from diced.server.wire import flip
from diced.state import Base
from diced.values import value_size
from diced.versioned import Lane

QUERY = {
    "userid": "only what this user did",
    "throttle": "on: 503 if too many throttled requests are running",
}


def routes() -> list[Route]:
    """Return the routes; patterns go on behind the instance's name."""
    return [
        Route(
            "GET", "mutations", _mutations,
            "Returns what was done to the instance at this version, as a JSON list.", query=QUERY,
            throttled=True,
        ),
        Route(
            "GET", "mutations-range/{first}/{last}", _range,
            "Returns what was done at the versions from one to another, both included.",
            query=QUERY, throttled=True,
        ),
    ]  # fmt: skip


def _mutations(call: Call) -> Answer:
    repo = call.node_repo()
    dag = repo._history.view().dag
    return _answer(call, [dag.nodes[repo._node_id]])


def _range(call: Call) -> Answer:
    repo = call.node_repo()
    first, last = (call.site.find_for(call, call.args[each]) for each in ("first", "last"))
    for each in (first, last):
        call.site.access.check_version(call, each)
    if not repo._id == first._id == last._id:
        raise InvalidError("the versions of a range are of one repo, that of the path")
    dag = repo._history.view().dag
    line = [dag.nodes[last._node_id]]
    if first._node_id not in dag.ancestry(line[0]):
        raise InvalidError(f"version {first.uuid} is not {last.uuid} nor an ancestor of it")
    while line[-1].id != first._node_id:
        parents = [dag.nodes[each] for each in line[-1].parents]
        if len(parents) > 1:  # of a merge: the way that leads there
            parents = [each for each in parents if first._node_id in dag.ancestry(each)]
        line.append(parents[0])
    return _answer(call, line[::-1])


def _answer(call: Call, line: list[Node]) -> Answer:
    array, user = call.array, call.query.get("userid", "")
    history = call.repo._history
    spec = array._spec

    def items() -> Iterator[bytes]:
        if not spec.versioned:
            root = history.view().dag.root
            visits = [(root.uuid, keys.NO_NODE)]
        else:
            visits = [(node.uuid, node.id) for node in line]
        for uuid, where in visits:
            lane = Lane(history.home, spec.id, where, Base())
            for number, record in lane.records():
                if record.type != log.DATA:
                    continue
                for told in _tell(array, lane, number, record):
                    if not user or told["User"] == user:
                        yield to_json({**told, "UUID": uuid})

    return streams.json_list(items())


def _tell(array: Any, lane: Lane, number: int, record: Record) -> Iterator[dict[str, Any]]:
    """Yield what a record did, one dict for each action."""
    heads = record.commits()
    if array.kind == "keyvalue":
        yield from _tell_keys(array, lane, number, lane.whole(record))
        return
    for head in heads:
        told = {"Action": head["op"], **_common(number, head)}
        box = head.get("box")
        if box:
            told["MinPoint"] = list(flip(box[0]))
            told["MaxPoint"] = [each - 1 for each in flip(box[1])]
        yield told


def _tell_keys(array: Any, lane: Lane, number: int, record: Record) -> Iterator[dict[str, Any]]:
    # Several commits in one record name their keys, where each is of one key; else all that is
    # known of a key's writer is what they have in common.
    heads = record.commits()
    by_op = {head["op"]: head for head in heads}
    shared = dict(heads[-1])
    if len({head["user"] for head in heads}) > 1:
        shared["user"] = ""
    for key, entry in sorted(record.delta.get(SPACE, {}).items()):
        name = key.decode()
        verb, action = ("delete", "delete") if entry is None else ("put", "postkv")
        told: dict[str, Any] = {"Action": action, "Key": name}
        if entry is not None:
            try:
                told["Bytes"] = value_size(lane, key, entry, f"key {name!r} of {array.name!r}")
            except (CorruptError, NotFoundError):  # replaced since and swept: nobody knows
                told["Bytes"] = None
        yield {**told, **_common(number, by_op.get(f"{verb} {name}", shared))}


def _common(number: int, head: dict[str, Any]) -> dict[str, Any]:
    return {"MutationID": number, "Timestamp": head["time"], "User": head["user"]}
