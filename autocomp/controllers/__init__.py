"""Controllers: algorithms that decide what to try next. One a file, all behind `ask` and `tell`.

Importing this package loads none of them; `create` imports the one that is asked for.
"""

from importlib import import_module
from typing import cast

from autocomp.budget import Budget
from autocomp.controllers.base import Controller
from autocomp.controllers.costs import CostFunction, Costs
from autocomp.errors import unknown_name
from autocomp.space import SearchSpace

#: name → (module, class). A new controller joins by one line here, which also puts it under the contract tests.
REGISTRY: dict[str, tuple[str, str]] = {
    "random": ("autocomp.controllers.random", "RandomController"),
    "uniform": ("autocomp.controllers.uniform", "UniformController"),
    "evolution": ("autocomp.controllers.evolution", "EvolutionController"),
    "tpe": ("autocomp.controllers.tpe", "TpeController"),
    "ddpg": ("autocomp.controllers.ddpg", "DdpgController"),
}
NAMES = tuple(REGISTRY)

__all__ = ["NAMES", "REGISTRY", "Controller", "CostFunction", "Costs", "create"]


def create(name: str, space: SearchSpace, cost: CostFunction, budget: Budget, seed: int) -> Controller:
    """A fresh controller. UserError if there is none of that name, MissingPackage if it needs one."""
    if name not in REGISTRY:
        raise unknown_name("controller", name, NAMES)
    module, attribute = REGISTRY[name]
    controller = cast(type[Controller], getattr(import_module(module), attribute))
    return controller(space, cost, budget, seed)
