"""What every recipe comes to, setting by setting, against what it came to before: resolved.json."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from clusterprune import studies
from clusterprune.methods.settings import read_method

BEFORE: dict[str, dict[str, dict[str, str]]] = json.loads((Path(__file__).parent / "resolved.json").read_text())
"""Made by `resolved` of all recipes; a value is the text that Python has for it."""

# Not a setting: of ResNet-50's blocks ACP clusters the middle convolution, and the first has its width, as published.
# Each had its own.
MOVED: dict[str, dict[str, str | None]] = {
    "acp": {
        # One setting became two, both of the old value.
        "inherit": None,
        "candidates_inherit": "False",
        "retraining_inherits": "False",
        # As released, where the paper names no value: it was a tenth of a layer's width.
        "velocity_max": "2.0",
    },
    # As released: the optimizer starts anew at each cut.
    "icp": {"carry_momentum": "False"},
}
"""By method, the settings that mean something else since, or are new, or (None) are gone. Why is beside each."""


def resolved(name: str) -> dict[str, dict[str, str]]:
    """Return the settings of a recipe with all defaults filled in, those of its trainings, and what it is of."""
    recipe = studies.read(name)
    assert recipe.training is not None
    settings = {}
    for part in read_method(recipe.method, recipe.settings, epochs=recipe.training.epochs):
        if part is not None:
            settings |= {field.name: repr(getattr(part, field.name)) for field in fields(part)}

    def texts(values: dict[str, Any]) -> dict[str, str]:
        return {key: repr(value) for key, value in values.items()}

    about = {"model": recipe.model, "data": recipe.data, "method": recipe.method, "seeds": recipe.seeds}
    return {
        "about": texts(about),
        "settings": settings,
        "training": texts(recipe.training.model_dump()),
        "baseline": texts(recipe.baseline.model_dump()),
    }


def test_no_recipe_has_come_or_gone():
    assert sorted(BEFORE) == studies.names()


SOLVED = {"cp-resnet50-imagenet-0.618": {"clusters": "Adaptive(real_rate=None)"}}
"""A default that says how it follows the goal, where it said a number; `keep_macs` solves for both all the same."""


@pytest.mark.parametrize("name", studies.names())
def test_a_recipe_means_what_it_meant_but_for_what_is_listed(name: str):
    before, now = BEFORE[name], resolved(name)

    moved = MOVED.get(studies.read(name).method, {})
    expected = {**before["settings"], **moved, **SOLVED.get(name, {})}
    assert now == {**before, "settings": {key: value for key, value in expected.items() if value is not None}}


def test_nothing_is_listed_that_has_not_moved():
    for method, moved in MOVED.items():
        for name in (name for name in studies.names() if name.startswith(f"{method}-")):
            assert not {key for key, value in moved.items() if BEFORE[name]["settings"].get(key) == value}
