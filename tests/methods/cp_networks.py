"""Networks as CP leaves them, and what its tests ask of them."""

import copy

import torch
from small_networks import Plain
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.methods.cp import CP
from clusterprune.methods.cp_clusters import ClusterPruning
from clusterprune.methods.cp_layers import without_batch_norm

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms and biases values of every kind."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
            nn.init.normal_(module.running_mean, 0.0, 0.3, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
    return model.eval()


def plain(width: int = 12) -> nn.Module:
    torch.manual_seed(1)
    return lively(Plain(width))


def points(filters: Tensor) -> nn.Module:
    """A network whose first convolution has these filters (n, d)."""
    torch.manual_seed(0)
    first = nn.Conv2d(filters.shape[1], len(filters), 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(filters[:, :, None, None])
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(len(filters), 2, 1))


def pruned(model: nn.Module, config: CP, example: Tensor = X[:1]) -> tuple[nn.Module, cp.ChannelGraph]:
    """Return a copy of a model as the hook leaves it after the last epoch, and its graph."""
    model = copy.deepcopy(model)
    graph = cp.trace(model, example)
    if config.batch_norm == "removed":
        model = without_batch_norm(model, graph, config.layers)
        graph = cp.trace(model, example)
    ClusterPruning(graph, config).after_epoch(model, 1, 1)
    return model, graph


def relative_error(small: nn.Module, model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        expected = model(images)
        return float((small(images) - expected).norm() / expected.norm())


def distinct(conv: nn.Module) -> int:
    return len(torch.unique(conv.weight.detach().flatten(1), dim=0))
