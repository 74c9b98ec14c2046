"""What goes wrong between pydvid and a server."""

from __future__ import annotations

from diced.errors import DicedException, EngineError


class DvidHttpError(DicedException):
    """A server refused a request.

    Attributes
    ----------
    attempted_action_name, reason, response_body, method, request_uri : str
    status_code : int
    """

    def __init__(
        self,
        attempted_action_name: str,
        status_code: int,
        reason: str,
        response_body: str,
        method: str,
        request_uri: str,
    ):
        self.attempted_action_name = attempted_action_name
        self.status_code = status_code
        self.reason = reason
        self.response_body = response_body
        self.method = method
        self.request_uri = request_uri
        super().__init__(
            f"{attempted_action_name}: {method} {request_uri} answered {status_code} {reason}:"
            f" {response_body.strip()}"
        )


class UnexpectedResponseError(DicedException):
    """A server answered what it should not: too few or many bytes, no JSON, or another shape."""


class ThrottleTimeoutError(EngineError):
    """A server was busy (503) for longer than the caller wanted to wait."""
