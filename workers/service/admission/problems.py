"""Errors as problem+json (RFC 9457): what to do is told, our own insides are logged only."""

import logging
from functools import singledispatch
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import compile_path

from audiofuse.core.errors import ConfigurationError, NotFound, QueryError, Rejected, Unavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:audiofuse:problem:"
RETRY_AFTER_S = 5
FLAWS_SHOWN = 5
AWAY = "a part that the service needs does not answer now; try again in some seconds"


class Problem(BaseModel):
    """What went wrong, after RFC 9457; ``detail`` says what to do."""

    type: str = Field(examples=["urn:audiofuse:problem:bad-question"])
    title: str = Field(examples=["This cannot be asked"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["the query has no words: describe a sound, e.g. 'a dog'"])


class Refusal(HTTPException):
    """A request that is answered by a problem."""

    def __init__(self, status: int, kind: str, detail: str, **headers: str) -> None:
        """Answer ``status``; ``kind`` ends the problem's type; header names have underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, detail, named)
        self.kind = kind

    def response(self) -> JSONResponse:
        """Return it as an answer."""
        body = {
            "type": PREFIX + self.kind,
            "title": HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            "detail": self.detail,
        }
        return JSONResponse(body, self.status_code, self.headers, MEDIA_TYPE)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these errors of a route."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


# What any route under /v1 may answer; a body that is no JSON at all is a 400.
ANY = answers(400, 401, 413, 422, 429, 503)


def explain_errors(app: FastAPI) -> None:
    """Have every error of the application end as a problem."""
    for kind in (
        RequestValidationError, StarletteHTTPException, QueryError, Rejected, Unavailable,
        ConfigurationError,
    ):  # fmt: skip
        app.add_exception_handler(kind, _explain)
    app.add_exception_handler(Exception, _explain_bug)


def _explain(request: Request, error: Exception) -> JSONResponse:
    refusal = _refusal(error)
    if refusal.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal.headers = {"Allow": ", ".join(_methods(request))}
    return refusal.response()


def _methods(request: Request) -> list[str]:
    """Return what a path may be asked with; the framework tells of its first route only."""
    described: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    return [
        method.upper()
        for path, methods in described.items()
        if compile_path(path)[0].match(request.url.path)
        for method in methods
    ]


def _explain_bug(_: Request, error: Exception) -> JSONResponse:
    del error  # the server logs it
    return Refusal(500, "bug", "the service failed; its log says why").response()


@singledispatch
def _refusal(error: Exception) -> Refusal:
    """Return how an error is answered; this one is a part of ours that is away."""
    log.warning("cannot answer: %s", error)
    return Refusal(503, "unavailable", AWAY, Retry_After=str(RETRY_AFTER_S))


@_refusal.register
def _(error: Refusal) -> Refusal:
    return error


@_refusal.register
def _(error: RequestValidationError) -> Refusal:
    flaws = map(_flaw, error.errors()[:FLAWS_SHOWN])
    return Refusal(422, "bad-question", "; ".join(flaws))


@_refusal.register
def _(error: StarletteHTTPException) -> Refusal:
    """Return what the framework refuses, e.g. an unknown path."""
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return Refusal(error.status_code, kind, str(error.detail), **(error.headers or {}))


@_refusal.register
def _(error: NotFound) -> Refusal:
    return Refusal(404, "not-found", str(error))


@_refusal.register
def _(error: QueryError) -> Refusal:
    return Refusal(422, "bad-question", str(error))


@_refusal.register
def _(error: Rejected) -> Refusal:
    kind = str(error.reason).replace("_", "-")
    return Refusal(422, kind, f"the sound cannot be searched by: {error.detail}")


def _flaw(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"][1:])
    return f"{where or 'the body'}: {error['msg']}"
