"""Label graphs: vertices and edges with weights and properties, in a version.

Vertices are numbers from 1 to 2**64 - 1; an edge joins two of them and has no direction. Each edge
is stored under both its ends, so that the neighbors of a vertex lie together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from diced.elements import (
    EDGE,
    STAMP,
    VERTEX,
    WEIGHT,
    Element,
    Pair,
    both_ways,
    check_edge,
    check_vertex,
    ends_of,
    finite,
    in_order,
    packed,
    prefixed,
    property_key,
)
from diced.errors import CorruptError, InvalidError, NotFoundError
from diced.handle import Handle, together
from diced.log import Delta, Entry
from diced.spec import check_text
from diced.state import Change, State
from diced.values import load_value, store_value
from diced.versioned import Lane

VERTICES, EDGES, PROPERTIES, STAMPS = 0, 1, 2, 3  # spaces
FIRST_STAMP = 1  # of a vertex whose properties no transaction has changed
MANY = 4096  # keys that are looked up at once


class GraphArray(Handle):
    """A label graph at the version that its repo object is at.

    Made by ``repo.create_array(name, kind="labelgraph")``.
    """

    @staticmethod
    def describe(name: str, **_options: Any) -> dict[str, Any]:
        """Return what is stored of the options of ``create_array``: none apply here."""
        return {}

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<GraphArray {self.name!r} at {state} version {self._repo.uuid[:12]}>"

    # -- reading ---------------------------------------------------------------------------

    def graph(self) -> tuple[Iterator[tuple[int, float]], Iterator[tuple[int, int, float]]]:
        """Return all vertices (id, weight) and edges (smaller id, larger id, weight), in order.

        Both are of one moment, and read as they are asked for.
        """
        lane, state = self._now()
        vertices = (
            (VERTEX.unpack(key)[0], self._weight(entry))
            for key, entry in lane.scan(state, VERTICES)
        )
        edges = (
            (first, second, self._weight(entry))
            for key, entry in lane.scan(state, EDGES)
            for first, second in [EDGE.unpack(key)]
            if first < second
        )
        return vertices, edges

    def subgraph(
        self, ids: Iterable[int]
    ) -> tuple[list[tuple[int, float]], Iterator[tuple[int, int, float]]]:
        """Return some vertices, in the order given, and each edge that any of them has.

        Raises
        ------
        NotFoundError
            There is no such vertex.
        """
        lane, state = self._now()
        names = [check_vertex(each) for each in dict.fromkeys(ids)]
        weights = self._weights(lane, state, VERTICES, [VERTEX.pack(each) for each in names])
        vertices = []
        for each in names:
            weight = weights.get(VERTEX.pack(each))
            if weight is None:
                raise NotFoundError(f"Failed to retrieve vertex {each}: it is not in the graph")
            vertices.append((each, weight))

        def edges() -> Iterator[tuple[int, int, float]]:
            seen: set[int] = set()
            for each in names:
                seen.add(each)
                for other, weight in self._around(lane, state, each):
                    if other not in seen:
                        yield min(each, other), max(each, other), weight

        return vertices, edges()

    def neighbors(
        self, vertex: int
    ) -> tuple[list[tuple[int, float]], list[tuple[int, int, float]]]:
        """Return a vertex and its neighbors, itself first, and the edges between it and them.

        Raises
        ------
        NotFoundError
        """
        lane, state = self._now()
        around = self._around(lane, state, check_vertex(vertex))
        found = list(around)
        names = [VERTEX.pack(each) for each in (vertex, *(other for other, _ in found))]
        weights = self._weights(lane, state, VERTICES, names)
        if names[0] not in weights:
            raise NotFoundError(f"Failed to retrieve vertex {vertex}: it is not in the graph")
        vertices = [(VERTEX.unpack(name)[0], weights.get(name, 0.0)) for name in names]
        edges = [(min(vertex, each), max(vertex, each), weight) for each, weight in found]
        return vertices, edges

    def _around(self, lane: Lane, state: State, vertex: int) -> Iterator[tuple[int, float]]:
        """Yield (neighbor, weight of the edge) in order."""
        for key, entry in lane.scan(state, EDGES, *prefixed(VERTEX.pack(vertex))):
            yield EDGE.unpack(key)[1], self._weight(entry)

    def _weight(self, entry: Entry | None) -> float:
        if not isinstance(entry, bytes) or len(entry) != WEIGHT.size:
            raise CorruptError(f"a weight of graph {self.name!r} is not of {WEIGHT.size} bytes")
        return float(WEIGHT.unpack(entry)[0])

    def _weights(
        self, lane: Lane, state: State, space: int, names: Iterable[bytes]
    ) -> dict[bytes, float]:
        """Return the weights of those of some keys that there are."""
        ordered = sorted(set(names))
        found: dict[bytes, float] = {}
        for at in range(0, len(ordered), MANY):
            some = ordered[at : at + MANY]
            for name, entry in zip(some, lane.get_many(state, space, some), strict=True):
                if entry is not None:
                    found[name] = self._weight(entry)
        return found

    # -- writing weights -------------------------------------------------------------------

    def put(
        self, vertices: Mapping[int, float], edges: Mapping[Pair, float], *, operation: str = "put"
    ) -> None:
        """Set weights, in one commit; what is not there is made.

        Raises
        ------
        InvalidError, NotFoundError, LockedError, ReadOnlyError
            NotFoundError: of the ends of a new edge at least one is in the graph or in `vertices`.
        """
        self._change(vertices, edges, operation, add=False)

    def add(
        self, vertices: Mapping[int, float], edges: Mapping[Pair, float], *, operation: str = "add"
    ) -> None:
        """Add to weights, in one commit; what is not there is made. Errors as of `put`."""
        self._change(vertices, edges, operation, add=True)

    def _change(
        self, vertices: Mapping[int, float], edges: Mapping[Pair, float], operation: str, add: bool
    ) -> None:
        mine = {VERTEX.pack(check_vertex(key)): finite(w) for key, w in vertices.items()}
        # The two ends may come in either order; of one edge given twice that way both count.
        pairs: dict[bytes, float] = {}
        for pair, weight in edges.items():
            name = EDGE.pack(*check_edge(pair))
            pairs[name] = finite(pairs[name] + weight if add and name in pairs else weight)
        ends = {name[at : at + 8] for name in pairs for at in (0, 8)}
        lane = self._lane_to_write(operation)

        def prepare(state: State, _touched: Any) -> Change | None:
            if not mine and not pairs:
                return None
            known = self._weights(lane, state, VERTICES, {*mine, *ends})
            joined = self._weights(lane, state, EDGES, pairs)
            weights = {
                name: known.get(name, 0.0) + weight if add else weight
                for name, weight in mine.items()
            }
            for name in pairs:
                if name not in joined:
                    first, second = name[:8], name[8:]
                    if not any(each in mine or each in known for each in (first, second)):
                        raise NotFoundError(
                            f"Failed to add edge {EDGE.unpack(name)}: neither vertex is there"
                        )
                    for each in (first, second):
                        if each not in known:
                            weights.setdefault(each, 0.0)
            delta: Delta = {
                VERTICES: {name: packed(weight) for name, weight in weights.items()},
                EDGES: both_ways(
                    (name, joined.get(name, 0.0) + weight if add else weight)
                    for name, weight in pairs.items()
                ),
            }
            reads = {VERTICES: [*known.keys() | mine.keys() | ends], EDGES: [*pairs]}
            return Change({space: each for space, each in delta.items() if each}, reads)

        self._commit(lane, prepare, operation)

    def remove(
        self, vertices: Iterable[int], edges: Iterable[Pair], *, operation: str = "delete"
    ) -> None:
        """Remove vertices with all their edges and properties, and edges, in one commit.

        What is not there is passed over.
        """
        gone = {check_vertex(each) for each in vertices}
        pairs = {EDGE.pack(*check_edge(each)) for each in edges}
        lane = self._lane_to_write(operation)

        def prepare(state: State, _touched: Any) -> Change | None:
            delta = self._removal(lane, state, gone, pairs)
            return Change(delta) if delta else None

        self._commit(lane, prepare, operation)

    def clear(self, *, operation: str = "delete graph") -> None:
        """Remove everything from this version and its descendants, in one commit."""
        lane = self._lane_to_write(operation)

        def prepare(state: State, _touched: Any) -> Change | None:
            delta: Delta = {}
            for space in (VERTICES, EDGES, PROPERTIES):
                names: dict[bytes, Entry | None] = {key: None for key, _ in lane.scan(state, space)}
                if names:
                    delta[space] = names
            return Change(delta) if delta else None

        self._commit(lane, prepare, operation)

    def _removal(self, lane: Lane, state: State, gone: set[int], pairs: set[bytes]) -> Delta:
        """Return what removes vertices, with all that hangs on them, and edges."""
        names = sorted(VERTEX.pack(each) for each in gone)
        there = self._weights(lane, state, VERTICES, names)
        joined = set(self._weights(lane, state, EDGES, pairs))
        properties: dict[bytes, Entry | None] = {}
        for name in names:
            for key, _ in lane.scan(state, EDGES, *prefixed(name)):
                joined.add(EDGE.pack(*sorted(EDGE.unpack(key))))
            for key, _ in lane.scan(state, PROPERTIES, *prefixed(b"v" + name)):
                properties[key] = None
        for name in joined:
            for key, _ in lane.scan(state, PROPERTIES, *prefixed(b"e" + name)):
                properties[key] = None
        delta: Delta = {
            VERTICES: dict.fromkeys(there),
            EDGES: {each: None for name in joined for each in (name, name[8:] + name[:8])},
            PROPERTIES: properties,
        }
        return {space: each for space, each in delta.items() if each}

    def merge(
        self,
        ids: Sequence[int],
        weight: float | None = None,
        edges: Mapping[Pair, float] | None = None,
        *,
        operation: str = "merge",
    ) -> None:
        """Merge vertices into the last of them, in one commit: weights are summed.

        Parameters
        ----------
        ids : sequence of int
            At least two.
        weight : float, optional
            Of the vertex that stays, instead of the sum.
        edges : mapping of (int, int) to float, optional
            Weights of edges of the vertex that stays, instead of the sums.

        Raises
        ------
        InvalidError, NotFoundError
        """
        names = [check_vertex(each) for each in dict.fromkeys(ids)]
        if len(names) < 2 or names[-1] != ids[-1]:
            raise InvalidError("Must specify at least two vertices for merging, each once")
        given = {check_edge(pair): finite(each) for pair, each in (edges or {}).items()}
        kept, gone = names[-1], set(names[:-1])
        lane = self._lane_to_write(operation)

        def prepare(state: State, _touched: Any) -> Change:
            keys = [VERTEX.pack(each) for each in names]
            weights = self._weights(lane, state, VERTICES, keys)
            for each, key in zip(names, keys, strict=True):
                if key not in weights:
                    raise NotFoundError(f"Failed to retrieve vertex {each}: it is not in the graph")
            total = sum(weights.values()) if weight is None else finite(weight)
            sums: dict[int, float] = {}
            for each in names:
                for other, one in self._around(lane, state, each):
                    if other not in gone and other != kept:
                        sums[other] = sums.get(other, 0.0) + one
            for other in sums:
                pair = (min(kept, other), max(kept, other))
                sums[other] = given.get(pair, sums[other])
            delta = self._removal(lane, state, gone, set())
            delta[VERTICES] = {**delta[VERTICES], keys[-1]: packed(total)}
            fresh = both_ways(
                (EDGE.pack(*sorted((kept, other))), each) for other, each in sums.items()
            )
            if fresh:
                delta[EDGES] = {**delta.get(EDGES, {}), **fresh}
            return Change(delta)

        self._commit(lane, prepare, operation)

    # -- properties ------------------------------------------------------------------------

    def property(self, element: Element, name: str) -> bytes | None:
        """Return a property of a vertex, or of an edge (a pair), or None."""
        return next(self.properties([element], name))

    def properties(self, elements: Iterable[Element], name: str) -> Iterator[bytes | None]:
        """Yield the property of each vertex or edge, all of one moment."""
        lane, state = self._now()
        names = [property_key(each, name) for each in elements]
        for at in range(0, len(names), MANY):
            some = names[at : at + MANY]
            ordered = sorted(set(some))
            found = dict(zip(ordered, lane.get_many(state, PROPERTIES, ordered), strict=True))
            for key in some:
                entry = found[key]
                where = f"property {name!r} of graph {self.name!r}"
                yield None if entry is None else load_value(lane, PROPERTIES, key, entry, where)

    def set_property(self, element: Element, name: str, value: Any) -> None:
        """Store a property of a vertex or an edge that is there; None removes it.

        Raises
        ------
        InvalidError, LockedError, ReadOnlyError
        NotFoundError
            There is no such vertex or edge.
        """
        property_key(element, name)
        verb = "delete" if value is None else "put"
        self._store({element: value}, name, {}, f"{verb} property {name}")

    def stamps(self, ids: Iterable[int]) -> dict[int, int]:
        """Return the stamp of each vertex: it changes with each `transact` that names it."""
        lane, state = self._now()
        return self._stamps(lane, state, [check_vertex(each) for each in ids])

    def transact(
        self, stamps: Mapping[int, int], values: Mapping[Element, Any], name: str
    ) -> tuple[dict[int, int], list[int]]:
        """Store a property of vertices or edges, as far as nobody did so meanwhile; one commit.

        Parameters
        ----------
        stamps : mapping of int to int
            Vertices, and the stamps that the caller has of them.
        values : mapping
            Vertex or edge to bytes. Passed over is what has an end that is not in `stamps`, or
            whose stamp is no longer that.

        Returns
        -------
        dict of int, list of int
            New stamps, and vertices whose stamps have changed meanwhile.

        Raises
        ------
        NotFoundError
            There is no such vertex or edge.
        """
        return self._store(values, name, stamps, f"put property {name}", checked=True)

    def _store(
        self,
        values: Mapping[Element, Any],
        name: str,
        stamps: Mapping[int, int],
        operation: str,
        checked: bool = False,
    ) -> tuple[dict[int, int], list[int]]:
        names = [check_vertex(each) for each in stamps]
        keys = {each: property_key(each, name) for each in values}
        lane = self._lane_to_write(operation)
        frames = lane.home.frames()
        entries = {
            each: None
            if value is None
            else store_value(lane, PROPERTIES, keys[each], value, frames)
            for each, value in values.items()
        }
        fresh: dict[int, int] = {}
        stale: list[int] = []

        def prepare(state: State, _touched: Any) -> Change | None:
            nonlocal fresh, stale
            now = self._stamps(lane, state, names)
            fresh = {each: now[each] + 1 for each in names if now[each] == stamps[each]}
            stale = [each for each in names if each not in fresh]
            chosen = [
                each for each in values if not checked or all(end in fresh for end in ends_of(each))
            ]
            vertices = {VERTEX.pack(each) for each in chosen if isinstance(each, int)}
            pairs = {
                EDGE.pack(*each) for each in map(in_order, chosen) if not isinstance(each, int)
            }
            there = self._weights(lane, state, VERTICES, vertices)
            joined = self._weights(lane, state, EDGES, pairs)
            for each in chosen:
                known = (
                    VERTEX.pack(each) in there
                    if isinstance(each, int)
                    else (EDGE.pack(*check_edge(each)) in joined)
                )
                if not known:
                    raise NotFoundError(f"Failed to add property {name}: {each} is not there")
            delta: Delta = {
                PROPERTIES: {keys[each]: entries[each] for each in chosen},
                STAMPS: {VERTEX.pack(each): STAMP.pack(stamp) for each, stamp in fresh.items()},
            }
            reads = {
                VERTICES: [*vertices],
                EDGES: [*pairs],
                STAMPS: [VERTEX.pack(each) for each in names],
            }
            delta = {space: each for space, each in delta.items() if each}
            return Change(delta, reads, None, frames) if delta else None

        self._commit(lane, prepare, operation)
        return fresh, stale

    def _stamps(self, lane: Lane, state: State, ids: Sequence[int]) -> dict[int, int]:
        ordered = sorted(set(ids))
        found: dict[int, int] = {}
        for at in range(0, len(ordered), MANY):
            some = ordered[at : at + MANY]
            names = [VERTEX.pack(each) for each in some]
            for each, entry in zip(some, lane.get_many(state, STAMPS, names), strict=True):
                if entry is None:
                    found[each] = FIRST_STAMP
                elif isinstance(entry, bytes) and len(entry) == STAMP.size:
                    found[each] = STAMP.unpack(entry)[0]
                else:
                    raise CorruptError(f"a stamp of graph {self.name!r} is not of 8 bytes")
        return {each: found[each] for each in ids}

    # -- place -----------------------------------------------------------------------------

    def _lane(self) -> Lane:
        return self._repo._lane(self._spec)

    @together()
    def _now(self) -> tuple[Lane, State]:
        lane = self._lane()
        return lane, lane.refresh()

    @together(lane=False)
    def _lane_to_write(self, operation: str) -> Lane:
        self._repo._check_writable(self._spec)
        check_text(f"{self.name!r}: the operation", operation)
        return self._lane()
