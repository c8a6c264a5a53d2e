"""`vitrine health`: verdicts on a run, each with its numbers, the usual cause, and the step to look at.

`probe_verdicts` runs the model at a few keyframes; health_by_history.py has the verdicts that need only the history.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitrine._json import plain
from vitrine.errors import VitrineError
from vitrine.inspection.health_advice import Level, Verdict, advise, headline
from vitrine.inspection.health_by_history import of_history
from vitrine.inspection.health_rules import RULES, Look, unknown
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps

PROBED_TOKENS, PROBED_ROWS = 2048, 4  # in the batch; rows whose entropy and logits are looked at
PROBED_NUMBERS = 2**27  # of scores or logits at a time: half a gigabyte


@dataclass(frozen=True)
class Health:
    """All verdicts on the run in the folder `run`."""

    run: str
    verdicts: tuple[Verdict, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no error, and something could be judged."""
        return not self.count(Level.ERROR) and self.count(Level.UNKNOWN) < len(self.verdicts)

    def count(self, level: Level) -> int:
        """How many verdicts are of a level."""
        return sum(verdict.level == level for verdict in self.verdicts)

    @property
    def headline(self) -> Verdict | None:
        """The verdict with the cause to mend first; None if there is no error or warning."""
        return headline(self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """What `health --json` prints; null for what is not finite."""
        verdicts = [plain(v) | {"level": v.level.value} for v in self.verdicts]
        first = next((v for v in verdicts if self.headline and v["name"] == self.headline.name), None)
        return {"healthy": self.healthy, "headline": first, "verdicts": verdicts}


def examine(reader: RunReader, probe_keyframes: int = 3) -> Health:
    """Judge a run by its history, and by looking into its model at so many keyframes."""
    judged = {v.name: v for v in (*of_history(reader), *_of_keyframes(reader, probe_keyframes))}
    return Health(str(reader.path), advise(reader.config, [judged[rule.name] for rule in RULES]))


def probe_verdicts(reader: RunReader, keyframes: int = 3) -> tuple[Verdict, ...]:
    """The verdicts that need the model: at step 0, the last keyframe, and some between."""
    return advise(reader.config, _of_keyframes(reader, keyframes))


def _of_keyframes(reader: RunReader, keyframes: int) -> list[Verdict]:
    kept = keyframe_steps(reader.path / KEYFRAMES)
    chosen = sorted({kept[round(i)] for i in np.linspace(len(kept) - 1, 0, keyframes)}) if kept else []
    try:
        reader.check_model()
        looks, reason = _look(reader, chosen) if chosen else [], "no keyframe was looked into"
    except (VitrineError, OSError) as error:
        looks, reason = [], str(error).rstrip(".")
    rules, missing = [rule for rule in RULES if rule.of == "keyframes"], unknown(reason, kept=len(kept))
    return [replace(rule.judge(looks) if looks else missing, name=rule.name) for rule in rules]


def _look(reader: RunReader, steps: Sequence[int]) -> list[Look]:
    """Run the model at these keyframes over one batch."""
    import torch

    from vitrine.inspection.probes import probe
    from vitrine.model.decoder import Decoder
    from vitrine.training.checkpoint import load_keyframe
    from vitrine.training.device import prepare_device
    from vitrine.training.tokens import open_tokens

    try:
        device = prepare_device(reader.config.machine)
    except VitrineError:  # trained on a device that is not here
        device = torch.device("cpu")
    corpus, model = open_tokens(reader), reader.config.model
    text = corpus.validation if len(corpus.validation) > model.context else corpus.train[0]
    affordable = PROBED_NUMBERS // (model.context * max(model.n_heads * model.context, model.vocab_size))
    count = max(1, min(PROBED_TOKENS // model.context, affordable))
    starts = np.linspace(0, len(text) - model.context, count).astype(np.int64)
    batch = np.stack([text[start : start + model.context].astype(np.int64) for start in starts])
    windows, looks = torch.from_numpy(batch).to(device), []
    for step in steps:
        decoder = Decoder(model, getattr(torch, reader.config.training.precision))
        decoder.load_state_dict(load_keyframe(keyframe_path(reader.path / KEYFRAMES, step), optimizer=False).parameters)
        whole = probe(decoder.to(device), windows, None)
        rows = [whole, *(probe(decoder, windows[i : i + 1], None) for i in range(1, min(PROBED_ROWS, count)))]
        entropy, logit = np.mean([row.entropy for row in rows], axis=0), np.max(np.abs([row.logits for row in rows]))
        looks.append(Look(step, windows.numel(), whole.dead, entropy, whole.scores, float(logit)))
    return looks
