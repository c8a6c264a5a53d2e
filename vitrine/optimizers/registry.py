"""Every optimizer, by its name: each file of this folder that defines one is found."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

from vitrine import optimizers
from vitrine.optimizers.optimizer import Optimizer

if TYPE_CHECKING:
    from torch import dtype

    from vitrine.config import OptimizerConfig, ScheduleConfig
    from vitrine.model.entries import Parameters

for _module in pkgutil.iter_modules(optimizers.__path__):
    import_module(f"{optimizers.__name__}.{_module.name}")
OPTIMIZERS = {kind.name: kind for kind in sorted(Optimizer.__subclasses__(), key=lambda kind: kind.name)}


def make_optimizer(
    parameters: "Parameters", config: "OptimizerConfig", schedule: "ScheduleConfig", steps: int, dtype: "dtype"
) -> Optimizer:
    """The optimizer that the hyperparameters name; `dtype` is that of the matrix products."""
    return OPTIMIZERS[config.name](parameters, config, schedule, steps, dtype)


def meaning(hyperparameter: str, everywhere: str = "") -> str:
    """What a hyperparameter of [optimizer] means: in every rule, and in those that say more of it."""
    said: dict[str, list[str]] = {}
    for name, kind in OPTIMIZERS.items():
        if note := kind.hyperparameters.get(hyperparameter):
            said.setdefault(note, []).append(name)
    notes = "; ".join(f"{' and '.join(names)}: {note}" for note, names in said.items())
    return f"{everywhere} ({notes})" if everywhere and notes else everywhere or notes
