"""The constructs that random test networks are made of: one small module for every idiom found in real code.

Every block takes the channels and the (square) size of its input, and says what it makes in `out_channels` and
`out_size`. The options it is registered with are what the generator may choose from, simplest first.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (4, 6, 8, 12, 5, 16)
NORMS = ("none", "batch", "group", "layer", "instance", "batch_bare", "group_all", "rms")
ACTIVATIONS = ("none", "relu", "relu_", "silu", "prelu", "prelu_one", "hardswish_", "gelu")
CHAIN = "chain"
"""Option value that stands for a chain of blocks, drawn in its place."""

BLOCKS: dict[str, tuple[type["Block"], dict[str, Any]]] = {}


def block(**choices: Any) -> Any:
    """Register a block with the values that each of its options may take."""

    def enter(cls: type["Block"]) -> type["Block"]:
        BLOCKS[cls.__name__] = (cls, choices)
        return cls

    return enter


class Block(nn.Module):
    """Base of all constructs: by default a block keeps channels and size."""

    def __init__(self, channels: int, size: int, out_channels: int | None = None, out_size: int | None = None):
        super().__init__()
        self.out_channels = channels if out_channels is None else out_channels
        self.out_size = size if out_size is None else out_size


class ChannelsLastNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelsLastRMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm_of(kind: str, channels: int, size: int) -> nn.Module:
    if kind == "instance" and size == 1:  # undefined on a single pixel
        kind = "batch"
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "batch_bare":
        return nn.BatchNorm2d(channels, affine=False)
    if kind == "group":
        return nn.GroupNorm(math.gcd(channels, 4), channels)
    if kind == "group_all":
        return nn.GroupNorm(1, channels)
    if kind == "layer":
        return ChannelsLastNorm(channels)
    if kind == "rms":
        return ChannelsLastRMSNorm(channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


def activation_of(kind: str, channels: int) -> nn.Module:
    kinds = {
        "relu": nn.ReLU,
        "relu_": lambda: nn.ReLU(inplace=True),
        "silu": nn.SiLU,
        "prelu": lambda: nn.PReLU(channels),
        "prelu_one": nn.PReLU,
        "hardswish_": lambda: nn.Hardswish(inplace=True),
        "gelu": nn.GELU,
    }
    return kinds.get(kind, nn.Identity)()


def fit(x: Tensor, size: int) -> Tensor:
    """Bring a map to a size, if it has another."""
    return x if x.shape[-1] == size else functional.interpolate(x, size=(size, size), mode="nearest")


def build_chain(recipe: tuple[tuple[str, dict[str, Any]], ...], channels: int, size: int) -> Block:
    """Build blocks one after the other."""
    chain = Chain(channels, size)
    for name, options in recipe:
        built = BLOCKS[name][0](chain.out_channels, chain.out_size, **options)
        chain.blocks.append(built)
        chain.out_channels, chain.out_size = built.out_channels, built.out_size
    return chain


class Chain(Block):
    def __init__(self, channels: int, size: int):
        super().__init__(channels, size)
        self.blocks = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks:
            x = part(x)
        return x


@block(
    out=WIDTHS, kernel=(3, 1), stride=(1, 2), dilation=(1, 2), bias=(True, False), norm=NORMS, act=ACTIVATIONS,
    padding_mode=("zeros", "zeros", "zeros", "reflect", "replicate"),
)  # fmt: skip
class Conv(Block):
    """Convolution, norm, activation."""

    def __init__(self, channels, size, out, kernel=3, stride=1, dilation=1, bias=True, norm="none", act="none",
                 padding_mode="zeros"):  # fmt: skip
        padding = dilation * (kernel // 2)
        if padding_mode == "reflect" and padding >= size:
            padding_mode = "zeros"
        super().__init__(channels, size, out, (size - 1) // stride + 1)
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=bias, padding_mode=padding_mode)
        self.norm = norm_of(norm, out, self.out_size)
        self.act = activation_of(act, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


@block(order=("norm_act_conv", "act_norm_conv"), out=WIDTHS, norm=("batch", "group", "layer"), act=ACTIVATIONS)
class PreActivation(Block):
    """The norm stands before the convolution, on channels that others read too."""

    def __init__(self, channels, size, out, order="norm_act_conv", norm="batch", act="relu"):
        super().__init__(channels, size, out)
        parts = {
            "norm": norm_of(norm, channels, size),
            "act": activation_of(act.removesuffix("_"), channels),
            "conv": nn.Conv2d(channels, out, 3, padding=1, bias=False),
        }
        self.parts = nn.Sequential(*(parts[name] for name in order.split("_")))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


class PaddedShortcut(nn.Module):
    """Option A with its two amounts as attributes, which surgery may change."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


@block(
    inner=CHAIN, shortcut=("identity", "conv", "pad", "padded_module", "cat_zeros"), extra=(4, 2, 8),
    combine=("add", "iadd", "mul", "maximum", "sub"), act=("none", "relu_"),
)  # fmt: skip
class Residual(Block):
    """A chain beside a shortcut: identity, projection, or option A with zero channels."""

    def __init__(self, channels, size, inner, shortcut="identity", extra=4, combine="add", act="none"):
        out = channels if shortcut == "identity" else channels + extra
        super().__init__(channels, size, out)
        self.shortcut, self.combine, self.extra = shortcut, combine, extra
        self.inner = build_chain(inner, channels, size)
        self.last = nn.Conv2d(self.inner.out_channels, out, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.project = nn.Conv2d(channels, out, 1) if shortcut == "conv" else None
        self.padded = PaddedShortcut(extra // 2, extra - extra // 2) if shortcut == "padded_module" else None
        self.act = activation_of(act, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.last(fit(self.inner(x), self.out_size)))
        if self.project is not None:
            x = self.project(x)
        elif self.padded is not None:
            x = self.padded(x)
        elif self.shortcut == "pad":
            x = functional.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        elif self.shortcut == "cat_zeros":
            x = torch.cat([x, x.new_zeros(x.shape[0], self.extra, *x.shape[2:])], 1)
        if self.combine == "add":
            y = x + y
        elif self.combine == "iadd":
            y += x
        elif self.combine == "mul":
            y = x * torch.sigmoid(y)
        elif self.combine == "maximum":
            y = torch.maximum(x, y)
        else:
            y = y - x
        return self.act(y)


@block(first=CHAIN, second=CHAIN, identity=(False, True))
class Concat(Block):
    """Branches side by side, as in Inception, or with the input itself, as in U-Net."""

    def __init__(self, channels, size, first, second, identity=False):
        super().__init__(channels, size)
        self.identity = identity
        self.first = build_chain(first, channels, size)
        self.second = build_chain(second, channels, size)
        self.out_channels = self.first.out_channels + self.second.out_channels + identity * channels

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x), self.second(x)] + [x] * self.identity
        return torch.cat([fit(part, self.out_size) for part in parts], 1)


@block(first=CHAIN, second=CHAIN)
class Sum(Block):
    """Two branches, each projected to the same width, added; nothing else joins them."""

    def __init__(self, channels, size, first, second):
        super().__init__(channels, size, 6)
        self.first = build_chain(first, channels, size)
        self.second = build_chain(second, channels, size)
        self.to_first = nn.Conv2d(self.first.out_channels, 6, 1)
        self.to_second = nn.Conv2d(self.second.out_channels, 6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.to_first(fit(self.first(x), self.out_size))
        return first + self.to_second(fit(self.second(x), self.out_size))


@block(growth=(4, 3), layers=(2, 3))
class Dense(Block):
    """DenseNet: every layer normalises and reads all maps before it."""

    def __init__(self, channels, size, growth=4, layers=2):
        super().__init__(channels, size, channels + growth * layers)
        widths = [channels + growth * i for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            maps.append(conv(functional.relu(norm(torch.cat(maps, 1)))))
        return torch.cat(maps, 1)


@block(kernel=(3, 1), multiplier=(1, 2), stride=(1, 2), bias=(True, False), norm=NORMS, act=ACTIVATIONS)
class Depthwise(Block):
    def __init__(self, channels, size, kernel=3, multiplier=1, stride=1, bias=True, norm="none", act="none"):
        out = channels * multiplier
        super().__init__(channels, size, out, (size - 1) // stride + 1)
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=channels, bias=bias)
        self.norm = norm_of(norm, out, self.out_size)
        self.act = activation_of(act, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


@block(groups=(2, 3, 4), per_group=(2, 4, 1), bias=(True, False), norm=NORMS, act=ACTIVATIONS)
class Grouped(Block):
    def __init__(self, channels, size, groups=2, per_group=2, bias=True, norm="none", act="none"):
        groups = math.gcd(groups, channels)
        super().__init__(channels, size, groups * per_group)
        self.conv = nn.Conv2d(channels, groups * per_group, 3, padding=1, groups=groups, bias=bias)
        self.norm = norm_of(norm, self.out_channels, size)
        self.act = activation_of(act, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


@block(out=WIDTHS, groups=(1, 2, 4, "depthwise"), kernel=(2, 3), bias=(True, False), norm=("none", "batch", "group"))
class Transposed(Block):
    def __init__(self, channels, size, out, groups=1, kernel=2, bias=True, norm="none"):
        stride = 2 if size <= 8 else 1
        if groups == "depthwise":
            groups, out = channels, channels * (1 + out % 2)
        else:
            groups = math.gcd(channels, groups)
            out = max(1, out // groups) * groups
        super().__init__(channels, size, out, (size - 1) * stride + kernel - 2 * (kernel // 3))
        self.conv = nn.ConvTranspose2d(channels, out, kernel, stride, kernel // 3, groups=groups, bias=bias)
        self.norm = norm_of(norm, out, self.out_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@block(
    form=("conv_twice", "block_twice", "tied_weight", "tied_all", "two_branches", "shared_norm", "shared_bias",
          "tied_dilated", "borrowed_weight"), bias=(True, False),
)  # fmt: skip
class Shared(Block):
    """The same weights at two places."""

    def __init__(self, channels, size, form="conv_twice", bias=True):
        super().__init__(channels, size)
        self.form = form
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(channels)
        if form == "tied_dilated":
            self.second = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=bias)
        if form in ("tied_weight", "tied_all", "tied_dilated"):
            self.second.weight = self.first.weight
        if form in ("tied_all", "tied_dilated", "shared_bias"):
            self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "conv_twice":
            return self.norm(self.first(functional.relu(self.first(x))))
        if self.form == "block_twice":
            return functional.relu(self.norm(self.first(functional.relu(self.norm(self.first(x))))))
        if self.form == "two_branches":
            return self.first(x) + self.second(self.first(functional.relu(x)))
        if self.form == "shared_norm":
            return self.norm(self.first(x)) - self.norm(self.second(x))
        if self.form == "borrowed_weight":
            return functional.conv2d(functional.relu(self.first(x)), self.first.weight, stride=1, padding=1)
        return self.norm(self.second(functional.relu(self.first(x))))


@block(
    form=("conv", "gamma", "matmul", "bias_view", "linear", "scalar", "buffer", "constant", "computed", "position",
          "gamma_flat", "addcmul", "functional_norm", "einsum", "weight_norm"), out=WIDTHS,
)  # fmt: skip
class Functional(Block):
    """Parameters and buffers that no layer owns."""

    def __init__(self, channels, size, form="conv", out=4):
        makes = form in ("conv", "matmul", "linear", "computed", "einsum", "weight_norm")
        super().__init__(channels, size, out if makes else channels)
        self.form = form
        shapes = {
            "conv": (out, channels, 3, 3), "computed": (out, channels, 3, 3), "matmul": (channels, out),
            "linear": (out, channels), "gamma": (channels, 1, 1), "bias_view": (channels,), "scalar": (1,),
            "position": (1, channels, size, size), "gamma_flat": (channels,), "addcmul": (1, channels, 1, 1),
            "functional_norm": (channels,), "einsum": (channels, out),
        }  # fmt: skip
        if form in shapes:
            self.w = nn.Parameter(torch.empty(shapes[form]))
        if form == "conv":
            self.b = nn.Parameter(torch.empty(out))
        if form == "weight_norm":
            self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, out, 3, padding=1))
        self.register_buffer("scale", torch.empty(channels, 1, 1) if form == "buffer" else None)
        if form == "functional_norm":
            self.register_buffer("running_mean", torch.empty(channels))
            self.register_buffer("running_var", torch.empty(channels))
        self.constant = torch.linspace(0.5, 1.5, channels).view(1, -1, 1, 1).double() if form == "constant" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "conv":
            return functional.conv2d(x, self.w, self.b, padding=1)
        if self.form == "computed":
            return functional.conv2d(x, self.w * 2, padding=1)
        if self.form == "matmul":
            return (x.permute(0, 2, 3, 1) @ self.w).permute(0, 3, 1, 2)
        if self.form == "linear":
            return functional.linear(x.movedim(1, -1), self.w).movedim(-1, 1)
        if self.form == "einsum":
            return torch.einsum("nchw,co->nohw", x, self.w)
        if self.form == "weight_norm":
            return self.normed(x)
        if self.form == "bias_view":
            return x + self.w.view(1, -1, 1, 1)
        if self.form == "gamma_flat":
            return (x.permute(0, 2, 3, 1) * self.w).permute(0, 3, 1, 2)
        if self.form == "addcmul":
            return torch.addcmul(x, x.sigmoid(), self.w)
        if self.form == "functional_norm":
            return functional.batch_norm(x, self.running_mean, self.running_var, self.w)
        if self.form == "buffer":
            return x * self.scale
        if self.form == "constant":
            return x * self.constant
        return x + self.w if self.form == "position" else x * self.w
