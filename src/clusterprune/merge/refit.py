"""Refit: solve every consumer's whole kernel anew, layer after layer, on the already compressed inputs.

The original and the compressed network run side by side on the same images. At each layer the kernel and
bias are the ridge solution that makes its output match the original's; errors of earlier layers are part of
the input, so later layers correct them. In front of an addition the target is the *sum*: a residual
branch also makes good what its shortcut has lost. A layer that is applied several times has one regression, of
what all its calls read; the network runs in an order in which these follow one another.

Where a rectifier follows, an output that it silences may be anything that it silences: the distance to that half-line
counts, not that to the original's value. The sum of these squared distances is convex in the kernel; each of a few
steps replaces every target by its nearest allowed value and solves the regression again, whose factor stays the same.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group, LayerCall
from clusterprune.graph.images import Images, Progress, batch_size_for
from clusterprune.merge._base import Kept, Moments
from clusterprune.merge.least_squares import LeastSquares
from clusterprune.merge.refit_networks import Pair
from clusterprune.merge.refit_solving import solve
from clusterprune.merge.refit_targets import targets_of
from clusterprune.merge.statistics import release_memory
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.bias_homes import bias_home
from clusterprune.surgery.masking import compact_state

_MANY_ROWS = 16384
_ROWS_BY_CHANNEL = 4096
"""Rows for a depthwise layer, whose regressions have a handful of unknowns each, but as many rows to copy."""


@dataclass(frozen=True)
class Refit:
    """Every kernel is solved anew behind least squares, layer after layer.

    Attributes
    ----------
    ridge
        Pull towards the mixed kernel, relative to the mean power of the inputs.
    rows_per_input, work, max_rows
        Rows of each regression: so many per unknown of one output (half as many beyond 16,384 rows) or, if more, as
        many as fit into `work` multiply-adds (rows · unknowns²), and at most `max_rows`.
    all_layers
        Refit every layer from the first cut on; otherwise only those that read a cut group.
    through_additions
        Aim at the sum behind a layer instead of the layer's own output.
    rectified
        How often targets move to what a rectifier behind the layer makes the same of; 0 takes the original's
        values as they are.
    """

    ridge: float = 3e-3
    rows_per_input: int = 16
    work: float = 3e10
    max_rows: int = 65536
    all_layers: bool = True
    through_additions: bool = True
    rectified: int = 4

    name: ClassVar[str] = "refit"
    by_cluster: ClassVar[bool] = False
    needs_images: ClassVar[bool] = True

    def merge(self, graph: ChannelGraph, group: Group, kept: Kept, moments: Moments) -> Merge:
        """Return the merge by least squares, whose kernels the refit begins with."""
        return LeastSquares().merge(graph, group, kept, moments)

    def finish(
        self,
        graph: ChannelGraph,
        plan: Plan,
        images: Images,
        *,
        generator: torch.Generator,
        progress: Progress | None = None,
    ) -> Plan:
        """Solve every kernel anew; see :func:`refit`."""
        size = batch_size_for(graph)
        return refit(graph, plan, images, options=self, batch_size=size, generator=generator, progress=progress)


def refit(
    graph: ChannelGraph,
    plan: Plan,
    images: Images,
    *,
    options: Refit | None = None,
    batch_size: int = 64,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Plan:
    """Return the plan with refitted kernels, biases and running means in `replaced`.

    The regressions are solved where the model is; what they give is on the CPU, as all that a plan holds.

    Parameters
    ----------
    plan
        What to keep; its mixing matrices give the kernels that the ridge pulls to.
    images
        Unlabelled, normalised inputs.
    """
    options = options or Refit()
    state = compact_state(graph, plan)
    homes = {call.weight: bias_home(graph, call.weight) for call in graph.calls}
    targets, order = targets_of(
        graph, plan,
        all_layers=options.all_layers, through_additions=options.through_additions, rectified=options.rectified > 0,
    )  # fmt: skip
    new = {t.call.weight: home[1] for t in targets if (home := homes[t.call.weight]) is not None and home[0] == "new"}
    for weight, bias in new.items():
        state.setdefault(bias, state[weight].new_zeros(state[weight].shape[0]))
    network = Pair(graph, plan, state, images, batch_size, order)
    replaced: dict[str, Tensor] = {}
    for number, target in enumerate(targets):
        weight, home = state[target.call.weight], homes[target.call.weight]
        solution, constant = solve(
            network, target, home,
            rows=_rows_for(options, target.call, weight[0].numel()), ridge=options.ridge, rectified=options.rectified,
            generator=generator,
        )  # fmt: skip
        fresh = {target.call.weight: solution.T.reshape(weight.shape).to(weight.dtype)}
        if home is not None:
            kind, path = home
            fresh[path] = state[path] + (-constant if kind == "subtract" else constant).to(state[path].dtype)
        network.replace(fresh)
        replaced |= {path: tensor.cpu() for path, tensor in fresh.items()}
        network.finish(target)
        release_memory()
        if progress:
            progress("refit", number + 1, len(targets))
    return replace(plan, replaced={**plan.replaced, **replaced})


def _rows_for(options: Refit, call: LayerCall, unknowns: int) -> int:
    """Return how many rows the regression of a call gets, with so many unknowns for each output."""
    enough = options.rows_per_input * unknowns
    rows = int(min(options.max_rows, max(min(enough, _MANY_ROWS), enough // 2, options.work / unknowns**2)))
    if call.depthwise:
        rows = min(max(rows, _ROWS_BY_CHANNEL // 4), _ROWS_BY_CHANNEL)
    return rows
