"""Verdicts on runs: quiet on a healthy one, and each of them speaks up on a run that has its illness."""

import contextlib
import json
import shutil
import sqlite3
import string
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vitrine as package
from benchmarks.health import CASES, RIGHT, first_above, judge, make
from tests.conftest import made_once
from vitrine.cli.render import render
from vitrine.inspection.health import Health, examine, probe_verdicts
from vitrine.inspection.health_advice import Cause, Level, Verdict, advise, remedy
from vitrine.inspection.health_by_history import history_headline, history_verdicts
from vitrine.inspection.health_history import History
from vitrine.inspection.health_rules import RULES, Look, attention
from vitrine.runs.reader import RunReader
from vitrine.text.builtin import python_topics
from vitrine.training.tokens import open_tokens

NAMES = [
    "loss at birth",
    "divergence",
    "loss spikes",
    "stalled learning",
    "update-to-weight ratio",
    "gradients by layer",
    "over-fitting",
    "dead units",
    "attention",
    "output logits",
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
    assert set(told) == {"healthy", "headline", "verdicts"}
    assert set(told["verdicts"][0]) == {"name", "level", "sentence", "blame", "cause", "evidence", "step", "plot"}
    assert told["headline"] in told["verdicts"]
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
        "import sys; from vitrine.inspection.health_by_history import history_verdicts; from vitrine.runs.reader import RunReader; "
        f"verdicts = history_verdicts(RunReader({str(healthy.path)!r})); "
        "assert {v.level for v in verdicts} == {'ok'}, verdicts; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_of_few_steps_is_unknown_and_says_how_many_it_needs(train):
    verdicts = _by_name(examine(train(steps=5)))
    for name in ("gradients by layer", "update-to-weight ratio", "stalled learning"):
        assert verdicts[name].level == "unknown"
        assert "recorded" in verdicts[name].sentence
        assert verdicts[name].evidence["needed"] > 5 - verdicts[name].evidence.get("steps", 5)
    assert {verdicts[name].level for name in ("loss at birth", "divergence", "loss spikes")} == {"ok"}


def test_a_run_without_recording_is_not_called_healthy_by_its_history(train):
    run = train(steps=20, **{"recording.enabled": False})
    assert {v.level for v in history_verdicts(run)} == {"unknown"}
    assert not Health("r", history_verdicts(run)).healthy


def test_the_stored_history_of_the_preset_small_has_no_errors(tmp_path):
    """200 steps of 25 M parameters, with batches of 2 windows and in float32: too long to make in a test."""
    with tarfile.open(Path(__file__).parents[1] / "runs" / "history-of-small.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    verdicts = history_verdicts(RunReader(tmp_path / "small"))
    assert {verdict.level for verdict in verdicts} <= {"ok", "watch", "unknown"}
    known = {verdict.name: verdict.level for verdict in verdicts}
    assert known["divergence"] == known["loss at birth"] == known["stalled learning"] == "ok"


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
    assert "the gradient norm had a spike 2 steps before" in verdict.sentence
    assert verdict.blame == "learning rate too high"


def test_a_spike_without_one_of_the_gradient_points_at_the_text(edited):
    verdict = _history(edited("UPDATE steps SET loss = 2 * loss WHERE step = 80"))["loss spikes"]
    assert verdict.blame == "odd text in one batch"
    assert verdict.cause == (
        "The text of that batch is odd: no step before it was unusual. Read the batch; no hyperparameter has to change."
    )


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


@pytest.mark.parametrize(("optimizer", "level"), [("sgd", "watch"), ("adamw", "ok"), ("muon", "ok"), ("lion", "ok")])
def test_clipping_every_step_is_to_watch_only_where_it_shortens_the_steps(optimizer, level, train):
    verdict = _history(train(steps=20, **{"optimizer.clip": 1e-3, "optimizer.name": optimizer}))["gradients by layer"]
    assert (verdict.level, verdict.evidence["clipped"]) == (level, 1.0)
    assert ("optimizer.clip = 0.001: raise it" in verdict.cause) == (level == "watch")


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


@pytest.mark.parametrize(("step", "level"), [(120, "ok"), (1000, "watch")])
def test_one_head_that_looks_at_all_alike_is_to_watch_once_it_had_time(step, level):
    entropy = np.array([[0.8, 0.7], [0.9, 0.999]])
    looks = [Look(at, 256, np.zeros(2), entropy, np.ones((2, 2)), 1.0) for at in (0, step)]
    verdict = attention(looks)
    assert (verdict.level, verdict.blame) == (level, "a head that sees all tokens alike")
    assert verdict.cause.startswith("blocks.1 head 1 ")


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
    assert (verdict.level, verdict.blame) == ("ill", "over-fitting")
    assert verdict.evidence["best_step"] == run.best_step() == verdict.step
    assert f"after {200 * 8 * 32 / 1050:.2g} epochs" in verdict.sentence
    assert f"--step best goes back to step {run.best_step()}" in verdict.cause


def test_a_gap_before_one_and_a_half_epochs_is_for_the_text_that_is_held_back(train, tmp_path, prose):
    (tmp_path / "backwards.txt").write_text(prose[-6000::-1])
    run = train(steps=60, **{"data.validation": str(tmp_path / "backwards.txt"), "training.evaluate_every": 20})
    verdict = _history(run)["over-fitting"]
    assert (verdict.level, verdict.blame) == ("watch", "validation text of another kind")
    assert verdict.evidence["gap"] > 0.5
    assert verdict.cause.startswith("In 0.26 epochs no text is learned by heart")


def test_without_a_count_of_the_text_no_number_of_epochs_is_made_up(edited):
    verdict = _history(edited("DELETE FROM facts WHERE name = 'reading'"))["over-fitting"]
    assert verdict.evidence["epochs"] is None
    assert "an unknown number of epochs" in verdict.sentence


def test_shuffled_text_is_blamed_and_not_the_learning_rate(train, prose):
    text = "".join(np.random.default_rng(1).permutation(list(prose)))
    verdict = _history(train(text=text))["stalled learning"]
    assert (verdict.level, verdict.blame) == ("ill", "text without order")
    assert abs(verdict.evidence["order"]) < 0.05


def test_what_a_token_tells_of_the_next_is_counted_right(healthy):
    tokens = np.asarray(open_tokens(healthy).train[0], np.int64)
    pairs = Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    one, two = (np.array([*counts.values()]) / counts.total() for counts in (Counter(tokens.tolist()), pairs))
    frequencies, order = History(healthy).order
    assert frequencies == pytest.approx(-(one * np.log(one)).sum())
    # Two shuffled tokens come to twice the entropy of one, less what few tokens seem to tell by chance.
    assert order == pytest.approx(2 * frequencies + (two * np.log(two)).sum(), abs=0.06)


def test_learning_that_never_began_is_ill(too_slow):
    verdict = _history(too_slow)["stalled learning"]
    assert (verdict.level, verdict.blame) == ("ill", "learning rate too low")
    assert "optimizer.learning_rate = 1e-12: try 0.03, as is usual for muon at this width" in verdict.cause
    assert "Next to nothing" in verdict.cause


def test_a_plateau_is_to_watch_while_the_learning_rate_is_up_and_normal_once_it_is_down(edited):
    plateau = edited("UPDATE steps SET loss = 2.5 + 0.01 * (step % 3) WHERE step > 60")
    assert _history(plateau)["stalled learning"].level == "ok"
    plateau = edited("UPDATE steps SET learning_rate = 0.03")
    assert _history(plateau)["stalled learning"].level == "watch"


@pytest.fixture(scope="module")
def sgd(train):
    """The learning rate of the issue: the loss jumps at step 1."""
    return train(steps=40, **{"optimizer.name": "sgd", "optimizer.learning_rate": 30.0})


def test_sgd_at_a_learning_rate_of_30_has_one_headline_with_its_first_departure(sgd):
    health, losses = examine(sgd), [record.loss for record in sgd.steps()]
    head = health.headline
    assert (head.blame, head.level, head.step) == ("learning rate too high", "ill", 1)
    table = sgd.statistics("head.weight")
    moved, norm = float(table["update_norm"][0]), float(table["weight_norm"][0])
    assert head.sentence.startswith(
        f"at step 1 the loss rose from {losses[0]:.2f} to {losses[1]:.2f}; the update of step 0 moved head.weight most: "
        f"by {moved:.3g}, {moved / norm:.0f} times its norm; it ends at "
    )
    assert head.cause == (
        "The steps are too long. optimizer.learning_rate = 30: try 0.1, as is usual for sgd at this width. "
        "optimizer.clip = 1 is on, but a step may still have length 30."
    )
    first, advice, *rest = render(health).splitlines()
    assert first.split(maxsplit=1)[1].startswith("learning rate too high  at step 1 the loss rose")
    assert advice.strip().startswith(head.cause)
    assert not [line for line in rest if "optimizer." in line]  # the rest repeats no advice, and contradicts none


def test_without_a_clip_the_advice_is_to_set_one(train):
    run = train(steps=20, **{"optimizer.name": "sgd", "optimizer.learning_rate": 30.0, "optimizer.clip": 0.0})
    assert "Set optimizer.clip = 1." in examine(run).headline.cause


def test_a_rate_near_the_usual_one_is_lowered_to_a_third(healthy):
    verdict = Verdict(
        name="divergence", level=Level.ERROR, sentence="", blame=Cause.RATE_HIGH, evidence={"hidden": False}
    )
    (advised,) = advise(healthy.config, [verdict])
    assert "optimizer.adamw_learning_rate = 0.02: try 0.0067 (0.02 is usual for muon)" in advised.cause


def test_no_two_pieces_of_advice_contradict(healthy):
    """One of each cause, whichever is the headline: no hyperparameter is to change in two ways."""
    blamed = [
        Verdict(name=cause, level=Level.WARNING, sentence="", blame=cause, evidence={}, step=1) for cause in Cause
    ]
    for head in blamed:
        given = dict[str, set[str]]()
        verdicts = [replace(head, level=Level.ERROR), *(verdict for verdict in blamed if verdict is not head)]
        for verdict in advise(healthy.config, verdicts):
            text, changes = remedy(verdict, healthy.config)
            for name, change in changes.items() if verdict.cause == text else ():
                given.setdefault(name, set()).add(change)
        assert {len(changes) for changes in given.values()} == {1}
        assert given != {}


def test_a_statistics_row_of_a_nearby_step_says_so(train):
    history = History(train(steps=12, **{"recording.statistics_every": 4}))
    assert (history.moved(6).step, history.moved(6).row) == (6, 4)
    assert str(history.moved(6)).endswith(" (as of step 4, the nearest with statistics)")
    assert "nearest" not in str(history.moved(4))


def test_where_no_statistics_are_recorded_what_moved_most_is_not_guessed(edited, sgd):
    verdict = _history(edited("DELETE FROM facts WHERE name = 'statistics'", of=sgd))["divergence"]
    assert "what moved most is not known, as no statistics of tensors are recorded" in verdict.sentence
    assert "moved_most" not in verdict.evidence


def test_weights_so_small_that_the_signal_vanishes_are_blamed(train):
    run = train(steps=20, **{"model.init_scale": 1e-6})
    head = examine(run).headline
    assert (head.blame, head.level, head.step) == ("initialisation", "ill", 0)
    assert head.cause.endswith("model.init_scale = 1e-06: try 1.")


def test_training_that_broke_off_for_its_parameters_names_them_and_since_when(edited):
    run = edited("INSERT INTO events VALUES (120, 0, 'diverged', 'Step 120: x. The update was not made. Try y.')")
    row = run.statistics_at(100).copy()
    row[run.layout().statistic("blocks.1.mlp.gate.weight", "weight_norm")] = np.nan
    verdict = _history(edited("UPDATE statistics SET numbers = ? WHERE step = 100", row.tobytes()))["divergence"]
    assert (verdict.blame, verdict.sentence) == ("numbers that are not finite", "broke off at step 120: x")
    assert "blocks.1.mlp.gate.weight has numbers that are not finite since step 100" in verdict.cause


def test_the_headline_by_the_history_names_step_tensor_and_cause(healthy, too_fast, edited):
    assert history_headline(healthy) is None
    head, verdict = history_headline(too_fast), _history(too_fast)["divergence"]
    assert head == {
        "level": "ill",
        "step": verdict.step,
        "diverged_at": None,
        "tensor": verdict.evidence["moved_most"],
        "blame": "learning rate too high",
        "sentence": verdict.sentence,
        "cause": verdict.cause,
    }
    row = edited("INSERT INTO events VALUES (120, 0, 'diverged', 'Step 120: x.')").statistics_at(100).copy()
    layout = healthy.layout()
    row[layout.statistic("blocks.1.mlp.gate.weight", "weight_norm")] = np.nan
    head = history_headline(edited("UPDATE statistics SET numbers = ? WHERE step = 100", row.tobytes()))
    assert (head["diverged_at"], head["step"], head["tensor"]) == (120, 119, "blocks.1.mlp.gate.weight")


def test_a_loss_that_exploded_and_never_learned_again_departed_for_long(train):
    """At 6 the numbers are so large that every unit is dead: the loss is that of guessing again."""
    run = train(steps=20, **{"optimizer.name": "sgd", "optimizer.learning_rate": 30.0, "optimizer.clip": 0.0})
    losses = [record.loss for record in run.steps()]
    departure = History(run).departure
    assert departure
    assert (departure.place, losses[-1] < losses[1]) == (1, True)
    assert _history(run)["update-to-weight ratio"].blame == "learning rate too high"


SICK = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def topics():
    return python_topics().read_text(encoding="utf-8")


@pytest.mark.full
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("case", SICK)
def test_each_sick_run_has_its_cause_at_its_step_as_headline(case, family, topics, tmp_path):
    if (case, family) == ("shifted validation", "gpt2"):
        pytest.xfail("told second, below a warning for the update-to-weight ratio of its positions: see docs/health.md")
    made = SICK[case].make(topics, family, 1)
    reader = make(made, tmp_path / "sick")
    if SICK[case].truth is first_above and first_above(reader, made) is None:
        pytest.skip("no loss rose above the first one: this run is not sick")
    assert judge(SICK[case], reader, made) == RIGHT, render(examine(reader))


@pytest.mark.full
@pytest.mark.parametrize("preset", ["nano", "sprint", "micro", "mini"])
def test_a_preset_is_healthy_after_200_steps(preset, topics, tmp_path):
    (tmp_path / "topics.txt").write_text(topics)
    # A quarter of mini's time: three minutes on two cores.
    measured = {"training.evaluation_tokens": 2048, "training.final_evaluation_tokens": 4096}
    smaller = measured | {"training.batch_size": 4} if preset == "mini" else {}
    package.train(tmp_path / "topics.txt", run=tmp_path / "run", preset=preset, settings=smaller, steps=200)
    health = examine(RunReader(tmp_path / "run"))
    assert health.headline is None, render(health)


@pytest.mark.full
def test_the_demo_is_healthy(topics, tmp_path):
    (tmp_path / "topics.txt").write_text(topics)
    package.train(tmp_path / "topics.txt", run=tmp_path / "run", preset="demo", steps=300)
    health = examine(RunReader(tmp_path / "run"))
    assert health.headline is None, render(health)


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
