"""Names of engines, codecs and kinds, and the code behind each.

A table from (group, name) to a ``"module:function"`` string, resolved at first use, so that a
lower layer can reach an upper one's code by name and an unused engine costs no import.  This is
the only module that calls importlib.  Third parties add entries with the entry-point groups
``diced.engine``, ``diced.codec``, ``diced.kind``, ``diced.datatype`` and ``diced.store``; those are
scanned only for names that are not in the table, because importing ``importlib.metadata`` takes
tens of milliseconds.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from diced.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    near_matches,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUPS = ("engine", "codec", "kind", "datatype", "store", "service")

_IMAGES = (
    "uint8blk", "uint16blk", "uint32blk", "uint64blk", "float32blk", "rgba8blk",
)  # fmt: skip
_targets: dict[str, dict[str, object]] = {
    "engine": {
        "file": "diced.engine.local:open_local",
        "gs": "diced.engine.gcs:open_gcs",
        "memory": "diced.engine.memory:open_memory",
    },
    "codec": {},
    "kind": {
        "image": "diced.array:DicedArray",
        "label": "diced.array:DicedArray",
        "keyvalue": "diced.files:KeyValueArray",
        "roi": "diced.roi:RoiArray",
        "imagetile": "diced.tiles:TileArray",
        "labelgraph": "diced.graph:GraphArray",
        "pyramid": "diced.multiscale:Level",
    },
    # Data types of the server, by the name they have on the wire.
    "datatype": {
        **{name: f"diced.server.images:{name.upper()}" for name in _IMAGES},
        "labelblk": "diced.server.labelblk:TYPE",
        "keyvalue": "diced.server.keyvalue:TYPE",
        "roi": "diced.server.roi:TYPE",
        "imagetile": "diced.server.imagetile:TYPE",
        "labelgraph": "diced.server.labelgraph:TYPE",
    },
    # What a store can start beside itself.
    "service": {"http": "diced.server.serve:start_background"},
    # Stores that are no location of an engine, by scheme.
    "store": {
        scheme: "diced.remote.store:RemoteStore"
        for scheme in ("dvid", "dvid+http", "dvid+https", "dvids")
    },
}
_resolved: dict[tuple[str, str], object] = {}
_lock = threading.Lock()

# What importing somebody else's module may plausibly raise; interrupts and MemoryError pass.
_BROKEN = (
    ImportError,
    AttributeError,
    SyntaxError,
    NameError,
    TypeError,
    ValueError,
    LookupError,
    OSError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
)


def register(group: str, name: str, target: object, *, replace: bool = False) -> None:
    """Add an entry.

    Parameters
    ----------
    group : {"engine", "codec", "kind", "datatype", "store", "service"}
        For "engine" and "store" the name is a URL scheme.
    name : str
        What `lookup` will be asked for.
    target : str or object
        ``"module:attribute"``, imported at the first lookup, or the object itself.
    replace : bool
        Take the place of an existing entry instead of raising.

    Raises
    ------
    AlreadyExistsError
        If the name has a different target already.
    InvalidError
        If the group is unknown, or the name or target is malformed.
    """
    table = _table(group)
    if not isinstance(name, str) or not name:
        raise InvalidError(f"name of a {group} must be a non-empty string; got {name!r}")
    if isinstance(target, str):
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute):
            raise InvalidError(f"target of {group} {name!r} must be 'module:name'; got {target!r}")
    with _lock:
        if not replace and name in table and table[name] != target:
            raise AlreadyExistsError(f"{group} {name!r} is registered already, as {table[name]!r}")
        table[name] = target
        _resolved.pop((group, name), None)


def lookup(group: str, name: str) -> object:
    """Return what is registered as `name`, importing it if this is the first use.

    Raises
    ------
    NotFoundError
        If no such name is registered, here or by an entry point; names near ones.
    UnsupportedError
        If the entry exists but cannot be imported; the cause is chained.
    """
    table = _table(group)
    found = _resolved.get((group, name))
    if found is not None:
        return found
    if name in table:
        target = table[name]
        found = _load(target, f"{group} {name!r} ({target})") if isinstance(target, str) else target
    else:
        found = _load_entry_point(group, name)
    _resolved[group, name] = found
    return found


def is_listed(group: str, name: str) -> bool:
    """Tell whether a name is known without a look at other packages."""
    return name in _table(group)


def names(group: str) -> list[str]:
    """Return every name in a group, sorted, entry points included."""
    return sorted({*_table(group), *_entry_points(group)})


def _table(group: str) -> dict[str, object]:
    table = _targets.get(group)
    if table is None:
        raise InvalidError(f"registry group must be one of {', '.join(GROUPS)}; got {group!r}")
    return table


def _load(target: str, what: str) -> object:
    from importlib import import_module

    module, _, attributes = target.partition(":")
    try:
        found: object = import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except _BROKEN as error:
        raise UnsupportedError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return found


def _load_entry_point(group: str, name: str) -> object:
    claims = _entry_points(group)
    if name not in claims:
        known = {*_table(group), *claims}
        raise NotFoundError(f"no {group} named {name!r}{near_matches(str(name), known)}")
    points = claims[name]
    if len({point.value for point in points}) > 1:
        who = ", ".join(sorted(_describe(point) for point in points))
        raise UnsupportedError(f"{group} {name!r} is claimed by several packages: {who}")
    value = points[0].value.partition("[")[0].strip()  # "module:name [extra]"
    return _load(value, f"{group} {name!r}, entry point {_describe(points[0])},")


def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    # Scanned anew each time: a miss is rare, and a package may have been installed since.
    from importlib.metadata import entry_points

    claims: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=f"diced.{group}"):
        claims.setdefault(point.name, []).append(point)
    return claims


def _describe(point: EntryPoint) -> str:
    owner = point.dist.name if point.dist is not None else "an unnamed package"
    return f"{point.value} of {owner}"
