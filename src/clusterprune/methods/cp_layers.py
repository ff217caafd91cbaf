# pyright: reportPrivateUsage=false
"""The layers that CP prunes, and the batch norms behind them."""

import copy
from collections.abc import Sequence

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.methods.layers import inner_groups
from clusterprune.surgery.history import Stage, add_stage


def target_groups(graph: ChannelGraph, layers: Sequence[str] | None) -> list[Group]:
    """Return the groups to prune, in order of depth."""
    names = inner_groups(graph) if layers is None else layers
    possible = {group.name for group in graph.prunable if group.n_blocks == 1}
    if not names or not possible.issuperset(names):
        wrong = ", ".join(sorted(set(names) - possible)) or "nothing"
        raise ArgumentError(
            f"layers={wrong} cannot be pruned; name groups of this network, such as "
            f"{', '.join(sorted(possible)[:8]) or 'none'}. Print the graph to see all, and why some are frozen."
        )
    return [group for group in graph.prunable if group.name in names]


def without_batch_norm(model: nn.Module, graph: ChannelGraph, layers: Sequence[str] | None = None) -> nn.Module:
    """Return a copy without the batch norms behind its target layers, as the paper trains it.

    Each is folded into its convolution, which gets a bias: in evaluation the copy computes what `model` does.

    Parameters
    ----------
    model, graph
        A network and its graph.
    layers
        Names of groups; None is the paper's choice.

    Raises
    ------
    ArgumentError
        If a layer is no group that may be cut, or its batch norm is not directly behind it.
    """
    smaller = copy.deepcopy(model)
    folded: list[str] = []
    added: list[str] = []
    for group in target_groups(graph, layers):
        for norm in graph.norms_of(group):
            owner = norm.paths[0].rpartition(".")[0]
            layer = group.producers[0].path.rpartition(".")[0]
            batch_norm, convolution = smaller.get_submodule(owner), smaller.get_submodule(layer)
            made = [call.node for call in graph.calls if call.weight == group.producers[0].path]
            behind = made == [norm.input.name] and norm.alone
            if (
                not behind
                or not isinstance(convolution, nn.modules.conv._ConvNd)
                or not isinstance(batch_norm, nn.modules.batchnorm._BatchNorm)
                or batch_norm.running_mean is None
                or batch_norm.running_var is None
            ):
                raise ArgumentError(
                    f"the batch norm {owner} cannot be removed: it does not alone read {layer}, or has no running "
                    f"statistics. Leave {group.name} out of layers, or pass batch_norm='tied'."
                )
            folded.append(owner)
            added += [f"{layer}.bias"] if convolution.bias is None else []
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                batch_norm.running_mean,
                batch_norm.running_var,
                batch_norm.eps,
                batch_norm.weight,
                batch_norm.bias,
                transpose=convolution.transposed,
            )
            convolution.bias.requires_grad_(convolution.weight.requires_grad)
            smaller.set_submodule(owner, nn.Identity())
    return add_stage(smaller, model, Stage(rewired=False, added=added, folded=folded)) if folded else smaller
