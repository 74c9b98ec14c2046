"""Repos, version nodes and instances as DVID's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diced.repo import DicedRepo
from diced.server.datatype import DataType

if TYPE_CHECKING:
    from diced.server.site import Site


def instance_json(site: Site, repo: DicedRepo, array: Any, kind: DataType) -> dict[str, Any]:
    """Return an instance as ``info`` gives it."""
    return {"Base": {"TypeName": kind.name, "Name": array.name}, "Extended": kind.extended(array)}
