# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The regression of one layer: its kernel and bias from rows of what it reads and of what it should make."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from clusterprune.merge.least_squares import Ridge, dual_ridge_regression
from clusterprune.merge.refit_networks import Pair
from clusterprune.merge.refit_targets import Rows, Target, nearest, silenced
from clusterprune.merge.statistics import RowBuffer, second_moment, with_constant

_ROWS_KEPT = 8e7
"""Most numbers of a layer's input (a third of a gigabyte) that are kept to look at them again."""
_MOST_PER_STEP = 8e9
"""Most multiply-adds of one product of rows and kernel, of which a step takes two: a fraction of a second."""


def solve(
    network: Pair,
    target: Target,
    home: tuple[str, str] | None,
    *,
    rows: int,
    ridge: float,
    rectified: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the refitted kernel (inputs · taps, outputs) and the change of the bias (outputs,), float64.

    Parameters
    ----------
    home
        Where a constant can be taken up; see :func:`clusterprune.surgery.apply.bias_home`.
    rows
        Positions to look at, at least, of all images together.
    ridge
        Pull towards the present kernel, relative to the mean power of the inputs.
    rectified
        How often targets move to the nearest value that will do.
    """
    call = target.call
    weight = network.state[call.weight]
    constant = home is not None
    unknowns = weight[0].numel()
    limit = max(1, -(-rows // network.images))
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if call.bias is not None:
        bias = network.state[call.bias].double()
    elif home is not None and home[0] == "new":
        bias = network.state[home[1]].double()
    # Outputs that the norm silences keep their kernel.
    folding = None if target.addition is None or target.norm is None else target.norm.folding(network.state)
    silent = None if folding is None else silenced(folding[0])
    prior = weight.flatten(1).T.double()
    seen, count = network.observe(target, limit, generator), network.rows(target, limit)
    length = unknowns * (len(weight) if call.depthwise else 1)
    numbers = count * length
    fits = numbers <= _ROWS_KEPT and numbers * (1 if call.depthwise else len(weight)) <= _MOST_PER_STEP
    often = rectified if target.range is not None and fits else 0
    if call.depthwise:
        kernel, level = _accumulate_by_channel(seen, weight, bias, ridge, constant=constant, rectified=often)
    elif count < unknowns:
        pairs = [(part.inputs, part.wanted) for part in seen]
        inputs, outputs = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        kernel, level = dual_ridge_regression(inputs, outputs, prior, ridge, constant=constant)
    else:
        kernel, level = _accumulate(seen, prior, bias, ridge, constant=constant, rectified=often)
    if silent is not None:
        kernel[:, silent], level[silent] = prior[:, silent], bias[silent]
    return kernel, level - bias if constant else torch.zeros_like(bias)


def _accumulate(
    seen: Iterable[Rows], prior: Tensor, bias: Tensor, ridge: float, *, constant: bool, rectified: int = 0
) -> tuple[Tensor, Tensor]:
    """Solve the regression from running sums of products: kernel and bias, or the given bias if none is fitted.

    Parameters
    ----------
    rectified
        How often targets move to the nearest value that will do; the rows are then kept.
    """
    gram: list[Tensor] = []
    cross: list[Tensor] = []
    kept: list[Rows] = []
    shift: dict[str, Tensor] = {}

    def around(inputs: Tensor) -> Tensor:
        # Around a guess of the mean (of the first batch), so that float32 products keep the variance.
        return with_constant(inputs, shift.setdefault("inputs", inputs.mean(0))) if constant else inputs

    def add(inputs: Tensor, outputs: Tensor) -> None:
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        for total, part in ((gram, second_moment(inputs, None)), (cross, second_moment(inputs, outputs))):
            total[:] = [total[0].add_(part)] if total else [part]

    buffer = RowBuffer(add)
    for rows in seen:
        inputs = around(rows.inputs)
        buffer.add(inputs, rows.wanted)
        if rectified:
            kept.append(replace(rows, inputs=inputs))
    buffer.flush()
    whole, guess = prior, torch.zeros_like(prior[:, 0])
    if constant:
        guess = shift["inputs"].double()
        whole = torch.cat([prior, (bias + guess @ prior)[None]])
    regression = Ridge(gram[0], whole, ridge, constant=constant)
    solution = before = regression.solve(cross[0])
    for step in range(rectified):
        # A step of Nesterov's: each by itself goes but part of the way.
        ahead = (solution + (solution - before) * (step / (step + 3))).to(kept[0].inputs.dtype)
        before = solution
        fresh = torch.zeros_like(cross[0])
        for rows in kept:
            made = rows.inputs @ ahead if constant else rows.inputs @ ahead + bias.to(rows.inputs.dtype)
            outputs = nearest(made, rows)
            fresh += second_moment(rows.inputs, outputs if constant else outputs - bias.to(outputs.dtype))
        solution = regression.solve(fresh)
    if not constant:
        return solution, bias
    return solution[:-1], solution[-1] - guess @ solution[:-1]


def _accumulate_by_channel(
    seen: Iterable[Rows], weight: Tensor, bias: Tensor, ridge: float, *, constant: bool, rectified: int = 0
) -> tuple[Tensor, Tensor]:
    """Solve one small regression for every channel of a depthwise layer: kernels (taps, channels), and the biases."""
    channels, taps = len(weight), weight[0].numel()
    length = taps + constant
    gram = torch.zeros(channels, length, length, dtype=torch.float64, device=weight.device)
    cross = torch.zeros(channels, length, 1, dtype=torch.float64, device=weight.device)
    kept: list[Rows] = []
    shift: dict[str, Tensor] = {}

    def by_channel(rows: Rows) -> Tensor:
        """Return inputs as (channels, rows, taps), around a guess of their mean and with a constant behind."""
        patches = rows.inputs.view(len(rows.inputs), channels, taps).transpose(0, 1)
        if not constant:
            return patches
        guess = shift.setdefault("inputs", patches.mean((1, 2), keepdim=True))
        return torch.cat([patches - guess, patches.new_ones(channels, patches.shape[1], 1)], 2)

    def product(inputs: Tensor, outputs: Tensor) -> Tensor:
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        return (inputs.transpose(1, 2) @ outputs.T[:, :, None]).double()

    for rows in seen:
        inputs = by_channel(rows)
        gram += (inputs.transpose(1, 2) @ inputs).double()
        cross += product(inputs, rows.wanted)
        if rectified:
            kept.append(rows)
    prior = weight.flatten(1).double()
    guess = shift["inputs"].flatten().double() if constant else torch.zeros_like(bias)
    if constant:
        prior = torch.cat([prior, (bias + guess * prior.sum(1))[:, None]], 1)
    penalty = ridge * gram[:, :taps, :taps].diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-12
    penalty = penalty.repeat(1, length)
    if constant:
        penalty[:, -1] = 1e-9 * gram[:, -1, -1] + 1e-12
    factor = torch.linalg.cholesky(gram + torch.diag_embed(penalty))
    pull = (penalty * prior)[:, :, None]
    solution = before = torch.cholesky_solve(cross + pull, factor)
    for step in range(rectified):
        ahead = (solution + (solution - before) * (step / (step + 3))).to(weight.dtype)
        before, fresh = solution, torch.zeros_like(cross)
        for rows in kept:
            inputs = by_channel(rows)
            made = (inputs @ ahead).squeeze(2).T
            fresh += product(inputs, nearest(made if constant else made + bias.to(made.dtype), rows))
        solution = torch.cholesky_solve(fresh + pull, factor)
    kernel = solution[:, :taps, 0]
    return kernel.T, bias if not constant else solution[:, -1, 0] - guess * kernel.sum(1)
