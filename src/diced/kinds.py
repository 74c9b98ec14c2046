"""Kinds of arrays: the class behind each, its own or that of a package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diced import registry
from diced.array import DicedArray
from diced.errors import NotFoundError, UnsupportedError
from diced.files import KeyValueArray
from diced.spec import ArraySpec

if TYPE_CHECKING:
    from diced.repo import DicedRepo

# Kinds that need no package; asking what is installed takes milliseconds.
BUILT_IN = frozenset(("image", "label", "keyvalue", "roi", "imagetile", "labelgraph"))


def class_of(kind: str) -> Any:
    """Return the class of a kind: constructed with (repo, spec), `describe` checks options."""
    return registry.lookup("kind", kind)


def open_array(repo: DicedRepo, spec: ArraySpec) -> Any:
    """Return the handle of an array.

    If a package that is not installed made it, its blocks and keys can still be read.
    """
    try:
        kind = class_of(spec.kind)
    except NotFoundError:
        kind = KeyValueArray if spec.dtype is None else DicedArray
    return kind(repo, spec)


def check_known(spec: ArraySpec) -> None:
    """Raise UnsupportedError if an array is of a kind that cannot be written here."""
    if spec.kind not in BUILT_IN and spec.kind not in registry.names("kind"):
        raise UnsupportedError(
            f"array {spec.name!r} is of kind {spec.kind!r}, whose package is not installed;"
            " it can only be read"
        )
