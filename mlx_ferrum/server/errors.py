"""Why a request cannot be served."""

from __future__ import annotations


class RequestError(Exception):
    """A request that cannot be served.

    status: of HTTP
    param: the field that is wrong
    code: a word for programs, as OpenAI uses them
    retry_after: seconds
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after = retry_after


def reported(error: Exception) -> RequestError:
    """An error of a text as a client should see it. ValueError is the request's fault, anything else the server's."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (ValueError, NotImplementedError)):
        return RequestError(" ".join(str(error).split()))
    return RequestError(f"{type(error).__name__}: {error}", status=500, code="server_error")
