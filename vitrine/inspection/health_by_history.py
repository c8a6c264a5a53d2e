"""The verdicts of `vitrine health` that need only a run's history, and their headline. No torch."""

from dataclasses import replace

from typing_extensions import TypedDict

from vitrine.inspection.health_advice import Verdict, advise, headline
from vitrine.inspection.health_history import History, diverged
from vitrine.inspection.health_rules import RULES, unknown
from vitrine.runs.reader import RunReader


def history_verdicts(reader: RunReader) -> tuple[Verdict, ...]:
    """The verdicts that need only the history, and no torch."""
    return advise(reader.config, of_history(reader))


class Headline(TypedDict):
    """What is wrong with a run, by its recorded history only: the verdict with the cause to mend first.

    step: the one to look at. diverged_at: the step at which the training broke off, if it did. tensor: the matrix that moved most in
    the update before, or that is not as it should be; None: none stands out.
    """

    level: str
    step: int | None
    diverged_at: int | None
    tensor: str | None
    blame: str | None
    sentence: str
    cause: str


def history_headline(reader: RunReader) -> Headline | None:
    """The headline by the history only; None if nothing is wrong."""
    found = headline(history_verdicts(reader))
    if found is None:
        return None
    evidence, broken_off = found.evidence, diverged(reader)
    return {
        "level": found.level.value,
        "step": found.step,
        "diverged_at": broken_off.step if broken_off else None,
        "tensor": evidence.get("moved_most", evidence.get("tensor")),
        "blame": found.blame,
        "sentence": found.sentence,
        "cause": found.cause,
    }


def of_history(reader: RunReader) -> list[Verdict]:
    """The verdicts of the rules that need only the history, without advice."""
    history, verdicts = History(reader), []
    rows = min(map(len, history.matrices.values()), default=0)
    have = {"steps": len(history.steps), "later_statistics": rows}
    for rule in (rule for rule in RULES if rule.of in have):
        needed = rule.needs(history) if callable(rule.needs) else rule.needs
        reason = f"{have[rule.of]} {rule.of.replace('_', ' ')} are recorded, {needed} are needed"
        missing = unknown(reason, **{rule.of: have[rule.of]}, needed=needed)
        verdicts.append(replace(rule.judge(history) if have[rule.of] >= needed else missing, name=rule.name))
    return verdicts
