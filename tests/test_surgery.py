"""The laws of surgery, on random networks and on the small networks that once broke them."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from examples import every, examples
from hypothesis import given, settings
from network_blocks import BLOCKS, CHAIN
from networks import (
    PROFILE,
    Network,
    Recipe,
    difference,
    make_twins,
    masked_reference,
    oracle,
    parameters,
    random_plan,
    recipes,
)
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.errors import ModelError
from clusterprune.surgery.history import stages, why_untrainable
from clusterprune.surgery.masking import compact_state

pytestmark = pytest.mark.filterwarnings("ignore::clusterprune.errors.UntrainableWarning")

TOLERANCE = 1e-12
TRAIN_TOLERANCE = 1e-8
"""Batch statistics over three images amplify rounding."""


def check_laws(recipe: Recipe) -> tuple[Network, cp.ChannelGraph]:
    """Check everything that must hold for one network and one random plan."""
    model = Network(recipe).eval()
    graph = cp.trace(model, model.inputs(1))
    plan = random_plan(graph, recipe.seed, offset=recipe.seed % 2 == 0, every_group=recipe.seed % 3 != 0)
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    small = cp.apply(model, plan, graph=graph)
    check_original_is_untouched(model, before)
    check_every_group_shrinks(graph)
    check_masked_equals_cut(model, graph, plan, small)
    check_meaning(model, graph, recipe.seed)
    check_training(model, graph, plan, small)
    check_twins_merge(model, graph, recipe.seed)
    return model, graph


def check_original_is_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Law 1."""
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[path], tensor) for path, tensor in before.items())
    assert stages(model) == ()


def check_every_group_shrinks(graph: cp.ChannelGraph) -> None:
    """A group that may be cut can be cut, and its cut frees parameters."""
    whole = parameters(graph.model)
    paths = [path for path, _ in graph.model.named_parameters()]
    for group in graph.prunable:
        assert group.width > group.n_blocks
        state = compact_state(graph, random_plan(graph, 1, mixing=False, only=group.name))
        assert sum(state[path].numel() for path in paths) < whole, group.name


def check_masked_equals_cut(model: Network, graph: cp.ChannelGraph, plan: cp.Plan, small: nn.Module) -> None:
    """Law 2: cutting equals masking and mixing, for another batch size than the traced one."""
    inputs = model.inputs(3)
    with torch.no_grad():
        expected = masked_reference(model, graph, plan)(*inputs)
        assert difference(small(*inputs), expected) < TOLERANCE
    assert type(small(*inputs)) is type(model(*inputs))
    assert small.state_dict().keys() <= {*model.state_dict(), *stages(small)[-1].added}
    removed = any(len(merge.kept) < graph.by_name[merge.group].width for merge in plan.merges)
    added = sum(parameter.numel() for path, parameter in small.named_parameters() if path in stages(small)[-1].added)
    assert not removed or parameters(small) - added < parameters(model)
    check_attributes(small)


def check_attributes(small: nn.Module) -> None:
    """Layers say about themselves what their weights are."""
    for path, layer in small.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups), path
        elif isinstance(layer, nn.ConvTranspose2d):
            assert layer.weight.shape[:2] == (layer.in_channels, layer.out_channels // layer.groups), path
        elif isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features), path
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_mean.shape == (layer.num_features,), path
        elif isinstance(layer, nn.GroupNorm):
            assert layer.weight.shape == (layer.num_channels,), path


def check_meaning(model: Network, graph: cp.ChannelGraph, seed: int) -> None:
    """The cut network computes what the plan says about activations: consumers read `mixing @ F[kept] + offset`."""
    plan = random_plan(graph, seed + 1, offset=True, harmless_offsets=True)
    small = cp.apply(model, plan, graph=graph)
    inputs = model.inputs(3)
    with torch.no_grad():
        assert difference(small(*inputs), oracle(graph, plan, inputs)) < TOLERANCE


def check_training(model: Network, graph: cp.ChannelGraph, plan: cp.Plan, small: nn.Module) -> None:
    """Law 2 holds in training mode too (dropout aside), batch norms learn the same, and gradients are finite.

    A model rebuilt from its graph that has lost something of the original's training refuses to be trained.
    """
    if why_untrainable(small) is not None:
        with pytest.raises(ModelError, match="in training"):
            small.train()
        return
    pair = [copy.deepcopy(small).train(), masked_reference(model, graph, plan).train()]
    for network in pair:
        for layer in network.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd) or type(layer).__name__ == "Dropout":
                layer.eval()  # also the block that calls functional.dropout
    outputs = [network(*model.inputs(3)) for network in pair]
    assert difference(*outputs) < TRAIN_TOLERANCE
    ours, theirs = (dict(network.named_buffers()) for network in pair)
    for path, buffer in ours.items():
        if path.endswith("running_mean") and buffer.shape == theirs[path].shape:
            assert difference(buffer, theirs[path]) < TRAIN_TOLERANCE, path
        elif path.endswith("num_batches_tracked"):
            assert buffer == theirs[path], path
    loss = sum(tensor.square().mean() for tensor in torch.utils._pytree.tree_leaves(outputs[0]))
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return
    optimizer = torch.optim.SGD(pair[0].parameters(), lr=1e-3)
    loss.backward()
    gradients = [parameter.grad for parameter in pair[0].parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    optimizer.step()


def check_twins_merge(model: Network, graph: cp.ChannelGraph, seed: int) -> None:
    """Law 3. Makes two channels of a random group identical, so the model is not the same afterwards."""
    groups = [group for group in graph.prunable if all(use.mixable for use in group.consumers)]
    if not groups:
        return
    rng = np.random.default_rng(seed)
    group = groups[rng.integers(len(groups))]
    with torch.no_grad():
        twins = make_twins(graph, group, rng)
        inputs = model.inputs(3)
        expected = model(*inputs)
        kept = np.setdiff1d(np.arange(group.width), list(twins))
        indicator = torch.zeros(group.width, len(kept), dtype=torch.float64)
        indicator[kept, np.arange(len(kept))] = 1
        for copied, original in twins.items():
            indicator[copied, kept.tolist().index(original)] = 1
        merge = cp.Merge(group.name, kept, {use.path: indicator for use in group.consumers})
        small = cp.apply(model, cp.Plan.of(graph, (merge,)), graph=graph)
        assert difference(small(*inputs), expected) < TOLERANCE


@settings(PROFILE, max_examples=examples(40))
@given(recipe=recipes())
def test_laws_hold_on_random_networks(recipe: Recipe) -> None:
    check_laws(recipe)


@pytest.mark.slow
@settings(PROFILE, max_examples=1000, derandomize=False)
@given(recipe=recipes())
def test_laws_hold_on_networks_drawn_anew_in_every_run(recipe: Recipe) -> None:
    check_laws(recipe)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    every(
        4,
        (
            (name, key, value)
            for name, (_, options) in BLOCKS.items()
            for key, choices in options.items()
            for value in (() if choices == CHAIN else choices[1:] if key != "form" else choices)
            if key in ("form", "shortcut", "combine", "groups", "multiplier", "per_group", "padding_mode", "identity")
        ),
    ),
)
def test_laws_hold_on_every_construct(name: str, key: str, value: Any) -> None:
    options = {k: () if choices == CHAIN else choices[0] for k, choices in BLOCKS[name][1].items()}
    check_laws(Recipe(((name, {**options, key: value}), *CONV), width=8, seed=2))


CONV = (("Conv", {"out": 6, "norm": "batch"}),)


def test_found_values_that_only_one_image_has_in_order() -> None:
    """What convolutions make of one image may be contiguous, and of several not: their graphs differ in a copy."""
    chain = (
        ("Functional", {"form": "einsum", "out": 4}),
        ("Attention", {"heads": 2, "form": "chunk"}),
        ("SpatialAttention", {"form": "conv"}),
        ("Functional", {"form": "conv", "out": 4}),
        ("Shuffle", {"groups": 3, "form": "view"}),
    )
    _, graph = check_laws(Recipe(chain, "conv", "linear", 4, 0))
    assert graph.batch_size.fixed is None


@pytest.mark.parametrize("seed", range(4))
def test_found_channels_that_a_norm_ties_in_another_arrangement(seed: int) -> None:
    """Padding shifts the channels against the norm's groups: (zero, 0, 1), (2, 3, zero) cannot stand for each other."""
    shifted = (
        ("Functional", {"form": "conv", "out": 4}),
        ("Rearrange", {"form": "zeros"}),
        ("PreActivation", {"order": "norm_act_conv", "out": 4, "norm": "group", "act": "none"}),
    )
    _, graph = check_laws(Recipe((*CONV, *shifted), "conv", "linear", 4, seed))
    assert graph.by_name["chain.blocks.1.w"].frozen is not None
