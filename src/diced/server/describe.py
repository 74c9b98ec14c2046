"""Repos, version nodes and instances as DVID's JSON.

What is described is remembered as long as it is true: a repo's JSON until its metadata, its name,
or an array whose extents it shows has a newer record.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from diced import pool
from diced.dag import MASTER, OPEN, Dag, Node
from diced.errors import CorruptError, NotFoundError, UnsupportedError
from diced.history import View
from diced.repo import DicedRepo
from diced.server import blobstore
from diced.server.answer import to_json
from diced.server.datatype import DVID_TYPES, DataType, stored, type_of
from diced.spec import ArraySpec

if TYPE_CHECKING:
    from diced.server.call import Call
    from diced.server.site import Site

LOG = logging.getLogger("diced.server")
FIRST_MUTATION = 1_000_000_000  # as in DVID
CHECKSUMS = {"": "No checksum", "none": "No checksum", "crc32": "CRC32 checksum"}


def instance_json(site: Site, repo: DicedRepo, array: Any, kind: DataType) -> dict[str, Any]:
    """Return an instance as ``info`` gives it, with what it has at the repo object's version."""
    found = {"Base": base_json(site, repo, array, kind), "Extended": kind.extended(array)}
    extents = kind.extents(array)
    return found if extents is None else {**found, "Extents": extents}


def base_json(site: Site, repo: DicedRepo, array: Any, kind: DataType) -> dict[str, Any]:
    """Return what is the same of instances of any type."""
    own, spec = stored(array), array._spec
    where = f"diced @ {site.store.url}"
    return {
        "TypeName": kind.name,
        "TypeURL": kind.url or DVID_TYPES + kind.name,
        "TypeVersion": kind.version,
        # Internal ids, which stay what they are: of the array, and of its repo.
        "DataUUID": spec.id + repo._id,
        "Name": array.name,
        "RepoUUID": repo._history.known().dag.nodes[spec.node].uuid,
        "Compression": kind.compression(array),
        "Checksum": CHECKSUMS.get(own.get("checksum", ""), CHECKSUMS[""]),
        "Syncs": list(own.get("syncs", [])),
        "Versioned": array.versioned,
        "KVStore": where,
        "LogStore": where,
        "Tags": dict(own.get("tags", {})),
    }


def node_json(dag: Dag, node: Node, shown: Collection[str] | None = None) -> dict[str, Any]:
    """Return a version; where not all are shown, without log and with those relatives only."""

    def numbers(nodes: Iterable[Node]) -> list[int]:
        return [each.number for each in nodes if shown is None or each.id in shown]

    return {
        "Branch": node.branch,
        "Note": node.note,
        "Log": node.log if shown is None else [],
        "UUID": node.uuid,
        "VersionID": node.number,
        "Locked": node.status != OPEN,
        "Parents": numbers(dag.nodes[each] for each in node.parents),
        "Children": numbers(dag.children(node)),
        "Created": node.created,
        "Updated": node.updated,
    }


def is_dynamic(kind: DataType) -> bool:
    """Tell whether the description of an instance depends on what is written to it."""
    own = type(kind)
    return own.extended is not DataType.extended or own.extents is not DataType.extents


class _Shown(NamedTuple):
    """An instance, and the node as of which it is described."""

    spec: ArraySpec
    node: Node
    dynamic: bool


class _Plan(NamedTuple):
    """What is shown of a repo, while its metadata have one number."""

    number: int
    public: frozenset[str] | None
    shown: list[_Shown]


class Descriptions:
    """The JSON of repos, remembered.

    Parameters
    ----------
    site : Site
    """

    def __init__(self, site: Site):
        self._site = site
        self._plans: dict[tuple[str, bool], _Plan] = {}
        self._texts: dict[tuple[str, bool], tuple[Any, bytes]] = {}

    def repos(self, call: Call) -> bytes:
        """Return the JSON object of all repos that a caller may see, by UUID of their roots."""
        ids = [key.decode() for key in self._site.store._repos()]
        there = set(ids)
        gone = [key for key in list(self._plans) if key[0] not in there]
        for key in gone:
            self._plans.pop(key, None)
            self._texts.pop(key, None)
        return b"{" + b",".join(self._parts(call, ids)) + b"}"

    def repo(self, call: Call) -> bytes:
        """Return the JSON of the repo of a call, whose caller may read at least a part of it."""
        repo = call.node_repo()
        for part in self._parts(call, [repo._id]):
            return part.partition(b":")[2]
        raise NotFoundError(f"could not find UUID with partial match to {repo.uuid}")

    def _parts(self, call: Call, ids: list[str]) -> list[bytes]:
        site = self._site
        views, broken = site.lookup.views(ids)
        plans = {}
        for repo_id, view in views.items():
            root = site.lookup.handle(repo_id, view.dag.root.id)
            seen = site.access.visible(call, root)
            if seen != "none":
                public = None if seen == "all" else _public(call, root, view.dag)
                plans[repo_id] = self._plan(repo_id, view, public)
        numbers = self._numbers(plans)
        fields = {key.decode(): each for key, each in site.store._repos().items()}
        parts = []
        for repo_id, plan in plans.items():
            if repo_id not in fields:
                continue  # deleted in this moment
            stamp = (fields[repo_id], plan.number, plan.public, numbers[repo_id])
            key = (repo_id, plan.public is None)
            known = self._texts.get(key)
            if known is None or known[0] != stamp:
                found = self._repo(repo_id, views[repo_id], fields[repo_id], plan)
                known = (stamp, to_json(found))
                if not any("Problem" in each for each in found["DataInstances"].values()):
                    self._texts[key] = known
            parts.append(to_json(views[repo_id].dag.root.uuid) + b":" + known[1])
        if site.access.open or call.admin:
            parts += [
                to_json(fields[key]["uuid"]) + b":" + to_json(_broken(fields[key], error))
                for key, error in broken.items()
                if key in fields
            ]
        return parts

    def _plan(self, repo_id: str, view: View, public: frozenset[str] | None) -> _Plan:
        key = (repo_id, public is None)
        known = self._plans.get(key)
        if known is not None and known.number == view.number and known.public == public:
            return known
        dag = view.dag
        nodes = [each for each in dag.ordered() if public is None or each.id in public]
        master = [each for each in nodes if not each.branch]
        leaf = master[-1] if master else nodes[-1] if nodes else None
        ancestry = dag.ancestry(leaf) if leaf is not None else set()
        shown = []
        for spec in view.arrays.values():
            if leaf is None or spec.name == blobstore.NAME:
                continue
            if not spec.versioned or spec.node in ancestry:
                at: Node | None = leaf
            else:
                at = _newest_below(dag, dag.nodes[spec.node], public)
            if at is None:
                continue
            try:
                kind = type_of(self._array(repo_id, spec, at))
            except UnsupportedError as error:
                LOG.error("instance %s: %s", spec.name, error)
                continue
            shown.append(_Shown(spec, at, is_dynamic(kind)))
        found = self._plans[key] = _Plan(view.number, public, shown)
        return found

    def _array(self, repo_id: str, spec: ArraySpec, node: Node) -> Any:
        return self._site.lookup.handle(repo_id, node.id)._array(spec)

    def _numbers(self, plans: dict[str, _Plan]) -> dict[str, tuple[int, ...]]:
        """Return the record numbers of all arrays that may have changed, asked side by side."""
        store = self._site.store
        jobs = [
            (repo_id, each)
            for repo_id, plan in plans.items()
            for each in plan.shown
            if each.dynamic and (each.node.status == OPEN or not each.spec.versioned)
        ]

        def number(job: tuple[str, _Shown]) -> int:
            repo_id, each = job
            try:
                return store._history(repo_id).lane(each.spec, each.node.id).refresh().number
            except (CorruptError, NotFoundError):
                return -1

        found: dict[str, list[int]] = {repo_id: [] for repo_id in plans}
        threads = pool.LIMIT if store.engine.remote else 1
        for job, result in zip(jobs, pool.map_ordered(number, jobs, threads), strict=True):
            found[job[0]].append(result)
        return {repo_id: tuple(each) for repo_id, each in found.items()}

    def _repo(
        self, repo_id: str, view: View, fields: dict[str, Any], plan: _Plan
    ) -> dict[str, Any]:
        dag = view.dag
        nodes = [each for each in dag.ordered() if plan.public is None or each.id in plan.public]
        times = [fields["created"], *(each.updated for each in nodes)]
        times += [each.spec.fields["created"] for each in plan.shown]
        mutation = view.counters.get(b"mutations", FIRST_MUTATION)
        log = view.log if plan.public is None else []
        times += [line.partition("  ")[0] for line in log[-1:]]
        instances = {each.spec.name: self._instance(repo_id, each) for each in plan.shown}
        return {
            "Root": dag.root.uuid,
            "Alias": fields.get("alias", fields["name"]),
            "Description": fields["description"],
            "Log": log,
            "Properties": {},
            "DataInstances": {name: each for name, each in sorted(instances.items()) if each},
            "DAG": {
                "Root": dag.root.uuid,
                "Nodes": {each.uuid: node_json(dag, each, plan.public) for each in nodes},
            },
            "MutationID": mutation,
            "SavedMutationID": mutation,
            "Created": fields["created"],
            "Updated": max(times),
        }

    def _instance(self, repo_id: str, shown: _Shown) -> dict[str, Any] | None:
        """Return an instance; None if it was deleted in this moment."""
        repo = self._site.lookup.handle(repo_id, shown.node.id)
        array = repo._array(shown.spec)
        kind = type_of(array)
        try:
            return instance_json(self._site, repo, array, kind)
        except NotFoundError:
            return None
        except CorruptError as error:
            # One damaged array does not hide the rest of the store.
            LOG.error("instance %s: %s", shown.spec.name, error)
            base = base_json(self._site, repo, array, kind)
            return {"Base": base, "Extended": {}, "Problem": str(error)}


def _public(call: Call, root: DicedRepo, dag: Dag) -> frozenset[str]:
    """Return the ids of the nodes that anyone may read."""
    public = call.site.access.public_nodes(root)
    return frozenset(each.id for each in dag.nodes.values() if each.uuid in public)


def _newest_below(dag: Dag, node: Node, public: Collection[str] | None) -> Node | None:
    """Return the newest of a node and its descendants, of those that are shown."""
    seen, stack = {node.id}, [node]
    while stack:
        for child in dag.children(stack.pop()):
            if child.id not in seen:
                seen.add(child.id)
                stack.append(child)
    found = [dag.nodes[each] for each in seen if public is None or each in public]
    return max(found, key=lambda each: each.number, default=None)


def _broken(fields: dict[str, Any], error: Exception) -> dict[str, Any]:
    """Return what can be said of a repo whose metadata are damaged."""
    return {
        "Root": fields["uuid"],
        "Alias": fields.get("alias", fields["name"]),
        "Description": fields["description"],
        "Log": [],
        "Properties": {},
        "DataInstances": {},
        "DAG": {"Root": fields["uuid"], "Nodes": {}},
        "MutationID": FIRST_MUTATION,
        "SavedMutationID": FIRST_MUTATION,
        "Created": fields["created"],
        "Updated": fields["created"],
        "Problem": str(error),
    }


def branch_versions(dag: Dag, name: str) -> list[str]:
    """Return the UUIDs of a branch, newest first and on to the root; none if there is no such."""
    node = dag.branches().get(name or MASTER)
    found: list[str] = []
    while node is not None:
        if node.uuid not in found[-1:]:
            found.append(node.uuid)
        parents = [dag.nodes[each] for each in node.parents]
        found += [each.uuid for each in parents]
        node = parents[-1] if parents else None
    return found
