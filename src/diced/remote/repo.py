"""Repos of a server: versions, instances and files."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from diced.attrs import Attributes, check_json
from diced.dag import OPEN
from diced.errors import (
    AlreadyExistsError,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
    near_matches,
)
from diced.grid import Box
from diced.names import check_label, check_name
from diced.remote import facts, kinds, meta, native
from diced.remote.array import RemoteArray
from diced.remote.facts import RepoFacts
from diced.remote.files import RemoteFiles
from diced.remote.graph import RemoteGraph
from diced.remote.http import spell
from diced.remote.roi import RemoteRoi
from diced.remote.tiles import RemoteTiles
from diced.repo import FILES, META, DicedRepo
from diced.spec import ArrayDtype, ArraySpec

if TYPE_CHECKING:
    from diced.remote.store import RemoteStore

T = TypeVar("T")

CLASSES: dict[str, Any] = {
    "keyvalue": RemoteFiles,
    "roi": RemoteRoi,
    "imagetile": RemoteTiles,
    "labelgraph": RemoteGraph,
}


class RemoteRepo(DicedRepo):
    """A repo on a server, at its current version. Array handles follow `change_version`.

    Made by `RemoteStore.create_repo` and opened by `RemoteStore.open_repo`.

    Parameters
    ----------
    store : RemoteStore
    root, uuid : str
        UUID of the first version, and of the one to be at.
    readonly : bool
    """

    store: RemoteStore

    def __init__(self, store: RemoteStore, root: str, uuid: str, readonly: bool):
        self.store = store
        self.readonly = readonly
        self.remote = False  # what is remote to `handle.together` are lanes
        self._id = root
        self._node_id = uuid
        self._locked_id = ""

    # -- description -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The alias, or the root's UUID where there is none."""
        return self._view().name

    @property
    def description(self) -> str:
        """What the repo is, in its creator's words."""
        return self._view().description

    @property
    def uuid(self) -> str:
        """UUID of the current version."""
        return self._node_id

    @property
    def root(self) -> str:
        """UUID of the first version."""
        return self._id

    @property
    def locked(self) -> bool:
        """True if the current version is locked."""
        uuid = self._node_id
        if self._locked_id != uuid:
            found = self.store.server.get_json(spell("node", uuid, "commit"))
            if not found.get("Locked"):
                return False
            self._locked_id = uuid
        return True

    def _view(self) -> RepoFacts:  # type: ignore[override]
        return self.store._facts(self._id)

    # -- arrays ----------------------------------------------------------------------------

    def create_array(self, name: str, dtype: Any = None, dims: int = 3, islabel3D: bool = False,
                     lossycompression: bool = False, versioned: bool = True,
                     **options: Any) -> Any:  # fmt: skip
        """Create an array at this version; arguments as of `DicedRepo.create_array`.

        Our server makes what a store at a path can make. Others make arrays of 1 to 3 dimensions,
        of the types that DVID has, with codecs raw, lz4, gzip and jpeg, filled with 0.

        Raises
        ------
        InvalidError, AlreadyExistsError, LockedError, ReadOnlyError, UnsupportedError
        """
        self._check_writable()
        check_name("array", name)
        if "/" in name or name in (".", ".."):
            raise InvalidError(f"an array's name on a server stands in paths; got {name!r}")
        if options.pop("indexed", False) or options.get("kind") == "labelmap":
            raise UnsupportedError("indexed label arrays are not in this version of diced")
        attrs = dict(options.pop("attrs", None) or {})
        check_json(f"array {name!r}", attrs)
        kind = options.pop("kind", None) or ("label" if islabel3D else "image")
        given = {"dtype": dtype, "dims": dims, "islabel3D": islabel3D,
                 "lossycompression": lossycompression, **options}  # fmt: skip
        if self.store.ours:
            native.create(self, name, kind, bool(versioned), given, attrs)
        else:
            self._create(name, kind, bool(versioned), given, attrs)
            if attrs:
                self.get_array(name).attrs.update(attrs)
        return self.get_array(name)

    def _create(
        self, name: str, kind: str, versioned: bool, options: dict[str, Any], attrs: dict[str, Any]
    ) -> None:
        """Create an instance on any server."""
        if kind in ("image", "label"):
            settings, dims = facts.settings_of(name, kind, options)
        else:
            settings, dims = kinds.settings_of(name, kind, options, attrs), 3
        self._create_instance(name, versioned, settings)
        if dims < 3:
            meta.set_numdims(self, name, self._info(name)["Base"]["DataUUID"], dims)

    def _create_instance(self, name: str, versioned: bool, settings: dict[str, Any]) -> None:
        fields = {**settings, "dataname": name, "versioned": versioned}
        self._create_by(spell("repo", self.uuid, "instance"), name, fields)

    def _create_by(self, path: str, name: str, body: dict[str, Any]) -> None:
        """Create an instance by one request, which must not be done twice."""
        server = self.store.server
        # Another one of this name cannot be told from ours by anything but what it is not.
        known = self._view().instances.get(name, {}).get("Base", {}).get("DataUUID")

        def look() -> bool | None:
            found = self._view().instances.get(name, {}).get("Base", {})
            return True if found and found.get("DataUUID") != known else None

        def act() -> bool:
            server.post_json(path, body, twice=False)
            return True

        try:
            server.settle(act, look, f"create array {name!r}")
        except LockedError as error:
            raise LockedError(
                f"array {name!r} cannot be created: {self._locked_message()}; the server says:"
                f" {error}"
            ) from None
        finally:
            self.store._forget(self._id)

    def _create_keyvalue(self, name: str) -> None:
        """Create an instance of keyvalue, unless it is there."""
        if name not in self._view().instances:
            try:
                self._create_instance(name, True, {"typename": "keyvalue"})
            except AlreadyExistsError:
                self.store._forget(self._id)

    def get_array(self, name: str) -> Any:
        """Open an array by name.

        Raises
        ------
        NotFoundError
        """
        view = self._view()
        visible = view.visible(self._node_id)
        if name not in visible:
            raise NotFoundError(
                f"no array {name!r} in repo {view.name!r} at version {self.uuid[:12]}"
                + near_matches(str(name), visible)
            )
        return self._handle(visible[name])

    def _handle(self, info: dict[str, Any]) -> Any:
        kind = facts.kind_of(info)
        if kind not in ("image", "label"):
            return CLASSES.get(kind, kinds.OtherInstance)(self, facts.spec_of(info))
        if self.store.ours:
            return RemoteArray(self, native.spec(self, info["Base"]["Name"]))
        return RemoteArray(self, facts.spec_of(info, self._numdims(info)))

    def _numdims(self, info: dict[str, Any]) -> int:
        """Return how many dimensions an array has to those who made it."""
        if not facts.numdims_needed(info):
            return 3
        base = info["Base"]
        return meta.numdims(self, base["Name"], str(base.get("DataUUID", "")))

    def __contains__(self, name: object) -> bool:
        return name in self._view().visible(self._node_id)

    def delete_array(self, name: str) -> None:
        """Delete an array from all versions; this cannot be undone.

        Raises
        ------
        UnsupportedError
            Janelia's server deletes by its command line only.
        """
        self._check_writable()
        if name in (FILES, META):
            raise InvalidError(f"{name!r} belongs to the repo and cannot be deleted")
        self.get_array(name)
        path = spell("repo", self._id, name)

        def gone() -> bool | None:
            self.store._forget(self._id)
            return None if name in self._view().instances else True

        self.store._delete(path, gone, f"array {name!r}", f"dvid repo {self._id} delete {name}")

    def list_instances(self, showhidden: bool = False) -> list[tuple[str, Any]]:
        """List the arrays of this version; as `DicedRepo.list_instances`."""
        visible = self._view().visible(self._node_id)
        if showhidden:
            return [(name, facts.kind_of(each)) for name, each in visible.items()]
        hidden = meta.hidden_names(self) if META in visible else set()
        return [
            (name, ArrayDtype[facts.dtype_of(each)])
            for name, each in visible.items()
            if facts.kind_of(each) in ("image", "label") and name not in hidden
        ]

    # -- versions --------------------------------------------------------------------------

    def lock_node(self, message: str) -> str:
        """Lock the current version; as `DicedRepo.lock_node`."""
        self._check_writable()
        if not isinstance(message, str):
            raise InvalidError(f"a message is text; got {message!r}")
        uuid = self.uuid
        if self.locked:
            raise LockedError(f"version {uuid} is locked already")
        server = self.store.server

        def act() -> str:
            path = spell("node", uuid, "commit")
            server.post_json(path, {"note": message, "log": []}, twice=False)
            return uuid

        def look() -> str | None:
            self.store._forget(self._id)
            if not self.locked:
                return None
            if message and self.note != message:
                raise LockedError(f"version {uuid} was locked by somebody else meanwhile")
            return uuid

        return self._change(act, look, "lock")

    def create_branch(
        self, message: str = "", branch: str | None = None, uuid: str | None = None
    ) -> str:
        """Create a child of the current version; as `DicedRepo.create_branch`."""
        self._check_writable()
        if branch is not None:
            check_label("branch", branch)
        if uuid is not None:
            check_label("version", uuid)
        # Decided here, so that after a lost answer it can be told whether the child is there.
        child = uuid or uuids.uuid4().hex
        if branch is not None:
            return self._branch(child, message, branch)
        try:
            return self._branch(child, message, None)
        except AlreadyExistsError:
            if uuid is not None and self._view().dag.has_uuid(uuid):
                raise
            # The parent's branch has gone on already.
            return self._branch(child, message, child[:12])

    def _branch(self, child: str, message: str, branch: str | None) -> str:
        server, parent = self.store.server, self.uuid
        fields = {"note": message, "uuid": child}
        if branch is not None:
            fields["branch"] = branch

        def act() -> str:
            path = spell("node", parent, "newversion" if branch is None else "branch")
            return str(server.post_json(path, fields, twice=False).json()["child"])

        def look() -> str | None:
            self.store._forget(self._id)
            node = self._view().dag.nodes.get(child)
            return child if node is not None and parent in node.parents else None

        return self._change(act, look, "branch")

    def tag(self, name: str, note: str = "") -> None:
        """Give the current version, which must be locked, a name of its own."""
        self._check_writable()
        check_label("tag", name)
        server, uuid = self.store.server, self.uuid

        def act() -> bool:
            path = spell("node", uuid, "tag")
            server.post_json(path, {"tag": name, "note": note}, twice=False)
            return True

        def look() -> bool | None:
            self.store._forget(self._id)
            return True if self._view().dag.tags.get(name) == uuid else None

        self._change(act, look, "tag")

    def _change(self, act: Callable[[], T], look: Callable[[], T | None], what: str) -> T:
        try:
            return self.store.server.settle(act, look, f"{what} version {self.uuid}")
        finally:
            self.store._forget(self._id)

    def set_note(self, text: str) -> None:
        """Replace the note of the current version, which must be open."""
        self._check_writable()
        path = spell("node", self.uuid, "note")
        self._change_open(lambda: self.store.server.post_json(path, {"note": str(text)}))

    def add_log(self, text: str) -> None:
        """Append a line to the current version's log; Janelia's server refuses it when locked."""
        self._check_writable()
        server, path = self.store.server, spell("node", self.uuid, "log")

        def count() -> int:
            lines = server.get_json(path).get("log") or ()
            return sum(str(line).endswith(text) for line in lines)

        before = count()

        def act() -> bool:
            self._change_open(lambda: server.post_json(path, {"log": [str(text)]}, twice=False))
            return True

        self._change(act, lambda: True if count() > before else None, "add to the log of")

    def _change_open(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except LockedError as error:
            raise LockedError(f"{self._locked_message()}; the server says: {error}") from None
        finally:
            self.store._forget(self._id)

    def operations(self, array: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the commits that led to this version; only our server tells them."""
        if array is not None:
            self.get_array(array)
        if not self.store.ours:
            raise UnsupportedError(
                f"{self.store.url}: DVID's API has no log of what was written; diced's server has"
            )
        return native.operations(self, array)

    def reserve_ids(self, count: int, counter: str = "labels") -> int:
        """Reserve ids: not offered over DVID's API."""
        raise UnsupportedError(f"{self.store.url}: DVID's API reserves no ids of this kind")

    # -- files -----------------------------------------------------------------------------

    @property
    def files(self) -> RemoteFiles:
        """The files of this version; ``.files`` is created by the first that is stored."""
        visible = self._view().visible(self._node_id)
        if FILES in visible:
            return RemoteFiles(self, facts.spec_of(visible[FILES]))
        base = {"TypeName": "keyvalue", "Name": FILES, "RepoUUID": self._id}
        return RemoteFiles(self, facts.spec_of({"Base": base}), there=False)

    # -- for arrays ------------------------------------------------------------------------

    def _at(self, uuid: str) -> RemoteRepo:
        """Return another object of this repo, at a version."""
        found = RemoteRepo(self.store, self._id, uuid, self.readonly)
        found._locked_id = self._locked_id
        return found

    def _info(self, name: str) -> dict[str, Any]:
        """Return an instance's JSON at this version."""
        found: dict[str, Any] = self.store.server.get_json(spell("node", self.uuid, name, "info"))
        return found

    def _spec(self, spec: ArraySpec) -> ArraySpec:
        """Return the newest description of an array, or raise if it was deleted."""
        if self.store.ours and spec.dtype is not None:
            return native.spec(self, spec.name, spec.id)
        info = self._info(spec.name)
        if str(info["Base"].get("DataUUID") or spec.name) != spec.id:
            raise NotFoundError(f"array {spec.name!r} was deleted, and another one created")
        return facts.spec_of(info, spec.dims or 3)

    def _box(self, spec: ArraySpec) -> Box | None:
        if self.store.ours:
            return native.box(self, spec)
        return facts.box_of(self._info(spec.name), spec.dims)

    def _block_coords(self, spec: ArraySpec) -> Iterator[tuple[int, ...]]:
        if self.store.ours:
            return native.blocks(self, spec)
        raise UnsupportedError(
            f"array {spec.name!r}: DVID's API does not tell which blocks are present"
        )

    def _attributes(self, spec: ArraySpec) -> Attributes:
        where = native.attributes if self.store.ours else meta.attributes
        return where(self, spec)

    def _same_array(self, array_id: str, name: str) -> Any:
        array = self.get_array(name)
        if array._spec.id != array_id:
            raise NotFoundError(f"array {name!r} was deleted, and another one created")
        return array

    def _check_writable(self, spec: ArraySpec | None = None) -> None:
        """Refuse what is known to be refused; the rest is the server's to say."""
        if self.readonly or self.store.readonly:
            raise ReadOnlyError("the repo was opened read-only")
        if spec is not None and spec.versioned and self._locked_id == self._node_id:
            raise LockedError(f"{spec.name!r}: {self._locked_message()}")

    def _locked_message(self) -> str:
        dag = self._view().dag
        node = dag.nodes.get(self._node_id)
        if node is None or node.status == OPEN:
            return f"version {self._node_id} is locked"
        child = dag.open_child(node)
        where = (
            f"its open descendant is {child.uuid}"
            if child is not None
            else "create a branch and change to it"
        )
        return f"version {node.uuid} is locked; {where}"

    def __repr__(self) -> str:
        view = self._view()
        node = view.dag.nodes.get(self._node_id)
        state = "open" if node is not None and node.status == OPEN else "locked"
        return f"<RemoteRepo {view.name!r} at {state} version {self.uuid[:12]}>"
