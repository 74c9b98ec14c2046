from typing import Any

# Any: a buffer of uint64 or uint32, three axes, any strides.

class Volume:
    def __init__(self, array: Any, what: str, writable: bool) -> None: ...

def segmentation_encode(src: Any) -> bytes: ...
