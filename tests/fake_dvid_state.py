"""What the fake of DVID keeps: repos, versions, instances, and how their JSON looks."""

import uuid as uuids
from datetime import UTC, datetime

import numpy as np

TYPES = {
    "uint8blk": ("uint8", 1), "uint16blk": ("uint16", 1), "uint32blk": ("uint32", 1),
    "uint64blk": ("uint64", 1), "float32blk": ("float32", 1), "rgba8blk": ("uint8", 4),
    "labelblk": ("uint64", 1), "labelarray": ("uint64", 1), "labelmap": ("uint64", 1),
}  # fmt: skip
OTHERS = ("keyvalue", "roi", "annotation", "labelsz", "imagetile")
RESERVED = ("log", "branch", "note", "commit", "newversion")
COMPRESSIONS = {
    "": "LZ4 compression, level -1", "lz4": "LZ4 compression, level -1",
    "none": "No compression, level -1", "snappy": "Go Snappy compression, level -1",
    "gzip": "gzip compression, level -1", "jpeg": "jpeg compression, level 80",
    **{f"gzip:{n}": f"gzip compression, level {n}" for n in range(1, 10)},
}  # fmt: skip


class Bad(Exception):
    """A refusal."""

    def __init__(self, text, status=400):
        super().__init__(text)
        self.status = status


def now():
    return datetime.now(UTC).isoformat()


class Node:
    def __init__(self, uuid, number, parent, branch, note):
        self.uuid, self.number, self.parent = uuid, number, parent
        self.branch, self.note, self.log, self.locked = branch, note, [], False
        self.children = []
        self.created = self.updated = now()

    def line(self):
        """This node and its ancestors, newest first."""
        node = self
        while node is not None:
            yield node
            node = node.parent

    def json(self):
        return {
            "Branch": self.branch, "Note": self.note, "Log": self.log, "UUID": self.uuid,
            "VersionID": self.number, "Locked": self.locked,
            "Parents": [self.parent.number] if self.parent else [],
            "Children": [each.number for each in self.children], "Created": self.created,
            "Updated": self.updated,
        }  # fmt: skip


class Instance:
    def __init__(self, typename, name, node, settings):
        self.type, self.name, self.node = typename, name, node
        self.uuid = uuids.uuid4().hex
        self.versioned = str(settings.get("versioned", "true")).lower() in ("true", "1")
        self.values = {}  # version -> block or key -> value
        self.extents = {}  # version -> (lo, hi) XYZ, last included
        compression = settings.get("compression", "")
        if compression not in COMPRESSIONS:
            raise Bad(f"Unknown compression: {compression}")
        self.compression = COMPRESSIONS[compression]
        if typename in TYPES:
            default = "64,64,64" if typename.startswith("label") else "32,32,32"
            self.block = self._numbers(settings.get("blocksize", default), int)
            self.voxel = self._numbers(settings.get("voxelsize", "8.0,8.0,8.0"), float)
            self.units = settings.get("voxelunits", "nanometers,nanometers,nanometers").split(",")
            self.dtype, self.channels = np.dtype(TYPES[typename][0]), TYPES[typename][1]

    @staticmethod
    def _numbers(text, kind):
        found = [kind(each) for each in text.split(",")]
        if len(found) != 3:
            raise Bad(f"needs 3 numbers, got {text}")
        return found

    def at(self, node):
        return node if self.versioned else list(node.line())[-1]

    def get(self, node, key):
        for each in self.at(node).line():
            stored = self.values.get(each.uuid, {})
            if key in stored:
                return stored[key]
        return None

    def put(self, node, key, value):
        self.values.setdefault(self.at(node).uuid, {})[key] = value

    def keys(self, node):
        found = {}
        for each in self.at(node).line():
            for key, value in self.values.get(each.uuid, {}).items():
                found.setdefault(key, value)
        return sorted((key for key, value in found.items() if value is not None), key=str.encode)

    def json(self, node):
        base = {
            "TypeName": self.type, "TypeURL": f"github.com/janelia-flyem/dvid/datatype/{self.type}",
            "TypeVersion": "0.2", "DataUUID": self.uuid, "Name": self.name,
            "RepoUUID": self.node.uuid, "Compression": self.compression,
            "Checksum": "No checksum", "Syncs": [], "Versioned": self.versioned,
            "KVStore": "fake @ memory", "LogStore": "no mutation log set", "Tags": None,
        }  # fmt: skip
        if self.type not in TYPES:
            return {"Base": base, "Extended": {}}
        ends = next(
            (self.extents[each.uuid] for each in self.at(node).line() if each.uuid in self.extents),
            (None, None),
        )
        points = {"MinPoint": ends[0], "MaxPoint": ends[1]}
        labels = ["red", "green", "blue", "alpha"] if self.channels == 4 else [self.type[:-3]]
        return {
            "Base": base,
            "Extended": {
                "Values": [{"DataType": self.dtype.name, "Label": each} for each in labels],
                "Interpolable": True, "BlockSize": self.block, "VoxelSize": self.voxel,
                "VoxelUnits": self.units, **points, "Background": 0, "GridStore": "",
                "ScaleLevel": 0,
            },
            "Extents": points,
        }  # fmt: skip


class Repo:
    def __init__(self, root, alias, description):
        self.alias, self.description, self.log = alias, description, []
        self.root = root
        self.nodes = {root: Node(root, 1, None, "", "")}
        self.instances = {}
        self.created = now()

    def json(self):
        master = max((n for n in self.nodes.values() if not n.branch), key=lambda n: n.number)
        return {
            "Root": self.root, "Alias": self.alias, "Description": self.description,
            "Log": self.log, "Properties": {},
            "DataInstances": {n: each.json(master) for n, each in self.instances.items()},
            "DAG": {"Root": self.root, "Nodes": {u: n.json() for u, n in self.nodes.items()}},
            "MutationID": 1000000000, "SavedMutationID": 1000000000, "Created": self.created,
            "Updated": now(),
        }  # fmt: skip


def ints(text):
    return [int(each) for each in text.split("_")]


def tiles(lo, shape, block):
    """Yield (block coordinates, window of the box, window of the block), ZYX."""
    spans = [range(a // b, (a + n - 1) // b + 1) for a, n, b in zip(lo, shape, block, strict=True)]
    for coord in np.ndindex(*(len(each) for each in spans)):
        place = tuple(span[i] for span, i in zip(spans, coord, strict=True))
        window, inside = [], []
        for c, a, n, b in zip(place, lo, shape, block, strict=True):
            first, last = max(a, c * b), min(a + n, (c + 1) * b)
            window.append(slice(first - a, last - a))
            inside.append(slice(first - c * b, last - c * b))
        yield place, tuple(window), tuple(inside)


def field(number, data):
    out, size = bytearray([number << 3 | 2]), len(data)
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes([size]) + data


def fields_of(data):
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number = varint() >> 3
        size = varint()
        yield number, data[at : at + size]
        at += size
