"""What clients may ask: the part of OpenAI's completions and chat completions that is answered here.

What would change an answer and is not done here is refused, not passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_TOKENS = 4096
"""Of an answer; a request for more is refused."""
USUAL_TOKENS = 256
MOST_STOPS = 4
LONGEST_STOP = 200
IGNORED = ("user", "metadata", "store", "stream_options", "service_tier", "safety_identifier", "prompt_cache_key")
"""What clients send for their own books; no answer depends on it."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "top_k": (None, 0, -1),
}
"""What is refused with any other value than these."""


class Asked(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = USUAL_TOKENS
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0: the likeliest token at every place, as trials are evaluated."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stop: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)], ...] = Field(
        default=(), max_length=MOST_STOPS
    )
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        left = {name: value for name, value in values.items() if name not in IGNORED}
        for name, neutral in NEUTRAL.items():
            if name in left and left[name] in neutral:
                del left[name]
        if "max_completion_tokens" in left:
            left.setdefault("max_tokens", left["max_completion_tokens"])
            del left["max_completion_tokens"]
        return {name: value for name, value in left.items() if value is not None or name in ("model", "messages")}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop


class CompletionRequest(Asked):
    """A text to go on with."""

    prompt: str


class Part(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message; keys that the chat template may read, such as `tool_calls`, are handed on to it."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | tuple[Part, ...] | None = None

    def as_read(self) -> dict[str, Any]:
        """The message as a chat template takes it: with its text in one piece."""
        values = self.model_dump(exclude_none=True)
        if isinstance(self.content, tuple):
            values["content"] = "".join(part.text for part in self.content)
        return values


class ChatRequest(Asked):
    """A conversation to go on with."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    tools: tuple[dict[str, Any], ...] = ()
