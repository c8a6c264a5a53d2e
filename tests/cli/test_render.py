"""The text form of results: every number is there, aligned, whatever is listening."""

from pathlib import Path

import pytest

from vitrine.cli.render import render, table
from vitrine.exchange.hf_export import Exported
from vitrine.exchange.hf_import import Imported
from vitrine.inspection.gradient_check import GradientCheck
from vitrine.inspection.verify import Check
from vitrine.studio.report.build import Report
from vitrine.studio.report.command import Written
from vitrine.text.cache import Contents, Part
from vitrine.training.evaluation import Evaluation


def test_a_table_aligns_text_to_the_left_and_numbers_to_the_right():
    rows = [("blocks.0.mlp", "4 x 4", 16), ("語", "1", "1,234")]
    assert table(rows, ("tensor", "shape", "parameters"), left=2) == [
        "tensor        shape  parameters",
        "blocks.0.mlp  4 x 4          16",
        "語            1           1,234",  # of double width
    ]


def test_a_table_is_never_cut_or_wrapped_and_its_cells_are_taken_literally(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    name = "x" * 500 + "[bold][3,7] :smile: 1.25"
    assert table([(name, "[/]")]) == [f"{name}  [/]"]
    assert table([]) == []


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (
            Evaluation(1.5, 12_000, 2.25),
            "loss 1.5000 nats per token, 2.2500 bits per byte, perplexity 4.48, over 12,000 tokens",
        ),
        (Evaluation(1.5, 12_000, None), "loss 1.5000 nats per token, perplexity 4.48, over 12,000 tokens"),
        (Check("keyframe 0", False, "1 bit differs"), "FAILED  keyframe 0: 1 bit differs"),
        (
            GradientCheck("w[3]", 7, 1.5, 0.25, 0.26, (0.5, -2.0), (1.75, 1.25)),
            "nudge w[3], by the loss of this batch in float64: 1.5\n"
            "gradient: 0.25 in float64, 0.26 in training's own number format\n"
            "moved by  loss  change measured  gradient x move\n"
            "    +0.5  1.75            +0.25            +0.13\n"
            "      -2  1.25            -0.25            -0.52",
        ),
        (
            Exported("out", 7, "GPT2LMHeadModel", 1234, "d"),
            "out: GPT2LMHeadModel, 1,234 parameters, as they were at step 7",
        ),
        (
            Imported("runs/a", "hf:b/c", "llama", 1234, "d"),
            "runs/a: llama, 1,234 parameters from hf:b/c\n"
            "Try next: vitrine generate runs/a, or vitrine train FILE --from runs/a@0",
        ),
        (
            Contents(Path("c"), {"tokens": Part(2, 3_000_000, 1_000_000), "corpora": Part(1, 500_000)}, True, 1),
            "cache       c\n"
            "tokens      2 token files of texts, 3.0 MB, 1.0 MB of it in run folders, too\n"
            "corpora     1 texts, 0.5 MB\n"
            "All of it was removed: 2.5 MB are free again. Runs that keep their token files are as they were; a run that points into "
            "the cache (more than 64 MiB of ids) makes them again from its text.\n"
            "1 texts that were pasted into the studio or came through a pipe stay in c/corpora: there may be no other copy "
            "of them.",
        ),
        (
            Written(
                Path("r.html"),
                Report(
                    b"x" * 20_000,
                    "r",
                    [0, 5],
                    "a[3,7]",
                    9,
                    90,
                    400,
                    1234,
                    False,
                    [0, 90],
                    "float32",
                    "",
                    {"film": 12_345_678, "model": 850_000, "answers": 5_000, "page": 9_000},
                    {3: "too large."},
                ),
                "Look first.",
            ),
            "r.html  0.02 MB: a double click opens it, without a network\n"
            "film   12.35 MB  9 of 90 frames, 400 of 1,234 parameters, without gradients and updates\n"
            "model  0.85 MB   at steps 0 and 90, in float32: the page can run the model\n"
            "steps  0.01 MB   in full: 0, 5; the history of a[3,7]; curves, text, health\n"
            "page   0.01 MB\n"
            "Step 3 is not in it: too large.\n"
            "Look first.",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_result_has_its_numbers_in_its_text(result, said):
    assert render(result) == said
