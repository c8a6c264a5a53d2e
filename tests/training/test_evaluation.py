"""Validation loss against a naive loop, one window at a time."""

import math
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from vitrine.errors import CorpusError
from vitrine.model.decoder import Decoder, initialise
from vitrine.presets import Facts, resolve
from vitrine.training import evaluation as evaluate_module
from vitrine.training.evaluation import Evaluation, evaluate

CONTEXT = 8


def tiny(**model: Any) -> Decoder:
    size = {"architecture": "gpt2", "n_layers": 1, "n_heads": 2, "d_model": 12, "context": CONTEXT, "init_scale": 20}
    return initialise(resolve({"model": size | model}, Facts(vocab_size=11, train_tokens=1)).model, seed=1)


def some_tokens(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 11, count).astype(np.uint16)


@torch.no_grad()
def naive_losses(model: Decoder, tokens: np.ndarray) -> list[list[float]]:
    """The loss of each target, window by window, by log-softmax in float64."""
    windows = []
    for start in range(0, len(tokens) - 1, CONTEXT):
        inputs = tokens[start : start + CONTEXT][: len(tokens) - 1 - start]
        logits = model(torch.tensor(inputs.astype(np.int64))[None])[0].double()
        targets = tokens[start + 1 : start + CONTEXT + 1]
        chosen = logits.log_softmax(-1)[range(len(targets)), targets.astype(np.int64)]
        windows.append((-chosen).tolist())
    return windows


@pytest.mark.parametrize("count", [2, 3, 8, 9, 10, 17, 60, 65])
def test_the_loss_is_that_of_a_naive_loop_with_each_target_once(count: int) -> None:
    model, tokens = tiny(), some_tokens(count)
    losses = list(chain(*naive_losses(model, tokens)))
    result = evaluate(model, tokens)
    assert result.tokens == len(losses) == count - 1
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_test_model_is_no_mere_guesser() -> None:
    losses = list(chain(*naive_losses(tiny(), some_tokens(65))))
    assert np.std(losses) > 0.3


@pytest.mark.parametrize(("limit", "value"), [("TOKENS_AT_ONCE", 3 * CONTEXT), ("LOGITS_AT_ONCE", 3 * CONTEXT * 11)])
def test_the_size_of_a_batch_changes_nothing(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny(), some_tokens(100)
    rows: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    whole = evaluate(model, tokens)
    monkeypatch.setattr(evaluate_module, limit, {"cpu": value} if limit == "TOKENS_AT_ONCE" else value)
    parts = evaluate(model, tokens)
    assert rows == [12, 1, 3, 3, 3, 3, 1]  # twelve whole windows, and the rest
    assert (parts.tokens, parts.loss) == (whole.tokens, pytest.approx(whole.loss, rel=1e-6))


def test_evaluation_leaves_dropout_off_and_gradients_alone() -> None:
    tokens = some_tokens(50)
    dropping = tiny(dropout=0.5)
    assert evaluate(dropping, tokens) == evaluate(tiny(), tokens)
    assert all(parameter.grad is None for parameter in dropping.parameters())


def test_bits_per_byte_are_nats_per_token_by_ln_2_by_bytes_per_token() -> None:
    result = evaluate(tiny(), some_tokens(40), size_bytes=100)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) * 40 / 100)


def test_without_a_size_there_are_no_bits_per_byte() -> None:
    assert evaluate(tiny(), some_tokens(40)).bits_per_byte is None


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert Evaluation(math.log(65), 1, None).perplexity == pytest.approx(65)


def test_the_perplexity_of_an_absurd_loss_is_finite() -> None:
    assert math.isfinite(Evaluation(1e9, 1, None).perplexity)


@pytest.mark.parametrize(
    ("at_most", "chosen"),
    [
        (8, [0]),
        (16, [0, 10]),
        (24, [0, 5, 10]),
        (31, [0, 5, 10]),  # whole windows alone
        (32, [0, 3, 7, 10]),  # thirds of ten, rounded
        (88, list(range(11))),
        (5, [0]),  # one window at least
    ],
)
def test_at_most_so_many_tokens_are_picked_evenly(at_most: int, chosen: list[int]) -> None:
    model, tokens = tiny(), some_tokens(89)  # eleven whole windows
    windows = naive_losses(model, tokens)
    losses = list(chain(*(windows[index] for index in chosen)))
    result = evaluate(model, tokens, at_most=at_most)
    assert (result.tokens, result.loss) == (len(losses), pytest.approx(sum(losses) / len(losses), rel=1e-5))


@pytest.mark.parametrize("at_most", [88, 89, 10**9])
def test_at_most_more_than_there_are_means_all(at_most: int) -> None:
    model, tokens = tiny(), some_tokens(89)
    assert evaluate(model, tokens, at_most=at_most) == evaluate(model, tokens)


@pytest.mark.parametrize("size", [2, 3, 20])
def test_the_shares_of_several_processes_are_a_partition(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny(), some_tokens(77)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: sums.append(mine.clone()) or mine.add_(1))
    for rank in range(size):
        evaluate(model, tokens, share=(rank, size))
    total, count = torch.stack(sums).sum(0).tolist()
    whole = evaluate(model, tokens)
    assert (count, total / count) == (whole.tokens, pytest.approx(whole.loss, rel=1e-6))


def test_the_sums_of_all_processes_are_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange(mine: torch.Tensor) -> None:
        mine.copy_(torch.tensor([30.0, 20.0]))

    monkeypatch.setattr(torch.distributed, "all_reduce", exchange)
    result = evaluate(tiny(), some_tokens(77), size_bytes=77, share=(0, 2))
    assert result == Evaluation(1.5, 20, pytest.approx(1.5 / math.log(2)))


@pytest.mark.parametrize("count", [0, 1])
def test_a_text_without_a_target_is_refused(count: int) -> None:
    with pytest.raises(CorpusError) as caught:
        evaluate(tiny(), some_tokens(count))
    assert str(caught.value) == (
        f"A loss needs a token and the one after it: got {count} tokens to measure. Give a longer text."
    )


def test_before_each_batch_it_says_how_far_it_is_and_what_is_raised_then_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate_module, "TOKENS_AT_ONCE", {"cpu": 3 * CONTEXT})
    model, tokens = tiny(), some_tokens(100)  # twelve whole windows, and the rest
    said: list[tuple[int, int]] = []
    assert evaluate(model, tokens, between=lambda *far: said.append(far)) == evaluate(model, tokens)
    assert said == [(0, 13), (3, 13), (6, 13), (9, 13), (12, 13), (13, 13)]
    batches: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))

    def leave(done: int, total: int) -> None:
        if done == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluate(model, tokens, between=leave)
    assert batches == [3, 3]


@pytest.mark.parametrize("count", [2, 9, 60, 77, 89, 200, 201])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_several_processes_speak_between_their_batches_equally_often(
    size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "TOKENS_AT_ONCE", {"cpu": 2 * CONTEXT})
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: mine.add_(1))
    model, tokens = tiny(), some_tokens(count)
    batches: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    said: list[list[int]] = []
    for rank in range(size):
        said.append([])
        before = len(batches)
        evaluate(model, tokens, share=(rank, size), between=lambda done, total: said[-1].append(done))
        assert len(said[-1]) >= len(batches) - before
    assert all(one == said[0] for one in said)
