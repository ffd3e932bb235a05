"""The HTTP side: OpenAI's paths, a page to compare two adapters, errors with a reason."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lora_lab.serving.desk import BusyError, Desk, Ended, Failed, Wish
from lora_lab.serving.requests import ChatRequest, CompletionRequest  # noqa: TC001 -- FastAPI reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.serving.desk import Answer, Piece
    from lora_lab.serving.members import Members
    from lora_lab.serving.requests import Asked

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names under which the server answers: another one means that a page elsewhere tries to reach it."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Kind:
    """How one of the two kinds of answers is written in JSON."""

    prefix: str
    object: str
    chunk: str
    is_chat: bool

    def choice(self, text: str | None, reason: str | None, *, part: bool) -> dict[str, Any]:
        """The one choice of an answer, or of a part of it."""
        if not self.is_chat:
            content: dict[str, Any] = {"text": text or ""}
        elif part:
            content = {"delta": {} if text is None else {"role": "assistant", "content": text}}
        else:
            content = {"message": {"role": "assistant", "content": text or ""}}
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}


CHAT = Kind("chatcmpl", "chat.completion", "chat.completion.chunk", is_chat=True)
TEXT = Kind("cmpl", "text_completion", "text_completion", is_chat=False)


def make_app(members: Members, desk: Desk) -> FastAPI:
    """The application.

    Args:
        members: Who can be asked.
        desk: Answers.
    """
    app = FastAPI(title="lora_lab", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(HTTPException, _refuse)

    @app.get("/")
    def page() -> HTMLResponse:
        text = files("lora_lab.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [one.as_json() for one in members.all], "has_chat": members.has_chat}

    @app.post("/v1/chat/completions", response_model=None)
    def chat(request: ChatRequest) -> JSONResponse | StreamingResponse:
        messages = [message.as_read() for message in request.messages]
        return _answered(CHAT, members, desk, request, lambda: members.chat_prompt(messages, list(request.tools)))

    @app.post("/v1/completions", response_model=None)
    def complete(request: CompletionRequest) -> JSONResponse | StreamingResponse:
        return _answered(TEXT, members, desk, request, lambda: members.text_prompt(request.prompt))

    return app


def _answered(
    kind: Kind, members: Members, desk: Desk, request: Asked, prompt: Any
) -> JSONResponse | StreamingResponse:
    try:
        place, tokens = members.place(request.model), prompt()
        members.check_room(len(tokens), request.max_tokens)
    except KeyError as error:
        raise HTTPException(404, f"model: {error.args[0]}") from None
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    wish = Wish(tokens, place, request.max_tokens, request.stop, request.temperature, request.top_p, request.seed)
    try:
        answer = desk.ask(wish)
    except BusyError:
        raise HTTPException(503, "too many questions wait; ask again later") from None
    head = {"id": f"{kind.prefix}-{next(_numbers)}", "created": int(time.time()), "model": request.model}
    if request.stream:
        return StreamingResponse(_stream(kind, head, answer), media_type="text/event-stream")
    text, ended = _whole(answer)
    choice = kind.choice(text, ended.reason, part=False)
    used = {"prompt_tokens": len(tokens), "completion_tokens": ended.tokens, "total_tokens": len(tokens) + ended.tokens}
    return JSONResponse({**head, "object": kind.object, "choices": [choice], "usage": used})


def _whole(answer: Answer) -> tuple[str, Ended]:
    said: list[str] = []
    for piece in answer:
        if isinstance(piece, Failed):
            raise HTTPException(500, piece.text)
        if isinstance(piece, Ended):
            if piece.reason == "cancelled":
                raise HTTPException(503, "the server ends")
            return "".join(said), piece
        said.append(piece)
    raise AssertionError("an answer ends with how it ended")


def _stream(kind: Kind, head: Mapping[str, Any], answer: Answer) -> Iterator[str]:
    try:
        for piece in answer:
            yield _event(kind, head, piece)
        yield "data: [DONE]\n\n"
    finally:
        answer.cancelled = True  # where the one who asked has gone


def _event(kind: Kind, head: Mapping[str, Any], piece: Piece) -> str:
    if isinstance(piece, Failed):
        return _data(_error(piece.text, 500))
    choice = (
        kind.choice(None, piece.reason, part=True) if isinstance(piece, Ended) else kind.choice(piece, None, part=True)
    )
    return _data({**head, "object": kind.chunk, "choices": [choice]})


def _data(values: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


def _error(text: str, status: int) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": text, "type": kind, "param": None, "code": status}}


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(_error(str(error.detail), error.status_code), status_code=error.status_code)


async def _refuse_fields(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    reason = "is not done here" if first["type"] == "extra_forbidden" else str(first["msg"])
    return JSONResponse(_error(f"{place or 'the request'}: {reason}", 400), status_code=400)
