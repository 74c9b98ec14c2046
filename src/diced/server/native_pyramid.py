"""Pyramids, as diced's own client asks of them: ``diced.remote.levels``."""

from __future__ import annotations

import time
from typing import Any

from diced.downsample import plan_steps
from diced.errors import InvalidError
from diced.server import scales
from diced.server.call import Call
from diced.server.fields import NOTE_BYTES
from diced.server.routes import Route
from diced.server.voxels import voxel_array

# Seconds after which an update answers how far it came, to be asked again: an answer that is long
# in coming is lost on the way, and nobody learns of progress.
SECONDS = 20
MOST_SECONDS = 60


class _EnoughError(Exception):
    """Its time is over, and what was done so far is stored."""


def _describe(call: Call) -> Any:
    array = voxel_array(call)
    count = call.number("levels") if "levels" in call.query else None
    pyramid = scales.of_query(call, array, count)
    fields = array._fields()
    levels = pyramid.levels()
    state = levels.source.lane.refresh()
    found = []
    for level in pyramid[1:]:
        box = levels.box(level.number, state)
        shifts = levels.shifts[level.number]
        sizes = [size * 2**s for size, s in zip(fields["voxel_size"], shifts, strict=True)]
        is_stored = level._spec.id != array._spec.id
        found.append(
            {
                "level": level.number,
                "name": level.name,
                # The same as in the instance's JSON; None where nothing is stored.
                "id": level._spec.id + array._repo._id if is_stored else None,
                "block_shape": list(level.block_shape),
                "voxel_size": sizes,
                "units": list(fields["units"]),
                "codec": level.codec,
                "box": box and [list(each) for each in box],
            }
        )
    steps = pyramid.steps[: pyramid.top]
    axes = pyramid._used_axes
    # Voxels may have another size since, and axes by their size be others.
    agreed = plan_steps(fields["voxel_size"], len(steps), axes) == steps
    answer = {
        "id": array._spec.id + array._repo._id,
        "method": pyramid.method,
        "axes": axes if agreed else scales.AS_STORED,
        "steps": [list(each) for each in steps],
        "levels": found,
    }
    if call.flag("status"):
        answer["status"] = pyramid.status()
    return answer


def _update(call: Call) -> Any:
    array, given = voxel_array(call), call.json(empty={})
    seconds = given.get("seconds", SECONDS)
    if type(seconds) not in (int, float) or not 0 <= seconds <= MOST_SECONDS:
        raise InvalidError(f"'seconds' is a number from 0 to {MOST_SECONDS}; got {seconds!r:.60}")
    pyramid = scales.pyramid(array, given.get("levels"), given.get("axes"), given.get("method"))
    deadline = time.monotonic() + seconds
    done: dict[int, int] = {}

    def progress(level: int, count: int) -> None:
        done[level] = count
        if time.monotonic() >= deadline or call.site.ending:
            raise _EnoughError

    complete = True
    try:
        pyramid.update(progress)
    except _EnoughError:
        complete = False
    return {"blocks": done, "complete": complete}


def _delete(call: Call) -> None:
    voxel_array(call).pyramid().delete()


def routes() -> list[Route]:
    """Return the routes of every instance."""
    return [
        Route(
            "GET", "diced/pyramid", _describe,
            "Returns the array's pyramid as JSON: how it is made, and of each level what it is to"
            " diced.",
            query={"levels": "how many besides the array itself", **scales.QUERY,
                   "status": "on: also what is stored of this version"},
        ),
        Route(
            "POST", "diced/pyramid", _update,
            "Stores what the pyramid lacks of the version, locked or open; answers after a while"
            " how many blocks of each level were computed and whether it is complete, and if not"
            " goes on when asked again.",
            body="JSON: 'levels', 'axes' and 'method' as in the query of GET, axes as a list;"
            f" 'seconds', at most {MOST_SECONDS}",
            limit=NOTE_BYTES, changes=False, slow=True,
        ),
        Route(
            "DELETE", "diced/pyramid", _delete,
            "Deletes what is stored of the pyramid, of all versions; levels are computed then.",
            changes=False,
        ),
    ]  # fmt: skip
