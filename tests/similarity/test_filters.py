"""Filters as vectors: flattening, biases, and folding that equals a real batch norm."""

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from clusterprune.errors import ArgumentError
from clusterprune.similarity import BatchNormTensors, Filters


def _batch_norm(channels: int, generator: torch.Generator) -> BatchNormTensors:
    return BatchNormTensors(
        mean=torch.randn(channels, generator=generator),
        var=torch.rand(channels, generator=generator) + 0.1,
        gamma=torch.randn(channels, generator=generator),
        beta=torch.randn(channels, generator=generator),
        eps=1e-3,
    )


def test_filters_are_flattened() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert Filters().vectors(weight).tolist() == [
        list(map(float, range(12))),
        list(map(float, range(12, 24))),
    ]
    assert Filters().distances(weight)[0, 1].item() == pytest.approx(12 * 12**0.5)


def test_a_vector_of_weights_is_one_coordinate_per_channel() -> None:
    assert Filters().vectors(torch.tensor([1.0, 2.0])).tolist() == [[1.0], [2.0]]


def test_bias_is_a_further_coordinate() -> None:
    weight = torch.ones(2, 1, 1, 1)
    vectors = Filters().vectors(weight, bias=torch.tensor([0.0, 3.0]))
    assert vectors.tolist() == [[1.0, 0.0], [1.0, 3.0]]
    assert Filters().distances(weight, bias=torch.tensor([0.0, 3.0]))[0, 1].item() == 3.0


def test_folding_by_hand() -> None:
    batch_norm = BatchNormTensors(
        mean=torch.tensor([1.0, 0.0]),
        var=torch.tensor([3.0, 0.0]),
        gamma=torch.tensor([4.0, 2.0]),
        beta=torch.tensor([5.0, 3.0]),
        eps=1.0,
    )
    # Scales 4 / sqrt(4) = 2 and 2 / sqrt(1) = 2; shifts 5 - 1 * 2 = 3 and 3 - 0 * 2 = 3.
    weight = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    folded = Filters(fold_batch_norm=True).vectors(weight, batch_norm=batch_norm)
    torch.testing.assert_close(folded, torch.tensor([[2.0, 4.0, 3.0], [2.0, 4.0, 3.0]], dtype=torch.float64))


@settings(deadline=None, max_examples=examples(15))
@given(seed=st.integers(0, 2**31), with_bias=st.booleans())
def test_folded_filters_compute_what_convolution_and_batch_norm_do(seed: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = _batch_norm(5, generator)
    convolution = nn.Conv2d(2, 5, 3, bias=with_bias).double()
    layer = nn.BatchNorm2d(5, eps=tensors.eps).double().eval()
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer.load_state_dict(
        {
            "running_mean": tensors.mean,
            "running_var": tensors.var,
            "weight": tensors.gamma,
            "bias": tensors.beta,
            "num_batches_tracked": torch.tensor(1),
        }
    )
    folded = Filters(fold_batch_norm=True).vectors(convolution.weight, bias=convolution.bias, batch_norm=tensors)
    images = torch.randn(2, 2, 6, 6, generator=generator, dtype=torch.float64)
    expected = layer(convolution(images))
    actual = functional.conv2d(images, folded[:, :-1].reshape(5, 2, 3, 3), folded[:, -1])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_channels_that_batch_norm_makes_equal_are_equal_only_after_folding() -> None:
    weight = torch.tensor([[1.0, -2.0], [2.0, -4.0]])
    batch_norm = BatchNormTensors(mean=torch.tensor([1.0, 2.0]), var=torch.tensor([1.0, 4.0]), eps=0.0)
    assert Filters().distances(weight, batch_norm=batch_norm)[0, 1].item() > 1
    folded = Filters(fold_batch_norm=True).distances(weight, batch_norm=batch_norm)
    assert folded[0, 1].item() == 0.0


def test_a_layer_without_batch_norm_is_its_own_folding() -> None:
    weight, bias = torch.tensor([[1.0], [4.0]]), torch.tensor([1.0, 5.0])
    folding = Filters(fold_batch_norm=True)
    assert folding.vectors(weight).tolist() == [[1.0, 0.0], [4.0, 0.0]]
    assert folding.vectors(weight, bias=bias).tolist() == [[1.0, 1.0], [4.0, 5.0]]


def test_batch_norm_is_not_read_without_folding() -> None:
    weight = torch.ones(2, 3)
    batch_norm = _batch_norm(2, torch.Generator().manual_seed(0))
    assert torch.equal(Filters().vectors(weight, batch_norm=batch_norm), Filters().vectors(weight))


@pytest.mark.parametrize("part", ["bias", "mean", "var", "gamma", "beta"])
def test_a_tensor_of_another_size_is_refused_by_name(part: str) -> None:
    def size(name: str) -> Tensor:
        return torch.ones(3 if name == part else 2)

    batch_norm = BatchNormTensors(size("mean"), size("var"), size("gamma"), size("beta"))
    with pytest.raises(ArgumentError, match=rf"{part} must have one value for each of the 2"):
        Filters(fold_batch_norm=True).vectors(torch.ones(2, 4), bias=size("bias"), batch_norm=batch_norm)


def test_a_negative_variance_is_refused() -> None:
    batch_norm = BatchNormTensors(mean=torch.zeros(2), var=torch.tensor([1.0, -1.0]))
    with pytest.raises(ArgumentError, match=r"var \+ eps must be positive, but got -1"):
        Filters(fold_batch_norm=True).vectors(torch.ones(2, 4), batch_norm=batch_norm)


def test_a_scalar_weight_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one channel"):
        Filters().vectors(torch.tensor(1.0))
