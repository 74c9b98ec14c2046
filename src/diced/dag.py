"""The history of a repo as a graph of version nodes. Pure: built from records, holds no I/O.

A node has a public UUID (or, after a DVID tag, any string), parents, a branch ("" is master), and
is open, locking (a lock has begun and can only go forward) or locked.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diced.errors import AmbiguousError, NotFoundError, near_matches

OPEN, LOCKING, LOCKED = "open", "locking", "locked"
MASTER = "master"
_STEPS = re.compile("[0-9]{1,18}")  # of one ~N


class Node:
    """One version node.

    Attributes
    ----------
    id : str
        Internal random hex, the one that stands in keys.
    uuid : str
    number : int
        Record number of its birth; DVID's VersionID. Orders nodes by age.
    parents : tuple of str
        Internal ids.
    branch : str
        "" is master.
    status : str
        OPEN, LOCKING or LOCKED.
    note, user, created : str
    updated : str
        When it was last changed: its note, log or status.
    log : list of str
    """

    __slots__ = (
        "branch", "created", "id", "log", "note", "number", "parents", "status", "updated", "user",
        "uuid",
    )  # fmt: skip

    def __init__(self, node_id: str, fields: dict[str, Any]):
        self.id = node_id
        self.uuid: str = fields["uuid"]
        self.number: int = fields["number"]
        self.parents: tuple[str, ...] = tuple(fields["parents"])
        self.branch: str = fields["branch"]
        self.status: str = fields["status"]
        self.note: str = fields["note"]
        self.user: str = fields["user"]
        self.created: str = fields["created"]
        self.updated: str = fields.get("updated", self.created)
        self.log: list[str] = list(fields["log"])

    @property
    def locked(self) -> bool:
        """True once nothing can be written any more."""
        return self.status == LOCKED


class VersionInfo:
    """A version node as a user sees it.

    Attributes
    ----------
    uuid : str
    number : int
        DVID's VersionID: order of birth.
    parents : tuple of str
        UUIDs.
    branch : str
        ``master`` or the branch's name.
    note, user, created : str
    log : list of str
    locked : bool
    """

    __slots__ = (
        "branch", "created", "locked", "log", "note", "number", "parents", "user", "uuid",
    )  # fmt: skip

    def __init__(self, node: Node, parents: tuple[str, ...]):
        self.uuid = node.uuid
        self.number = node.number
        self.parents = parents
        self.branch = node.branch or MASTER
        self.note = node.note
        self.log = list(node.log)
        self.user = node.user
        self.created = node.created
        self.locked = node.status != OPEN

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<VersionInfo {self.uuid} {self.branch} {state} {self.note!r}>"


class Dag:
    """All nodes of a repo, with the ways to name one."""

    def __init__(self, nodes: Iterable[Node], tags: dict[str, str]):
        self.nodes = {node.id: node for node in nodes}
        self.tags = tags
        self._by_uuid = {node.uuid: node for node in self.nodes.values()}
        self._ordered_uuids: list[str] | None = None
        self._children: dict[str, list[Node]] = {}
        for node in self.ordered():
            for parent in node.parents:
                self._children.setdefault(parent, []).append(node)

    def ordered(self) -> list[Node]:
        """Return the nodes in order of birth."""
        return sorted(self.nodes.values(), key=lambda node: node.number)

    @property
    def root(self) -> Node:
        """The node that the repo was born with."""
        return next(node for node in self.ordered() if not node.parents)

    def children(self, node: Node) -> list[Node]:
        """Return the children of a node in order of birth."""
        return self._children.get(node.id, [])

    def has_uuid(self, uuid: str) -> bool:
        """Tell whether a UUID or tag is taken."""
        return uuid in self._by_uuid or uuid in self.tags

    def has_name(self, name: str) -> bool:
        """Tell whether a UUID, tag or branch is taken."""
        return self.has_uuid(name) or name in self.branches() or name == MASTER

    def begun_by(self, prefix: str) -> list[Node]:
        """Return the nodes whose UUID has a prefix."""
        ordered = self._ordered_uuids
        if ordered is None:  # at the first question of this kind
            ordered = self._ordered_uuids = sorted(self._by_uuid)
        first = bisect.bisect_left(ordered, prefix)
        uuids = itertools.takewhile(lambda u: u.startswith(prefix), ordered[first:])
        return [self._by_uuid[uuid] for uuid in uuids]

    def ancestry(self, node: Node) -> set[str]:
        """Return the ids of a node and all its ancestors."""
        seen = {node.id}
        stack = list(node.parents)
        while stack:
            each = stack.pop()
            if each not in seen:
                seen.add(each)
                stack.extend(self.nodes[each].parents)
        return seen

    def lineage(self, node: Node) -> list[Node]:
        """Return a node and its ancestors, oldest first."""
        return sorted((self.nodes[each] for each in self.ancestry(node)), key=lambda n: n.number)

    def branches(self) -> dict[str, Node]:
        """Return the newest node of each branch; master goes by its name."""
        return {node.branch or MASTER: node for node in self.ordered()}

    def open_child(self, node: Node) -> Node | None:
        """Return the newest open descendant of a node, if there is one."""
        below, stack = set(), [node]
        while stack:
            for child in self.children(stack.pop()):
                if child.id not in below:
                    below.add(child.id)
                    stack.append(child)
        found = [self.nodes[each] for each in below if self.nodes[each].status == OPEN]
        return max(found, key=lambda each: each.number, default=None)

    def resolve(self, spec: str) -> Node:
        """Find a node by UUID, tag, branch name, UUID prefix, or any of them with ``~N``.

        ``spec~N`` is the N-th ancestor along first parents; ``prefix:branch`` and ``:branch``
        are DVID's way to name a branch.

        Raises
        ------
        NotFoundError, AmbiguousError
        """
        if spec in self._by_uuid:
            return self._by_uuid[spec]
        if spec in self.tags:
            return self.nodes[self.tags[spec]]
        branches = self.branches()
        if spec in branches:
            return branches[spec]
        base, *steps = spec.split("~")
        if steps and all(_STEPS.fullmatch(each) for each in steps):
            node = self.resolve(base)
            for _ in range(sum(map(int, steps))):
                if not node.parents:
                    raise NotFoundError(f"version {spec!r:.100}: {node.uuid} has no parent")
                node = self.nodes[node.parents[0]]
            return node
        prefix, colon, branch = spec.partition(":")
        if colon and branch:
            if prefix:
                self.resolve(prefix)
            return self._branch(branch)
        return self._prefix(spec)

    def _branch(self, name: str) -> Node:
        branches = self.branches()
        if name not in branches:
            raise NotFoundError(f"no branch {name!r}" + near_matches(name, branches))
        return branches[name]

    def _prefix(self, prefix: str) -> Node:
        found = self.begun_by(prefix) if prefix else []
        if len(found) > 1:
            raise AmbiguousError(
                f"version {prefix!r} is ambiguous: it begins {len(found)} UUIDs, "
                + ", ".join(each.uuid for each in found[:4])
            )
        if not found:
            known = [*self._by_uuid, *self.tags, *self.branches()]
            raise NotFoundError(f"no version {prefix!r}" + near_matches(prefix, known))
        return found[0]


def find_versions(dags: Mapping[str, Dag], spec: str) -> list[tuple[str, str]]:
    """Return (name of the graph, id of the node) of all that a UUID, tag or prefix may mean.

    A UUID or tag that is meant exactly hides what merely begins with it.
    """
    exact = [(name, dag.resolve(spec).id) for name, dag in dags.items() if dag.has_uuid(spec)]
    return exact or [(name, node.id) for name, dag in dags.items() for node in dag.begun_by(spec)]
