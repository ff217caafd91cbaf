"""What a layer reads: its input as rows of numbers, one row per output position."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.graph import ChannelGraph, LayerCall
from clusterprune.graph.ops import named_arguments

_WORTH_IT = 48
"""Output positions from which on :meth:`PatchExtractor.kernel_gradients` is cheaper than to run a layer a few times."""


@dataclass(frozen=True)
class PatchExtractor:
    """How one layer call reads its input.

    `taps` is the number of kernel positions; a row of patches has (channels · taps) entries, channel by
    channel, so that it multiplies the weight flattened to (outputs, channels · taps).
    """

    call: LayerCall
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    behind: tuple[int, ...]
    """Padding at the far end beyond `padding` ("same" with an even kernel pads one more there)."""

    @classmethod
    def of(cls, graph: ChannelGraph, call: LayerCall) -> "PatchExtractor":
        """Read a layer call's geometry off the graph."""
        node = graph.nodes[call.node]
        a = named_arguments(node)
        shape: tuple[int, ...] = tuple(node.args[1].meta["val"].shape)  # type: ignore[union-attr]
        dims = 0 if call.by_row else len(shape) - 2
        kernel = tuple(int(k) for k in shape[2:])
        dilation = _per_dim(a.get("dilation", 1), dims)
        stride = _per_dim(a.get("stride", 1), dims)
        padding = a.get("padding", 0)
        behind = (0,) * dims
        if isinstance(padding, str):
            whole = [(k - 1) * d if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
            padding, behind = [p // 2 for p in whole], tuple(p % 2 for p in whole)
        return cls(call, kernel, stride, _per_dim(padding, dims), dilation, behind)

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.kernel)

    @property
    def refittable(self) -> bool:
        """Tell whether the whole kernel can be solved for (dense layers in up to two spatial dimensions)."""
        return self.call.by_row or (self.call.slides and len(self.kernel) in (1, 2) and not self.call.depthwise)

    def positions(self, output: Tensor, limit: int, generator: torch.Generator) -> Tensor | None:
        """Choose up to `limit` output positions at random (None: all of them, or there are none)."""
        length = self.call.places(output.shape)
        return None if length <= limit else torch.randperm(length, generator=generator)[:limit].sort().values

    def inputs(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Return patches of the input, shape (images · positions, channels · taps)."""
        if self.call.by_row:
            rows = x if positions is None else x.flatten(1, -2)[:, positions]
            return rows.reshape(-1, x.shape[-1])
        if len(self.kernel) == 1:
            k, s, p, d, b = self.kernel, self.stride, self.padding, self.dilation, self.behind
            one = PatchExtractor(self.call, (1, *k), (1, *s), (0, *p), (1, *d), (0, *b))
            return one.inputs(x.unsqueeze(2), positions)
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
        bh, bw = self.behind
        x = functional.pad(x, (pw, pw + bw, ph, ph + bh)) if ph or pw or bh or bw else x
        height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
        width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
        where = torch.arange(height * width) if positions is None else positions
        corner = (where // width) * sh * x.shape[3] + (where % width) * sw
        tap = (torch.arange(kh)[:, None] * dh * x.shape[3] + torch.arange(kw)[None] * dw).reshape(-1)
        index = (corner[:, None] + tap[None]).to(x.device)
        # Pixels as rows: no copy where the memory is channels-last already.
        patches = x.movedim(1, -1).flatten(1, 2)[:, index]
        return patches.transpose(2, 3).reshape(-1, x.shape[1] * self.taps)

    def kernel_gradients(self, x: Tensor, gradient: Tensor) -> Tensor | None:
        """Return the gradient of a kernel for each image by itself, shape (images, outputs, channels · taps).

        One product of matrices per tap: dearer than running the layer once, cheaper than running it for many
        kernels. None where the layer is of another kind, or its maps are so small that it does not pay.
        """
        dense = self.call.slides and len(self.kernel) == 2 and self.call.groups == 1
        height, width = gradient.shape[2:] if dense else (0, 0)
        if height * width < _WORTH_IT:
            return None
        (sh, sw), (ph, pw), (dh, dw), (bh, bw) = self.stride, self.padding, self.dilation, self.behind
        x = functional.pad(x.movedim(1, -1), (0, 0, pw, pw + bw, ph, ph + bh))
        rows = gradient.flatten(2)
        taps: list[Tensor] = []
        for top, left in itertools.product(range(0, self.kernel[0] * dh, dh), range(0, self.kernel[1] * dw, dw)):
            seen = x[:, top : top + sh * (height - 1) + 1 : sh, left : left + sw * (width - 1) + 1 : sw]
            taps.append(torch.bmm(rows, seen.reshape(len(x), height * width, -1)))
        return torch.stack(taps, -1).flatten(2)

    def centres(self, x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
        """Return the input itself at up to `limit` random positions, shape (images · positions, channels)."""
        if self.call.by_row:
            rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
        else:
            rows = x.flatten(2).transpose(1, 2)
        if rows.shape[1] > limit:
            rows = rows[:, torch.randperm(rows.shape[1], generator=generator)[:limit].sort().values]
        return rows.reshape(-1, rows.shape[-1])

    def outputs(self, y: Tensor, positions: Tensor | None) -> Tensor:
        """Return outputs at the same positions, shape (images · positions, outputs)."""
        if self.call.by_row:
            rows = y if positions is None else y.flatten(1, -2)[:, positions]
            return rows.reshape(-1, y.shape[-1])
        rows = y.movedim(1, -1).flatten(1, -2)
        rows = rows if positions is None else rows[:, positions]
        return rows.reshape(-1, y.shape[1])


def _per_dim(value: int | list[int] | tuple[int, ...], dims: int) -> tuple[int, ...]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return tuple(values * dims if len(values) == 1 else values)
