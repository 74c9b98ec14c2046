"""Repos: a version DAG of arrays and files, seen from one current version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diced import jsontext, kinds, log
from diced.attrs import check_json
from diced.dag import OPEN, Node, VersionInfo
from diced.errors import (
    CorruptError,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
    near_matches,
)
from diced.files import KeyValueArray
from diced.history import History, View, locked_message
from diced.keys import NO_NODE
from diced.moment import moment
from diced.spec import ArrayDtype, ArraySpec
from diced.versioned import Lane

if TYPE_CHECKING:
    from diced.store import DicedStore

FILES = ".files"
META = ".meta"
RESTRICTIONS = "restrictions"
OPEN_NODE = "(open node)"


class DicedRepo:
    """A repo at its current version. Array handles follow `change_version`.

    Repos are made by `DicedStore.create_repo` and opened by `DicedStore.open_repo`.
    """

    def __init__(
        self, store: DicedStore, repo_id: str, history: History, node_id: str, readonly: bool
    ):
        self.store = store
        self.readonly = readonly
        self.remote = store.engine.remote
        self._id = repo_id
        self._history = history
        self._node_id = node_id
        # A node that was seen locked: status only moves forward, so it needs no further look.
        self._locked_id = ""

    # -- description -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name, unique in the store."""
        return str(self.store._repo_fields(self._id)["name"])

    @property
    def description(self) -> str:
        """What the repo is, in its creator's words."""
        return str(self.store._repo_fields(self._id)["description"])

    @property
    def uuid(self) -> str:
        """UUID of the current version."""
        return self._history.known().dag.nodes[self._node_id].uuid

    @property
    def root(self) -> str:
        """UUID of the first version, which also names the repo."""
        return self._history.known().dag.root.uuid

    def get_current_version(self) -> str:
        """Return the UUID of the current version."""
        return self.uuid

    @property
    def locked(self) -> bool:
        """True if the current version is locked."""
        node_id = self._node_id
        return self._locked_id == node_id or self._is_locked(self._history.view(), node_id)

    def _is_locked(self, view: View, node_id: str) -> bool:
        locked = view.dag.nodes[node_id].status != OPEN
        if locked:
            self._locked_id = node_id
        return locked

    def _node(self) -> Node:
        return self._view().dag.nodes[self._node_id]

    # -- arrays ----------------------------------------------------------------------------

    def create_array(
        self,
        name: str,
        dtype: Any = None,
        dims: int = 3,
        islabel3D: bool = False,
        lossycompression: bool = False,
        versioned: bool = True,
        *,
        indexed: bool = False,
        block_shape: Any = None,
        codec: str | None = None,
        fill: Any = 0,
        voxel_size: Any = None,
        units: Any = None,
        channels: int | None = None,
        kind: str | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> Any:
        """Create an array at this version, visible here and at descendants.

        Parameters
        ----------
        name : str
            Unique in the repo.
        dtype : ArrayDtype or numpy dtype, optional
            bool, int8-64, uint8-64 or float16-64; uint8 by default, uint64 for labels.
        dims : int
            1 to 8, without channels.
        islabel3D : bool
            Labels: uint64, 3-D, in DVID's compressed label blocks.
        lossycompression : bool
            Blocks as JPEG; uint8 only.
        versioned : bool
            False: one content for all versions, never locked.
        indexed : bool
            Reserved for labels with an index of bodies.
        block_shape : sequence of int, optional
            ZYX; 262144, 512 x 512 or 64 x 64 x 64 by default.
        codec : str, optional
            ``raw``, ``lz4``, ``zstd[:level]``, ``gzip[:level]``, ``jpeg[:quality]``;
            ``label``, ``label+lz4``, ``label+zstd[:level]`` for labels.
        fill : scalar or sequence of one value per channel
            Value of voxels never written.
        voxel_size, units : sequence, optional
            Per axis, ZYX.
        channels : int, optional
            An extra last axis.
        kind : str, optional
            ``image``, ``label``, ``keyvalue``, ``roi``, ``labelgraph``, ``imagetile``, or one that
            an installed package adds. An array of a kind whose package is missing reads raw and
            cannot be written.
        attrs : dict, optional
            JSON attributes.

        Returns
        -------
        DicedArray or KeyValueArray

        Raises
        ------
        InvalidError, AlreadyExistsError, LockedError, ReadOnlyError, UnsupportedError
        """
        self._check_writable()
        if indexed or kind == "labelmap":
            raise UnsupportedError("indexed label arrays are not in this version of diced")
        if kind is None:
            kind = "label" if islabel3D else "image"
        fields = kinds.class_of(kind).describe(
            name,
            dtype=dtype,
            dims=dims,
            islabel3D=islabel3D,
            lossycompression=lossycompression,
            block_shape=block_shape,
            codec=codec,
            fill=fill,
            voxel_size=voxel_size,
            units=units,
            channels=channels,
            kind=kind,
        )
        check_json(f"array {name!r}", dict(attrs or {}))
        fields = {**fields, "name": name, "kind": kind, "versioned": bool(versioned)}
        fields["attrs"] = dict(attrs or {})
        return self._array(self._history.create_array(self._node_id, fields))

    def get_array(self, name: str) -> Any:
        """Open an array by name.

        Raises
        ------
        NotFoundError
        """
        visible = self._visible()
        if name not in visible:
            raise NotFoundError(
                f"no array {name!r} in repo {self.name!r} at version {self.uuid[:12]}"
                + near_matches(str(name), visible)
            )
        return self._array(visible[name])

    def __getitem__(self, name: str) -> Any:
        return self.get_array(name)

    def __contains__(self, name: object) -> bool:
        return name in self._visible()

    def delete_array(self, name: str) -> None:
        """Delete an array from all versions. It is invisible at once; this cannot be undone."""
        self._check_writable()
        if name in (FILES, META):
            raise InvalidError(f"{name!r} belongs to the repo and cannot be deleted")
        self._history.delete_array(name)
        self.store._sweep_later(self._id)

    def list_instances(self, showhidden: bool = False) -> list[tuple[str, Any]]:
        """List the arrays of this version.

        Parameters
        ----------
        showhidden : bool
            Everything, keyvalue arrays and names listed in ``.meta/restrictions`` included.

        Returns
        -------
        list of (str, ArrayDtype)
            With `showhidden`, of (name, kind).
        """
        visible = self._visible()
        if showhidden:
            return [(name, spec.kind) for name, spec in visible.items()]
        hidden = self._hidden(visible)
        return [
            (name, ArrayDtype[spec.dtype.name])
            for name, spec in visible.items()
            if spec.dtype is not None and name not in hidden and "of" not in spec.fields
        ]

    def _hidden(self, visible: dict[str, ArraySpec]) -> set[str]:
        if META not in visible:
            return set()
        text = self._array(visible[META]).get(RESTRICTIONS)
        try:
            return set(jsontext.loads(text)) if text else set()
        except (ValueError, TypeError):
            raise CorruptError(f"{META}/{RESTRICTIONS} is not a JSON list of names") from None

    def _visible(self) -> dict[str, ArraySpec]:
        return self._history.visible(self._view(), self._node_id)

    def _array(self, spec: ArraySpec) -> Any:
        return kinds.open_array(self, spec)

    # -- versions --------------------------------------------------------------------------

    def lock_node(self, message: str) -> str:
        """Lock the current version: nothing at it can change any more.

        Parameters
        ----------
        message : str
            Becomes the version's note.

        Returns
        -------
        str
            The version's UUID.
        """
        self._check_writable()
        if not isinstance(message, str):
            raise InvalidError(f"a message is text; got {message!r}")
        self._history.lock(self._node_id, message)
        return self.uuid

    def create_branch(
        self, message: str = "", branch: str | None = None, uuid: str | None = None
    ) -> str:
        """Create a child of the current version, which must be locked.

        Parameters
        ----------
        message : str
            The child's note until it is locked.
        branch : str, optional
            Name of a new branch. Without it the child goes on with this version's branch, or
            begins one named after its UUID where that has gone on already.
        uuid : str, optional
            The child's UUID, if it is decided elsewhere.

        Returns
        -------
        str
            The child's UUID. This repo object stays where it is.
        """
        self._check_writable()
        return self._history.branch(self._node_id, message, branch, uuid).uuid

    def change_version(self, uuid: str) -> None:
        """Go to another version, by UUID, prefix, branch name, tag, or any of these with ``~N``.

        Raises
        ------
        NotFoundError, AmbiguousError
        """
        if not isinstance(uuid, str):
            raise InvalidError(f"a version is named by text; got {uuid!r}")
        self._node_id = self._view().dag.resolve(uuid).id

    def versions(self) -> list[VersionInfo]:
        """Return all versions in order of birth."""
        dag = self._view().dag
        return [
            VersionInfo(node, tuple(dag.nodes[each].uuid for each in node.parents))
            for node in dag.ordered()
        ]

    def branches(self) -> dict[str, str]:
        """Return the UUID of the newest version of each branch."""
        return {name: node.uuid for name, node in self._view().dag.branches().items()}

    def tag(self, name: str, note: str = "") -> None:
        """Give the current version, which must be locked, a name of its own."""
        self._check_writable()
        self._history.tag(name, self._node_id)
        if note:
            self.add_log(f"tag {name}: {note}")

    def tags(self) -> dict[str, str]:
        """Return the UUID behind each tag."""
        dag = self._view().dag
        return {tag: dag.nodes[node].uuid for tag, node in sorted(dag.tags.items())}

    @property
    def note(self) -> str:
        """Note of the current version."""
        return self._node().note

    def set_note(self, text: str) -> None:
        """Replace the note of the current version, which must be open."""
        self._check_writable()

        def change(fields: dict[str, Any]) -> None:
            if fields["status"] != OPEN:
                raise LockedError(self._locked_message())
            fields["note"] = str(text)

        self._history.edit_node(self._node_id, change, "note")

    @property
    def log(self) -> list[str]:
        """Lines logged at the current version: time, two spaces, text."""
        return list(self._node().log)

    def add_log(self, text: str) -> None:
        """Append a line to the current version's log; allowed at locked versions too."""
        self._check_writable()
        line = f"{log.now()}  {text}"
        self._history.edit_node(
            self._node_id, lambda fields: fields.update(log=[*fields["log"], line]), "log"
        )

    def get_commit_log(self) -> list[tuple[str, str]]:
        """Return (uuid, note) of this version and its ancestors, oldest first.

        An open version is shown as ``(open node)``.
        """
        dag = self._view().dag
        return [
            (node.uuid, OPEN_NODE if node.status == OPEN else node.note)
            for node in dag.lineage(dag.nodes[self._node_id])
        ]

    def operations(self, array: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the commits that led to this version, oldest version first.

        Each is a dict of version, array, number, user, time, operation and box (two lists, first
        and last + 1 voxel, ZYX, or None).
        """
        self._view()
        if array is not None:
            self.get_array(array)
        return self._history.operations(self._node_id, array)

    def reserve_ids(self, count: int, counter: str = "labels") -> int:
        """Reserve `count` ids, unique over versions, processes and hosts; return the first."""
        self._check_writable()
        if count < 1:
            raise InvalidError(f"reserve at least one id; got {count}")
        return self._history.reserve(counter, count)

    # -- files -----------------------------------------------------------------------------

    @property
    def files(self) -> KeyValueArray:
        """The files of this version."""
        found: KeyValueArray = self.get_array(FILES)
        return found

    def upload_filedata(self, dataname: str, data: bytes | str) -> None:
        """Store a file in this version."""
        self.files[dataname] = data

    def download_filedata(self, dataname: str) -> bytes:
        """Return a file's bytes.

        Raises
        ------
        NotFoundError
        """
        return self.files[dataname]

    def list_files(self) -> list[str]:
        """Return the names of the files of this version, in order."""
        return list(self.files.keys())

    def delete_file(self, filename: str) -> None:
        """Delete a file from this version and its descendants; ancestors keep it."""
        del self.files[filename]

    # -- for arrays ------------------------------------------------------------------------

    def _lane(self, spec: ArraySpec, checked: bool = False) -> Lane:
        node_id = self._node_id
        if not checked:
            self._spec(spec)
            if self._locked_id != node_id:
                self._is_locked(self._history.known(), node_id)
        try:
            return self._history.lane(spec, node_id)
        except CorruptError:
            self._check_there(spec)
            raise

    def _lanes_for(self, spec: ArraySpec, lane: bool, metadata: bool) -> list[Lane]:
        """Return the lanes that a call on an array may want to be newer, as far as known."""
        where = self._node_id if spec.versioned else NO_NODE
        found = self._metadata() if metadata else []
        known = self._history.known_lane(spec, where) if lane else None
        return found if known is None else [*found, known]

    def _metadata(self) -> list[Lane]:
        return [self.store._meta.lane, self._history.meta.lane]

    def _spec(self, spec: ArraySpec) -> ArraySpec:
        """Return the newest description of an array, or raise if it or the repo was deleted."""
        self.store._repo_fields(self._id)
        newest = self._history.view().arrays.get(spec.id)
        if newest is None:
            raise NotFoundError(f"array {spec.name!r} was deleted")
        return newest

    def _check_there(self, spec: ArraySpec) -> None:
        """Raise NotFoundError if an array was deleted, however old an answer may be.

        Where it was swept as well, that is a better answer than what is missing.
        """
        self.store._meta.lane.probe()
        self.store._repo_fields(self._id)
        self._history.meta.lane.probe()
        self._spec(spec)

    def _view(self) -> View:
        """Return the newest metadata, or raise if the repo was deleted."""
        with moment(self._metadata() if self.remote else ()):
            self.store._repo_fields(self._id)
            return self._history.view()

    def _check_writable(self, spec: ArraySpec | None = None) -> None:
        """Refuse what cannot be written: here at all, or to an array."""
        if self.readonly:
            raise ReadOnlyError("the repo was opened read-only")
        if spec is None:
            self.store._repo_fields(self._id)  # deleted meanwhile?
            return
        self._spec(spec)
        if spec.versioned and self._is_locked(self._history.known(), self._node_id):
            raise LockedError(f"{spec.name!r}: {self._locked_message()}")
        kinds.check_known(spec)

    def _locked_message(self) -> str:
        view = self._history.view()
        return locked_message(view, view.dag.nodes[self._node_id])

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<DicedRepo {self.name!r} at {state} version {self.uuid[:12]}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return self.store._pickled_repo(self._id, self._node_id, self.readonly)

    def __enter__(self) -> DicedRepo:
        return self

    def __exit__(self, *_error: object) -> None:
        return None
