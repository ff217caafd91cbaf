import pytest
import torch
from torch import nn

from clusterprune import evaluate
from clusterprune.errors import ArgumentError, ModelError


def test_macs_of_a_conv_and_a_linear():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 5))
    assert evaluate.macs(model, torch.zeros(1, 3, 6, 6)) == 36 * 27 * 8 + 8 * 36 * 5
    assert evaluate.macs(model, torch.zeros(2, 3, 6, 6)) == 2 * (36 * 27 * 8 + 8 * 36 * 5)


def test_macs_of_grouped_and_strided_convs():
    assert evaluate.macs(nn.Conv2d(8, 8, 3, groups=8), torch.zeros(1, 8, 6, 6)) == 16 * 9 * 8
    assert evaluate.macs(nn.Conv2d(4, 6, 1, stride=2), torch.zeros(1, 4, 6, 6)) == 9 * 4 * 6


def test_several_inputs():
    class Product(nn.Module):
        def forward(self, left, right):
            return left @ right

    example = (torch.zeros(4, 5), torch.zeros(5, 6))
    assert evaluate.macs(Product(), example) == 4 * 5 * 6


def test_a_model_keeps_its_mode_and_buffers():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.Dropout()).train()
    model[1].eval()
    evaluate.macs(model, torch.ones(1, 3, 4, 4))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert model[1].num_batches_tracked == 0


def test_mode_is_kept_when_the_model_fails():
    model = nn.Linear(3, 4).train()
    with pytest.raises(ModelError, match=r"example of shape \(2, 5\)"):
        evaluate.macs(model, torch.zeros(2, 5))
    assert model.training


@pytest.mark.parametrize("example", [(), [torch.zeros(1)], (1,), None])
def test_examples_are_tensors(example):
    with pytest.raises(ArgumentError, match="example"):
        evaluate.macs(nn.Linear(1, 1), example)


def test_params_count_shared_ones_once_and_no_buffers():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.append(model[0])
    assert evaluate.params(model) == 9 + 3 + 6


def test_a_module_that_is_given_a_parameter_is_counted():
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 4))
            self.layer, self.identity = nn.Linear(4, 3), nn.Identity()
            self.layer.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.layer(self.identity(self.token))

    model = Given()
    asked = [parameter.requires_grad for parameter in model.parameters()]
    assert evaluate.macs(model, torch.zeros(1, 4)) == 24
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
