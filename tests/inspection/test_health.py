"""Verdicts on runs: quiet on a healthy one, and each of them speaks up on a run that has its illness."""

import contextlib
import json
import shutil
import sqlite3
import string
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest

import vitrine as package
from tests.conftest import made_once
from vitrine.cli.render import render
from vitrine.inspection.health import Health, examine, history_verdicts, probe_verdicts
from vitrine.inspection.health_rules import RULES, Level, Verdict
from vitrine.runs.reader import RunReader

NAMES = [
    "loss at birth",
    "loss spikes",
    "divergence",
    "gradients by layer",
    "update-to-weight ratio",
    "dead units",
    "attention",
    "output logits",
    "over-fitting",
    "stalled learning",
]
SETTINGS = {
    "model.n_layers": 2,
    "model.d_model": 32,
    "model.n_heads": 2,
    "model.context": 32,
    "training.batch_size": 8,
    "training.evaluate_every": 10,
    "training.evaluation_tokens": 512,
    "training.precision": "float32",
    "recording.keyframe_every": 20,
    "recording.film_frames": 0,
    "recording.text_samples": 0,
    "recording.statistics_every": 1,
    "data.tokenizer": "char",
    "machine.device": "cpu",
    "machine.threads": 1,
}
ADAMW = {"optimizer.name": "adamw", "model.architecture": "gpt2"}


@pytest.fixture(scope="module")
def train(tmp_path_factory, prose):
    """Train a tiny run to its end, or until it diverges. The workers of the tests share each: change a copy."""

    def run(steps=120, text=prose, parent="", **settings):
        def make(folder):
            (folder / "text.txt").write_text(text)
            chosen = SETTINGS | settings
            with contextlib.suppress(package.DivergedError):
                package.train(folder / "text.txt", run=folder / "r", settings=chosen, steps=steps, parent=parent)

        asked = zlib.crc32(repr((steps, text, parent, settings)).encode())
        return RunReader(made_once(tmp_path_factory, f"health-{asked}", make) / "r")

    return run


@pytest.fixture(scope="module")
def healthy(train):
    return train()


@pytest.fixture(scope="module")
def healthy_gpt2(train):
    return train(**ADAMW)


@pytest.fixture(scope="module")
def too_fast(train):
    """A thousand times the learning rates that suit it."""
    return train(**{"optimizer.learning_rate": 30.0, "optimizer.adamw_learning_rate": 10.0})


@pytest.fixture(scope="module")
def too_slow(train):
    return train(**{"optimizer.learning_rate": 1e-12, "optimizer.adamw_learning_rate": 1e-12})


@pytest.fixture
def edited(healthy, tmp_path):
    """A copy of the healthy run whose history is changed by SQL."""

    def edit(query, *values, of=healthy):
        if not (tmp_path / "copy").exists():
            shutil.copytree(of.path, tmp_path / "copy")
        with contextlib.closing(sqlite3.connect(tmp_path / "copy/run.sqlite")) as history, history:
            history.execute(query, values)
        return RunReader(tmp_path / "copy")

    return edit


def test_the_rules_stand_in_the_order_of_the_verdicts():
    assert [rule.name for rule in RULES] == NAMES


def test_a_healthy_run_says_that_it_is_healthy(healthy):
    health = examine(healthy)
    assert [(v.name, v.level) for v in health.verdicts] == [(name, "ok") for name in NAMES]
    assert health.healthy
    last = render(health).splitlines()[-1]
    assert last == "healthy: 10 verdicts, no problem found"


def test_a_healthy_gpt2_with_adamw_has_nothing_ill(healthy_gpt2):
    assert [v.name for v in examine(healthy_gpt2).verdicts if v.level in ("ill", "unknown")] == []


def test_a_healthy_gpt2_with_sgd_has_nothing_ill(train):
    run = train(**{"optimizer.name": "sgd", "model.architecture": "gpt2", "optimizer.momentum": 0.9})
    assert [v.name for v in examine(run).verdicts if v.level in ("ill", "unknown")] == []


def test_every_verdict_has_numbers_and_no_cause_while_it_is_ok(healthy):
    for verdict in examine(healthy).verdicts:
        assert any(character.isdigit() for character in verdict.sentence)
        assert any(isinstance(value, int | float) or len(value) for value in verdict.evidence.values())
        assert (verdict.cause, verdict.step) == ("", None)


def test_json_has_the_same_verdicts_and_null_for_what_is_not_finite(too_fast, edited):
    run = _scale_gradients(edited, "blocks.1.", 0.0)
    told = examine(run).to_json()
    assert set(told) == {"healthy", "verdicts"}
    assert set(told["verdicts"][0]) == {"name", "level", "sentence", "cause", "evidence", "step", "plot"}
    assert next(v for v in told["verdicts"] if v["name"] == "gradients by layer")["evidence"]["ratio"] is None
    for health in (told, examine(too_fast).to_json()):
        assert not health["healthy"]
        assert json.loads(json.dumps(health, allow_nan=False)) == health


def test_the_text_puts_errors_first_with_their_cause_below_and_ends_with_a_sum(too_slow):
    health = examine(too_slow)
    lines = render(health).splitlines()
    causes = [line for line in lines[:-1] if line.startswith(" ")]
    levels = [line.split()[0] for line in lines[:-1] if not line.startswith(" ")]
    assert levels == sorted(levels, key=["error", "warning", "unknown", "ok"].index)
    assert levels[0] == "error"
    assert len(causes) == len([level for level in levels if level in ("error", "warning")])
    assert f"vitrine replay {too_slow.path} --step" in causes[0]
    assert lines[-1].startswith(f"not healthy: 10 verdicts, {levels.count('error')} errors, ")


def test_the_columns_of_the_text_are_aligned():
    verdict = Verdict(name="short", level=Level.OK, sentence="1 of 2", evidence={"n": 1})
    health = Health("r", (verdict, replace(verdict, name="a longer name", level=Level.WARNING, cause="Why.")))
    assert render(health).splitlines() == [
        "warning  a longer name  1 of 2",
        "                        Why.",
        "ok       short          1 of 2",
        "healthy: 2 verdicts, 0 errors, 1 warnings",
    ]


def test_the_history_is_judged_without_torch(healthy):
    code = (
        "import sys; from vitrine.inspection.health import history_verdicts; from vitrine.runs.reader import RunReader; "
        f"verdicts = history_verdicts(RunReader({str(healthy.path)!r})); "
        "assert {v.level for v in verdicts} == {'ok'}, verdicts; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_of_few_steps_is_unknown_and_says_how_many_it_needs(train):
    verdicts = _by_name(examine(train(steps=5)))
    for name in ("loss spikes", "divergence", "gradients by layer", "update-to-weight ratio", "stalled learning"):
        assert verdicts[name].level == "unknown"
        assert "recorded" in verdicts[name].sentence
        assert verdicts[name].evidence["needed"] > 5 - verdicts[name].evidence.get("steps", 5)
    assert verdicts["loss at birth"].level == "ok"


def test_a_run_without_recording_is_not_called_healthy_by_its_history(train):
    run = train(steps=20, **{"recording.enabled": False})
    assert {v.level for v in history_verdicts(run)} == {"unknown"}
    assert not Health("r", history_verdicts(run)).healthy


def test_without_validation_text_over_fitting_is_unknown_and_training_text_is_probed(train):
    verdicts = _by_name(examine(train(steps=20, **{"data.validation": 0.0})))
    assert verdicts["over-fitting"].level == "unknown"
    assert "data.validation = 0" in verdicts["over-fitting"].sentence
    assert verdicts["dead units"].level == "ok"


def test_a_damaged_keyframe_is_named_and_leaves_the_rest_judged(edited):
    run = edited("SELECT 1")
    with open(run.path / "keyframes/step-00000000/model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    verdicts = _by_name(examine(run))
    assert verdicts["attention"].level == "unknown"
    assert "step-00000000" in verdicts["attention"].sentence
    assert verdicts["loss at birth"].level == "ok"


def test_a_loss_at_birth_far_above_guessing_is_ill(train):
    verdict = _history(train(steps=20, **ADAMW, **{"model.init_scale": 50.0}))["loss at birth"]
    assert (verdict.level, verdict.step) == ("ill", 0)
    assert verdict.evidence["loss"] > verdict.evidence["guessing"] + 1.5
    assert "init_scale" in verdict.cause


def test_a_run_with_a_parent_may_begin_far_below_guessing(train, healthy):
    verdict = _history(train(steps=5, parent=f"{healthy.path}@last"))["loss at birth"]
    assert verdict.evidence["difference"] < -0.5
    assert verdict.level == "ok"


def test_random_weights_far_below_guessing_are_ill(edited):
    assert _history(edited("UPDATE steps SET loss = 0.1 WHERE step = 0"))["loss at birth"].level == "ill"


def test_a_spike_is_found_with_the_spike_of_the_gradient_before_it(edited):
    edited("UPDATE steps SET gradient_norm = 30 * gradient_norm WHERE step = 78")
    verdict = _history(edited("UPDATE steps SET loss = 2 * loss WHERE step = 80"))["loss spikes"]
    assert (verdict.level, verdict.step) == ("watch", 80)
    assert list(verdict.evidence["gradient_spike_steps_before"]) == [2]
    assert "gradient norm 2 steps before" in verdict.sentence


def test_a_spike_without_one_of_the_gradient_points_at_the_text(edited):
    verdict = _history(edited("UPDATE steps SET loss = 2 * loss WHERE step = 80"))["loss spikes"]
    assert "no spike of the gradient norm" in verdict.sentence
    assert "text in that batch" in verdict.cause


def test_three_spikes_in_a_short_run_are_ill(edited):
    verdict = _history(edited("UPDATE steps SET loss = 3 * loss WHERE step IN (40, 75, 76, 110)"))["loss spikes"]
    assert verdict.level == "ill"
    assert list(verdict.evidence["steps"]) == [40, 75, 110]


def test_a_thousand_times_the_learning_rate_diverges(too_fast):
    verdict = _history(too_fast)["divergence"]
    assert verdict.level == "ill"
    assert "learning_rate" in verdict.cause


def test_a_loss_that_rose_for_long_and_came_back_is_to_watch(edited):
    verdict = _history(edited("UPDATE steps SET loss = loss + 5 WHERE step BETWEEN 40 AND 60"))["divergence"]
    assert (verdict.level, verdict.evidence["most"]) == ("watch", pytest.approx(5, abs=1))
    assert 36 <= verdict.step <= 44


def test_training_that_broke_off_is_divergence_with_its_step_and_text(edited):
    verdict = _history(edited("INSERT INTO events VALUES (120, 0, 'diverged', 'gradients of x are not finite')"))
    assert verdict["divergence"].level == "ill"
    assert verdict["divergence"].sentence == "broke off at step 120: gradients of x are not finite"
    assert verdict["divergence"].step == 119


def test_training_that_got_past_its_divergence_is_not_ill(edited):
    assert _history(edited("INSERT INTO events VALUES (60, 0, 'diverged', 'x')"))["divergence"].level == "ok"


@pytest.mark.parametrize(("factor", "level"), [(1e-2, "watch"), (1e-5, "ill"), (0.0, "ill")])
def test_a_block_whose_gradients_vanish_is_named(factor, level, edited):
    verdict = _history(_scale_gradients(edited, "blocks.1.", factor))["gradients by layer"]
    assert verdict.level == level
    assert verdict.cause.startswith("blocks.1 ")


def test_gradients_that_explode_are_ill(edited):
    verdict = _history(edited("UPDATE steps SET gradient_norm = 1000 * gradient_norm WHERE step > 100"))
    assert verdict["gradients by layer"].level == "ill"
    assert "explode" in verdict["gradients by layer"].cause


def test_steps_that_are_nearly_all_clipped_are_to_watch(train):
    verdict = _history(train(steps=40, **{"optimizer.clip": 1e-3}))["gradients by layer"]
    assert (verdict.level, verdict.evidence["clipped"]) == ("watch", 1.0)


def test_matrices_that_hardly_move_are_ill(too_slow):
    verdict = _history(too_slow)["update-to-weight ratio"]
    assert verdict.level == "ill"
    assert "hardly move" in verdict.cause
    assert verdict.evidence["ratios"]["embedding.weight"] < 1e-7


def test_matrices_that_move_too_far_are_ill(train):
    verdict = _history(train(**ADAMW, **{"optimizer.learning_rate": 30.0}))["update-to-weight ratio"]
    assert verdict.level == "ill"
    assert "too far" in verdict.cause


def test_gains_and_biases_are_not_judged_by_their_updates(healthy_gpt2):
    ratios = _history(healthy_gpt2)["update-to-weight ratio"].evidence["ratios"]
    assert "blocks.0.mlp.shrink.weight" in ratios
    assert not [name for name in ratios if name.endswith(("gain", "bias"))]


def test_units_that_no_token_opens_are_dead(healthy_gpt2, tmp_path):
    run = _changed(healthy_gpt2, tmp_path, "blocks.1.mlp.expand.bias", lambda bias: bias - 100)
    verdict = _by_name(probe_verdicts(run))["dead units"]
    assert verdict.level == "ill"
    assert list(verdict.evidence["by_layer"][120]) == [pytest.approx(0, abs=0.2), 1]
    assert "blocks.1: 100.0%" in verdict.sentence


def test_attention_that_sees_one_token_is_ill_and_the_head_is_named(healthy_gpt2, tmp_path):
    run = _changed(healthy_gpt2, tmp_path, "blocks.1.attention.query.weight", lambda weight: weight * 1e5)
    verdict = _by_name(probe_verdicts(run))["attention"]
    assert verdict.level == "ill"
    assert verdict.evidence["scores"][120] > 1000 > verdict.evidence["scores"][0]
    assert "(blocks.1 head " in verdict.sentence


def test_one_head_that_looks_at_all_alike_is_only_to_watch(healthy_gpt2, tmp_path):
    run = _changed(healthy_gpt2, tmp_path, "blocks.1.attention.query.weight", np.zeros_like)
    run = _changed(run, tmp_path, "blocks.1.attention.query.bias", np.zeros_like)
    verdict = _by_name(probe_verdicts(run))["attention"]
    assert verdict.level == "watch"
    assert "blocks.1 head" in verdict.cause


def test_logits_that_have_grown_are_ill(healthy, tmp_path):
    run = _changed(healthy, tmp_path, "head.weight", lambda weight: weight * 1000)
    verdict = _by_name(probe_verdicts(run))["output logits"]
    assert verdict.level == "ill"
    assert verdict.evidence["largest"][120] > 256 > min(verdict.evidence["largest"].values())


def test_parameters_that_are_not_finite_are_ill(healthy, tmp_path):
    run = _changed(healthy, tmp_path, "blocks.0.attention.query.weight", lambda weight: weight * np.nan)
    assert {v.level for v in probe_verdicts(run) if v.name != "dead units"} == {"ill"}


def test_text_learned_by_heart_is_over_fitting_and_names_the_best_step(train):
    letters = "".join(np.random.default_rng(1).choice(list(string.ascii_lowercase), 1500))
    run = train(steps=200, text=letters, **{"data.validation": 0.3})
    verdict = _history(run)["over-fitting"]
    assert verdict.level == "ill"
    assert verdict.evidence["best_step"] == run.best_step() == verdict.step
    assert f"--step best goes back to step {run.best_step()}" in verdict.cause


def test_learning_that_never_began_is_ill(too_slow):
    verdict = _history(too_slow)["stalled learning"]
    assert verdict.level == "ill"
    assert "Next to nothing" in verdict.cause


def test_a_plateau_is_to_watch_while_the_learning_rate_is_up_and_normal_once_it_is_down(edited):
    plateau = edited("UPDATE steps SET loss = 2.5 + 0.01 * (step % 3) WHERE step > 60")
    assert _history(plateau)["stalled learning"].level == "ok"
    plateau = edited("UPDATE steps SET learning_rate = 0.03")
    assert _history(plateau)["stalled learning"].level == "watch"


def _by_name(health):
    return {verdict.name: verdict for verdict in getattr(health, "verdicts", health)}


def _history(run):
    return _by_name(history_verdicts(run))


def _scale_gradients(edited, prefix, factor):
    """Multiply the recorded gradient norms of some tensors."""
    run = edited("SELECT 1")
    layout = run.layout()
    for step in range(run.steps_made()):
        row = run.statistics_at(step).copy()
        for name in layout.tensors:
            if name.startswith(prefix):
                row[layout.statistic(name, "gradient_norm")] *= factor
        edited("UPDATE statistics SET numbers = ? WHERE step = ?", row.tobytes(), step)
    return run


def _changed(run, tmp_path, name, change):
    """A copy of a run, one tensor of whose last keyframe is another."""
    import torch

    from vitrine.runs.retention import keyframe_path, keyframe_steps
    from vitrine.training.checkpoint import load_keyframe, save_keyframe

    if run.path != tmp_path / "copy":
        shutil.copytree(run.path, tmp_path / "copy")
    folder = tmp_path / "copy/keyframes"
    kept = load_keyframe(keyframe_path(folder, keyframe_steps(folder)[-1]))
    tensor = torch.from_numpy(change(kept.parameters[name].numpy()))
    save_keyframe(folder, replace(kept, parameters=kept.parameters | {name: tensor}))
    return RunReader(tmp_path / "copy")
