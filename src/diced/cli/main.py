"""The entry point: the parser, dispatch, and exit codes."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence

import diced
from diced import errors
from diced.cli import bench, data, demo, files, probe, serve, stores, upkeep, versions
from diced.engine.base import translate

# The first that an error is an instance of; the order matters where one derives from another.
EXIT_CODES: tuple[tuple[type[errors.DicedException], int], ...] = (
    (errors.NotFoundError, 3),
    (errors.AlreadyExistsError, 4),
    (errors.LockedError, 5),
    (errors.CorruptError, 6),
    (errors.EngineError, 7),
    (errors.InvalidError, 8),
    (errors.ReadOnlyError, 9),
    (errors.AmbiguousError, 10),
    (errors.ConflictError, 11),
    (errors.UnsupportedError, 12),
    (errors.DicedException, 1),
)
INTERRUPTED = 130
PIPE_CLOSED = 141

EPILOG = """\
STORE is a path or URL, REPO a name in it, ARRAY a name in that. Commands look at the newest version
of master unless --version says otherwise. Boxes and offsets are in the order of the array's axes
(ZYX) unless an option says XYZ; negative numbers are coordinates.

exit codes: 0 done, 1 other error, 2 usage, 3 not found, 4 exists, 5 locked, 6 corrupt,
7 medium (disk, network, location), 8 invalid, 9 read-only, 10 ambiguous, 11 conflict,
12 unsupported, 130 interrupted

  diced init fly.diced
  diced create fly.diced fib19
  diced ingest fly.diced fib19 grayscale 'iso.*.png' --offset-xyz 100,100,2600
  diced lock fly.diced fib19 -m aligned
"""

# An offset or a box, which argparse would take for an option because of its first sign.
_NEGATIVE = re.compile(r"-\d+[:,][\d:,+-]*")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="diced",
        description="A versioned store for massive n-dimensional arrays.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"diced {diced.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for module in (stores, versions, data, files, serve, upkeep, bench, probe, demo):
        module.add_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; the process's by default.

    Returns
    -------
    int
        Exit code.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    # A word with a space in front is never an option, and numbers do not mind it.
    words = [f" {each}" if _NEGATIVE.fullmatch(each) else each for each in given]
    try:
        args = parser().parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as stop:  # a usage error that only the command could see
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("diced: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wants; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except errors.DicedException as error:
        return _fail(args, error)
    except OSError as error:
        name = f"open {error.filename!r}" if error.filename is not None else "go on"
        failure = translate(error, name)
        failure.__cause__ = error
        return _fail(args, failure)


def _fail(args: argparse.Namespace, error: errors.DicedException) -> int:
    if args.debug:
        traceback.print_exception(error)
    print(f"diced: error: {' '.join(str(error).split())}", file=sys.stderr)
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
