"""The second half of the constructs: whatever moves, resizes, splits or compares channels."""

import math

import torch
from network_blocks import Block, block, norm_of
from torch import Tensor, nn
from torch.nn import functional


@block(groups=(2, 3, 4), form=("view", "module", "hard", "reshape"))
class Shuffle(Block):
    """Channel shuffle, also with its sizes written into the code."""

    def __init__(self, channels, size, groups=2, form="view"):
        super().__init__(channels, size)
        self.groups, self.form, self.channels = math.gcd(groups, channels), form, channels
        self.module = nn.ChannelShuffle(self.groups)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        g = self.groups
        if self.form == "module":
            return self.module(x)
        if self.form == "hard":
            c = self.channels
        if self.form == "reshape":
            return x.reshape(n, g, -1, h, w).permute(0, 2, 1, 3, 4).reshape(n, -1, h, w)
        return x.view(n, g, c // g, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


@block(
    form=(
        "half",
        "glu",
        "split",
        "slices",
        "swap",
        "hierarchy",
        "tensor_split",
        "narrow",
        "in_place",
        "assign",
        "functional_glu",
        "thirds",
    ),
    norm=("none", "batch"),
)
class Split(Block):
    """Take the channels apart and treat the parts differently."""

    EVEN = ("half", "glu", "swap", "hierarchy", "tensor_split", "functional_glu")

    def __init__(self, channels, size, form="half", norm="none"):
        a = channels // 2 if form in self.EVEN and channels % 2 == 0 else max(1, channels // 3)
        b = channels - a
        if a != b and form in self.EVEN:
            form = "split"
        if channels < 3:
            form = "skip"
        super().__init__(channels, size, a if form in ("glu", "functional_glu") else channels)
        self.form, self.a, self.b = form, a, b
        self.conv = nn.Conv2d(a, a, 3, padding=1, bias=False)
        self.norm = norm_of(norm, a, size)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "skip":
            return x
        if self.form == "functional_glu":
            return functional.glu(x, dim=1)
        if self.form in ("in_place", "assign"):
            y, x = self.conv(x[:, self.b :]), x.clone()
            if self.form == "assign":
                x[:, : self.a] = y
            else:
                x[:, : self.a].mul_(0.5).add_(y)
            return self.norm(x) if self.a == x.shape[1] else x
        if self.form == "thirds":
            parts = x.chunk(3, 1)
            return torch.cat([torch.sigmoid(parts[-1]), *parts[:-1]], 1)
        if self.form == "split":
            p, q = torch.split(x, [self.a, self.b], 1)
        elif self.form == "slices":
            p, q = x[:, : self.a], x[:, self.a :]
        elif self.form == "narrow":
            p, q = x.narrow(1, 0, self.a), x.narrow(1, self.a, self.b)
        elif self.form == "tensor_split":
            p, q = torch.tensor_split(x, 2, 1)
        else:
            p, q = x.chunk(2, 1)
        if self.form == "glu":
            return self.norm(self.conv(p)) * torch.sigmoid(q)
        y = self.norm(self.conv(p))
        if self.form == "hierarchy":
            q = q + y
        return torch.cat([q, y], 1) if self.form == "swap" else torch.cat([y, q], 1)


@block(form=("conv", "linear_view", "linear_none", "expand_as", "mul_"), hidden=(4, 3))
class SqueezeExcite(Block):
    def __init__(self, channels, size, form="conv", hidden=4):
        super().__init__(channels, size)
        self.form, self.channels = form, channels
        make = (lambda a, b: nn.Conv2d(a, b, 1)) if form in ("conv", "mul_") else nn.Linear
        self.down, self.up = make(channels, hidden), make(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        s = functional.adaptive_avg_pool2d(x, 1) if self.form in ("conv", "mul_") else x.mean((2, 3))
        s = torch.sigmoid(self.up(functional.relu(self.down(s))))
        if self.form == "linear_view":
            s = s.view(s.shape[0], self.channels, 1, 1)
        elif self.form == "linear_none":
            s = s[:, :, None, None]
        elif self.form == "expand_as":
            s = s.unsqueeze(-1).unsqueeze(-1).expand_as(x)
        return x.clone().mul_(s) if self.form == "mul_" else x * s


@block(form=("dropout", "dropout2d", "functional"))
class Dropout(Block):
    def __init__(self, channels, size, form="dropout"):
        super().__init__(channels, size)
        self.drop = {"dropout": nn.Dropout(0.3), "dropout2d": nn.Dropout2d(0.3)}.get(form)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.3, self.training) if self.drop is None else self.drop(x)


@block(form=("max", "avg", "same", "adaptive", "lp", "ceil"))
class Pool(Block):
    def __init__(self, channels, size, form="max"):
        half = max(1, size // 2)
        sizes = {"same": size, "ceil": (size + 1) // 2}
        super().__init__(channels, size, None, sizes.get(form, half))
        k = 2 if size > 1 else 1
        self.pool = {
            "max": nn.MaxPool2d(k),
            "avg": nn.AvgPool2d(k),
            "same": nn.MaxPool2d(3, 1, 1),
            "adaptive": nn.AdaptiveAvgPool2d(half),
            "lp": nn.LPPool2d(2, k),
            "ceil": nn.MaxPool2d(k, ceil_mode=True),
        }[form]

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


@block(form=("nearest", "bilinear", "shuffle", "unshuffle", "focus", "crop", "pad", "flip", "roll", "repeat", "unfold",
             "unpool", "fold_batch"))  # fmt: skip
class Resize(Block):
    """Everything that moves pixels."""

    def __init__(self, channels, size, form="nearest"):
        if form in ("nearest", "bilinear", "shuffle", "pad", "repeat") and size > 8:
            form = "flip"
        if form == "shuffle" and channels % 4:
            form = "nearest"
        if (form in ("unshuffle", "focus") and size % 2) or (form == "crop" and size < 3) or channels > 32:
            form = "flip"
        grown = {"shuffle": channels // 4, "unshuffle": channels * 4, "focus": channels * 4}
        sizes = {
            "nearest": size * 2, "bilinear": size * 2, "shuffle": size * 2, "unshuffle": size // 2,
            "focus": size // 2, "crop": size - 2, "pad": size + 2, "repeat": size * 2,
        }  # fmt: skip
        super().__init__(channels, size, grown.get(form), sizes.get(form))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form in ("nearest", "bilinear"):
            return functional.interpolate(x, scale_factor=2, mode=self.form)
        if self.form == "shuffle":
            return functional.pixel_shuffle(x, 2)
        if self.form == "unshuffle":
            return functional.pixel_unshuffle(x, 2)
        if self.form == "focus":
            return torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)
        if self.form == "crop":
            return x[:, :, 1:-1, 1:-1]
        if self.form == "pad":
            return functional.pad(x, (1, 1, 2, 0))
        if self.form == "repeat":
            return x.repeat(1, 1, 2, 2)
        if self.form == "unfold":
            return functional.unfold(x, 1).view(x.shape)
        if self.form == "unpool" and x.shape[-1] % 2 == 0:
            return functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2)
        if self.form == "fold_batch":
            n, c, h, w = x.shape
            return functional.avg_pool2d(x.reshape(n * c, 1, h, w), 3, 1, 1).reshape(n, c, h, w)
        return x.flip(-1) if self.form in ("flip", "unpool") else torch.roll(x, (1, -1), (2, 3))


@block(form=("conv", "cbam", "softmax"))
class SpatialAttention(Block):
    """A map of shape (N, 1, H, W), broadcast over the channels."""

    def __init__(self, channels, size, form="conv"):
        super().__init__(channels, size)
        self.form = form
        self.conv = nn.Conv2d(2 if form == "cbam" else channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "cbam":
            return x * torch.sigmoid(self.conv(torch.cat([x.amax(1, True), x.mean(1, True)], 1)))
        a = self.conv(x)
        if self.form == "softmax":
            return x * a.flatten(2).softmax(-1).view_as(a)
        return x * torch.sigmoid(a)


@block(hidden=(6, 8), gamma=(True, False), norm=("layer", "batch"))
class ConvNeXt(Block):
    """Depthwise convolution, norm and perceptron over the last dimension, layer scale, residual."""

    def __init__(self, channels, size, hidden=6, gamma=True, norm="layer"):
        super().__init__(channels, size)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = norm_of(norm, channels, size)
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1)) if gamma else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x)).permute(0, 2, 3, 1)
        y = self.second(functional.gelu(self.first(y))).permute(0, 3, 1, 2)
        return x + (y if self.gamma is None else y * self.gamma)


@block(heads=(2, 1), form=("chunk", "reshape", "module"))
class Attention(Block):
    """Multi-head self-attention over the pixels."""

    def __init__(self, channels, size, heads=2, form="chunk"):
        super().__init__(channels, size)
        self.heads, self.form, self.width = heads, form, 4 * heads
        self.qkv, self.out = nn.Linear(channels, 3 * self.width), nn.Linear(self.width, channels)
        self.module = nn.MultiheadAttention(channels, 1, batch_first=True) if form == "module" else None

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        if self.module is not None:
            return x + self.module(t, t, t)[0].transpose(1, 2).reshape(n, c, h, w)
        t = self.qkv(t)
        if self.form == "chunk":
            q, k, v = (p.view(n, h * w, self.heads, -1).transpose(1, 2) for p in t.chunk(3, -1))
        else:
            q, k, v = t.reshape(n, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(n, h * w, self.width))
        return x + y.transpose(1, 2).view(n, c, h, w)


@block(reduction=(4, 2))
class SelectiveKernel(Block):
    """Two branches weighted by a softmax across them."""

    def __init__(self, channels, size, reduction=4):
        super().__init__(channels, size)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.squeeze, self.select = nn.Linear(channels, reduction), nn.Linear(reduction, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([self.first(x), self.second(x)], 1)
        s = self.select(torch.relu(self.squeeze(maps.sum(1).mean((2, 3)))))
        weights = s.view(s.shape[0], 2, -1, 1, 1).softmax(1)
        return (maps * weights).sum(1)


@block(form=("zeros", "permute", "strided", "flip", "roll", "repeat", "stack", "drop", "double", "interleave", "unbind",
             "swap_halves", "add_flipped", "first", "select", "crop"))  # fmt: skip
class Rearrange(Block):
    """Move whole channels about."""

    def __init__(self, channels, size, form="zeros"):
        if form in ("repeat", "stack", "double", "interleave") and channels > 24:
            form = "flip"
        if form == "swap_halves" and channels % 2:
            form = "roll"
        if form in ("strided", "drop", "first", "select", "crop") and channels < 4:
            form = "zeros"
        grown = {
            "zeros": channels + 2, "strided": (channels + 1) // 2, "repeat": channels * 2, "stack": channels * 2,
            "drop": channels - 1, "double": channels * 2, "interleave": channels * 2, "first": 2, "select": 2,
            "crop": channels - 1,
        }  # fmt: skip
        super().__init__(channels, size, grown.get(form))
        self.form = form
        index = torch.randperm(channels, generator=torch.Generator().manual_seed(channels))
        self.register_buffer("index", index if form == "permute" else None)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        moved = {
            "zeros": lambda: functional.pad(x, (0, 0, 0, 0, 1, 1)),
            "permute": lambda: x[:, self.index],
            "strided": lambda: x[:, ::2],
            "flip": lambda: x.flip(1),
            "roll": lambda: torch.roll(x, 1, 1),
            "repeat": lambda: x.repeat(1, 2, 1, 1),
            "stack": lambda: torch.stack([x, -x], 2).flatten(1, 2),
            "drop": lambda: x[:, 1:],
            "double": lambda: torch.cat([x, x], 1),
            "interleave": lambda: x.repeat_interleave(2, 1),
            "unbind": lambda: torch.stack(x.unbind(1), 1),
            "swap_halves": lambda: x + torch.cat([x[:, half:], x[:, :half]], 1),
            "add_flipped": lambda: x + x.flip(1),
            "select": lambda: torch.stack([x[:, 0], x[:, 2]], 1),
            "crop": lambda: functional.pad(x, (0, 0, 0, 0, -1, 0)),
            "first": lambda: torch.cat([x[:, 0:1], x[:, 2:3]], 1),
        }
        return moved[self.form]()


@block(form=("maxout", "normalize", "softmax", "centre", "where", "scalar", "clamp", "norm_all", "group_mean",
             "layer_all", "cumsum", "response_norm"))  # fmt: skip
class OverChannels(Block):
    """Operations that look at all channels at once, and plain arithmetic that does not."""

    def __init__(self, channels, size, form="maxout"):
        if form in ("maxout", "group_mean") and channels % 2:
            form = "normalize"
        super().__init__(channels, size, channels // 2 if form in ("maxout", "group_mean") else channels)
        self.form = form
        self.norm = nn.LayerNorm((channels, size, size)) if form == "layer_all" else None

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        forms = {
            "maxout": lambda: x.view(n, c // 2, 2, h, w).max(2)[0],
            "group_mean": lambda: x.view(n, c // 2, 2, h, w).mean(2),
            "normalize": lambda: functional.normalize(x, dim=1),
            "softmax": lambda: x.softmax(1),
            "centre": lambda: x - x.mean(1, keepdim=True),
            "where": lambda: torch.where(x > 0, x, 0.1 * x + 0.2),
            "scalar": lambda: 2 * x + 0.3,
            "clamp": lambda: x.clamp(-1, 1),
            "norm_all": lambda: x / (1 + x.abs().mean()),
            "layer_all": lambda: self.norm(x),
            "cumsum": lambda: x.cumsum(1),
            "response_norm": lambda: functional.local_response_norm(x, 3),
        }
        return forms[self.form]()


@block(form=("conv1d", "conv3d", "latent", "linear_map", "pixel_mlp"), out=(4, 6))
class OtherDims(Block):
    """Layers over other than two spatial dimensions, and a linear layer in the middle of a network."""

    def __init__(self, channels, size, form="conv1d", out=4):
        if form == "latent" and channels * size * size > 600:
            form = "conv1d"
        super().__init__(channels, size, channels if form == "pixel_mlp" else out)
        self.form, pixels = form, size * size
        if form == "conv1d":
            self.layer = nn.Sequential(nn.Conv1d(channels, out, 3, padding=1), nn.BatchNorm1d(out))
        elif form == "conv3d":
            self.layer = nn.Sequential(nn.Conv3d(channels, out, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(out))
        elif form == "latent":
            self.down, self.up = nn.Linear(channels * pixels, 6), nn.Linear(6, out * pixels)
        elif form == "linear_map":
            self.layer = nn.Linear(channels, out)
        else:
            self.layer = nn.Linear(pixels, pixels)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        if self.form == "conv1d":
            return self.layer(x.flatten(2)).unflatten(2, (h, w))
        if self.form == "conv3d":
            return self.layer(x.unsqueeze(2)).squeeze(2)
        if self.form == "latent":
            return self.up(functional.relu(self.down(x.flatten(1)))).view(n, -1, h, w)
        if self.form == "linear_map":
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.layer(x.flatten(2)).view_as(x)
