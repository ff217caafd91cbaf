# pyright: reportUnknownMemberType=false
r"""Images for a network whose own are not to be had: what its batch norms remember of them.

A trained network keeps the mean and variance of every batch norm's input over its training images. Noise is changed
by gradient descent until a batch of it has these statistics in every layer at once:

.. math:: \sum_k \Bigl\langle\frac{(\mu_k - m_k)^2}{v_k}\Bigr\rangle
          + \Bigl\langle\bigl(\tfrac{\sigma_k}{\sqrt{v_k}} - 1\bigr)^2\Bigr\rangle

where k runs over the batch norms, m and v are stored, μ and σ are the batch's, and the brackets average over channels
(DeepInversion, Yin et al. 2020, takes norms in place of relative differences). Where the output is a row of logits,
every image also has a class to look like, in turn; neighbouring pixels are drawn together a little, and the images
move by a few pixels from step to step, so that nothing depends on the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.arguments import check_progress, check_seed
from clusterprune.budget.allocation import CostModel, example_batch
from clusterprune.errors import ModelError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.arguments import check_graph
from clusterprune.graph.ops.norm import BatchNorm
from clusterprune.graph.program import Program, named_tensors
from clusterprune.merge.data_free import noise_images
from clusterprune.merge.divergence import is_logits


@dataclass(frozen=True)
class FromNorms:
    """How images are made.

    Attributes
    ----------
    images
        How many; in batches of at most `batch`, whose statistics are compared.
    batch
        The more images a batch has, the less its statistics depend on chance.
    steps
        Of gradient descent, at most; and at least a quarter of that where `macs_to_spend` allows no more.
    rate
        Of the first step (Adam); it falls to a fiftieth.
    smoothness
        How much neighbouring pixels are drawn together.
    labels
        How much every image is drawn to a class, where the output is a row of logits.
    reach
        Images stay within plus and minus this: in units of the normalised inputs.
    macs_to_spend
        Multiply-adds; a step takes about three times a forward pass.
    """

    images: int = 256
    batch: int = 128
    steps: int = 200
    rate: float = 0.1
    smoothness: float = 1e-4
    labels: float = 1.0
    reach: float = 3.0
    macs_to_spend: float = 2e12


def norms_of(graph: ChannelGraph) -> list[BatchNorm]:
    """Return the batch norms that remember statistics of four-dimensional maps, in order of execution."""
    return [norm for norm in graph.batch_norms if norm.mean and norm.variance and norm.input.meta["val"].ndim == 4]


def can_make_images(graph: ChannelGraph) -> bool:
    """Tell whether a network remembers enough: batch norms behind one input of maps, in any batch size."""
    values = graph.example_tensors
    maps = len(values) == 1 and values[0].ndim == 4 and values[0].is_floating_point()
    return maps and graph.batch_size.fixed is None and bool(norms_of(graph))


def images_from_norms(
    graph: ChannelGraph,
    *,
    seed: int = 0,
    config: FromNorms | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Return images whose statistics in every layer are those that the network remembers.

    They are what :func:`clusterprune.oneshot` learns from when it is given none.

    Parameters
    ----------
    graph
        A traced network for which :func:`can_make_images` holds; its model is not changed.
    seed
        Of the noise to begin with, and of the shifts.
    progress
        Called with (phase, done, total).

    Returns
    -------
    Tensor
        Normalised inputs, (images, channels, height, width), on the device of the traced example.

    Raises
    ------
    ModelError
        If the network has no batch norms over maps that remember statistics, or other inputs than one of maps.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
    >>> cp.images_from_norms(graph, config=cp.FromNorms(images=16, steps=4)).shape
    torch.Size([16, 3, 8, 8])
    """
    check_graph(graph)
    check_seed(seed)
    check_progress(progress)
    if not can_make_images(graph):
        raise ModelError(
            f"{type(graph.model).__name__} has no batch norms over maps that remember statistics, or other inputs than "
            "one of maps, so no images can be made from them; give some"
        )
    options = config or FromNorms()
    generator = torch.Generator().manual_seed(seed)
    each = CostModel(graph).total("macs") / example_batch(graph)
    allowed = options.macs_to_spend / max(1.0, 3 * each * options.images)
    steps = int(min(options.steps, max(options.steps / 4, allowed)))
    size = min(options.batch, options.images, _fits(graph))
    made: list[Tensor] = []
    while len(made) * size < options.images:
        start = noise_images(graph, min(size, options.images - len(made) * size), generator)[0]
        first = sum(map(len, made))

        def tell(step: int, first: int = first) -> None:
            if progress is not None:
                progress("images from batch norms", first * steps + step * size, options.images * steps)

        made.append(_descend(graph, start, first, steps, options, generator, tell))
    return torch.cat(made)


def _fits(graph: ChannelGraph) -> int:
    """Return how many images' activations, all of which the gradient needs, stay under two gigabytes."""
    each = sum(
        4 * value.numel() / max(1, value.shape[0])
        for node in graph.fx.nodes
        if node.op == "call_function" and isinstance(value := node.meta.get("val"), Tensor) and value.ndim > 1
    )
    return max(16, int(_BYTES / max(1.0, each)))


_BYTES = 2e9


def _descend(
    graph: ChannelGraph,
    images: Tensor,
    first: int,
    steps: int,
    options: FromNorms,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> Tensor:
    """Change a batch of images until its statistics fit; `first` is the number of its first image."""
    program, norms = Program(graph), norms_of(graph)
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    weights = program.weights(state)
    wanted = {norm.input.name: norm for norm in norms}
    read = [name for name in wanted if name in program.index]  # not a norm of the images themselves
    images = images.requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=options.rate, betas=(0.5, 0.9))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = options.rate * max(0.02, 1 - step / steps)
        shift = [int(s) for s in torch.randint(-2, 3, (2,), generator=generator)]
        shifted = torch.roll(images, shift, (2, 3))
        with torch.enable_grad():
            values = {**program.bind((shifted,)), **weights}
            loss = images.new_zeros(())
            for name, value in program.visit(values, read):
                mean, variance = (state[str(path)] for path in (wanted[name].mean, wanted[name].variance))
                loss = loss + _mismatch(value, mean, variance)
            outputs = [values[name] for name in program.differentiable]
            if len(outputs) == 1 and is_logits(outputs[0]):
                classes = ((torch.arange(len(images)) + first) % outputs[0].shape[1]).to(images.device)
                loss = loss + options.labels * functional.cross_entropy(outputs[0].float(), classes)
            rough = (images[..., 1:] - images[..., :-1]).square().mean()
            rough = rough + (images[..., 1:, :] - images[..., :-1, :]).square().mean()
            loss = loss + options.smoothness * images[0, 0].numel() * rough
            (images.grad,) = torch.autograd.grad(loss, [images])
        optimizer.step()
        with torch.no_grad():
            images.clamp_(-options.reach, options.reach)
        tell(step + 1)
    return images.detach()


def _mismatch(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return how far the statistics of a batch of maps are from the stored ones."""
    x = x.float()
    variance = variance.float().clamp_min(1e-8)
    own_mean, own = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False).clamp_min(1e-8)
    of_mean = ((own_mean - mean.float()).square() / variance).mean()
    return of_mean + ((own / variance).sqrt() - 1).square().mean()
