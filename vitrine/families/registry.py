"""Every family, by its name: each file of this folder that defines one is found."""

import pkgutil
from importlib import import_module

from vitrine import families
from vitrine.families.family import Family

for _module in pkgutil.iter_modules(families.__path__):
    import_module(f"{families.__name__}.{_module.name}")
FAMILIES = {kind.name: kind for kind in sorted(Family.__subclasses__(), key=lambda kind: kind.name)}
