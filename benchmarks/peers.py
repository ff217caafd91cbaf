"""Published one-shot methods that train nothing, each brought to a given share of the MACs.

Both are implementations of our own, written from the papers on the traced graph; no code of theirs is in them.

OSSCAR
    Meng et al., "OSSCAR: One-Shot Structured Pruning in Vision and Language Models with Combinatorial
    Optimization", ICML 2024, arXiv 2403.12983. Layer after layer it chooses which input channels stay, and solves
    for their weights, so that the layer's output on calibration images is as close as can be to the original's.
Model folding
    Wang et al., "Forget the Data and Fine-Tuning! Just Fold the Network to Compress", ICLR 2025, arXiv 2502.10216.
    It clusters the filters of a layer by k-means, puts the mean of each cluster in their place, and repairs the
    variance that means lack: in closed form without data (Fold-AR), or by batch-norm statistics on images (Fold-R).

What both may cut is what Torch-Pruning cuts in ``oneshot_accuracy.py``: channels that one layer makes, thus every
convolution of VGG and the first of each block of a ResNet. Every such layer keeps the same share of its channels.

Where these leave the papers, it is in the peers' favour
    * OSSCAR also fits the constant by which a layer's output has shifted; its batch norm or bias takes it. Its ridge
      pulls to the original weights instead of to zero.
    * Folding clusters each channel's filter together with the weights that read the channel, since it merges both.
      On these ResNets that keeps more accuracy than clusters of the filters alone.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from clusterprune.budget.cost import CostModel
from clusterprune.graph import ChannelGraph, Group, LayerCall
from clusterprune.graph.program import Program, named_tensors
from clusterprune.graph.walk import layer_of
from clusterprune.merge.patches import PatchExtractor
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.bias_homes import bias_home
from clusterprune.surgery.cutting import cutter

BATCH = 128
POSITIONS = 64
"""Output positions of each image that OSSCAR's regressions see: 65,536 rows from 1,024 images."""
RIDGE = 1e-2
"""Pull of OSSCAR's regressions, relative to the mean power of a layer's inputs."""
ROUNDS = 32
"""In about so many rounds of removal does OSSCAR empty a layer; a layer of few channels loses one in each."""
TRIED = 4
"""Channels that OSSCAR tries to bring back before it calls its choice a local optimum."""


def groups_of_one_layer(graph: ChannelGraph) -> list[Group]:
    """Return the groups that both peers cut: made by one layer and read by one, in the order of the network."""
    return [group for group in graph.prunable if len(group.producers) == 1 and len(group.consumers) == 1]


def uniform_widths(graph: ChannelGraph, groups: Sequence[Group], keep: float) -> dict[str, int]:
    """Return how many channels each group keeps when all lose the same share.

    The share is found by bisection. Layers of one width reach their next channel at the same share, where the MACs
    would jump; there the earlier layers lose it first, so that no layer is more than one channel off.

    Parameters
    ----------
    graph, groups
        The network, and what of it is cut. Of each group at least one channel stays.
    keep
        Wanted fraction of the MACs; the widths whose MACs are the closest to it are returned.
    """
    cost = CostModel(graph)
    target = keep * cost.total("macs")
    removals = sorted(
        ((number + 0.5) / group.width, place) for place, group in enumerate(groups) for number in range(group.width - 1)
    )

    def widths(count: int) -> dict[str, int]:
        gone = np.bincount([place for _, place in removals[:count]], minlength=len(groups))
        return {group.name: group.width - int(gone[place]) for place, group in enumerate(groups)}

    def macs(count: int) -> float:
        return cost.total("macs", cost.with_widths(widths(count)))

    low, high = 0, len(removals)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) > target else (low, middle)
    return widths(min((low, high), key=lambda count: abs(macs(count) - target)))


def osscar(
    graph: ChannelGraph, images: Tensor, keep: float, *, generator: torch.Generator, ridge: float = RIDGE
) -> Plan:
    """Prune by OSSCAR: local search for the input channels of each layer, and least squares for their weights.

    Layers come in order. A layer reads what the already pruned network makes of the images, and aims at the output
    that it has in the original network. Layers all of whose inputs stay keep their weights.

    Parameters
    ----------
    graph
        The traced network.
    images
        Unlabelled, normalised images, shape (images, channels, height, width).
    keep
        Fraction of the MACs to keep.
    generator
        Chooses the positions whose rows the regressions see.
    ridge
        Pull to the original weights, relative to the mean power of the layer's inputs.
    """
    groups = {group.consumers[0].path: group for group in groups_of_one_layer(graph)}
    widths = uniform_widths(graph, list(groups.values()), keep)
    pair = _Pair(graph, images)
    kept: dict[str, np.ndarray] = {}
    changed: list[str] = []
    for call in graph.calls:
        group = groups.get(call.weight)
        if group is None or widths[group.name] == group.width:
            continue
        home = bias_home(graph, call.weight)
        if home is not None and home[0] == "new":
            home = None  # the layer has neither a bias nor a batch norm
        gram, cross, mean_read, mean_made = pair.moments(call, generator, centred=home is not None)
        weight = pair.state[call.weight]
        taps = weight[0, 0].numel()
        inputs = torch.from_numpy(group.consumers[0].positions)
        members = (inputs[:, :, None] * taps + torch.arange(taps)).flatten(1)
        solution, stay = reconstruct(gram, cross, weight.flatten(1).T.double(), members, widths[group.name], ridge)
        fresh = {call.weight: solution.T.reshape(weight.shape).to(weight.dtype)}
        if home is not None:
            kind, path = home
            constant = (mean_made - mean_read @ solution).to(weight.dtype)
            fresh[path] = pair.state[path] + (-constant if kind == "subtract" else constant)
        pair.replace(fresh)
        changed += fresh
        kept[group.name] = stay
    merges = tuple(Merge(group.name, kept[group.name]) for group in groups.values() if group.name in kept)
    cut = cutter(graph, Plan(merges))
    replaced = {path: cut(path, pair.state[path]) for path in changed}
    return Plan.of(graph, merges, replaced, method="osscar", keep_macs=keep)


def reconstruct(
    gram: Tensor, cross: Tensor, prior: Tensor, members: Tensor, keep: int, ridge: float
) -> tuple[Tensor, np.ndarray]:
    """Choose input channels and their weights: minimise ‖X W - Y‖² + λ‖W - prior‖² with all other rows of W zero.

    First the channels without which the error rises the least go, in chunks, and the weights of the others are solved
    for after each chunk. Then channels are swapped as long as that lowers the error.

    Parameters
    ----------
    gram, cross
        XᵀX (inputs, inputs) and XᵀY (inputs, outputs), float64.
    prior
        The original weights (inputs, outputs).
    members
        Which inputs belong to each channel, shape (channels, inputs of one).
    keep
        How many channels stay.
    ridge
        λ relative to the mean diagonal of `gram`.

    Returns
    -------
    tuple
        W (inputs, outputs), and the channels that stay, ascending.
    """
    penalty = ridge * float(gram.diagonal().mean()) + 1e-12
    gram = gram + penalty * torch.eye(len(gram), dtype=gram.dtype)
    cross = cross + penalty * prior
    # The tableau of the normal equations. Where channels S are in, it holds the inverse of their part of XᵀX, their
    # weights to the right of it, and for all others what is left of XᵀX and XᵀY once S has explained its part.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    tableau = torch.cat([inverse, inverse @ cross], 1)
    present = torch.ones(len(members), dtype=torch.bool)

    def worth() -> Tensor:
        """Return by how much the error changes as each channel goes, or comes."""
        blocks = tableau[members[:, :, None], members[:, None, :]]
        values = tableau[:, len(gram) :][members]
        return (values * torch.linalg.solve(blocks, values)).sum((1, 2))

    def exchange(channels: Tensor) -> None:
        _pivot(tableau, members[channels].flatten())
        present[channels] = ~present[channels]

    surplus = len(members) - keep
    chunk = max(1, surplus // ROUNDS)
    while surplus:
        cost = worth().masked_fill(~present, torch.inf)
        exchange(cost.topk(min(chunk, surplus), largest=False).indices)
        surplus = int(present.sum()) - keep
    for _ in range(len(members)):
        gain = worth().masked_fill(present, -torch.inf)
        improved = False
        for back in gain.topk(min(TRIED, len(members) - keep)).indices:
            exchange(back[None])
            cost = worth().masked_fill(~present, torch.inf)
            out = cost.argmin()
            exchange(out[None])
            if improved := bool(out != back):
                break
        if not improved:
            break
    stay = present.nonzero().squeeze(1)
    rows = members[stay].flatten()
    solution = torch.zeros_like(cross)
    # Solved anew, because the tableau carries the rounding of every exchange.
    solution[rows] = torch.cholesky_solve(cross[rows], torch.linalg.cholesky(gram[rows][:, rows]))
    return solution, stay.numpy()


def _pivot(tableau: Tensor, rows: Tensor) -> None:
    """Exchange inputs of a tableau with their equations, in place: what was in goes out, and the other way round."""
    inverse = torch.linalg.inv(tableau[rows][:, rows])
    across, down = tableau[rows], tableau[:, rows]
    change = inverse @ across
    tableau.addmm_(down, change, alpha=-1)
    tableau[rows] = change
    tableau[:, rows] = -down @ inverse
    tableau[rows[:, None], rows[None]] = inverse


class _Pair:
    """The original network and the pruned one, both part-way through the same images.

    The pruned network has its full size: columns of removed channels are zero, which computes the same.
    """

    def __init__(self, graph: ChannelGraph, images: Tensor) -> None:
        self.graph = graph
        self.state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
        self._program = Program(graph)
        before = self._program.weights(self.state)
        self._after = dict(before)
        images = images.contiguous(memory_format=torch.channels_last)
        self._values: list[tuple[ChainMap[str, Any], ChainMap[str, Any]]] = [
            (ChainMap(self._program.bind([part]), before), ChainMap(self._program.bind([part]), self._after))
            for part in images.split(BATCH)
        ]
        self._done = (0, 0)

    @torch.no_grad()
    def moments(
        self, call: LayerCall, generator: torch.Generator, *, centred: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the second moments of a layer, XᵀX and XᵀY, and the means of X and Y that were taken out of them.

        X is what the layer reads after pruning, Y what it made before without its bias; all are float64. Means are
        zero unless `centred`. Calls have to be asked for in the order in which the network runs them.
        """
        reader = PatchExtractor.of(self.graph, call)
        index = self._program.index[call.node]
        sums: list[Tensor] = []
        count = 0
        for original, pruned in self._values:
            self._program.advance(original, self._done[0], index + 1)
            self._program.advance(pruned, self._done[1], index)
            made = original[call.node]
            if call.bias is not None:
                made = made - self.state[call.bias]
            where = reader.positions(made, POSITIONS, generator)
            rows, wanted = reader.inputs(pruned[call.input], where), reader.outputs(made, where)
            part = [m.double() for m in (rows.T @ rows, rows.T @ wanted, rows.sum(0), wanted.sum(0))]
            sums = [a.add_(b) for a, b in zip(sums, part, strict=True)] if sums else part
            count += len(rows)
        self._done = (index + 1, index)
        gram, cross, read, made = sums
        if not centred:
            return gram, cross, torch.zeros_like(read), torch.zeros_like(made)
        gram -= torch.outer(read, read) / count
        cross -= torch.outer(read, made) / count
        return gram, cross, read / count, made / count

    def replace(self, fresh: Mapping[str, Tensor]) -> None:
        """Give layers of the pruned network other tensors."""
        self.state |= fresh
        self._after.update(self._program.weights(self.state))


def fold(graph: ChannelGraph, keep: float, *, seed: int) -> Plan:
    """Fold a network: k-means of each layer's filters, and the mean of each cluster in their place (Fold-AR).

    A channel's filter is that of its convolution with the scale of the batch norm multiplied in, and layers come in
    order, so that a filter reads the clusters of the layer before it. The consumer's weights of a cluster add up. The
    mean of N channels that correlate by ρ on average has (N + (N² - N) ρ) / N² of the variance of one; ρ is estimated
    by the cosines of the filters, as if their inputs were uncorrelated, and the batch norm gives back what is missing.

    The statistics of the batch norms are in closed form. Re-estimate them on images for the variant with data.

    Parameters
    ----------
    graph
        The traced network; every group that is cut passes exactly one batch norm.
    keep
        Fraction of the MACs to keep.
    seed
        Of the k-means.
    """
    groups = groups_of_one_layer(graph)
    widths = uniform_widths(graph, groups, keep)
    weights = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    merges: list[Merge] = []
    replaced: dict[str, Tensor] = {}
    for group in groups:
        if widths[group.name] == group.width:
            continue
        producer, consumer = group.producers[0].path, group.consumers[0].path
        layer, norm = _norm_of(graph, group)
        means, statistics, labels = _fold_layer(weights[producer], weights[consumer], norm, widths[group.name], seed)
        replaced[producer] = means
        replaced |= {f"{layer}.{name}": tensor for name, tensor in statistics.items()}
        _, kept = np.unique(labels, return_index=True)
        mixing = torch.from_numpy(labels)[:, None] == torch.arange(len(kept))
        merges.append(Merge(group.name, kept, {consumer: mixing.float()}))
        weights[consumer] = torch.einsum("oi...,ik->ok...", weights[consumer], mixing.float())
    return Plan.of(graph, tuple(merges), replaced, method="folding", keep_macs=keep, seed=seed)


def _norm_of(graph: ChannelGraph, group: Group) -> tuple[str, nn.BatchNorm2d]:
    """Return the one batch norm that a group passes, and its path."""
    paths = {layer_of(use.path.rpartition(".")[0]) for use in group.carriers}
    norms = [(path, module) for path in paths if isinstance(module := graph.model.get_submodule(path), nn.BatchNorm2d)]
    if len(norms) != 1 or len(paths) != 1:
        raise ValueError(f"folding needs exactly one batch norm behind {group.name!r}, but finds {sorted(paths)}")
    return norms[0]


def _fold_layer(
    weight: Tensor, read_by: Tensor, norm: nn.BatchNorm2d, clusters: int, seed: int
) -> tuple[Tensor, dict[str, Tensor], np.ndarray]:
    """Fold the filters of one layer.

    Parameters
    ----------
    weight
        Filters of the layer, shape (channels, inputs, height, width).
    read_by
        Weights of the layer that reads the channels, shape (outputs, channels, …).
    norm
        The batch norm behind it.
    clusters
        How many filters are left.

    Returns
    -------
    tuple
        The new filters; weight, bias and statistics of the new batch norm, by name; and the cluster (channels,) of
        each channel, numbered in the order of the clusters' first channels.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (norm.weight / (variance + norm.eps).sqrt()).detach()
    filters = weight.flatten(1) * scale[:, None]
    points = torch.cat([filters, read_by.transpose(0, 1).flatten(1)], 1)
    means = KMeans(clusters, n_init=10, random_state=seed)  # type: ignore[arg-type]  (a number is documented too)
    found = means.fit_predict(points.double().numpy())
    first = np.unique(found, return_index=True)[1]
    labels = np.argsort(np.argsort(first))[found]
    member = (torch.from_numpy(labels) == torch.arange(clusters)[:, None]).to(filters)
    counts = member.sum(1)
    average = member / counts[:, None]

    directions = torch.nn.functional.normalize(filters, dim=1)
    # Sum of all cosines within a cluster: N of a filter with itself, and N² - N of pairs.
    cosines = (member @ directions).square().sum(1)
    spread = average @ norm.weight.detach().abs()
    # Filters that cancel out would leave no variance to divide by.
    left = cosines.clamp_min(1.0) / counts.square()
    return (
        (average @ filters).reshape(-1, *weight.shape[1:]),
        {
            "weight": spread,
            "bias": average @ norm.bias.detach(),
            "running_mean": average @ (scale * mean),
            "running_var": (spread.square() * left - norm.eps).clamp_min(0),
        },
        labels,
    )
