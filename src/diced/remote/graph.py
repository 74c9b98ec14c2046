"""Label graphs of a server."""

from __future__ import annotations

import itertools
import json
import numbers
import operator
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from diced import pool
from diced.elements import (
    Element,
    Pair,
    check_edge,
    check_vertex,
    ends_of,
    finite,
    in_order,
    property_key,
)
from diced.errors import EngineError, InvalidError, NotFoundError, UnsupportedError
from diced.graph import FIRST_STAMP, GraphArray
from diced.remote.files import as_bytes, fits_path
from diced.remote.http import LostAnswer, Reply
from diced.remote.kinds import RemoteKind
from diced.spec import check_text

MANY = 2**18  # vertices and edges of one request
MANY_PROPERTIES = 2**16
NONE = 2**64 - 1  # bytes of a value that there is none of, to our server

Vertex = tuple[int, float]
Edge = tuple[int, int, float]


class RemoteGraph(RemoteKind, GraphArray):
    """A label graph on a server, at the version that its repo object is at.

    All is as of `GraphArray`, with these differences. A graph is read whole when it is asked for.
    Up to 262,144 vertices and edges are changed in one request, which is one commit; more are
    several. `add` is never sent twice: where its answer is lost, EngineError says so. Properties
    are read 65,536 at a time.
    """

    # -- reading ---------------------------------------------------------------------------

    def graph(self) -> tuple[Iterator[Vertex], Iterator[Edge]]:
        """Return all vertices and edges; as `GraphArray.graph`."""
        vertices, edges = _read_graph(self._ask("GET", "subgraph"))
        return iter(sorted(vertices)), iter(sorted(edges))

    def subgraph(self, ids: Iterable[int]) -> tuple[list[Vertex], Iterator[Edge]]:
        """Return some vertices and each edge that any of them has; as `GraphArray.subgraph`."""
        names = [check_vertex(each) for each in dict.fromkeys(ids)]
        if not names:  # to DVID that is the whole graph
            return [], iter(())
        if len(names) > MANY:
            return self._part(names)
        body = _to_json({"Vertices": [{"Id": each} for each in names]})
        vertices, edges = _read_graph(self._ask("GET", "subgraph", body=body))
        weights = dict(vertices)
        return [(each, self._weight_of(weights, each)) for each in names], iter(edges)

    def _part(self, names: list[int]) -> tuple[list[Vertex], Iterator[Edge]]:
        """Return a subgraph out of the whole graph."""
        vertices, edges = self.graph()
        weights = dict(vertices)
        place = {each: number for number, each in enumerate(names)}
        far = len(names)
        found = [
            (min((place.get(a, far), b), (place.get(b, far), a)), (a, b, weight))
            for a, b, weight in edges
            if a in place or b in place
        ]
        return (
            [(each, self._weight_of(weights, each)) for each in names],
            iter([edge for _, edge in sorted(found)]),
        )

    def _weight_of(self, weights: dict[int, float], vertex: int) -> float:
        if vertex not in weights:
            raise NotFoundError(f"Failed to retrieve vertex {vertex}: it is not in the graph")
        return weights[vertex]

    def neighbors(self, vertex: int) -> tuple[list[Vertex], list[Edge]]:
        """Return a vertex and its neighbors; as `GraphArray.neighbors`."""
        return _read_graph(self._ask("GET", "neighbors", str(check_vertex(vertex))))

    # -- writing weights -------------------------------------------------------------------

    def put(
        self, vertices: Mapping[int, float], edges: Mapping[Pair, float], *, operation: str = "put"
    ) -> None:
        """Set weights; as `GraphArray.put`."""
        mine = {check_vertex(key): finite(weight) for key, weight in vertices.items()}
        pairs = {check_edge(pair): finite(weight) for pair, weight in edges.items()}
        self._write("POST", "subgraph", mine, pairs, operation)

    def add(
        self, vertices: Mapping[int, float], edges: Mapping[Pair, float], *, operation: str = "add"
    ) -> None:
        """Add to weights; as `GraphArray.add`.

        Raises
        ------
        EngineError
            The answer was lost: it is not known whether the weights were added.
        """
        mine = {check_vertex(key): finite(weight) for key, weight in vertices.items()}
        pairs: dict[Pair, float] = {}
        for pair, weight in edges.items():
            name = check_edge(pair)
            pairs[name] = finite(pairs[name] + weight if name in pairs else weight)
        try:
            self._write("POST", "weight", mine, pairs, operation, twice=False)
        except LostAnswer as lost:
            raise LostAnswer(
                f"array {self.name!r}: it is not known whether the weights were added, or some of"
                f" them; look before adding them again: {lost}"
            ) from None

    def remove(
        self, vertices: Iterable[int], edges: Iterable[Pair], *, operation: str = "delete"
    ) -> None:
        """Remove vertices with all that they have, and edges; as `GraphArray.remove`."""
        gone = dict.fromkeys((check_vertex(each) for each in vertices), 0.0)
        pairs = dict.fromkeys((check_edge(each) for each in edges), 0.0)
        self._write("DELETE", "subgraph", gone, pairs, operation)

    def clear(self, *, operation: str = "delete graph") -> None:
        """Remove everything from this version and its descendants."""
        self._begin(operation)
        self._alter(lambda: self._ask("DELETE", "subgraph", query=self._named(operation)))

    def _begin(self, operation: str) -> None:
        self._repo._check_writable(self._spec)
        check_text(f"{self.name!r}: the operation", operation)

    def _write(
        self,
        method: str,
        word: str,
        vertices: dict[int, float],
        edges: dict[Pair, float],
        operation: str,
        twice: bool = True,
    ) -> None:
        """Send vertices and edges, as many at a time as a request may have."""
        self._begin(operation)
        query = self._named(operation)
        items: Iterator[Any] = itertools.chain(vertices.items(), edges.items())
        first = True
        while some := list(itertools.islice(items, MANY)):
            body = _to_json(_graph_json(some))
            self._alter(
                lambda body=body: self._ask(method, word, query=query, body=body, twice=twice)  # type: ignore[misc]
            )
            first = False
        if first:  # without any DELETE would remove everything
            self._check_open()

    def merge(
        self,
        ids: Sequence[int],
        weight: float | None = None,
        edges: Mapping[Pair, float] | None = None,
        *,
        operation: str = "merge",
    ) -> None:
        """Merge vertices into the last of them, in one commit; as `GraphArray.merge`.

        Raises
        ------
        InvalidError, NotFoundError
        UnsupportedError
            A weight of 0 means the sum to other servers than ours.
        """
        names = [check_vertex(each) for each in dict.fromkeys(ids)]
        if len(names) < 2 or names[-1] != ids[-1]:
            raise InvalidError("Must specify at least two vertices for merging, each once")
        given = {check_edge(pair): finite(each) for pair, each in (edges or {}).items()}
        total = None if weight is None else finite(weight)
        self._begin(operation)
        query = self._named(operation)
        if total == 0:
            if not self._repo.store.ours:
                raise UnsupportedError(
                    f"array {self.name!r}: to DVID's API a merged vertex of weight 0 is one with"
                    " the sum of the weights; merge first, and put the weight then"
                )
            query["zero"] = "true"
        found = [(each, 0.0) for each in names]
        found[-1] = names[-1], total or 0.0
        body = _to_json(_graph_json([*found, *given.items()]))
        try:  # else vertices that were never there look merged when the answer is lost
            self.subgraph(names)
        except NotFoundError:
            self._check_open()
            raise

        def act() -> bool:
            self._ask("POST", "merge", query=query, body=body, twice=False)
            return True

        def look() -> bool | None:
            there = [self._is_vertex(each) for each in names]
            return True if there[-1] and not any(there[:-1]) else None

        server = self._repo.store.server
        self._alter(lambda: server.settle(act, look, f"merge vertices of {self.name!r}"))

    def _is_vertex(self, vertex: int) -> bool:
        try:
            self.subgraph([vertex])
        except NotFoundError:
            return False
        return True

    # -- properties ------------------------------------------------------------------------

    def property(self, element: Element, name: str) -> bytes | None:
        """Return a property of a vertex, or of an edge (a pair), or None."""
        property_key(element, name)
        if self._repo.store.ours:
            return next(self.properties([element], name))
        self._check_name(name)
        try:
            return self._ask("GET", *_path(element, name)).body
        except NotFoundError:
            self._fields()  # raises if it is the graph that is not there
            return None

    def properties(self, elements: Iterable[Element], name: str) -> Iterator[bytes | None]:
        """Yield the property of each vertex or edge, several thousand of one moment."""
        wanted = []
        for each in elements:
            property_key(each, name)
            wanted.append(in_order(each))
        if self._repo.store.ours:
            for at in range(0, len(wanted), MANY_PROPERTIES):
                some = wanted[at : at + MANY_PROPERTIES]
                body = struct.pack(f"<{2 * len(some) + 1}Q", len(some), *_numbers(some))
                reply = self._ask("GET", "properties", query={"name": name}, body=body)
                yield from _read_values(reply, len(some))
            return
        self._check_name(name)
        # A transaction cannot tell what is empty from what there is none of.
        threads = self._repo.store.threads
        yield from pool.map_ordered(lambda each: self.property(each, name), wanted, threads)

    def set_property(self, element: Element, name: str, value: Any) -> None:
        """Store a property of a vertex or an edge that is there; None removes it.

        Raises
        ------
        NotFoundError
            There is no such vertex or edge.
        """
        property_key(element, name)
        self._repo._check_writable(self._spec)
        data = None if value is None else as_bytes(value)
        if self._repo.store.ours:
            self._alter(lambda: self._send({in_order(element): data}, name, {}, "false"))
            return
        self._check_name(name)
        if data is not None:
            self._alter(lambda: self._ask("POST", *_path(element, name), body=data))
        elif self.property(element, name) is not None:
            self._alter(lambda: self._ask("DELETE", *_path(element, name)))
        else:
            self._check_open()
            self._check_there(element, name)

    def _check_there(self, element: Element, name: str) -> None:
        ends = ends_of(in_order(element))
        try:
            _, edges = self.subgraph(ends[:1])
        except NotFoundError:
            ends, edges = (0, 0), iter(())
        if ends == (0, 0) or (len(ends) > 1 and all((a, b) != ends for a, b, _ in edges)):
            raise NotFoundError(f"Failed to add property {name}: {element} is not there")

    def stamps(self, ids: Iterable[int]) -> dict[int, int]:
        """Return the stamp of each vertex; as `GraphArray.stamps`."""
        names = [check_vertex(each) for each in dict.fromkeys(ids)]
        found: dict[int, int] = {}
        for at in range(0, len(names), MANY_PROPERTIES):
            some = names[at : at + MANY_PROPERTIES]
            body = _locks(dict.fromkeys(some, 0)) + bytes(8)
            reply = self._ask("GET", "propertytransaction", "vertices", "-", body=body)
            fresh, _ = _read_locks(reply)
            if set(fresh) != set(some):
                raise EngineError(f"the answer is of other vertices [{reply.request}]")
            found |= fresh
        return {each: found[each] for each in names}

    def transact(
        self, stamps: Mapping[int, int], values: Mapping[Element, Any], name: str
    ) -> tuple[dict[int, int], list[int]]:
        """Store a property of vertices or edges, as far as nobody did so meanwhile; one commit.

        Parameters, results and errors are as of `GraphArray.transact`.

        Raises
        ------
        UnsupportedError
            Other servers than ours take vertices or edges, not both at once, and no values that
            are None or empty.
        EngineError
            The answer was lost, and nothing that was stored tells whose the new stamps are.
        """
        known = {check_vertex(each): _stamp(stamp) for each, stamp in stamps.items()}
        given: dict[Element, bytes | None] = {}
        for each, value in values.items():
            property_key(each, name)
            given[in_order(each)] = None if value is None else as_bytes(value)
        self._repo._check_writable(self._spec)
        if not known:
            self._check_open()
            return {}, []

        def act() -> tuple[dict[int, int], list[int]]:
            if self._repo.store.ours:
                return self._send(given, name, known, "true", twice=False)
            return self._send_dvids(given, name, known)

        def look() -> tuple[dict[int, int], list[int]] | None:
            """Tell whose the stamps are that went on by one, by the values that are there.

            A transaction is whole or not at all: where a stamp is as it was, none was made.
            """
            now = self.stamps(known)
            if any(now[each] == stamp for each, stamp in known.items()):
                return None
            moved = {each for each, stamp in known.items() if FIRST_STAMP <= stamp == now[each] - 1}
            chosen = [each for each in given if moved.issuperset(ends_of(each))]
            there = self.properties(chosen, name)
            done = {each: given[each] == value for each, value in zip(chosen, there, strict=True)}
            mine = {end for each in chosen if done[each] for end in ends_of(each)}
            others: set[int] = set()
            for each in chosen:
                rest = [end for end in ends_of(each) if end not in mine]
                if len(rest) == 1 and not done[each]:
                    others.update(rest)
            if moved - mine - others:
                raise LostAnswer(
                    f"array {self.name!r}: it is not known whether a transaction was made, as the"
                    f" answer was lost and no value of {name!r} tells; ask for stamps again"
                )
            if not mine:
                return None
            return {each: now[each] for each in known if each in mine}, [
                each for each in known if each not in mine
            ]

        server = self._repo.store.server
        return self._alter(lambda: server.settle(act, look, f"properties of {self.name!r}"))

    def _send(
        self,
        values: Mapping[Element, bytes | None],
        name: str,
        stamps: Mapping[int, int],
        checked: str,
        twice: bool = True,
    ) -> tuple[dict[int, int], list[int]]:
        """Store properties by our server's request, which knows of None, and of both at once."""
        parts = [_locks(stamps), struct.pack("<Q", len(values))]
        for each, value in values.items():
            size = NONE if value is None else len(value)
            parts += [struct.pack("<3Q", *_numbers([each]), size), value or b""]
        query = {"name": name, "checked": checked}
        reply = self._ask("POST", "properties", query=query, body=b"".join(parts), twice=twice)
        return _read_locks(reply)

    def _send_dvids(
        self, values: Mapping[Element, bytes | None], name: str, stamps: Mapping[int, int]
    ) -> tuple[dict[int, int], list[int]]:
        self._check_name(name)
        kinds = {isinstance(each, int) for each in values} or {True}
        if len(kinds) > 1 or not all(values.values()):
            raise UnsupportedError(
                f"array {self.name!r}: a transaction of DVID's API has vertices or edges, not both,"
                " and values that are not empty"
            )
        word = "vertices" if kinds == {True} else "edges"
        parts = [_locks(stamps), struct.pack("<Q", len(values))]
        for each, value in values.items():
            data = value or b""
            parts += [struct.pack(f"<{len(ends_of(each)) + 1}Q", *ends_of(each), len(data)), data]
        body = b"".join(parts)
        return _read_locks(
            self._ask("POST", "propertytransaction", word, name, body=body, twice=False)
        )

    def _check_name(self, name: str) -> None:
        if not fits_path(name):
            raise UnsupportedError(
                f"array {self.name!r}: the name of a property has no '/' in DVID's URLs; got"
                f" {name!r:.80}"
            )


# -- on the wire ---------------------------------------------------------------------------


def _to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _graph_json(items: Iterable[tuple[Any, float]]) -> dict[str, Any]:
    """Return vertices and edges as DVID's JSON has them."""
    found: dict[str, Any] = {"Vertices": [], "Edges": []}
    for name, weight in items:
        if isinstance(name, int):
            found["Vertices"].append({"Id": name, "Weight": weight})
        else:
            found["Edges"].append({"Id1": name[0], "Id2": name[1], "Weight": weight})
    return found


def _read_graph(reply: Reply) -> tuple[list[Vertex], list[Edge]]:
    found = reply.json()
    try:
        vertices = [(int(v["Id"]), float(v["Weight"])) for v in found.get("Vertices") or ()]
        edges = [
            (*check_edge((int(e["Id1"]), int(e["Id2"]))), float(e["Weight"]))
            for e in found.get("Edges") or ()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the answer is no graph: {error!r} [{reply.request}]") from None
    return vertices, edges


def _path(element: Element, name: str) -> tuple[str, ...]:
    return "property", *(str(each) for each in ends_of(in_order(element))), name


def _numbers(elements: Iterable[Element]) -> Iterator[int]:
    """Yield two numbers of each element, the second 0 of a vertex."""
    for each in elements:
        yield from (each, 0) if isinstance(each, int) else each


def _stamp(given: Any) -> int:
    """Return a stamp as it is sent; 0, which no vertex has, for what can be none."""
    try:
        number = int(given) if isinstance(given, numbers.Number) else operator.index(given)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if number == given and 0 <= number < 2**64 else 0


def _locks(stamps: Mapping[int, int]) -> bytes:
    flat = itertools.chain.from_iterable(stamps.items())
    return struct.pack(f"<{2 * len(stamps) + 1}Q", len(stamps), *flat)


def _reader(reply: Reply) -> Callable[[int], tuple[int, ...]]:
    """Return what reads the next so many numbers of an answer."""
    at = 0

    def read(count: int) -> tuple[int, ...]:
        nonlocal at
        if 8 * count > len(reply.body) - at:
            raise EngineError(f"the answer is cut off [{reply.request}]")
        found = struct.unpack_from(f"<{count}Q", reply.body, at)
        at += 8 * count
        return found

    return read


def _read_locks(reply: Reply) -> tuple[dict[int, int], list[int]]:
    """Return the stamps of vertices that were locked, and the others."""
    read = _reader(reply)
    flat = read(2 * read(1)[0])
    return dict(zip(flat[::2], flat[1::2], strict=True)), list(read(read(1)[0]))


def _read_values(reply: Reply, count: int) -> Iterator[bytes | None]:
    """Yield the values of an answer: of each how many bytes it has, and these."""
    at = 0
    for _each in range(count):
        if len(reply.body) - at < 8:
            raise EngineError(f"the answer is cut off [{reply.request}]")
        (size,) = struct.unpack_from("<Q", reply.body, at)
        at += 8
        if size == NONE:
            yield None
            continue
        if size > len(reply.body) - at:
            raise EngineError(f"the answer is cut off [{reply.request}]")
        yield reply.body[at : at + size]
        at += size
