"""What the writers of the crash suite have made of what they own."""

from __future__ import annotations

import numpy as np

from .writers import LOW, OWNED, SIZE, WRITERS, Op


class Model:
    """What acknowledged operations made of the voxels and files that writers own."""

    def __init__(self) -> None:
        self.arrays = {name: np.zeros((SIZE,) * 3, np.int64) for name in OWNED}
        self.files: dict[str, bytes] = {}

    def apply(self, op: Op) -> None:
        if op.array == "files":
            for name, data in op.files.items():
                if data is None:
                    self.files.pop(name, None)
                else:
                    self.files[name] = data
        elif op.array in OWNED:
            paint(self.arrays[op.array], op)


def paint(voxels: np.ndarray, op: Op) -> None:
    """Apply an operation's assignments to a whole window."""
    for index, value in op.boxes:
        voxels[
            tuple(
                slice(i.start - LOW, i.stop - LOW, i.step) if isinstance(i, slice) else i - LOW
                for i in index
            )
        ] = value


def planes_of(array: str, writer: int) -> tuple[slice, ...]:
    """Index, into a window, of the planes that a writer owns."""
    index = [slice(None)] * 3
    index[OWNED[array]] = slice((writer - LOW) % WRITERS, None, WRITERS)
    return tuple(index)
