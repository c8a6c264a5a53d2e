"""From what a user asks for to a run that trains: settings, corpus, size, steps, run folder."""

import errno
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitrine._files import fsync, partial
from vitrine._json import dumps
from vitrine.config import Config, Settings, load_toml, merge
from vitrine.errors import ConfigError, CorpusError, RunError
from vitrine.model.inventory import Plan, make_plan
from vitrine.presets import Facts, choose_size, preset_settings, resolve
from vitrine.recording.loggers import mirrored
from vitrine.recording.reporter import Reporter
from vitrine.runs.reader import CHAT_TEMPLATE, CONFIG, HISTORY, KEYFRAMES, TOKENIZER, TOKENS, RunReader
from vitrine.runs.refusals import sentences
from vitrine.runs.retention import keyframe_path, keyframe_steps
from vitrine.runs.store import Store, digests
from vitrine.text import token_files
from vitrine.text.builtin import is_pipe, located
from vitrine.text.ids import validation_beside
from vitrine.text.sources import Reading
from vitrine.text.tokenizer import save_tokenizer
from vitrine.training import timing
from vitrine.training.checkpoint import Snapshot, load_keyframe, save_keyframe, take_snapshot, written_digest
from vitrine.training.checks import check_memory, check_mirrors, check_processes, check_tokens
from vitrine.training.device import (
    best_device,
    check_device,
    differences,
    fingerprint,
    matrix_rate,
    memory_bytes,
    physical_cores,
    prefers_bfloat16,
)
from vitrine.training.distributed import Processes, joined
from vitrine.training.loop import Result, Texts, Trainer, build_state, lock

KEPT_TOKENS_BYTES = 64 * 2**20  # a corpus up to this size is kept in the run; a larger one is pointed at
POINTER = "pointer.json"
LONGEST_NAME = 200  # bytes; the folder in which a run is made has a longer name


@dataclass(frozen=True)
class Request:
    """What a user asks for. Settings are layered: parent run, preset, file, settings; later ones win.

    corpus: files, folders, globs or hf:owner/name.
    run: the new run's folder; empty: a new one below runs/.
    steps, target_loss: 0: not asked for. for_s: seconds that training may take; 0: no limit.
    parent: "RUN@STEP", whose parameters the run starts from; empty: random birth.
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


@dataclass(frozen=True)
class Prepared:
    """A request, resolved: every hyperparameter, the token ids, and where the first parameters come from.

    ready_s: when the tokens were there (time.monotonic): a time that was asked for counts from then.
    """

    config: Config
    tokens: token_files.Prepared
    parent: Snapshot | None
    ready_s: float = 0.0

    @property
    def texts(self) -> Texts:
        """What the trainer needs of the corpus."""
        return Texts(self.tokens.train, self.tokens.validation, self.tokens.validation_bytes)


def train(request: Request, reporter: Reporter | None = None, started_s: float = 0.0) -> Result:
    """Train a new run to its end. Nothing is left behind if the request is wrong.

    started_s: when the command began (time.monotonic), for its duration; 0: now.
    """
    started_s = started_s or time.monotonic()
    reporter = reporter or Reporter()
    path = Path(request.run) if request.run else None
    if path:
        check_new(path)
    with joined(_device_asked_for(request)) as processes:
        reporter = reporter if processes.first else Reporter()
        prepared = prepare(request, processes, reporter)
        check_memory(prepared.config, sums(prepared.config), reporter.note)
        path = _make_run(path, prepared, processes)
        with (
            _locked(path, processes),
            mirrored(reporter, prepared.config.recording.mirror if processes.first else ()) as reporter,
            sentences(path),
        ):
            _say_what_was_read(prepared.tokens, prepared.config, reporter)
            reporter.started(prepared.config, path)
            trainer = Trainer(
                path,
                prepared.config,
                prepared.texts,
                processes,
                reporter,
                started_s,
                request.for_s,
                prepared.ready_s,
            )
            trainer.enter()
            return trainer.run()


def resume(run: str | Path, reporter: Reporter | None = None, started_s: float = 0.0) -> Result:
    """Go on with a run from its newest sound keyframe, to the same bits as if it had never stopped."""
    started_s = started_s or time.monotonic()
    reporter = reporter or Reporter()
    reader = RunReader(run)
    ended = reader.result()
    if ended.get("stopped") in ("steps", "target", "early"):
        reporter.note(
            f"{run} has ended already, at step {ended['steps']}. To train it further: "
            f"vitrine train --from {run}@{ended['steps']}."
        )
        return Result(**(ended | {"run": str(run)}))  # it may have been moved
    if damage := reader.damage():
        raise RunError(damage)
    _check_settings(reader)
    check_mirrors(reader.config)
    with joined(check_device(reader.config.machine.device).type) as processes:
        check_processes(reader.config, processes.size)
        reporter = reporter if processes.first else Reporter()
        with (
            _locked(reader.path, processes),
            mirrored(reporter, reader.config.recording.mirror if processes.first else ()) as reporter,
            sentences(reader.path),
        ):
            for first, last, keyframe in reader.missing_steps():
                reporter.note(missing_text(first, last, keyframe))
            _check_corpus(reader, reporter)
            tokens = open_tokens(reader)
            _say_what_was_read(tokens, reader.config, reporter)
            if processes.first:
                _compare_fingerprints(reader, processes, reporter)
            texts = Texts(tokens.train, tokens.validation, tokens.validation_bytes)
            trainer = Trainer(reader.path, reader.config, texts, processes, reporter, started_s)
            trainer.resume()
            reporter.started(reader.config, reader.path)
            return trainer.run()


def changed_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """About hyperparameters that were changed."""
    return "; ".join(f"{key}: {then} then, {now} now" for key, (then, now) in sorted(changed.items()))


def missing_text(first: int, last: int, keyframe: int) -> str:
    """About steps that the history lost."""
    return (
        f"The steps {first} to {last} are missing from the history, although keyframe {keyframe} says that they were made: "
        f"{HISTORY}-wal was lost, or they were not recorded."
    )


def check_new(path: Path) -> None:
    """Raises RunError where no run of this name can be made."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RunError(f"The name of a run is text in UTF-8: got {str(path)!a}. Give --run another name.") from None
    if (size := len(path.name.encode())) > LONGEST_NAME:
        raise RunError(f"The name of a run has at most {LONGEST_NAME} bytes: got {size}. Give --run a shorter one.")
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise RunError(f"No run can be made at {path}: {error.strerror}. Give --run another name.") from None
    if path.is_symlink() and not path.exists():
        raise RunError(f"{path} is a link to {path.readlink()}, which does not exist. Give --run another name.")
    raise _exists_already(path)


def prepare(request: Request, processes: Processes | None = None, reporter: Reporter | None = None) -> Prepared:
    """Resolve a request: read the corpus, choose the size, and count the steps."""
    processes, reporter, began_s = processes or Processes(), reporter or Reporter(), time.monotonic()
    parent, layers = _parent(request)
    file = load_toml(Path(request.config_file)) if request.config_file else {}
    own = merge(file, request.settings or {})
    if request.corpus:
        if processes.size > 1 and any(map(is_pipe, request.corpus)):
            raise CorpusError("Several processes cannot read one pipe. Write the text to a file, and give them that.")
        own.setdefault("data", {})["corpus"] = [located(spec) for spec in request.corpus]
    held_back = own.get("data", {}).get("validation")
    if isinstance(held_back, str | list):
        files = [held_back] if isinstance(held_back, str) else held_back
        own["data"]["validation"] = [located(spec) if isinstance(spec, str) else spec for spec in files]
    elif held_back is None and (beside := validation_beside(own.get("data", {}).get("corpus", []))):
        own["data"]["validation"] = beside
    training = own.setdefault("training", {})
    if request.steps:
        training["steps"] = request.steps
    if request.target_loss:
        training["target_loss"] = request.target_loss
    training["parent"] = request.parent
    facts = _machine_facts(merge(layers, own), processes)
    preset = request.preset or ("" if request.parent else "auto")
    early = preset_settings(preset) if preset not in ("", "auto") else {}
    settings = merge(_without_other_rule(layers, own), _without_other_rule(early, own), own)
    config = resolve(settings, replace(facts, vocab_size=256))  # a mistake shows before the corpus is read
    if not config.data.corpus:
        raise CorpusError("There is no text to learn from. Give one or more files, folders or globs.")
    check_processes(config, processes.size)
    check_mirrors(config)
    if not 0 <= request.for_s < float("inf"):
        raise ConfigError(f"--for must be positive: got {request.for_s} seconds. Try --for 2m.")
    asked = settings.get("data", {})
    tokens = _read_corpus(config, asked.get("validation_split", "auto"), processes, reporter)
    facts = replace(facts, vocab_size=tokens.tokenizer.get_vocab_size(), train_tokens=sum(map(len, tokens.train)))
    ready_s = time.monotonic()
    if ready_s - began_s > request.for_s / 2 > 0:
        reporter.note(
            f"Preparing took {ready_s - began_s:.0f} s; the {request.for_s:g} s that were asked for count from now."
        )
    if preset == "auto":
        rate = _matrix_rate(facts, processes) if request.for_s else 0.0
        size = choose_size(facts.train_tokens, rate, request.for_s)
        settings = merge(_without_other_rule(preset_settings(size), own), settings)
    for warning in tokens.warnings:
        reporter.note(warning)
    split = asked.get("validation_split", tokens.validation_split)
    settings = merge(settings, {"data": {"tokenizer": tokens.tokenizer_name, "validation_split": split}})
    config = resolve(settings, facts)
    check_tokens(config, tokens)
    if preset == "auto":
        machine_too = f" and {request.for_s:g} s on this machine" if request.for_s else ""
        reporter.note(f"auto: the size {size}, for {facts.train_tokens:,} training tokens{machine_too}.")
    prepared = Prepared(config, tokens, parent, ready_s)
    if request.for_s:
        config = _fit(prepared, settings, facts, set(training), request.for_s, processes)
        if "steps" not in training:
            reporter.note(f"{config.training.steps:,} steps fit into {request.for_s:g} s, by the time of a few.")
        prepared = replace(prepared, config=config)
    return prepared


def _fit(
    prepared: Prepared, settings: Settings, facts: Facts, given: set[str], for_s: float, all_of: Processes
) -> Config:
    """The hyperparameters for a time: what of [training] is not given follows from what things take here."""
    check_memory(prepared.config, sums(prepared.config), Reporter().note)
    probe = timing.Probe(prepared.config, prepared.texts, all_of, for_s / 300)

    def with_training(values: dict[str, Any]) -> Config:
        kept = {name: value for name, value in values.items() if name not in given}
        return resolve(merge(settings, {"training": kept}), facts)

    measured = probe.measure(prepared.tokens.tokenizer)
    left_s = for_s - all_of.agree(time.monotonic() - prepared.ready_s)
    return timing.fit(measured, for_s, left_s, len(prepared.tokens.validation), given, with_training)


def sums(config: Config) -> Plan:
    """Parameters, compute and memory, against the memory of the device that the run trains on."""
    return make_plan(config, memory_bytes(check_device(config.machine.device)))


def open_tokens(reader: RunReader) -> token_files.Prepared:
    """The token ids of a run: kept in it, or pointed at; made anew if the cache lost them."""
    if not reader.config.data.corpus:
        raise RunError(
            f"{reader.path} was imported, and has no text of its own. Name one: vitrine evaluate {reader.path} FILE, "
            f"or, to train it further, vitrine train FILE --from {reader.path}@0."
        )
    folder = tokens_folder(reader)
    if folder.is_dir() or folder == reader.path / TOKENS:
        return token_files.open_prepared(folder)
    data = reader.config.data
    prepared = token_files.prepare(
        data.corpus,
        tokenizer=str(reader.path / TOKENIZER),
        validation=data.validation,
        validation_split=data.validation_split,
        reading=Reading.of(data),
    )
    _compare_digests(reader, list(prepared.source_digests))
    return prepared


def tokens_folder(reader: RunReader) -> Path:
    """Where the token ids of a run are, or were."""
    pointer = reader.path / TOKENS / POINTER
    if not pointer.is_file():
        return pointer.parent
    return Path(json.loads(pointer.read_text(encoding="utf-8"))["folder"])


def _device_asked_for(request: Request) -> str:
    file = load_toml(Path(request.config_file)) if request.config_file else {}
    name = merge(file, request.settings or {}).get("machine", {}).get("device", best_device())
    return check_device(str(name)).type


def _without_other_rule(layer: Settings, own: Settings) -> Settings:
    """A layer below, without its [optimizer] if the user asks for another rule: its rates would not fit."""
    asked = own.get("optimizer", {}).get("name")
    has = layer.get("optimizer", {}).get("name")
    return layer if asked in (None, has) else {name: values for name, values in layer.items() if name != "optimizer"}


def _machine_facts(settings: Settings, processes: Processes) -> Facts:
    """What this machine offers, on the device that is asked for."""
    device = check_device(str(settings.get("machine", {}).get("device", best_device())))
    return Facts(
        vocab_size=0,
        train_tokens=0,
        device=str(device),
        threads=max(1, physical_cores() // processes.size),
        bfloat16=not processes.agree(not prefers_bfloat16(device)),
    )


def _parent(request: Request) -> tuple[Snapshot | None, Settings]:
    """The keyframe that the run starts from, and the hyperparameters that it brings along."""
    if not request.parent:
        return None, {}
    run, at, which = request.parent.rpartition("@")
    if not at or not (which.isdecimal() or which in ("last", "best")):
        raise RunError(f"--from takes RUN@STEP, for example runs/book@200 (or @last, @best): got {request.parent!r}.")
    reader = RunReader(run)
    snapshot = load_step(reader, which)
    settings = reader.config.model_dump(mode="json")
    del settings["machine"], settings["recording"]
    # What was derived from the number of steps, or meant for that run alone.
    del settings["schedule"]["warmup_steps"], settings["training"]["evaluate_every"]
    del settings["training"]["target_loss"], settings["training"]["final_evaluation_tokens"]
    if reader.config.model.attention_width == reader.config.model.d_model:
        del settings["model"]["head_dim"]
    if request.corpus:
        settings["data"] = {}  # its weights and validation files belong to the text of then
    settings["data"]["tokenizer"] = str((reader.path / TOKENIZER).resolve())
    return snapshot, settings


def find_step(reader: RunReader, which: str | int) -> int:
    """The step of a keyframe: "last", "best" (validation), or one that has a keyframe."""
    folder = reader.path / KEYFRAMES
    steps = keyframe_steps(folder)
    if not steps:
        raise RunError(f"{reader.path} has no keyframe.")
    if which == "last":
        step_number = steps[-1]
    elif which == "best":
        best = reader.best_step()
        step_number = steps[-1] if best is None else best
    elif str(which).isdecimal():
        step_number = int(which)
    else:
        raise RunError(f"A step is last, best, or a number: got {which!r}. {reader.path} has {_listed(steps)}.")
    if step_number not in steps:
        near = min(steps, key=lambda s: abs(s - step_number))
        raise RunError(
            f"{reader.path} has no keyframe of step {step_number}. The nearest is {near}: it has {_listed(steps)}."
        )
    return step_number


def load_step(reader: RunReader, which: str | int) -> Snapshot:
    """The parameters of such a step, without the optimizer's state."""
    step_number, folder = find_step(reader, which), reader.path / KEYFRAMES
    path = keyframe_path(folder, step_number)
    try:
        return load_keyframe(path, optimizer=False)
    except RunError as error:
        if which in ("last", "best") and not path.is_dir():  # a newer one came just now
            return load_step(reader, which)
        others = [step for step in keyframe_steps(folder) if step != step_number]
        hint = f" Name another step: {reader.path} has {_listed(others)}." if others else ""
        raise RunError(f"{error}{hint}") from None


def _listed(steps: list[int]) -> str:
    return f"keyframes of the steps {', '.join(map(str, steps))}"


def _read_corpus(config: Config, split: str, processes: Processes, reporter: Reporter) -> token_files.Prepared:
    """The token ids; the first process makes them, the others find them in the cache."""
    data = config.data
    for rank_turn in (True, False):
        if processes.first == rank_turn:
            tokens = token_files.prepare(
                data.corpus,
                tokenizer=data.tokenizer,
                validation=data.validation,
                validation_split=split,
                reading=Reading.of(data),
                progress=reporter.preparing,
            )
        processes.wait("the first has made the tokens" if rank_turn else "all have the tokens")
    return tokens


def _say_what_was_read(tokens: token_files.Prepared, config: Config, reporter: Reporter) -> None:
    for line in tokens.summary.lines(config) if tokens.summary else ():
        reporter.note(line)


def _matrix_rate(facts: Facts, processes: Processes) -> float:
    dtype = torch.bfloat16 if facts.bfloat16 else torch.float32
    torch.set_num_threads(facts.threads)
    return processes.agree(matrix_rate(torch.device(facts.device), dtype)) * processes.size


def _make_run(asked: Path | None, prepared: Prepared, processes: Processes) -> Path:
    """Make the run folder: the one that was asked for, or runs/NAME-1, or the next number that is free.

    It is made under another name, and gets its own when it is whole.
    """
    stem = Path(prepared.config.data.corpus[0]).name.split(".")[0].split("*")[0] or "run"
    path, number = asked or Path("runs", f"{stem}-1"), 1
    if processes.first:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial(path) as temporary:
                _write_run(temporary, prepared, processes)
                while not _rename(temporary, path):
                    if asked:
                        raise _exists_already(asked)
                    number += 1
                    path = Path("runs", f"{stem}-{number}")
                fsync(path.parent)
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"The run folder {path} cannot be made: {error}.") from None
    processes.wait("the run folder is made")
    return asked or Path("runs", f"{stem}-{int(processes.agree(number))}")


def _write_run(folder: Path, prepared: Prepared, processes: Processes) -> None:
    """All that a run folder holds before the first step: its birth, too."""
    config, tokens = prepared.config, prepared.tokens
    (folder / CONFIG).write_text(config.to_toml(), encoding="utf-8")
    save_tokenizer(tokens.tokenizer, folder / TOKENIZER)
    template = Path(tokens.tokenizer_name).with_name(CHAT_TEMPLATE)  # of a tokenizer that came from a file
    if tokens.tokenizer_name.endswith(".json") and template.is_file():
        shutil.copyfile(template, folder / CHAT_TEMPLATE)
    _keep_tokens(tokens, folder / TOKENS)
    _, state = build_state(config, Processes())
    birth = take_snapshot(state)
    if prepared.parent:
        birth = replace(birth, parameters=_fitting(prepared.parent, birth))
    kept = save_keyframe(folder / KEYFRAMES, birth)
    with Store(folder / HISTORY) as store:
        store.set_fact("birth", written_digest(kept))
        store.set_fact("files", json.dumps(digests(folder, [TOKENIZER])))
        _set_facts(store, config, tokens, processes)


def _rename(folder: Path, path: Path) -> bool:
    """Give a folder another name; False if there is something of that name, perhaps since a moment ago."""
    if path.exists():
        return False
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def _exists_already(path: Path) -> RunError:
    return RunError(f"{path} exists already. Give --run another name, or go on with it: vitrine resume {path}.")


def _fitting(parent: Snapshot, birth: Snapshot) -> dict[str, torch.Tensor]:
    """The parent's parameters, if the new model has the same tensors."""
    for name in parent.parameters.keys() | birth.parameters.keys():
        theirs, ours = parent.parameters.get(name), birth.parameters.get(name)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            shapes = [None if t is None else tuple(t.shape) for t in (theirs, ours)]
            raise ConfigError(
                f"The parent's parameters do not fit this model: {name} has shape {shapes[0]} there "
                f"and {shapes[1]} here. Leave the [model] hyperparameters as the parent has them."
            )
    return parent.parameters


def _keep_tokens(tokens: token_files.Prepared, folder: Path) -> None:
    size = sum(array.nbytes for array in (*tokens.train, tokens.validation))
    if size <= KEPT_TOKENS_BYTES:
        token_files.copy_prepared(tokens, folder)
        return
    folder.mkdir()
    pointer = {"folder": str(tokens.folder), "digest": tokens.corpus_digest}
    (folder / POINTER).write_text(json.dumps(pointer, indent=1), encoding="utf-8")


def _set_facts(store: Store, config: Config, tokens: token_files.Prepared, processes: Processes) -> None:
    facts = fingerprint(config.machine, config.training.precision, processes.size, tokens.corpus_digest)
    store.set_fact("fingerprint", json.dumps(facts))
    store.set_fact("source_digests", json.dumps(tokens.source_digests))
    if tokens.summary:
        store.set_fact("reading", dumps(tokens.summary))
    store.set_fact("identity", config.identity())
    store.event(
        0,
        "born",
        f"seed {config.training.seed}" if not config.training.parent else f"from {config.training.parent}",
    )


def _check_settings(reader: RunReader) -> None:
    """Refuse to go on with hyperparameters that are not those that the run began with."""
    if changed := reader.changed_settings():
        raise RunError(
            f"{reader.path / CONFIG} is not as it was when the run began ({changed_text(changed)}). Put it back, or start "
            f"a new run with vitrine train --from {reader.path}@last."
        )


def _check_corpus(reader: RunReader, reporter: Reporter) -> None:
    """Refuse to go on if the text is another than it was; without it, the run's own token ids serve."""
    data = reader.config.data
    try:
        found = token_files.source_digests(data.corpus, Reading.of(data))
    except CorpusError as error:
        reporter.note(f"{error} Going on with the token ids that the run keeps.")
        return
    _compare_digests(reader, found)


def _compare_digests(reader: RunReader, found: list[str]) -> None:
    recorded = json.loads(reader.facts().get("source_digests", "[]"))
    for spec, now, then in zip(reader.config.data.corpus, found, recorded, strict=False):
        if now != then:
            raise CorpusError(
                f"{spec} has changed since the run began (SHA-256 {then[:12]} then, {now[:12]} now), so "
                f"the run cannot be resumed exactly. Put the old text back, or start anew from its "
                f"parameters: vitrine train {spec} --from {reader.path}@last."
            )


def _compare_fingerprints(reader: RunReader, processes: Processes, reporter: Reporter) -> None:
    """Say so when the machine is another than the one that the run began on."""
    config, then = reader.config, json.loads(reader.facts().get("fingerprint", "{}"))
    now = fingerprint(config.machine, config.training.precision, processes.size, then.get("corpus", ""))
    if differs := differences(then, now):
        reporter.note(f"This run began elsewhere, so its bits may differ from here on ({'; '.join(differs)}).")


@contextmanager
def _locked(path: Path, processes: Processes) -> Iterator[None]:
    """The first process holds the lock for all."""
    if not processes.first:
        yield
        return
    with lock(path):
        yield
