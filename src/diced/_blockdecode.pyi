from collections.abc import Sequence

class Reader:
    def __init__(
        self,
        lane: bytes,
        itemsize: int,
        block_shape: Sequence[int],
        channels: int | None,
        fill: bytes,
        units: int,
    ) -> None: ...
