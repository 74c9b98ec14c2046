"""Which files make a stack, and in which order."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Sequence

from diced.errors import InvalidError, NotFoundError

_DIGITS = re.compile(r"(\d+)")


def natural_key(path: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sorting key that puts ``iso.9.png`` before ``iso.10.png``.

    Runs of digits compare as numbers, everything else as text; the path itself breaks ties such
    as ``1.png`` and ``01.png``.
    """
    parts = []
    for i, part in enumerate(_DIGITS.split(path)):
        parts.append((0, int(part), "") if i % 2 else (1, 0, part))
    return tuple(parts), path


def expand(patterns: Iterable[str | os.PathLike[str]], keep_order: bool = False) -> list[str]:
    """Return the files that paths and glob patterns name.

    Parameters
    ----------
    patterns : iterable of str or path
        A path that exists stands for itself, whatever characters it holds; anything else with
        ``*``, ``?`` or ``[`` is a pattern (``**`` for any folders).
    keep_order : bool
        Keep the order given, and repetitions. Otherwise all files together are put in natural
        order, each once, because shells sort ``iso.10`` before ``iso.9``.

    Raises
    ------
    NotFoundError
        A path or a pattern names nothing.
    InvalidError
        There is no pattern at all, or a path is a folder.
    """
    found: list[str] = []
    for each in patterns:
        path = os.path.expanduser(os.fspath(each))
        if os.path.lexists(path) or not glob.has_magic(path):
            found.append(path)
            continue
        matches = sorted(glob.glob(path, recursive=True), key=natural_key)
        if not matches:
            raise NotFoundError(f"no file matches {path!r}")
        found += matches
    if not found:
        raise InvalidError("no files were given")
    for path in found:
        if os.path.isdir(path):
            raise InvalidError(f"{path!r} is a folder; give its files, as in '{path}/*.png'")
    return found if keep_order else sorted(set(found), key=natural_key)


def gaps(files: Sequence[str]) -> list[tuple[str, str]]:
    """Return the neighbours between which the numbering of a stack jumps.

    Only for names that differ in one number alone; any others are not numbered, and have no gaps.
    The usual step is the most frequent one.

    Parameters
    ----------
    files : sequence of str
        In order.

    Returns
    -------
    list of (str, str)
        The files before and after each jump.
    """
    split = [_DIGITS.split(os.path.basename(path)) for path in files]
    if len(split) < 3 or len({len(each) for each in split}) != 1:
        return []
    varying = [
        i
        for i, values in enumerate(zip(*split, strict=True))
        if len({int(v) if i % 2 else v for v in values}) > 1
    ]
    if len(varying) != 1 or not varying[0] % 2:
        return []
    numbers = [int(each[varying[0]]) for each in split]
    steps = [b - a for a, b in itertools.pairwise(numbers)]
    usual = max(sorted(set(steps)), key=steps.count)
    return [(files[i], files[i + 1]) for i, step in enumerate(steps) if step != usual]
