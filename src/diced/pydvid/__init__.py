"""The face of pydvid: numpy over any DVID server by plain `http.client` connections.

Arrays have the channel first and DVID's axis order after it, ``(c, x, y, z)`` in Fortran order, as
pydvid had them; everywhere else in diced it is ZYX. See docs/remote.md.
"""

from diced.pydvid import errors, general, keyvalue, labelgraph, voxels
from diced.pydvid.connection import DvidConnection

__all__ = ["DvidConnection", "errors", "general", "keyvalue", "labelgraph", "voxels"]
