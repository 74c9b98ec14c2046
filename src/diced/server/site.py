"""What all requests of one server process share: the store, the routes, and handles by name."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from diced import registry
from diced.errors import AmbiguousError, DicedException, LockedError, NotFoundError
from diced.repo import DicedRepo
from diced.server import (
    api_2014,
    api_instances,
    api_nodes,
    api_repos,
    api_server,
    blobstore,
    commands,
    native,
    pages,
)
from diced.server.access import Access
from diced.server.answer import Refused
from diced.server.call import Call
from diced.server.datatype import ALIASES, DataType, find_type, type_of
from diced.server.describe import Descriptions
from diced.server.load import Load, Shared, Throttle
from diced.server.lookup import Lookup
from diced.server.options import Options
from diced.server.routes import Route, Table, split
from diced.store import DicedStore

# Arrays by version and name. Each keeps buffers: 0.8 MB after a block of 64 cubed bytes, 20 MB
# after one of labels, which the arrays of thousands of versions, or of deleted repos, would keep.
MAX_KEPT = 32


class Site:
    """One server process's view of its store.

    Attributes
    ----------
    store : DicedStore
        Always fresh: nothing is believed for a time.
    inline : bool
        Metadata cost microseconds here, so that light requests need no thread.
    ending : bool
        The server was told to stop.
    """

    def __init__(self, options: Options, shared: Shared):
        self.options = options
        self.ending = False
        self.access = Access(options, shared)
        # Where an admin can be, the admin may write.
        readonly = options.mode == "readonly" and not (options.admin_token or options.access)
        self.store = DicedStore(
            options.location, **{"max_age": 0.0, "readonly": readonly, **options.store}
        )
        engine = self.store.engine
        on_disk = bool(engine.descriptors) and not getattr(engine, "network", False)
        self.inline = not engine.remote and (on_disk or engine.url.startswith("memory:"))
        self.load = Load(shared)
        self.throttle = Throttle(shared)
        self.started = time.time()
        modules = (api_server, api_repos, api_nodes, api_2014, pages, native)
        self.table = Table([route for each in modules for route in each.routes()])
        shared_routes = (api_instances.routes, commands.routes, native.instance_routes)
        self.common = Table([route for each in shared_routes for route in each()])
        self.lookup = Lookup(self.store)
        self.descriptions = Descriptions(self)
        self._arrays: dict[tuple[str, str], tuple[Any, DataType]] = {}

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    # -- what a path names -----------------------------------------------------------------

    def prepare(self, call: Call) -> Route:
        """Find what a call means and whether it may be: sets its route, repo and array.

        Raises
        ------
        DicedException
        """
        self.access.identify(call)
        call.path = api_2014.today(call.path)
        pieces = split(call.path.removeprefix("/api"))
        found = self.table.find(call.method, pieces)
        if found is not None:
            route, call.args = found
            if "uuid" in call.args:
                call.repo = self.find_for(call, call.args["uuid"])
        elif len(pieces) >= 3 and pieces[0] == "node":
            call.repo = self.find_for(call, pieces[1])
            # Before anything is told of what is there, and be it that something is not.
            self.access.check_version(call, call.repo)
            call.array, call.type = self.find_array(call.repo, pieces[2])
            route = self._instance_route(call, pieces[3:])
        else:
            raise self._unknown(call, pieces)
        call.route = route
        self.access.check(call, route)
        if route.changes and call.repo is not None:
            self.check_open(call)
        return route

    def _instance_route(self, call: Call, pieces: list[str]) -> Route:
        table: Table = call.type.table
        found = table.find(call.method, pieces) or self.common.find(call.method, pieces)
        if found is not None:
            route, call.args = found
            return route
        fallback: Route | None = call.type.fallback(call, pieces)
        if fallback is None:
            raise Refused(
                400,
                f'Bad API call ({call.path}) for data "{call.array.name}".  See API help at'
                f" http://{call.headers.get('host', 'localhost')}/api/help/{call.type.name}\n",
            )
        return fallback

    def _unknown(self, call: Call, pieces: list[str]) -> DicedException:
        for method in ("GET", "POST", "DELETE", "PUT"):
            if method != call.method and self.table.find(method, pieces) is not None:
                return Refused(400, f"{call.method} is not answered at {call.path}\n")
        return Refused(404, f"nothing is at {call.path}\n")

    def check_open(self, call: Call) -> None:
        """Refuse a change at a locked version."""
        repo: DicedRepo = call.repo
        if call.array is not None and not call.array.versioned:
            return
        # Who may pass here is still refused where a locked version would really change.
        if not repo.locked or self.is_forced(call):
            return
        if call.array is None:
            raise LockedError(f"Cannot do {call.method.lower()} on locked node {repo.uuid}")
        keyword = split(call.path)[4:5]
        raise LockedError(
            f'Cannot do {call.method} on endpoint "{"".join(keyword)}" of locked node {repo.uuid}'
        )

    def is_forced(self, call: Call) -> bool:
        """Tell whether a call is made by one for whom DVID forgets locks."""
        return call.admin or self.options.mode == "fullwrite"

    def find_for(self, call: Call, spec: str) -> DicedRepo:
        """Return the repo of a version; of what is ambiguous the names only if all may be seen."""
        try:
            return self.find_node(spec)
        except AmbiguousError:
            if self.access.open or call.admin:
                raise
        raise AmbiguousError(f"more than one UUID matches {spec:.100}")

    def find_node(self, spec: str) -> DicedRepo:
        """Return the repo of a version, at it; see `Lookup.find`."""
        return self.lookup.find(spec)

    def find_array(self, repo: DicedRepo, name: str) -> tuple[Any, DataType]:
        """Return an instance and its data type.

        Raises
        ------
        NotFoundError
        """
        if name == blobstore.NAME:
            raise NotFoundError(f"invalid data instance name {name!r}")
        key = (repo._node_id, name)
        known = self._arrays.get(key)
        spec = repo._history.view().by_name.get(name)
        if known is not None and spec is not None and known[0]._spec.id == spec.id:
            return known
        try:
            array = repo.get_array(name)
        except NotFoundError as error:
            raise NotFoundError(f"invalid data instance name {name!r}: {error}") from None
        while len(self._arrays) >= MAX_KEPT:
            with contextlib.suppress(StopIteration):
                self._arrays.pop(next(iter(self._arrays)), None)
        found = self._arrays[key] = (array, type_of(array))
        return found

    def types(self) -> list[DataType]:
        """Return all data types that there are."""
        return [find_type(name) for name in registry.names("datatype") if name not in ALIASES]
