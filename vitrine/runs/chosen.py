"""Who chose each hyperparameter of a run, and how: the fact `chosen`. Needs no torch."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitrine.config import Config, Settings

By = Literal["you", "preset", "parent", "default", "derived"]
DEFAULT = "the default: nothing else was asked for"
GIVEN = "given when the run was started"
CHANGED = "changed in config.toml after the run began"


class Derived(NamedTuple):
    """A value that follows from others, and how it does, in words."""

    value: Any
    how: str


class Chosen(NamedTuple):
    """Who chose a value, and how: in words that complete «its value is …»."""

    by: By
    how: str


@dataclass(frozen=True)
class Layer:
    """Settings of one origin. by: who chose them; None: they only spell out those of the layers below, such as a path."""

    by: By | None
    how: str
    settings: Settings


def who_chose(layers: Iterable[Layer], derived: Mapping[str, str], config: Config) -> dict[str, Chosen]:
    """For each `section.key`, who chose it. Later layers win, as in `config.merge`.

    derived: how each value was derived that no layer has.
    """
    names = [f"{section}.{key}" for section, keys in config.model_dump().items() for key in keys]
    without = {n: Chosen("derived", derived[n]) if n in derived else Chosen("default", DEFAULT) for n in names}
    found = dict(without)
    for layer in layers:
        for section, values in layer.settings.items():
            for key, value in values.items():
                name = f"{section}.{key}"
                if value == "auto":
                    found[name] = without[name]
                elif layer.by:
                    found[name] = Chosen(layer.by, layer.how)
    return found


def in_file(path: str | Path) -> str:
    """How a value was chosen that a file of hyperparameters gives."""
    return f"given in the file {Path(path).name}"


def chosen_fact(chosen: Mapping[str, Chosen], config: Config) -> str:
    """The fact `chosen`, as JSON. The values are there to notice later changes of config.toml."""
    values = config.model_dump(mode="json")
    told = {}
    for name, (by, how) in chosen.items():
        section, _, key = name.partition(".")
        told[name] = {"by": by, "how": how, "value": values[section][key]}
    return json.dumps(told)


def read_chosen(fact: str, config: Config) -> dict[str, Chosen] | None:
    """The fact for the hyperparameters as they are now; None if there is no such fact."""
    if not fact:
        return None
    values, told = config.model_dump(mode="json"), json.loads(fact)
    found = {}
    for section, keys in values.items():
        for key, value in keys.items():
            name = f"{section}.{key}"
            then = told.get(name)
            if then is None:  # a later version added this hyperparameter
                found[name] = Chosen("default", DEFAULT)
            elif then["value"] != value and name != "data.corpus":  # a folder of text may have been moved
                found[name] = Chosen("you", CHANGED)
            else:
                found[name] = Chosen(then["by"], then["how"])
    return found
