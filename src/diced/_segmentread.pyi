from typing import Any

# Any: buffers. `out` is uint64 or uint32, three axes, any strides.

def segmentation_decode(payload: Any, out: Any) -> None: ...
