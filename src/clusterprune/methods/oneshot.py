"""One-shot compression: a smaller network now, from a few hundred unlabelled images and no training.

1. *Measure* what every layer reads (second moments) and how much the output cares (Fisher information of
   the network's own predictions; no labels).
2. *Order* the channels of every group by backward elimination: which can the others stand in for?
3. *Price* each group's path by what it costs the network's loss, all positions of an image together.
4. *Share* the budget: the steps with the least loss per MAC go first, over all groups at once.
5. *Refit* every kernel, layer after layer, against the original network's features.

What is fitted on most of the images is priced on the others, in turn. Without images, some are made whose statistics
in every layer are those that the batch norms remember; where there are no such norms, noise takes their place in steps
1 to 3, and mixing matrices take the place of the refit.
"""

from collections.abc import Sequence
from typing import Unpack

from clusterprune.graph import ChannelGraph
from clusterprune.graph.images import Images, Progress
from clusterprune.merge.divergence import Divergence
from clusterprune.methods.budget import Budget, read_budget
from clusterprune.methods.oneshot_settings import OneShot
from clusterprune.methods.planner import measure_for
from clusterprune.plan import Plan

__all__ = ["OneShot", "oneshot"]


def oneshot(
    graph: ChannelGraph,
    images: Images | None = None,
    *,
    ignore: Sequence[str] = (),
    seed: int = 0,
    config: OneShot | None = None,
    divergence: Divergence | None = None,
    progress: Progress | None = None,
    **budget: Unpack[Budget],
) -> Plan:
    """Plan a compression in one shot.

    Parameters
    ----------
    graph
        A traced model.
    images
        Unlabelled, normalised inputs, shape (images, channels, height, width), or a tuple of such tensors for
        a model with several inputs; 256 to 1,024 are enough. None works without data. They may be on any device:
        each batch goes to where the traced example is.
    ignore
        A glob, or several, of groups or layers to leave alone.
    seed
        Chooses positions, signs of the Fisher information, and noise.
    divergence
        How far outputs are from the original's: a task (:mod:`clusterprune.tasks`) has its own. None goes by the kind
        of each output (:class:`clusterprune.merge.divergence.ByKind`).
    progress
        Called with (phase, done, total).
    **budget
        How much to keep, such as ``keep_macs=0.5``: see :class:`clusterprune.methods.budget.Budget`.

    Returns
    -------
    Plan
        To be given to :func:`clusterprune.apply`.

    Raises
    ------
    ArgumentError
        For a bad option, or images that do not fit the traced example.
    BudgetError
        If the target cannot be reached; the message says what can.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
    >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
    >>> plan = cp.oneshot(graph, torch.randn(64, 3, 8, 8), keep_macs=0.5)
    >>> small = cp.apply(net, plan, graph=graph)
    >>> small[0].out_channels
    8
    """
    goal = read_budget(budget)
    planner = measure_for(
        goal, graph, images,
        ignore=ignore, seed=seed, config=config, divergence=divergence, progress=progress,
    )  # fmt: skip
    return planner.plan_for(goal, progress, forget=True)
