import pytest
import torch
from torch import nn

from clusterprune.errors import ArgumentError
from clusterprune.evaluate.mode import device_of, dtype_of, on_device
from clusterprune.graph.throwaway import evaluating


def test_every_module_gets_its_mode_back_even_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    model.train()
    model[0].eval()

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_a_model_in_place_is_itself():
    model = nn.Linear(2, 2)
    for device in (None, "cpu", torch.device("cpu")):
        assert on_device(model, device) == (model, torch.device("cpu"))


def test_a_model_that_must_move_is_copied():
    model = nn.Linear(2, 2)
    moved, place = on_device(model, "meta")
    assert moved is not model
    assert moved.weight.device == place == torch.device("meta")
    assert model.weight.device.type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_devices_that_are_not_there(device):
    with pytest.raises(ArgumentError, match=f"device='{device}' cannot be used"):
        on_device(nn.Linear(2, 2), device)


def test_models_without_parameters():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert dtype_of(nn.ReLU()) == torch.float32
    assert dtype_of(nn.Linear(2, 2).double()) == torch.float64
