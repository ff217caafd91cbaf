# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Weight-level pruning, the unstructured competitor of ACP's Fig. 9: weights near zero become zero, one by one.

zero all weights below a threshold, one for the whole network
train on, with those held at zero

**For comparisons alone.** The network is as large and as slow as before: no tensor is smaller, and no kernel of PyTorch
skips a zero. What it would cost where zeros are free, `if_zeros_were_free` of the outcome's record says; figures that
show it beside networks that are smaller say so.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from clusterprune import evaluate
from clusterprune.budget.allocation import check_fraction
from clusterprune.errors import ArgumentError
from clusterprune.methods._base import FINE_TUNING, Method
from clusterprune.methods._settings import BUDGET, option
from clusterprune.methods._work import Network, Outcome, Work, score, trained_record
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig


@dataclass(frozen=True)
class WLP(Method):
    """Zero the smallest weights one by one, train on with those at zero; for comparisons alone.

    Attributes
    ----------
    keep_macs
        Share of the multiply-adds to keep, where those by zeros are not counted.
    """

    name: ClassVar[str] = "wlp"
    training: ClassVar[TrainConfig | None] = FINE_TUNING
    approximates: ClassVar[bool] = False

    keep_macs: float | None = option(None, "SHARE", panel=BUDGET)

    def __post_init__(self) -> None:
        """Check the target."""
        if self.keep_macs is None:
            raise ArgumentError("keep_macs is missing; give the share of multiply-adds to keep, such as keep_macs=0.5")
        check_fraction("keep_macs", self.keep_macs)

    def compress(self, network: Network, task: Task, work: Work) -> Outcome:
        """Zero, train."""
        model = network.copy()
        layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        uses = places(model, layers, network.example)
        masks = large_weights({name: layer.weight for name, layer in layers.items()}, uses, self.keep_macs or 1.0)
        for name, layer in layers.items():
            prune.custom_from_mask(layer, "weight", masks[name])
        record = work.once("score.json", lambda: {"accuracy_cut": score(task, model.eval())})
        cut = whole(network, model)
        trained = work.fit(model, task, "train with weights at zero")
        zeros = sum(int((~mask).sum()) for mask in masks.values())
        skipped = sum(int((~mask).sum()) * uses[name] for name, mask in masks.items())
        free = {
            "macs": evaluate.macs(network.model, network.example) - skipped,
            "params": evaluate.params(network.model) - zeros,
        }
        return Outcome(
            whole(network, model), cut, None, {**record, "if_zeros_were_free": free, **trained_record(trained)}
        )


def places(model: nn.Module, layers: dict[str, Any], example: Tensor) -> dict[str, int]:
    """Return how often each weight of a layer is used for one image; a layer that does not run, not at all."""
    found = dict.fromkeys(layers, 0)

    def count(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            del inputs
            found[name] += output.numel() // module.weight.shape[0]

        return hook

    handles = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model.eval()(example)
    for handle in handles:
        handle.remove()
    return found


def large_weights(weights: dict[str, Tensor], uses: dict[str, int], keep: float) -> dict[str, Tensor]:
    """Return where weights are above the threshold, one for all, that leaves a share of the multiply-adds."""
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()]).double()
    costs = torch.cat([torch.full((weight.numel(),), float(uses[name])) for name, weight in weights.items()]).double()
    ascending = sizes.argsort(stable=True)
    left = costs.sum() - costs.to(sizes.device)[ascending].cumsum(0)
    gone = int((left < keep * costs.sum()).nonzero()[0]) if keep < 1 else 0
    threshold = float(sizes[ascending[gone]])
    return {name: weight.detach().abs() >= threshold for name, weight in weights.items()}


def whole(network: Network, pruned: nn.Module) -> nn.Module:
    """Return the network, in evaluation mode, with the weights of one whose weights are masked."""
    state = pruned.state_dict()
    for name in [name for name in state if name.endswith("_mask")]:
        path = name.removesuffix("_mask")
        state[path] = state.pop(f"{path}_orig") * state.pop(name)
    made = network.copy()
    made.load_state_dict(state)
    return made.eval()
