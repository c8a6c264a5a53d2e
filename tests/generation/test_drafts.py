"""Drafts are what followed most often in a text, as counted one by one."""

import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

import vitrine
from vitrine.generation.drafts import LEAST_CHANCE, ORDER, SEEN, Ngrams
from vitrine.generation.engine import Engine


def counted(text: list[int]) -> dict[tuple[int, ...], Counter[int]]:
    """Of each context of 1 to ORDER tokens: what followed, and how often."""
    found: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for place in range(1, len(text)):
        for order in range(1, min(ORDER, place) + 1):
            found[tuple(text[place - order : place])][text[place]] += 1
    return found


def chance_of(found: dict[tuple[int, ...], Counter[int]], before: list[int], token: int) -> float:
    """The share of a token after the longest context that was seen SEEN times; 0 if it was not the most frequent."""
    for order in range(min(ORDER, len(before)), 0, -1):
        followers = found.get(tuple(before[-order:]), Counter())
        if followers.total() >= SEEN:
            most = max(followers.values())
            return most / (followers.total() + 1) if followers[token] == most else 0.0
    return 0.0


@pytest.mark.parametrize("alphabet", [3, 40, 60_000])
def test_a_draft_is_what_followed_most_often_while_it_is_likely(alphabet: int) -> None:
    generator = np.random.default_rng(1)
    words = [generator.integers(alphabet, size=6).tolist() for _ in range(12)]
    text = [token for word in generator.integers(len(words), size=400) for token in words[word]]
    ngrams, found = Ngrams(np.array(text, np.uint16)), counted(text)
    lengths = Counter[int]()
    for place in range(len(text)):
        before = text[max(0, place - 9) : place]
        drafted, chance = ngrams.draft(before, 5), 1.0
        for index, token in enumerate(drafted):
            chance *= chance_of(found, before + drafted[:index], token)
        assert not drafted or chance >= LEAST_CHANCE
        if len(drafted) < 5:  # whatever could come next is too unlikely
            following = [chance_of(found, before + drafted, token) for token in set(text)]
            assert chance * max(following) < LEAST_CHANCE
        lengths[len(drafted)] += 1
    assert lengths[5] > 20
    assert lengths[0] > 0


@pytest.mark.parametrize("text", [[], [3], [3, 4], [5, 5, 5, 5]])
def test_short_texts_draft_little(text: list[int]) -> None:
    ngrams = Ngrams(np.array(text, np.uint32))
    assert ngrams.tokens == len(text)
    assert ngrams.draft([1, 2], 3) == []
    assert ngrams.draft([], 3) == []
    assert ngrams.draft([5], 1) == ([5] if 5 in text else [])


def test_a_run_drafts_from_its_training_text_and_writes_the_same_without(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("One, two, three. " * 50, encoding="utf-8")
    size = {"model.n_layers": 2, "model.d_model": 32, "model.n_heads": 2, "model.context": 64}
    run = vitrine.train(book, other, run=tmp_path / "run", steps=60, settings=size | {"training.batch_size": 4})
    assert 2000 < run.ngrams.tokens < 60_000
    assert run.ngrams.draft(run.tokenizer.encode("One, tw").ids, 1) == run.tokenizer.encode("o").ids
    engine = Engine(run.model(), drafts=run.ngrams)
    engine.settle()
    drafting = engine.drafting  # not where several rows have other bits than one
    passes = Counter[bool]()
    decode = Engine.decode

    def counting(self: Engine, *given: object, ahead: bool = False) -> object:
        passes[bool(self.drafts and self.drafts.tokens)] += 1
        return decode(self, *given, ahead=ahead)

    monkeypatch.setattr(Engine, "decode", counting)
    drafted = run.generate("The ", 300)
    for damage in (lambda folder: (folder / "train-0.bin").unlink(), shutil.rmtree):
        damage(tmp_path / "run" / "tokens")
        without = vitrine.open_run(tmp_path / "run")
        assert without.ngrams.tokens == 0
        assert without.generate("The ", 300) == drafted
    assert passes[True] < passes[False] / 2 or not drafting


def test_of_a_long_text_the_first_tokens_count(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrine.run.SAMPLE", 1000)
    size = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 1, "model.context": 16}
    run = vitrine.train(book, book, run=tmp_path / "run", steps=1, settings=size | {"training.batch_size": 2})
    assert run.ngrams.tokens == 1000
