"""Checks that an argument is a traced model, or a network and no traced one."""

from torch import nn

from clusterprune.arguments import type_name
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.graph.channels import ChannelGraph


def check_graph(graph: object) -> None:
    """Check that an argument is what :func:`clusterprune.trace` returns.

    Raises
    ------
    ArgumentError
        If it is anything else, such as the model itself.
    """
    if isinstance(graph, ChannelGraph):
        return
    remedy = "trace the model first: graph = clusterprune.trace(model, example)"
    if isinstance(graph, nn.Module):
        raise ArgumentError(f"graph must be a traced model, but got the model itself, a {type_name(graph)}; {remedy}")
    raise ArgumentError(f"graph must be a traced model, but got graph={type_name(graph)}; {remedy}")


def check_model(model: object) -> None:
    """Check that an argument is a network.

    Raises
    ------
    ModelError
        If it is not.
    """
    name = type_name(model)
    if isinstance(model, nn.Module):
        return
    if isinstance(model, ChannelGraph):
        raise ModelError("model must be a torch.nn.Module, but got a traced one; the network is graph.model")
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, but got the class {model.__name__}; build it first")
    raise ModelError(f"model must be a torch.nn.Module, but got model={name}; build it first")
