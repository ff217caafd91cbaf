# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a model must be like to be traced: refused by name and with the remedy otherwise."""

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from clusterprune.errors import ModelError

_HOOKS: dict[type, tuple[str, str]] = {
    WeightNorm: (
        "weight_norm",
        "call torch.nn.utils.remove_weight_norm on the layer, or use torch.nn.utils.parametrizations.weight_norm",
    ),
    SpectralNorm: (
        "spectral_norm",
        "call torch.nn.utils.remove_spectral_norm on the layer, or use torch.nn.utils.parametrizations.spectral_norm",
    ),
    BasePruningMethod: ("prune", "make the mask permanent with torch.nn.utils.prune.remove(layer, name)"),
}
"""Hooks that set a weight anew before every forward, where it cannot be cut: what they are called, and the remedy."""


def check_traceable(model: nn.Module) -> None:
    """Refuse modules that cannot be followed, by name and with the remedy."""
    for path, module in model.named_modules():
        name = f"the module {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{name} is a TorchScript module, which hides its layers; give the nn.Module it was made of"
            )
        for hook in vars(module)["_forward_pre_hooks"].values():
            for kind, (function, remedy) in _HOOKS.items():
                if isinstance(hook, kind):
                    raise ModelError(f"{name} sets its weight in a hook of torch.nn.utils.{function}; {remedy}")
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for tensor_name, tensor in own:
            if nn.parameter.is_lazy(tensor):
                raise ModelError(f"{name} is lazy and has no weights yet; run the model once on an example first")
            if tensor.is_meta:
                raise ModelError(
                    f"{name} holds no numbers: its {tensor_name} is on the meta device. Move the model with "
                    "to_empty(device='cpu'), and load its weights"
                )


def check_weights(model: nn.Module) -> None:
    """Refuse weights and statistics that are no numbers."""
    # What else a model keeps in buffers (a mask of -inf, bounds of a clamp that are not set) may be infinite.
    statistics = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")}
    for name, tensor in {**dict(model.named_parameters()), **statistics}.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"the weight {name!r} holds NaN or infinity; clustering it would spread them. Load sound weights."
            )
