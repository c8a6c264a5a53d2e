"""Vitrine: train a language model from random weights, on your own text, behind glass.

import vitrine
run = vitrine.train("book.txt", steps=500)
print(run.generate("Once").text)

A `Run` knows its history (steps, evaluations, samples, events, statistics), generates, evaluates and exports, replays its
past steps (step, inspect), and is judged (health, verify). Its tables are those of pandas: pandas.DataFrame(run.steps()).
"""

import os
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrine.api import open_run, plan, resume, train
    from vitrine.cli.render import render
    from vitrine.config import Config
    from vitrine.errors import ConfigError, CorpusError, DivergedError, PromptError, RunError, VitrineError
    from vitrine.exchange.hf_import import import_run
    from vitrine.run import Run
    from vitrine.text.builtin import python_topics

# torch's libraries read these when they start: as many threads as asked, never fewer at the library's own choice.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__version__ = "0.1.0"
STARTED_S = time.monotonic()  # when the process began, as near as we can tell
__all__ = [
    "Config",
    "ConfigError",
    "CorpusError",
    "DivergedError",
    "PromptError",
    "Run",
    "RunError",
    "VitrineError",
    "import_run",
    "open_run",
    "plan",
    "python_topics",
    "render",
    "resume",
    "train",
]

_HOMES = {
    "vitrine.exchange.hf_import": ("import_run",),
    "vitrine.api": ("open_run", "plan", "resume", "train"),
    "vitrine.cli.render": ("render",),
    "vitrine.config": ("Config",),
    "vitrine.text.builtin": ("python_topics",),
    "vitrine.errors": (
        "ConfigError",
        "CorpusError",
        "DivergedError",
        "PromptError",
        "RunError",
        "VitrineError",
    ),
    "vitrine.run": ("Run",),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import vitrine` itself stays instant."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'vitrine' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What `help` and tab completion show."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
