"""The loop that continues a prompt, token by token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from vitrine.config import SamplingConfig
from vitrine.errors import PromptError, RunError
from vitrine.generation.detokenize import Writer
from vitrine.generation.drafts import Ngrams
from vitrine.generation.engine import Engine
from vitrine.generation.sampling import NOT_FINITE, Chooser, are_finite, choose
from vitrine.model.decoder import Decoder
from vitrine.text.tokenizer import encode, end_of_text_id, start_id


@dataclass(frozen=True)
class Generation:
    """What the model wrote.

    text: the prompt and its continuation; token_ids: of the continuation only.
    ended: whether the model wrote the end-of-text token (which is left out of the text).
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    ended: bool


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    on_text: Callable[[str], None] | None = None,
    drafts: Ngrams | None = None,
) -> Generation:
    """Continue a prompt, token by token.

    A row of a padded vocabulary stands for no token, and is never sampled. The model sees at most `context` tokens.
    When they are full, the older half is dropped, and the rest is read again from position zero.

    Args:
        max_new_tokens: stops there, or at the end-of-text token.
        seed: of the sampling; the same seed, settings and machine give the same text.
        on_text: is given the continuation piece by piece, whole characters only.
        drafts: of the continuation: good ones make it faster, none changes it.
    """
    ids = prompt_ids(tokenizer, prompt, model.config.vocab_size)
    end_id, engine = end_of_text_id(tokenizer), Engine(model, drafts=drafts)
    if drafts:
        engine.settle()
    chooser, writer = Chooser(sampling, seed, prompt_ids=ids), Writer(tokenizer, ids)
    engine.add(ids)
    token, written, ended = ids[-1], [], False
    for _ in range(max_new_tokens):
        logits = engine.step([token])
        if not all(are_finite(logits)):
            raise RunError(NOT_FINITE)
        logits = logits[:, : tokenizer.get_vocab_size()]
        [token] = choose(logits, [chooser])
        if token == end_id:
            ended = True
            break
        written.append(token)
        piece = writer.add(token)
        if piece and on_text:
            on_text(piece)
    piece = writer.finish()
    if piece and on_text:
        on_text(piece)
    return Generation(prompt, prompt + writer.text, tuple(written), ended)


@torch.inference_mode()
def next_logits(model: Decoder, tokenizer: Tokenizer, prompt: str) -> tuple[list[int], list[float]]:
    """The ids of a prompt, as the model reads it, and the logit of every token that may follow."""
    ids = prompt_ids(tokenizer, prompt, model.config.vocab_size)
    inputs = torch.tensor([ids[-model.config.context :]], device=model.embedding.weight.device)
    logits = model(inputs)[0, -1:, : tokenizer.get_vocab_size()].float()
    if not all(are_finite(logits)):
        raise RunError(NOT_FINITE)
    return ids, logits[0].tolist()


def prompt_ids(tokenizer: Tokenizer, prompt: str, vocab_size: int) -> list[int]:
    """The ids of the prompt; an empty one starts as a document does: after an end of text, or on a new line."""
    ids = encode(tokenizer, prompt) or [start_id(tokenizer)]
    if max(ids) >= vocab_size:
        raise PromptError(f"The prompt holds the token id {max(ids)}, but the model knows {vocab_size} tokens.")
    return ids
