"""Errors in OpenAI's shape."""

import json
from typing import Any

from starlette.responses import Response

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refused request: a status, one sentence, and the parameter concerned."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after_s: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, Any]:
        """The body."""
        kind = "server_error" if self.status >= 500 else TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def to_response(self) -> Response:
        """The complete response; non-ASCII is escaped, since the error may quote half a surrogate pair."""
        headers = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s else None
        return Response(json.dumps(self.to_json()), self.status, headers, "application/json")
