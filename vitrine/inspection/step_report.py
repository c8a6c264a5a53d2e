"""`vitrine replay`: the report of one step (forward, loss, backward, update), as JSON and as text."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vitrine.errors import RunError
from vitrine.inspection.parameter import shortest
from vitrine.inspection.probes import Probe
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.runs.reader import TOKENIZER
from vitrine.text.tokenizer import decode, load_tokenizer, spell

LIKELIEST = 5


@dataclass(frozen=True)
class StepReport:
    """A step, seen from one token of one row of its first micro-batch.

    token: the place in the row whose prediction is shown.
    """

    replayed: ReplayedStep
    probe: Probe
    tokenizer: Tokenizer
    row: int
    token: int

    def to_json(self) -> dict[str, Any]:
        """What `replay --json` prints."""
        replayed, comparisons = self.replayed, self.replayed.comparisons
        return {
            "step": replayed.step,
            "exact": replayed.exact,
            "compared": [kind.to_json() for kind in comparisons.kinds.values()],
            "differs": comparisons.differs,
            "forward": self.forward(),
            "loss": {
                "value": replayed.loss,
                "recorded": replayed.recorded_loss,
                "tokens": [shortest(loss) for loss in replayed.micro_batches[0].losses[self.row]],
                "same_batch_again": replayed.again,
                "next_batch": replayed.following,
            },
            "backward": {
                "gradient_norm": replayed.gradient_norm,
                "recorded": replayed.recorded_gradient_norm,
                "clip_factor": replayed.clip_factor,
            },
            "update": {
                "norm": replayed.update_norm,
                "recorded": replayed.recorded_update_norm,
                "learning_rate": replayed.learning_rate,
            },
            "tensors": [
                {"name": name}
                | {
                    f"{kind}_norm": {
                        "value": shortest(norms[name]),
                        "recorded": None if (then := replayed.recorded_norms[kind][name]) is None else shortest(then),
                    }
                    for kind, norms in replayed.norms.items()
                }
                for name in replayed.norms["weight"]
            ],
        }

    def forward(self) -> dict[str, Any]:
        """The first phase: the batch, what went through the blocks, and what was predicted."""
        replayed, probe = self.replayed, self.probe
        batch = replayed.micro_batches[0]
        likeliest, target = self.likeliest(probe.logits[self.token]), int(batch.targets[self.row, self.token])
        return {
            "batch": [[self.text(row) for row in micro.inputs] for micro in replayed.micro_batches],
            "row": self.row,
            "tokens": self.tokens(),
            "token": self.token,
            "target": self.text([target]),
            "probabilities": likeliest,
            "target_probability": math.exp(-float(batch.losses[self.row, self.token])),  # training's own, as its loss
            "logit_lens": [self.likeliest(logits) for logits in replayed.lens(probe, self.token)],
            "stream_norms": [shortest(norm) for norm in probe.stream_norms],
            "dead_units": [shortest(share) for share in probe.dead],
            "attention": [[[shortest(w) for w in head[self.token]] for head in layer] for layer in probe.attention],
            "attention_entropy": [[shortest(e) for e in layer] for layer in probe.entropy],
            "from": "a probing pass",
            "largest_difference": {
                "logits": None if np.isnan(probe.difference) else probe.difference,
                "attention": probe.attention_difference,
            },
        }

    def likeliest(self, logits: np.ndarray[Any, np.dtype[np.float32]]) -> list[tuple[str, float]]:
        """The likeliest next tokens and their probabilities."""
        probabilities = _probabilities(logits)
        order = np.argsort(-probabilities)[:LIKELIEST]
        return [(spell(self.tokenizer, int(token)), float(probabilities[token])) for token in order]

    def tokens(self) -> list[str]:
        """The text of the row, token by token; a character of several tokens stands at the last of them.

        Joined, they are the text of the row: a token that only begins a character is empty.
        """
        ids, texts, done = self.replayed.micro_batches[0].inputs[self.row], list[str](), 0
        whole = self.text(ids)
        for end in range(1, len(ids) + 1):
            so_far = whole if end == len(ids) else self.text(ids[:end])
            if so_far != whole[: len(so_far)]:
                so_far = so_far.rstrip("\ufffd")
            texts.append(so_far[done:])
            done = max(done, len(so_far))
        return texts

    def text(self, ids: Any) -> str:
        """The text of token ids."""
        return decode(self.tokenizer, [int(i) for i in ids])


def report_step(replayed: ReplayedStep, row: int = 0, token: int = -1) -> StepReport:
    """Look at a step from one token; token -1 is the last of the row. Raises RunError if there is none."""
    seq = replayed.micro_batches[0].inputs.shape[1]
    if not -seq <= token < seq:
        raise RunError(f"--token must be 0 to {seq - 1} in this batch: got {token}. Try --token {seq - 1}.")
    tokenizer = load_tokenizer(replayed.reader.path / TOKENIZER)
    return StepReport(replayed, replayed.probe(row), tokenizer, row, token % seq)


def _probabilities(logits: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    exp = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(exp / exp.sum())
