"""The probe command: what a location can promise to several writers, found by trying."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from diced.cli import common
from diced.engine import Engine, open_engine
from diced.errors import EngineError, NotFoundError, UnsupportedError

MORE = """\
Two processes create the same keys at once, look for each other's writes, list, append and read, and
compare their clocks. LOCATION is an existing folder or a URL, with a store in it or without. What
was found is kept there, where --show reads it, and nothing else is left.

On two hosts: run `diced probe LOCATION --hosts 2` on one and `diced probe LOCATION --other` on the
other within 90 seconds.

The exit code is 0 if several writers may work there, else 1.
"""
FAILED = 1


def add_commands(commands: common.Commands) -> None:
    """Add the parser."""
    parser = common.command(
        commands, "probe", _probe, "find out what a location can promise to several writers",
        more=MORE, writes=True, progress=True,
    )  # fmt: skip
    parser.add_argument("store", metavar="LOCATION", help="folder or URL; a store may be there")
    parser.add_argument("--show", action="store_true", help="print what the last probe found")
    parser.add_argument(
        "--hosts", type=int, choices=(1, 2), default=1, help="2: wait for a second host"
    )
    parser.add_argument(
        "--other", action="store_true", help="be the second host of a probe that waits"
    )
    parser.add_argument("--join", help=argparse.SUPPRESS)
    parser.add_argument("--naming", help=argparse.SUPPRESS)


def _probe(args: argparse.Namespace) -> int:
    from diced.engine import findings, probe

    common.need_location(args, "probe")
    location = common.location(args)
    if location.startswith("memory:"):
        args.usage_error("what is in memory has one process only")
    if args.show:
        with open_engine(location, readonly=True) as engine:
            found = findings.newest(engine)
        if found is None:
            raise NotFoundError(f"{location} was not probed yet")
    elif args.other:
        with _open(args, location, args.naming) as engine:
            probe.join(engine, args.join, _parent_lives(args), _say(args))
        return 0
    else:
        found = _found(args, location)
    common.show(args, found, _lines(found))
    return 0 if found["ok"] else FAILED


def _open(args: argparse.Namespace, location: str, naming: str | None = None) -> Engine:
    options: dict[str, Any] = {"create": False} if "://" not in location else {}
    return open_engine(location, durability=args.durability, naming=naming, **options)


def _say(args: argparse.Namespace) -> Callable[[str], None]:
    def say(text: str) -> None:
        if args.progress:
            common.note(args, text)

    return say


def _found(args: argparse.Namespace, location: str) -> dict[str, Any]:
    """Probe; where files get their names by links in vain, once more with renaming."""
    from diced.engine import probe

    with _open(args, location) as engine:
        try:
            return _lead(args, location, engine, None)
        except UnsupportedError as error:
            with _open(args, location, "rename") as renaming:
                try:
                    return _lead(args, location, renaming, "rename")
                except UnsupportedError:
                    return probe.refused(engine, args.hosts, str(error))


def _lead(
    args: argparse.Namespace, location: str, engine: Engine, naming: str | None
) -> dict[str, Any]:
    from diced.engine import probe

    children: list[subprocess.Popen[str]] = []

    def start(run: str) -> Callable[[], None]:
        if args.hosts == 2:
            common.note(args, f"now run on the other host: diced probe {location} --other")
            return lambda: None
        command = [sys.executable, "-m", "diced", "probe", location, "--other", "--join", run]
        command += ["--durability", args.durability]
        if naming is not None:
            command += ["--naming", naming]
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        children.append(child)

        def alive() -> None:
            if child.poll():
                assert child.stderr is not None
                raise EngineError(
                    f"the other process of the probe failed: {child.stderr.read().strip()}"
                )

        return alive

    try:
        return probe.lead(engine, args.hosts, start, _say(args))
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _parent_lives(args: argparse.Namespace) -> Callable[[], None]:
    """Return what raises once the process that started this one has ended, if one did."""
    parent = os.getppid()

    def alive() -> None:
        if args.join is not None and os.getppid() != parent:
            raise EngineError("the probe that this process belongs to has ended")

    return alive


# ---- output


def _lines(found: dict[str, Any]) -> list[str]:
    place = found.get("file_system") or found["url"].partition(":")[0]
    hosts = "two hosts" if found["hosts"] == 2 else "one host"
    lines = [f"{found['url']} ({place}), probed by two processes on {hosts}, {found['time']}"]
    rows = [("  several writers", "yes" if found["writers"] else "no", _race(found))]
    if "fresh_s" in found:
        rows += [
            ("  a new write is seen", _span(found["fresh_s"]), _caches(found)),
            ("  a new name is listed", _lag(found["listed_s"]), ""),
            ("  a deleted one is gone", _lag(found["deleted_s"]), ""),
            (
                "  durability",
                found["durability"],
                f"creating a key takes {_short(found['create_ms'])} ms",
            ),
            (
                "  the other's clock",
                f"{found['clock_s']:+.1f} s",
                f"+- {found['clock_error_s']:.1f} s",
            ),
        ]
    lines += common.table(rows)
    lines += [f"problem: {each}" for each in found["problems"]]
    return lines


def _race(found: dict[str, Any]) -> str:
    if "won" not in found:
        return ""
    first, second = found["won"]
    how = {"link": "by link(2)", "rename": "by renameat2(2)"}.get(found["naming"], "by the service")
    return f"{found['rounds']} keys created by both, won {first} : {second}, {how}"


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"at once, within {_short(1e3 * seconds)} ms"
    return f"within {seconds:.1f} s"


def _lag(seconds: float | None) -> str:
    if seconds is None:
        return "not within 10 s"
    return "at once" if seconds == 0 else f"after {_short(seconds)} s"


def _short(value: float) -> str:
    """Return a number in two digits, or in as many as it has before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _caches(found: dict[str, Any]) -> str:
    if not found["network"]:
        return ""
    return "a service" if found["naming"] == "service" else "past the caches of this host"
