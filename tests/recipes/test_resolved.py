"""What every recipe comes to, setting by setting, against what it came to before: resolved.json."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from clusterprune import studies
from clusterprune.methods import Method, find

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

RENAMED = {"merge": "merging", "fitness_merge": "fitness_merging"}
CUT = ("eps", "min_samples", "layers", "survivors", "merge")
"""Settings of ICP and ACP that their cut has now; ACP's `merge` is its own."""
OF_THE_RUN = ("seed", "final_epochs", "approximate")
"""No settings any more: the run's seed, its training's epochs, and what may be cut of the network."""
NEW = {"metric": "'cosine'", "clustering": "None"}
"""Settings of a cut by clusters that could not be chosen."""
NEW_IN_TRAINING = {"capture": "True"}
"""How the steps reach a card, which changes no more than the rounding."""


def flat(method: Method) -> dict[str, str]:
    """Return the settings of a method and of its cut."""
    found: dict[str, str] = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if field.name == "cut":
            found |= {f"cut.{part.name}": repr(getattr(value, part.name)) for part in fields(value)}
        else:
            found[field.name] = repr(value)
    return found


def as_now(name: str, before: dict[str, str]) -> dict[str, str]:
    """Return settings as they were, under the names that they have now."""
    method = name.partition("-")[0]
    found = {key: value for key, value in before.items() if key not in OF_THE_RUN}
    if method == "cp":
        return found
    assert found.pop("by") == "'clusters'"
    own = {key: value for key, value in found.items() if key not in CUT or (method, key) == ("acp", "merge")}
    cut = {f"cut.{RENAMED.get(key, key)}": found[key] for key in CUT if key in found}
    # What the cut of ACP handed over, and who survived it, could not be chosen: only its widths count.
    cut |= {"cut.merging": "'drop'", "cut.survivors": "'l1'"} if method == "acp" else {}
    return {RENAMED.get(key, key): value for key, value in own.items()} | cut | {f"cut.{k}": v for k, v in NEW.items()}


def resolved(name: str) -> dict[str, dict[str, str]]:
    """Return the settings of a recipe with all defaults filled in, those of its trainings, and what it is of."""
    recipe = studies.read(name)
    assert recipe.training is not None

    def texts(values: dict[str, Any]) -> dict[str, str]:
        return {key: repr(value) for key, value in values.items()}

    about = {"model": recipe.model, "data": recipe.data, "method": recipe.method, "seeds": recipe.seeds}
    return {
        "about": texts(about),
        "settings": flat(find(recipe.method).read(recipe.settings)),
        "training": texts(recipe.training.model_dump()),
        "baseline": texts(recipe.baseline.model_dump()),
    }


def test_no_recipe_has_gone_and_only_those_of_detection_have_come():
    assert sorted(BEFORE) == [name for name in studies.names() if "-voc-" not in name]


SOLVED = {"cp-resnet50-imagenet-0.618": {"clusters": "Adaptive(real_rate=None)"}}
"""A default that says how it follows the goal, where it said a number; `keep_macs` solves for both all the same."""


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_a_recipe_means_what_it_meant_but_for_what_is_listed(name: str):
    before, now = BEFORE[name], resolved(name)

    moved = MOVED.get(studies.read(name).method, {})
    expected = as_now(name, {**before["settings"], **moved, **SOLVED.get(name, {})})
    trainings = {kind: {**before[kind], **NEW_IN_TRAINING} for kind in ("training", "baseline")}
    settings = {key: value for key, value in expected.items() if value is not None}
    assert now == {**before, **trainings, "settings": settings}
    # ICP's last training was told its length; it is that of the recipe's training.
    assert before["settings"].get("final_epochs", now["training"]["epochs"]) == now["training"]["epochs"]
    assert (before["settings"]["seed"], before["settings"].get("approximate", "False")) == ("0", "False")


def test_nothing_is_listed_that_has_not_moved():
    for method, moved in MOVED.items():
        for name in (name for name in BEFORE if name.startswith(f"{method}-")):
            assert not {key for key, value in moved.items() if BEFORE[name]["settings"].get(key) == value}
