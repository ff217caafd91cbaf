import pytest
import torch
from safetensors.torch import save_file

from clusterprune import models
from clusterprune.errors import ArgumentError, ModelError, WeightsError


def test_names_are_the_cifar_networks():
    assert models.names() == [
        "vgg16", "vgg19", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "googlenet",
    ]  # fmt: skip


@pytest.mark.parametrize("name", models.names())
def test_every_builtin_runs_on_its_own_example(name):
    spec = models.resolve(name)
    assert spec.name == name
    assert spec.input_shape == (3, 32, 32)
    assert spec.mean == (0.4914, 0.4822, 0.4465)
    assert spec.std == (0.2470, 0.2435, 0.2616)
    with torch.device("meta"):
        model = spec.build()
        wide = spec.build(num_classes=100)
    assert model(spec.example(2).to("meta")).shape == (2, spec.num_classes)
    assert wide(spec.example(2).to("meta")).shape == (2, 100)


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("resnet57", "Did you mean resnet56"),
        ("ResNet-56", "resnet56"),
        ("resnet50", "Did you mean torchvision:resnet50"),
        ("zzz", "Built-in models: vgg16, vgg19"),
        ("", "Built-in models"),
        ("hub:resnet18", "torchvision:NAME, timm:NAME or path/to/file.py:factory"),
    ],
)
def test_an_unknown_name_gets_suggestions_and_the_list(spec, near):
    with pytest.raises(ModelError) as error:
        models.resolve(spec)
    assert f"model={spec!r} is not known" in str(error.value)
    assert near in str(error.value)
    assert "googlenet" in str(error.value)


def test_a_model_that_is_no_string_is_refused():
    with pytest.raises(ArgumentError, match="but got Linear"):
        models.resolve(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]


def test_build_fills_the_model_from_a_file(tmp_path):
    source = models.build("resnet20", num_classes=4, seed=1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = models.build("resnet20", num_classes=4, weights=tmp_path / "w.safetensors", seed=2)
    assert not model.training
    x = models.resolve("resnet20").example(2)
    assert torch.equal(model(x), source(x))


def test_build_takes_a_resolved_spec_too():
    model = models.build(models.resolve("resnet20"), num_classes=3, seed=0)
    same = models.build("resnet20", num_classes=3, seed=0)
    assert torch.equal(model.get_parameter("linear.weight"), same.get_parameter("linear.weight"))


def test_weights_of_another_number_of_classes_say_so(tmp_path):
    save_file(models.build("resnet20", num_classes=100).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"100 classes and the model has 10.*num_classes=100"):
        models.build("resnet20", weights=tmp_path / "w.safetensors")
