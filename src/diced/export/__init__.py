"""Taking boxes of arrays out into files: image stacks, numpy, HDF5, raw."""

from diced.export.stack import FORMATS, export

__all__ = ["FORMATS", "export"]
