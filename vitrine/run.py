"""A run as an object: what `vitrine.train` and `vitrine.open_run` return."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from vitrine import notebook
from vitrine.config import SamplingConfig, merge, validate
from vitrine.errors import ConfigError, CorpusError, RunError
from vitrine.exchange.gguf import export_gguf
from vitrine.exchange.hf_export import Exported, export_run
from vitrine.generation.drafts import SAMPLE, Ngrams
from vitrine.generation.generate import Generation, generate
from vitrine.inspection.health import Health, examine
from vitrine.inspection.replay import Replayer
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.inspection.verify import Check, verify
from vitrine.inspection.views import Inspected, inspect
from vitrine.model.decoder import Decoder
from vitrine.runs.reader import KEYFRAMES, TOKENIZER, RunReader
from vitrine.runs.retention import keyframe_path
from vitrine.text import token_files
from vitrine.text.builtin import located
from vitrine.text.sources import Reading
from vitrine.text.tokenizer import load_tokenizer
from vitrine.training.checkpoint import find_step, load_step, written_digest
from vitrine.training.device import prepare_device
from vitrine.training.evaluation import Evaluation, evaluate
from vitrine.training.tokens import open_tokens, tokens_folder


class Run(RunReader):
    """A run folder and its model.

    `RunReader` reads its history; `generate` and `evaluate` load parameters from a keyframe.
    `step` below is "last", "best" (by validation loss), or the number of a step that has a keyframe.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._models: dict[tuple[int, str], Decoder] = {}
        self._tokenizer: Tokenizer | None = None
        self._ngrams: Ngrams | None = None
        self._replayer: Replayer | None = None

    def __repr__(self) -> str:
        return f"<Run {self.path}: {notebook.summary(self)}>"

    def _repr_html_(self) -> str:
        """In a notebook: its curves, a text sample and its hyperparameters."""
        return notebook.html(self)

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's own, a Hugging Face `tokenizers.Tokenizer`."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.path / TOKENIZER)
        return self._tokenizer

    def model(self, step: str | int = "last") -> Decoder:
        """The decoder with the parameters that a step starts from, on the run's device."""
        number = find_step(self, step)
        # By its digest, too: a resumed run may have written the keyframe again.
        key = number, written_digest(keyframe_path(self.path / KEYFRAMES, number))
        if key not in self._models:
            snapshot = load_step(self, number)
            try:
                device = prepare_device(self.config.machine)
            except ConfigError:  # trained on a device that this machine lacks: the parameters work on any
                device = torch.device("cpu")
            dtype = getattr(torch, self.config.training.precision)
            model = Decoder(self.config.model, dtype)
            model.load_state_dict(snapshot.parameters)
            self._models = {key: model.to(device)}
        return self._models[key]

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 200,
        seed: int = 1,
        step: str | int = "last",
        on_text: Callable[[str], None] | None = None,
        **sampling: Any,
    ) -> Generation:
        """Continue a prompt; `sampling` (temperature, top_k, ...) overrides the run's [sampling]."""
        if max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must not be negative: got {max_new_tokens}. Try 200.")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"The seed must be at least 0 and less than 2**63: got {seed}. Try 1.")
        model, chosen = self.model(step), self.sampling(**sampling)
        return generate(model, self.tokenizer, prompt, max_new_tokens, chosen, seed, on_text, self.ngrams)

    @property
    def ngrams(self) -> Ngrams:
        """Drafts of its text from the first tokens of its training text; empty if that text is missing."""
        if self._ngrams is None:
            folder = tokens_folder(self)
            try:
                sources = token_files.open_prepared(folder).train if folder.is_dir() else ()
            except CorpusError:
                sources = ()
            parts = [source[: SAMPLE // len(sources)] for source in sources]
            self._ngrams = Ngrams(np.concatenate(parts) if parts else np.zeros(0, np.uint16))
        return self._ngrams

    def step(self, number: int) -> ReplayedStep:
        """Replay a past step: `run.step(120).tensors[name].gradient` is a NumPy array.

        The replayer is kept, so that a step shortly after the previous one is quick.
        """
        if self._replayer is None:
            self._replayer = Replayer(self)
        return self._replayer.replay(number)

    def inspect(
        self,
        what: str = "",
        step: int | None = None,
        nudges: Sequence[float] = (),
        row: int = 0,
        token: int | None = None,
        prompt: str | None = None,
    ) -> Inspected:
        """The census (""), a tensor (NAME), a parameter with its history (NAME[3,7]), or a neuron (LAYER[12]).

        Args:
            step: the step to look at; None: the last one that was made, or the end of the run with a prompt.
            nudges: how far to move the parameter, each in turn, to measure the loss.
            row, token: for a neuron: which token of the step's first micro-batch. None: the first; of a prompt, the last.
            prompt: for a neuron: a text that is read instead of the batch.
        """
        return inspect(self, what, step, nudges, row, token, prompt=prompt)

    def health(self) -> Health:
        """Look for problems: verdicts with their numbers, the usual cause, and the step to look at."""
        return examine(self)

    def verify(self, count: int = 3, seed: int = 1) -> list[Check]:
        """Check the run: keyframes, random steps bit for bit, gradients against finite differences.

        Args:
            count: how many steps are replayed, and how many parameters are differentiated.
            seed: of the choice of both.
        """
        return list(verify(self, count, seed, lambda text: None))

    def report(self, file: str | Path = "", steps: str = "", cell: str = "", force: bool = False) -> Path:
        """Write the run as one HTML file, in a separate process, and return its path. It contains parts of your text.

        Args:
            file: empty: the run's name with .html, in the working folder.
            steps: to keep in full, such as "birth,300,last"; empty: a few that have keyframes.
            cell: the parameter whose history is included, such as "final_norm.gain[3]".
            force: whether a file that exists already may be replaced.
        """
        command = [sys.executable, "-m", "vitrine", "report", str(self.path), "--json", *(["--force"] if force else [])]
        for option, value in (("--out", str(file)), ("--steps", steps), ("--cell", cell)):
            command += [option, value] if value else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(done.stderr.strip().rpartition("\n")[2])
        return Path(json.loads(done.stdout)["file"])

    def sampling(self, **overrides: Any) -> SamplingConfig:
        """The run's decoding hyperparameters with these overrides (None: no override); validated."""
        given = {name: value for name, value in overrides.items() if value is not None}
        settings = merge(self.config.model_dump(mode="json"), {"sampling": given})
        return validate(settings).sampling

    def export(
        self, target: str | Path, step: str | int = "last", target_format: str = "hf", dtype: str = "float32"
    ) -> Exported:
        """Write a Hugging Face folder ("hf"), or a GGUF file for llama.cpp ("gguf"), atomically; nothing is replaced.

        dtype: of a GGUF file's matrices: float32, float16 or bfloat16.
        """
        if target_format == "gguf":
            return export_gguf(self.path, target, step, dtype)
        if target_format != "hf":
            raise ConfigError(f"The format is hf or gguf: got {target_format!r}. Try hf, a Hugging Face folder.")
        if dtype != "float32":
            raise ConfigError(f"A Hugging Face folder has only float32: got dtype {dtype!r}. Try the format gguf.")
        if Path(target).suffix == ".gguf":
            raise ConfigError(f"{target} would be a folder. Add --format gguf for a GGUF file, or name it otherwise.")
        return export_run(self.path, target, step)

    def evaluate(self, *corpus: str, step: str | int = "last") -> Evaluation:
        """The loss over the whole validation split, or over other text."""
        model = self.model(step)
        if corpus:
            tokens, size_bytes = token_files.tokens_of(
                [*map(located, corpus)], self.tokenizer, Reading.of(self.config.data)
            )
            return evaluate(model, tokens, size_bytes)
        texts = open_tokens(self)
        if len(texts.validation) < 2:
            raise RunError(
                f"{self.path} has no validation text (data.validation = 0). Name a file to evaluate on: "
                f"vitrine evaluate {self.path} FILE."
            )
        return evaluate(model, texts.validation, texts.validation_bytes)
