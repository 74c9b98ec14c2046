"""Weights of the vertices and edges of a label graph."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from diced.pydvid.connection import ask
from diced.pydvid.keyvalue import create_instance


def create_new(connection: Any, uuid: str, data_name: str) -> None:
    """Create a labelgraph instance."""
    create_instance(connection, uuid, data_name, "labelgraph", {})


def update_vertex(connection: Any, uuid: str, data_name: str, vert: int, weight: float) -> None:
    """Add to the weight of a vertex, which is made if it is not there."""
    _post(connection, uuid, data_name, [{"Id": int(vert), "Weight": weight}], [])


def update_edge(
    connection: Any, uuid: str, data_name: str, vert1: int, vert2: int, weight: float
) -> None:
    """Add to the weight of an edge, which is made if it is not there."""
    edge = {"Id1": int(vert1), "Id2": int(vert2), "Weight": weight}
    _post(connection, uuid, data_name, [], [edge])


def _post(connection: Any, uuid: str, data_name: str, vertices: Any, edges: Any) -> None:
    body = json.dumps({"Vertices": vertices, "Edges": edges}).encode()
    path = f"/api/node/{quote(uuid)}/{quote(data_name)}/weight"
    ask(connection, "updating the label graph", "POST", path, body, "application/json")
