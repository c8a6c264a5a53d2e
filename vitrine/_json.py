"""JSON of results, and the constants that Python shares with the page.

In results, dataclasses, NumPy's numbers and paths are known, and so is what has a `to_json`; a number that is not finite
becomes null.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

# Colours, scale factors and limits; the page's build reads the same file (web/src/lib/constants.ts). `on_any_ground` holds
# colours that can be read on white and on black, for a notebook, whose background is not known.
CONSTANTS: dict[str, Any] = json.loads(Path(__file__).with_name("constants.json").read_text("utf-8"))


def dumps(content: Any, **style: Any) -> str:
    """A result as text; `style` as `json.dumps` takes it."""
    try:
        return json.dumps(content, allow_nan=False, default=_known, **style)
    except ValueError:  # a number that is not finite
        return json.dumps(plain(content), allow_nan=False, **style)


def plain(value: Any) -> Any:
    """A result as dicts, lists, texts and numbers."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else plain(_known(value))


def _known(value: Any) -> Any:
    """One level of what json does not know."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # of NumPy, which is not imported for this
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
