"""C libraries: where one is found, what it exports, and whether it can be trusted.

The wheels of some packages export the C functions they were built with, so those can be taken
without importing the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diced.errors import CorruptError, InvalidError, UnsupportedError

SOURCES = ("wheel", "system", "python")


def _wheel_file(package: str, folder: str, stem: str) -> str | None:
    """Return the path of an extension module of an installed package, which is not imported."""
    import os
    import sys

    tags = (sys.implementation.cache_tag, "abi3")
    for entry in sys.path:
        where = os.path.join(entry, package, folder)
        if not os.path.isdir(where):
            continue
        for name in sorted(os.listdir(where)):
            head, _, tail = name.partition(".")
            if head == stem and tail.endswith(("so", "pyd")) and any(tag in tail for tag in tags):
                return os.path.join(where, name)
    return None


def load(source: str, package: str, folder: str, stem: str, system_names: tuple[str, ...]) -> Any:
    """Return a loaded C library, or raise UnsupportedError."""
    import ctypes

    candidates = system_names
    if source == "wheel":
        path = _wheel_file(package, folder, stem)
        if path is None:
            raise UnsupportedError(f"no {stem} library of the {package} package is on sys.path")
        candidates = (path,)
    reasons: list[str] = []
    for path in candidates:
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            reasons.append(str(error))
    raise UnsupportedError("; ".join(reasons))


def address(lib: Any, symbol: str) -> int:
    """Return the address of a function of a loaded library, or raise UnsupportedError."""
    import ctypes

    function = getattr(lib, symbol, None)
    found = None if function is None else ctypes.cast(function, ctypes.c_void_p).value
    if not found:
        raise UnsupportedError(f"{lib._name} does not export {symbol}")
    return found


def version(lib: Any, symbol: str, oldest: int, newest: int) -> str:
    """Return the library's version; refuse one whose functions may mean something else."""
    address(lib, symbol)
    function = getattr(lib, symbol)
    function.argtypes = []
    number = function()
    if not oldest <= number < newest:
        raise UnsupportedError(f"{lib._name} has version number {number}, outside what is known")
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def prove(compress: Callable[[Any], Any], decompress: Callable[[Any, Any], Any]) -> None:
    """Send a sample there and back before an address is trusted with anybody's data."""
    sample = bytes(range(256)) * 5 + bytes(1000)
    packed = compress(sample)
    guard = b"\xa5" * 16
    room = bytearray(guard + bytes(len(sample)) + guard)
    middle = memoryview(room)[16 : 16 + len(sample)]
    decompress(packed, middle)
    if bytes(room) != guard + sample + guard:
        raise UnsupportedError("a sample came back different")
    try:
        decompress(packed[: len(packed) - 1], middle)
    except CorruptError:
        return
    raise UnsupportedError("a truncated sample was not refused")


def choose(name: str, source: str, make: Callable[[str], Any]) -> tuple[Any, tuple[str, ...]]:
    """Return what `make` makes of a source (of the first that works for "auto"), and refusals."""
    if source != "auto" and source not in SOURCES:
        raise InvalidError(f"source of {name} is auto, {', '.join(SOURCES)}; got {source!r}")
    skipped: list[str] = []
    for each in SOURCES if source == "auto" else (source,):
        try:
            return make(each), tuple(skipped)
        except (UnsupportedError, CorruptError, InvalidError) as error:
            skipped.append(f"{each}: {error}")
    raise UnsupportedError(f"{name} cannot be used from {source!r}: {'; '.join(skipped)}")
