"""Commands on versions: log, lock, branch, tag."""

from __future__ import annotations

import argparse
from typing import Any

from diced.cli import common


def add_commands(commands: common.Commands) -> None:
    """Add the parsers."""
    parser = common.command(
        commands, "log", _log, "show the versions that led to one, or every commit", version=True
    )
    common.add_store(parser, repo=True)
    common.add_array(parser, required=False)
    parser.add_argument(
        "--ops", action="store_true", help="show every commit, of ARRAY or of all arrays"
    )
    parser.add_argument("--all", action="store_true", help="all versions, not only the ancestors")

    parser = common.command(
        commands, "lock", _lock, "lock a version, so that nothing at it can change",
        version=True, writes=True,
    )  # fmt: skip
    common.add_store(parser, repo=True)
    parser.add_argument(
        "-m", "--message", required=True, type=common.text, help="becomes the version's note"
    )

    parser = common.command(
        commands, "branch", _branch, "list the branches, or create a version below a locked one",
        version=True, writes=True,
        more="With NAME the new version begins a branch. With --next it goes on with its\n"
        "parent's branch; where that has gone on already, a branch named after the new UUID\n"
        "begins. Without either the branches are listed.",
    )  # fmt: skip
    common.add_store(parser, repo=True)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("name", metavar="NAME", nargs="?", help="name of the new branch")
    group.add_argument(
        "--next", action="store_true",
        help="go on with the parent's branch; where that has gone on already, a branch named after"
        " the new UUID begins",
    )  # fmt: skip
    parser.add_argument("-m", "--message", default="", help="note of the new version")

    parser = common.command(
        commands, "tag", _tag, "list the tags, or name a locked version", version=True, writes=True
    )
    common.add_store(parser, repo=True)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the tag")
    parser.add_argument("-m", "--message", default="", help="goes to the version's log")


def _log(args: argparse.Namespace) -> None:
    with common.open_store(args) as store:
        repo = common.open_repo(args, store)
        if args.ops or args.array is not None:
            operations = list(repo.operations(args.array))
            rows = [
                (
                    each["version"][:12], each["array"], str(each["number"]), each["time"][:19],
                    each["user"], "" if each["box"] is None else common.span(*each["box"]),
                    each["operation"],
                )
                for each in operations
            ]  # fmt: skip
            common.show(args, operations, common.table(rows))
            return
        line = {uuid for uuid, _ in repo.get_commit_log()}
        tags: dict[str, list[str]] = {}
        for tag, uuid in repo.tags().items():
            tags.setdefault(uuid, []).append(tag)
        versions: list[dict[str, Any]] = [
            {
                "uuid": each.uuid, "number": each.number, "parents": list(each.parents),
                "branch": each.branch, "locked": each.locked, "note": each.note,
                "user": each.user, "created": each.created, "log": each.log,
                "tags": tags.get(each.uuid, []),
            }
            for each in repo.versions()
            if args.all or each.uuid in line
        ]  # fmt: skip
        lines = []
        for version in versions:
            named = "".join(f" [{tag}]" for tag in tags.get(str(version["uuid"]), []))
            state = "" if version["locked"] else " (open)"
            lines.append(f"{version['uuid']}  {version['branch']}{state}{named}")
            when = str(version["created"])[:19]
            lines.append(f"    {when}  {version['user']}  {version['note']}".rstrip())
            lines += [f"    {each}" for each in version["log"]]
        common.show(args, versions, lines)


def _lock(args: argparse.Namespace) -> None:
    with common.open_store(args, write=True) as store:
        repo = common.open_repo(args, store)
        uuid = repo.lock_node(args.message)
        common.show(args, {"uuid": uuid, "note": args.message}, f"locked version {uuid}")


def _branch(args: argparse.Namespace) -> None:
    creates = args.name is not None or args.next
    with common.open_store(args, write=creates) as store:
        repo = common.open_repo(args, store)
        if not creates:
            found = repo.branches()
            common.show(args, found, common.table(list(found.items())))
            return
        uuid = repo.create_branch(args.message, branch=args.name)
        repo.change_version(uuid)
        branch = next(each.branch for each in repo.versions() if each.uuid == uuid)
        data = {"uuid": uuid, "branch": branch}
        common.show(args, data, f"created version {uuid} on branch {branch}")


def _tag(args: argparse.Namespace) -> None:
    with common.open_store(args, write=args.name is not None) as store:
        repo = common.open_repo(args, store)
        if args.name is None:
            found = repo.tags()
            common.show(args, found, common.table(list(found.items())))
            return
        repo.tag(args.name, args.message)
        data = {"tag": args.name, "uuid": repo.uuid}
        common.show(args, data, f"tagged version {repo.uuid} as {args.name}")
