"""Generation against a naive loop; prompts; the end of a text."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vitrine.generation.generate as generate_module
from vitrine.config import SamplingConfig
from vitrine.errors import PromptError, RunError
from vitrine.families.registry import FAMILIES
from vitrine.generation.engine import Engine
from vitrine.generation.generate import generate, next_logits
from vitrine.generation.sampling import filter_logits
from vitrine.model.decoder import Decoder, initialise
from vitrine.presets import Facts, resolve
from vitrine.text.tokenizer import byte_tokenizer, char_tokenizer, train_bpe

GREEDY = SamplingConfig(temperature=0)
CONTEXT = 12


def tiny(vocab_size: int, context: int = CONTEXT, architecture: str = "qwen3", seed: int = 1) -> Decoder:
    size = {"architecture": architecture, "n_layers": 2, "n_heads": 2, "d_model": 12, "context": context}
    model = initialise(resolve({"model": size}, Facts(vocab_size=vocab_size, train_tokens=1)).model, seed)
    with torch.no_grad():  # a newborn's logits are all but equal
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model


LETTERS = char_tokenizer("abcdefghijklmnopqrstuvwxyz \n")


# Decoding


@torch.no_grad()
def naive_greedy(model: Decoder, ids: list[int], count: int) -> list[int]:
    """No cache: the whole text, each time."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("architecture", FAMILIES)
def test_greedy_text_is_that_of_an_argmax_loop_without_a_cache(architecture: str) -> None:
    model = tiny(LETTERS.get_vocab_size(), architecture=architecture)
    prompt = "abc"
    expected = naive_greedy(model, LETTERS.encode(prompt).ids, CONTEXT - 3)
    result = generate(model, LETTERS, prompt, CONTEXT - 3, GREEDY, seed=1)
    assert list(result.token_ids) == expected[3:]
    assert len(set(expected)) > 2
    assert result.text == LETTERS.decode(expected)


def test_the_same_seed_writes_the_same_text() -> None:
    model = tiny(LETTERS.get_vocab_size())
    texts = [generate(model, LETTERS, "a", 30, SamplingConfig(), seed=seed).text for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_draws_follow_the_filtered_distribution() -> None:
    model = tiny(LETTERS.get_vocab_size())
    sampling = SamplingConfig(temperature=3.0, top_k=4)
    with torch.no_grad():
        probabilities = filter_logits(model(torch.tensor([LETTERS.encode("abc").ids]))[:, -1], sampling).softmax(-1)[0]
    drawn = [generate(model, LETTERS, "abc", 1, sampling, seed=seed).token_ids[0] for seed in range(400)]
    shares = torch.bincount(torch.tensor(drawn), minlength=len(probabilities)) / 400
    assert (shares > 0).sum() == 4
    assert (shares - probabilities).abs().max() < 0.1  # spread at most 0.025


def test_generation_changes_no_parameter() -> None:
    model = tiny(LETTERS.get_vocab_size())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    generate(model, LETTERS, "a", 5, SamplingConfig(), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# The window


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("context", [2, 3, 12])
@pytest.mark.parametrize("prompt_length", [1, 11, 12, 13, 40])
def test_text_longer_than_the_context_goes_on(architecture: str, context: int, prompt_length: int) -> None:
    model = tiny(LETTERS.get_vocab_size(), context, architecture)
    result = generate(model, LETTERS, "a" * prompt_length, 3 * context, SamplingConfig(), seed=1)
    assert len(result.token_ids) == 3 * context


def test_when_the_context_is_full_the_newer_half_is_read_again() -> None:
    model = tiny(LETTERS.get_vocab_size())
    ids = LETTERS.encode("abc").ids
    expected = naive_greedy(model, ids, CONTEXT - 3 + 1)  # the last of them from a full context
    for _ in range(CONTEXT // 2):
        half = CONTEXT // 2 + len(expected) - (CONTEXT + 1)
        expected = expected[:-half] + naive_greedy(model, expected[-half:], 1)
    result = generate(model, LETTERS, "abc", len(expected) - 3, GREEDY, seed=1)
    assert list(result.token_ids) == expected[3:]


def test_of_a_prompt_longer_than_the_context_the_end_counts() -> None:
    model = tiny(LETTERS.get_vocab_size())
    end = "the last few"
    assert len(end) == CONTEXT
    short = generate(model, LETTERS, end, 5, GREEDY, seed=1)
    long = generate(model, LETTERS, "what was before " + end, 5, GREEDY, seed=1)
    assert long.token_ids == short.token_ids
    assert long.text.startswith("what was before the last few")


# Prompts


def first_logits_ids(model: Decoder, tokenizer: Any, prompt: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the model reads first."""
    read: list[int] = []

    class Watched(Engine):
        def add(self, ids: Sequence[int]) -> int:
            read.extend(ids)
            return super().add(ids)

    monkeypatch.setattr(generate_module, "Engine", Watched)
    generate(model, tokenizer, prompt, 1, GREEDY, seed=1)
    return read


def test_an_empty_prompt_starts_after_an_end_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_logits_ids(tiny(257), byte_tokenizer(), "", monkeypatch) == [256]


def test_without_an_end_of_text_an_empty_prompt_starts_on_a_new_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_logits_ids(tiny(28), LETTERS, "", monkeypatch) == [LETTERS.token_to_id("\n")]


def test_with_neither_an_empty_prompt_starts_from_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_logits_ids(tiny(3), char_tokenizer("abc"), "", monkeypatch) == [0]


@pytest.mark.parametrize("tokenizer", [LETTERS, byte_tokenizer()])
def test_what_stands_in_for_an_empty_prompt_is_not_part_of_the_text(tokenizer: Any) -> None:
    result = generate(tiny(tokenizer.get_vocab_size()), tokenizer, "", 4, GREEDY, seed=1)
    assert (result.prompt, result.text) == ("", tokenizer.decode(list(result.token_ids)))


def test_a_character_that_the_model_never_saw_is_refused() -> None:
    with pytest.raises(PromptError, match=r"The model has never seen 'É' \(U\+00C9\)"):
        generate(tiny(28), LETTERS, "É", 1, GREEDY, seed=1)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(PromptError, match=r"^The prompt holds the token id 122, but the model knows 100 tokens\.$"):
        generate(tiny(100), byte_tokenizer(), "z", 1, GREEDY, seed=1)


def test_a_row_that_stands_for_no_token_is_never_drawn() -> None:
    padded, bare = tiny(len(LETTERS.get_vocab()) + 40), tiny(len(LETTERS.get_vocab()))
    kept = {n: p[: bare.config.vocab_size] if "head" in n or "embed" in n else p for n, p in padded.named_parameters()}
    bare.load_state_dict(kept)
    hot = SamplingConfig(temperature=5.0)  # about half of the draws would be such rows
    written = generate(padded, LETTERS, "ab", 60, hot, seed=1)
    assert written == generate(bare, LETTERS, "ab", 60, hot, seed=1)
    assert max(written.token_ids) < LETTERS.get_vocab_size()
    assert len(next_logits(padded, LETTERS, "ab")[1]) == LETTERS.get_vocab_size()


def test_no_new_tokens_give_the_prompt() -> None:
    result = generate(tiny(28), LETTERS, "abc", 0, GREEDY, seed=1)
    assert (result.text, result.token_ids, result.ended) == ("abc", (), False)


def test_a_model_that_diverged_writes_nothing() -> None:
    model = tiny(28)
    with torch.no_grad():
        model.final_norm.gain[0] = float("nan")
    with pytest.raises(RunError, match=r"^The model's logits are not finite: .* Try an earlier step, with --step\.$"):
        generate(model, LETTERS, "a", 1, SamplingConfig(), seed=1)


# The end of text, and pieces of it: a model that writes what the test wants


class Scripted(Engine):
    """Writes these ids, one after the other, whatever it reads."""

    script: Iterator[int]

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits = torch.zeros(1, self.config.vocab_size)
        logits[0, next(self.script)] = 100.0
        return logits


def write(ids: list[int], tokenizer: Any = None, prompt: str = "x") -> tuple[Any, list[str]]:
    tokenizer = tokenizer or byte_tokenizer()
    pieces: list[str] = []
    model = tiny(tokenizer.get_vocab_size(), context=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "Engine", type("Written", (Scripted,), {"script": iter(ids)}))
        return generate(model, tokenizer, prompt, len(ids), GREEDY, seed=1, on_text=pieces.append), pieces


def test_the_end_of_text_ends_it_and_is_left_out() -> None:
    result, pieces = write([*b"ab", 256, *b"cd"])
    assert (result.text, result.token_ids, result.ended) == ("xab", (97, 98), True)
    assert pieces == ["a", "b"]


def test_without_an_end_of_text_the_text_ends_at_the_number_asked_for() -> None:
    result, _ = write(list(b"ab"))
    assert (result.text, result.ended) == ("xab", False)


def test_a_character_of_several_bytes_is_handed_on_whole() -> None:
    result, pieces = write(list("aé→🙂z".encode()))
    assert pieces == ["a", "é", "→", "🙂", "z"]
    assert result.text == "xaé→🙂z"


@pytest.mark.parametrize(
    "written",
    [
        b"ab\xff",  # never a character
        b"a\xe2\x82",  # cut off
        b"\xe2a\x82\xac",
        b"\xf0\x9f\xff\xf0\x9f\x99\x82",
        "\N{REPLACEMENT CHARACTER}x".encode(),
        "\N{REPLACEMENT CHARACTER}".encode(),
    ],
)
def test_the_pieces_make_up_the_text_even_when_bytes_are_no_character(written: bytes) -> None:
    result, pieces = write(list(written))
    assert result.text == "x" + "".join(pieces) == "x" + written.decode(errors="replace")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 255), max_size=12), st.text(max_size=6))
def test_the_pieces_make_up_the_text_for_any_bytes_and_any_prompt(written: list[int], prompt: str) -> None:
    result, pieces = write(written, prompt=prompt)
    assert result.text == prompt + "".join(pieces)


def test_a_tokenizer_that_drops_a_leading_space_keeps_the_one_after_the_prompt() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "▁three": 2}))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    result, pieces = write([1, 2], words, prompt="one")
    assert (result.text, pieces) == ("one two three", [" two", " three"])


def test_tokens_of_several_letters_are_pieces() -> None:
    tokenizer = train_bpe(iter(["the cat the cat the cat"]), 262)
    ids = tokenizer.encode("the cat").ids
    result, pieces = write(ids, tokenizer)
    assert result.text == "x" + "".join(pieces) == "xthe cat"
    assert len(pieces) == len(ids) < 7
