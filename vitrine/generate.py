"""From logits to text: temperature, top-k, top-p and the like; then prefill and decode.

These act on the output probabilities, after training. They change no parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vitrine.config import SamplingConfig
from vitrine.errors import PromptError, RunError
from vitrine.model import Cache, Decoder
from vitrine.tokenizer import decode, encode, end_of_text_id

GREEDY_BELOW = 1e-5  # a temperature so low is zero, as vLLM has it: dividing by it could overflow


@dataclass(frozen=True)
class Generation:
    """What the model wrote.

    text: the prompt and its continuation; token_ids: of the continuation alone.
    ended: whether the model wrote the end-of-text token (which is left out of the text).
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    ended: bool

    def to_json(self) -> dict[str, Any]:
        """What `generate --json` prints."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "tokens": len(self.token_ids),
            "token_ids": self.token_ids,
            "ended": self.ended,
        }


def filter_logits(logits: Tensor, sampling: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """What decoding leaves of the logits: softmax of the result is the distribution that is drawn from.

    The order and the treatment of ties are those of transformers: repetition penalty, temperature, top-k,
    top-p, min-p. Temperature 0 leaves the likeliest token alone (the first of several).

    Args:
        logits: (batch, vocab_size).
        seen: (batch, n) of int64: the tokens so far; needed for a repetition penalty.

    Returns:
        (batch, vocab_size) of float32; removed tokens are -inf.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1 and seen is not None:
        old = scores.gather(1, seen)
        penalised = torch.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty)
        scores = scores.scatter(1, seen, penalised)
    if sampling.temperature < GREEDY_BELOW:
        best = scores.argmax(-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(1, best, 0.0)
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        weakest = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < weakest, float("-inf"))
    if sampling.top_p < 1:
        ascending, order = scores.sort(descending=False)
        below = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        below[:, -1] = False
        scores = scores.masked_fill(below.scatter(1, order, below), float("-inf"))
    if sampling.min_p > 0:
        probabilities = scores.softmax(-1)
        weak = probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(weak, float("-inf"))
    return scores


@torch.inference_mode()
def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a prompt, token by token.

    A row of a padded vocabulary stands for no token, and is never drawn. The model sees at most `context` tokens. When they are full, the older half is let go, and the rest is
    read again from position zero.

    Args:
        max_new_tokens: stops there, or at the end-of-text token.
        seed: of the draws; the same seed, settings and machine give the same text.
        on_text: is given the continuation piece by piece, whole characters only.
    """
    device = model.embedding.weight.device
    ids = _prompt_ids(tokenizer, prompt, model.config.vocab_size)
    start, end_id = len(ids), end_of_text_id(tokenizer)
    draws = torch.Generator().manual_seed(seed)
    cache, fresh, shown, ended = Cache(model, batch=1), ids[-model.config.context :], "", False
    for _ in range(max_new_tokens):
        if cache.length + len(fresh) > model.config.context:
            cache, fresh = Cache(model, batch=1), ids[-(model.config.context // 2) :]
        logits = model(torch.tensor([fresh], device=device), cache=cache)[:, -1, : tokenizer.get_vocab_size()]
        _check_finite(logits)
        scores = filter_logits(logits, sampling, torch.tensor([ids], device=device)).cpu()
        token = int(torch.multinomial(scores.softmax(-1), 1, generator=draws))
        if token == end_id:
            ended = True
            break
        ids.append(token)
        fresh = [token]
        if on_text:
            shown = _show(_written(tokenizer, ids, start), shown, on_text)
    written = _written(tokenizer, ids, start)
    if on_text and written != shown:
        on_text(written.removeprefix(shown))
    return Generation(prompt, prompt + written, tuple(ids[start:]), ended)


@torch.inference_mode()
def next_logits(model: Decoder, tokenizer: Tokenizer, prompt: str) -> tuple[list[int], list[float]]:
    """The ids of a prompt, as the model reads it, and the logit of every token that may follow."""
    ids = _prompt_ids(tokenizer, prompt, model.config.vocab_size)
    inputs = torch.tensor([ids[-model.config.context :]], device=model.embedding.weight.device)
    logits = model(inputs)[0, -1, : tokenizer.get_vocab_size()].float()
    _check_finite(logits)
    return ids, logits.tolist()


def _check_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise RunError(
            "The model's logits are not finite: its parameters are damaged, or the training diverged. "
            "Try an earlier step, with --step."
        )


def _prompt_ids(tokenizer: Tokenizer, prompt: str, vocab_size: int) -> list[int]:
    """The ids of the prompt; an empty one starts as a document does: after an end of text, or on a new line."""
    ids = encode(tokenizer, prompt)
    if not ids:
        end_id = end_of_text_id(tokenizer)
        newline = tokenizer.token_to_id("\n")
        ids = [end_id if end_id is not None else newline if newline is not None else 0]
    if max(ids) >= vocab_size:
        raise PromptError(f"The prompt holds the token id {max(ids)}, but the model knows {vocab_size} tokens.")
    return ids


def _written(tokenizer: Tokenizer, ids: list[int], start: int) -> str:
    """The text of the ids from `start`, read after those before: some tokenizers drop a leading space."""
    before = ids[max(0, start - 4) : start]
    text, known = decode(tokenizer, before + ids[start:]), decode(tokenizer, before)
    return text.removeprefix(known) if text.startswith(known) else decode(tokenizer, ids[start:])


def _show(text: str, shown: str, on_text: Callable[[str], None]) -> str:
    """Pass on what is new, but hold back a character that is not whole yet."""
    whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
    if whole.startswith(shown) and whole != shown:
        on_text(whole.removeprefix(shown))
        return whole
    return shown
