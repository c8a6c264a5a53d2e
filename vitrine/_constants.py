"""Colours, scale factors and limits that Python shares with the studio's page: constants.json.

The page's build reads the same file (web/src/lib/constants.ts). `on_any_ground` holds colours that can be read on white
and on black, for a notebook, whose background is not known.
"""

import json
from importlib import resources
from typing import Any

CONSTANTS: dict[str, Any] = json.loads(resources.files("vitrine").joinpath("constants.json").read_text("utf-8"))
