"""How well `vitrine health` finds what ails a run: short trainings with a known cause, and healthy ones.

    python -m benchmarks.health [--seeds 4 5 6] [--family qwen3] [--text FILE] [--healthy 100] [--keep FOLDER]

Without --text: tinyshakespeare. Each sick training is made so that its cause is known, and the step at which it shows, by a
rule that does not look at health: the injected step, the first loss above the one at initialisation, the first number that is
not finite, the lowest validation loss. Prints the table of docs/health.md. --keep leaves the runs in a folder, and judges
those that are there already.
"""

import argparse
import contextlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import vitrine
from benchmarks.corpora import tinyshakespeare
from vitrine.config import Settings
from vitrine.inspection.health import examine
from vitrine.optimizers.registry import OPTIMIZERS
from vitrine.presets import PRESETS
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.text.batches import Batches

SIZE = {
    "model.n_layers": 2,
    "model.d_model": 32,
    "model.n_heads": 2,
    "model.context": 32,
    "training.batch_size": 8,
    "training.evaluate_every": 10,
    "training.evaluation_tokens": 2048,
    "recording.keyframe_every": 60,
    "recording.statistics_every": 1,
}
QUICK = {
    "training.precision": "float32",
    "recording.film_frames": 0,
    "recording.text_samples": 0,
    "data.tokenizer": "char",
    "machine.device": "cpu",
    "machine.threads": 1,
}
STEPS, CHARACTERS = 120, 60_000  # 120 steps of 8 x 32 tokens read half of the characters
POISONED = 70, 12  # the steps whose batch is garbage, in turn
HEALTHY_STEPS = 70, 100, 130
FAMILIES = "gpt2", "llama", "qwen3"
RARE = "~"  # its row of the embedding is NaN


@dataclass(frozen=True)
class Made:
    """A training to be made. truth: where it goes wrong, if that was put there."""

    text: str
    held_back: str
    settings: dict[str, Any]
    steps: int = STEPS
    truth: int | None = None
    damage: Callable[[dict[str, Any]], None] | None = None  # of the initial parameters, by name


@dataclass(frozen=True)
class Case:
    """A way to be sick. causes: the headlines that are right; within: so many steps from the truth are right."""

    name: str
    causes: tuple[str, ...]
    make: Callable[[str, str, int], Made]
    truth: Callable[[RunReader, Made], int | None] = lambda reader, made: made.truth
    within: int = 0


def training(text: str, family: str, seed: int, characters: int = CHARACTERS, **settings: Any) -> Made:
    """A healthy one, on a part of the text that the seed chooses."""
    start = seed * characters % max(1, len(text) - characters)
    part = text[start : start + characters]
    train, held = part[: -characters // 10], part[-characters // 10 :]
    return Made(train, held, SIZE | {"model.architecture": family, "training.seed": seed} | settings)


def rate(optimizer: str, factors: Sequence[float]) -> Callable[[str, str, int], Made]:
    """The usual learning rates, times a factor that the seed chooses."""

    def make(text: str, family: str, seed: int) -> Made:
        usual, factor = OPTIMIZERS[optimizer].defaults(SIZE["model.d_model"]), factors[seed % len(factors)]
        rates = {f"optimizer.{name}": usual[name] * factor for name in usual if name.endswith("learning_rate")}
        return training(text, family, seed, **{"optimizer.name": optimizer}, **rates)

    return make


def initialised(optimizer: str, factors: Sequence[float]) -> Callable[[str, str, int], Made]:
    def make(text: str, family: str, seed: int) -> Made:
        chosen = {"optimizer.name": optimizer, "model.init_scale": factors[seed % len(factors)]}
        return training(text, family, seed, **chosen)

    return make


def dead(text: str, family: str, seed: int) -> Made:
    """The units of one MLP are far below zero, by their biases. qwen3 has none there: it is llama then."""
    name = "expand" if family == "gpt2" else "gate"

    def damage(parameters: dict[str, Any]) -> None:
        parameters[f"blocks.1.mlp.{name}.bias"] -= 100

    family = "gpt2" if family == "gpt2" else "llama"
    made = training(text, family, seed, **{"optimizer.name": "adamw", "model.bias": True})
    return replace(made, damage=damage, truth=0)


def over_fitted(text: str, family: str, seed: int) -> Made:
    made = training(text, family, seed, **{"training.evaluate_every": 10})
    return replace(made, text=made.text[:1500], steps=200)


def shifted(text: str, family: str, seed: int) -> Made:
    made = training(text, family, seed)
    return replace(made, held_back=(made.held_back[::-1], made.held_back.upper(), made.held_back.swapcase())[seed % 3])


def not_finite(text: str, family: str, seed: int) -> Made:
    """A row of the embedding is NaN, and its token comes first in a later step. gpt2's is its head, too: it is llama then."""
    made = poisoned(text, "llama" if family == "gpt2" else family, seed)
    clean = training(text, family, seed).text.replace(RARE, " ")
    place = next(i for i, (a, b) in enumerate(zip(clean, made.text, strict=True)) if a != b)
    spoiled = clean[:place] + RARE + clean[place + 1 :]
    row = sorted(set(spoiled + made.held_back)).index(RARE)

    def damage(parameters: dict[str, Any]) -> None:
        parameters["embedding.weight"][row] = float("nan")

    return replace(made, text=spoiled, damage=damage)


def poisoned(text: str, family: str, seed: int) -> Made:
    """The windows of one step are characters drawn at random."""
    made, step = training(text, family, seed), POISONED[seed % len(POISONED)]
    context, batch = made.settings["model.context"], made.settings["training.batch_size"]
    order = Batches([np.arange(len(made.text), dtype=np.uint32)], [], context, batch, 1, seed)
    characters, letters = np.array(list(made.text)), sorted(set(made.text))
    places = order.micro_batch(step, 0).tokens[:, 1:].ravel()
    characters[places] = np.random.default_rng(seed).choice(letters, len(places))
    return replace(made, text="".join(characters), truth=step)


def mislabelled(text: str, family: str, seed: int) -> Made:
    """All characters in another order: each target is as likely after any input."""
    made, draws = training(text, family, seed), np.random.default_rng(seed)
    text, held_back = ("".join(draws.permutation(list(one))) for one in (made.text, made.held_back))
    return replace(made, text=text, held_back=held_back)


def first_above(reader: RunReader, made: Made) -> int | None:
    """The first loss above the one at initialisation."""
    losses = [record.loss for record in reader.steps()]
    ended = next((event.step for event in reader.events() if event.kind == "diverged"), None)
    return next((step for step, loss in enumerate(losses) if not loss <= losses[0] + 0.1), ended)


def lowest(reader: RunReader, made: Made) -> int | None:
    return reader.best_step()


def zero(reader: RunReader, made: Made) -> int | None:
    return 0


HIGH, LOW = (100, 300, 1000), (1e-4, 1e-5, 1e-6)
CASES = [
    *(
        Case(f"rate too high: {name}", ("learning rate too high",), rate(name, HIGH), first_above, 3)
        for name in OPTIMIZERS
    ),
    *(Case(f"rate too low: {name}", ("learning rate too low",), rate(name, LOW)) for name in OPTIMIZERS),
    Case("exploding initialisation", ("initialisation",), initialised("adamw", (300.0, 1000.0, 3000.0)), zero),
    Case("vanishing initialisation", ("initialisation",), initialised("sgd", (1e-5, 1e-6, 1e-7)), zero),
    Case("dead units", ("dead units",), dead, zero),
    Case("over-fitting", ("over-fitting",), over_fitted, lowest, 10),
    Case("shifted validation", ("validation text of another kind",), shifted),
    Case("NaN at step k", ("numbers that are not finite",), not_finite, within=1),
    Case("poisoned batch at step k", ("odd text in one batch",), poisoned),
    Case("wrong labels", ("text without order",), mislabelled),
]


def healthy(text: str, seed: int) -> Iterator[tuple[str, Made]]:
    """34 a seed: presets with smaller batches, and the size of the sick ones, with optimizers and families in turn."""
    sizes = {name: _flat(PRESETS[name]) | {"training.batch_size": 8} for name in ("nano", "sprint", "micro", "demo")}
    sizes["tiny"] = {}
    kinds = [*product(("tiny", "nano"), OPTIMIZERS, FAMILIES), *product(("sprint",), ("adamw", "muon"), FAMILIES)]
    kinds += [*product(("micro",), ("muon",), FAMILIES), ("demo", "adamw", "gpt2")]
    for number, (size, optimizer, family) in enumerate(kinds):
        chosen = sizes[size]
        if optimizer != "muon" and size != "demo":  # the rates of the preset are Muon's
            chosen = {name: value for name, value in chosen.items() if not name.startswith("optimizer.")}
        chosen = chosen | {"optimizer.name": optimizer, "model.architecture": family, "training.evaluate_every": 20}
        steps = HEALTHY_STEPS[(number + seed) % len(HEALTHY_STEPS)]
        made = training(text, family, seed, 500_000, **chosen)
        yield f"{size}-{optimizer}-{family}-{steps}", replace(made, steps=steps)


def _flat(settings: Settings) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}


def make(made: Made, folder: Path) -> RunReader:
    """Train it."""
    if (folder / "run").exists():
        return RunReader(folder / "run")
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text(made.text, encoding="utf-8")
    (folder / "held.txt").write_text(made.held_back, encoding="utf-8")
    settings = QUICK | {"data.validation": str(folder / "held.txt")} | made.settings
    parent = ""
    if made.damage:
        from vitrine.runs.retention import keyframe_path
        from vitrine.training.checkpoint import load_keyframe, save_keyframe

        vitrine.train(folder / "train.txt", run=folder / "parent", settings=settings, steps=1)
        kept = load_keyframe(keyframe_path(folder / "parent" / KEYFRAMES, 0))
        made.damage(kept.parameters)
        save_keyframe(folder / "parent" / KEYFRAMES, kept)
        parent = f"{folder / 'parent'}@0"
    with contextlib.suppress(vitrine.DivergedError):
        vitrine.train(folder / "train.txt", run=folder / "run", settings=settings, steps=made.steps, parent=parent)
    return RunReader(folder / "run")


def judge(case: Case, reader: RunReader, made: Made) -> str:
    """How well the headline says what ails a run."""
    truth, head = case.truth(reader, made), examine(reader).headline
    if case.truth is first_above and truth is None:
        return NOT_SICK
    if head is None:
        return MISSED
    if head.blame not in case.causes:
        return WRONG
    return RIGHT if truth is None or (head.step is not None and abs(head.step - truth) <= case.within) else OTHER_STEP


NOT_SICK, MISSED, WRONG, OTHER_STEP, RIGHT = "not sick", "missed", "wrong cause", "other step", "right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6])
    parser.add_argument("--family", choices=FAMILIES, default="qwen3")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--healthy", type=int, default=100)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    text = (given.text or tinyshakespeare()).read_text(encoding="utf-8")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        os.environ.setdefault("VITRINE_CACHE", str(folder / "cache"))
        sick(folder, text, given.family, given.seeds)
        well(folder, [one for seed in given.seeds for one in healthy(text, seed)][: given.healthy])


def sick(folder: Path, text: str, family: str, seeds: Sequence[int]) -> None:
    """The table of the sick runs."""
    print(
        f"| {family}, seeds {', '.join(map(str, seeds))} | runs | right cause | at the right step | wrong cause | missed |"
    )
    print("|---|---|---|---|---|---|")
    total = Counter[str]()
    for case in CASES:
        found = Counter[str]()
        for seed in seeds:
            made = case.make(text, family, seed)
            reader = make(made, folder / "-".join([family, str(seed), *re.findall(r"\w+", case.name)]))
            found[judge(case, reader, made)] += 1
        total += found
        print(row(case.name, found), flush=True)
    print(row("all", total))
    print(f"\n{total[NOT_SICK]} more runs with a high rate were not sick: no loss rose above the first one.\n")


def row(name: str, found: Counter[str]) -> str:
    cause, count = found[RIGHT] + found[OTHER_STEP], found.total() - found[NOT_SICK]
    return f"| {name} | {count} | {cause} | {found[RIGHT]} | {found[WRONG]} | {found[MISSED]} |"


def well(folder: Path, runs: Sequence[tuple[str, Made]]) -> None:
    """The false alarms of the healthy runs."""
    alarms = Counter[str]()
    for name, made in runs:
        head = examine(make(made, folder / f"{name}-{made.settings['training.seed']}")).headline
        if head:
            alarms[head.level] += 1
            print(
                f"{name}, seed {made.settings['training.seed']}: {head.level}, {head.blame}: {head.sentence}",
                flush=True,
            )
    print(f"| {len(runs)} healthy runs | {alarms['ill']} errors | {alarms['watch']} warnings |")


if __name__ == "__main__":
    main()
