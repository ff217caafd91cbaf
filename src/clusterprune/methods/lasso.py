# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Channel pruning by LASSO (He, Zhang and Sun 2017, arXiv 1707.06168): what a layer makes says which inputs it needs.

for each layer that is to be cut, by what the layers behind it make of the original's maps
    β ← argmin ‖ Σ_i x_i w_iᵀ − Σ_i β_i x_i w_iᵀ ‖² + λ Σ |β_i|
    keep the channels whose β_i is not zero, with λ such that as many stay as should
then, layer after layer on the already cut inputs, solve the kernels anew by least squares
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram
from torch import Tensor

from clusterprune.criteria import ScoreInputs
from clusterprune.errors import ArgumentError
from clusterprune.merge import FreeMergingName
from clusterprune.merge.elimination import LayerInput
from clusterprune.merge.measured import Effort, measure
from clusterprune.merge.orders import LayerInputs
from clusterprune.methods._settings import fixed
from clusterprune.methods.cuts import CriterionCut, Cut, Layers
from clusterprune.methods.once import CutOnce

EFFORT = Effort(
    output_aware=False, temperature=1.0, whole_kernel_limit=2304, moment_rows=16384, work=1e12, n_folds=1
)  # fmt: skip


@dataclass(frozen=True)
class LassoPath:
    """The greatest λ at which a channel is still read, of the layers behind it together; a criterion.

    All λ of a layer come from one path, so that one order serves every width: the channels that stay at a λ are those
    that score at least as much.
    """

    name: ClassVar[str] = "lasso"

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        """Return the scores by name of group, (channels,) float64.

        Raises
        ------
        ArgumentError
            There are no images.
        """
        graph, groups = inputs.graph, list(inputs.groups)
        if inputs.images is None:
            raise ArgumentError("method='lasso' compares what layers make of images, but images=None; give images")
        measured = measure(graph, groups, inputs.images, EFFORT, generator=inputs.generator, progress=None)
        read = LayerInputs(graph, measured)
        found: dict[str, Tensor] = {}
        for group in groups:
            seen = read.of(group, measured.moments, measured.rows)
            gram = sum((contributions(one) for one in seen), torch.zeros(group.width, group.width, dtype=torch.float64))
            found[group.name] = torch.from_numpy(entries(gram.numpy())).to(inputs.device)
        return found


def contributions(one: LayerInput) -> Tensor:
    """Return the products of what channels add to a layer's outputs, (channels, channels), a layer's own size aside.

    With X_i the inputs from a channel and W_i the kernel that reads them, entry (i, j) is E⟨X_i W_i, X_j W_j⟩.
    """
    products = one.moments * (one.weight @ one.weight.T)
    channels = len(products) // one.taps
    gram = products.view(channels, one.taps, channels, one.taps).sum((1, 3))
    return gram / gram.sum().clamp_min(1e-30)


def entries(gram: np.ndarray) -> np.ndarray:
    """Return for each channel the greatest λ with a β that is not zero, shape (channels,); 0 where there is none."""
    scores = np.zeros(len(gram))
    ridge = 1e-9 * max(float(np.trace(gram)) / len(gram), 1e-30)
    with warnings.catch_warnings():
        # A channel that others stand in for wholly is left out with a warning; its score of 0 says the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalties, _, path = lars_path_gram(
            gram.sum(1), gram + ridge * np.eye(len(gram)), n_samples=1, method="lasso", max_iter=8 * len(gram)
        )
    # A channel that is read from one λ of the path on is not zero at the next.
    for penalty, used in zip(penalties[-2::-1], (path != 0).T[:0:-1], strict=True):
        scores[used] = penalty
    return np.maximum(scores, 0.0)


@dataclass(frozen=True)
class LassoCut(CriterionCut):
    """Channels by LASSO, and least squares behind them.

    Attributes
    ----------
    merging
        What the kept channels take over: what solving the kernels anew finds, as published ("refit"), or nothing.
    layers
        "inner": those within residual blocks, as published; "all" that may be cut.
    """

    criterion: Any = fixed(LassoPath())  # noqa: RUF009 (a field)
    merging: FreeMergingName = "refit"
    layers: Layers = "inner"


@dataclass(frozen=True)
class Lasso(CutOnce):
    """Cut once by LASSO with least squares behind it, then train for a while or not at all."""

    name: ClassVar[str] = "lasso"
    parts: ClassVar[dict[str, dict[str, type[Any]]]] = {"cut": {"lasso": LassoCut}}

    cut: Cut = LassoCut()
