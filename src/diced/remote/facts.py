"""What a DVID server's JSON says of repos, versions and instances, in diced's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diced.dag import LOCKED, OPEN, Dag, Node
from diced.errors import EngineError, InvalidError, NotFoundError, UnsupportedError
from diced.grid import Box
from diced.spec import DTYPES, ArraySpec, array_fields

TAG = "tag-"  # DVID's tag is a locked child on a branch of this and the tag, which is its UUID

IMAGES = {
    "uint8blk": ("uint8", None),
    "uint16blk": ("uint16", None),
    "uint32blk": ("uint32", None),
    "uint64blk": ("uint64", None),
    "float32blk": ("float32", None),
    "rgba8blk": ("uint8", 4),
    "grayscale8": ("uint8", None),
    "rgba8": ("uint8", 4),
    "googlevoxels": ("uint8", None),
}
LABELS = ("labelblk", "labelarray", "labelmap", "labels64")
# What is written here as voxels would be bodies, and what is read as bodies would be supervoxels.
INDEXED = ("labelarray", "labelmap")
# Codecs of DVID's blocks by the first word of its text.
_CODECS = {"lz4": "lz4", "gzip": "gzip", "jpeg": "jpeg", "no": "raw", "go": "snappy"}


class RepoFacts:
    """A repo's metadata at one moment.

    Parameters
    ----------
    fields : dict
        As ``repo/<uuid>/info`` gives it.

    Attributes
    ----------
    root, alias, description, created : str
    problem : str
        What our server says of a repo whose metadata are damaged.
    log : list of str
    dag : Dag
        The id of a node is its UUID.
    instances : dict of dict
        By name: ``Base``, ``Extended``, ...
    """

    def __init__(self, fields: Mapping[str, Any]):
        try:
            self.root = str(fields["Root"])
            self.alias = str(fields.get("Alias") or "")
            self.description = str(fields.get("Description") or "")
            self.created = str(fields.get("Created") or "")
            self.problem = str(fields.get("Problem") or "")
            self.log = [str(each) for each in fields.get("Log") or ()]
            self.instances: dict[str, Any] = dict(fields.get("DataInstances") or {})
            self.dag = _dag(fields["DAG"]["Nodes"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise EngineError(
                f"the server's JSON of a repo is not DVID's: {type(error).__name__} {error}"
            ) from None

    @property
    def name(self) -> str:
        """The alias, or the root's UUID where there is none."""
        return self.alias or self.root

    def visible(self, uuid: str) -> dict[str, Any]:
        """Return the instances that a version shows, by name."""
        dag = self.dag
        if uuid not in dag.nodes:
            raise NotFoundError(f"version {uuid} of repo {self.name!r} is not shown any more")
        ancestry = dag.ancestry(dag.nodes[uuid])
        found = {}
        for name, each in sorted(self.instances.items()):
            base = each.get("Base", {})
            born = base.get("RepoUUID")
            # Where its node is hidden nothing can be said of what descends from it.
            if not base.get("Versioned", True) or born in ancestry or born not in dag.nodes:
                found[name] = each
        return found


def _dag(nodes: Mapping[str, Any]) -> Dag:
    numbers = {int(each["VersionID"]): uuid for uuid, each in nodes.items()}
    found, tags = [], {}
    for uuid, each in nodes.items():
        parents = [numbers[p] for p in each.get("Parents") or () if p in numbers]
        branch = str(each.get("Branch") or "")
        if branch == TAG + uuid and len(parents) == 1 and not each.get("Children"):
            tags[uuid] = parents[0]
            continue
        fields = {
            "uuid": uuid, "number": int(each["VersionID"]), "parents": parents,
            "branch": "" if branch == "master" else branch,
            "status": LOCKED if each.get("Locked") else OPEN, "note": str(each.get("Note") or ""),
            "user": "", "created": str(each.get("Created") or ""),
            "updated": str(each.get("Updated") or ""),
            "log": [str(line) for line in each.get("Log") or ()],
        }  # fmt: skip
        found.append(Node(uuid, fields))
    return Dag(found, tags)


def kind_of(info: Mapping[str, Any]) -> str:
    """Return the kind of an instance: diced's word, or else the name of its data type."""
    name = str(info["Base"]["TypeName"])
    return "image" if name in IMAGES else "label" if name in LABELS else name


def spec_of(info: Mapping[str, Any], dims: int = 3) -> ArraySpec:
    """Return the description of an instance.

    Parameters
    ----------
    info : dict
        ``Base`` and ``Extended``.
    dims : int
        Arrays of one or two dimensions are volumes to the server, one voxel thick.
    """
    base = info["Base"]
    fields: dict[str, Any] = {
        "name": base["Name"], "kind": kind_of(info), "versioned": bool(base.get("Versioned", True)),
        "node": base.get("RepoUUID", ""), "type": base["TypeName"],
        "syncs": list(base.get("Syncs") or ()),
    }  # fmt: skip
    identity = str(base.get("DataUUID") or base["Name"])
    if fields["kind"] not in ("image", "label"):
        block = (info.get("Extended") or {}).get("BlockSize")
        if isinstance(block, list) and all(type(each) is int for each in block):
            fields["block_shape"] = block[::-1]
        return ArraySpec(identity, fields)
    try:
        extended = info["Extended"]
        dtype, channels = _element(base["TypeName"], extended)
        block = tuple(int(each) for each in reversed(extended["BlockSize"]))
        size = [float(each) for each in reversed(extended.get("VoxelSize") or (1.0,) * len(block))]
        units = [str(each) for each in reversed(extended.get("VoxelUnits") or ("",) * len(block))]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"the server's JSON of data {base['Name']!r} is not DVID's: {error!r}"
        ) from None
    kept = slice(len(block) - dims, None)
    element = np.dtype(dtype)
    fields |= {
        "dtype": DTYPES[element.name], "dims": dims, "block_shape": list(block[kept]),
        "channels": channels, "codec": _codec(fields["kind"], str(base.get("Compression", ""))),
        # What was never written reads as 0, whatever Background is.
        "fill": bytes(element.itemsize * (channels or 1)).hex(),
        "voxel_size": size[kept], "units": units[kept],
    }  # fmt: skip
    return ArraySpec(identity, fields)


def _element(typename: str, extended: Mapping[str, Any]) -> tuple[str, int | None]:
    if typename in LABELS:
        return "uint64", None
    values = extended.get("Values") or ()
    kinds = {str(each["DataType"]) for each in values}
    if len(kinds) == 1 and (found := kinds.pop()) in DTYPES:
        return found, len(values) if len(values) > 1 else None
    return IMAGES[typename]


def _codec(kind: str, text: str) -> str:
    words = text.lower().replace(",", " ").split()
    name = _CODECS.get(words[0], words[0]) if words else "lz4"
    if kind == "label":
        return f"label+{name}"
    level = words[-1] if words else ""
    if name == "gzip" and level.isdigit():
        return f"gzip:{level}"
    return "jpeg:80" if name == "jpeg" else name


def numdims_needed(info: Mapping[str, Any]) -> bool:
    """Tell whether an instance may be an array of one or two dimensions."""
    block = list((info.get("Extended") or {}).get("BlockSize") or ())
    return kind_of(info) in ("image", "label") and len(block) == 3 and block[2] == 1


def box_of(info: Mapping[str, Any], dims: int) -> Box | None:
    """Return the box of what was written, as far as the server knows it; None: nothing."""
    for where in ("Extents", "Extended"):
        ends = info.get(where) or {}
        low, high = ends.get("MinPoint"), ends.get("MaxPoint")
        if low and high:
            lo = tuple(int(each) for each in reversed(low))
            hi = tuple(int(each) + 1 for each in reversed(high))
            return lo[len(lo) - dims :], hi[len(hi) - dims :]
    return None


def settings_of(name: str, kind: str, options: Mapping[str, Any]) -> tuple[dict[str, str], int]:
    """Return the settings that create an instance on any DVID server, and its dimensions.

    Parameters
    ----------
    name : str
    kind : str
        ``image`` or ``label``.
    options : mapping
        Of ``create_array``.

    Raises
    ------
    InvalidError
    UnsupportedError
        DVID has no such arrays.
    """
    fields = array_fields(name, kind=kind, **options)
    dtype, dims, channels = np.dtype(fields["dtype"]), fields["dims"], fields["channels"]
    typename = "labelblk" if fields["codec"].startswith("label") else _typename(dtype, channels)
    if typename is None or dims > 3:
        what = f"{dtype.name}" + (f" with {channels} channels" if channels is not None else "")
        raise UnsupportedError(
            f"array {name!r}: DVID has no {dims}-D arrays of {what}; it has 1-D to 3-D ones of"
            " uint8, uint16, uint32, uint64, float32, and uint8 with 4 channels"
        )
    if any(bytes.fromhex(fields["fill"])):
        raise UnsupportedError(
            f"array {name!r}: on a DVID server what was never written is 0; got fill"
            f" {options.get('fill')!r}"
        )
    ones = (1,) * (3 - dims)
    settings = {
        "typename": typename,
        "BlockSize": _xyz((*ones, *fields["block_shape"])),
        "VoxelSize": _xyz((*(1.0,) * (3 - dims), *fields["voxel_size"])),
    }
    if any(fields["units"]):
        settings["VoxelUnits"] = _xyz((*("",) * (3 - dims), *fields["units"]))
    if typename != "labelblk":
        settings |= _compression(name, fields["codec"])
    return settings, dims


def _typename(dtype: np.dtype[Any], channels: int | None) -> str | None:
    if channels is not None:
        return "rgba8blk" if channels == 4 and dtype == np.uint8 else None
    return f"{dtype.name}blk" if f"{dtype.name}blk" in IMAGES else None


def _compression(name: str, codec: str) -> dict[str, str]:
    word, _, level = codec.partition(":")
    known = {"lz4": "lz4", "raw": "none", "gzip": f"gzip:{level or 6}", "jpeg": "jpeg"}
    if word not in known:
        raise UnsupportedError(
            f"array {name!r}: a DVID server has the codecs raw, lz4, gzip and jpeg; got {codec!r}"
        )
    return {"Compression": known[word]}


def _xyz(values: Any) -> str:
    def text(value: Any) -> str:
        if isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidError(f"a size is finite; got {value}")
            return repr(value)
        return str(value)

    return ",".join(text(each) for each in reversed(values))


def dtype_of(info: Mapping[str, Any]) -> str:
    """Return the name of the type of an instance's voxels."""
    return _element(info["Base"]["TypeName"], info.get("Extended") or {})[0]
