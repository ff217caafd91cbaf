"""Momentum that follows the channels when a network is cut between two stretches of training."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.program import named_tensors
from clusterprune.plan import Plan
from clusterprune.surgery.cutting import cutter

BUFFER = "momentum_buffer"  # its name in the state of torch.optim.SGD


def carry_momentum(tensors: Mapping[str, Tensor], graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Cut momentum buffers as a plan cuts the parameters they belong to.

    Each is a running sum of its parameter's gradients, element by element: producers keep the rows
    of the kept channels, consumers their columns. What a mixing adds to a kept column is not in its
    gradients of the past, so nothing is added to its momentum.

    Parameters
    ----------
    tensors
        Momentum by parameter name of the uncut model: :attr:`TrainResult.momentum`.
    graph
        The graph of the uncut model.
    plan
        The plan that was, or will be, applied to it.

    Returns
    -------
    dict
        Momentum by parameter name of the compact model, for :func:`clusterprune.train.fit`. A bias
        that the plan makes new has none.

    Raises
    ------
    ArgumentError
        A name or shape is not that of a parameter of the graph's model.
    PlanError
        The plan belongs to another model.
    """
    plan.check(graph)
    _check(tensors, named_tensors(graph), "graph")
    cut = cutter(graph, plan)
    return {name: cut(name, tensor) for name, tensor in tensors.items()}


def set_momentum(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Start the optimizer of `model` from these momentum buffers; parameters without one start from none.

    Raises
    ------
    ArgumentError
        A name or shape is not that of a trained parameter.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    _check(tensors, trained, "model")
    for name, tensor in tensors.items():
        # Of the parameter's own memory format, in which the optimizer's kernels are fastest.
        optimizer.state[trained[name]][BUFFER] = torch.empty_like(trained[name]).detach().copy_(tensor)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter that has no momentum buffer one of zeros, from which its first step is the same.

    PyTorch's fused optimizer takes buffers of all its parameters or of none.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter].setdefault(BUFFER, torch.zeros_like(parameter))


def momentum_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the momentum buffers on the CPU, by parameter name."""
    found = {name: optimizer.state.get(parameter, {}).get(BUFFER) for name, parameter in model.named_parameters()}
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in found.items() if t is not None}


def _check(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor], argument: str) -> None:
    for name, tensor in tensors.items():
        if name not in known:
            raise ArgumentError(
                f"momentum is given for {name!r}, which is no trained parameter of {argument}; after a cut, pass the "
                "momentum through carry_momentum first"
            )
        if tensor.shape != known[name].shape:
            raise ArgumentError(
                f"momentum of {name!r} has shape {tuple(tensor.shape)}, but its parameter in {argument} has "
                f"{tuple(known[name].shape)}; pass it through carry_momentum with the plan of the cut"
            )
