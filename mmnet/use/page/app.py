"""What the page's server answers: the page, pictures, sentences, masks. Errors are JSON lines.

It is for its own computer: other hosts and origins, and too large bodies, are refused.
"""

import asyncio
import base64
import functools
import hashlib
import json
import logging
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmnet.runtime.errors import MMNetError
from mmnet.use.page.about import About
from mmnet.use.page.worker import Forgotten, Worker

MOST_BYTES = 20_000_000
"""Of a picture's file."""
MOST_LETTERS = 1000
"""Of a sentence; the model reads far fewer."""
BODIES = 4
"""Pictures' files in memory at a time: further ones wait in their sockets."""
PATIENCE, MOST_SECONDS = 60.0, 600.0
"""For the next part of a body to arrive, and for the whole."""


def application(worker: Worker, about: About) -> Starlette:
    """Return the server's application; `worker` does the model's work, one request at a time."""
    page = _Page(worker, about)
    return Starlette(
        routes=[
            Route("/", page.html),
            Route("/model", page.model),
            Route("/examples/{number:int}", page.example),
            Route("/examples/{number:int}", page.take_example, methods=["POST"]),
            Route("/pictures", page.take_picture, methods=["POST"]),
            Route("/pictures/{id}", page.picture),
            Route("/find", page.find, methods=["POST"]),
            Route("/mask", page.mask, methods=["POST"]),
        ],
        middleware=[
            Middleware(_Guard, policy=_policy(page.text)),
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
        ],
        exception_handlers={
            HTTPException: lambda _, error: _error(error.status_code, error.detail),
            Forgotten: lambda _, error: _error(410, str(error)),
            MMNetError: lambda _, error: _error(400, str(error)),
            ClientDisconnect: lambda _, error: _error(400, "the sender went away"),
            Exception: _failed,
        },
    )


class _Page:
    """Answers, a method for each address."""

    def __init__(self, worker: Worker, about: About) -> None:
        self.worker, self.about = worker, about
        self.bodies = asyncio.Semaphore(BODIES)
        self.text = (files("mmnet.use.page") / "page.html").read_text(encoding="utf-8")

    async def html(self, request: Request) -> Response:
        return HTMLResponse(self.text)

    async def model(self, request: Request) -> Response:
        return JSONResponse(self.about.as_json())

    async def example(self, request: Request) -> Response:
        return Response(self._example(request), media_type="image/jpeg")

    async def take_example(self, request: Request) -> Response:
        return JSONResponse(await self.worker.run(self.worker.look, self._example(request)))

    async def take_picture(self, request: Request) -> Response:
        async with self.bodies:
            data = await body(request, MOST_BYTES)
            return JSONResponse(await self.worker.run(self.worker.look, data))

    async def picture(self, request: Request) -> Response:
        shown = await self.worker.run(self.worker.shown, request.path_params["id"])
        return Response(shown, media_type="image/jpeg")

    async def find(self, request: Request) -> Response:
        values = await _values(request)
        picture, sentence = _text(values, "picture"), _sentence(values)
        return JSONResponse(await self.worker.run(self.worker.find, picture, sentence))

    async def mask(self, request: Request) -> Response:
        values = await _values(request)
        picture, sentence, level = _text(values, "picture"), _sentence(values), _level(values)
        png = await self.worker.run(self.worker.mask, picture, sentence, level)
        return Response(png, media_type="image/png")

    def _example(self, request: Request) -> bytes:
        number: int = request.path_params["number"]
        if number >= len(self.about.examples):
            raise HTTPException(404, f"there is no example {number}")
        file: Path = self.about.examples[number].file
        return file.read_bytes()


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


def _failed(request: Request, error: Exception) -> Response:
    """Answer to an error of ours: its traceback is for the terminal."""
    logging.getLogger(__name__).error("%s %s", request.method, request.url.path, exc_info=error)
    return _error(500, "An error of the server: its terminal says which.")


async def body(request: Request, most: int) -> bytes:
    """Return what was sent.

    What is too large is read to its end and dropped: a sender reads no answer before it.
    """
    kept, size = bytearray(), 0
    now = asyncio.get_running_loop().time
    end = now() + MOST_SECONDS
    try:
        async with asyncio.timeout(PATIENCE) as limit:
            async for part in request.stream():
                limit.reschedule(min(now() + PATIENCE, end))
                size += len(part)
                if size <= most:
                    kept += part
                else:
                    kept.clear()
    except TimeoutError:
        late = f"nothing more arrived in {PATIENCE:.0f} s"
        if now() >= end:
            late = f"it did not arrive whole in {MOST_SECONDS:.0f} s"
        raise HTTPException(408, late) from None
    if size > most:
        raise HTTPException(413, f"{size / 1e6:,.1f} MB are too many: at most {most / 1e6:g} MB")
    return bytes(kept)


async def _values(request: Request) -> dict[str, Any]:
    try:
        values = json.loads(await body(request, 100_000))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return values


def _text(values: dict[str, Any], key: str) -> str:
    if not isinstance(value := values.get(key), str):
        raise HTTPException(400, f"{key} must be a text")
    return value


def _sentence(values: dict[str, Any]) -> str:
    sentence = _text(values, "sentence").strip()
    if not sentence:
        raise HTTPException(400, "The sentence is empty. Name one object.")
    if len(sentence) > MOST_LETTERS:
        raise HTTPException(
            400, f"The sentence has {len(sentence):,} letters. Use at most {MOST_LETTERS:,}."
        )
    return sentence


def _level(values: dict[str, Any]) -> float | None:
    level = values.get("threshold")
    if level is None:
        return None
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise HTTPException(400, "threshold must be a number between 0 and 1")
    return float(level)


def _policy(html: str) -> str:
    """Return a Content-Security-Policy that allows the page's own style and script alone."""

    def own(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        hashes = (base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts)
        return " ".join(f"'sha256-{one}'" for one in hashes)

    return (
        f"default-src 'self'; script-src {own('script')}; style-src {own('style')}; "
        "img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class _Guard:
    """Refuse requests that another site's page sends, and add the headers of safety."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self.app = app
        self.headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = origin is not None and origin != f"http://{headers.get('host')}"
        app = _error(403, "a request from another site's page") if foreign else self.app
        await app(scope, receive, functools.partial(self._send, send))

    async def _send(self, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(self.headers)
        await send(message)
