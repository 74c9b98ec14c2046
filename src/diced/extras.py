"""Optional packages of the extras ``images`` and ``dask``, imported at first use."""

from __future__ import annotations

from typing import Any

from diced.errors import UnsupportedError


def need(module: str) -> Any:
    """Import ``PIL.Image``, ``tifffile``, ``h5py`` or ``dask.array``, or say how to install it.

    Raises
    ------
    UnsupportedError
    """
    try:
        if module == "PIL":
            from PIL import Image

            return Image
        if module == "tifffile":
            import tifffile

            return tifffile
        if module == "dask":
            import dask.array

            return dask.array
        import h5py

        return h5py
    except ImportError:
        package = {"PIL": "pillow"}.get(module, module)
        extra = "dask" if module == "dask" else "images"
        raise UnsupportedError(f"this needs {package}: pip install 'diced[{extra}]'") from None
