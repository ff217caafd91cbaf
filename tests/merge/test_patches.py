import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import clusterprune as cp
from clusterprune.merge.patches import PatchExtractor


def read(layer: nn.Module, x: torch.Tensor) -> tuple[PatchExtractor, torch.Tensor]:
    graph = cp.trace(layer.eval(), x[:1])
    return PatchExtractor.of(graph, graph.calls[0]), layer(x).detach()


# PyTorch warns that it may copy the input when an even kernel is padded to "same".
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=examples(20), deadline=None)
@given(
    channels=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["same", "valid"])),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    size=st.tuples(st.integers(7, 9), st.integers(7, 10)),
    some=st.booleans(),
)
def test_rows_times_kernel_is_the_convolution(channels, outputs, kernel, stride, padding, dilation, size, some):
    if padding == "same":
        stride = (1, 1)
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, bias=False)
    x = torch.randn(3, channels, *size)
    reader, y = read(layer, x)
    where = reader.positions(y, 5, torch.Generator().manual_seed(0)) if some else None
    rows = reader.inputs(x, where)
    assert reader.taps == kernel[0] * kernel[1]
    torch.testing.assert_close(rows @ layer.weight.flatten(1).T, reader.outputs(y, where), rtol=1e-4, atol=1e-5)
    if some and y[0, 0].numel() > 5:
        assert len(rows) == 3 * 5


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=examples(20), deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 3), st.sampled_from(["same", "valid"])),
    dilation=st.integers(1, 3),
    some=st.booleans(),
)
def test_one_dimension(kernel, stride, padding, dilation, some):
    if padding == "same":
        stride = 1
    layer = nn.Conv1d(3, 4, kernel, stride, padding, dilation, bias=False)
    x = torch.randn(2, 3, 12)
    reader, y = read(layer, x)
    where = reader.positions(y, 2, torch.Generator().manual_seed(0)) if some else None
    torch.testing.assert_close(
        reader.inputs(x, where) @ layer.weight.flatten(1).T, reader.outputs(y, where), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 2, 5, 6)])
@pytest.mark.parametrize("some", [False, True])
def test_linear(shape: tuple[int, ...], some: bool):
    layer = nn.Linear(6, 3, bias=False)
    x = torch.randn(shape)
    reader, y = read(layer, x)
    where = reader.positions(y, 2, torch.Generator().manual_seed(0)) if some else None
    assert reader.taps == 1
    torch.testing.assert_close(reader.inputs(x, where) @ layer.weight.T, reader.outputs(y, where))


def test_matmul():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, x):
            return x @ self.weight

    layer, x = Product(), torch.randn(4, 5, 6)
    reader, y = read(layer, x)
    torch.testing.assert_close(reader.inputs(x, None) @ layer.weight, reader.outputs(y, None))


def test_centres_are_the_input_itself():
    layer = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 5, 6)
    reader, _ = read(layer, x)
    generator = torch.Generator().manual_seed(0)
    everything = reader.centres(x, 1000, generator)
    assert torch.equal(everything, x.permute(0, 2, 3, 1).reshape(-1, 3))
    some = reader.centres(x, 4, generator)
    assert some.shape == (2 * 4, 3)
    assert all((row == everything).all(1).any() for row in some)


@pytest.mark.parametrize(
    ("layer", "shape", "refittable"),
    [
        (nn.Conv2d(4, 4, 3), (1, 4, 5, 5), True),
        (nn.Conv1d(4, 4, 3), (1, 4, 5), True),
        (nn.Linear(4, 4), (1, 4), True),
        (nn.Conv3d(4, 4, 3), (1, 4, 5, 5, 5), False),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5), False),
        (nn.ConvTranspose2d(4, 4, 3), (1, 4, 5, 5), False),
    ],
)
def test_what_can_be_solved_for(layer: nn.Module, shape: tuple[int, ...], refittable: bool):
    reader, _ = read(layer, torch.zeros(shape))
    assert reader.refittable == refittable


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 1), stride=(1, 2), padding=(2, 0)),
        nn.Conv2d(3, 4, 2, padding="same"),
        nn.Conv2d(3, 4, 3, dilation=2, stride=2, padding=3),
    ],
)
def test_kernel_gradients_are_those_of_each_image(layer: nn.Conv2d):
    torch.manual_seed(0)
    model = nn.Sequential(layer).double()
    x = torch.randn(5, 3, 17, 18, dtype=torch.float64)
    (call,) = (graph := cp.trace(model, x)).calls
    output = layer(x)
    gradient = torch.randn_like(output)
    found = PatchExtractor.of(graph, call).kernel_gradients(x, gradient)
    assert found is not None
    for image in range(5):
        (expected,) = torch.autograd.grad(layer(x[image : image + 1]), layer.weight, gradient[image : image + 1])
        torch.testing.assert_close(found[image], expected.flatten(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(4, 4, 3, groups=2), (2, 4, 20, 20)), (nn.Conv2d(4, 4, 3), (2, 4, 5, 5)), (nn.Linear(4, 4), (2, 4))],
)
def test_kernel_gradients_are_left_to_cheaper_ways(layer: nn.Module, shape: tuple[int, ...]):
    x = torch.randn(shape)
    (call,) = (graph := cp.trace(nn.Sequential(layer), x)).calls
    assert PatchExtractor.of(graph, call).kernel_gradients(x, layer(x).detach()) is None
