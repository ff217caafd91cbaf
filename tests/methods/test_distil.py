from pathlib import Path

import pytest
import torch
from small_networks import Grouped, Plain, Transposed, TwoInputs, ready, smooth_images, trained_statistics
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.errors import ArgumentError
from clusterprune.methods.distil import block_ends, varied


@pytest.fixture
def cut() -> tuple[nn.Module, cp.ChannelGraph, Tensor, cp.Plan]:
    torch.manual_seed(0)
    model, graph, images = ready(Plain())
    return model, graph, images, cp.oneshot(graph, images, keep_macs=0.4, round_to=1)


def same(first: cp.Plan, second: cp.Plan) -> bool:
    return first.replaced.keys() == second.replaced.keys() and all(
        torch.equal(first.replaced[name], second.replaced[name]) for name in first.replaced
    )


def test_outputs_come_closer_on_images_that_were_not_seen(cut):
    model, graph, images, plan = cut
    taught = cp.distil(graph, plan, images, steps=150)
    facts = taught.notes["distil"]
    assert facts["taken"]
    assert facts["divergence_after"] < facts["divergence_before"]
    fresh = smooth_images(128, seed=5)
    with torch.no_grad():
        wanted, before, after = (net(fresh) for net in (model, cp.apply(model, plan), cp.apply(model, taught)))
    assert (after - wanted).square().mean() < (before - wanted).square().mean()


def test_batch_norms_keep_their_statistics_and_the_widths_stay(cut):
    model, graph, images, plan = cut
    before, after = cp.apply(model, plan), cp.apply(model, cp.distil(graph, plan, images, steps=5))
    for (name, a), (_, b) in zip(before.named_buffers(), after.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert [p.shape for p in before.parameters()] == [p.shape for p in after.parameters()]


def test_what_does_not_help_is_not_taken(cut):
    _, graph, images, plan = cut
    config = cp.Distil(rate=10.0, clip=1e9)
    spoilt = cp.distil(graph, plan, images, steps=10, config=config)
    assert not spoilt.notes["distil"]["taken"]
    assert same(spoilt, plan)


def test_it_goes_on_where_it_was_stopped(cut, tmp_path: Path):
    _, graph, images, plan = cut
    whole = cp.distil(graph, plan, images, steps=12, seed=3)

    class StopError(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if done >= 500:
            raise StopError

    file = tmp_path / "reached.safetensors"
    often = cp.Distil(save_every=0.0)
    with pytest.raises(StopError):
        cp.distil(graph, plan, images, steps=12, seed=3, config=often, out=file, progress=stop)
    assert file.exists()
    resumed = cp.distil(graph, plan, images, steps=12, seed=3, config=often, out=file)
    assert resumed.notes["distil"]["steps"] == 12
    assert same(resumed, whole)


def test_the_model_and_the_dice_are_left_alone(cut):
    model, graph, images, plan = cut
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dice = torch.get_rng_state()
    first = cp.distil(graph, plan, images, steps=60, seed=1)
    assert torch.equal(torch.get_rng_state(), dice)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert same(first, cp.distil(graph, plan, images, steps=60, seed=1))
    assert not same(first, cp.distil(graph, plan, images, steps=60, seed=2))


@pytest.mark.parametrize("kind", [Grouped, Transposed])
def test_other_networks(kind: type[nn.Module]):
    torch.manual_seed(0)
    model, graph, images = ready(kind())
    plan = cp.oneshot(graph, images, keep_macs=0.4)
    taught = cp.distil(graph, plan, images, steps=40)
    facts = taught.notes["distil"]
    assert facts["taken"] == (facts["divergence_after"] < facts["divergence_before"])
    assert cp.apply(model, taught, graph=graph)(images).isfinite().all()


def test_several_inputs():
    torch.manual_seed(0)
    model = TwoInputs()
    inputs = (smooth_images(64), torch.randn(64, 5))
    trained_statistics(model, *inputs)
    graph = cp.trace(model, tuple(t[:1] for t in inputs))
    plan = cp.oneshot(graph, inputs, keep_macs=0.6)
    taught = cp.distil(graph, plan, inputs, steps=5)
    assert cp.apply(model, taught, graph=graph)(*inputs).shape == (64, 4)


def test_blocks_end_at_sums_and_before_the_maps_shrink():
    _, graph, _ = ready(Grouped())
    names = [node.name for node in block_ends(graph)]
    assert any(name.startswith("add") for name in names)
    _, graph, _ = ready(Plain())
    assert len(block_ends(graph)) == 2  # twelve pixels a side, then six


def test_images_are_mirrored_and_moved_alone():
    images = torch.arange(8 * 64.0).view(8, 1, 8, 8)
    (seen,) = varied((images,), torch.Generator().manual_seed(0))
    assert seen.shape == images.shape
    assert any(not torch.equal(a, b) for a, b in zip(seen, images, strict=True))
    values = torch.arange(10.0).view(5, 2)
    assert varied((values,), torch.Generator()) == (values,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give one of seconds and steps"),
        ({"seconds": 1, "steps": 1}, "give one of seconds and steps"),
        ({"steps": 0}, "steps must be positive"),
        ({"seconds": float("nan")}, "seconds"),
        ({"steps": "many"}, "steps"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": 1, "config": "fast"}, "config must be of the type Distil"),
    ],
)
def test_bad_options(cut, options: dict[str, object], said: str):
    _, graph, images, plan = cut
    with pytest.raises(ArgumentError, match=said):
        cp.distil(graph, plan, images, **options)  # type: ignore[arg-type]


def test_the_state_of_another_network_is_refused(cut, tmp_path: Path):
    _, graph, images, plan = cut
    file = tmp_path / "reached.safetensors"
    cp.distil(graph, plan, images, steps=2, out=file)
    other = cp.oneshot(graph, images, keep_macs=0.4, seed=5)
    for plan_, seed in ((other, 0), (plan, 1)):
        with pytest.raises(ArgumentError, match="belongs to another network"):
            cp.distil(graph, plan_, images, steps=2, seed=seed, out=file)
    assert cp.distil(graph, plan, images, steps=2, out=file).notes["distil"]["steps"] == 2
