"""Which channels belong together, construct by construct, and what keeps a group from being cut."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from network_blocks import BLOCKS, CHAIN
from networks import PROFILE, Network, Recipe, recipes
from torch import Tensor, nn
from torch.nn import functional

import clusterprune as cp


def graph_of(*blocks: tuple[str, dict], **kwargs) -> cp.ChannelGraph:
    """Trace a network of one construct or a few, with the first value of every option that is not given."""
    chain = []
    for name, given_options in blocks:
        options = {key: () if choices == CHAIN else choices[0] for key, choices in BLOCKS[name][1].items()}
        chain.append((name, {**options, **given_options}))
    model = Network(Recipe(tuple(chain), **{"width": 8, **kwargs}))
    return cp.trace(model, model.inputs(1))


def paths(uses) -> list[str]:
    return [use.path.removeprefix("chain.blocks.") for use in uses]


@settings(PROFILE, max_examples=examples(12))
@given(recipe=recipes(2, 4))
def test_groups_are_a_partition(recipe: Recipe) -> None:
    model = Network(recipe)
    graph = cp.trace(model, model.inputs(1))
    labels = [label for group in graph.groups for label in group.labels.tolist()]
    assert len(labels) == len(set(labels))
    assert len(graph.by_name) == len(graph.groups)
    taken: dict[tuple[str, int], set[int]] = defaultdict(set)
    shapes = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for group in graph.groups:
        assert len(group.labels) == len(group.blocks) == group.width
        if group.frozen is None:
            assert len(set(np.bincount(group.blocks).tolist())) == 1
            assert group.consumers
        for use in group.uses:
            places = set(use.positions.ravel().tolist())
            assert use.positions.shape[0] == group.width
            assert len(places) == use.positions.size, f"{use.path}: a position belongs to two channels of {group.name}"
            assert not places & taken[use.path, use.dim], f"{use.path}: a position belongs to two groups"
            assert max(places) < shapes[use.path].shape[use.dim] * use.groups
            taken[use.path, use.dim] |= places


def test_a_residual_stream_is_one_group() -> None:
    graph = graph_of(("Residual", {}), ("Residual", {}))
    stem = graph.by_name["stem"]
    assert paths(stem.producers) == ["stem.weight", "0.last.weight", "1.last.weight"]
    assert set(paths(stem.carriers)) == {"stem.bias"} | {
        f"{i}.norm.{name}" for i in (0, 1) for name in ("weight", "bias", "running_mean", "running_var")
    }
    assert paths(stem.consumers) == ["0.last.weight", "1.last.weight", "head.weight"]


@pytest.mark.parametrize("shortcut", ["pad", "padded_module"])
def test_option_a_shortcuts_unite_the_middle_channels_alone(shortcut: str) -> None:
    graph = graph_of(("Residual", {"shortcut": shortcut, "extra": 4}))
    stem, outer = graph.by_name["stem"], graph.by_name["chain.blocks.0.last"]
    made = {use.path: use.positions.ravel().tolist() for use in stem.producers}
    assert made["chain.blocks.0.last.weight"] == list(range(2, 10))
    assert outer.width == 4
    assert outer.producers[0].positions.ravel().tolist() == [0, 1, 10, 11]


def test_branches_of_a_concatenation_are_groups_of_their_own() -> None:
    conv = (("Conv", {**{k: c[0] for k, c in BLOCKS["Conv"][1].items()}, "out": 6}),)
    graph = graph_of(("Concat", {"first": conv, "second": conv, "identity": True}))
    reads = {
        g.name: use.positions.ravel().tolist() for g in graph.prunable for use in g.consumers if "head" in use.path
    }
    assert reads["chain.blocks.0.first.blocks.0.conv"] == list(range(6))
    assert reads["chain.blocks.0.second.blocks.0.conv"] == list(range(6, 12))
    assert reads["stem"] == list(range(12, 20))


def test_flattening_gives_a_channel_many_inputs() -> None:
    stem = graph_of(head="flatten").by_name["stem"]
    (use,) = stem.consumers
    assert use.positions.shape == (8, 64)
    assert use.positions[3].tolist() == list(range(192, 256))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_filters_go_with_their_channel(multiplier: int) -> None:
    graph = graph_of(("Depthwise", {"multiplier": multiplier, "norm": "batch"}))
    stem = graph.by_name["stem"]
    assert len(graph.groups) == 2
    carried = {use.path: use.positions for use in stem.carriers}
    assert carried["chain.blocks.0.conv.weight"].shape == (8, multiplier)
    assert carried["chain.blocks.0.conv.weight"][1].tolist() == list(range(multiplier, 2 * multiplier))


def test_grouped_convolutions_keep_equal_blocks() -> None:
    graph = graph_of(("Grouped", {"groups": 4, "per_group": 2}))
    stem, out = graph.by_name["stem"], graph.by_name["chain.blocks.0.conv"]
    assert stem.blocks.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert out.blocks.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert stem.consumers[0].groups == 4


def test_one_channel_per_block_cannot_be_cut() -> None:
    graph = graph_of(("Grouped", {"groups": 4, "per_group": 1}))
    assert graph.by_name["chain.blocks.0.conv"].frozen == "a single channel that nothing else can replace"


@pytest.mark.parametrize("form", ["view", "module", "hard", "reshape"])
def test_shuffled_channels_are_cut_in_step(form: str) -> None:
    stem = graph_of(("Shuffle", {"groups": 2, "form": form})).by_name["stem"]
    assert stem.width == 4
    assert stem.producers[0].positions.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert stem.consumers[0].positions.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_channel_read_twice_by_each_block_is_no_obstacle() -> None:
    stem = graph_of(("Depthwise", {"multiplier": 2}), ("Grouped", {"groups": 2})).by_name["stem"]
    assert stem.frozen is None
    assert stem.consumers[0].positions.shape == (8, 2)
    assert stem.blocks.tolist() == [0] * 4 + [1] * 4


def test_halves_prefer_to_stay_halves() -> None:
    graph = graph_of(("Split", {"form": "glu"}))
    assert {group.width for group in graph.prunable} == {4}


def test_squeeze_and_excitation_follows_the_channels_it_scales() -> None:
    graph = graph_of(("SqueezeExcite", {"hidden": 4}))
    assert paths(graph.by_name["stem"].producers) == ["stem.weight", "0.up.weight"]
    assert paths(graph.by_name["stem"].consumers) == ["0.down.weight", "head.weight"]
    assert graph.by_name["chain.blocks.0.down"].width == 4


def test_parameters_without_a_layer_are_carried() -> None:
    for form in ("gamma", "bias_view", "gamma_flat", "addcmul", "position", "buffer"):
        stem = graph_of(("Functional", {"form": form})).by_name["stem"]
        assert set(paths(stem.carriers)) == {"stem.bias", "0.scale" if form == "buffer" else "0.w"}, form
        assert stem.frozen is None


def test_layers_used_twice_unite_their_channels() -> None:
    graph = graph_of(("Shared", {"form": "conv_twice"}))
    stem = graph.by_name["stem"]
    assert "0.first.weight" in paths(stem.producers)
    assert "0.first.weight" in paths(stem.consumers)
    assert stem.frozen is None


def test_group_norm_cuts_whole_normalisation_groups() -> None:
    stem = graph_of(("PreActivation", {"norm": "group"})).by_name["stem"]
    assert stem.width == 4
    assert stem.producers[0].positions.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (("OverChannels", {"form": "softmax"}), "softmax over channels"),
        (("OverChannels", {"form": "centre"}), "reduces over channels"),
        (("OverChannels", {"form": "cumsum"}), "it works along the channels"),
        (("OverChannels", {"form": "layer_all"}), "a norm over the channels reads all of them"),
        (("OverChannels", {"form": "response_norm"}), "pools over channels"),
        (("PreActivation", {"norm": "layer"}), "a norm over the channels reads all of them"),
        (("Functional", {"form": "einsum"}), "einsum"),
        (("Rearrange", {"form": "permute"}), "it picks channels by their number"),
        (("Transposed", {"groups": 2}), "grouped transposed convolution"),
    ],
)
def test_reasons_to_freeze(block: tuple[str, dict], reason: str) -> None:
    frozen = graph_of(block).by_name["stem"].frozen
    assert frozen is not None
    assert reason in frozen


def test_a_map_that_is_broadcast_over_channels_stays_and_the_channels_pass() -> None:
    graph = graph_of(("SpatialAttention", {"form": "conv"}))
    assert graph.by_name["stem"].frozen is None
    assert "broadcast over the channels" in str(graph.by_name["chain.blocks.0.conv"].frozen)


def test_what_meets_the_input_image_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x + self.conv(x))

    graph = cp.trace(Net(), torch.zeros(1, 3, 8, 8))
    assert graph.by_name["conv"].frozen == "the network's input"


def test_a_group_that_no_layer_reads_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            return self.out(functional.relu(x))

    graph = cp.trace(Net(), torch.zeros(1, 3, 8, 8))
    assert graph.by_name["conv"].frozen == "no layer reads these channels"


@pytest.mark.parametrize("act", ["relu_", "silu", "hardswish_", "gelu", "prelu"])
def test_activations_are_no_obstacle(act: str) -> None:
    graph = graph_of(("Conv", {"out": 6, "norm": "batch", "act": act}))
    assert [g.name for g in graph.prunable] == ["stem", "chain.blocks.0.conv"]
    assert graph.unknown == {}
