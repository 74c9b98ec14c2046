"""Which version of which repo a path names: UUIDs, prefixes, branches, ancestors.

A UUID is looked for in all repos of the store. What a whole UUID means never changes while its repo
is there; what a prefix means is asked of all repos again after a second, since a version that
another process makes may begin alike.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import Any

from diced import pool
from diced.dag import MASTER, find_versions
from diced.errors import AmbiguousError, CorruptError, DicedException, InvalidError, NotFoundError
from diced.history import View
from diced.repo import DicedRepo
from diced.store import DicedStore

LOG = logging.getLogger("diced.server")
MAX_KEPT = 65536  # names, and handles
PREFIX_SECONDS = 1.0


class Lookup:
    """Finds versions of a store's repos by name.

    Parameters
    ----------
    store : DicedStore
    """

    def __init__(self, store: DicedStore):
        self._store = store
        # What names mean, and until when, while the table of repos is this very object.
        self._found: tuple[Any, dict[str, tuple[float, tuple[str, str]]]] = (None, {})
        self._handles: dict[tuple[str, str], DicedRepo] = {}

    def find(self, spec: str) -> DicedRepo:
        """Return the repo of a version, at it.

        Parameters
        ----------
        spec : str
            A UUID, tag or prefix; behind it ``:<branch>`` for the newest version of a branch of
            that repo (``master`` or nothing is the first one), or ``:<branch>`` alone where there
            is one repo; behind either ``~N`` for the N-th ancestor.

        Raises
        ------
        NotFoundError, AmbiguousError, InvalidError
        """
        base, colon, branch = spec.partition(":")
        if ":" in branch:
            raise InvalidError(f"a version is <UUID>:<branch>; got {spec!r:.100}")
        base, tilde, steps = (base, "", "") if colon else base.partition("~")
        try:
            repo_id, node_id = self._locate(base) if base or not colon else self._only()
            if colon or tilde:
                dag = self._store._history(repo_id).view().dag
                named = branch if branch[:1] not in ("", "~") else MASTER + branch
                uuid = dag.nodes[node_id].uuid
                node_id = dag.resolve(f":{named}" if colon else f"{uuid}~{steps}").id
        except NotFoundError:
            raise NotFoundError(
                f"could not find UUID with partial match to {spec or repr(spec):.100}"
            ) from None
        return self.handle(repo_id, node_id)

    def handle(self, repo_id: str, node_id: str) -> DicedRepo:
        """Return a repo at a version, by their internal ids; it is shared and stays there."""
        key = (repo_id, node_id)
        known = self._handles.get(key)
        if known is None:
            store = self._store
            history = store._history(repo_id)
            known = DicedRepo(store, repo_id, history, node_id, store.readonly)
            if not store.readonly and history.known().dead:
                store._sweep_later(repo_id)
            if len(self._handles) >= MAX_KEPT:
                self._handles.clear()
            self._handles[key] = known
        return known

    def views(self, repo_ids: Iterable[str]) -> tuple[dict[str, View], dict[str, DicedException]]:
        """Return the newest metadata of repos, and of those that are damaged what is wrong."""
        store, ids = self._store, list(repo_ids)

        def read(repo_id: str) -> View | CorruptError:
            try:
                return store._history(repo_id).view()
            except CorruptError as error:
                return error

        threads = pool.LIMIT if store.engine.remote else 1
        found = dict(zip(ids, pool.map_ordered(read, ids, threads), strict=True))
        broken = {key: each for key, each in found.items() if isinstance(each, DicedException)}
        for key, error in broken.items():
            LOG.error("repo %s: %s", key, error)
        # One without nodes was deleted and swept in this moment.
        views = {k: each for k, each in found.items() if isinstance(each, View) and each.dag.nodes}
        return views, dict(broken)

    def _forget(self, repos: Any) -> None:
        """Let go of handles of repos that are not there any more, and of what these keep."""
        for key in list(self._handles):
            if key[0].encode() not in repos:
                self._handles.pop(key, None)

    def _only(self) -> tuple[str, str]:
        """Return the root of the only repo."""
        ids = [key.decode() for key in self._store._repos()]
        if len(ids) != 1:
            raise InvalidError(
                f"a branch alone is for a store of one repo; this one has {len(ids)}"
            )
        return ids[0], self._store._history(ids[0]).view().dag.root.id

    def _locate(self, name: str) -> tuple[str, str]:
        """Return the repo and node of a UUID, tag or prefix."""
        repos = self._store._repos()
        table, known = self._found
        if table is not repos:
            known = {}
            if table is not None and len(repos) <= len(table):
                self._forget(repos)
            self._found = (repos, known)
        hit = known.get(name)
        if hit is not None and time.monotonic() < hit[0]:
            return hit[1]
        if not name:
            raise NotFoundError("no version is named by nothing")
        ids = [key.decode() for key in repos]
        histories = [self._store._history(each) for each in ids]
        dags = {
            each: history.known().dag
            for each, history in zip(ids, histories, strict=True)
            if history.seen and history.known().dag.has_uuid(name)
        }
        found = find_versions(dags, name)
        if len(found) != 1:
            views, broken = self.views(ids)
            dags = {each: view.dag for each, view in views.items()}
            found = find_versions(dags, name)
            if not found and broken:
                raise next(iter(broken.values()))
        if not found:
            raise NotFoundError(f"no version {name!r:.100}")
        uuids = sorted(dags[repo_id].nodes[node_id].uuid for repo_id, node_id in found)
        if len(found) > 1:
            raise AmbiguousError(f"more than one UUID matches {name:.100}: {', '.join(uuids[:4])}")
        if len(known) >= MAX_KEPT:
            known.clear()
        whole = dags[found[0][0]].has_uuid(name)
        known[name] = (math.inf if whole else time.monotonic() + PREFIX_SECONDS, found[0])
        return found[0]
