"""Wild layers: odd groups, transposed convolutions, computed weights, state that a forward leaves behind."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from wild_base import Side, Site, WildBlock, activate, fit, pooled, spatial, stretch, wild

WIDTHS = (6, 8, 5, 12, 9)
ANY = (1, 2, 3)


@wild(*ANY, out=WIDTHS, kernel=(3, 1), stride=(1, 2), norm=("batch", "none", "instance", "group"),
      act=("relu", "none", "silu", "gelu"), bias=(True, False))  # fmt: skip
class Layer(WildBlock):
    """Convolution, norm, activation in any number of dimensions."""

    def __init__(self, site: Site, out: int, kernel: int, stride: int, norm: str, act: str, bias: bool):
        stride = stride if site.size > 3 else 1
        super().__init__(site, out, (site.size - 1) // stride + 1)
        self.conv = site.conv(out, kernel, stride=stride, bias=bias)
        norm = "batch" if norm == "instance" and self.out.size < 2 else norm
        self.norm = {
            "batch": self.out.batch_norm,
            "instance": lambda: getattr(nn, f"InstanceNorm{site.dims}d")(out, affine=True, track_running_stats=True),
            "group": lambda: nn.GroupNorm(math.gcd(out, 3), out),
            "none": nn.Identity,
        }[norm]()
        self.act = act

    def forward(self, x: Tensor, side: Side) -> Tensor:
        return activate(self.act, self.norm(self.conv(x)))


@wild(*ANY, groups=(3, 5, 7), into=(2, 3, 1), out=(2, 1, 4), form=("plain", "shuffle", "twice", "cat", "norm"))
class OddGroups(WildBlock):
    """A grouped convolution with an odd number of groups, also shuffled, also twice in a row."""

    def __init__(self, site: Site, groups: int, into: int, out: int, form: str):
        super().__init__(site, groups * out + (groups * into if form == "cat" else 0))
        self.groups, self.form = groups, form
        self.first = site.conv(groups * into, 1)
        self.conv = site.conv(groups * out, channels=groups * into, groups=groups)
        self.again = site.conv(groups * out, channels=groups * out, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, groups * out)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        x = functional.relu(self.first(x))
        y = self.conv(x)
        if self.form in ("shuffle", "twice"):
            n, c, *rest = y.shape
            y = y.view(n, self.groups, c // self.groups, *rest).transpose(1, 2).reshape(n, c, *rest)
        if self.form == "twice":
            y = self.again(functional.relu(y))
        if self.form == "norm":
            y = self.norm(y)
        return torch.cat([x, y], 1) if self.form == "cat" else y


@wild(*ANY, multiplier=(1, 2, 3), form=("plain", "norm", "pointwise"), kernel=(3, 1))
class Depthwise(WildBlock):
    """Depthwise with a multiplier, as in a separable convolution."""

    def __init__(self, site: Site, multiplier: int, form: str, kernel: int):
        made = site.channels * multiplier
        super().__init__(site, 7 if form == "pointwise" else made)
        self.conv = site.conv(made, kernel, groups=site.channels, bias=form != "norm")
        self.norm = site.batch_norm(made) if form == "norm" else nn.Identity()
        self.point = site.conv(7, 1, channels=made) if form == "pointwise" else nn.Identity()

    def forward(self, x: Tensor, side: Side) -> Tensor:
        return self.point(functional.relu(self.norm(self.conv(x))))


@wild(*ANY, groups=(1, 2, 3, 0), per_group=(2, 3, 1), output_padding=(0, 1), norm=(True, False), bias=(True, False))
class Upward(WildBlock):
    """A transposed convolution, also grouped or depthwise (0), with output padding, behind a projection."""

    def __init__(self, site: Site, groups: int, per_group: int, output_padding: int, norm: bool, bias: bool):
        stride = 2 if site.size <= 8 else 1
        middle = 2 * groups if groups else 4
        out = groups * per_group if groups else middle * per_group
        padding = output_padding if stride > 1 else 0
        super().__init__(site, out, (site.size - 1) * stride + 1 + padding)
        self.first = site.conv(middle, 1)
        self.up = getattr(nn, f"ConvTranspose{site.dims}d")(
            middle, out, 3, stride, 1, padding, groups=groups or middle, bias=bias
        )
        self.norm = site.batch_norm(out) if norm else nn.Identity()

    def forward(self, x: Tensor, side: Side) -> Tensor:
        return functional.relu(self.norm(self.up(functional.relu(self.first(x)))))


@wild(*ANY, form=("max", "avg", "adaptive", "pyramid", "statistics", "max_min"))
class Pooling(WildBlock):
    """Pooling of every kind, also to a grid of pixels and back (PSPNet), also several kinds side by side."""

    def __init__(self, site: Site, form: str):
        if form in ("max", "avg") and site.size < 4:
            form = "adaptive"
        self_size = {"max": site.size // 2, "avg": site.size // 2, "adaptive": min(2, site.size)}
        widths = {"pyramid": site.channels * 2, "statistics": site.channels * 3, "max_min": site.channels * 2}
        super().__init__(site, widths.get(form), self_size.get(form))
        self.form = form
        self.pool = {
            "max": getattr(nn, f"MaxPool{site.dims}d")(2),
            "avg": getattr(nn, f"AvgPool{site.dims}d")(2),
        }.get(form, getattr(nn, f"AdaptiveAvgPool{site.dims}d")(min(2, site.size)))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        if self.form == "pyramid":
            return torch.cat([fit(self.pool(x), x), x], 1)
        if self.form == "statistics":
            dims = spatial(x)
            mean = x.mean(dims, keepdim=True).expand_as(x)
            return torch.cat([mean, x, x.var(dims, correction=0, keepdim=True).add(1).sqrt().expand_as(x)], 1)
        if self.form == "max_min":
            return torch.cat([torch.max(x, x.flip(-1)), torch.min(x, x.roll(1, -1))], 1)
        return self.pool(x)


class Standardized(nn.Module):
    """A convolution that makes its weight anew in every forward."""

    def __init__(self, site: Site, out: int, form: str, groups: int):
        super().__init__()
        kernel = (3,) * site.dims
        self.form, self.groups = form, groups
        self.weight = nn.Parameter(torch.empty(out, site.channels // groups, *kernel))
        self.bias = nn.Parameter(torch.empty(out))
        self.gain = nn.Parameter(torch.empty(out, *[1] * (site.dims + 1))) if form == "gain" else None
        self.other = nn.Parameter(torch.empty(out, site.channels // groups, *[1] * site.dims))
        mask = torch.ones(out, site.channels // groups, *kernel)
        mask[::2, :, 1:] = 0
        self.register_buffer("mask", mask.double())

    def made(self) -> Tensor:
        w = self.weight
        dims = tuple(range(1, w.ndim))
        if self.form in ("standardized", "gain"):
            w = (w - w.mean(dims, keepdim=True)) / (w.var(dims, keepdim=True) + 1e-5).sqrt()
            return w * self.gain if self.gain is not None else w
        forms = {
            "masked": lambda: w * self.mask,
            "unit": lambda: functional.normalize(w.flatten(1), dim=1).view_as(w),
            "tanh": lambda: torch.tanh(w) * 2,
            "softmax": lambda: w.flatten(2).softmax(-1).view_as(w),
            "sum": lambda: w + functional.pad(self.other, [1, 1] * (w.ndim - 2)),
            "centre": lambda: w - w.mean(0, keepdim=True),
            "scaled_all": lambda: w / w.abs().max(),
        }
        return forms[self.form]()

    def forward(self, x: Tensor) -> Tensor:
        conv = getattr(functional, f"conv{x.ndim - 2}d")
        return conv(x, self.made(), self.bias, padding=1, groups=self.groups)


@wild(*ANY, form=("standardized", "gain", "masked", "unit", "tanh", "softmax", "sum", "centre", "scaled_all",
                  "weight_norm", "spectral"), out=WIDTHS, groups=(1, 2), after=("norm", "none"))  # fmt: skip
class MadeWeight(WildBlock):
    """A convolution whose weight is computed: standardised, masked, normalised, the sum of two kernels."""

    def __init__(self, site: Site, form: str, out: int, groups: int, after: str):
        groups = groups if site.channels % groups == 0 and out % groups == 0 else 1
        super().__init__(site, out)
        if form == "weight_norm":
            self.conv = nn.utils.parametrizations.weight_norm(site.conv(out, groups=groups))
        elif form == "spectral":
            self.conv = nn.utils.parametrizations.spectral_norm(site.conv(out, groups=groups))
        else:
            self.conv = Standardized(site, out, form, groups)
        self.norm = self.out.batch_norm() if after == "norm" else nn.Identity()

    def forward(self, x: Tensor, side: Side) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))


@wild(*ANY, form=("layer", "group_one", "normalize", "rms", "by_hand", "softmax", "cumsum", "instance_by_hand"),
      first=(True, False))  # fmt: skip
class OverChannels(WildBlock):
    """Norms and sums over all channels, with their own statistics."""

    def __init__(self, site: Site, form: str, first: bool):
        super().__init__(site)
        c, self.form = site.channels, form
        self.conv = site.conv(c, 1) if first else nn.Identity()
        self.norm = {"layer": nn.LayerNorm(c), "rms": nn.RMSNorm(c), "group_one": nn.GroupNorm(1, c)}.get(form)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        x = self.conv(x)
        if self.form in ("layer", "rms"):
            return self.norm(x.movedim(1, -1)).movedim(-1, 1)
        forms = {
            "normalize": lambda: functional.normalize(x, dim=1),
            "softmax": lambda: x.softmax(1) * x.shape[1],
            "cumsum": lambda: x.cumsum(1),
            "by_hand": lambda: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 0.1).sqrt(),
            "instance_by_hand": lambda: x / (x.pow(2).mean(spatial(x), keepdim=True) + 0.1).sqrt(),
        }
        return forms[self.form]() if self.form in forms else self.norm(x)


@wild(*ANY, form=("blur", "scale", "constant", "position", "mask", "coordinates"), persistent=(False, True))
class Buffers(WildBlock):
    """Buffers with a dimension of channels, also such as are never saved (BlurPool), and plain constants."""

    def __init__(self, site: Site, form: str, persistent: bool):
        c, dims = site.channels, site.dims
        super().__init__(site, c + dims if form == "coordinates" else c)
        self.form, self.conv = form, site.conv(c, 1)
        shapes = {"blur": (c, 1, *[3] * dims), "scale": (1, c, *[1] * dims), "position": (1, c, *[site.size] * dims)}
        if form in shapes:
            self.register_buffer("known", torch.empty(shapes[form]), persistent=persistent)
        self.register_buffer("on", (torch.arange(c) % 3 > 0).view(c, *[1] * dims), persistent=persistent)
        self.constant = torch.linspace(0.5, 1.5, c, dtype=torch.float64).view(1, -1, *[1] * dims)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        x = functional.relu(self.conv(x))
        if self.form == "blur":
            conv = getattr(functional, f"conv{self.dims}d")
            return conv(functional.pad(x, [1, 1] * self.dims, mode="replicate"), self.known, groups=x.shape[1])
        if self.form == "position":
            return x + fit(self.known, x)
        if self.form == "coordinates":
            lines = [torch.linspace(-1, 1, s, dtype=x.dtype, device=x.device) for s in x.shape[2:]]
            grids = torch.meshgrid(*lines, indexing="ij")
            return torch.cat([x, *(grid.expand(x.shape[0], 1, *x.shape[2:]) for grid in grids)], 1)
        if self.form == "mask":
            return x.masked_fill(~self.on, 0.25)
        return x * (self.known if self.form == "scale" else self.constant.to(x.device))


@wild(*ANY, form=("last", "grid", "counter", "ema", "memory", "statistics", "shape"))
class Remember(WildBlock):
    """Attributes and buffers that a forward leaves behind, in both modes or in training alone."""

    def __init__(self, site: Site, form: str):
        super().__init__(site)
        self.form, self.conv = form, site.conv(site.channels)
        self.last: Any = None
        self.cached_shape: Any = None
        self.grid: Any = None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("memory", torch.zeros(site.channels, dtype=torch.float64))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        x = self.conv(x)
        if self.form == "last":
            self.last = x
        elif self.form == "shape":
            self.cached_shape = x.shape
        elif self.form == "grid":
            if self.cached_shape != x.shape[2:]:  # as detection heads keep their anchors
                self.cached_shape = x.shape[2:]
                self.grid = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
            x = x + self.grid
        elif self.form == "counter":
            self.steps += 1
        elif self.form == "ema" and self.training:
            with torch.no_grad():
                self.memory.mul_(0.9).add_(pooled(x).mean(0), alpha=0.1)
        elif self.form == "statistics" and self.training:
            self.memory.copy_(pooled(x).mean(0).detach())
            return x - stretch(pooled(x).mean(0), x)
        elif self.form == "memory":
            with torch.no_grad():
                self.memory.copy_(0.5 * self.memory + pooled(x).mean(0))
        uses = self.form in ("ema", "statistics")
        return functional.relu(x - stretch(self.memory.clone(), x) if uses else x)


@wild(*ANY, form=("autocast", "autocast_off", "no_grad", "enable_grad", "checkpoint", "detach"))
class Regions(WildBlock):
    """Convolutions inside regions that change how PyTorch works."""

    def __init__(self, site: Site, form: str):
        super().__init__(site)
        self.form, self.first, self.second = form, site.conv(8), site.conv(site.channels, channels=8)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        if self.form in ("autocast", "autocast_off"):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.form == "autocast"):
                y = functional.relu(self.first(x))
        elif self.form == "no_grad":
            with torch.no_grad():
                y = functional.relu(self.first(x))
        elif self.form == "enable_grad":
            with torch.enable_grad():
                y = functional.relu(self.first(x))
        elif self.form == "checkpoint":
            y = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
        else:
            y = functional.relu(self.first(x)).detach() + self.first(x)
        return x + self.second(y)


@wild(*ANY, form=("functional", "module", "channels", "depth", "noise", "alpha"))
class Chance(WildBlock):
    """What is random in training alone: dropout of every kind, stochastic depth, noise."""

    def __init__(self, site: Site, form: str):
        super().__init__(site)
        self.form, self.conv = form, site.conv(site.channels)
        self.module = nn.Dropout(0.3)
        self.channels = getattr(nn, f"Dropout{site.dims}d")(0.3)
        self.alpha = nn.AlphaDropout(0.2)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.conv(x))
        if self.form == "functional":
            return functional.dropout(y, 0.3, training=self.training)
        if self.form in ("module", "channels", "alpha"):
            return getattr(self, self.form)(y)
        if not self.training:
            return x + y
        draws = torch.rand([len(x)] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x + y * (draws.mul(2).floor() if self.form == "depth" else 1 + draws)
