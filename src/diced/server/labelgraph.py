"""The data type ``labelgraph``: vertices and edges with weights and properties."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diced.elements import Element, Pair
from diced.errors import InvalidError, NotFoundError
from diced.repo import DicedRepo
from diced.server import streams
from diced.server.answer import JSON, OCTETS, Answer, Buffer, to_json
from diced.server.call import Call, whole
from diced.server.datatype import ATTRS, DVID_TYPES, DataType, Settings
from diced.server.routes import Route
from diced.values import MAX_VALUE

GRAPH_BYTES = 2**28  # of a graph as JSON
GRAPH_VALUES = 2**21  # of a graph as JSON: its lists and objects have a bound of their own
IDS_BYTES = 2**26
MAX_LOCKS = 2**20  # of a transaction
NUMBER = struct.Struct("<Q")
GRAPH_BODY = (
    'JSON {"Vertices": [{"Id": 1, "Weight": 2.5}, ...],'
    ' "Edges": [{"Id1": 1, "Id2": 2, "Weight": 3.5}, ...]}'
)
UNSAFE = {"unsafe": "has no meaning here: a graph is always checked"}
OPERATION = {"operation": "what the log of commits calls it"}
NONE = 2**64 - 1  # bytes of a value that there is none of, in requests of diced's own


class LabelGraph(DataType):
    """Graphs of labels."""

    name = "labelgraph"
    url = DVID_TYPES + "labelgraph"
    kind = "labelgraph"
    text = """Vertices and edges with weights and properties, for each version.
Property transactions are binary; all numbers are unsigned, of 8 bytes, lowest byte first. Request:
number of vertices to lock, and of each its id and its transaction id (0 for GET); number of
properties, and of each its vertex or the two vertices of its edge and, for POST, the number of
bytes and the bytes. Answer: number of locked vertices, and of each its id and transaction id;
number of vertices that were not locked, and the id of each; for GET, number of properties, and of
each its vertex or the two vertices of its edge, the number of bytes and the bytes."""

    def create(self, repo: DicedRepo, name: str, settings: Settings, versioned: bool) -> Any:
        return repo.create_array(
            name, kind=self.kind, versioned=versioned, attrs={ATTRS: self.attributes(settings)}
        )

    def routes(self) -> list[Route]:
        transaction = "propertytransaction/{elements}/{key}"
        return [
            Route(
                "GET", "subgraph", _get_graph,
                "Returns the graph, or the vertices given and all edges that they have.",
                body="nothing, or JSON with Vertices", limit=GRAPH_BYTES, query=UNSAFE,
            ),
            Route(
                "POST", "subgraph", _post_graph, "Sets the weights of vertices and edges.",
                body=GRAPH_BODY, limit=GRAPH_BYTES, query={**UNSAFE, **OPERATION},
            ),
            Route(
                "DELETE", "subgraph", _delete_graph,
                "Removes the vertices, with all their edges, and edges given, or everything.",
                body="nothing, or " + GRAPH_BODY, limit=GRAPH_BYTES,
                query={**UNSAFE, **OPERATION},
            ),
            Route("GET", "neighbors/{vertex}", _neighbors, "Returns a vertex and its neighbors."),
            Route(
                "POST", "weight", _weight,
                "Adds to the weights of vertices and edges, and makes those that are not there.",
                body=GRAPH_BODY, limit=GRAPH_BYTES, query=OPERATION,
            ),
            Route(
                "POST", "merge[/{nohistory}]", _merge,
                "Merges vertices into the last one; weights are summed, or as given.",
                body=GRAPH_BODY, limit=GRAPH_BYTES,
                query={**OPERATION, "zero": "true: a weight of 0 is given, too"},
            ),
            Route("POST", "undomerge", _undo, "Is not done: no history of merges is kept."),
            Route(
                "GET", transaction, _get_properties,
                "Returns a property of many vertices or edges.",
                body="see above", limit=IDS_BYTES,
            ),
            Route(
                "POST", transaction, _post_properties,
                "Stores a property of many vertices or edges, as far as nobody else did so since.",
                body="see above", limit=MAX_VALUE,
            ),
            Route(
                "GET", "properties", _get_elements,
                "Returns a property of vertices and edges, as diced's own client asks: of each the"
                " number of bytes, 2**64 - 1 if there is none, and the bytes.",
                body="how many, and of each two numbers, the second 0 of a vertex",
                limit=IDS_BYTES, query={"name": "of the property"},
            ),
            Route(
                "POST", "properties", _post_elements,
                "Stores a property of vertices and edges, as diced's own client does.",
                body="as of propertytransaction, each vertex and edge being two numbers, the second"
                " 0 of a vertex; a value of 2**64 - 1 bytes is removed",
                limit=MAX_VALUE + IDS_BYTES,
                query={"name": "of the property", "checked": "false: of any stamps"},
            ),
            *(
                route
                for pattern in ("property/{vertex}/{key}", "property/{vertex}/{other}/{key}")
                for route in (
                    Route("GET", pattern, _get_property, "Returns a property."),
                    Route(
                        "POST", pattern, _post_property, "Stores a property.",
                        body="the value", limit=MAX_VALUE,
                    ),
                    Route("DELETE", pattern, _delete_property, "Removes a property."),
                )
            ),
        ]  # fmt: skip


TYPE = LabelGraph()


# -- graphs as JSON ------------------------------------------------------------------------


def _id(given: Any) -> int:
    if isinstance(given, float) and given.is_integer() and given <= 2**53:
        given = int(given)  # as JavaScript may write it
    if isinstance(given, bool) or not isinstance(given, int):
        raise InvalidError(f"the id of a vertex is a whole number; got {given!r:.60}")
    return given


def _number(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InvalidError(f"a weight is a number; got {given!r:.60}")
    try:
        return float(given)
    except OverflowError:
        raise InvalidError(f"a weight is a finite number; got {given!r:.60}") from None


def _items(graph: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    found = graph.get(name)
    if found is None:
        return
    if not isinstance(found, list):
        raise InvalidError(f"{name!r} is a list; got {found!r:.60}")
    for each in found:
        if not isinstance(each, dict):
            raise InvalidError(f"{name!r} is a list of objects; got {each!r:.60}")
        yield each


def _vertices(graph: dict[str, Any]) -> Iterator[tuple[int, float]]:
    for each in _items(graph, "Vertices"):
        yield _id(each.get("Id")), _number(each.get("Weight", 0))


def _edges(graph: dict[str, Any]) -> Iterator[tuple[Pair, float]]:
    for each in _items(graph, "Edges"):
        first, second = _id(each.get("Id1")), _id(each.get("Id2"))
        yield (min(first, second), max(first, second)), _number(each.get("Weight", 0))


def _shown(weight: float) -> bytes:
    """Return a weight as JSON; a whole one without a point, as DVID writes it."""
    return b"%d" % int(weight) if weight.is_integer() and abs(weight) < 1e21 else to_json(weight)


def _send(vertices: Iterable[tuple[int, float]], edges: Iterable[tuple[int, int, float]]) -> Answer:
    def pieces() -> Iterator[bytes]:
        comma = b""
        yield b'{"Transactions":[],"Vertices":['
        for vertex, weight in vertices:
            yield b'%b{"Id":%d,"Weight":%b}' % (comma, vertex, _shown(weight))
            comma = b","
        yield b'],"Edges":['
        comma = b""
        for first, second, weight in edges:
            yield b'%b{"Id1":%d,"Id2":%d,"Weight":%b}' % (comma, first, second, _shown(weight))
            comma = b","
        yield b"]}"

    return streams.answer(pieces(), JSON)


def _operation(call: Call, usual: str) -> str:
    return call.query.get("operation", usual)


def _get_graph(call: Call) -> Answer:
    ids = [vertex for vertex, _ in _vertices(call.json(empty={}, most=GRAPH_VALUES))]
    return _send(*(call.array.subgraph(ids) if ids else call.array.graph()))


def _post_graph(call: Call) -> None:
    graph = call.json(most=GRAPH_VALUES)
    call.array.put(
        dict(_vertices(graph)), dict(_edges(graph)), operation=_operation(call, "put subgraph")
    )


def _delete_graph(call: Call) -> None:
    graph = call.json(empty={}, most=GRAPH_VALUES)
    vertices = [vertex for vertex, _ in _vertices(graph)]
    edges = [pair for pair, _ in _edges(graph)]
    if vertices or edges:
        call.array.remove(vertices, edges, operation=_operation(call, "delete subgraph"))
    else:
        call.array.clear(operation=_operation(call, "delete subgraph"))


def _neighbors(call: Call) -> Answer:
    return _send(*call.array.neighbors(whole(call.args["vertex"], "a vertex")))


def _weight(call: Call) -> None:
    graph = call.json(most=GRAPH_VALUES)
    vertices: dict[int, float] = {}
    for vertex, weight in _vertices(graph):
        vertices[vertex] = vertices.get(vertex, 0.0) + weight
    edges: dict[Pair, float] = {}
    for pair, weight in _edges(graph):
        edges[pair] = edges.get(pair, 0.0) + weight
    call.array.add(vertices, edges, operation=_operation(call, "add weights"))


def _merge(call: Call) -> None:
    if call.args.get("nohistory", "nohistory") != "nohistory":
        raise InvalidError(f"merge, or merge/nohistory; got {call.args['nohistory']!r:.60}")
    graph = call.json(most=GRAPH_VALUES)
    vertices = list(_vertices(graph))
    if len(vertices) < 2:
        raise InvalidError("Must specify at least two vertices for merging")
    weight = vertices[-1][1]
    call.array.merge(
        [vertex for vertex, _ in vertices],
        weight if weight or call.flag("zero") else None,
        dict(_edges(graph)),
        operation=_operation(call, "merge"),
    )


def _undo(call: Call) -> None:
    raise InvalidError("undomerge is not done: no history of merges is kept; use versions")


# -- properties ----------------------------------------------------------------------------


def _element(call: Call) -> Element:
    vertex = whole(call.args["vertex"], "a vertex")
    if "other" in call.args:
        return vertex, whole(call.args["other"], "a vertex")
    return vertex


def _get_property(call: Call) -> Answer:
    element, key = _element(call), call.args["key"]
    value = call.array.property(element, key)
    if value is None:
        raise NotFoundError(f"Failed to get property {key}: {element} has none")
    return Answer(value, OCTETS)


def _post_property(call: Call) -> None:
    call.array.set_property(_element(call), call.args["key"], call.body)


def _delete_property(call: Call) -> None:
    element, key = _element(call), call.args["key"]
    if call.array.property(element, key) is not None:
        call.array.set_property(element, key, None)


def _get_properties(call: Call) -> Answer:
    stamps, rest = read_locks(call.body)
    edges = _is_edges(call)
    wanted = [element for element, _ in read_elements(rest, edges, values=False)]
    fresh = call.array.stamps(stamps)
    chosen = [each for each in wanted if _locked(each, fresh)]
    values = call.array.properties(chosen, call.args["key"])

    def pieces() -> Iterator[bytes]:
        yield write_locks(fresh, [])
        yield NUMBER.pack(len(chosen))
        for each, value in zip(chosen, values, strict=True):
            ends = each if isinstance(each, tuple) else (each,)
            yield b"".join(map(NUMBER.pack, (*ends, len(value or b""))))
            yield value or b""

    return streams.answer(pieces(), OCTETS)


def _post_properties(call: Call) -> Answer:
    stamps, rest = read_locks(call.body)
    given = dict(read_elements(rest, _is_edges(call), values=True))
    values = {each: value for each, value in given.items() if len(value)}
    fresh, stale = call.array.transact(stamps, values, call.args["key"])
    return Answer(write_locks(fresh, stale), OCTETS)


def _get_elements(call: Call) -> Answer:
    read, _ = _reader(memoryview(call.body))
    count = read()
    if count > len(call.body) // 16:
        raise InvalidError(f"the body is cut off: {count} elements in {len(call.body)} bytes")
    wanted = [_element_of(read(), read()) for _each in range(count)]
    values = call.array.properties(wanted, call.query.get("name", ""))

    def pieces() -> Iterator[bytes]:
        for value in values:
            yield NUMBER.pack(NONE if value is None else len(value))
            yield value or b""

    return streams.answer(pieces(), OCTETS)


def _post_elements(call: Call) -> Answer:
    stamps, rest = read_locks(call.body)
    read, take = _reader(rest)
    values: dict[Element, memoryview | None] = {}
    for _each in range(read()):
        element, size = _element_of(read(), read()), read()
        values[element] = None if size == NONE else take(size)
    name = call.query.get("name", "")
    if call.query.get("checked") != "false":
        return Answer(write_locks(*call.array.transact(stamps, values, name)), OCTETS)
    if len(values) != 1:
        raise InvalidError(f"without stamps one value is stored at a time; got {len(values)}")
    for element, value in values.items():
        call.array.set_property(element, name, value)
    return Answer(write_locks({}, []), OCTETS)


def _element_of(first: int, second: int) -> Element:
    return (first, second) if second else first


def _is_edges(call: Call) -> bool:
    if call.args["elements"] not in ("edges", "vertices"):
        raise InvalidError(f"Must specify edges or vertices in URI; got {call.args['elements']!r}")
    return call.args["elements"] == "edges"


def _locked(element: Element, locked: dict[int, int]) -> bool:
    ends = element if isinstance(element, tuple) else (element,)
    return all(each in locked for each in ends)


def read_locks(body: Buffer) -> tuple[dict[int, int], memoryview]:
    """Return the vertices that a transaction locks with their ids, and what follows.

    Raises
    ------
    InvalidError
    """
    data = memoryview(body)
    read, _ = _reader(data)
    count = read()
    if count > len(data) // 16:
        raise InvalidError(f"the transaction is cut off: {count} vertices in {len(data)} bytes")
    if count > MAX_LOCKS:
        raise InvalidError(f"a transaction locks at most {MAX_LOCKS} vertices; got {count}")
    locks: dict[int, int] = {}
    for _each in range(count):
        vertex = read()
        locks.setdefault(vertex, read())
    return locks, data[8 + 16 * count :]


def read_elements(
    data: memoryview, edges: bool, values: bool
) -> Iterator[tuple[Element, memoryview]]:
    """Yield the vertices or edges of a transaction, and, if there are any, their values.

    Raises
    ------
    InvalidError
    """
    read, take = _reader(data)
    count = read()
    if count > len(data) // 8:
        raise InvalidError(f"the transaction is cut off: {count} properties in {len(data)} bytes")
    for _each in range(count):
        first = read()
        element: Element = (first, read()) if edges else first
        yield element, take(read()) if values else data[:0]


def write_locks(locked: dict[int, int], failed: list[int]) -> bytes:
    """Return how the answer to a transaction begins."""
    numbers = [len(locked)]
    for vertex, stamp in locked.items():
        numbers += (vertex, stamp)
    numbers += (len(failed), *failed)
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def _reader(data: memoryview) -> tuple[Callable[[], int], Callable[[int], memoryview]]:
    """Return what reads the next number, and what takes so many bytes."""
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        if size > len(data) - at:
            raise InvalidError(f"the transaction is cut off: {size} bytes at {at} of {len(data)}")
        at += size
        return data[at - size : at]

    def read() -> int:
        return int(NUMBER.unpack(take(NUMBER.size))[0])

    return read, take
