"""Commands on the files of a version: files get, put, ls, rm, sync."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

from diced.cli import common
from diced.engine.base import translate
from diced.errors import AlreadyExistsError, InvalidError
from diced.files import KeyValueArray

# One commit each: small enough to hold, large enough that many small files are few commits.
BATCH_BYTES = 32 * 2**20
BATCH_FILES = 1000

SYNC_MORE = """\
Uploads what is new or different below DIR; names are paths relative to DIR, with /. Files are
compared by their bytes. Links to folders are not followed, and neither pipes nor devices are read.
With --down the version's files are written to DIR instead; names that lead outside DIR are refused.
"""


def add_commands(commands: common.Commands) -> None:
    """Add the parsers."""
    summary = "get, put, list, remove or synchronise the files of a version"
    group = commands.add_parser("files", help=summary, description=summary + ".")
    actions = group.add_subparsers(metavar="ACTION", required=True, title="actions")

    parser = common.command(actions, "get", _get, "write a file to OUT or stdout", version=True)
    common.add_store(parser, repo=True)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("out", metavar="OUT", nargs="?", default="-", help="- (default) is stdout")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    parser = common.command(actions, "put", _put, "store a file", version=True, writes=True)
    common.add_store(parser, repo=True)
    parser.add_argument("file", metavar="FILE", help="- is stdin, which needs NAME")
    parser.add_argument("name", metavar="NAME", nargs="?", help="default: the file's own name")

    parser = common.command(actions, "ls", _ls, "list the files", version=True)
    common.add_store(parser, repo=True)
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="")

    parser = common.command(
        actions, "rm", _rm, "remove files; ancestors keep them", version=True, writes=True
    )
    common.add_store(parser, repo=True)
    parser.add_argument("names", metavar="NAME", nargs="+")

    parser = common.command(
        actions, "sync", _sync, "make the files those of a folder, or the reverse",
        more=SYNC_MORE, version=True, writes=True,
    )  # fmt: skip
    common.add_store(parser, repo=True)
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--down", action="store_true", help="from the version to DIR")
    parser.add_argument("--delete", action="store_true", help="remove what the other side has not")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")


def _get(args: argparse.Namespace) -> None:
    with common.open_store(args) as store:
        data = common.open_repo(args, store).files[args.name]
    if args.out == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if os.path.lexists(args.out) and not args.overwrite:
        raise AlreadyExistsError(f"{args.out!r} exists; --overwrite replaces it")
    _write(args.out, data)
    common.show(
        args, {"file": args.out, "bytes": len(data)}, f"wrote {args.out}, {common.human(len(data))}"
    )


def _put(args: argparse.Namespace) -> None:
    if args.file == "-":
        if args.name is None:
            raise InvalidError("what comes from stdin needs a NAME")
        data = sys.stdin.buffer.read()
    else:
        data = _read(args.file)
    name = args.name or os.path.basename(args.file)
    with common.open_store(args, write=True) as store:
        common.open_repo(args, store).files[name] = data
    common.show(
        args, {"name": name, "bytes": len(data)}, f"stored {name}, {common.human(len(data))}"
    )


def _ls(args: argparse.Namespace) -> None:
    with common.open_store(args) as store:
        names = list(common.open_repo(args, store).files.keys(args.prefix))
    common.show(args, names, names)


def _rm(args: argparse.Namespace) -> None:
    with common.open_store(args, write=True) as store:
        files = common.open_repo(args, store).files
        for name in args.names:
            if name not in files:
                files[name]  # raises, with names like it
        files.delete_many(args.names, operation="delete " + ", ".join(args.names)[:200])
    common.show(args, args.names, [f"removed {name}" for name in args.names])


# -- sync ----------------------------------------------------------------------------------


def _sync(args: argparse.Namespace) -> None:
    if not os.path.isdir(args.folder) and not args.down:
        raise InvalidError(f"{args.folder!r} is not a folder")
    with common.open_store(args, write=not (args.down or args.dry_run)) as store:
        files = common.open_repo(args, store).files
        changed, removed = (_down if args.down else _up)(args, files)
    data = {"written": changed, "removed": removed, "dry_run": args.dry_run}
    would = "would " if args.dry_run else ""
    lines = [f"{would}write {name}" for name in changed]
    lines += [f"{would}remove {name}" for name in removed]
    common.show(args, data, lines or "nothing to do")


def _up(args: argparse.Namespace, files: KeyValueArray) -> tuple[list[str], list[str]]:
    local = dict(_walk(args.folder))
    changed = []
    batch: dict[str, bytes] = {}
    size = 0
    for name in sorted(local):
        data = _read(local[name])
        if files.get(name) == data:
            continue
        changed.append(name)
        if args.dry_run:
            continue
        batch[name] = data
        size += len(data)
        if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
            files.put_many(batch, operation=f"sync {len(batch)} files")
            batch, size = {}, 0
    if batch:
        files.put_many(batch, operation=f"sync {len(batch)} files")
    removed = [name for name in files if name not in local] if args.delete else []
    if removed and not args.dry_run:
        files.delete_many(removed, operation=f"sync: delete {len(removed)} files")
    return changed, removed


def _down(args: argparse.Namespace, files: KeyValueArray) -> tuple[list[str], list[str]]:
    stored = list(files.keys())
    root = os.path.realpath(args.folder)
    places = {name: _place(root, name) for name in stored}
    _check_folders(stored)
    changed = []
    for name, path in places.items():
        data = files[name]
        if os.path.isfile(path) and os.path.getsize(path) == len(data) and _read(path) == data:
            continue
        changed.append(name)
        if not args.dry_run:
            _write(path, data)
    removed = []
    if args.delete and os.path.isdir(root):
        for name, path in sorted(_walk(root)):
            if name not in places:
                removed.append(name)
                if not args.dry_run:
                    os.unlink(path)
    return changed, removed


def _place(root: str, name: str) -> str:
    """Return where a stored name goes below `root`, or refuse it: names come from anybody."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise InvalidError(f"the stored name {name!r} leads out of the folder; nothing was done")
    if os.sep != "/" and os.sep in name:
        raise InvalidError(f"the stored name {name!r} holds {os.sep!r}; nothing was done")
    path = os.path.join(root, *parts)
    # A link that lies in the folder already must not lead the writing elsewhere.
    if os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
        raise InvalidError(f"the stored name {name!r} leads through a link; nothing was done")
    return path


def _check_folders(names: Iterable[str]) -> None:
    """Raise if a name is also the folder of another: no file system holds both."""
    known = set(names)
    for name in known:
        parts = name.split("/")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            if above in known:
                raise InvalidError(f"{above!r} is stored, and so is {name!r}; nothing was done")


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of the regular files below a folder, links to files included."""

    def fail(error: OSError) -> None:
        raise translate(error, f"list {error.filename!r}")

    for where, _, names in os.walk(folder, onerror=fail):
        for each in names:
            path = os.path.join(where, each)
            if os.path.isfile(path):
                yield os.path.relpath(path, folder).replace(os.sep, "/"), path


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise translate(error, f"read {path!r}") from error


def _write(path: str, data: bytes) -> None:
    """Write a file that is never seen in part."""
    folder, name = os.path.split(path)
    temp = os.path.join(folder, f".{name[:200]}.{os.getpid()}.part")
    try:
        os.makedirs(folder or ".", exist_ok=True)
        try:
            with open(temp, "xb") as stream:
                stream.write(data)
            os.replace(temp, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp)
    except OSError as error:
        raise translate(error, f"write {path!r}") from error
