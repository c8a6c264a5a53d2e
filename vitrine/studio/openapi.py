"""Writes the studio's OpenAPI schema, from which the page's types are made: `python -m vitrine.studio.openapi`."""

import json
from pathlib import Path
from typing import Any

from vitrine.studio.app import make_app

FILE = Path(__file__).parents[2] / "web" / "openapi.json"


def schema() -> str:
    """The OpenAPI document of every route, in its committed form."""
    document = _without_titles(make_app([], "", 0).openapi())
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _without_titles(part: Any) -> Any:
    """Remove the titles: they only repeat the names."""
    if isinstance(part, dict):
        titled = isinstance(part.get("title"), str) and "version" not in part
        return {key: _without_titles(value) for key, value in part.items() if not (titled and key == "title")}
    return [_without_titles(value) for value in part] if isinstance(part, list) else part


if __name__ == "__main__":
    FILE.write_text(schema(), encoding="utf-8")
