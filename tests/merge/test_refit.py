from collections.abc import Callable

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.merge import Kept, assemble
from clusterprune.merge.least_squares import LeastSquares
from clusterprune.merge.refit import Refit, refit
from clusterprune.merge.refit_solving import _accumulate_by_channel
from clusterprune.merge.refit_targets import Rows, Target, aimed, nearest


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=generator())


def norm(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width)
    for tensor in (layer.weight, layer.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5, generator=generator())
    for tensor in (layer.bias, layer.running_mean):
        nn.init.normal_(tensor, 0, 0.3, generator=generator())
    return layer


def bare() -> nn.Module:
    """No bias and no batch norm anywhere: what the removed channels contribute on average has no home yet."""
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(10, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5, bias=False),
    )


def with_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, bias=False),
        norm(10),
        nn.ReLU(),
        nn.Conv2d(10, 12, 1, bias=False),
        norm(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1, stride=2, bias=False),
        norm(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False),
        norm(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
        norm(12),
        nn.ReLU(),
        nn.Conv2d(12, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.a_norm = nn.Conv2d(8, 10, 3, padding=1, bias=False), norm(10)
        self.b, self.b_norm = nn.Conv2d(10, 8, 3, padding=1, bias=False), norm(8)
        self.c, self.d = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.b_norm(self.b(torch.relu(self.a_norm(self.a(x))))) + x)
        x = x + self.d(torch.relu(self.c(x)))
        return self.head(x.mean((2, 3)))


def mixed_plan(graph: cp.ChannelGraph, data: Tensor, share: float = 0.5) -> cp.Plan:
    """Keep the first channels of every group, and let mixing matrices stand for the others."""
    kept = {group.name: Kept(np.arange(max(1, int(group.width * share)))) for group in graph.prunable}
    return assemble(graph, kept, LeastSquares(), data, generator=generator())


def error(small: nn.Module, model: nn.Module, data: Tensor) -> float:
    with torch.no_grad():
        return float((small(data) - model(data)).square().mean())


def setting(factory) -> tuple[nn.Module, cp.ChannelGraph, Tensor]:
    torch.manual_seed(0)
    model, data = factory().eval(), images()
    return model, cp.trace(model, data[:1]), data


@pytest.mark.parametrize("factory", [bare, with_norms, Residual])
@pytest.mark.parametrize("share", [0.75, 0.4])
def test_refit_is_better_than_mixing(factory, share: float):
    model, graph, data = setting(factory)
    plan = mixed_plan(graph, data, share)
    assert plan.merges
    better = refit(graph, plan, data, generator=generator())
    mixed = error(cp.apply(model, plan, graph=graph), model, data)
    assert error(cp.apply(model, better, graph=graph), model, data) < mixed


@pytest.mark.parametrize(
    "options", [Refit(all_layers=False), Refit(through_additions=False), Refit(work=1e6, rows_per_input=1)], ids=str
)
def test_options_still_beat_mixing(options: Refit):
    model, graph, data = setting(Residual)
    plan = mixed_plan(graph, data)
    better = refit(graph, plan, data, options=options, generator=generator())
    mixed = error(cp.apply(model, plan, graph=graph), model, data)
    assert error(cp.apply(model, better, graph=graph), model, data) < mixed


@pytest.mark.parametrize("factory", [bare, with_norms, Residual])
def test_removing_nothing_changes_nothing(factory):
    model, graph, data = setting(factory)
    merges = tuple(cp.Merge(g.name, np.arange(g.width)) for g in graph.prunable)
    plan = refit(graph, cp.Plan.of(graph, merges), data, generator=generator())
    assert plan.replaced
    small = cp.apply(model, plan, graph=graph)
    assert error(small, model, data) ** 0.5 < 1e-4 * float(model(data).detach().std())


@pytest.mark.parametrize("batch_size", [7, 64])
def test_a_linear_combination_is_made_good_entirely(batch_size: int):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[5] = model[0].weight[0] - 2 * model[0].weight[3]
        model[0].bias[5] = model[0].bias[0] - 2 * model[0].bias[3]
    data = images()
    graph = cp.trace(model, data[:1])
    plan = refit(
        graph,
        cp.Plan.of(graph, (cp.Merge("0", np.arange(5)),)),
        data,
        options=Refit(ridge=1e-9),
        batch_size=batch_size,
        generator=generator(),
    )
    small = cp.apply(model, plan, graph=graph)
    assert error(small, model, images(80)) ** 0.5 < 1e-3 * float(model(data).detach().std())


def test_new_biases_are_applied_saved_and_loaded(tmp_path):
    model, graph, data = setting(bare)
    plan = refit(graph, mixed_plan(graph, data), data, generator=generator())
    assert {"2.bias", "6.bias"} <= plan.replaced.keys()
    small = cp.apply(model, plan, graph=graph)
    assert small[2].bias is not None
    assert small[2].bias.shape == (small[2].out_channels,)
    assert model[2].bias is None
    cp.save(small, tmp_path / "small")
    loaded = cp.load(tmp_path / "small", bare)
    assert torch.equal(loaded(data), small(data))
    plan.save(tmp_path / "plan")
    assert torch.equal(cp.apply(model, cp.Plan.load(tmp_path / "plan"))(data), small(data))


def test_the_same_generator_gives_the_same_refit_and_the_model_stays():
    model, graph, data = setting(Residual)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = mixed_plan(graph, data)
    first = refit(graph, plan, data, generator=generator())
    second = refit(graph, plan, data, generator=generator())
    assert first.replaced.keys() == second.replaced.keys()
    assert all(torch.equal(first.replaced[k], second.replaced[k]) for k in first.replaced)
    assert not plan.replaced
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_layer_applied_to_what_it_made_keeps_its_mixed_kernel():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.shared(torch.relu(self.shared(self.stem(x))))))

    model, graph, data = setting(Twice)
    plan = refit(graph, mixed_plan(graph, data), data, generator=generator())
    assert "shared.weight" not in plan.replaced
    assert "head.weight" in plan.replaced
    assert torch.isfinite(cp.apply(model, plan, graph=graph)(data)).all()


@pytest.mark.parametrize("affine", [True, False])
def test_what_a_norm_takes_up_counts_once(affine: bool):
    """Where nothing is silenced, what the refit makes is right on average; an offset was once taken off twice."""
    torch.manual_seed(0)
    behind = norm(8) if affine else nn.BatchNorm2d(8, affine=False)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 8, 3, bias=False), behind, nn.Conv2d(8, 4, 1)
    ).eval()
    data = images()
    graph = cp.trace(model, data[:1])
    kept = {"0": Kept(np.arange(5))}
    plan = assemble(graph, kept, LeastSquares(), data, generator=generator())
    assert plan.merges[0].offset["2.weight"].abs().mean() > 0.01
    small = cp.apply(model, refit(graph, plan, data, generator=generator()), graph=graph)
    with torch.no_grad():
        off = (small[:4](data) - model[:4](data)).mean((0, 2, 3))
    torch.testing.assert_close(off, torch.zeros(8), atol=1e-5, rtol=0)


class Views(nn.Module):
    """A network that is applied to several images, each made of the one that is given."""

    def __init__(self, network: nn.Module, *views: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.views = network, views

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(view(x)) for view in self.views)


@pytest.mark.parametrize("factory", [bare, with_norms, Residual])
def test_who_sees_the_same_image_twice_is_refitted_as_who_sees_it_once(factory):
    model, graph, data = setting(factory)
    options = Refit(through_additions=False)
    once = refit(graph, mixed_plan(graph, data), data, options=options, generator=generator())
    seen_once = cp.apply(model, once, graph=graph)
    twice = Views(model, torch.clone, torch.clone).eval()
    graph = cp.trace(twice, data[:1])
    plan = refit(graph, mixed_plan(graph, data), data, options=options, generator=generator())
    assert {path.removeprefix("network.") for path in plan.replaced if path.endswith("weight")} == {
        path for path in once.replaced if path.endswith("weight")
    }
    for seen in cp.apply(twice, plan, graph=graph)(data):
        torch.testing.assert_close(seen, seen_once(data), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factory", [bare, with_norms, Residual, depthwise])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_a_layer_of_several_calls_is_refitted_for_all_of_them(factory, batch_size: int):
    """What the layer reads differs in scale, mean and size from call to call."""
    views = (torch.clone, lambda x: 0.3 * x + 0.5, lambda x: nn.functional.interpolate(x, scale_factor=1.6))
    model, graph, data = setting(lambda: Views(factory(), *views))
    mixed = mixed_plan(graph, data)
    plan = refit(graph, mixed, data, batch_size=batch_size, generator=generator())
    assert len(plan.replaced) > 2
    fresh = images(256)
    for found, before, wanted in zip(
        cp.apply(model, plan, graph=graph)(fresh), cp.apply(model, mixed, graph=graph)(fresh), model(fresh), strict=True
    ):
        assert (found - wanted).square().mean() < (before - wanted).square().mean()


def test_silent_outputs_of_a_norm_keep_their_kernel():
    model, _, data = setting(with_norms)
    with torch.no_grad():
        model[4].weight[2] = 0
    graph = cp.trace(model, data[:1])
    plan = refit(graph, mixed_plan(graph, data), data, generator=generator())
    assert all(torch.isfinite(v).all() for v in plan.replaced.values())
    assert torch.isfinite(cp.apply(model, plan, graph=graph)(data)).all()


def test_progress_counts_layers():
    _, graph, data = setting(with_norms)
    events = []
    refit(graph, mixed_plan(graph, data), data, generator=generator(), progress=lambda *e: events.append(e))
    assert events == [("refit", i + 1, len(events)) for i in range(len(events))]
    assert events


@pytest.mark.parametrize("constant", [True, False])
def test_a_depthwise_kernel_is_solved_channel_by_channel(constant: bool):
    """What its channels would have to be, if a spoilt first layer is to be made good: as by one regression each."""
    rows, channels, taps = 500, 4, 9
    patches = torch.randn(rows, channels, taps, generator=generator()) + 2.0
    true, level = torch.randn(channels, taps, generator=generator()), torch.arange(4.0) * constant
    wanted = (patches * true).sum(2) + level
    found, bias = _accumulate_by_channel(
        [Rows(patches[:300].flatten(1), wanted[:300]), Rows(patches[300:].flatten(1), wanted[300:])],
        torch.zeros(channels, 1, 3, 3),
        torch.zeros(channels, dtype=torch.float64),
        1e-9,
        constant=constant,
    )
    assert torch.allclose(found.T.float(), true, atol=1e-3)
    assert torch.allclose(bias.float(), level, atol=5e-3)


def test_depthwise_layers_are_refitted_too():
    model = depthwise().eval()
    graph = cp.trace(model, images(1))
    halves = [cp.Merge(group.name, np.arange(group.width // 2)) for group in graph.prunable]
    plan = cp.Plan.of(graph, halves)
    solved = refit(graph, plan, images(), generator=generator())
    assert "5.weight" in solved.replaced
    assert error(cp.apply(model, solved), model, images()) < error(cp.apply(model, plan), model, images())


@given(
    seed=st.integers(0, 10_000),
    bounds=st.sampled_from([(0.0, float("inf")), (0.0, 6.0), (-1.0, 1.0)]),
    added=st.booleans(),
    normed=st.booleans(),
)
@settings(max_examples=examples(60), deadline=None)
def test_targets_move_only_where_a_rectifier_does_not_show_it(
    seed: int, bounds: tuple[float, float], added: bool, normed: bool
):
    """Behind the rectifier the moved targets give what the original gives, and none is further than it was."""
    draw = torch.Generator().manual_seed(seed)
    made, other, pred = (4 * torch.randn(50, 6, generator=draw, dtype=torch.float64) for _ in range(3))
    scale, shift = torch.randn(2, 6, generator=draw, dtype=torch.float64)  # of either sign
    scale = torch.where(scale.abs() < 0.1, 0.5, scale)
    node = object() if added else None
    target = Target((), None, node, "", bounds)  # type: ignore[arg-type]
    affine = (scale, shift) if normed else None
    rows = aimed(pred, made, other if added else None, affine, target)

    def behind(outputs: Tensor) -> Tensor:
        end = outputs * scale + shift if normed else outputs
        return (end + other if added else end).clamp(*bounds)

    moved = nearest(pred, rows)
    assert torch.allclose(behind(moved), behind(rows.wanted), atol=1e-9)
    assert ((moved - pred).abs() <= (rows.wanted - pred).abs() + 1e-9).all()
    assert (moved != rows.wanted).any()


def test_silenced_outputs_leave_room_for_the_others():
    model = with_norms().eval()
    graph = cp.trace(model, images(1))
    halves = cp.Plan.of(graph, [cp.Merge(group.name, np.arange(group.width // 2)) for group in graph.prunable])
    lost = [
        error(cp.apply(model, refit(graph, halves, images(), options=Refit(rectified=steps), generator=generator())),
              model, images(256))
        for steps in (0, 4)
    ]  # fmt: skip
    assert lost[1] < lost[0]
