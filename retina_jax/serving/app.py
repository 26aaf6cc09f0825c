"""The HTTP interface: routes, their description, and errors as one line of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from retina_jax.serving.body import Refusal
from retina_jax.serving.page import page
from retina_jax.serving.schema import Answer, Health, Problem
from retina_jax.serving.service import Service, State
from retina_jax.version import __version__

_ERRORS = {
    400: "an empty or broken body",
    408: "the body does not arrive in time",
    413: "too many bytes, images or pixels",
    415: "the body is neither an image nor a form",
    422: "an image that cannot be read, or an invalid parameter",
    429: "too many images or requests are waiting; Retry-After gives the number of seconds to wait",
    500: "a fault of the detector",
    503: "the server is starting or stopping",
    504: "detection takes too long",
}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "description": "An image, or a form with one or more image files: JPEG, PNG, BMP, GIF, TIFF, "
    "WebP, AVIF or JPEG 2000.",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"image": _FILES}}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def make_app(service: Service, note: Callable[[str], None] | None = None) -> FastAPI:
    """The application; if ``note`` is given, it is called with a line for each request.

    There is no /docs page: FastAPI's would load its script from another server.
    """
    app = FastAPI(
        title="retina_jax",
        version=__version__,
        description="Detects objects in images. The page at / uses this API.",
        docs_url=None,
        redoc_url=None,
    )
    _add_errors(app)

    @app.post(
        "/detect",
        response_model=Answer,
        summary="Detect objects in one or several images",
        responses={
            status: {"model": Problem, "description": text} for status, text in _ERRORS.items()
        },
        openapi_extra={"requestBody": _BODY},
    )
    async def detect(
        request: Request,
        threshold: Annotated[
            float | None,
            Query(ge=0, le=1, description="return only detections that score above this"),
        ] = None,
        classes: Annotated[
            list[str] | None,
            Query(description="classes to return: names, separated by commas; default: all"),
        ] = None,
    ) -> Response:
        images = await service.detect(request, threshold, classes)
        content = json.dumps({"images": images}, ensure_ascii=False, separators=(",", ":"))
        return Response(content, media_type="application/json")

    @app.get(
        "/health",
        response_model=Health,
        summary="Readiness and statistics of the server",
        responses={503: {"model": Health, "description": "starting or stopping"}},
    )
    async def health() -> JSONResponse:
        engine = service.engine
        content = {
            "status": service.state.value,
            "model": engine.name,
            "classes": list(engine.classes.names),
            "threshold": engine.threshold,
            "batch_size": engine.batch_size,
            "buckets": [list(bucket) for bucket in engine.buckets],
            "batched_from": [engine.pays_from(k) for k in range(len(engine.buckets))],
            "waiting": service.waiting,
            "figures": service.statistics.figures(),
        }
        return JSONResponse(content, 200 if service.state is State.READY else 503)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page(service.engine, service.limits))

    app.add_middleware(_Around, note=note)
    return app


def _add_errors(app: FastAPI) -> None:
    def problem(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return problem(refusal.status, refusal.text, refusal.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}"
        return problem(error.status_code, text, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where, value = first["loc"][-1], str(first.get("input"))[:100]
        return problem(422, f"{where}={value}: {first['msg']}")


class _Around:
    """Adds headers to every response, and calls ``note`` for each request."""

    def __init__(self, app: Any, note: Callable[[str], None] | None):
        self._app, self._note = app, note

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
                if self._note:
                    client = (scope.get("client") or ("-",))[0]
                    milliseconds = 1000 * (time.monotonic() - started)
                    self._note(
                        f"{client} {scope['method']} {scope['path']!a} {message['status']} "
                        f"{milliseconds:.0f} ms"
                    )
            await send(message)

        await self._app(scope, receive, sent)
