"""The page as a web application (Starlette): serves its files, and passes requests to a `Demo`.

Every request is checked, its size first. A request can't name a path, and nothing of it is unpickled or stored. The
page loads nothing from other hosts, and tells the browser to refuse that (`POLICY`). Other sites' pages in the same
browser can't start a search: POST requests need a content type that browsers send to a page's own host only.
"""

import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mnist_jax.attack.minimal_norm.nearest import EFFORTS
from mnist_jax.demo.answers import NORMS, Demo, text_of
from mnist_jax.demo.drawing import digit
from mnist_jax.errors import InputError
from mnist_jax.storage import files

SIDE = 280  # side in pixels of the square to draw in, as in page.html
MOST = 4096  # bytes of a JSON request at most; an image takes about 1,050
# Content Security Policy: resources come from this host only, and no other page may embed this one.
POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


def application(demo: Demo, hosts: list[str]) -> Starlette:
    """The web application. It answers only requests to the names in `hosts`: another site's name could lead here."""

    async def choices(request: Request) -> Response:
        return _json(
            {
                "networks": list(demo.paths),
                "norms": list(NORMS),
                "efforts": list(EFFORTS),
                "images": len(demo.split.labels),
            }
        )

    async def image(request: Request) -> Response:
        pixels, label = demo.taken(request.path_params["index"])
        return _json({"pixels": text_of(pixels), "label": label})

    async def drawing(request: Request) -> Response:
        drawn = await _body(request, "application/octet-stream", SIDE**2)
        if len(drawn) != SIDE**2:
            raise InputError(f"a drawing is {SIDE}x{SIDE} bytes, not {len(drawn)}")
        return _json({"pixels": text_of(digit(np.frombuffer(drawn, np.uint8).reshape(SIDE, SIDE)))})

    async def question(request: Request):
        try:
            return demo.question(json.loads(await _body(request, "application/json", MOST)))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise InputError("a request is an object of JSON") from error

    async def seen(request: Request) -> Response:
        return _json(await run_in_threadpool(demo.seen, await question(request)))

    async def search(request: Request) -> Response:
        asked = await question(request)
        lines = (json.dumps(files.strict(event)) + "\n" for event in demo.answer(asked))
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=HEADERS)

    return Starlette(
        routes=[
            *[Route(path, _file(*file)) for path, file in FILES.items()],
            Route("/choices", choices),
            Route("/val/{index:int}", image),
            Route("/digit", drawing, methods=["POST"]),
            Route("/seen", seen, methods=["POST"]),
            Route("/search", search, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers={InputError: _refusal},
    )


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = resources.files(__package__).joinpath(name).read_bytes()

    async def give(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return give


async def _body(request: Request, kind: str, most: int) -> bytes:
    """The body of a request of content type `kind`, with at most `most` bytes; other requests are refused.

    Pages of other sites can't send these content types.
    """
    if request.headers.get("content-type") != kind:
        raise HTTPException(415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise HTTPException(413)
    return body


def _json(content: Any) -> Response:
    return JSONResponse(files.strict(content), headers=HEADERS)


async def _refusal(request: Request, error: Exception) -> Response:
    """Answers a request that raised an `InputError` with status 400 and the error's line."""
    return JSONResponse({"error": str(error)}, 400, HEADERS)
