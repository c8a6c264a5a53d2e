"""Text and logits from the page are the library's; what nobody reads is not written."""

import contextlib
import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from tests.studio.conftest import Studio, until
from vitrine.generation.generate import generate
from vitrine.model.flat import digest as digest_of
from vitrine.run import Run


@pytest.fixture(scope="module")
def run(runs: Path) -> Run:
    return Run(runs / "small")


def written(studio: Studio, **body: object) -> list[dict]:
    with studio.client.stream("POST", "/api/runs/small/generate", json=body) as answer:
        assert answer.status_code == 200
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def test_logits_are_those_of_the_model_at_a_keyframe(studio: Studio, run: Run):
    found = studio.post("runs/small/next", prompt="The ", step=160).json()
    ids = run.tokenizer.encode("The ").ids
    logits = run.model(160)(torch.tensor([ids]))[0, -1].float().tolist()
    assert found == {"step": 160, "tokens": ids, "logits": logits, "exact": True}


def test_logits_of_a_step_between_are_those_of_its_parameters(studio: Studio, run: Run):
    found = studio.post("runs/small/next", prompt="The ", step=153).json()
    opened = run.step(153)
    with opened.model() as decoder, torch.no_grad():
        ids = run.tokenizer.encode("The ").ids
        logits = decoder(torch.tensor([ids]))[0, -1].float().tolist()
    assert found["logits"] == logits
    assert found["logits"] != studio.post("runs/small/next", prompt="The ", step=160).json()["logits"]


def test_a_text_comes_in_pieces_and_is_the_library_s(studio: Studio, run: Run):
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}
    *pieces, last = written(studio, prompt="The ", step=160, max_new_tokens=40, seed=3, **settings)
    expected = run.generate("The ", 40, 3, 160, **settings).text
    digest = json.loads((run.path / "keyframes" / "step-00000160" / "manifest.json").read_text())["digest"]
    assert last == {
        "done": True,
        "step": 160,
        "text": expected,
        "exact": True,
        "digest": {"before": digest, "after": digest},
    }
    assert "The " + "".join(piece["text"] for piece in pieces) == expected
    assert len(pieces) > 10


def test_a_text_at_a_step_between_is_of_the_parameters_of_that_step(studio: Studio, run: Run):
    last = written(studio, prompt="The ", step=153, max_new_tokens=5)[-1]
    assert (last["step"], last["exact"]) == (153, True)
    opened = run.step(153)
    with opened.model() as decoder:
        digest = digest_of(decoder.state_dict())
        assert last["text"] == generate(decoder, run.tokenizer, "The ", 5, run.config.sampling, 1).text
    assert last["digest"] == {"before": digest, "after": digest}


def test_a_text_of_a_step_that_nobody_waits_for_is_not_replayed_to(studio: Studio):
    hasty = httpx.Client(base_url=studio.url, headers=studio.client.headers, timeout=0.05, verify=False)
    with hasty, contextlib.suppress(httpx.TimeoutException):
        hasty.post("/api/runs/small/generate", json={"prompt": "The ", "step": 29})
    until(lambda: not studio.json("runs/small/progress", step=29)["working"])
    assert written(studio, prompt="The ", step=1, max_new_tokens=1)[-1]["step"] == 1


@pytest.mark.parametrize(("body", "status", "words"), [
    ({"prompt": "☃", "step": 160}, 400, "never seen"),
    ({"prompt": "a", "step": 161}, 404, "has made 160 steps"),
    ({"prompt": "a", "step": 160, "top_p": 0}, 400, "sampling.top_p must be greater than 0"),
    ({"prompt": "a", "step": 160, "temperature": -1}, 400, "sampling.temperature must be at least 0"),
    ({"prompt": "a", "step": 160, "max_new_tokens": 401}, 422, "max_new_tokens"),
    ({"prompt": "a"}, 422, "step"),
])  # fmt: skip
def test_what_cannot_be_written_is_said_in_a_sentence(studio: Studio, body: dict, status: int, words: str):
    answer = studio.post("runs/small/generate", **body)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_page_that_goes_stops_the_writing(studio: Studio):
    began_s = time.monotonic()
    written(studio, prompt="The ", step=160, max_new_tokens=400)
    whole_s = time.monotonic() - began_s
    with httpx.Client(base_url=studio.url, headers=studio.client.headers, timeout=300, verify=False) as client:
        for _ in range(5):
            body = {"prompt": "The ", "step": 160, "max_new_tokens": 400}
            with client.stream("POST", "/api/runs/small/generate", json=body) as answer:
                next(answer.iter_lines())
    began_s = time.monotonic()
    until(lambda: studio.post("runs/small/next", prompt="The ", step=160).status_code == 200)
    assert time.monotonic() - began_s < 3 * whole_s  # the five together would take five times as long


def test_no_parameter_changes_by_writing(studio: Studio):
    before = studio.cells("small", tensor="embedding.weight", step=160, mode="value", rows=100)
    written(studio, prompt="The ", step=160, max_new_tokens=5)
    assert np.array_equal(before, studio.cells("small", tensor="embedding.weight", step=160, mode="value", rows=100))
