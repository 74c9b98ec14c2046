"""Optional packages of the extra ``images``, imported at first use."""

from __future__ import annotations

from typing import Any

from diced.errors import UnsupportedError


def need(module: str) -> Any:
    """Import ``PIL.Image``, ``tifffile`` or ``h5py``, or say how to install it.

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
        import h5py

        return h5py
    except ImportError:
        package = {"PIL": "pillow"}.get(module, module)
        raise UnsupportedError(f"this needs {package}: pip install 'diced[images]'") from None
