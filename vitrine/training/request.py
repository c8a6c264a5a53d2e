"""Resolves a request into every hyperparameter and the token ids: layers, early checks, tokens, size, steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vitrine.config import Config, Settings, load_toml, merge
from vitrine.errors import ConfigError, CorpusError, RunError
from vitrine.presets import Facts, choose_size, derive, preset_settings
from vitrine.recording.reporter import Reporter
from vitrine.runs.chosen import GIVEN, Chosen, Layer, in_file, who_chose
from vitrine.runs.reader import TOKENIZER, RunReader
from vitrine.text import token_files
from vitrine.text.builtin import is_pipe, located
from vitrine.text.ids import validation_beside
from vitrine.text.sources import Reading
from vitrine.training import timing
from vitrine.training.checkpoint import Snapshot, load_step
from vitrine.training.checks import check_loggers, check_memory, check_processes, check_tokens
from vitrine.training.device import best_device, check_device, matrix_rate, physical_cores, prefers_bfloat16
from vitrine.training.distributed import Processes

STAND_IN = 256  # stands for the vocabulary size until the tokenizer is known


@dataclass(frozen=True)
class Request:
    """What a user asks for. Settings are layered: parent run, preset, file, settings; later ones win.

    corpus: files, folders, globs or hf:owner/name.
    run: the new run's folder; empty: a new one below runs/.
    steps, target_loss: 0: not given. for_s: seconds that training may take; 0: no limit.
    parent: "RUN@STEP", whose parameters the run starts from; empty: random ones.
    """

    corpus: tuple[str, ...] = ()
    run: str = ""
    preset: str = ""
    config_file: str = ""
    settings: Settings | None = None
    steps: int = 0
    for_s: float = 0.0
    target_loss: float = 0.0
    parent: str = ""

    @property
    def auto(self) -> bool:
        """Whether the size is chosen from the text and the time."""
        return self.preset == "auto" or not (self.preset or self.parent)


@dataclass(frozen=True)
class Draft:
    """A partly resolved request. Each function below takes one, and returns one that is further resolved.

    own: the settings of the file and of the request itself. layers: all settings; later ones win.
    """

    request: Request
    parent: Snapshot | None
    own: Settings
    layers: tuple[Layer, ...]
    facts: Facts

    @cached_property
    def settings(self) -> Settings:
        """All layers, merged."""
        return merge(*(layer.settings for layer in self.layers))

    @cached_property
    def derived(self) -> tuple[Config, dict[str, str]]:
        """Every hyperparameter, as far as known, and how those were derived that no layer has."""
        return derive(self.settings, self.facts)

    @property
    def config(self) -> Config:
        """Every hyperparameter, as far as known."""
        return self.derived[0]

    @property
    def chosen(self) -> dict[str, Chosen]:
        """Who chose each hyperparameter, by `section.key`."""
        config, derived = self.derived
        return who_chose(self.layers, derived, config)

    def with_layers(self, *layers: Layer) -> "Draft":
        """The same with more layers on top."""
        return replace(self, layers=(*self.layers, *layers))


@dataclass(frozen=True)
class Prepared:
    """A resolved request: every hyperparameter and who chose it, the token ids, and the source of the initial parameters.

    ready_s: when the tokens were ready (time.monotonic): a requested time counts from then.
    """

    config: Config
    chosen: dict[str, Chosen]
    tokens: token_files.Prepared
    parent: Snapshot | None
    ready_s: float = 0.0


def prepare(request: Request, reporter: Reporter | None = None) -> Prepared:
    """Resolve a request in one process."""
    return complete(lay(request), Processes(), reporter or Reporter())


def complete(draft: Draft, processes: Processes, reporter: Reporter) -> Prepared:
    """Resolve a draft of layers further: early checks, tokens, size, steps."""
    began_s, for_s = time.monotonic(), draft.request.for_s
    draft = check(draft, processes)
    tokens = read(draft, processes, reporter)
    ready_s = time.monotonic()
    if ready_s - began_s > for_s / 2 > 0:
        reporter.note(f"Preparing took {ready_s - began_s:.0f} s; the requested {for_s:g} s count from now.")
    draft = choose(draft, tokens, processes, reporter)
    draft = fit(draft, tokens, ready_s, processes, reporter) if for_s else draft
    return Prepared(draft.config, draft.chosen, tokens, draft.parent, ready_s)


def lay(request: Request) -> Draft:
    """Merge the layers of settings: parent run, preset, file, request."""
    parent, inherited = _parent(request)
    asked = {section: dict(values) for section, values in (request.settings or {}).items()}
    training = asked.setdefault("training", {})
    if request.corpus:
        asked.setdefault("data", {})["corpus"] = list(request.corpus)
    if request.steps:
        training["steps"] = request.steps
    if request.target_loss:
        training["target_loss"] = request.target_loss
    training["parent"] = request.parent or "auto"
    own = merge(load_toml(Path(request.config_file)) if request.config_file else {}, asked)
    preset = preset_settings(request.preset) if request.preset not in ("", "auto") else {}
    layers = (
        Layer(
            "parent",
            f"as in {Path(request.parent).name}, from which this run starts",
            _without_other_rule(inherited, own),
        ),
        Layer("preset", f"of the preset {request.preset}", _without_other_rule(preset, own)),
        Layer("you", in_file(request.config_file), own),
        Layer("you", GIVEN, merge(asked)),
    )
    device = check_device(str(own.get("machine", {}).get("device", best_device())))
    return Draft(request, parent, own, layers, Facts(STAND_IN, 0, str(device)))


def check(draft: Draft, processes: Processes) -> Draft:
    """Find the text, check the machine, and find mistakes, before any text is read."""
    request, device = draft.request, torch.device(draft.facts.device)
    if processes.size > 1 and any(map(is_pipe, request.corpus)):
        raise CorpusError("Several processes cannot read one pipe. Write the text to a file, and give them that.")
    facts = replace(
        draft.facts,
        threads=max(1, physical_cores() // processes.size),
        bfloat16=not processes.agree(not prefers_bfloat16(device)),
    )
    data = draft.own.get("data", {})
    found = _located(data, request.corpus)
    draft = replace(draft.with_layers(Layer(None, "", {"data": found})), facts=facts)
    corpus = found.get("corpus") or data.get("corpus") or []
    if data.get("validation") is None and (beside := validation_beside(corpus)):
        draft = draft.with_layers(
            Layer("derived", "nanoGPT's val.bin, beside the text", {"data": {"validation": beside}})
        )
    if not draft.config.data.corpus:
        raise CorpusError("There is no text to learn from. Give one or more files, folders or globs.")
    check_processes(draft.config, processes.size)
    check_loggers(draft.config)
    if not 0 <= request.for_s < float("inf"):
        raise ConfigError(f"--for must be positive: got {request.for_s} seconds. Try --for 2m.")
    return draft


def read(draft: Draft, processes: Processes, reporter: Reporter) -> token_files.Prepared:
    """Read the token ids; the first process makes them, the others read them from the cache."""
    data = draft.config.data
    for rank_turn in (True, False):
        if processes.first == rank_turn:
            tokens = token_files.prepare(
                data.corpus,
                tokenizer=data.tokenizer,
                validation=data.validation,
                validation_split=draft.settings.get("data", {}).get("validation_split", "auto"),
                reading=Reading.of(data),
                progress=reporter.preparing,
            )
        processes.wait("the first has made the tokens" if rank_turn else "all have the tokens")
    return tokens


def choose(draft: Draft, tokens: token_files.Prepared, processes: Processes, reporter: Reporter) -> Draft:
    """Choose what follows from the tokens: the size, if none is named, and the vocabulary size."""
    request, train_tokens = draft.request, sum(map(len, tokens.train))
    facts = replace(draft.facts, vocab_size=tokens.tokenizer.get_vocab_size(), train_tokens=train_tokens)
    machine_too = f" and {request.for_s:g} s on this machine" if request.for_s else ""
    reason = f"for {train_tokens:,} training tokens{machine_too}"
    if request.auto:
        rate = _matrix_rate(facts, processes) if request.for_s else 0.0
        size = choose_size(train_tokens, rate, request.for_s)
        preset = _without_other_rule(preset_settings(size), draft.own)
        layer = Layer("preset", f"of the preset {size}, the size {reason}", preset)
        draft = replace(draft, layers=(layer, *draft.layers))
    for warning in tokens.warnings:
        reporter.note(warning)
    data = draft.settings.get("data", {})
    layers = [
        Layer(None if key in data else "derived", token_files.CHOICES[key], {"data": {key: value}})
        for key, value in (
            ("tokenizer", tokens.tokenizer_name),
            ("validation_split", data.get("validation_split", tokens.validation_split)),
        )
    ]
    draft = replace(draft.with_layers(*layers), facts=facts)
    check_tokens(draft.config, tokens)
    if request.auto:
        reporter.note(f"auto: the size {size}, {reason}.")
    return draft


def fit(draft: Draft, tokens: token_files.Prepared, ready_s: float, processes: Processes, reporter: Reporter) -> Draft:
    """Fit the hyperparameters of [training] that are not given to a requested time, by timings on this machine."""
    for_s, given = draft.request.for_s, set(draft.own["training"])
    check_memory(draft.config, Reporter().note)
    probe = timing.Probe(draft.config, tokens, processes, for_s / 300)

    def with_training(values: dict[str, Any]) -> Draft:
        fitted = {name: value for name, value in values.items() if name not in given}
        return draft.with_layers(
            *(
                Layer("derived", timing.FITTED[name].format(for_s=for_s), {"training": {name: fitted[name]}})
                for name in fitted
            )
        )

    measured = probe.measure(tokens.tokenizer)
    left_s = for_s - processes.agree(time.monotonic() - ready_s)
    found = timing.fit(
        measured, for_s, left_s, len(tokens.validation), given, lambda values: with_training(values).config
    )
    draft = with_training(found)
    if "steps" not in given:
        reporter.note(f"{draft.config.training.steps:,} steps fit into {for_s:g} s, by timing a few.")
    return draft


def _parent(request: Request) -> tuple[Snapshot | None, Settings]:
    """The keyframe that the run starts from, and its hyperparameters."""
    if not request.parent:
        return None, {}
    run, at, which = request.parent.rpartition("@")
    if not at or not (which.isdecimal() or which in ("last", "best")):
        raise RunError(f"--from takes RUN@STEP, for example runs/book@200 (or @last, @best): got {request.parent!r}.")
    reader = RunReader(run)
    snapshot = load_step(reader, which)
    settings = reader.config.model_dump(mode="json")
    del settings["machine"], settings["recording"]
    # Settings that were derived from the number of steps, or meant only for that run.
    del settings["schedule"]["warmup_steps"], settings["training"]["evaluate_every"]
    del settings["training"]["target_loss"], settings["training"]["final_evaluation_tokens"]
    if reader.config.model.attention_width == reader.config.model.d_model:
        del settings["model"]["head_dim"]
    if request.corpus:
        settings["data"] = {}  # its weights and validation files belong to the parent's text
    settings["data"]["tokenizer"] = str((reader.path / TOKENIZER).resolve())
    return snapshot, settings


def _without_other_rule(layer: Settings, own: Settings) -> Settings:
    """A lower layer, without its [optimizer] if the user chose another optimizer: its rates would not fit."""
    asked = own.get("optimizer", {}).get("name")
    has = layer.get("optimizer", {}).get("name")
    return layer if asked in (None, has) else {name: values for name, values in layer.items() if name != "optimizer"}


def _located(data: dict[str, Any], corpus: Sequence[str]) -> dict[str, Any]:
    """The settings with the paths of the text and the validation files that the user named."""
    found: dict[str, Any] = {}
    if corpus:
        found["corpus"] = [located(spec) for spec in corpus]
    held_back = data.get("validation")
    if isinstance(held_back, str | list):
        files = [held_back] if isinstance(held_back, str) else held_back
        found["validation"] = [located(spec) if isinstance(spec, str) else spec for spec in files]
    return found


def _matrix_rate(facts: Facts, processes: Processes) -> float:
    dtype = torch.bfloat16 if facts.bfloat16 else torch.float32
    torch.set_num_threads(facts.threads)
    return processes.agree(matrix_rate(torch.device(facts.device), dtype)) * processes.size
