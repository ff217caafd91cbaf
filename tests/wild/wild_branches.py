"""Wild structure: branches, modules used at several places, blocks inside blocks inside blocks."""

import math

import torch
from network_blocks import CHAIN
from torch import Tensor, nn
from torch.nn import functional
from wild_base import BANK_WIDTH, ChainRecipe, Projected, Side, Site, WildBlock, WildChain, fit, pooled, stretch, wild

ANY = (1, 2, 3)


@wild(*ANY, inner=CHAIN, scale=("none", "tiny", "zero", "one", "zero_norm", "zero_conv", "rezero", "fixed",
      "skip_gain"), act=(False, True), depth=(False, True))  # fmt: skip
class Skip(WildBlock):
    """A residual chain whose branch may be closed at first: LayerScale, ReZero, a zero norm, a zero convolution."""

    def __init__(self, site: Site, inner: ChainRecipe, scale: str, act: bool, depth: bool):
        super().__init__(site)
        self.inner, self.scale, self.act, self.depth = Projected(site, inner), scale, act, depth
        c, ones = site.channels, [1] * site.dims
        starts = {"tiny": 1e-6, "zero": 0.0, "one": 1.0}
        self.gamma = nn.Parameter(torch.full((c, *ones), starts[scale])) if scale in starts else None
        self.alpha = nn.Parameter(torch.zeros(1)) if scale == "rezero" else None
        self.norm = site.batch_norm() if scale == "zero_norm" else None
        self.gain = nn.Parameter(torch.empty(1, c, *ones)) if scale == "skip_gain" else None
        self.as_built = frozenset({"gamma", "alpha", "norm.weight", "norm.bias"})
        if self.norm is not None:
            nn.init.zeros_(self.norm.weight)
        if scale == "zero_conv":
            nn.init.zeros_(self.inner.last.weight)
            self.as_built |= {"inner.last.weight"}

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = self.inner(x, side)
        if self.gamma is not None:
            y = self.gamma * y
        elif self.alpha is not None:
            y = self.alpha * y
        elif self.norm is not None:
            y = self.norm(y)
        elif self.scale == "fixed":
            y = 0.2 * y
        if self.depth and self.training:
            y = y * torch.rand([len(x)] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device).add(0.5).floor()
        y = (x if self.gain is None else x * self.gain) + y
        return functional.relu(y) if self.act else y


@wild(*ANY, inner=CHAIN, form=("twice", "thrice", "siamese", "both_sides", "differences", "other_input"))
class Again(WildBlock):
    """One and the same chain applied several times, to different inputs."""

    def __init__(self, site: Site, inner: ChainRecipe, form: str):
        super().__init__(site, 2 * site.channels if form in ("siamese", "other_input") else None)
        self.form, self.inner, self.other = form, Projected(site, inner), site.conv(site.channels, 1)
        self.lift = site.conv(site.channels, 1, channels=2)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        if self.form in ("twice", "thrice"):
            for _ in range(2 + (self.form == "thrice")):
                x = functional.relu(self.inner(x, side))
            return x
        if self.form == "siamese":
            return torch.cat([self.inner(x, side), self.inner(self.other(x), side)], 1)
        if self.form == "other_input":
            image = fit(self.lift(side["image"]), x) if "image" in side else x.flip(-1)
            return torch.cat([self.inner(image, side), self.inner(x, side)], 1)
        if self.form == "both_sides":
            return self.inner(x.flip(-1), side).flip(-1) + self.inner(x, side)
        return self.inner(x, side) - self.inner(self.other(functional.relu(x)), side)


@wild(*ANY, key=("conv", "norm", "linear", "pair"), out=(6, 9), form=("once", "names", "list"))
class Borrowed(WildBlock):
    """A module that other blocks of the network use too, between projections of its own; also under two names."""

    def __init__(self, site: Site, key: str, out: int, form: str):
        super().__init__(site, out)
        self.key, self.form = key, form
        self.first, self.last = site.conv(BANK_WIDTH, 1), site.conv(out, 1, channels=BANK_WIDTH)
        self.shared = site.shared(key)
        self.alias = self.shared if form == "names" else None
        self.several = nn.ModuleList([self.shared, self.shared] if form == "list" else [])

    def _apply_shared(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.movedim(1, -1)).movedim(-1, 1) if self.key == "linear" else layer(x)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        x = self._apply_shared(self.shared, functional.relu(self.first(x)))
        for layer in [self.alias] if self.alias is not None else self.several:
            x = self._apply_shared(layer, functional.relu(x))
        return self.last(functional.relu(x))


@wild(*ANY, first=CHAIN, second=CHAIN, form=("softmax", "fast", "softplus", "rows", "sigmoid", "routed", "maximum"))
class Fusion(WildBlock):
    """Branches added with learned weights (BiFPN), with weights from the input, or by their maximum."""

    def __init__(self, site: Site, first: ChainRecipe, second: ChainRecipe, form: str):
        super().__init__(site, 6)
        self.form = form
        self.first, self.second = Projected(site, first, 6), Projected(site, second, 6)
        self.w = nn.Parameter(torch.empty(2) if form != "rows" else torch.empty(2, 6))
        self.route = nn.Linear(site.channels, 2) if form == "routed" else None

    def forward(self, x: Tensor, side: Side) -> Tensor:
        maps = [self.first(x, side), self.second(x, side)]
        if self.form == "maximum":
            return torch.max(maps[0], maps[1]) - torch.minimum(maps[0], 0.5 * maps[1])
        if self.form == "routed":
            w = self.route(pooled(x)).softmax(-1)
            return sum(stretch(w[:, i : i + 1], x) * part for i, part in enumerate(maps))
        if self.form == "softmax":
            w = self.w.softmax(0)
        elif self.form == "fast":
            w = functional.relu(self.w)
            w = w / (w.sum() + 1e-4)
        elif self.form == "rows":
            w = self.w.softmax(0)
            return stretch(w[0], x) * maps[0] + stretch(w[1], x) * maps[1]
        else:
            w = functional.softplus(self.w) if self.form == "softplus" else torch.sigmoid(self.w)
        return w[0] * maps[0] + w[1] * maps[1]


@wild(*ANY, down=CHAIN, across=CHAIN, form=("add", "cat", "cat_swapped", "mul", "interpolated"))
class Pyramid(WildBlock):
    """Down, a chain at half the size, up to the size of the other branch, together again: U-Net, FPN, hourglass."""

    def __init__(self, site: Site, down: ChainRecipe, across: ChainRecipe, form: str):
        joined = form.startswith("cat")
        super().__init__(site, 8 + (6 if joined else 2))
        stride = 2 if site.size > 2 else 1
        self.form, self.down = form, site.conv(8, stride=stride)
        self.inner = WildChain(site.but(8, (site.size - 1) // stride + 1), down)
        wide = 8 + 2 * (not joined)
        self.up = self.inner.out.conv(wide, 1)
        self.across = Projected(site, across, 6 if joined else wide)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        low = self.up(self.inner(functional.relu(self.down(x)), side))
        y = self.across(x, side)
        if self.form == "interpolated":
            mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
            return functional.interpolate(low, size=y.shape[2:], mode=mode, align_corners=False) + y
        low = functional.interpolate(low, size=y.shape[2:])
        if self.form == "mul":
            return low.sigmoid() * y
        return low + y if self.form == "add" else torch.cat([low, y] if self.form == "cat" else [y, low], 1)


@wild(*ANY, layers=(1, 2), form=("chunk", "split", "slices", "list"), shortcut=(True, False), inner=CHAIN)
class CrossStage(WildBlock):
    """C2f and its relatives: one half goes on into a chain of layers, every stage is read at the end."""

    def __init__(self, site: Site, layers: int, form: str, shortcut: bool, inner: ChainRecipe):
        super().__init__(site, 7)
        self.form, self.shortcut = form, shortcut
        self.first = site.conv(8, 1)
        self.stages = nn.ModuleList(Projected(site.but(4), inner if i == 0 else ()) for i in range(layers))
        self.last = site.conv(7, 1, channels=4 * (2 + layers))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        x = functional.silu(self.first(x))
        if self.form == "split":
            parts = list(x.split((4, 4), 1))
        elif self.form == "slices":
            parts = [x[:, :4], x[:, 4:]]
        else:
            parts = list(x.chunk(2, 1))
        for stage in self.stages:
            y = stage(parts[-1], side)
            parts.append(parts[-1] + y if self.shortcut else y)
        if self.form == "list":
            parts.extend([])
            parts = [parts[-1], *parts[:-1]]
        return self.last(torch.cat(parts, 1))


@wild(2, groups=(2, 3), stride=(1, 2), form=("v1", "v2", "v2_down"))
class ShuffleUnit(WildBlock):
    """The units of ShuffleNet v1 (grouped pointwise convolutions, concatenated shortcut) and v2 (halves)."""

    def __init__(self, site: Site, groups: int, stride: int, form: str):
        stride = stride if site.size > 2 else 1
        width = 2 * groups if form == "v1" else 8
        out = width * (1 + (stride == 2)) if form == "v1" else 8
        step = {"v1": stride, "v2": 1, "v2_down": 2}[form]
        size = (site.size - 1) // step + 1
        super().__init__(site, out, size)
        self.form, self.groups, self.stride = form, groups if form == "v1" else 2, stride
        self.first = site.conv(width, 1)
        half = width if form == "v1" else 4
        part = self.groups if form == "v1" else 1
        self.reduce = nn.Conv2d(half, half, 1, groups=part, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(half) for _ in range(3))
        self.depthwise = nn.Conv2d(half, half, 3, step, 1, groups=half, bias=False)
        self.expand = nn.Conv2d(half, half, 1, groups=part, bias=False)
        self.short = nn.Conv2d(half, half, 3, step, 1, groups=half, bias=False)

    def _shuffle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    def _branch(self, x: Tensor, shuffled: bool) -> Tensor:
        y = functional.relu(self.norms[0](self.reduce(x)))
        y = self.norms[1](self.depthwise(self._shuffle(y) if shuffled else y))
        return self.norms[2](self.expand(y))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        x = functional.relu(self.first(x))
        if self.form == "v1":
            y = self._branch(x, shuffled=True)
            if self.stride == 1:
                return functional.relu(x + y)
            return torch.cat([functional.avg_pool2d(x, 3, 2, 1), functional.relu(y)], 1)
        left, right = x.chunk(2, 1)
        left = self.short(left) if self.form == "v2_down" else left
        return self._shuffle(torch.cat([left, functional.relu(self._branch(right, shuffled=False))], 1))


@wild(*ANY, inner=CHAIN, form=("add", "replace", "scaled", "evaluation", "counted"))
class TrainingOnly(WildBlock):
    """A chain that runs in one of the two modes alone."""

    def __init__(self, site: Site, inner: ChainRecipe, form: str):
        super().__init__(site)
        self.form, self.main, self.inner = form, site.conv(site.channels), Projected(site, inner)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.main(x))
        if self.training and self.form == "counted":
            self.steps.add_(1)
        if self.training == (self.form == "evaluation"):
            return y
        extra = self.inner(y, side)
        if self.form == "replace":
            return extra
        return y + (0.5 * extra if self.form == "scaled" else extra)


@wild(*ANY, growth=(3, 4, 5), layers=(2, 3), form=("dense", "reversed", "recent"))
class Densely(WildBlock):
    """Every layer reads what all before it made, in one order or the other."""

    def __init__(self, site: Site, growth: int, layers: int, form: str):
        c = site.channels
        widths = [c + growth * i if form != "recent" else (c if i == 0 else growth * min(i, 2)) for i in range(layers)]
        super().__init__(site, c + growth * layers)
        self.form = form
        self.norms = nn.ModuleList(site.batch_norm(width) for width in widths)
        self.convs = nn.ModuleList(site.conv(growth, channels=width) for width in widths)
        self.share = math.gcd(c, growth)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        maps = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            read = maps if self.form == "dense" else maps[::-1]
            if self.form == "recent" and len(maps) > 1:
                read = maps[1:][-2:]
            maps.append(conv(functional.relu(norm(torch.cat(read, 1)))))
        return torch.cat(maps, 1)
