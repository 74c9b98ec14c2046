"""What commands share: options, opening, offsets, boxes and sizes, output, progress."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from diced import registry
from diced.array import DicedArray
from diced.errors import InvalidError, LocationError, UnsupportedError
from diced.pyramid import KIND as PYRAMID
from diced.repo import DicedRepo
from diced.store import DicedStore

Commands = Any  # argparse's subparsers; the type is private
Box = tuple[tuple[int, ...], tuple[int, ...]]

STORE_VARIABLE = "DICED_STORE"
# What a server is asked with: a bearer token, and DVID's admin token under DVID's own name.
TOKEN_VARIABLE = "DICED_TOKEN"
ADMIN_VARIABLE = "DVID_ADMIN_TOKEN"


# -- parsers -------------------------------------------------------------------------------


def command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    *,
    more: str = "",
    writes: bool = False,
    version: bool = False,
    progress: bool = False,
) -> argparse.ArgumentParser:
    """Add a command with the options that its kind has, and return its parser.

    Parameters
    ----------
    run : callable
        Gets the parsed arguments; returns the exit code, None for 0.
    summary, more : str
        For help: a line, and what follows the options.
    writes, version, progress : bool
        Give it ``--durability``; ``--version``; ``--progress`` and ``--quiet``.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[:1].upper() + summary[1:] + ".",
        epilog=more or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(
        run=run, usage_error=parser.error, durability="power", version=None, quiet=False
    )
    shared = parser.add_argument_group("common options")
    if version:
        shared.add_argument(
            "-v", "--version", metavar="VERSION",
            help="UUID, prefix of one, branch, tag, or any of these with ~N;"
            " default: the newest version of master",
        )  # fmt: skip
    if writes:
        shared.add_argument(
            "--durability", choices=("power", "process"), default="power",
            help="what is written survives a power cut (power, the default) or a kill (process)",
        )  # fmt: skip
    if progress:
        shared.add_argument(
            "--progress", action="store_true", help="show progress even if not on a terminal"
        )
        shared.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    shared.add_argument("--threads", type=positive, metavar="N", help="for large reads and writes")
    shared.add_argument("--json", action="store_true", help="print JSON")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_store(parser: argparse.ArgumentParser, repo: bool | None = None) -> None:
    """Add STORE, and with `repo` REPO (optional if it is False)."""
    parser.add_argument(
        "store", metavar="STORE", help=f"path or URL; - means the one in ${STORE_VARIABLE}"
    )
    if repo is not None:
        parser.add_argument(
            "repo", metavar="REPO", nargs=None if repo else "?",
            help="name, or the UUID of any of its versions, which is then the default version",
        )  # fmt: skip


def add_array(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ARRAY."""
    parser.add_argument(
        "array", metavar="ARRAY", nargs=None if required else "?", help="name of the array"
    )


def add_offset(parser: argparse.ArgumentParser) -> None:
    """Add the two ways to say where data go."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--offset-xyz", type=integers, metavar="X,Y,Z", help="place of the first voxel, x first"
    )
    group.add_argument(
        "--offset-zyx", type=integers, metavar="Z,Y,X",
        help="place of the first voxel, in the order of the array's axes",
    )  # fmt: skip


def offset(args: argparse.Namespace) -> tuple[int, ...] | None:
    """Return the offset in array order, or None."""
    if args.offset_xyz is not None:
        return tuple(reversed(args.offset_xyz))
    found: tuple[int, ...] | None = args.offset_zyx
    return found


# -- argument types ------------------------------------------------------------------------


def integers(text: str) -> tuple[int, ...]:
    """Parse ``100,-20,3``."""
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not whole numbers and commas"
        ) from None


def numbers(text: str) -> tuple[float, ...]:
    """Parse ``40,8,8``, or one number for all axes."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not numbers and commas") from None


def names(text: str) -> tuple[str, ...]:
    """Parse ``nm,nm,nm``."""
    return tuple(text.split(","))


def one_or_all(values: Sequence[Any] | None) -> Any:
    """Return a single value by itself, so that it counts for every axis."""
    return values[0] if values is not None and len(values) == 1 else values


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def text(given: str) -> str:
    """Refuse a text that says nothing."""
    if not given.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return given


def kind(given: str) -> str:
    """Check the kind of an array: one of diced's, or one that an installed package adds."""
    known = [each for each in registry.names("kind") if each != PYRAMID]  # which is not created
    if given not in known:
        raise argparse.ArgumentTypeError(f"{given!r} is not one of {', '.join(known)}")
    return given


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def size(text: str) -> int:
    """Parse ``512M`` or ``4GiB``; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 4G")
    return max(1, int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")))


Range = tuple[int | None, int | None]


def ranges(text: str) -> tuple[Range, ...]:
    """Parse a box: ``0:64,-10:20,5`` in the order of the array's axes; ``:`` is everything."""
    found: list[Range] = []
    for each in text.strip().split(","):
        low, colon, high = (part.strip() for part in each.partition(":"))
        try:
            if colon:
                found.append((int(low) if low else None, int(high) if high else None))
            else:
                found.append((int(low), int(low) + 1))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text.strip()!r} is not a box such as 0:64,-10:20,5 or :,:,100:200"
            ) from None
    return tuple(found)


def box(array: DicedArray, given: Sequence[Range]) -> Box:
    """Return the box meant in an array; open ends are those of what was written."""
    if len(given) != array.numdims:
        raise InvalidError(
            f"array {array.name!r} has {array.numdims} dimensions; the box has {len(given)}"
        )
    bounds = array.bounds
    if bounds is None and any(None in each for each in given):
        raise InvalidError(f"array {array.name!r} holds nothing yet, so a box needs all its ends")
    lo, hi = [], []
    for axis, (low, high) in enumerate(given):
        lo.append(bounds[axis].start if low is None and bounds else int(low or 0))
        hi.append(bounds[axis].stop if high is None and bounds else int(high or 0))
    if any(a >= b for a, b in zip(lo, hi, strict=True)):
        raise InvalidError(f"the box {tuple(lo)} to {tuple(hi)} is empty")
    return tuple(lo), tuple(hi)


# -- opening -------------------------------------------------------------------------------


def location(args: argparse.Namespace) -> str:
    """Return the store's location; - is the environment's."""
    given: str = args.store
    if given != "-":
        return given
    found = os.environ.get(STORE_VARIABLE, "")
    if not found:
        raise LocationError(f"the store - means ${STORE_VARIABLE}, which is not set")
    return found


def open_store(args: argparse.Namespace, write: bool = False, create: bool = False) -> DicedStore:
    """Open the store of a command; only ``init`` and the like create one."""
    options: dict[str, Any] = {}
    if is_server(args):
        options["token"] = os.environ.get(TOKEN_VARIABLE) or None
        options["admin_token"] = os.environ.get(ADMIN_VARIABLE) or None
    return DicedStore(
        location(args),
        readonly=not write,
        create=create,
        durability=args.durability,
        threads=args.threads,
        **options,
    )


def is_server(args: argparse.Namespace) -> bool:
    """Tell whether the store of a command is a server."""
    scheme, separator, _ = location(args).partition("://")
    return bool(separator) and registry.is_listed("store", scheme.lower())


def need_location(args: argparse.Namespace, command: str) -> None:
    """Refuse a server, for a command that works on what is stored."""
    if is_server(args):
        raise UnsupportedError(
            f"'diced {command}' works on the store itself, not through a server; run it with the"
            f" path or bucket that {location(args)} serves, where that is"
        )


def open_repo(args: argparse.Namespace, store: DicedStore) -> DicedRepo:
    """Open the repo of a command at the version meant."""
    repo = store.open_repo(args.repo)
    if args.version is not None:
        repo.change_version(args.version)
    elif any(name == args.repo for name, _ in store.list_repos()):
        repo.change_version(repo.branches()["master"])
    return repo


def open_array(args: argparse.Namespace, repo: DicedRepo) -> DicedArray:
    """Open the voxel array of a command."""
    array = repo.get_array(args.array)
    if not isinstance(array, DicedArray):
        raise InvalidError(f"array {args.array!r} is of kind {array.kind!r}; it holds no voxels")
    return array


# -- output --------------------------------------------------------------------------------


def show(args: argparse.Namespace, data: Any, lines: Iterable[str] | str) -> None:
    """Print the result: `data` for scripts, `lines` for people."""
    if args.json:
        print(json.dumps(data, indent=1))
    elif not args.quiet:
        for line in [lines] if isinstance(lines, str) else lines:
            print(line)


def note(args: argparse.Namespace, text: str) -> None:
    """Say something on stderr that is neither result nor error."""
    if not args.quiet:
        print(f"diced: {text}", file=sys.stderr)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def human(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(lo: Sequence[int], hi: Sequence[int]) -> str:
    """Return a box as it is typed."""
    return ",".join(f"{a}:{b}" for a, b in zip(lo, hi, strict=True))


@contextlib.contextmanager
def bar(
    args: argparse.Namespace, what: str, unit: str = "B"
) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a callable for (done, total) that moves a bar on stderr, if one is wanted.

    They count bytes, or what `unit` says; a total of None is not known.
    """
    if args.quiet or not (args.progress or sys.stderr.isatty()):
        yield lambda _done, _total: None
        return
    from tqdm import tqdm

    shown: tqdm[Any] | None = None

    def move(done: int, total: int | None) -> None:
        nonlocal shown
        if shown is None:  # what was stored before is no measure of speed
            first = 0 if total is None else done
            shown = tqdm(
                desc=what, total=total, initial=first, unit=unit, unit_scale=True, file=sys.stderr
            )
        shown.update(done - shown.n)

    try:
        yield move
    finally:
        if shown is not None:
            shown.close()
