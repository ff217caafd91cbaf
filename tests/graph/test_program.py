"""The program runs the traced network at any batch size, and from any step to any other."""

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from network_blocks import BLOCKS, CHAIN
from networks import PROFILE, Network, Recipe, difference, recipes
from torch import nn

import clusterprune as cp
from clusterprune.clustering import Agglomerative
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.graph.images import whole_batches
from clusterprune.graph.program import Program, named_tensors


def check(recipe: Recipe, batches: tuple[int, ...] = (1, 3)) -> None:
    model = Network(recipe).eval()
    graph = cp.trace(model, model.inputs(1))
    program = Program(graph)
    with torch.no_grad():
        for batch in batches:
            inputs = model.inputs(batch)
            copies = [tensor.clone() for tensor in inputs]
            assert difference(program.run(named_tensors(graph), inputs), model(*inputs)) < 1e-12
            assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@settings(PROFILE, max_examples=examples(25))
@given(recipe=recipes(2, 4))
def test_random_networks_run_at_any_batch_size(recipe: Recipe) -> None:
    check(recipe)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("Residual", {"shortcut": "cat_zeros"}),
        ("Attention", {"form": "module"}),
        ("Attention", {"form": "reshape"}),
        ("Resize", {"form": "fold_batch"}),
        ("Split", {"form": "in_place"}),
        ("Split", {"form": "assign"}),
        ("Shared", {"form": "tied_all"}),
    ],
)
@pytest.mark.parametrize("head", ["linear", "hard_view"])
def test_what_depends_on_the_batch_or_writes_in_place(name: str, option: dict[str, str], head: str) -> None:
    options = {key: () if choices == CHAIN else choices[0] for key, choices in BLOCKS[name][1].items()}
    check(Recipe(((name, {**options, **option}),), head=head, seed=1))


class ClassToken(nn.Module):
    """A token that is repeated for every image, as vision transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.conv(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(len(x), -1, -1), t], 1)
        windows = t[:, 1:].reshape(len(x) * 2, 2, 4).mean(1).view(len(x), 2, 4)
        return self.head(windows.sum(1) + t[:, 0])


@pytest.mark.parametrize("traced", [1, 2])
def test_numbers_that_follow_the_batch_are_found_whatever_was_traced(traced: int) -> None:
    model = ClassToken().eval()
    program = Program(cp.trace(model, torch.randn(traced, 3, 8, 8)))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(program.run(model.state_dict(), (x,))[0], model(x))


def test_steps_can_be_run_piece_by_piece() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    program = Program(graph)
    x = torch.randn(5, 3, 8, 8)
    values = program.start(named_tensors(graph), (x,))
    second = program.index[graph.calls[1].node]
    with torch.no_grad():
        program.advance(values, 0, second)
        torch.testing.assert_close(values[graph.calls[1].input], model[:2](x))
        assert graph.calls[0].node not in values, "a value that nobody needs any more stays in memory"
        program.advance(values, second, len(program.steps))
        torch.testing.assert_close(values[program.steps[-1].name], model(x))


def test_the_number_of_inputs_is_checked() -> None:
    program = Program(cp.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)))
    with pytest.raises(ModelError, match="traced with 1 tensor inputs, but got 2"):
        program.start({}, (torch.zeros(1), torch.zeros(1)))


class Pairs(nn.Module):
    """Does something else for one image than for more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.last(y if len(x) == 1 else y.relu())


class OneMore(nn.Module):
    """Makes a number that grows with the batch but is no multiple of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(x)) * torch.ones(len(x) + 1).mean()


@pytest.mark.parametrize(("model", "reason"), [(Pairs(), "operations differ"), (OneMore(), "not a multiple")])
def test_a_batch_that_cannot_be_followed_is_refused_not_guessed(model: nn.Module, reason: str) -> None:
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    assert reason in (graph.batch_size.fixed or "")
    program = Program(graph)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.run(named_tensors(graph), (x,))[0], model.eval()(x))
    with pytest.raises(ModelError, match=rf"batch of 1 only, as it was traced, but got 5.*{reason}.*Trace it with"):
        program.run(named_tensors(graph), (torch.zeros(5, 3, 8, 8),))
    # Images one by one go on working.
    images = torch.randn(8, 3, 8, 8)
    clusters = Agglomerative(n_clusters=2)
    for plan in (
        cp.oneshot(graph, images, keep_macs=0.7),
        cp.cluster(graph, images, clustering=clusters, merging="refit"),
    ):
        small = cp.apply(model, plan, graph=graph)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_images_that_do_not_fill_the_only_batch_size_are_left_out() -> None:
    graph = cp.trace(OneMore(), torch.zeros(4, 3, 8, 8))
    assert len(whole_batches(graph, torch.zeros(11, 3, 8, 8))[0]) == 8
    with pytest.raises(ArgumentError, match="3 images are too few: the model runs with a batch of 4 only"):
        whole_batches(graph, torch.zeros(3, 3, 8, 8))
    assert cp.oneshot(graph, torch.randn(11, 3, 8, 8), keep_macs=0.7).merges


def test_a_view_of_whole_maps_can_be_measured() -> None:
    class HardView(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.conv(x).relu().view(len(x), -1))

    model = HardView().eval()
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    assert cp.apply(model, cp.oneshot(graph, torch.randn(16, 3, 8, 8), keep_macs=0.5), graph=graph)
