"""Bringing files into arrays: image stacks, numpy and HDF5 files, slab by slab, resumable."""

from diced.ingest.estimate import Estimate
from diced.ingest.importer import Result, foresee, ingest
from diced.ingest.paths import expand, gaps
from diced.ingest.stack import ArrayFile, ImageStack, Source, open_source

__all__ = [
    "ArrayFile", "Estimate", "ImageStack", "Result", "Source", "expand", "foresee", "gaps",
    "ingest", "open_source",
]  # fmt: skip
