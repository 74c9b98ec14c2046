"""Requests of the nodes."""

from __future__ import annotations

from diced.server.routes import Route


def routes() -> list[Route]:
    """Return the routes."""
    return []
