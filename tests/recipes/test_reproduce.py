"""Running recipes, on a few images and for one epoch each."""

import functools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from examples import first
from safetensors.torch import load_file
from voc_squares import write_squares

from clusterprune import data, evaluate, models, studies, train
from clusterprune.errors import ArgumentError, DataError, OutputError, UntrustedCodeError
from clusterprune.studies import reproduction

LEAST = 1e-6
MACS_RESNET20 = 40_551_040
TIMES = ("latency_ms", "latency_iqr_ms")
Reproduce = Callable[..., studies.Reproduction]


class StopError(Exception):
    """Stands for anything that ends a run."""


@pytest.fixture
def reproduce(own: Path) -> Reproduce:
    """Return the function, told that the file of the recipe's network may be run."""
    return functools.partial(studies.reproduce, trust=own.with_name("net.py"))


def figures(measurement) -> dict:
    return {f.name: getattr(measurement, f.name) for f in fields(measurement) if f.name not in TIMES}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def shallow(name: str) -> studies.Recipe:
    """Return a recipe for ResNet-56 with ResNet-20 in its place, which takes a third of the time."""
    return studies.read(name).model_copy(update={"model": "resnet20"})


@pytest.mark.parametrize("name", first(1, ["icp-resnet56-cifar10-0.015", "cp-resnet56-cifar10-50"]))
def test_a_recipe_runs_from_end_to_end(ten: Path, tmp_path: Path, name: str):
    images = data.load(f"folder:{ten}")
    made = studies.reproduce(
        shallow(name), images, out=tmp_path, epochs_scale=LEAST, limit=64, seeds=[0], precision="float32"
    )

    assert made.trial == "1e-06 times the epochs, 64 training images"
    assert made.baseline.macs == MACS_RESNET20
    assert made.baseline.images == 20
    (small,) = made.compressed.values()
    assert small.params < made.baseline.params
    assert small.macs < made.baseline.macs
    built = models.build("resnet20", weights=tmp_path / "baseline" / "model.safetensors")
    assert evaluate.params(built) == made.baseline.params


def test_acp_compares_structures_on_held_out_images_and_trains_the_best_on_all(
    ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[str, int, int | None]] = []
    genuine = train.fit

    def fit(model, task, config, **more):
        phase = "retrain" if more.get("out") else "candidate"
        seen.append((phase, len(task.train), None if task.validation is None else len(task.validation)))
        return genuine(model, task, config, **more)

    for place in ("methods.acp_search", "train"):
        monkeypatch.setattr(f"clusterprune.{place}.fit", fit)
    recipe = shallow("acp-resnet56-cifar10-0.035")
    # Two structures in place of 36.
    recipe = recipe.model_copy(update={"settings": {**recipe.settings, "particles": 1, "cycles": 1}})
    made = studies.reproduce(
        recipe, data.load(f"folder:{ten}"), out=tmp_path, epochs_scale=LEAST, limit=60, precision="float32"
    )

    assert seen[0] == ("retrain", 60, None)  # the baseline
    assert set(seen[1:-1]) == {("candidate", 54, 6)}
    assert seen[-1] == ("retrain", 60, None)
    assert made.compressed[0].macs < made.baseline.macs


def test_a_run_that_was_stopped_anywhere_ends_like_one_that_was_not(own: Path, reproduce: Reproduce, tmp_path: Path):
    digits, recipe = data.load("digits"), studies.read(own)
    whole = reproduce(recipe, digits, out=tmp_path / "whole", seeds=[0, 1], limit=200)

    for at in (2, 8):
        count = 0

        def stop(_phase, event, at=at):
            nonlocal count
            count += event.kind == "epoch"
            if count == at:
                raise StopError

        folder = tmp_path / f"stopped-{at}"
        with pytest.raises(StopError):
            reproduce(recipe, digits, out=folder, seeds=[0, 1], limit=200, watch=stop)
        resumed = reproduce(recipe, digits, out=folder, seeds=[0, 1], limit=200)
        assert figures(resumed.baseline) == figures(whole.baseline)
        for seed in (0, 1):
            assert figures(resumed.compressed[seed]) == figures(whole.compressed[seed])
            place = Path("method") / f"seed-{seed}" / "compact"
            assert same(weights(folder / place), weights(tmp_path / "whole" / place))
    assert not same(*(weights(tmp_path / f"whole/method/seed-{seed}/compact") for seed in (0, 1)))


def test_what_is_finished_is_not_done_again(
    own: Path, reproduce: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    digits, recipe = data.load("digits"), studies.read(own)
    first = reproduce(recipe, digits, out=tmp_path, limit=100, epochs_scale=0.3)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for name in ("train.fit", "runs.measure", "methods.Method.run"):
        monkeypatch.setattr(f"clusterprune.{name}", fail)
    again = reproduce(recipe, digits, out=tmp_path, limit=100, epochs_scale=0.3)
    assert again.baseline == first.baseline
    assert again.compressed == first.compressed


def test_a_folder_belongs_to_one_run(own: Path, reproduce: Reproduce, tmp_path: Path):
    digits, recipe = data.load("digits"), studies.read(own)
    reproduce(recipe, digits, out=tmp_path, limit=100, epochs_scale=0.3)

    with pytest.raises(OutputError, match="was begun with another limit; choose another folder"):
        reproduce(recipe, digits, out=tmp_path, limit=99, epochs_scale=0.3)
    with pytest.raises(OutputError, match="another training of the recipe, another baseline of the recipe"):
        reproduce(recipe, digits, out=tmp_path, limit=100)
    (tmp_path / reproduction.ASKED_NAME).write_text("{}")
    with pytest.raises(OutputError, match="is damaged"):
        reproduce(recipe, digits, out=tmp_path, limit=100, epochs_scale=0.3)


def test_weights_take_the_place_of_the_training(own: Path, reproduce: Reproduce, tmp_path: Path):
    digits, recipe = data.load("digits"), studies.read(own)
    first = reproduce(recipe, digits, out=tmp_path / "a", limit=100)
    file = tmp_path / "a" / "baseline" / "model.safetensors"
    second = reproduce(recipe, digits, out=tmp_path / "b", limit=100, weights=file)

    assert figures(second.baseline) == figures(first.baseline)
    assert figures(second.compressed[0]) == figures(first.compressed[0])
    assert [path.name for path in (tmp_path / "b" / "baseline").iterdir()] == ["measured.json"]


def test_the_test_images_decide_nothing(own: Path, reproduce: Reproduce, tmp_path: Path):
    digits, recipe = data.load("digits"), studies.read(own)
    wrong = data.Split.from_tensors(digits.test.images(), (digits.test.labels + 1) % 10, digits.classes)
    other = data.Dataset("digits", digits.classes, {"train": digits.train, "test": wrong})
    a = reproduce(recipe, digits, out=tmp_path / "a", limit=400)
    b = reproduce(recipe, other, out=tmp_path / "b", limit=400)

    place = Path("method/seed-0/compact")
    assert same(weights(tmp_path / "a" / place), weights(tmp_path / "b" / place))
    assert a.baseline.metrics != b.baseline.metrics


def test_data_of_another_kind_are_refused_before_any_work(own: Path, ten: Path, hundred: Path, tmp_path: Path):
    recipe = studies.read("icp-resnet56-cifar10-0.015")
    with pytest.raises(DataError, match=r"is for cifar10 with its 10 classes, but data=.* has 100; give cifar10:DIR"):
        studies.reproduce(recipe, data.load(f"folder:{hundred}"), out=tmp_path / "run")
    with pytest.raises(DataError, match=r"is for cifar10 .* but data='digits' has 10"):
        studies.reproduce(recipe, data.load("digits"), out=tmp_path / "run")
    with pytest.raises(ArgumentError, match="limit=19 is less than two images for each of 10 classes; give 20"):
        studies.reproduce(recipe, data.load(f"folder:{ten}"), out=tmp_path / "run", limit=19)
    assert not (tmp_path / "run").exists()


def test_the_file_that_a_recipe_names_is_not_run_unasked(own: Path, tmp_path: Path):
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    recipe = studies.read(own).model_copy(update={"model": f"{trap}:build"})
    for trust in (None, own.with_name("net.py"), f"{trap}@{'0' * 64}"):
        with pytest.raises(UntrustedCodeError, match=r"trap\.py"):
            studies.reproduce(recipe, data.load("digits"), out=tmp_path / "run", trust=trust)
    assert {path.name for path in tmp_path.iterdir()} == {"trap.py"}


def test_the_settings_are_written_down(own: Path, reproduce: Reproduce, tmp_path: Path):
    reproduce(studies.read(own), data.load("digits"), out=tmp_path, limit=100, epochs_scale=0.3)
    asked = json.loads((tmp_path / reproduction.ASKED_NAME).read_text())

    assert asked["limit"] == 100
    assert asked["recipe"]["baseline"]["epochs"] == 1
    assert asked["recipe"]["settings"]["eps"] == yaml.safe_load(own.read_text())["settings"]["eps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.names())
def test_every_recipe_runs(ten: Path, hundred: Path, tmp_path: Path, name: str):
    recipe = studies.read(name)
    if recipe.method == "acp":  # two structures in place of 36, each of which takes as long as the rest of the run
        recipe = recipe.model_copy(update={"settings": {**recipe.settings, "particles": 1, "cycles": 1}})
    if recipe.data == "imagenet":  # a thousand classes would be too many images
        recipe = recipe.model_copy(update={"data": "folder"})
    if recipe.data == "voc":
        images, limit = write_squares(tmp_path / "voc", [*map(str, range(18))]), 12
    else:
        found, limit = {"cifar10": (ten, 64), "cifar100": (hundred, 200), "folder": (ten, 20)}[recipe.data]
        images = f"folder:{found}"
    size = models.resolve(recipe.model).input_shape[-1]
    made = studies.reproduce(
        recipe, data.load(images, image_size=size), out=tmp_path / "run", epochs_scale=LEAST, limit=limit, seeds=[0]
    )

    assert made.compressed[0].macs <= made.baseline.macs
