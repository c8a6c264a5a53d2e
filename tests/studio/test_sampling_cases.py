"""The page filters logits itself: web/tests/sampling.test.ts compares it with these cases, made by generate.py.

`python tests/studio/test_sampling_cases.py` writes them again.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrine.config import SamplingConfig
from vitrine.generation.sampling import filter_logits

FILE = Path(__file__).parents[2] / "web" / "tests" / "sampling-cases.json"
SETTINGS: list[dict[str, float]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 500},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.2},
    {"repetition_penalty": 1.4},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.7, "min_p": 0.05, "repetition_penalty": 1.2},
]


def cases() -> list[dict[str, Any]]:
    draws, made = np.random.default_rng(1), []
    for number, settings in enumerate(SETTINGS * 2):
        logits = draws.normal(0, 2.5, 65).astype(np.float32)
        if number >= len(SETTINGS):
            logits = np.round(logits * 2) / 2  # ties
        seen = [3, 3, 17, 40]
        sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0} | settings
        scores = filter_logits(torch.tensor(logits)[None], SamplingConfig(**sampling), torch.tensor([seen]))
        probabilities = scores.double().softmax(-1)[0].tolist()
        made.append({"logits": logits.tolist(), "seen": seen, "sampling": sampling, "probabilities": probabilities})
    return made


def test_the_cases_that_the_page_is_tested_with_are_what_filter_logits_says() -> None:
    for written, made in zip(json.loads(FILE.read_text()), cases(), strict=True):
        assert written["logits"] == made["logits"]
        assert written["sampling"] == made["sampling"]
        assert written["probabilities"] == pytest.approx(made["probabilities"], abs=1e-9)


if __name__ == "__main__":
    FILE.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases()) + "\n]\n")
