"""The only speller of object keys. No user text ever enters one (invariant I6).

A *home* is a subtree with lanes, pages, segments and locks of its own: ``store`` for the store's
metadata, ``r/<repo id>`` for a repo. Ids are random lower-case hex.

::

    diced.json                                       format, store uuid, required features
    probes/xx/<id>.json                              what ``diced probe`` found
    <home>/lanes/<lane>/<node>/e000000/0000000001    commit record
    <home>/lanes/<lane>/<node>/e000000.snap/<n>      snapshot: roots after record n (derived)
    <home>/lanes/<lane>/<node>/pend/<txid>           proposal that waits to be gathered
    <home>/lanes/<lane>/<node>/turn/<n>-<attempt>    hint: a writer gathers proposals for record n
    <home>/lanes/<lane>/<node>/join/<session>/<txid> part of a write session, until its commit
    <home>/locks/<node>                              roots of every lane at a locked node
    <home>/pages/3f/3f9c...e1.pg                     packed index pages
    <home>/segs/a0/a04d...77.seg                     frames
    <home>/spare/<rest of a key>                     only while a rebuild replaces that object
"""

from __future__ import annotations

import os

STORE_FILE = "diced.json"
BESIDE = ("probes/", "probe-tmp/")  # of `diced probe`: beside a store, or before there is one
STORE_HOME = "store"
META_LANE = "meta"
NO_NODE = "0" * 16  # stands for the node in lanes that no version owns
EPOCH = "e000000"
SNAPSHOTS = EPOCH + ".snap"


def new_id() -> str:
    """Return 16 random hex digits."""
    return os.urandom(8).hex()


def new_uuid() -> str:
    """Return a version-4 UUID of 32 hex digits without dashes, as DVID writes them."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return raw.hex()


def repo_home(repo_id: str) -> str:
    """Return the home of a repo."""
    return f"r/{repo_id}"


def all_lanes(home: str) -> str:
    """Return the prefix of all lanes of a home."""
    return f"{home}/lanes"


def lanes(home: str, lane_id: str) -> str:
    """Return the prefix of one lane at all nodes."""
    return f"{home}/lanes/{lane_id}"


def lane(home: str, lane_id: str, node_id: str) -> str:
    """Return the prefix of one lane at one node."""
    return f"{home}/lanes/{lane_id}/{node_id}"


def records(lane_prefix: str) -> str:
    """Return the prefix of a lane's commit records."""
    return f"{lane_prefix}/{EPOCH}"


def record(lane_prefix: str, number: int) -> str:
    """Return the key of commit record `number`."""
    return f"{records(lane_prefix)}/{number:010d}"


def snapshots(lane_prefix: str) -> str:
    """Return the prefix of a lane's snapshots."""
    return f"{lane_prefix}/{SNAPSHOTS}"


def snapshot(lane_prefix: str, number: int) -> str:
    """Return the key of the snapshot taken after record `number`."""
    return f"{snapshots(lane_prefix)}/{number:010d}"


def proposals(lane_prefix: str) -> str:
    """Return the prefix of what waits to be gathered into a lane's log."""
    return f"{lane_prefix}/pend"


def proposal(lane_prefix: str, txid: str) -> str:
    """Return the key of one proposal."""
    return f"{proposals(lane_prefix)}/{txid}"


def sessions(lane_prefix: str) -> str:
    """Return the prefix of a lane's write sessions."""
    return f"{lane_prefix}/join"


def claim(lane_prefix: str, number: int, attempt: int) -> str:
    """Return the key by which one writer says that it gathers for a record number."""
    return f"{lane_prefix}/turn/{number:010d}-{attempt}"


def parts(lane_prefix: str, session_id: str) -> str:
    """Return the prefix of what workers of a write session have written."""
    return f"{sessions(lane_prefix)}/{session_id}"


def part(lane_prefix: str, session_id: str, txid: str) -> str:
    """Return the key of one part of a write session."""
    return f"{parts(lane_prefix, session_id)}/{txid}"


def lock(home: str, node_id: str) -> str:
    """Return the key of a node's lock object."""
    return f"{home}/locks/{node_id}"


def pages(home: str) -> str:
    """Return the prefix of a home's page packs."""
    return f"{home}/pages"


def segments(home: str) -> str:
    """Return the prefix of a home's segments."""
    return f"{home}/segs"


def pack(home: str, object_id: int) -> str:
    """Return the key of a page pack."""
    name = f"{object_id:016x}"
    return f"{pages(home)}/{name[:2]}/{name}.pg"


def segment(home: str, object_id: int) -> str:
    """Return the key of a segment."""
    name = f"{object_id:016x}"
    return f"{segments(home)}/{name[:2]}/{name}.seg"


def spares(home: str) -> str:
    """Return the prefix of what a rebuild has made and not yet put in place."""
    return f"{home}/spare"


def spare(home: str, key: str) -> str:
    """Return where a rebuild keeps the replacement of an object of a home meanwhile."""
    return f"{spares(home)}/{key[len(home) + 1 :]}"


def object_id(key: str) -> int:
    """Return the id of a segment or page pack from its key."""
    return int(key.rsplit("/", 1)[1].split(".", 1)[0], 16)
