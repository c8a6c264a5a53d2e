"""The form of hyperparameters: its description for the page, and the settings that it sends. It accepts no path."""

import re
from collections.abc import Mapping
from typing import Any

from vitrine.config import SECTIONS, Settings, check_name, parse_settings
from vitrine.errors import ConfigError
from vitrine.presets import PRESETS

# Hyperparameters that name files, or have another place on the page.
ELSEWHERE = ("data.corpus", "training.parent")
TOKENIZER = re.compile(r"auto|char|byte|bpe:\d+")


def hyperparameters() -> dict[str, Any]:
    """Every hyperparameter of the form with its explanation and its range, the explanations of all, and the presets."""
    schemas = {
        (section, key): schema
        for section, model in SECTIONS.items()
        for key, schema in model.model_json_schema()["properties"].items()
    }
    return {
        "hyperparameters": [
            _describe(*name, schema) for name, schema in schemas.items() if ".".join(name) not in ELSEWHERE
        ],
        "descriptions": {".".join(name): schema["description"] for name, schema in schemas.items()},
        "presets": PRESETS,
    }


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Read what a form sent, by `section.key`: numbers and booleans, or text as in `--set`."""
    settings: Settings = {}
    for name, value in given.items():
        section, key = check_name(name)
        if name in ELSEWHERE:
            raise ConfigError(f"{name} cannot be set here: choose the text, or the step to continue from.")
        if isinstance(value, str):
            value = parse_settings([f"{name}={value}"])[section][key]
        settings.setdefault(section, {})[key] = value
    data = settings.get("data", {})
    if "tokenizer" in data and not TOKENIZER.fullmatch(str(data["tokenizer"])):
        raise ConfigError(f"data.tokenizer must be auto, char, byte or bpe:N here: got {data['tokenizer']!r}.")
    if not isinstance(data.get("validation", 0.0), int | float) and data["validation"] != "auto":
        raise ConfigError(f"data.validation must be a fraction here, such as 0.1: got {data['validation']!r}.")
    return settings


def _describe(section: str, key: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the form, from a property of a section's JSON schema. Lists and unions are text, as in `--set`."""
    kinds = {"integer": "int", "number": "float", "boolean": "bool"}
    return {
        "section": section,
        "key": key,
        "description": schema["description"],
        "default": schema.get("default"),
        "kind": "choice" if "enum" in schema else kinds.get(schema.get("type", ""), "text"),
        "choices": schema.get("enum", []),
        "least": schema.get("minimum"),
        "above": schema.get("exclusiveMinimum"),
        "most": schema.get("maximum"),
        "below": schema.get("exclusiveMaximum"),
    }
