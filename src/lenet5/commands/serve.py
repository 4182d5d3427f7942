"""A model behind MLflow's scoring protocol, and a page on which a person shows it pictures."""

import base64
import html
import io
import os
import socket
import tempfile
from email import message_from_bytes
from email.policy import HTTP
from importlib.resources import files
from pathlib import Path

import anyio
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lenet5.commands.predict import (
    described,
    draw_maps,
    is_model_uri,
    load_session,
    probabilities,
    ranked,
    read_model,
    resolved,
)
from lenet5.data.images import decode_image
from lenet5.data.likeness import unlikeness, warning
from lenet5.errors import UserError
from lenet5.outs import ONNX
from lenet5.record.onnx_model import onnx_file, pack_model, scoring_app
from lenet5.record.reading import fetch_model

LARGEST_BODY = 32 * 2**20
"""Bytes: a photograph of the largest size that is read, or two thousand images as JSON."""

_GRACE_SECONDS = 3
_PNG = {"Content-Type": "image/png"}


def serve(reference: str, host: str, port: int) -> int:
    """Serve the model until Ctrl-C.

    Raises UserError where the model cannot be used or the port cannot be had.
    """
    reference = resolved(reference)
    with tempfile.TemporaryDirectory() as folder, _listen(host, port) as listening:
        app = build_app(_mlflow_model(reference, Path(folder)), reference)
        address = f"[{host}]" if ":" in host else host
        print(f"Serving {described(reference)}")
        print(f"on http://{address}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE_SECONDS)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # it has shut down, and repeats the signal that made it
            return 0
    return 0


def build_app(model: Path, name: str) -> FastAPI:
    """MLflow's own scoring server of the model in the folder ``model``, with the page and what it asks added.

    ``POST /predict`` takes a picture, its bytes or a form with the file, and gives every class with its probability,
    how unlike the training images it is, and the 28 x 28 image; ``POST /maps`` takes the same, and gives a picture of
    what the layers make of it.
    """
    content = onnx_file(model, name).read_bytes()
    session = load_session(content, name)
    page = _page(name)
    app = scoring_app(model)
    # Decoding takes memory as well as time: no more pictures at once than there are processors.
    limiter = anyio.CapacityLimiter(os.cpu_count() or 1)
    drawing = anyio.CapacityLimiter(1)

    @app.get("/")
    async def root() -> Response:
        return HTMLResponse(page)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body, kind = await request.body(), request.headers.get("content-type", "")
        try:
            return JSONResponse(await anyio.to_thread.run_sync(_answer, session, body, kind, limiter=limiter))
        except UserError as error:
            return _refusal(400, str(error))

    @app.post("/maps")
    async def maps(request: Request) -> Response:
        body, kind = await request.body(), request.headers.get("content-type", "")
        try:
            return Response(
                await anyio.to_thread.run_sync(_maps, content, name, body, kind, limiter=drawing), 200, _PNG
            )
        except UserError as error:
            return _refusal(400, str(error))

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, error.detail, error.headers)

    # What Python's reader of JSON raises for lists a hundred thousand deep, and for numbers of thousands of digits.
    @app.exception_handler(RecursionError)
    @app.exception_handler(ValueError)
    async def not_read(_: Request, error: Exception) -> Response:
        return _refusal(400, f"cannot be read: {error}")

    app.add_middleware(_LimitedBody)
    return app


class _LimitedBody:
    """Takes each request's body before anything else sees it, and refuses what is longer than LARGEST_BODY.

    A body of which nobody says what it is passes for JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await _read_body(Request(scope, receive))
        except ClientDisconnect:
            return
        if body is None:
            refusal = _refusal(413, f"larger than {LARGEST_BODY // 2**20} MiB; send less at once")
            await refusal(scope, receive, send)
            return
        if not any(name == b"content-type" for name, _ in scope["headers"]):  # MLflow's server fails without
            scope = {**scope, "headers": [*scope["headers"], (b"content-type", b"application/json")]}
        taken = iter([body])

        async def replay() -> Message:
            rest = next(taken, None)
            return await receive() if rest is None else {"type": "http.request", "body": rest, "more_body": False}

        await self._app(scope, replay, send)


async def _read_body(request: Request) -> bytes | None:
    """The body, or None where it is too long; then nothing is kept of it."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > LARGEST_BODY:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            return None
    return bytes(body)


def _refusal(status: int, message: str, headers: object = None) -> Response:
    """In the words of MLflow's server: an ``error_code`` and a ``message``."""
    code = {400: "BAD_REQUEST", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "REQUEST_TOO_LARGE"}
    content = {"error_code": code.get(status, str(status)), "message": message}
    return JSONResponse(content, status, headers if isinstance(headers, dict) else None)


def _answer(session: onnxruntime.InferenceSession, body: bytes, kind: str) -> dict[str, object]:
    image = _picture(body, kind)
    unlike = unlikeness(image)
    return {
        "classes": ranked(probabilities(session, image)),
        "unlike": unlike,
        "warning": warning(unlike),
        "image": _data_uri(image),
    }


def _picture(body: bytes, kind: str) -> NDArray[np.uint8]:
    """What was sent, as (28, 28); ``kind`` is its Content-Type. Raises UserError where it is no usable picture."""
    return decode_image(io.BytesIO(_file_of_form(body, kind) if kind.startswith("multipart/form-data") else body))


def _file_of_form(body: bytes, kind: str) -> bytes:
    """The file in a form, as `curl -F file=@picture` sends it. Raises UserError where it holds none, or several."""
    try:
        form = message_from_bytes(b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n" + body, policy=HTTP)
        files = [part.get_payload(decode=True) for part in form.walk() if part.get_filename()]
    except Exception as error:  # Python's parser of headers raises whatever they lead it to
        raise UserError(f"a form that cannot be read ({error}); send one picture: curl -F file=@picture.png") from None
    if len(files) != 1 or not isinstance(files[0], bytes):
        raise UserError(f"a form with {len(files)} files; send one picture: curl -F file=@picture.png")
    return files[0]


def _maps(model: bytes, name: str, body: bytes, kind: str) -> bytes:
    return draw_maps(model, name, _picture(body, kind))


def _data_uri(image: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _page(name: str) -> str:
    page = files(__package__).joinpath("serve.html").read_text(encoding="utf-8")
    return page.replace("__MODEL__", html.escape(name)).replace("__LARGEST__", str(LARGEST_BODY))


def _mlflow_model(reference: str, folder: Path) -> Path:
    if is_model_uri(reference):
        return fetch_model(reference, folder)
    content = read_model(reference)
    load_session(content, reference)  # what is no such model is told before MLflow sees it
    plain = folder / ONNX.name  # in a path MLflow takes # and % for parts of an address
    plain.write_bytes(content)
    return pack_model(plain, folder / "model")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise UserError(f"cannot listen on {host} port {port}: {reason}; --port and --host name others") from None
