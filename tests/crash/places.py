"""Where the crash suite's stores are: a directory, or a fake bucket whose requests go wrong.

After a kill nothing more happens on a disk. On a bucket two things may: a request that the dead
writer had sent is still served, and a proposal that it left under ``.../pend/`` is gathered by the
next writer that contends for the lane. Until both are out of the way nobody can say whether the
operation in flight has happened, so `Bucket.settled` waits for the first, and watches the proposals
that were there then until each is gone. A lane at which nobody contends any more is not looked
through for proposals; `poke` does it, by a commit of the parent's own outside of every box.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from diced import DicedStore

from . import writers

# Lost answers, resets and refusals. A request on its way is served within SERVED seconds.
FAULTS = {"lost": 0.02, "reset": 0.02, "e429": 0.01, "e503": 0.01}
SERVED = 0.3
PATIENCE = 1.0  # seconds until the parent gathers proposals itself
POKE = "poke"  # name of the parent's commits, and of its file
FAR = (writers.HIGH + 60,) * 3


class Place:
    """A directory of a disk."""

    # A writer dies so long after its beginning, or, on a bucket, after it has opened the store.
    life = (0.005, 0.5)
    from_ready = False
    strict: dict[str, Any] = {}  # noqa: RUF012  # options of stores that must not be behind
    environ: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, root: Path):
        self.location = str(root / "store")

    def close(self) -> None:
        """Let go of what belongs to the chunk, its store included if that is not on a disk."""

    def calm(self) -> None:
        """No more faults."""

    def waits_for(self) -> Any:
        """Return what to give to `settled`, after a kill."""
        return None

    def settled(self, token: Any) -> bool:
        """Tell whether nothing of the killed writer's can happen any more."""
        return True


class Wait:
    """What is not known to be over since a kill."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.proposals: set[str] | None = None  # not looked at yet
        self.poked = 0


class Bucket(Place):
    """A bucket of its own at a fake server."""

    life = (0.005, 1.0)
    from_ready = True
    strict = {"max_age": 0}  # noqa: RUF012

    def __init__(self, root: Path, seed: int, server: Any):
        self.server = server
        self.before = server.bucket
        server.bucket = server.new_bucket()
        self.environ = server.environ()
        os.environ.update(self.environ)
        self.location = server.url()
        self.prefix = self.location.split("/", 3)[3]
        self.poker: DicedStore | None = None
        server.faults(seed, **FAULTS)

    def calm(self) -> None:
        self.server.faults()

    def close(self) -> None:
        self.calm()
        if self.poker is not None:
            self.poker.close()
        self.server.drop_bucket(self.server.bucket)
        self.server.bucket = self.before

    def waits_for(self) -> Wait:
        return Wait()

    def settled(self, token: Wait) -> bool:
        age = time.monotonic() - token.began
        if age < SERVED:
            return False
        found = {key for key in self.server.keys(self.prefix + "/") if "/pend/" in key}
        token.proposals = found if token.proposals is None else token.proposals & found
        if token.proposals and age > PATIENCE * (1 + token.poked):
            if token.poked == 20:
                raise RuntimeError(f"proposals that nobody gathers: {sorted(token.proposals)}")
            token.poked += 1
            self.poke(token.proposals)
        return not token.proposals

    def poke(self, proposals: set[str]) -> None:
        """Gather what waits in the lanes of these proposals."""
        if self.poker is None:
            self.poker = DicedStore(self.location, create=False, **self.strict)
        repo = self.poker.open_repo(writers.REPO)
        lanes = {key.split("/lanes/")[1].split("/")[0] for key in proposals}
        for name in writers.ARRAYS:
            array = repo.get_array(name)
            lane = array._blocks().lane
            if lane.id in lanes:
                lane._committer._contended = time.monotonic() + 60
                with array.batch(POKE):
                    array[FAR] = 1
                lanes.discard(lane.id)
        if lanes:
            repo.files._lane()._committer._contended = time.monotonic() + 60
            repo.upload_filedata(POKE, b"1")


def place(root: Path, seed: int, server: Any) -> Place:
    """Return where a chunk's store is to be: on a disk if there is no fake server."""
    return Place(root) if server is None else Bucket(root, seed, server)
