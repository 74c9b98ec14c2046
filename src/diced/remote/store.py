"""Stores that are servers: ``dvid://host:port``."""

from __future__ import annotations

import os
import time
import uuid as uuids
import weakref
from collections.abc import Callable
from typing import Any

from diced.actor import login_name
from diced.attrs import Attributes
from diced.engine.base import translate
from diced.errors import (
    AlreadyExistsError,
    AmbiguousError,
    CorruptError,
    DicedException,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    near_matches,
)
from diced.names import check_name
from diced.remote import address, native
from diced.remote.facts import RepoFacts
from diced.remote.http import Server, check_dvid, spell
from diced.remote.repo import RemoteRepo
from diced.remote.voxels import MOST_BYTES, Locks
from diced.repo import FILES, META
from diced.store import DicedStore

# Requests at a time: they wait for a network and for a server, more than for this machine.
THREADS = 8
# What a store at a location has, and one on a server has not.
_LOCAL = frozenset(("engine", "_catalog", "_meta", "_home", "_histories", "_sweeper"))
_UNKNOWN_DELETE = (UnsupportedError, NotFoundError, InvalidError)


class RemoteStore(DicedStore):
    """A store on a DVID server, ours or Janelia's, with the API of `DicedStore`.

    Made by ``DicedStore("dvid://host:port")``.

    Parameters
    ----------
    location : str
        ``dvid://host:port`` (port 8000 unless told) or ``dvid+https://host`` (also ``dvids://``),
        perhaps with a path before ``/api``.
    port : int, optional
        If the location has none.
    permissionfile : str, optional
        File that holds a bearer token.
    token, admin_token : str, optional
        Bearer token; DVID's admin token.
    readonly : bool
        Send nothing that changes anything.
    threads : int, optional
        Requests at a time of one large read or write; 8 by default.
    user : str, optional
        Sent with each request as ``u=``; the login name by default.
    max_age : float, optional
        Seconds for which metadata that were read may be taken for the newest; 0 by default. Worth
        it on servers whose repos have thousands of versions.
    patience : float
        Seconds that a call goes on trying when the server is busy or the connection breaks.
    jpeg : bool
        Read arrays that are stored with loss as the JPEG that is stored: fewer bytes to send, whole
        blocks at a time.
    rpcport, appdir, create, durability, cache_bytes, block_cache_bytes : optional
        Accepted, and without meaning: the server decides.

    Raises
    ------
    LocationError
        No DVID server answers there.
    AccessError
    """

    batch_bytes = MOST_BYTES

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
        cache_bytes: int = 0,
        block_cache_bytes: int = 0,
        user: str | None = None,
        max_age: float | None = None,
        token: str | None = None,
        admin_token: str | None = None,
        patience: float = 300.0,
        jpeg: bool = False,
    ):
        if threads is not None and threads < 1:
            raise InvalidError(f"threads is at least 1; got {threads}")
        if max_age is not None and not (isinstance(max_age, int | float) and max_age >= 0):
            raise InvalidError(f"max_age is at least 0 seconds; got {max_age!r}")
        if not (isinstance(patience, int | float) and patience >= 0):
            raise InvalidError(f"patience is at least 0 seconds; got {patience!r}")
        where = address.parse(os.fspath(location), port)
        if permissionfile is not None and token is None:
            token = _token(permissionfile)
        self.url = where.url
        self.uuid = uuids.uuid5(uuids.NAMESPACE_URL, where.web).hex
        self.readonly = readonly
        self.closed = False
        self.threads = threads or THREADS
        self.user = user if user is not None else login_name()
        self.max_age = max_age
        self.durability = durability
        self.jpeg = jpeg
        self.server = Server(
            where, user=self.user, token=token, admin_token=admin_token,
            connections=max(16, 2 * self.threads), patience=patience,
        )  # fmt: skip
        self._options = {
            "readonly": readonly, "threads": threads, "user": user, "max_age": max_age,
            "token": token, "admin_token": admin_token, "patience": patience, "jpeg": jpeg,
        }  # fmt: skip
        self._known: dict[str, tuple[float, RepoFacts]] = {}
        self._locks = Locks()
        try:
            about = check_dvid(self.server)
        except DicedException:
            self.server.close()
            raise
        version = str(about.get("DVID Version", ""))
        self.ours = "diced" in version.lower()
        # Whether it takes boxes of any alignment, and merges them itself; learned at need.
        self.merges = self.ours
        if self.ours:
            found = native.store_uuid(self.server)
            self.ours, self.uuid = found is not None, found or self.uuid

    def __getattr__(self, name: str) -> Any:
        if name in _LOCAL:
            raise UnsupportedError(
                f"{self.__dict__.get('url', 'this store')} is a server; this works on the store"
                " itself, where that is"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def renew(self) -> None:
        """Forget what was read."""
        self._known.clear()

    # -- repos -----------------------------------------------------------------------------

    def create_repo(
        self, name: str, description: str = "", *, uuid: str | None = None, alias: bool = False
    ) -> RemoteRepo:
        """Create a repo and return it at its root version; as `DicedStore.create_repo`.

        DVID itself has no objection to repos of one name; that there is none is asked before.
        """
        self._check_writable()
        if name or not alias:
            check_name("repo", name)
        repos = self._all()
        if not alias and any(each.alias == name for each in repos.values()):
            raise AlreadyExistsError(f"a repo {name!r} exists already in {self.url}")
        if uuid is not None and any(each.dag.has_uuid(uuid) for each in repos.values()):
            raise AlreadyExistsError(f"UUID already exists in datastore: {uuid!r:.80}")
        # Decided here, so that after a lost answer it can be told whether it was created.
        root = uuid or uuids.uuid4().hex
        fields = {"alias": name, "description": str(description), "root": root}

        def act() -> str:
            return str(self.server.post_json("repos", fields, twice=False).json()["root"])

        def look() -> str | None:
            return root if root in self._all() else None

        root = self.server.settle(act, look, f"create repo {name!r}")
        repo = RemoteRepo(self, root, root, False)
        for each in (META, FILES):
            repo._create_keyvalue(each)
        return repo

    def open_repo(
        self,
        name: str | None = None,
        uuid: str | None = None,
        readonly: bool | None = None,
        version: str | None = None,
    ) -> RemoteRepo:
        """Open a repo; as `DicedStore.open_repo`."""
        if (name is None) == (uuid is None):
            raise InvalidError("open_repo takes either a name or a uuid")
        wanted = uuid if name is None else name
        if not isinstance(wanted, str) or not wanted:
            raise InvalidError(f"a repo's name or UUID is non-empty text; got {wanted!r}")
        readonly = self.readonly if readonly is None else readonly
        found = None if name is None else self._by_name(name)
        node = wanted
        if found is None:
            found, node = self._by_version(wanted)
        else:
            node = found.root
            if node not in found.dag.nodes:
                raise CorruptError(
                    f"repo {name!r}: {found.problem or 'its first version is not shown'}"
                )
        repo = RemoteRepo(self, found.root, node, readonly)
        if version is not None:
            repo.change_version(version)
        return repo

    def _by_name(self, name: str, repos: dict[str, RepoFacts] | None = None) -> RepoFacts | None:
        everything = self._all() if repos is None else repos
        found = [each for each in everything.values() if each.name == name]
        if len(found) > 1:
            raise AmbiguousError(
                f"{len(found)} repos are called {name!r}; open one by UUID: "
                + ", ".join(sorted(each.root for each in found)[:4])
            )
        return found[0] if found else None

    def _by_version(self, spec: str) -> tuple[RepoFacts, str]:
        """Return the repo and the version that a UUID, prefix or tag names."""
        try:
            reply = self.server.ask("GET", f"{spell('repo', spec)}/info")
        except NotFoundError as error:
            names = [each.name for each in self._all().values()]
            raise NotFoundError(
                f"no repo or version {spec!r} in {self.url}{near_matches(spec, names)}; the server"
                f" says: {error}"
            ) from None
        found = self._learn(reply.json())
        return found, found.dag.resolve(spec).id

    def list_repos(self) -> list[tuple[str, str]]:
        """Return (name, UUID of the root version) of every repo, by name.

        A repo without an alias goes by its UUID.
        """
        return sorted((each.name, each.root) for each in self._all().values())

    def get_repouuid(self, name: str) -> str:
        """Return the UUID of a repo's root version."""
        return self._repo(name).root

    def repo_info(self, name: str) -> dict[str, Any]:
        """Return a repo's name, uuid, description and created; DVID does not say the user."""
        found = self._repo(name)
        return {
            "name": found.name, "uuid": found.root, "description": found.description,
            "created": found.created, "user": "",
        }  # fmt: skip

    def rename_repo(self, name: str, new_name: str, *, alias: bool = False) -> None:
        """Give a repo another name; as `DicedStore.rename_repo`."""
        self._check_writable()
        if new_name or not alias:
            check_name("repo", new_name)
        repos = self._all()
        found = self._repo(name, repos)
        if not alias and any(each.alias == new_name for each in repos.values()):
            raise AlreadyExistsError(f"a repo {new_name!r} exists already in {self.url}")
        self._edit(found.root, {"alias": new_name})

    def describe_repo(self, name: str, description: str) -> None:
        """Replace a repo's description."""
        self._check_writable()
        self._edit(self._repo(name).root, {"description": str(description)})

    def _edit(self, root: str, fields: dict[str, str]) -> None:
        self.server.post_json(f"{spell('repo', root)}/info", fields)
        self._forget(root)

    def delete_repo(self, name: str) -> None:
        """Delete a repo with all its versions; this cannot be undone.

        Raises
        ------
        UnsupportedError
            Janelia's server deletes by its command line only.
        """
        self._check_writable()
        root = self._repo(name).root

        def gone() -> bool | None:
            self._forget(root)
            return None if root in self._all() else True

        self._delete(spell("repo", root), gone, f"repo {name!r}", f"dvid repos delete {root}")

    def _delete(self, path: str, gone: Callable[[], bool | None], what: str, command: str) -> None:
        """Delete by the request that our server has, and DVID had until 2016."""

        def act() -> bool:
            self.server.ask("DELETE", path, query={"imsure": "true"}, twice=False)
            return True

        try:
            self.server.settle(act, gone, f"delete {what}")
        except _UNKNOWN_DELETE as error:
            if self.ours:
                raise
            raise UnsupportedError(
                f"{self.url} deletes nothing over HTTP; there {command!r} deletes {what}. It says:"
                f" {error}"
            ) from None
        if not gone():
            raise UnsupportedError(
                f"{self.url} took the request to delete {what} and did not; {command!r} does it"
            )

    def sweep(self, orphans: bool = False) -> int:
        """Return 0: what is left of what was deleted is the server's to remove."""
        self._check_writable()
        return 0

    # -- information -----------------------------------------------------------------------

    @property
    def info(self) -> Attributes:
        """What the server says of itself; it cannot be changed from here."""

        def edit(_change: Any) -> None:
            raise UnsupportedError(f"{self.url}: DVID's API keeps no information about the store")

        return Attributes(f"store {self.url}", lambda: check_dvid(self.server), edit)

    def __repr__(self) -> str:
        mode = " read-only" if self.readonly else ""
        return f"<RemoteStore {self.url}{mode}>"

    # -- for repos -------------------------------------------------------------------------

    def _all(self) -> dict[str, RepoFacts]:
        """Return all repos by the UUID of their roots."""
        fields = self.server.get_json("repos/info")
        return {root: self._learn(each) for root, each in fields.items() if each is not None}

    def _repo(self, name: str, repos: dict[str, RepoFacts] | None = None) -> RepoFacts:
        """Find a repo by name or by the whole UUID of its root."""
        everything = self._all() if repos is None else repos
        found = self._by_name(name, everything) or everything.get(name)
        if found is None:
            names = [each.name for each in everything.values()]
            raise NotFoundError(f"no repo {name!r} in {self.url}" + near_matches(str(name), names))
        return found

    def _facts(self, root: str) -> RepoFacts:
        """Return a repo's metadata."""
        known = self._known.get(root)
        if known is not None and time.monotonic() - known[0] < (self.max_age or 0.0):
            return known[1]
        return self._learn(self.server.get_json(f"{spell('repo', root)}/info"))

    def _learn(self, fields: dict[str, Any]) -> RepoFacts:
        found = RepoFacts(fields)
        if self.max_age:
            self._known[found.root] = (time.monotonic(), found)
        return found

    def _forget(self, root: str) -> None:
        self._known.pop(root, None)

    def lock_of(self, name: str) -> Any:
        """Return the lock for what must be read to be written."""
        return self._locks.of(name)

    def _sweep_later(self, repo_id: str = "") -> None:
        """Do nothing: the server sweeps."""

    def close(self) -> None:
        """Close the connections. Nothing is lost without it."""
        self.server.close()
        self.closed = True

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self._options)

    def _pickled_repo(self, *ids: Any) -> tuple[Any, ...]:
        return _reopen_repo, (self.url, self._options, *ids)


def _token(path: str) -> str:
    """Return the token that a file holds."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as stream:
            found = stream.read().strip()
    except UnicodeDecodeError:
        raise InvalidError(f"{path!r} holds no token: it is not text") from None
    except OSError as error:
        raise translate(error, f"read {path!r}") from error
    if not found or any(each.isspace() for each in found):
        raise InvalidError(f"{path!r} holds no token: one word is wanted")
    return found


def _reopen(url: str, options: dict[str, Any]) -> RemoteStore:
    return RemoteStore(url, **options)


# Stores that pickled repos and arrays opened, so that a worker's thousand handles share one.
_shared: weakref.WeakValueDictionary[Any, RemoteStore] = weakref.WeakValueDictionary()


def _reopen_repo(
    url: str, options: dict[str, Any], root: str, uuid: str, readonly: bool
) -> RemoteRepo:
    key = (os.getpid(), url, *sorted((name, repr(each)) for name, each in options.items()))
    store = _shared.get(key)
    if store is None or store.closed:
        store = _shared[key] = _reopen(url, options)
    if uuid not in store._facts(root).dag.nodes:
        raise NotFoundError(f"the pickled version is not in {url}")
    return RemoteRepo(store, root, uuid, readonly)
