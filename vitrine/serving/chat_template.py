"""Chat templates: turn a list of messages into the token ids that the model continues.

A template is an untrusted program that came with a tokenizer. It is compiled and rendered in the child process of
`http.child_process.Sandbox`, with limits for time and memory, inside jinja2's own sandbox.

A message can contain the text of a special token. It stays text, as with transformers' `sanitize_control_tokens`: it
is marked before the template gets it, and encoded separately.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vitrine.errors import ConfigError, PromptError
from vitrine.http.child_process import CallError, Sandbox
from vitrine.runs.reader import CHAT_TEMPLATE
from vitrine.text.tokenizer import encode, named_tokens, read_tokenizer_config

ABSENT = (
    "This model has no chat template, so it cannot take a list of messages: it continues text. Use /v1/completions, "
    "or start the server with --chat-template FILE."
)
LENGTH = 1_000_000  # limit of a template's text, in characters
RENDER_S = 1.0
COMPILE_S = 5.0  # time limit, once at the start
REASON = 300  # characters of an exception quoted in an error
PRIVATE_USE = range(0xF0000, 0xFFFFE, 2)  # unassigned code points, in pairs: used as marks

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Template:
    """A Jinja template in the form of Hugging Face tokenizers. It can be pickled.

    names: the special tokens that it may use, as bos_token and so on.
    """

    source: str
    names: Mapping[str, str]

    @classmethod
    def find(cls, file: Path | None, run: Path, tokenizer: Tokenizer) -> "Template | None":
        """The template of a file, else of a run; None if there is neither."""
        if file is None:
            file = run / CHAT_TEMPLATE
            if not file.is_file():
                return None
        if not find_spec("jinja2"):
            raise ConfigError("A chat template needs jinja2. Install it: pip install 'vitrine[chat]'.")
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The chat template {file} cannot be read: {error}.") from None
        return cls(source, named_tokens(read_tokenizer_config(run), tokenizer))

    def check(self, sandbox: Sandbox) -> None:
        """Raises ConfigError unless it compiles."""
        try:
            sandbox.run("compile_chat", (), COMPILE_S)
        except CallError as error:
            raise ConfigError(
                f"The chat template {error} when it was compiled. Give another --chat-template."
            ) from None


def functions(template: Template, tokenizer: Tokenizer) -> dict[str, Callable[..., Any]]:
    """The functions that chats need in the sandbox."""
    environment = _environment()
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) never matches

    @cache
    def compiled() -> Any:
        try:
            return environment.from_string(template.source)
        except Exception as error:  # from jinja2, or from constants that it evaluates
            raise ConfigError(f"The chat template is not valid Jinja: {_reason(error)}.") from None

    def compile_chat() -> None:
        compiled()

    def render_chat(messages: Messages) -> list[str]:
        """The text to continue, in pieces: every second one is the text of a special token in a message."""
        start, end = _unused_marks("".join(value for message in messages for value in message.values()))
        marked = [
            {key: spelled.sub(rf"{start}\g<0>{end}", value) for key, value in message.items()} for message in messages
        ]
        environment.filters["tojson"] = _tojson(start, end)
        try:
            text = compiled().render(
                messages=marked, tools=None, documents=None, add_generation_prompt=True, **template.names
            )
        except MemoryError:
            raise
        except Exception as error:  # from the template, or from Python code inside it
            raise PromptError(f"The chat template does not take these messages: {_reason(error)}.") from None
        if len(text) > LENGTH:
            raise PromptError(f"The messages make a text of {len(text)} characters; {LENGTH} is the most.")
        # Single marks remain where a template has cut the text.
        pieces = re.split(f"{start}({spelled.pattern}){end}|[{start}{end}]", text)
        return [piece or "" for piece in pieces]

    def encode_chat(pieces: list[str]) -> list[int]:
        ids = encode(tokenizer, pieces[0], special=True)
        for number, piece in enumerate(pieces[1:], 1):
            literal = number % 2 == 1
            found = _encode_after_newline(tokenizer, piece, special=not literal) if piece else []
            if literal and tokenizer.token_to_id(piece) in found:
                raise PromptError(
                    f"The messages contain the special token {piece}, and this tokenizer cannot encode it as plain text. "
                    "Leave it out."
                )
            ids += found
        return ids

    return {"compile_chat": compile_chat, "render_chat": render_chat, "encode_chat": encode_chat}


def _environment() -> Any:
    """A Jinja environment as transformers configures it for chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `generation`, which marks the assistant's text for training; here only its text is used."""

        tags = {"generation"}  # noqa: RUF012 - required by jinja2

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A call, not the bare body: as in transformers, variables set inside are not visible outside.
            return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(sentence: str) -> None:
        raise TemplateError(sentence)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _tojson("", "")  # must exist when a template is compiled; replaced before rendering
    return environment


def _tojson(start: str, end: str) -> Callable[..., str]:
    """The filter: unlike jinja2's own, it does not escape HTML. Marks are never escaped."""

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if ensure_ascii:
            for mark in (start, end):
                text = text.replace(json.dumps(mark)[1:-1], mark) if mark else text
        return text

    return tojson


def _unused_marks(text: str) -> tuple[str, str]:
    """Two characters that do not occur in the text."""
    return next(
        (chr(code), chr(code + 1)) for code in PRIVATE_USE if chr(code) not in text and chr(code + 1) not in text
    )


def _encode_after_newline(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    """The ids of a text that follows other text: at the start of a text, some tokenizers add a space."""
    try:
        newline = encode(tokenizer, "\n", special)
        ids = encode(tokenizer, f"\n{text}", special)
    except PromptError:  # a newline has no token
        return encode(tokenizer, text, special)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(tokenizer, text, special)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:REASON].rstrip(".")
