"""The objectives that a recipe names, built: a row for each kind."""

import importlib
from collections.abc import Callable
from contextlib import ExitStack

from dist_train.objectives.objective import Objective
from dist_train.objectives.setting import ObjectiveSetting

BUILDERS: dict[str, str] = {
    "consistency": "dist_train.objectives.consistency",
    "coral": "dist_train.objectives.coral",
}
"""By name of the field in `ObjectivesConfig`, the module whose `build(section, setting)` makes the objective."""


def build_objectives(setting: ObjectiveSetting) -> dict[str, Objective]:
    """The objectives of the recipe by name, to be closed; those of weight 0 are left out. A collective.

    Raises:
        UserError: values of the recipe that do not go together, or an extra that is not installed.
        WorkError: damaged files.
    """
    made: dict[str, Objective] = {}
    with ExitStack() as opened:  # where one fails, those before it are closed
        for name, section in setting.config.objectives.given().items():
            if section.weight:
                build: Callable[..., Objective] = importlib.import_module(BUILDERS[name]).build
                made[name] = build(section, setting)
                opened.callback(made[name].close)
        opened.pop_all()
    return made
