from collections.abc import Sequence
from typing import Any

class Writer:
    most: int
    able: bool
    def __init__(
        self,
        lane: bytes,
        itemsize: int,
        block_shape: Sequence[int],
        channels: int | None,
        codec: int,
        level: int,
        units: int,
    ) -> None: ...
    def pack(
        self, source: Any, keys: list[bytes], table: Any, rows: Sequence[int], memory: Any
    ) -> list[bytes | tuple[int, int]]: ...
