"""What was read: files and bytes by ending, and what was left out; documents, tokens, and the epochs that steps come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrine.config import Config

Counts = Mapping[str, Sequence[int]]  # ending -> files, bytes
SHOWN = 4  # endings that are named


@dataclass(frozen=True)
class SourceSummary:
    """One source.

    held_back: "end", "documents", "all" (validation files) or "nothing". invalid: what was not valid text, if anything:
    count, was (`data.invalid`) and first.
    """

    spec: str
    read: Counts
    left_out: Counts
    documents: int
    train_tokens: int
    held_back: str
    invalid: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """All that a corpus is made of."""

    sources: tuple[SourceSummary, ...]
    validation_tokens: int

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Summary":
        """From the fact `reading` of a run, which is a summary as JSON."""
        return cls(tuple(SourceSummary(**source) for source in facts["sources"]), facts["validation_tokens"])

    @property
    def train_tokens(self) -> int:
        """Of all sources."""
        return sum(source.train_tokens for source in self.sources)

    def lines(self, config: Config) -> list[str]:
        """For people, in three to five lines."""
        documents = sum(source.documents for source in self.sources)
        left_out = _sum([source.left_out for source in self.sources])
        read = _sum([source.read for source in self.sources])
        files = f"{_counted(read)}, " if read else ""
        lines = [f"text        {files}{documents:,} document{'s' * (documents != 1)}"]
        if left_out:
            lines.append(f"left out    {_counted(left_out)}")
        if skipped := sum(source.invalid["count"] for source in self.sources if source.invalid.get("was") == "skip"):
            lines.append(f"left out    {skipped:,} of the files or rows above: not valid text (data.invalid = skip)")
        kinds = {source.held_back for source in self.sources} - {"nothing"}
        how = {"end": "the end of each source", "documents": "whole documents", "all": "files of their own"}
        held = ", ".join(how[kind] for kind in sorted(kinds))
        lines.append(
            f"tokens      {self.train_tokens:,} for training, {self.validation_tokens:,} for validation"
            f"{f' ({held})' if held else ''}"
        )
        epochs = self.epochs(config, config.training.steps)
        each = ", ".join(f"{count:.3g} of {spec}" if spec else f"{count:.3g}" for spec, count in epochs)
        lines.append(f"epochs      {each} in {config.training.steps:,} steps")
        return lines

    def epochs(self, config: Config, steps: int) -> list[tuple[str, float]]:
        """How often so many steps read the training text; of a mixture with weights, each source by its name."""
        drawn, data = steps * config.tokens_per_step, config.data
        kept = min(1.0, data.max_tokens / self.train_tokens) if data.max_tokens else 1.0
        if not data.weights:
            return [("", drawn / (kept * self.train_tokens))]
        sources = [source for source in self.sources if source.held_back != "all"]
        return [
            (source.spec, drawn * weight / sum(data.weights) / (kept * source.train_tokens))
            for weight, source in zip(data.weights, sources, strict=True)
        ]


def _sum(all_counts: Sequence[Counts]) -> dict[str, tuple[int, int]]:
    total: dict[str, tuple[int, int]] = {}
    for counts in all_counts:
        for ending, (files, size) in counts.items():
            before = total.get(ending, (0, 0))
            total[ending] = before[0] + files, before[1] + size
    return total


def _counted(counts: dict[str, tuple[int, int]]) -> str:
    """1,284 files, 12.3 MB (.py 1,200, .md 84)."""
    files, size = (sum(number[place] for number in counts.values()) for place in (0, 1))
    most = sorted(counts, key=lambda ending: -counts[ending][0])
    named = [f"{ending} {counts[ending][0]:,}" for ending in most[:SHOWN]]
    named += [f"{len(most) - SHOWN} more endings"] if len(most) > SHOWN else []
    size_text = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB" if size >= 1e3 else f"{size} B"
    return f"{files:,} file{'s' * (files != 1)}, {size_text} ({', '.join(named)})"
