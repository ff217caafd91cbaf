"""The recipes as files: complete, true to the tables, and readable."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from clusterprune import models, studies
from clusterprune.errors import ArgumentError
from clusterprune.methods import Method, find
from clusterprune.studies.recipe import CLASSES

NAMES = studies.names()


PICTURES = ("icp-ssd300-voc-0.002", "icp-ssd300-voc-0.005")
"""Rows of which there are pictures and no figures."""


def test_every_row_of_the_papers():
    assert Counter(name.partition("-")[0] for name in NAMES) == {"icp": 12, "acp": 27, "cp": 5}


def test_ablations_differ_from_their_row_in_what_they_are_about():
    found = studies.ablations()

    assert Counter(name.partition("/")[2].partition("-")[0] for name in found) == {"acp": 11, "cp": 5}
    for name in found:
        recipe = studies.read(name)
        stem = name.partition("/")[2]
        row = studies.read(stem if recipe.method == "acp" else "cp-resnet56-cifar10-50")
        changed = {key for key in recipe.settings | row.settings if recipe.settings.get(key) != row.settings.get(key)}
        assert changed
        assert changed <= ({"cycles"} if recipe.method == "acp" else {"clusters", "clustering"})
        for part in ("model", "data", "training", "baseline", "seeds"):
            assert getattr(recipe, part) == getattr(row, part)
        paper = recipe.published
        assert paper is not None
        assert row.published is not None
        assert paper.baseline == row.published.baseline
        assert paper.drop == pytest.approx(paper.baseline.accuracy - paper.compressed.accuracy, abs=0.0051)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_its_name_says(name: str):
    recipe = studies.read(name)

    assert recipe.name == name
    method, network, data, knob = name.split("-")
    assert (recipe.method, recipe.model.rpartition(":")[2], recipe.data) == (method, network, data)
    if name.startswith("acp-ssd300"):  # three rows of one ε
        assert "eps" not in recipe.settings
        assert 1 - recipe.settings["keep_macs"] == pytest.approx(float(knob), abs=0.005)
    elif method != "cp":
        assert recipe.settings["eps"] == float(knob)
        assert recipe.knob == f"ε = {knob}"
    assert recipe.training is not None
    if method == "icp":
        assert recipe.training.epochs == {"imagenet": 90, "voc": 232}.get(data, 200)


@pytest.mark.parametrize("name", [name for name in NAMES if "cifar" in name])
def test_defaults_are_the_published_ones_but_for_what_the_readme_names(name: str):
    recipe = studies.read(name)
    kind = find(recipe.method)
    training = kind.training
    assert recipe.training is not None
    assert training is not None
    found = facts(kind.read(recipe.settings))
    knobs = ("eps", "goal", "clusters")
    stated = {knob: recipe.settings[knob] for knob in knobs if knob in recipe.settings}
    usual = facts(kind.read(stated))
    different = {field for field, value in found.items() if usual[field] != value}
    assert different <= ({"batch_norm", "scratch"} if recipe.method == "cp" else set())
    assert recipe.training == training.model_copy(update={"warmup_epochs": recipe.training.warmup_epochs})
    preset = facts(kind.preset("published", **stated))
    named = {"icp": {"samples": "128"}, "acp": {"samples": "200"}, "cp": {"batch_norm": "'removed'", "scratch": "True"}}
    assert {f: value for f, value in preset.items() if usual[f] != value} == named[recipe.method]


def facts(method: Method) -> dict[str, str]:
    return {name: repr(value) for name, value in vars(method).items()}


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_agree_with_one_another(name: str):
    paper = studies.read(name).published

    assert (paper is None) == (name in PICTURES)
    if paper is None:
        return
    # Papers subtract before they round.
    assert paper.drop == pytest.approx(paper.baseline.accuracy - paper.compressed.accuracy, abs=0.0101)
    for key, removed in (("params", paper.params_removed), ("macs", paper.macs_removed)):
        before, after = getattr(paper.baseline, key), getattr(paper.compressed, key)
        if after is not None:
            assert removed == pytest.approx(100 * (1 - after / before), abs=0.25)


def test_base_networks_have_the_published_size_and_the_classes_of_their_data(measure):
    published = {(recipe.model, recipe.data): studies.Figures(accuracy=0) for recipe in map(studies.read, NAMES)}
    del published["ssd300", "voc"]  # whose size the papers do not say
    for recipe in map(studies.read, NAMES):
        if recipe.published is not None and recipe.published.baseline.params is not None:
            published[recipe.model, recipe.data] = recipe.published.baseline

    assert sum(figures.params is not None for figures in published.values()) == len(published) == 10
    for (name, data), figures in published.items():
        spec, made = models.resolve(name), []

        def build(spec=spec, data=data, made=made):
            made.append(spec.factory(num_classes=CLASSES[data]))
            return made[0]

        size = measure(build, spec.input_shape[-1])
        assert list(made[0].parameters())[-1].shape == (CLASSES[data],)
        assert size.params == pytest.approx(figures.params * 1e6, rel=0.01)
        # The papers count batch norm.
        assert size.macs_with_batch_norm == pytest.approx(figures.macs * 1e6, rel=0.01)


def test_a_trial_shortens_every_training_and_keeps_the_rest():
    recipe = studies.read("icp-resnet18-imagenet-0.080")
    short = recipe.changed(epochs_scale=0.1, seeds=[3, 4], precision="float32")

    assert short.training is not None
    assert recipe.training is not None
    assert (short.baseline.epochs, short.training.epochs, short.settings["epochs_between"]) == (10, 9, 1)
    assert short.baseline.warmup_epochs == pytest.approx(0.5)
    assert short.seeds == (3, 4)
    assert short.training.precision == "float32"
    assert short.baseline.milestones == recipe.baseline.milestones
    assert short.published == recipe.published
    assert recipe.changed() == recipe
    least = studies.read("acp-vgg16-cifar10-0.010").changed(epochs_scale=1e-6)
    assert (least.baseline.epochs, least.settings["fitness_epochs"]) == (1, 1)


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_a_factor_that_lengthens_or_leaves_nothing_is_refused(scale: float):
    with pytest.raises(ArgumentError, match="epochs_scale must be above 0 and at most 1, but got"):
        studies.read(NAMES[0]).changed(epochs_scale=scale)


def test_an_unknown_name_proposes_near_ones():
    with pytest.raises(ArgumentError, match=r"Did you mean acp-resnet56-cifar10-0\.035"):
        studies.read("acp-resnet56-cifar10-0.036")


def test_a_file_of_ones_own_needs_no_published_figures(own: Path):
    recipe = studies.read(own)

    assert (recipe.name, recipe.published, recipe.seeds) == ("own", None, (0,))
    assert recipe.model == f"{own.parent / 'net.py'}:build"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model: input should be a valid string, but got None"),
        ({"colour": "red"}, "colour is no field of a recipe; the fields are name, model, data, method"),
        ({"data": "mnist"}, "data: input should be 'cifar10', 'cifar100', 'imagenet', 'digits', 'folder' or 'voc'"),
        ({"method": "magic"}, "method='magic' is not known; choose from oneshot, icp"),
        ({"settings": {"eps": "much"}}, "eps='much' is not accepted"),
        ({"settings": {"goal": 0.5}}, "goal=0.5 is no setting of method='icp'"),
        ({"training": {"epochs": 0}}, "epochs: input should be greater than or equal to 1, but got epochs=0"),
        ({"baseline": {"seed": 1}}, "seed belongs to a run, not to its recipe; leave it out"),
        ({"training": None}, "training is missing, but method='icp' trains"),
        ({"seeds": []}, "seeds must be different whole numbers of at least 0, but got seeds=[]"),
        ({"seeds": [1, 1]}, "seeds must be different whole numbers of at least 0, but got seeds=[1, 1]"),
        ({"published": {"paper": "x"}}, "published.table is missing"),
        (
            {"published": {"baseline": {"accuracy": 200}}},
            "published.baseline.accuracy: input should be less than or equal to 100, but got 200",
        ),
    ],
)
def test_faults_of_a_file_are_named(own: Path, tmp_path: Path, change: dict, message: str):
    content = {**yaml.safe_load(own.read_text()), **change}
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ArgumentError) as caught:
        studies.read(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_files_that_are_none_are_named(tmp_path: Path):
    with pytest.raises(ArgumentError, match=r"nowhere\.yaml' does not exist; check the path"):
        studies.read(tmp_path / "nowhere.yaml")
    (tmp_path / "text.yaml").write_text("- a\n- b\n")
    with pytest.raises(ArgumentError, match="must hold fields such as"):
        studies.read(tmp_path / "text.yaml")
    (tmp_path / "text.yaml").write_text("model: [")
    with pytest.raises(ArgumentError, match="is not YAML"):
        studies.read(tmp_path / "text.yaml")
