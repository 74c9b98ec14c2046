"""Stores: a location that holds repos."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable
from typing import Any

from diced import actor, keys, log, pool, registry, storefile
from diced.attrs import Attributes
from diced.catalog import TABLES, Catalog, Change
from diced.dag import find_versions
from diced.engine import open_engine
from diced.errors import (
    AlreadyExistsError,
    AmbiguousError,
    CorruptError,
    DicedException,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
    near_matches,
)
from diced.history import History, View
from diced.home import Home
from diced.meta import DEAD, Meta
from diced.names import check_label, check_name
from diced.repo import FILES, META, DicedRepo
from diced.state import Base
from diced.sweep import Sweeper
from diced.versioned import Lane

DURABILITIES = ("power", "process")


class DicedStore:
    """A store of versioned arrays, opened at a location and created there if need be.

    Parameters
    ----------
    location : str or os.PathLike
        A path, ``memory://``, ``memory://name``, ``gs://bucket/prefix``, or ``dvid://host:port``:
        any DVID server, whose further options are those of `diced.remote.store.RemoteStore`.
    port, rpcport : int, optional
        Where an HTTP server answers for this store until it is closed, as `serve` does. Without
        them opening a location starts no server.
    appdir : optional
        As of old, and without meaning.
    permissionfile : str, optional
        Credentials file for a bucket; with it a bare bucket name means ``gs://``.
    readonly : bool
        Refuse every change, and creation.
    create : bool
        Create the store if the location holds none.
    durability : str
        ``power``: data is on the disk when a write returns. ``process``: it survives the death
        of the process, not of the machine.
    threads : int, optional
        Threads for large reads and writes.
    cache_bytes : int
        Memory for index pages, per repo.
    block_cache_bytes : int
        Memory for decoded blocks, per repo; 0 keeps none. Worth it where small reads meet the same
        blocks again: slices, neighbouring boxes, single voxels.
    user : str, optional
        Recorded in commits; the login name by default.
    max_age : float, optional
        Seconds for which a read at an open version may go by what it last asked of a bucket; 1.0
        by default. What this store wrote itself is always seen. Disks are asked every time.

    Raises
    ------
    LocationError, AccessError, UnsupportedError
    """

    # Most bytes of voxels that one batch can hold, where that is less than memory.
    batch_bytes: int | None = None

    def __new__(cls, location: Any = None, *_args: Any, **_options: Any) -> DicedStore:
        """Return an object of the class that a location's scheme stands for."""
        found: Any = cls
        if cls is DicedStore and isinstance(location, str) and "://" in location:
            scheme = location.partition("://")[0].lower()
            if not registry.is_listed("engine", scheme):
                with contextlib.suppress(NotFoundError):  # the engines will say what there is
                    found = registry.lookup("store", scheme)
        made: DicedStore = super().__new__(found)
        return made

    def __init__(
        self,
        location: str | os.PathLike[str],
        port: int | None = None,
        rpcport: int | None = None,
        permissionfile: str | None = None,
        appdir: str | None = None,
        *,
        readonly: bool = False,
        create: bool = True,
        durability: str = "power",
        threads: int | None = None,
        cache_bytes: int = 64 * 2**20,
        block_cache_bytes: int = 0,
        user: str | None = None,
        max_age: float | None = None,
    ):
        if durability not in DURABILITIES:
            raise InvalidError(f"durability is one of {DURABILITIES}; got {durability!r}")
        if threads is not None and threads < 1:
            raise InvalidError(f"threads is at least 1; got {threads}")
        if cache_bytes < 0 or block_cache_bytes < 0:
            raise InvalidError(
                f"cache_bytes and block_cache_bytes are at least 0; got {cache_bytes}"
                f" and {block_cache_bytes}"
            )
        url = os.fspath(location)
        if permissionfile is not None and "/" not in url:
            url = f"gs://{url}"
        self.readonly = readonly
        self.closed = False
        self._servers: list[Any] = []
        self.threads = threads or pool.default_threads()
        self.durability = durability
        self.cache_bytes = cache_bytes
        self.block_cache_bytes = block_cache_bytes
        self.user = user if user is not None else actor.login_name()
        if max_age is not None and not (isinstance(max_age, int | float) and max_age >= 0):
            raise InvalidError(f"max_age is at least 0 seconds; got {max_age!r}")
        if permissionfile is not None and not url.lower().startswith("gs://"):
            raise InvalidError(
                f"permissionfile is for a bucket, gs://bucket/prefix; the location is {url!r}"
            )
        self.max_age = max_age
        self.permissionfile = permissionfile
        self.engine = open_engine(
            url,
            durability=durability,
            readonly=readonly,
            create=create and not readonly,
            permissionfile=self.permissionfile,
        )
        if max_age is not None:
            self.engine.max_age = max_age
        self.url = self.engine.url
        try:
            self.uuid = storefile.open_store(self.engine, create and not readonly)
        except DicedException:
            self.engine.close()
            raise
        self._home = Home(self.engine, keys.STORE_HOME, cache_bytes)
        self._histories: dict[str, History] = {}
        self._sweeper = Sweeper(self)
        self.renew()
        # A damaged index must not keep a rebuild from opening the store; reads will raise.
        with contextlib.suppress(CorruptError):
            if not readonly and self._meta.read()[1][DEAD]:
                self._sweep_later()
        if port is not None or rpcport is not None:
            ports = [each for each in (port, rpcport) if each is not None]
            try:
                self.serve(ports[0], also=tuple(("127.0.0.1", each) for each in ports[1:]))
            except DicedException:
                self.close()
                raise

    def renew(self) -> None:
        """Forget what was read: a rebuild replaces what otherwise never changes."""
        lane = Lane(self._home, keys.META_LANE, keys.NO_NODE, Base(), journal=False)
        self._meta = Meta(lane, TABLES)
        self._catalog = Catalog(self._meta, self.url)
        for history in list(self._histories.values()):
            history.renew()

    # -- repos -----------------------------------------------------------------------------

    def create_repo(
        self, name: str, description: str = "", *, uuid: str | None = None, alias: bool = False
    ) -> DicedRepo:
        """Create a repo and return it at its root version.

        Parameters
        ----------
        name, description : str
        uuid : str, optional
            UUID of the root version, if it is decided elsewhere. No version of any repo has it.
        alias : bool
            The name may be empty or another repo's, as DVID has it. Then the repo gets one that
            is made of it and the UUID, and `repo_info` has ``alias``.

        Raises
        ------
        AlreadyExistsError, InvalidError, ReadOnlyError
        """
        self._check_writable()
        if name or not alias:
            check_name("repo", name)
        if not alias and name in self._catalog.names():
            raise AlreadyExistsError(f"a repo {name!r} exists already in {self.url}")
        if uuid is not None:
            self._check_new_uuid(uuid)
        fields = {
            "name": name, "uuid": uuid or keys.new_uuid(), "description": str(description),
            "created": log.now(), "user": self._actor,
        }  # fmt: skip
        while (found := self._create(fields, alias)) is None:
            pass  # a sweep of orphans took it for given up: every such sweep does so but once
        return found

    def _create(self, fields: dict[str, Any], alias: bool = False) -> DicedRepo | None:
        """Found a repo and enter its name; None if what was founded was swept before."""
        repo_id = keys.new_id()
        history = self._history(repo_id)
        hidden = [{"name": each, "kind": "keyvalue", "versioned": True} for each in (META, FILES)]
        history.found(fields["uuid"], hidden)
        taken = self._catalog.enter(repo_id, fields, alias, self._actor)
        if repo_id.encode() not in self._repos():
            self._histories.pop(repo_id, None)
            if taken:
                raise AlreadyExistsError(f"{taken} already in {self.url}")
            return None
        return DicedRepo(self, repo_id, history, history.view().dag.root.id, False)

    def open_repo(
        self,
        name: str | None = None,
        uuid: str | None = None,
        readonly: bool | None = None,
        version: str | None = None,
    ) -> DicedRepo:
        """Open a repo.

        Parameters
        ----------
        name : str, optional
            Name of the repo, or a UUID or prefix as for `uuid`. Opens at the root version.
        uuid : str, optional
            UUID, prefix or tag of any version of any repo. Opens at that version.
        readonly : bool, optional
        version : str, optional
            Version to go to in the repo: UUID, prefix, branch, tag.

        Raises
        ------
        NotFoundError, AmbiguousError
        """
        if (name is None) == (uuid is None):
            raise InvalidError("open_repo takes either a name or a uuid")
        wanted = uuid if name is None else name
        if not isinstance(wanted, str) or not wanted:
            raise InvalidError(f"a repo's name or UUID is non-empty text; got {wanted!r}")
        names = self._catalog.names()
        if name is not None and name in names:
            repo_id = names[name]
            node_id = self._history(repo_id).view().dag.root.id
        else:
            repo_id, node_id = self._find(wanted, names)
        history = self._history(repo_id)
        readonly = self.readonly if readonly is None else readonly
        repo = DicedRepo(self, repo_id, history, node_id, readonly)
        if not (readonly or self.readonly) and history.known().dead:
            self._sweep_later(repo_id)
        if version is not None:
            repo.change_version(version)
        return repo

    def _find(self, spec: str, names: dict[str, str]) -> tuple[str, str]:
        """Find the repo and node of a UUID, prefix or tag."""
        dags = {repo_id: view.dag for repo_id, view in self._views(names.values()).items()}
        found = find_versions(dags, spec)
        if len(found) > 1:
            uuids = sorted(dags[repo_id].nodes[node_id].uuid for repo_id, node_id in found)
            raise AmbiguousError(
                f"{spec!r} is ambiguous: it means {len(found)} versions, " + ", ".join(uuids[:4])
            )
        if not found:
            raise NotFoundError(
                f"no repo or version {spec!r} in {self.url}" + near_matches(spec, names)
            )
        return found[0]

    def _views(self, repo_ids: Iterable[str]) -> dict[str, View]:
        """Return the newest metadata of repos, asked for side by side where that saves time."""
        names = list(repo_ids)
        threads = pool.LIMIT if self.engine.remote else 1
        views = pool.map_ordered(lambda name: self._history(name).view(), names, threads)
        return dict(zip(names, views, strict=True))

    def list_repos(self) -> list[tuple[str, str]]:
        """Return (name, UUID of the root version) of every repo, by name."""
        return sorted((each["name"], each["uuid"]) for each in self._repos().values())

    def get_repouuid(self, name: str) -> str:
        """Return the UUID of a repo's root version."""
        return str(self._repo_fields(self._catalog.id_of(name))["uuid"])

    def repo_info(self, name: str) -> dict[str, Any]:
        """Return a repo's name, uuid, description, created and user, and what else is known."""
        return dict(self._repo_fields(self._catalog.id_of(name)))

    def rename_repo(self, name: str, new_name: str, *, alias: bool = False) -> None:
        """Give a repo another name; with `alias` as for `create_repo`."""
        self._check_writable()
        self._catalog.rename(name, new_name, alias, self._actor)

    def describe_repo(self, name: str, description: str) -> None:
        """Replace a repo's description."""
        text = str(description)
        self._edit_repo(name, lambda fields, _: fields.update(description=text), "describe repo")

    def _edit_repo(self, name: str, change: Change, op: str) -> None:
        self._check_writable()
        self._catalog.edit(name, change, op, self._actor)

    def delete_repo(self, name: str) -> None:
        """Delete a repo with all its versions. It is invisible at once; this cannot be undone.

        Its bytes are removed in the background, by this process or any later one that opens the
        store for writing; `sweep` does it now. NotFoundError: another process was faster.
        """
        self._check_writable()
        repo_id = self._catalog.bury(name, self._actor)
        history = self._histories.pop(repo_id, None)
        if history is not None:
            history.home.close()
        self._sweep_later()

    def sweep(self, orphans: bool = False) -> int:
        """Remove what deleted repos and arrays left, and what writers put there since.

        It may be stopped at any point and repeated, beside readers, writers and other sweeps.

        Parameters
        ----------
        orphans : bool
            Also what belongs to no repo or array at all, as of a creation that was given up. Not
            where metadata were lost: then it is what is left of them.

        Returns
        -------
        int
            Objects that this store object removed, in the background too, since the last call.
        """
        self._check_writable()
        return self._sweeper.sweep(orphans)

    def _sweep_later(self, repo_id: str = "") -> None:
        """Sweep in the background: deleted repos, or deleted arrays of one repo."""
        self._sweeper.later(repo_id)

    def _check_new_uuid(self, uuid: str) -> None:
        """Raise AlreadyExistsError if a version of any repo has a UUID, or a tag of that name."""
        check_label("version", uuid)
        views = self._views(self._catalog.names().values()).values()
        if any(view.dag.has_uuid(uuid) for view in views):
            raise AlreadyExistsError(f"UUID already exists in datastore: {uuid!r:.80}")

    # -- information -----------------------------------------------------------------------

    @property
    def info(self) -> Attributes:
        """JSON about the store as a whole, such as the organisation it belongs to."""

        def edit(change: Any) -> None:
            self._check_writable()
            self._catalog.edit_info(change, self._actor)

        return Attributes(f"store {self.url}", lambda: self._catalog.info(), edit)

    def __repr__(self) -> str:
        mode = " read-only" if self.readonly else ""
        return f"<DicedStore {self.url}{mode}>"

    def acting(self, user: str) -> contextlib.AbstractContextManager[None]:
        """Have what this thread commits in a ``with`` block record `user`, here and in repos."""
        return actor.acting(user)

    # -- for repos -------------------------------------------------------------------------

    @property
    def _actor(self) -> str:
        return actor.current(self.user)

    def _repos(self) -> dict[bytes, Any]:
        return self._catalog.repos()

    def _repo_fields(self, repo_id: str) -> dict[str, Any]:
        return self._catalog.fields(repo_id)

    def _history(self, repo_id: str) -> History:
        found = self._histories.get(repo_id)
        if found is None:
            home = Home(
                self.engine, keys.repo_home(repo_id), self.cache_bytes, self.block_cache_bytes
            )
            found = self._histories.setdefault(repo_id, History(home, self.user))
        return found

    def _pickled_repo(self, *ids: Any) -> tuple[Any, ...]:
        """Return the reduced form of a repo: internal ids, and how to open the store."""
        _, options = self.__reduce__()
        return _reopen_repo, (*options, *ids)

    def _check_writable(self) -> None:
        if self.readonly:
            raise ReadOnlyError(f"{self.url} was opened read-only")

    def serve(self, port: int = 8000, host: str = "127.0.0.1", **options: Any) -> Any:
        """Answer HTTP requests, beside what this program does, until the store is closed.

        Parameters
        ----------
        port : int
            0 takes a free one.
        host : str
            Only this machine unless told.
        **options
            Of `diced.server.options.Options`, such as ``mode="readonly"``.

        Returns
        -------
        diced.server.serve.Background
            With ``url`` and ``close()``.

        Raises
        ------
        UnsupportedError
            The packages of the extra ``server`` are missing.
        InvalidError
            The address cannot be listened at.
        """
        if not hasattr(self, "engine"):
            raise UnsupportedError(f"{self.url} is served already, by another server")
        start: Any = registry.lookup("service", "http")
        own = {
            "durability": self.durability, "threads": self.threads, "user": self.user,
            "permissionfile": self.permissionfile,
        }  # fmt: skip
        given = {"mode": "readonly" if self.readonly else "", "store": own, **options}
        server = start(self.url, host=host, port=port, **given)
        self._servers.append(server)
        return server

    def close(self) -> None:
        """Close files. Nothing is lost without it: what was acknowledged is stored."""
        while self._servers:
            self._servers.pop().close()
        for history in list(self._histories.values()):
            history.home.close()
        self._home.close()
        self.engine.close()
        self.closed = True

    def _shutdown_store(self) -> None:
        """Close, under the name of old."""
        self.close()

    def __enter__(self) -> DicedStore:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "readonly": self.readonly, "durability": self.durability, "threads": self.threads,
            "cache_bytes": self.cache_bytes, "block_cache_bytes": self.block_cache_bytes,
            "user": self.user, "max_age": self.max_age, "permissionfile": self.permissionfile,
        }  # fmt: skip
        return _reopen, (self.url, options)


def _reopen(url: str, options: dict[str, Any]) -> DicedStore:
    return DicedStore(url, create=False, **options)


# Stores that pickled repos and arrays opened, so that a worker's thousand handles share one.
_shared: weakref.WeakValueDictionary[Any, DicedStore] = weakref.WeakValueDictionary()


def _reopen_repo(
    url: str, options: dict[str, Any], repo_id: str, node_id: str, readonly: bool
) -> DicedRepo:
    key = (os.getpid(), url, *sorted(options.items()))
    store = _shared.get(key)
    if store is None or store.closed:
        store = _shared[key] = _reopen(url, options)
    history = store._history(repo_id)
    # It was there when it was pickled; what this process knows may be a little older.
    if repo_id.encode() not in store._repos():
        store._meta.lane.probe()
    store._repo_fields(repo_id)
    if node_id not in history.view().dag.nodes:
        history.meta.lane.probe()
    if node_id not in history.view().dag.nodes:
        raise NotFoundError(f"the pickled version is not in {url}")
    return DicedRepo(store, repo_id, history, node_id, readonly)
