from collections.abc import Sequence
from typing import Any

# Any: buffers. `payload` is contiguous bytes; `src` and `out` are uint64, three axes, any strides.

def label_encode(src: Any) -> bytes: ...
def label_decode(
    payload: Any,
    out: Any,
    start: Sequence[int],
    block_shape: Sequence[int],
    stream: bool = False,
) -> None: ...
def label_check(payload: Any, block_shape: Sequence[int]) -> None: ...
