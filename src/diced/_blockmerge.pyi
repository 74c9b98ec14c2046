from collections.abc import Sequence
from typing import Any

from diced._blockwrite import Writer

def merge(
    writer: Writer, frame: Any, key: bytes, low: Sequence[int], source: Any, memory: Any
) -> int: ...
