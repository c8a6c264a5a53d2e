"""The served model in the server's process: tokenizer, limits and name. The parameters are in the decoding process."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vitrine.config import SamplingConfig
from vitrine.errors import ConfigError, PromptError
from vitrine.generation.detokenize import Writer
from vitrine.http.child_process import CallError, Sandbox
from vitrine.runs.reader import TOKENIZER, RunReader
from vitrine.serving.chat_template import RENDER_S, Messages, Template, functions
from vitrine.serving.errors import ApiError
from vitrine.text.tokenizer import encode, end_of_text_id, load_tokenizer, name

ENCODE_S, ENCODE_BYTES_PER_S = 2.0, 500_000  # time limit for tokenizing a text


@dataclass
class Model:
    """The served model.

    step: of its parameters. template: for chats, if the tokenizer has one. sandbox: tokenizes texts and renders chats,
    since the tokenizer's pattern, or the template, may never end.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context: int
    sampling: SamplingConfig
    template: Template | None
    sandbox: Sandbox
    step: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, run: str, named: str, template: str) -> "Model":
        """The model of a run folder. template: a file; empty: the run's own, if it has one."""
        reader = RunReader(run)
        config, tokenizer = reader.config, load_tokenizer(reader.path / TOKENIZER)
        chats = Template.find(Path(template) if template else None, reader.path, tokenizer)
        return cls(
            named or reader.path.resolve().name,
            tokenizer,
            config.model.vocab_size,
            config.model.context,
            config.sampling,
            chats,
            Sandbox(_functions, str(reader.path / TOKENIZER), chats),
        )

    async def encode(self, text: str, param: str, special: bool = False) -> list[int]:
        """The ids of a text. Raises ApiError, about this parameter."""
        size = self.check_size(text, param)
        try:
            ids: list[int] = await self.sandbox.call(
                "encode", text, special, timeout_s=ENCODE_S + size / ENCODE_BYTES_PER_S
            )
        except PromptError as error:
            raise ApiError(400, str(error), param) from None
        except CallError as error:
            raise ApiError(400, f"The tokenizer {error}, given this text. Give another.", param) from None
        return ids

    def check_size(self, text: str, param: str) -> int:
        """The bytes of a text. Raises ApiError if they cannot fit into the context."""
        size, most = len(text.encode("utf-8", "surrogatepass")), self.context * self._token_bytes
        if size > most:
            raise ApiError(
                400,
                f"The text has {size} bytes, and the model's context holds {self.context} tokens of at most "
                f"{self._token_bytes} bytes: {most} bytes. Shorten it.",
                param,
                "context_length_exceeded",
            )
        return size

    @cached_property
    def _token_bytes(self) -> int:
        """Bytes of the longest token as spelled in the vocabulary: never shorter than its text."""
        return max(len(token.encode()) for token in self.tokenizer.get_vocab())

    async def encode_chat(self, messages: Messages) -> list[int]:
        """The ids that the answer to a chat continues. Raises ApiError for messages that cannot be used."""
        try:
            what = "The chat template"
            pieces = await self.sandbox.call("render_chat", messages, timeout_s=RENDER_S)
            what = "The tokenizer"
            timeout_s = ENCODE_S + self.check_size("".join(pieces), "messages") / ENCODE_BYTES_PER_S
            ids: list[int] = await self.sandbox.call("encode_chat", pieces, timeout_s=timeout_s)
        except (ConfigError, PromptError) as error:
            raise ApiError(400, str(error), "messages") from None
        except CallError as error:
            raise ApiError(400, f"{what} {error}, given these messages. Give others.", "messages") from None
        if not ids:
            raise ApiError(400, "The chat template gives an empty text for these messages.", "messages")
        return ids

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The token that ends a text, if there is one."""
        end = end_of_text_id(self.tokenizer)
        return frozenset() if end is None else frozenset({end})

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The special tokens: any of them ends an answer in a chat."""
        added = self.tokenizer.get_added_tokens_decoder()
        return self.end_ids | frozenset(index for index, token in added.items() if token.special)

    @cached_property
    def _names(self) -> dict[int, str]:
        return {}

    def token_name(self, token: int) -> str:
        """The text of one token."""
        if token not in self._names:
            self._names[token] = name(self.tokenizer, token)
        return self._names[token]

    def text(self, ids: list[int]) -> tuple[str, list[int]]:
        """The text of ids, and where in it each of them begins."""
        writer, offsets = Writer(self.tokenizer, []), []
        for token in ids:
            offsets.append(writer.length)
            writer.add(token)
        writer.finish()
        return writer.text, offsets

    def to_json(self) -> dict[str, Any]:
        """An entry of `/v1/models`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "vitrine",
            "step": self.step,
            "context": self.context,
        }


def _functions(file: str, template: Template | None) -> dict[str, Callable[..., Any]]:
    """The functions of the sandbox."""
    tokenizer = load_tokenizer(Path(file))
    chats = functions(template, tokenizer) if template else {}
    return chats | {"encode": lambda text, special: encode(tokenizer, text, special)}
