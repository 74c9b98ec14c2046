"""What is served beside the API: the page at ``/``, and neuroglancer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

if TYPE_CHECKING:
    from diced.server.site import Site


def build(site: Site) -> Any:
    """Return the ASGI application of everything that is not below ``/api/``."""
    return Starlette()
