"""What the loss would lose: weights times their gradients."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clusterprune.criteria._base import ScoreInputs
from clusterprune.criteria._filters import by_filter
from clusterprune.errors import ArgumentError
from clusterprune.graph.images import gradient_batch_size
from clusterprune.graph.program import Program, named_tensors


@dataclass(frozen=True)
class Taylor:
    """Σ |w · ∂L/∂w| over the filter (first order, after Molchanov et al. 2019, arXiv 1906.10771).

    L is the task's loss, averaged over all images.
    """

    name: ClassVar[str] = "taylor"

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        """Return the scores by name of group, (channels,) float64.

        Raises
        ------
        ArgumentError
            There are no images, no targets or no task; or the targets do not fit the network.
        """
        graph, task = inputs.graph, inputs.task
        state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
        paths = list(dict.fromkeys(use.path for group in inputs.groups for use in group.producers))
        asked_for = {path: state[path].clone().requires_grad_(True) for path in paths}
        program = Program(graph)
        weights = program.weights({**state, **asked_for})
        gradients = {path: torch.zeros_like(weight) for path, weight in asked_for.items()}
        for batch, targets in inputs.batches_with_targets(gradient_batch_size(graph)):
            if task is None:
                raise ArgumentError("criterion='taylor' differentiates a task's loss, but task=None; give a task")
            if targets is None:
                raise ArgumentError(
                    f"criterion='taylor' differentiates a loss on labels, but task={task!r} has none; give images with "
                    "labels"
                )
            values: dict[str, Any] = program.bind(batch) | weights
            with torch.enable_grad():
                program.advance(values, 0, len(program.steps))
                outputs = pytree.tree_unflatten(program.collect(values), graph.out_spec)
                task.check(outputs, batch[0])
                loss = task.loss(outputs, batch[0], targets) * (len(batch[0]) / inputs.count)
                parts = torch.autograd.grad(loss, list(asked_for.values()), allow_unused=True)
            for path, part in zip(paths, cast("tuple[Tensor | None, ...]", parts), strict=True):
                if part is not None:
                    gradients[path] += part
        products = {path: state[path] * gradient for path, gradient in gradients.items()}
        return by_filter(lambda rows: rows.abs().sum(1), inputs.groups, products)
