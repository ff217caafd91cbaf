import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import Grouped, Plain, Transposed, TwoInputs, conv_norm, ready, smooth_images, trained_statistics
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import evaluate, models
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.merge.refit import Refit


@pytest.fixture
def plain() -> tuple[nn.Module, cp.ChannelGraph, Tensor]:
    torch.manual_seed(0)
    return ready(Plain())


def error_of(small: nn.Module, model: nn.Module, images: Tensor) -> float:
    """Squared error of the outputs, relative to their variance."""
    with torch.no_grad():
        wanted = model(images)
        return float((small(images) - wanted).square().mean() / wanted.var())


@pytest.mark.parametrize("data_free", [False, True])
def test_same_seed_same_plan(plain, data_free: bool):
    _, graph, images = plain
    given = None if data_free else images
    first = cp.oneshot(graph, given, keep_macs=0.5, seed=3)
    torch.manual_seed(123)
    torch.randn(7)
    np.random.default_rng(1).random(3)
    before = torch.get_rng_state()
    second = cp.oneshot(graph, given, keep_macs=0.5, seed=3)
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_trace_gives_the_same_plan(plain):
    model, graph, images = plain
    again = cp.trace(model, images[:2])
    first = cp.oneshot(graph, images, keep_macs=0.5)
    second = cp.oneshot(cp.trace(model, images[:1]), images, keep_macs=0.5)
    assert first == second
    assert again.groups


@pytest.mark.parametrize("quantity", ["macs", "params"])
@pytest.mark.parametrize("keep", [0.75, 0.5])
def test_budgets_are_met_on_the_real_small_model(plain, quantity: str, keep: float):
    model, graph, images = plain
    plan = cp.oneshot(graph, images, **{f"keep_{quantity}": keep})
    small = cp.apply(model, plan, graph=graph)
    count = evaluate.macs if quantity == "macs" else lambda m, _: evaluate.params(m)
    share = count(small, images[:1]) / count(model, images[:1])
    assert keep - 0.08 <= share <= keep
    assert plan.notes["method"] == "oneshot"
    assert plan.notes[f"keep_{quantity}"] == keep
    assert plan.notes["images"] == 64
    json.dumps(plan.notes)


def test_resnet20_at_half_the_macs():
    images = smooth_images(48, size=16)
    model = trained_statistics(models.build("resnet20", seed=0), images)
    graph = cp.trace(model, images[:1])
    plan = cp.oneshot(graph, images, keep_macs=0.5)
    small = cp.apply(model, plan, graph=graph)
    assert 0.45 <= evaluate.macs(small, images[:1]) / evaluate.macs(model, images[:1]) <= 0.5
    assert error_of(small, model, images) < 0.2
    bare = cp.Plan.of(graph, tuple(cp.Merge(m.group, m.kept) for m in plan.merges))
    assert error_of(small, model, images) < 0.5 * error_of(cp.apply(model, bare, graph=graph), model, images)


def test_better_than_dropping_on_images_never_seen(plain):
    model, graph, images = plain
    fresh = smooth_images(64, seed=9)
    plan = cp.oneshot(graph, images, keep_macs=0.5)
    bare = cp.Plan.of(graph, tuple(cp.Merge(m.group, m.kept) for m in plan.merges))
    error = error_of(cp.apply(model, plan, graph=graph), model, fresh)
    assert error < 0.5 * error_of(cp.apply(model, bare, graph=graph), model, fresh)


def test_data_free_is_better_than_dropping(plain):
    model, graph, images = plain
    plan = cp.oneshot(graph, keep_macs=0.6)
    assert plan.notes["images"] == 0
    assert plan.notes["made_images"] == 256
    bare = cp.Plan.of(graph, tuple(cp.Merge(m.group, m.kept) for m in plan.merges))
    error = error_of(cp.apply(model, plan, graph=graph), model, images)
    assert error < error_of(cp.apply(model, bare, graph=graph), model, images)


@pytest.mark.parametrize(
    "config",
    [
        cp.OneShot(sensitivity="error"),
        cp.OneShot(sensitivity="uniform"),
        cp.OneShot(output_aware=False),
        cp.OneShot(residual_streams=False),
        cp.OneShot(refit=None),
        cp.OneShot(whole_kernel_limit=0),
        cp.OneShot(refit=Refit(all_layers=False, through_additions=False)),
        cp.OneShot(macs_to_spend=1.0),
    ],
    ids=str,
)
def test_every_setting_meets_the_budget(config: cp.OneShot):
    torch.manual_seed(0)
    model, graph, images = ready(Grouped())
    plan = cp.oneshot(graph, images, keep_macs=0.7, config=config)
    small = cp.apply(model, plan, graph=graph)
    assert evaluate.macs(small, images[:1]) <= 0.7 * evaluate.macs(model, images[:1])
    assert error_of(small, model, images) < 1
    if not config.residual_streams:
        assert all(len(graph.by_name[m.group].producers) == 1 for m in plan.merges)


@pytest.mark.parametrize("factory", [Grouped, Transposed])
@pytest.mark.parametrize("data_free", [False, True])
def test_other_architectures(factory: Callable[[], nn.Module], data_free: bool):
    torch.manual_seed(0)
    model, graph, images = ready(factory())
    plan = cp.oneshot(graph, None if data_free else images, keep_macs=0.6)
    small = cp.apply(model, plan, graph=graph)
    assert evaluate.macs(small, images[:1]) <= 0.6 * evaluate.macs(model, images[:1])
    assert torch.isfinite(small(images)).all()
    assert error_of(small, model, images) < 1


def test_several_inputs():
    torch.manual_seed(0)
    inputs = smooth_images(64), torch.randn(64, 5)
    model = trained_statistics(TwoInputs(), *inputs)
    graph = cp.trace(model, (inputs[0][:1], inputs[1][:1]))
    small = cp.apply(model, cp.oneshot(graph, inputs, keep_macs=0.6), graph=graph)
    with torch.no_grad():
        assert float((small(*inputs) - model(*inputs)).square().mean() / model(*inputs).var()) < 0.5
    cp.apply(model, cp.oneshot(graph, keep_macs=0.6), graph=graph)
    with pytest.raises(ArgumentError, match="2 tensor inputs, but images holds 1"):
        cp.oneshot(graph, inputs[0], keep_macs=0.6)
    with pytest.raises(ArgumentError, match="64, 32; give the same number"):
        cp.oneshot(graph, (inputs[0], inputs[1][:32]), keep_macs=0.6)


def test_the_model_is_left_bit_for_bit(plain):
    model, graph, images = plain
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    given = images.clone()
    cp.oneshot(graph, images, keep_macs=0.5)
    cp.oneshot(graph, keep_macs=0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(images, given)


def test_frozen_parameters_do_not_disturb(plain):
    model, _, images = plain
    model.requires_grad_(False)
    graph = cp.trace(model, images[:1])
    small = cp.apply(model, cp.oneshot(graph, images, keep_macs=0.5), graph=graph)
    assert not any(p.requires_grad for p in small.parameters())


@pytest.mark.parametrize("data_free", [False, True])
def test_keeping_everything_is_an_empty_plan(plain, data_free: bool):
    model, graph, images = plain
    plan = cp.oneshot(graph, None if data_free else images, keep_macs=1.0)
    assert plan.merges == ()
    assert not plan.replaced
    small = cp.apply(model, plan, graph=graph)
    assert torch.equal(small(images), model(images))


def test_ignored_groups_stay_whole(plain):
    _, graph, images = plain
    assert {"0.0", "1.0"} <= {g.name for g in graph.prunable}
    plan = cp.oneshot(graph, images, keep_macs=0.8, ignore=["0.*"])
    assert plan.merges
    assert "0.0" not in plan.by_group
    assert "0.0" in {g.name for g in graph.prunable}  # the caller's graph is as it was
    with pytest.raises(ArgumentError, match="matches no group"):
        cp.oneshot(graph, images, keep_macs=0.8, ignore=["layer9.*"])
    with pytest.raises(BudgetError, match="no group of this model may be cut"):
        cp.oneshot(graph, images, keep_macs=0.8, ignore=["*"])


def test_widths_keep_to_the_limits(plain):
    model, graph, images = plain
    plan = cp.oneshot(graph, images, keep_macs=0.6, round_to=4, min_width=8)
    assert plan.merges
    assert all(len(m.kept) == 8 for m in plan.merges)
    assert evaluate.macs(cp.apply(model, plan), images[:1]) <= 0.6 * evaluate.macs(model, images[:1])


def test_nothing_to_cut():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(BudgetError, match="no group of this model may be cut"):
        cp.oneshot(graph, torch.randn(8, 3, 8, 8), keep_macs=0.5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, "at least one of keep_macs, keep_params, keep_latency"),
        ({"keep_macs": "half"}, "0.5 or 50% keeps half"),
        ({"max_macs": -1}, "max_macs must be above 0"),
        ({"keep_macs": 0}, r"keep_macs must be a fraction in \(0, 1\], but got keep_macs=0"),
        ({"keep_macs": 50}, "0.5 keeps half"),
        ({"keep_params": -1.0}, "keep_params must be"),
        ({"keep_latency": float("nan")}, "keep_latency must be"),
        ({"keep_macs": 0.5, "round_to": 0}, "round_to must be a whole number"),
        ({"keep_macs": 0.5, "min_width": 0}, "min_width must be a whole number"),
    ],
)
def test_bad_targets(plain, targets: dict, message: str):
    _, graph, images = plain
    with pytest.raises(ArgumentError, match=message):
        cp.oneshot(graph, images, **targets)


def test_bad_sensitivity():
    with pytest.raises(ArgumentError, match=r"sensitivity must be .* but got sensitivity='best'"):
        cp.OneShot(sensitivity="best")


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperature(temperature: float):
    with pytest.raises(ArgumentError, match=f"temperature must be positive, but got temperature={temperature}"):
        cp.OneShot(temperature=temperature)


def with_nan(images: Tensor) -> Tensor:
    images = images.clone()
    images[3, 0, 2, 2] = torch.nan
    return images


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:, :1], r"images of shape \(1, 12, 12\).*do not fit the traced example of shape \(3, 12, 12\)"),
        (lambda x: x[..., :8], r"resize and normalise them"),
        (lambda x: x[0], r"images of shape \(12, 12\)"),
        (lambda x: (x * 20).to(torch.uint8), "torch.uint8 do not fit"),
        (with_nan, "NaN or infinity; check the normalisation"),
        (lambda x: x[:1], "1 image is too few"),
        (lambda x: x[:0], "0 image"),
        (lambda x: {"x": x}, "a mapping"),
    ],
)
def test_bad_images(plain, spoil: Callable[[Tensor], Tensor], message: str):
    _, graph, images = plain
    with pytest.raises(ArgumentError, match=message):
        cp.oneshot(graph, spoil(images), keep_macs=0.5)


def test_images_of_another_precision(plain):
    _, graph, images = plain
    with pytest.raises(ArgumentError, match="float64"):
        cp.oneshot(graph, images.double(), keep_macs=0.5)


def test_two_images_are_enough_to_run(plain):
    model, graph, images = plain
    small = cp.apply(model, cp.oneshot(graph, images[:2], keep_macs=0.5), graph=graph)
    assert torch.isfinite(small(images)).all()


def test_an_unreachable_target_states_what_can_be_reached(plain):
    _, graph, images = plain
    with pytest.raises(BudgetError, match="Ask for keep_macs>=") as caught:
        cp.oneshot(graph, images, keep_macs=1e-4)
    stated = float(str(caught.value).partition("keep_macs>=")[2].partition(",")[0])
    plan = cp.oneshot(graph, images, keep_macs=stated)
    assert all(len(m.kept) == graph.by_name[m.group].n_blocks for m in plan.merges)


def test_progress_runs_forward_in_every_phase(plain):
    _, graph, images = plain
    events: list[tuple[str, int, int]] = []
    cp.oneshot(graph, images, keep_macs=0.5, progress=lambda *event: events.append(event))
    phases = list(dict.fromkeys(phase for phase, _, _ in events))
    assert phases == [
        "output importance", "second moments", "order of channels", "sensitivity", "plans compared", "refit",
    ]  # fmt: skip
    assert [phase for phase, _, _ in events] == sorted((p for p, _, _ in events), key=phases.index)
    for phase in phases:
        steps = [(done, total) for name, done, total in events if name == phase]
        assert all(0 < done <= total for done, total in steps)
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]
        assert len({total for _, total in steps}) == 1


def test_an_interrupt_from_progress_passes(plain):
    model, graph, images = plain
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cp.oneshot(graph, images, keep_macs=0.5, progress=stop)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_latency_is_measured(plain, monkeypatch: pytest.MonkeyPatch):
    model, graph, images = plain
    whole = evaluate.macs(model, images[:1])

    def by_macs(network: nn.Module, *_: object, **__: object) -> evaluate.Latency:
        return evaluate.Latency(evaluate.macs(network, images[:1]) / whole * 10, 0.0, 1, 1)

    monkeypatch.setattr(evaluate, "latency", by_macs)
    plan = cp.oneshot(graph, images, keep_latency=0.6, config=cp.OneShot(refit=None, sensitivity="error"))
    assert 0.5 <= by_macs(cp.apply(model, plan, graph=graph)).median_ms / 10 <= 0.6
    with pytest.raises(BudgetError, match="was not reached: the fastest network tried takes"):
        cp.oneshot(graph, images, keep_latency=1e-3, config=cp.OneShot(refit=None, sensitivity="error"))


def test_plans_survive_the_disk(plain, tmp_path):
    model, graph, images = plain
    plan = cp.oneshot(graph, images, keep_macs=0.5)
    plan.save(tmp_path / "plan")
    loaded = cp.Plan.load(tmp_path / "plan")
    assert plan == loaded
    assert torch.equal(cp.apply(model, loaded)(images), cp.apply(model, plan, graph=graph)(images))
    assert replace(loaded, notes={}).notes == {}


def test_a_network_in_double_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double().eval()
    images = torch.randn(32, 3, 8, 8, dtype=torch.float64)
    graph = cp.trace(model, images[:1])
    small = cp.apply(model, cp.oneshot(graph, images, keep_macs=0.6), graph=graph)
    assert small(images).dtype == torch.float64


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_the_same_share_is_the_same_of_what_is_counted(quantity: str):
    """Early layers have most of the MACs here and few of the parameters; all groups keep about the same share."""
    torch.manual_seed(0)
    layers = [conv_norm(3, 48), conv_norm(48, 48, stride=4), conv_norm(48, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    _, graph, images = ready(nn.Sequential(*layers, nn.Linear(48, 5)))
    plan = cp.oneshot(graph, images, **{f"keep_{quantity}": 0.5}, round_to=1, config=cp.OneShot(sensitivity="uniform"))
    shares = [plan.widths.get(group.name, group.width) / group.width for group in graph.prunable]
    assert max(shares) - min(shares) <= 0.1
