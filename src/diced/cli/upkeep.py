"""Commands that look after a store: fsck, du, sweep."""

from __future__ import annotations

import argparse
from typing import Any

from diced.cli import common
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
