"""The bodies of requests: OpenAI's parameters, their validation, and their conversion into jobs."""

import json
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitrine.config import SamplingConfig
from vitrine.errors import nearest
from vitrine.serving.errors import ApiError
from vitrine.serving.served_model import Model

MOST_TOKENS = 100_000
MOST_STOPS = 16  # OpenAI allows 4
STOP_CHARACTERS = 1000

Count = Annotated[int, Field(ge=1, le=128)]
MaxTokens = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Tops = Annotated[int, Field(ge=0, le=20)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Body(BaseModel):
    """The parameters that completions and chats share. Defaults come from the run's [sampling]."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    n: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[Literal["include_usage"], bool] | None = None
    user: str | None = None  # a label; not stored

    def sampling(self, run: SamplingConfig) -> dict[str, Any]:
        """The run's decoding hyperparameters, with the given ones replaced."""
        given = {name: getattr(self, name) for name in SamplingConfig.model_fields}
        return run.model_dump() | {name: value for name, value in given.items() if value is not None}

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS or any(not 0 < len(stop) <= STOP_CHARACTERS for stop in stops):
            raise ApiError(
                400,
                f"stop takes up to {MOST_STOPS} strings of 1 to {STOP_CHARACTERS} characters: got {len(stops)}, of "
                f"{', '.join(str(len(stop)) for stop in stops[: MOST_STOPS + 1])} characters.",
                "stop",
            )
        return tuple(stops)

    def bias(self, vocab_size: int) -> dict[int, float]:
        """The logit bias by token id."""
        found = {}
        for token, value in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdecimal() and len(token) <= 12 and int(token) < vocab_size):
                raise ApiError(
                    400, f"logit_bias names the token {token!r}; the model's are 0 to {vocab_size - 1}.", "logit_bias"
                )
            found[int(token)] = value
        return found

    def common(self, model: Model) -> dict[str, Any]:
        """The fields that every job of this request shares."""
        return {
            "sampling": self.sampling(model.sampling),
            "seed": secrets.randbits(63) if self.seed is None else self.seed,
            "presence": self.presence_penalty or 0.0,
            "frequency": self.frequency_penalty or 0.0,
            "bias": self.bias(model.vocab_size),
        }

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionBody(Body):
    """`POST /v1/completions`."""

    prompt: Any  # checked by `prompts`: pydantic's errors for a union of lists are unreadable
    max_tokens: MaxTokens | None = None
    logprobs: Tops | None = None
    echo: bool | None = None
    best_of: Count | None = None
    suffix: None = None

    def prompts(self, model: Model) -> list[str | list[int]]:
        """The prompts, as text or as ids. Raises ApiError for one that is too long."""
        given = self.prompt
        several = isinstance(given, list) and not (given and _is_id(given[0]))
        prompts = given if several else [given]
        if not prompts:
            raise ApiError(400, "prompt is an empty list. Give a text, or token ids.", "prompt")
        for prompt in prompts:
            _check_prompt(prompt, model)
        return prompts


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Annotated[str, Field(min_length=1, max_length=100)]
    content: str | list[TextPart]
    name: str | None = None

    def to_json(self) -> dict[str, str]:
        """The message in the form that templates expect."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content} | ({"name": self.name} if self.name is not None else {})


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Tops | None = None


Kind = TypeVar("Kind", bound=Body)


def parse(kind: type[Kind], raw: bytes) -> Kind:
    """A validated body. Raises ApiError with one sentence about the first error."""
    try:
        value = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"The body must be a JSON object: got {_shown(value)}.")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def _refusal(kind: type[Body], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "list[", "constrained-"))]
    name = str(first["loc"][0])
    path = name + "".join(f"[{part}]" for part in where[1:] if part.isdecimal())
    wrong, context = first["type"], first.get("ctx", {})
    if wrong == "missing":
        sentence = f"{path} is missing."
    elif wrong == "extra_forbidden":
        sentence = f"{name} is not known to this server. {nearest(name, kind.model_fields)}"
    elif limits := [f"{words} {_plain(context[key])}" for key, words in _LIMITS if key in context]:
        sentence = f"{path} must be {' and '.join(limits)}: got {_shown(first['input'])}."
    else:
        sentence = f"{path} has a wrong type or value: got {_shown(first['input'])}. {first['msg']}."
    return ApiError(400, sentence, name)


_LIMITS = (("ge", "at least"), ("gt", "greater than"), ("le", "at most"), ("lt", "less than"))


def _check_prompt(prompt: Any, model: Model) -> None:
    if isinstance(prompt, str):
        if not prompt:
            raise ApiError(400, "The prompt is empty. Give at least one character, or the id of one token.", "prompt")
        model.check_size(prompt, "prompt")
    elif isinstance(prompt, list) and all(map(_is_id, prompt)):
        check(prompt, model, "prompt")
        for token in prompt:
            if not 0 <= token < model.vocab_size:
                raise ApiError(
                    400,
                    f"The prompt holds the token id {_shown(token)}; the model's are 0 to {model.vocab_size - 1}.",
                    "prompt",
                )
    else:
        raise ApiError(
            400, f"prompt must be text, token ids, or a list of one of these: got {_shown(prompt)}.", "prompt"
        )


def check(ids: list[int], model: Model, param: str) -> None:
    """Refuse an empty prompt, and more tokens than the model's context holds."""
    if not ids:
        raise ApiError(400, "The prompt holds no token. Give at least one.", param)
    if len(ids) > model.context:
        raise ApiError(
            400,
            f"The prompt has {len(ids)} tokens, and the model's context holds {model.context}. Shorten it by "
            f"{len(ids) - model.context}.",
            param,
            "context_length_exceeded",
        )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _no_number(name: str) -> Iterator[None]:
    raise ValueError(f"{name} is not a JSON number")


def _plain(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)


def _shown(value: Any) -> str:
    """A value as JSON, shortened if long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
