"""The demo command."""

from __future__ import annotations

import argparse

from diced.cli import common
from diced.errors import InvalidError


def add_commands(commands: common.Commands) -> None:
    """Add the parser."""
    parser = common.command(
        commands, "demo", _demo, "show what diced does: write, lock, branch, edit, compare",
        more="Without FILES an EM volume and its segmentation are made up. Every voxel is checked.",
    )  # fmt: skip
    parser.add_argument("files", metavar="FILES", nargs="*", help="images or patterns of a stack")
    parser.add_argument(
        "--store", metavar="STORE", default="demo.diced",
        help="path or URL, made if missing; its repo 'demo' is replaced; default: demo.diced",
    )  # fmt: skip
    parser.add_argument("--shape", type=common.integers, metavar="Z,Y,X", help="of made-up volumes")
    parser.add_argument("--seed", type=int, default=0, help="of made-up volumes; default: 0")


def _demo(args: argparse.Namespace) -> None:
    from diced.demo.run import SHAPE, run_demo

    shape = args.shape or SHAPE
    if len(shape) != 3 or min(shape) < 1:
        raise InvalidError(f"a shape has 3 numbers above 0; got {shape}")
    lines: list[str] = []
    run_demo(
        args.files,
        common.location(args),
        shape=shape,
        seed=args.seed,
        say=lines.append if args.json else print,
    )
    if args.json:
        common.show(args, {"store": args.store, "told": lines}, [])
