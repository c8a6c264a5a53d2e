"""Chat templates: a message list to the text that the model continues. A template is code: it runs in a sandbox."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vitrine.errors import ConfigError
from vitrine.runs.reader import CHAT_TEMPLATE
from vitrine.serving.errors import ApiError
from vitrine.text.tokenizer import end_of_text_id

ABSENT = (
    "This model has no chat template, so it cannot take a list of messages: it continues text. Use /v1/completions, "
    "or start the server with --chat-template FILE."
)
LENGTH = 1_000_000  # of a text that a template may make, in characters


class Template:
    """A Jinja template, as Hugging Face tokenizers have it."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise ConfigError("A chat template needs jinja2. Install it: pip install 'vitrine[chat]'.") from None
        self.error: type[Exception] = TemplateError
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            self.template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"The chat template is not valid Jinja: {error}.") from None
        end = end_of_text_id(tokenizer)
        self.end = "" if end is None else tokenizer.id_to_token(end)

    @classmethod
    def find(cls, file: Path | None, run: Path, tokenizer: Tokenizer) -> "Template | None":
        """From a file, or of a run."""
        if file is None:
            file = run / CHAT_TEMPLATE
            if not file.is_file():
                return None
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The chat template {file} cannot be read: {error}.") from None
        return cls(source, tokenizer)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The text that the model is to continue with its answer."""
        try:
            text = self.template.render(
                messages=messages, add_generation_prompt=True, bos_token=self.end, eos_token=self.end
            )
        except ApiError:
            raise
        except Exception as error:  # of a template, and of Python inside one
            raise ApiError(400, f"The chat template does not take these messages: {error}.", "messages") from None
        if len(text) > LENGTH:
            raise ApiError(
                400, f"The messages make a text of {len(text)} characters; {LENGTH} is the most.", "messages"
            )
        return text


def _refuse(sentence: str) -> None:
    raise ApiError(400, f"The chat template does not take these messages: {sentence}.", "messages")
