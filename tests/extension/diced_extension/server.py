"""The data type of masks: an array of the kind ``mask``, and a request of its own."""

from diced.server.datatype import DataType
from diced.server.routes import Route


class MaskType(DataType):
    """``maskblk``: arrays of bool that can be counted."""

    name = "maskblk"
    url = "example.org/maskblk"
    version = "0.3"
    kind = "mask"
    text = "Voxels that are set or not."

    def create(self, repo, name, settings, versioned):
        return repo.create_array(
            name, kind="mask", versioned=versioned, block_shape=settings.zyx("BlockSize", 3),
            attrs={"dvid": self.attributes(settings)},
        )  # fmt: skip

    def extended(self, array):
        return {"Count": array.count()}

    def routes(self):
        return [
            Route("GET", "count", lambda call: {"Count": call.array.count()}, "Counts voxels."),
            Route("POST", "set/{place}", _set, "Sets the voxel at x_y_z."),
        ]

    @property
    def commands(self):
        return {"invert": _invert}


def _set(call):
    place = tuple(int(each) for each in reversed(call.args["place"].split("_")))
    call.array[place] = True


def _invert(site, array, words, settings, stdin):
    """invert: turns every written voxel round."""
    array[...] = ~array[...]
    return "inverted"


TYPE = MaskType()
