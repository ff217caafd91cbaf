"""Copies of a user's model that share nothing with it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusterprune.errors import ModelError


class _DetachComputed(TorchFunctionMode):
    """Copies tensors that carry a history of gradients, which PyTorch's own `deepcopy` refuses.

    A module that keeps an activation as an attribute (a cached feature map, the weight that an old reparametrization
    hook computed) holds such tensors after any forward with gradients. The copy holds their values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            memo: dict[int, Any] = args[1]
            if id(args[0]) not in memo:
                memo[id(args[0])] = args[0].detach().clone()
            return memo[id(args[0])]
        return func(*args, **(kwargs or {}))


def copy_model(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a deep copy of a model, also of one whose attributes hold activations with gradients.

    Parameters
    ----------
    tensors
        What the copy's parameters and buffers hold, by path, where it is not a copy of the model's own: the given
        tensors themselves, not copied. Shared tensors stay shared.

    Raises
    ------
    ModelError
        If an attribute of the model cannot be copied (an open file, a lock, a generator).
    """
    memo: dict[int, Any] = {}
    for path, parameter in model.named_parameters():
        if tensors is not None and path in tensors:
            memo[id(parameter)] = nn.Parameter(tensors[path].detach(), requires_grad=parameter.requires_grad)
    for path, buffer in model.named_buffers():
        if tensors is not None and path in tensors:
            memo[id(buffer)] = tensors[path].detach()
    with _DetachComputed(), torch.no_grad():
        try:
            return copy.deepcopy(model, memo)
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"{type(model).__name__} cannot be copied ({error}), and a copy is what gets cut; give the model "
                "without the attribute that stands in the way"
            ) from error
