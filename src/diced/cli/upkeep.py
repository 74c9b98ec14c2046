"""Commands that look after a store: fsck, du, sweep, pyramid."""

from __future__ import annotations

import argparse
from typing import Any

from diced.cli import common
from diced.cli.stores import confirmed
from diced.downsample import METHODS
from diced.store import DicedStore
from diced.walk import plural

CORRUPT, MEDIUM, UNSUPPORTED = 6, 7, 12  # the exit codes of the errors

FSCK_MORE = """\
Quick (default): every record, tree page and pointer is checked, but no block is read. --full also
reads and decodes every block. Neither changes anything. --rebuild first restores records and
indexes from logs and segments; stop all writers before. --adopt lets it take, for a record of an
open version that is lost with all that names it, the only commit that fits.

The exit code is 6 if errors remain; 7 or 12 if all of them are that something could not be read, or
needs a package or a newer diced.
"""


PYRAMID_MORE = """\
Stores what is missing, of a locked version as of an open one; it may be stopped and repeated at any
time. Levels can be read without: what is not stored, or was changed since, is computed by the read.

  diced pyramid fly.diced fib19 grayscale --axes isotropic
  diced pyramid fly.diced fib19 grayscale --status
"""


def add_commands(commands: common.Commands) -> None:
    """Add the parsers."""
    parser = common.command(
        commands, "fsck", _fsck, "check a store for damage",
        more=FSCK_MORE, writes=True, progress=True,
    )  # fmt: skip
    common.add_store(parser, repo=False)
    parser.add_argument("--full", action="store_true", help="read and decode every block")
    parser.add_argument(
        "--rebuild", action="store_true", help="restore lost logs and indexes, then check"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="with --rebuild: take commits that are likely lost"
    )

    parser = common.command(commands, "du", _du, "tell what takes the space: live and dead bytes")
    common.add_store(parser, repo=False)
    parser.add_argument("-b", "--bytes", action="store_true", help="plain numbers")

    parser = common.command(
        commands, "sweep", _sweep, "remove what is left of deleted repos and arrays now",
        writes=True,
    )  # fmt: skip
    common.add_store(parser)
    parser.add_argument(
        "--orphans", action="store_true",
        help="also what belongs to no repo or array at all; not where metadata were lost",
    )  # fmt: skip

    parser = common.command(
        commands, "pyramid", _pyramid, "store an array's levels of half the resolution and less",
        more=PYRAMID_MORE, version=True, writes=True, progress=True,
    )  # fmt: skip
    common.add_store(parser, repo=True)
    common.add_array(parser)
    parser.add_argument(
        "--levels", type=common.positive, metavar="N",
        help="default: those that are stored, else as many as make the array one block",
    )  # fmt: skip
    parser.add_argument(
        "--axes", type=_axes, metavar="AXES",
        help="numbers of axes to halve, as 1,2, or isotropic; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=METHODS, help="default: mode for labels, mean for images"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--status", action="store_true", help="only tell what is stored")
    group.add_argument(
        "--delete", action="store_true", help="delete what is stored, of all versions"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="with --delete: do not ask")


def _fsck(args: argparse.Namespace) -> int:
    from diced import fsck, rebuild
    from diced.report import UNCHECKED

    def say(text: str) -> None:
        if args.progress:
            common.note(args, text)

    if args.adopt and not args.rebuild:
        args.usage_error("--adopt goes with --rebuild")
    common.need_location(args, "fsck")
    problems = []
    rebuilt: dict[str, int] | None = None
    if args.rebuild:
        with common.open_store(args, write=True) as store:
            report = rebuild.rebuild(store, args.repo, progress=say, adopt=args.adopt)
        problems += report.problems
        rebuilt = report.counts
    with common.open_store(args) as store:
        report = fsck.check(store, args.repo, full=args.full, progress=say)
    problems += report.problems
    errors = {each.kind for each in problems if each.severity == "error"}
    lines = [str(each) for each in problems]
    if rebuilt is not None:
        lines.append(_rebuilt(rebuilt))
    counted = ", ".join(plural(count, what) for what, count in sorted(report.counts.items()))
    sound = "no errors" if args.full else "indexes are sound; blocks were not read (--full does)"
    lines.append(f"{'errors were found' if errors else sound}; {counted}")
    data = {
        "ok": not errors, "full": args.full, "problems": [each._asdict() for each in problems],
        "counts": report.counts, "rebuilt": rebuilt,
    }  # fmt: skip
    common.show(args, data, lines)
    if errors <= {"access", "medium"}:
        return MEDIUM if errors else 0
    return CORRUPT if errors - set(UNCHECKED) else UNSUPPORTED


def _rebuilt(counts: dict[str, int]) -> str:
    """Say what a rebuild did."""
    done = {what: count for what, count in counts.items() if " " in what}
    told = ", ".join(plural(count, what) for what, count in sorted(done.items()))
    return f"{plural(counts.get('lanes', 0), 'lanes')} read, {told or 'nothing to rebuild'}"


def _du(args: argparse.Namespace) -> None:
    from diced import usage

    common.need_location(args, "du")
    with common.open_store(args) as store:
        data = usage.usage(store, args.repo)
    common.show(args, data, _du_lines(args, data))


def _du_lines(args: argparse.Namespace, data: dict[str, Any]) -> list[str]:
    shown = str if args.bytes else common.human
    lines = []
    for repo in data["repos"]:
        lines.append(f"repo {repo['name']}")
        rows = [
            (
                f"  {each['name']}",
                shown(each["live_bytes"]),
                "live",
                plural(each["blocks"], "blocks"),
            )
            for each in repo["arrays"]
            if each["live_bytes"] or each["blocks"]
        ]
        # Frames are in segments, or behind small records in the logs.
        found, logs = repo["segments"], repo["logs"]
        held = {kind: found[kind] + logs.get(kind, 0) for kind in found}
        rest = repo["bytes"]["total"] - sum(held.values())
        rows += [
            ("  = live", shown(held["live"]), "", "in some version"),
            ("  + superseded", shown(held["superseded"]), "", "overwritten before a lock"),
            ("  + journal", shown(held["journal"]), "", "commits, to rebuild indexes from"),
            ("  + sessions", shown(held["sessions"]), "", "of write sessions that did not end"),
            ("  + dead", shown(held["dead"]), "", "referred to by nothing"),
            ("  + index", shown(rest), "", "pages, logs, snapshots, locks"),
            ("  = total", shown(repo["bytes"]["total"]), "", plural(repo["files"], "files")),
        ]
        lines += common.table(rows)
    lines.append(f"{data['url']}: {shown(data['bytes'])} in {plural(data['files'], 'files')}")
    return lines


def _sweep(args: argparse.Namespace) -> None:
    common.need_location(args, "sweep")
    with common.open_store(args, write=True) as store:
        removed = store.sweep(args.orphans)
    common.show(args, {"objects": removed}, f"removed {plural(removed, 'objects')}")


def _axes(text: str) -> Any:
    if text.strip() == "isotropic":
        return "isotropic"
    try:
        return list(common.integers(text))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, and not isotropic") from None


def _pyramid(args: argparse.Namespace) -> int:
    how = (args.levels, args.axes, args.method)
    if args.yes and not args.delete:
        args.usage_error("--yes goes with --delete")
    if args.delete and any(each is not None for each in how):
        args.usage_error("--delete deletes all levels, however they were made")
    with common.open_store(args, write=not args.status) as store:
        array = common.open_array(args, common.open_repo(args, store))
        pyramid = array.pyramid(args.levels, axes=args.axes, method=args.method)
        if args.delete:
            return _delete_pyramid(args, store, pyramid)
        if args.status:
            found = _levels(pyramid)
            rows = [(*map(str, (each["level"], each["name"])), *_level_cells(each))
                    for each in found]  # fmt: skip
            common.show(args, found, common.table(rows) if rows else _no_levels(array.name))
            return 0
        done: dict[int, int] = {}
        with common.bar(args, args.array, " blocks") as move:

            def progress(level: int, count: int) -> None:
                done[level] = count
                move(sum(done.values()), None)

            total = pyramid.update(progress)
        levels = [
            {"level": each.number, "name": each.name, "blocks": done.get(each.number, 0)}
            for each in pyramid[1:]
        ]
        lines = [
            f"level {each['level']}, {each['name']}: {plural(each['blocks'], 'blocks')} computed"
            for each in levels
        ]
        common.show(args, {"blocks": total, "levels": levels}, lines or _no_levels(array.name))
        return 0


def _no_levels(name: str) -> str:
    return f"array {name!r} is no larger than a block, and has no levels unless --levels says so"


def _levels(pyramid: Any) -> list[dict[str, Any]]:
    """Return what there is to say of each level."""
    status = {each["level"]: each for each in pyramid.status()}
    found = []
    for level in pyramid[1:]:
        stored = status.get(level.number)
        bounds = level.bounds
        found.append(
            {
                "level": level.number,
                "name": level.name,
                "stored": stored is not None,
                "complete": stored is not None and stored["complete"],
                "source_upto": None if stored is None else stored["source_upto"],
                "bounds": bounds and [[s.start for s in bounds], [s.stop for s in bounds]],
                "voxel_size": list(level.voxel_size),
                "units": list(level.units),
            }
        )
    return found


def _level_cells(data: dict[str, Any]) -> tuple[str, str, str]:
    """Return a level's box, voxel size and state for people."""
    bounds = data["bounds"]
    size = " x ".join(f"{each:g}" for each in data["voxel_size"])
    units = set(data["units"])
    unit = " " + units.pop() if len(units) == 1 and units != {""} else ""
    state = "complete" if data["complete"] else "incomplete" if data["stored"] else "not stored"
    return common.span(*bounds) if bounds else "empty", size + unit, state


def _delete_pyramid(args: argparse.Namespace, store: DicedStore, pyramid: Any) -> int:
    count = len(pyramid.status())
    what = f"the stored levels of array {args.array!r}"
    if not args.yes and count and not confirmed(what, store.url):
        common.note(args, f"{what} were not deleted; --yes does it without asking")
        return 2
    pyramid.delete()
    removed = store.sweep()
    text = f"deleted {plural(count, 'levels')} and removed {plural(removed, 'objects')}"
    common.show(args, {"deleted": count, "objects": removed}, text)
    return 0
