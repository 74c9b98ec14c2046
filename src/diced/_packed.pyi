from collections.abc import Callable, Sequence
from typing import Any

# Any: buffers. `payload` and `head` are contiguous bytes; `out` and `src` are uint64, three axes,
# any strides.

def packed_decode(
    payload: Any,
    out: Any,
    start: Sequence[int],
    block_shape: Sequence[int],
    functions: tuple[int, int, int],
    stream: bool = False,
) -> None: ...
def packed_encode(src: Any, functions: tuple[int, int, int], level: int) -> bytes: ...
def label_sections(src: Any) -> tuple[int, list[bytes]]: ...
def sections_decode(
    head: Any,
    length: int,
    unpack_layer: Callable[[int, int], Any],
    out: Any,
    start: Sequence[int],
    block_shape: Sequence[int],
    stream: bool = False,
) -> None: ...
