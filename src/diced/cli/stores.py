"""Commands on stores, repos and arrays: init, repos, create, ls, info, delete."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from diced.array import DicedArray
from diced.cli import common
from diced.errors import AlreadyExistsError, InvalidError, LocationError
from diced.repo import DicedRepo
from diced.roi import RoiArray
from diced.spec import DTYPES
from diced.store import DicedStore


def add_commands(commands: common.Commands) -> None:
    """Add the parsers."""
    parser = common.command(commands, "init", _init, "create a store", writes=True)
    common.add_store(parser)
    parser.add_argument("--exist-ok", action="store_true", help="be content if there is one")

    parser = common.command(commands, "repos", _repos, "list the repos of a store")
    common.add_store(parser)

    parser = common.command(
        commands, "create", _create, "create a repo, or an array in one", version=True,
        writes=True,
        more="Without ARRAY the repo is created; with it, the array in a repo that exists.",
    )  # fmt: skip
    common.add_store(parser, repo=True)
    common.add_array(parser, required=False)
    parser.add_argument("--description", default="", help="of the repo")
    group = parser.add_argument_group("the array")
    group.add_argument("--dtype", choices=DTYPES, help="default: uint8; uint64 with --labels")
    group.add_argument("--dims", type=common.positive, help="1 to 8, without channels; default: 3")
    # Names that packages add are looked up only for a kind that is given.
    group.add_argument(
        "--kind", type=common.kind, metavar="KIND",
        help="image (default), label, keyvalue, roi, labelgraph, imagetile, or one that an"
        " installed package adds",
    )  # fmt: skip
    group.add_argument("--unversioned", action="store_true", help="the same at every version")
    add_array_options(group)

    parser = common.command(
        commands, "ls", _ls, "list the repos of a store, or the arrays of a repo", version=True
    )
    common.add_store(parser, repo=False)
    parser.add_argument("-a", "--all", action="store_true", help="hidden ones too")

    parser = common.command(
        commands, "info", _info, "describe a store, a repo at a version, or an array", version=True
    )
    common.add_store(parser, repo=False)
    common.add_array(parser, required=False)

    parser = common.command(
        commands, "delete", _delete, "delete a repo, or an array from all its versions",
        version=True, writes=True, more="This cannot be undone.",
    )  # fmt: skip
    common.add_store(parser, repo=True)
    common.add_array(parser, required=False)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def add_array_options(group: Any) -> None:
    """Add what is said of a new array, by ``create`` and ``ingest``."""
    group.add_argument("--labels", action="store_true", help="uint64 labels")
    group.add_argument("--codec", help="raw, lz4, zstd[:level], gzip[:level], jpeg[:quality]; ...")
    group.add_argument(
        "--block-shape", type=common.integers, metavar="Z,Y,X",
        help="per axis, or one for all; default: 64,64,64; of 2-D arrays 512,512, of 1-D 262144",
    )  # fmt: skip
    group.add_argument(
        "--voxel-size", type=common.numbers, metavar="Z,Y,X", help="per axis, or one for all"
    )
    group.add_argument("--units", type=common.names, metavar="Z,Y,X", help="as nm, or nm,nm,nm")


def array_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was said, for ``create_array``."""
    return {
        "codec": args.codec,
        "block_shape": common.one_or_all(args.block_shape),
        "voxel_size": common.one_or_all(args.voxel_size),
        "units": common.one_or_all(args.units),
    }


def _init(args: argparse.Namespace) -> None:
    if common.location(args).lower().startswith("memory:"):
        raise LocationError(
            f"{common.location(args)!r} would be gone when this command ends; give a path"
        )
    try:
        common.open_store(args).close()
    except LocationError:
        with common.open_store(args, write=True, create=True) as store:
            common.show(args, {"store": store.url, "uuid": store.uuid}, f"created {store.url}")
            return
    where = common.location(args)
    if not args.exist_ok:
        raise AlreadyExistsError(f"{where} is a store already")
    with common.open_store(args) as store:
        common.show(args, {"store": store.url, "uuid": store.uuid}, f"{store.url} exists already")


def _repos(args: argparse.Namespace) -> None:
    with common.open_store(args) as store:
        _show_repos(args, store)


def _show_repos(args: argparse.Namespace, store: DicedStore) -> None:
    found = [store.repo_info(name) for name, _ in store.list_repos()]
    rows = [(each["name"], each["uuid"], each["description"]) for each in found]
    common.show(args, found, common.table(rows))


def _create(args: argparse.Namespace) -> None:
    with common.open_store(args, write=True) as store:
        if args.array is None:
            repo = store.create_repo(args.repo, args.description)
            data = {"repo": args.repo, "uuid": repo.uuid}
            common.show(args, data, f"created repo {args.repo}, version {repo.uuid}")
            return
        repo = common.open_repo(args, store)
        kind = "label" if args.labels else args.kind
        if args.labels and args.kind not in (None, "label"):
            raise InvalidError(f"--labels makes kind 'label'; got --kind {args.kind}")
        options = {key: value for key, value in array_options(args).items() if value is not None}
        if args.dims is not None:
            options["dims"] = args.dims
        if isinstance(options.get("block_shape"), int):
            options["block_shape"] = (options["block_shape"],) * (args.dims or 3)
        dtype = args.dtype or ("uint64" if kind == "label" else "uint8")
        array = repo.create_array(
            args.array, dtype, kind=kind, versioned=not args.unversioned, **options
        )
        common.show(args, _describe(array), f"created array {args.array} at version {repo.uuid}")


def _ls(args: argparse.Namespace) -> None:
    with common.open_store(args) as store:
        if args.repo is None:
            _show_repos(args, store)
            return
        repo = common.open_repo(args, store)
        shown = [name for name, _ in repo.list_instances()]
        if args.all:
            shown = [name for name, _ in repo.list_instances(showhidden=True)]
        found = [_describe(repo.get_array(name)) for name in shown]
        rows = [
            (each["name"], each["kind"], each.get("dtype", ""), _bounds_text(each))
            for each in found
        ]
        common.show(args, found, common.table(rows))


def _describe(array: Any) -> dict[str, Any]:
    """Return what there is to say of an array."""
    data = {
        "name": array.name, "kind": array.kind, "versioned": array.versioned,
        "locked": array.locked,
    }  # fmt: skip
    if not isinstance(array, DicedArray):
        if isinstance(array, RoiArray):
            data["block_shape"] = list(array.block_shape)
            data["bounds"] = _bounds(array)
        return {**data, "attrs": dict(array.attrs)}
    fill = array.fill
    return {
        **data,
        "dtype": array.dtype.name,
        "dims": array.numdims,
        "channels": array.channels,
        "block_shape": list(array.block_shape),
        "codec": array.codec,
        "fill": fill.tolist() if hasattr(fill, "tolist") else fill,
        "voxel_size": list(array.voxel_size),
        "units": list(array.units),
        "bounds": _bounds(array),
        "attrs": dict(array.attrs),
    }


def _bounds(array: Any) -> list[list[int]] | None:
    bounds = array.bounds
    if bounds is None:
        return None
    return [[each.start for each in bounds], [each.stop for each in bounds]]


def _bounds_text(data: dict[str, Any]) -> str:
    if "bounds" not in data:
        return ""
    return "empty" if data["bounds"] is None else common.span(*data["bounds"])


def _info(args: argparse.Namespace) -> None:
    with common.open_store(args) as store:
        if args.repo is None:
            data: dict[str, Any] = {
                "store": store.url, "uuid": store.uuid, "repos": len(store.list_repos()),
                "info": dict(store.info),
            }  # fmt: skip
        else:
            repo = common.open_repo(args, store)
            data = (
                _repo_info(store, repo)
                if args.array is None
                else _describe(repo.get_array(args.array))
            )
        common.show(args, data, _fields(data))


def _repo_info(store: DicedStore, repo: DicedRepo) -> dict[str, Any]:
    return {
        **store.repo_info(repo.name),
        "version": repo.uuid,
        "locked": repo.locked,
        "note": repo.note,
        "versions": len(repo.versions()),
        "branches": repo.branches(),
        "tags": repo.tags(),
        "arrays": [name for name, _ in repo.list_instances()],
        "log": repo.log,
    }


def _fields(data: dict[str, Any]) -> list[str]:
    """Return the lines of a description."""
    rows = []
    for key, value in data.items():
        if key == "bounds":
            value = _bounds_text(data)
        elif isinstance(value, dict):
            value = ", ".join(f"{name}={each}" for name, each in value.items())
        elif isinstance(value, list):
            value = ", ".join(str(each) for each in value) if any(map(str, value)) else None
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        rows.append((key, "none" if value is None else str(value)))
    return common.table(rows)


def _delete(args: argparse.Namespace) -> int:
    from diced.walk import plural

    with common.open_store(args, write=True) as store:
        repo = common.open_repo(args, store)
        what = f"repo {args.repo!r}" if args.array is None else f"array {args.array!r}"
        if args.array is not None:
            repo.get_array(args.array)
        if not args.yes and not confirmed(what, store.url):
            common.note(args, f"{what} was not deleted; --yes does it without asking")
            return 2
        if args.array is None:
            store.delete_repo(args.repo)
        else:
            repo.delete_array(args.array)
        removed = store.sweep()
        text = f"deleted {what} and removed {plural(removed, 'objects')}"
        common.show(args, {"deleted": what, "objects": removed}, text)
        return 0


def confirmed(what: str, url: str) -> bool:
    """Ask whether to delete something; no if nobody is there to answer."""
    if not sys.stdin.isatty():
        return False
    print(f"delete {what} of {url} for ever? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
