from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]

def morton(coords: Array) -> NDArray[np.uint8]: ...
def unmorton(keys: NDArray[np.uint8], ndim: int) -> Array: ...
def count(lo: Sequence[int], hi: Sequence[int], block_shape: Sequence[int]) -> int: ...
def cut(
    lo: Sequence[int],
    hi: Sequence[int],
    block_shape: Sequence[int],
    origin: Sequence[int] | None = None,
) -> tuple[list[bytes], Array, bytes]: ...
