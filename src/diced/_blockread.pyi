from typing import Any

from diced._blockdecode import Reader

class Batch:
    segments: list[tuple[int, int, int]]
    decoded: int
    def __init__(
        self,
        reader: Reader,
        entries: list[Any],
        keys: list[bytes],
        table: Any,
        out: Any,
        constant: bytes,
        stream: bool,
    ) -> None: ...
    @property
    def failed(self) -> list[int]: ...
    def spans(self, first: int, last: int) -> list[tuple[int, int, int]]: ...
    def open(self, first: int, last: int, fd: int) -> None: ...
    def start(self, first: int, last: int) -> None: ...
    def run(self, _: object = ...) -> None: ...
    def run_memory(self, first: int, last: int, data: Any, begin: int) -> None: ...
