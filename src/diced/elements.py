"""Vertices, edges and weights of label graphs: checked, and as keys and bytes. Pure."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

from diced.errors import InvalidError
from diced.spec import check_text

VERTEX = struct.Struct(">Q")
EDGE = struct.Struct(">QQ")
WEIGHT = struct.Struct("<d")
STAMP = struct.Struct("<Q")
MAX_VERTEX = 2**64 - 1
MAX_NAME = 1024  # bytes of a property's name

Pair = tuple[int, int]
Element = int | Pair  # a vertex or an edge
Pointer = tuple[int, int, int]


def check_vertex(vertex: Any) -> int:
    """Return a vertex, or raise InvalidError."""
    if isinstance(vertex, bool) or not isinstance(vertex, int) or not 1 <= vertex <= MAX_VERTEX:
        raise InvalidError(f"a vertex is a number from 1 to {MAX_VERTEX}; got {vertex!r:.60}")
    return vertex


def check_edge(pair: Any) -> Pair:
    """Return the two vertices of an edge, the smaller one first, or raise InvalidError."""
    try:
        one, other = pair
    except (TypeError, ValueError):
        raise InvalidError(f"an edge is two vertices; got {pair!r:.60}") from None
    first, second = check_vertex(one), check_vertex(other)
    if first == second:
        raise InvalidError(f"an edge joins two vertices; got {first} twice")
    return (first, second) if first < second else (second, first)


def in_order(element: Element) -> Element:
    """Return a vertex, or an edge with the smaller end first."""
    return element if isinstance(element, int) else check_edge(element)


def ends_of(element: Element) -> Pair | tuple[int]:
    """Return the vertices that a vertex or an edge is of."""
    return (element,) if isinstance(element, int) else element


def property_key(element: Element, name: str) -> bytes:
    """Return the key of a property, or raise InvalidError."""
    text = check_text("the name of a property", name).encode()
    if not 1 <= len(text) <= MAX_NAME:
        raise InvalidError(f"the name of a property has 1 to {MAX_NAME} bytes; got {len(text)}")
    if isinstance(element, int):
        return b"v" + VERTEX.pack(check_vertex(element)) + text
    if not isinstance(element, tuple):
        raise InvalidError(f"properties are of a vertex or a pair of them; got {element!r:.60}")
    return b"e" + EDGE.pack(*check_edge(element)) + text


def prefixed(prefix: bytes) -> tuple[bytes, bytes | None]:
    """Return the first key with a prefix, and the first after all of them."""
    trimmed = prefix.rstrip(b"\xff")
    return prefix, trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def finite(weight: Any) -> float:
    """Return a weight, or raise InvalidError."""
    try:
        value = float(weight)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InvalidError(f"a weight is a finite number; got {weight!r:.60}")
    return value


def packed(weight: float) -> bytes:
    """Return a weight as it is stored, or raise InvalidError."""
    return WEIGHT.pack(finite(weight))


def both_ways(weights: Iterable[tuple[bytes, float]]) -> dict[bytes, Pointer | bytes | None]:
    """Return the entries of edges, by both ends."""
    found: dict[bytes, Pointer | bytes | None] = {}
    for name, weight in weights:
        found[name] = found[name[8:] + name[:8]] = packed(weight)
    return found
