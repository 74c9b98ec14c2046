"""Commands that move voxels: ingest, export, cp."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable

from diced.cli import common
from diced.cli.stores import add_array_options, array_options
from diced.errors import InvalidError
from diced.export import FORMATS, export
from diced.export import stack as writers
from diced.ingest import Estimate, ImageStack, Result, foresee, gaps, ingest, open_source
from diced.walk import plural

INGEST_MORE = """\
FILES are images (PNG, JPEG, TIFF: one plane each), TIFF files of several pages, one .npy file, or
one HDF5 file as volume.h5:/dataset. Quoted patterns are expanded here. Images are put in natural
order, iso.9.png before iso.10.png, unless --keep-order is given. A missing ARRAY is created, with
the type of the data.

Every slab of one block's thickness is one commit. Run the same command again after it was stopped,
however that happened: slabs that are stored are skipped. They are known by their files' names,
sizes and times, so a replaced image rewrites its slab only. Into a bucket slabs are thicker, and a
note says first how many requests they will take; --estimate only says that.

  diced ingest fly.diced fib19 grayscale 'iso.*.png' --offset-xyz 100,100,2600
  diced ingest fly.diced fib19 bodies seg.h5:/labels --labels --units nm --voxel-size 8
"""

EXPORT_MORE = """\
OUT ends in .npy, .h5 (or .h5:/dataset), .raw or .tif (several pages); a name without such an ending
is the folder of a stack of images, one per plane. The folder that OUT is in must exist.
Files appear under their names only when they are complete.

  diced export fly.diced fib19 grayscale planes --format tiff
  diced export fly.diced fib19 grayscale cut.h5:/em --box 2600:2700,:,:
"""

CP_MORE = """\
The box is in the order of the array's axes; a missing end is that of what was written, a single
number one plane.

  diced cp fly.diced fib19 grayscale 2600:2700,100:350,-20:80 cut.npy
  diced cp cut.npy fly.diced fib19 grayscale --offset-zyx 2600,100,-20
"""


def add_commands(commands: common.Commands) -> None:
    """Add the parsers."""
    parser = common.command(
        commands, "ingest", _ingest, "write image stacks, numpy or HDF5 files into an array",
        more=INGEST_MORE, version=True, writes=True, progress=True,
    )  # fmt: skip
    common.add_store(parser, repo=True)
    common.add_array(parser)
    parser.add_argument("files", metavar="FILES", nargs="+", help="paths and patterns")
    common.add_offset(parser)
    parser.add_argument("--keep-order", action="store_true", help="stack files in the order given")
    parser.add_argument(
        "--channels", action="store_true", help="the last axis of a numpy or HDF5 file is channels"
    )
    parser.add_argument("--force", action="store_true", help="write finished slabs again")
    parser.add_argument(
        "--memory", type=common.size, metavar="SIZE",
        help="voxels to hold, as 4G; default: a quarter of the machine's memory",
    )  # fmt: skip
    parser.add_argument(
        "--estimate", action="store_true", help="only say what it would take; write nothing"
    )
    group = parser.add_argument_group("a new array")
    group.add_argument("--dims", type=common.positive, help="2 for one image that is no volume")
    add_array_options(group)

    parser = common.command(
        commands, "export", _export, "write an array, or a box of it, to files",
        more=EXPORT_MORE, version=True, progress=True,
    )  # fmt: skip
    common.add_store(parser, repo=True)
    common.add_array(parser)
    parser.add_argument("out", metavar="OUT", help="file, or folder of a stack")
    parser.add_argument(
        "--box", type=common.ranges, metavar="BOX", help="default: everything that was written"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: what OUT says; png in a folder")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--quality", type=_quality, default=95, help="of JPEG; default: 95")
    parser.add_argument(
        "--memory", type=common.size, default=writers.MEMORY, metavar="SIZE",
        help="voxels to hold; default: 1G",
    )  # fmt: skip

    parser = common.command(
        commands, "cp", _cp, "copy a box to a .npy file, or a .npy file into an array",
        more=CP_MORE, version=True, writes=True, progress=True,
    )  # fmt: skip
    parser.usage = (
        "diced cp [options] STORE REPO ARRAY BOX OUT.npy\n"
        "       diced cp [options] IN.npy STORE REPO ARRAY [--offset-zyx Z,Y,X]"
    )
    parser.add_argument("words", metavar="WORD", nargs="+", help="see usage")
    common.add_offset(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.npy if it exists")


def _quality(text: str) -> int:
    value = common.positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 100")
    return value


def _ingest(args: argparse.Namespace) -> None:
    _allow_large_images(args.files)
    source = open_source(
        args.files, keep_order=args.keep_order, palette=args.labels, channels=args.channels
    )
    with contextlib.closing(source), common.open_store(args, write=not args.estimate) as store:
        jumps = gaps(source.files) if isinstance(source, ImageStack) else []
        for before, after in jumps[:3]:
            common.note(
                args,
                f"note: the numbering jumps from {os.path.basename(before)} to"
                f" {os.path.basename(after)}; planes are stored one after another",
            )
        if len(jumps) > 3:
            common.note(args, f"note: and {len(jumps) - 3} more jumps")
        repo = common.open_repo(args, store)
        options = {
            "labels": args.labels,
            "dims": args.dims,
            "force": args.force,
            "memory": args.memory,
            **array_options(args),
        }
        offset = common.offset(args)
        if args.estimate:
            found = foresee(repo, args.array, source, offset, **options)
            common.show(args, found._asdict(), _expected(found, repo.remote))
            return
        with common.bar(args, args.array) as progress:
            result = ingest(
                repo,
                args.array,
                source,
                offset,
                progress=progress,
                announce=_announcer(args, repo.remote),
                **options,
            )
        _show_result(args, result)


def _expected(estimate: Estimate, remote: bool) -> str:
    commits = plural(estimate.commits, "commits")
    most = f"at most {common.human(estimate.nbytes)}"
    if not remote:
        return f"{commits}, {most}"
    return (
        f"about {estimate.requests:,} requests, {most} to send: {commits}, and up to"
        f" {plural(estimate.segments, 'segments of 32 MiB')}"
    )


def _announcer(args: argparse.Namespace, remote: bool) -> Callable[[Estimate], None] | None:
    """Return what says beforehand what an import takes, where requests are billed."""
    if not remote:
        return None
    return lambda estimate: common.note(args, _expected(estimate, remote))


def _allow_large_images(files: list[str]) -> None:
    """Lift Pillow's limit against bombs: sections of 30,000 x 30,000 are what this is for."""
    if any(each.lower().endswith((".npy", ".tif", ".tiff")) or ".h5" in each for each in files):
        return
    with contextlib.suppress(ImportError):
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None


def _show_result(args: argparse.Namespace, result: Result) -> None:
    text = (
        f"{result.array}: {common.span(result.start, result.stop)} at version {result.version},"
        f" {common.human(result.written)} in {plural(result.slabs - result.skipped, 'slabs')}"
    )
    if result.skipped:
        were = "was" if result.skipped == 1 else "were"
        text += f"; {plural(result.skipped, 'slabs')} {were} stored already"
    common.show(args, result._asdict(), text)


def _export(args: argparse.Namespace) -> None:
    with common.open_store(args) as store:
        array = common.open_array(args, common.open_repo(args, store))
        box = None if args.box is None else common.box(array, args.box)
        with common.bar(args, args.array) as progress:
            written = export(
                array,
                args.out,
                box,
                format=args.format,
                overwrite=args.overwrite,
                quality=args.quality,
                memory=args.memory,
                threads=store.threads,
                progress=progress,
            )
        _show_files(args, written)


def _show_files(args: argparse.Namespace, written: list[str]) -> None:
    text = written[0]
    if len(written) > 1:
        text = f"{len(written)} files, {text} to {written[-1]}"
    common.show(args, {"files": written}, f"wrote {text}")


def _cp(args: argparse.Namespace) -> None:
    words = [each.strip() for each in args.words]
    if len(words) == 5:
        _copy_out(args, words)
    elif len(words) == 4:
        _copy_in(args, words)
    else:
        args.usage_error(
            "cp takes STORE REPO ARRAY BOX OUT.npy or IN.npy STORE REPO ARRAY;"
            f" got {plural(len(words), 'words')}"
        )


def _copy_out(args: argparse.Namespace, words: list[str]) -> None:
    args.store, args.repo, args.array, box, out = words
    if common.offset(args) is not None:
        raise InvalidError("an offset goes with IN.npy; a copy to a file takes a box")
    try:
        given = common.ranges(box)
    except argparse.ArgumentTypeError as error:
        raise InvalidError(str(error)) from None
    with common.open_store(args) as store:
        array = common.open_array(args, common.open_repo(args, store))
        with common.bar(args, args.array) as progress:
            written = export(
                array,
                out,
                common.box(array, given),
                format="npy",
                overwrite=args.overwrite,
                progress=progress,
            )
        _show_files(args, written)


def _copy_in(args: argparse.Namespace, words: list[str]) -> None:
    path, args.store, args.repo, args.array = words
    if not path.lower().endswith(".npy"):
        raise InvalidError(f"cp reads .npy files; got {path!r}: use ingest for others")
    with common.open_store(args, write=True) as store:
        repo = common.open_repo(args, store)
        channels = args.array in repo and getattr(repo[args.array], "channels", None) is not None
        source = open_source([path], channels=channels)
        with contextlib.closing(source), common.bar(args, args.array) as progress:
            result = ingest(
                repo,
                args.array,
                source,
                common.offset(args),
                progress=progress,
                announce=_announcer(args, repo.remote),
                verb="copy",
            )
        _show_result(args, result)
