from collections.abc import Sequence
from typing import Any

from diced._encoder import label_encode as label_encode

# Any: buffers. `payload` is contiguous bytes; `out` is uint64, three axes, any strides.

def label_decode(
    payload: Any,
    out: Any,
    start: Sequence[int],
    block_shape: Sequence[int],
    stream: bool = False,
) -> None: ...
def label_check(payload: Any, block_shape: Sequence[int]) -> None: ...
