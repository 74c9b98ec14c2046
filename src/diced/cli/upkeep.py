"""Commands that look after a store: fsck, du, sweep."""

from __future__ import annotations

import argparse
from typing import Any

from diced.cli import common

CORRUPT = 6  # the exit code of CorruptError

FSCK_MORE = """\
Quick (default): every record, tree page and pointer is checked. --full also reads and decodes every
block. Neither changes anything. --rebuild restores records and indexes from the segments alone. The
exit code is 6 if errors remain.
"""


def add_commands(commands: common.Commands) -> None:
    """Add the parsers."""
    parser = common.command(
        commands, "fsck", _fsck, "check a store for damage", more=FSCK_MORE, progress=True
    )
    common.add_store(parser, repo=False)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--full", action="store_true", help="read and decode every block")
    group.add_argument(
        "--rebuild", action="store_true", help="restore lost logs and indexes, then check"
    )

    parser = common.command(commands, "du", _du, "tell what takes the space: live and dead bytes")
    common.add_store(parser, repo=False)
    parser.add_argument("-b", "--bytes", action="store_true", help="plain numbers")

    parser = common.command(
        commands, "sweep", _sweep, "remove what is left of deleted repos and arrays now"
    )
    common.add_store(parser)


def _fsck(args: argparse.Namespace) -> int:
    from diced import fsck, rebuild

    def say(text: str) -> None:
        if args.progress:
            common.note(args, text)

    problems = []
    counts: dict[str, int] = {}
    if args.rebuild:
        with common.open_store(args, write=True) as store:
            report = rebuild.rebuild(store, args.repo, progress=say)
        problems += report.problems
        counts.update({f"{what} rebuilt": count for what, count in report.counts.items()})
    with common.open_store(args) as store:
        report = fsck.check(store, args.repo, full=args.full, progress=say)
    problems += report.problems
    counts.update(report.counts)
    found = [each._asdict() for each in problems]
    ok = not any(each["severity"] == "error" for each in found)
    lines = [f"{each['severity']}: {each['where']}: {each['message']}" for each in found]
    counted = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    lines.append(f"{'no errors' if ok else 'errors were found'}; {counted}")
    common.show(args, {"ok": ok, "problems": found, "counts": counts}, lines)
    return 0 if ok else CORRUPT


def _du(args: argparse.Namespace) -> None:
    from diced import usage

    with common.open_store(args) as store:
        data = usage.usage(store, args.repo)
    common.show(args, data, _du_lines(args, data))


def _du_lines(args: argparse.Namespace, data: dict[str, Any]) -> list[str]:
    shown = str if args.bytes else common.human
    lines = []
    for repo in data["repos"]:
        lines.append(f"repo {repo['name']}")
        rows = [
            (f"  {each['name']}", shown(each["live_bytes"]), "live", f"{each['blocks']} blocks")
            for each in repo["arrays"]
            if each["live_bytes"] or each["blocks"]
        ]
        found = repo["segments"]
        rest = sum(n for kind, n in repo["bytes"].items() if kind not in ("total", "segments"))
        rows += [
            ("  = live", shown(found["live"]), "", "in some version"),
            ("  + superseded", shown(found["superseded"]), "", "overwritten before a lock"),
            ("  + journal", shown(found["journal"]), "", "commits, to rebuild indexes from"),
            ("  + dead", shown(found["dead"]), "", "referred to by nothing"),
            ("  + index", shown(rest), "", "pages, logs, snapshots, locks"),
            ("  = total", shown(repo["bytes"]["total"]), "", f"{repo['files']} files"),
        ]
        lines += common.table(rows)
    lines.append(f"{data['url']}: {shown(data['bytes'])} in {data['files']} files")
    return lines


def _sweep(args: argparse.Namespace) -> None:
    with common.open_store(args, write=True) as store:
        removed = store.sweep()
    common.show(args, {"objects": removed}, f"removed {removed} objects")
