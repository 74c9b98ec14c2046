"""Bringing files into arrays: image stacks, numpy and HDF5 files, slab by slab, resumable."""

from diced.ingest.importer import Result, ingest
from diced.ingest.paths import expand, gaps
from diced.ingest.stack import ArrayFile, ImageStack, Source, open_source

__all__ = [
    "ArrayFile", "ImageStack", "Result", "Source", "expand", "gaps", "ingest", "open_source",
]  # fmt: skip
