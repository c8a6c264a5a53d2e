"""The hyperparameters as a form needs them, and what a form sends back. No path comes in by it."""

import math
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vitrine.config import SECTIONS, Settings, check_name, parse_settings
from vitrine.errors import ConfigError
from vitrine.presets import PRESETS

# What names files, or is asked for in another way.
ELSEWHERE = ("data.corpus", "training.parent")
TOKENIZER = re.compile(r"auto|char|byte|bpe:\d+")


def hyperparameters() -> dict[str, Any]:
    """Every hyperparameter with its explanation and its range, and the presets."""
    rows = [
        _describe(section, key, field)
        for section, model in SECTIONS.items()
        for key, field in model.model_fields.items()
        if f"{section}.{key}" not in ELSEWHERE
    ]
    return {"hyperparameters": rows, "presets": PRESETS}


def read_settings(given: Mapping[str, Any]) -> Settings:
    """What a form sent, by `section.key`: numbers and truth values, or text as `--set` takes it."""
    settings: Settings = {}
    for name, value in given.items():
        section, key = check_name(name)
        if name in ELSEWHERE:
            raise ConfigError(f"{name} cannot be set here: choose the text, or the step to go on from.")
        if isinstance(value, str):
            value = parse_settings([f"{name}={value}"])[section][key]
        settings.setdefault(section, {})[key] = value
    data = settings.get("data", {})
    if "tokenizer" in data and not TOKENIZER.fullmatch(str(data["tokenizer"])):
        raise ConfigError(f"data.tokenizer must be auto, char, byte or bpe:N here: got {data['tokenizer']!r}.")
    if not isinstance(data.get("validation", 0.0), int | float) and data["validation"] != "auto":
        raise ConfigError(f"data.validation must be a fraction here, such as 0.1: got {data['validation']!r}.")
    return settings


def _describe(section: str, key: str, field: FieldInfo) -> dict[str, Any]:
    kind, choices, limits = _kind(field.annotation), list(_choices(field.annotation)), {}
    for limit in _limits(field):
        for name, bound in (("ge", "least"), ("gt", "above"), ("le", "most"), ("lt", "below")):
            value = getattr(limit, name, None)
            if value is not None and math.isfinite(value):
                limits[bound] = value
    return {
        "section": section,
        "key": key,
        "description": field.description or "",
        "default": None if field.default is PydanticUndefined else field.default,
        "kind": "choice" if choices else kind,
        "choices": choices,
        "least": limits.get("least"),
        "above": limits.get("above"),
        "most": limits.get("most"),
        "below": limits.get("below"),
    }


def _kind(annotation: Any) -> str:
    """int, float, bool or text; lists and what may be several things are text, as `--set` takes it."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return {int: "int", float: "float", bool: "bool"}.get(annotation, "text")


def _choices(annotation: Any) -> Iterator[str]:
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)


def _limits(field: FieldInfo) -> Iterator[Any]:
    for part in field.metadata:
        if isinstance(part, annotated_types.BaseMetadata):
            yield part
        elif isinstance(part, FieldInfo):
            yield from _limits(part)
