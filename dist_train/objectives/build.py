"""The objectives that a recipe names, built: a row for each kind."""

import importlib
from collections.abc import Callable
from contextlib import ExitStack

from dist_train.config import RunConfig
from dist_train.objectives.config import ObjectiveConfig, ObjectivesConfig
from dist_train.objectives.objective import Objective
from dist_train.objectives.setting import ObjectiveSetting

BUILDERS: dict[str, str] = {
    "triplet": "dist_train.objectives.triplet",
    "supcon": "dist_train.objectives.supcon",
    "center": "dist_train.objectives.center",
    "sample_to_sample": "dist_train.objectives.sample_to_sample",
    "distill": "dist_train.objectives.distill",
    "compatible_with": "dist_train.objectives.compatible",
    "consistency": "dist_train.objectives.consistency",
    "coral": "dist_train.objectives.coral",
}
"""By name of the field in `ObjectivesConfig`, the module whose `build(section, setting)` makes the objective."""


def every_objective(config: RunConfig) -> dict[str, ObjectiveConfig]:
    """The objectives that have a weight in any phase, by name, each as the first such phase has it."""
    found: dict[str, ObjectiveConfig] = {}
    for _, recipe in config.recipes:
        found = {name: section for name, section in recipe.objectives.given().items() if section.weight} | found
    return {name: found[name] for name in ObjectivesConfig.model_fields if name in found}


def build_objectives(setting: ObjectiveSetting) -> dict[str, Objective]:
    """The objectives of the recipe by name, of all its phases, to be closed. A collective.

    Raises:
        UserError: values of the recipe that do not go together, or an extra that is not installed.
        WorkError: damaged files.
    """
    made: dict[str, Objective] = {}
    with ExitStack() as opened:  # where one fails, those before it are closed
        for name, section in every_objective(setting.config).items():
            build: Callable[..., Objective] = importlib.import_module(BUILDERS[name]).build
            made[name] = build(section, setting)
            opened.callback(made[name].close)
        opened.pop_all()
    return made
