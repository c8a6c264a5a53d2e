"""Filters against transformers' own; choices by their probabilities."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrine.config import SamplingConfig
from vitrine.generation.sampling import Chooser, choose, filter_logits


def by_transformers(logits: Tensor, sampling: SamplingConfig, seen: Tensor) -> Tensor:
    """transformers' processors, in transformers' order."""
    from transformers.generation import logits_process as theirs

    chain: list[Any] = []
    if sampling.repetition_penalty != 1:
        chain.append(theirs.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature != 1:
        chain.append(theirs.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        chain.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        chain.append(theirs.MinPLogitsWarper(sampling.min_p))
    scores = logits.float()
    for processor in chain:
        scores = processor(seen, scores)
    return scores


def random_logits(seed: int, vocab_size: int, ties: bool, spread: float) -> Tensor:
    logits = spread * torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(seed))
    return logits.round() if ties else logits


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(1, 60),
    ties=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 3.0, 30.0]),
    temperature=st.sampled_from([0.01, 0.3, 0.8, 1.0, 1.7, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 1000]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 0.9, 1.0]),
    penalty=st.sampled_from([0.5, 1.0, 1.3, 10.0]),
)
def test_the_filters_are_those_of_transformers(
    seed: int,
    vocab_size: int,
    ties: bool,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
) -> None:
    sampling = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    logits = random_logits(seed, vocab_size, ties, spread)
    seen = torch.randint(vocab_size, (3, 7), generator=torch.Generator().manual_seed(seed + 1))
    ours, theirs = filter_logits(logits, sampling, seen), by_transformers(logits, sampling, seen)
    assert torch.equal(ours == float("-inf"), theirs == float("-inf"))
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-7, rtol=1e-6)


def kept(logits: list[float], **sampling: Any) -> list[int]:
    scores = filter_logits(torch.tensor([logits]), SamplingConfig(**{"temperature": 1.0} | sampling))
    return torch.nonzero(scores[0] > float("-inf")).flatten().tolist()


def test_top_k_keeps_every_tie_of_the_weakest() -> None:
    assert kept([3.0, 1.0, 2.0, 2.0, 0.0], top_k=2) == [0, 2, 3]


def test_top_p_keeps_the_fewest_likeliest_that_reach_it() -> None:
    probabilities = torch.tensor([0.5, 0.1, 0.3, 0.1])
    assert kept(probabilities.log().tolist(), top_p=0.75) == [0, 2]


def test_top_p_keeps_the_likeliest_however_small_it_is() -> None:
    assert kept([0.0, 1.0, 0.5], top_p=1e-9) == [1]


def test_min_p_is_relative_to_the_likeliest() -> None:
    probabilities = torch.tensor([0.6, 0.2, 0.14, 0.06])
    assert kept(probabilities.log().tolist(), min_p=0.3) == [0, 1]


def test_a_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    scores = filter_logits(logits, SamplingConfig(temperature=1, repetition_penalty=2), torch.tensor([[0, 1, 0]]))
    assert scores.tolist() == [[1.0, -4.0, 2.0, -2.0]]


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-9])
def test_temperature_zero_leaves_the_first_of_the_likeliest_alone(temperature: float) -> None:
    assert kept([1.0, 40.0, 40.0, 2.0], temperature=temperature) == [1]


def test_a_low_temperature_gives_probabilities() -> None:
    scores = filter_logits(torch.tensor([[1e4, -1e4, 9999.0]]), SamplingConfig(temperature=1e-5))
    assert scores.softmax(-1).tolist() == [[1.0, 0.0, 0.0]]


def test_filtering_changes_no_logit_in_place() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    filter_logits(logits, SamplingConfig(temperature=0.5, top_k=1, repetition_penalty=2), torch.tensor([[2]]))
    assert logits.tolist() == [[1.0, 2.0, 3.0]]


# Choices


def test_draws_have_the_probabilities_of_the_filtered_logits() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.2, 0.3]]).log()
    choosers = [Chooser(SamplingConfig(temperature=1.0), seed) for seed in range(4000)]
    drawn = torch.bincount(torch.tensor(choose(logits.expand(4000, -1), choosers)), minlength=4) / 4000
    assert drawn[1] == 0
    assert (drawn - logits.exp()[0]).abs().max() < 0.03  # spread 0.008


def test_choices_do_not_depend_on_who_else_chooses() -> None:
    logits = torch.randn(40, 70, generator=torch.Generator().manual_seed(3))
    kinds = [
        {"sampling": SamplingConfig(temperature=0)},
        {"sampling": SamplingConfig(temperature=1.3, top_p=0.8)},
        {"sampling": SamplingConfig(temperature=1.0, repetition_penalty=1.5), "prompt_ids": [1, 2, 3]},
        {"sampling": SamplingConfig(temperature=1.0, top_k=5), "bias": {3: 2.0}, "presence": 0.5},
    ]
    together = choose(logits, [Chooser(seed=row, **kinds[row % 4]) for row in range(40)])
    assert together == [choose(logits[row : row + 1], [Chooser(seed=row, **kinds[row % 4])])[0] for row in range(40)]


def test_presence_counts_once_and_frequency_each_time() -> None:
    chooser = Chooser(SamplingConfig(), seed=1, presence=0.5, frequency=0.25, bias={2: -100.0})
    for token in (0, 0, 1):
        chooser.add(token)
    assert chooser.adjust(torch.zeros(1, 4)).tolist() == [[-1.0, -0.75, -100.0, 0.0]]
