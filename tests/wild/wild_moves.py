"""Wild movement: chunks swapped and recombined, numbers written into the code, writes into slices, odd views."""

import torch
from network_blocks import CHAIN
from torch import Tensor, nn
from torch.nn import functional
from wild_base import ChainRecipe, Projected, Side, Site, WildBlock, fit, pooled, spatial, stretch, untokens, wild

ANY = (1, 2, 3)


@wild(*ANY, form=("rotate", "reverse", "signs", "fold", "cross", "pairs", "nested", "weave", "glu", "halves_twice",
                  "swap_and_add", "maximum"), parts=(2, 3, 4), width=(12, 24), made=(True, False))  # fmt: skip
class Chunks(WildBlock):
    """A map cut into equal parts, which are exchanged, recombined, and treated differently."""

    def __init__(self, site: Site, form: str, parts: int, width: int, made: bool):
        shrinks = {"fold": width // parts, "glu": width // 2, "cross": width // 2, "maximum": width // 2}
        super().__init__(site, shrinks.get(form, width))
        self.form, self.parts, self.half = form, parts, width // 2
        self.first = site.conv(width, 1)
        self.second = site.conv(self.half, channels=self.half) if made else nn.Identity()

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        if self.form in ("rotate", "reverse", "signs", "fold"):
            parts = list(y.chunk(self.parts, 1))
            if self.form == "fold":
                return sum((i + 1) * part for i, part in enumerate(parts))
            if self.form == "signs":
                parts = [(-1) ** i * (1 + i) * part for i, part in enumerate(parts)]
            return torch.cat(parts[1:] + parts[:1] if self.form == "rotate" else parts[::-1], 1)
        a, b = y.chunk(2, 1)
        forms = {
            "cross": lambda: self.second(a) * torch.sigmoid(b) + a,
            "glu": lambda: self.second(a) * torch.sigmoid(b),
            "pairs": lambda: torch.cat([a + b, self.second(a - b)], 1),
            "nested": lambda: torch.cat([*self.second(b).chunk(2, 1)[::-1], *a.chunk(2, 1)], 1),
            "weave": lambda: torch.stack([self.second(a), b], 2).flatten(1, 2),
            "halves_twice": lambda: torch.cat([self.second(b), self.second(a)], 1),
            "swap_and_add": lambda: y + torch.cat([b, self.second(a)], 1),
            "maximum": lambda: torch.max(self.second(a), b),
        }
        return forms[self.form]()


@wild(*ANY, sizes=((3, 5, 4), (2, 10), (6, 6), (4, 4, 4), (1, 11), (7, 3, 2)), order=((-1, 0), (0, 1), (1, 0)),
      form=("split", "slices", "narrow", "tensor_split"), inner=CHAIN, scale=(1.0, -2.0))  # fmt: skip
class FixedParts(WildBlock):
    """Unequal parts whose sizes stand in the code; one goes through a chain, another is scaled."""

    def __init__(self, site: Site, sizes: tuple, order: tuple, form: str, inner: ChainRecipe, scale: float):
        super().__init__(site, 12)
        self.sizes, self.order, self.form, self.scale = sizes, order, form, scale
        self.first = site.conv(12, 1)
        self.inner = Projected(site.but(sizes[0]), inner)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        if self.form == "split":
            parts = list(torch.split(y, list(self.sizes), 1))
        elif self.form == "narrow":
            parts = [y.narrow(1, start, size) for start, size in zip(starts, self.sizes, strict=True)]
        elif self.form == "tensor_split":
            parts = list(torch.tensor_split(y, starts[1:], 1))
        else:
            parts = [y[:, start : start + size] for start, size in zip(starts, self.sizes, strict=True)]
        parts[0] = self.inner(parts[0], side)
        parts[-1] = self.scale * parts[-1]
        first = parts.pop(self.order[0])
        parts.insert(self.order[1] % (len(parts) + 1), first)
        return torch.cat(parts, 1)


@wild(*ANY, at=(4, 3, 5), factor=(-2.0, 1.0, 0.5), form=("cat", "weights", "where", "half_norm", "half_act"))
class WrittenHalf(WildBlock):
    """A number of channels stands in the code, which runs at any width: only the values tell that it is wrong."""

    def __init__(self, site: Site, at: int, factor: float, form: str):
        super().__init__(site, 8)
        self.at, self.factor, self.form = at, factor, form
        self.first, self.second = site.conv(8, 1), site.conv(8, channels=8)
        self.norm = site.batch_norm(at)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        if self.form == "half_norm":
            y = torch.cat([self.norm(y[:, : self.at]), y[:, self.at :]], 1)
        elif self.form == "half_act":
            y = torch.cat([torch.tanh(y[:, : self.at]), y[:, self.at :]], 1)
        elif self.form == "where":
            early = torch.arange(y.shape[1], device=y.device) < self.at
            y = torch.where(early.view(-1, *[1] * self.dims), y, self.factor * y)
        elif self.form == "weights":
            steps = torch.arange(y.shape[1], device=y.device, dtype=y.dtype)
            y = y * stretch(steps.sub(self.at).mul(self.factor), y)
        else:
            y = torch.cat([y[:, : self.at], self.factor * y[:, self.at :]], 1)
        return self.second(y)


@wild(*ANY, form=("add_slice", "mul_strided", "assign", "index_put", "fill", "where", "scatter_add", "zero_last",
                  "list_index", "pixels", "copy"), made=(True, False))  # fmt: skip
class Writes(WildBlock):
    """Writes into parts of a map, by slices, strides, indices and masks."""

    def __init__(self, site: Site, form: str, made: bool):
        super().__init__(site, 8)
        self.form = form
        self.first, self.second = site.conv(8, 1), site.conv(4, channels=4) if made else nn.Identity()
        self.register_buffer("on", torch.tensor([True, False, True, True, False, True, True, False]))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x)) + 0.1
        part = self.second(y[:, 4:].clone())  # autograd keeps what a convolution reads
        if self.form == "add_slice":
            y[:, :4] += part
        elif self.form == "mul_strided":
            y[:, ::2] *= 0.5
        elif self.form == "assign":
            y[:, 2:6] = part
        elif self.form == "index_put":
            y[:, [0, 3, 5]] = part[:, :3]
        elif self.form == "fill":
            y = y.masked_fill(stretch(self.on, y), -0.5)
        elif self.form == "where":
            y = torch.where(stretch(self.on, y), y, y.flip(1))
        elif self.form == "scatter_add":
            y = y.index_add(1, torch.tensor([1, 1, 6, 0], device=y.device), part)
        elif self.form == "zero_last":
            y[:, -2:].zero_()
        elif self.form == "list_index":
            y = y[:, [1, 0, 2, 3, 7, 6, 5, 4]]
        elif self.form == "pixels":
            y[..., ::2] += y[..., :1]
            y[..., 0] = 0.3
        else:
            y[:, :4].copy_(part)
        return functional.relu(y)


@wild(*ANY, amounts=((2, 2), (0, 3), (3, 0), (-1, 2), (-2, 0), (1, -1)), form=("pad", "zeros", "ones", "value", "add"))
class PadChannels(WildBlock):
    """Channels of a fixed number added or taken away, with zeros or another value; added to what has that width."""

    def __init__(self, site: Site, amounts: tuple[int, int], form: str):
        if form in ("zeros", "ones"):
            amounts = (0, 2)
        out = 8 + sum(amounts)
        super().__init__(site, out)
        self.amounts, self.form = amounts, form
        self.first, self.beside = site.conv(8, 1), site.conv(out)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        if self.form in ("zeros", "ones"):
            extra = y.new_zeros(y.shape[0], 2, *y.shape[2:]) if self.form == "zeros" else torch.ones_like(y[:, :2])
            return torch.cat([y, extra], 1)
        y = functional.pad(y, (0, 0) * self.dims + self.amounts, value=0.7 if self.form == "value" else 0.0)
        return y + self.beside(x) if self.form == "add" else y


@wild(*ANY, form=("fold_groups", "channel_batch", "flat_linear", "transposed", "batch_norm_flat", "per_pixel", "mixer",
                  "spatial_linear", "hard_view", "unflatten", "shape_math"))  # fmt: skip
class Views(WildBlock):
    """Views that move channels into the batch, into the pixels, and back."""

    def __init__(self, site: Site, form: str):
        super().__init__(site, 6)
        self.form, pixels = form, site.size**site.dims
        if form in ("spatial_linear", "mixer", "hard_view") and pixels > 128:
            self.form = form = "per_pixel"
        self.first = site.conv(6, 1)
        self.conv = site.conv(3, channels=3)
        self.single = site.conv(1, channels=1)
        self.linear = nn.Linear(pixels if form in ("spatial_linear", "mixer") else 6, pixels if form in (
            "spatial_linear", "mixer") else 6)  # fmt: skip
        self.norm, self.pixels = nn.BatchNorm1d(6), pixels

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        n, c, *rest = y.shape
        if self.form == "fold_groups":
            return self.conv(y.reshape(n * 2, c // 2, *rest)).reshape(n, c, *rest)
        if self.form == "channel_batch":
            return self.single(y.reshape(n * c, 1, *rest)).view(n, c, *rest)
        if self.form == "flat_linear":
            return untokens(self.linear(y.flatten(2).transpose(1, 2)), y)
        if self.form == "transposed":
            return y.transpose(-1, -2).contiguous() if self.dims > 1 else y.flip(-1)
        if self.form == "batch_norm_flat":
            return self.norm(y.flatten(2)).reshape(y.shape)
        if self.form == "per_pixel":
            t = y.flatten(2).permute(0, 2, 1).reshape(-1, c)
            return self.linear(t).view(n, -1, c).permute(0, 2, 1).reshape(n, c, *rest)
        if self.form in ("spatial_linear", "mixer"):
            z = self.linear(y.flatten(2)).view_as(y)
            return y + z if self.form == "mixer" else z
        if self.form == "hard_view":
            return y.view(-1, 6, self.pixels).mul(2).view(n, 6, *rest)
        if self.form == "unflatten":
            return y.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
        return y.reshape(n, c, -1)[:, :, : y.numel() // (n * c)].reshape(n, y.size(1), *rest) * (c / 6)


@wild(2, form=("fold", "unfold_linear", "involution", "shuffle_down", "windows", "shift", "patches", "unfold_method",
               "sample"))  # fmt: skip
class Pixels(WildBlock):
    """Neighbourhoods of pixels: unfold and fold, involution, windows, shifts by groups of channels, sampling."""

    def __init__(self, site: Site, form: str):
        if form in ("windows", "patches", "shuffle_down") and site.size % 2:
            form = "shift"
        size = {"patches": site.size // 2, "shuffle_down": site.size}.get(form)
        super().__init__(site, 8, size)
        self.form, self.first = form, site.conv(8, 1)
        wide = {"unfold_linear": 72, "unfold_method": 32, "patches": 32}.get(form, 8)
        self.linear = nn.Linear(wide, 8)
        self.kernel = site.conv(9, 1, channels=8)
        self.down = nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        n, c, h, w = y.shape
        if self.form == "fold":
            return functional.fold(functional.unfold(y, 3, padding=1), (h, w), 3, padding=1) / 9
        if self.form == "unfold_linear":
            return self.linear(functional.unfold(y, 3, padding=1).transpose(1, 2)).transpose(1, 2).view(n, -1, h, w)
        if self.form == "involution":
            kernel = self.kernel(y).view(n, 1, 9, h, w)
            return (functional.unfold(y, 3, padding=1).view(n, c, 9, h, w) * kernel).sum(2)
        if self.form == "shuffle_down":
            return functional.pixel_shuffle(self.down(functional.pixel_unshuffle(y, 2)).repeat(1, 4, 1, 1), 2)
        if self.form == "windows":
            t = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
            t = self.linear(t - t.mean(1, keepdim=True))
            return t.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        if self.form == "patches":
            parts = [y[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
            return self.linear(torch.cat(parts, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.form == "unfold_method":
            t = functional.pad(y, (0, 1, 0, 1)).unfold(2, 2, 1).unfold(3, 2, 1)
            return self.linear(t.permute(0, 2, 3, 1, 4, 5).reshape(n, h, w, -1)).permute(0, 3, 1, 2)
        if self.form == "sample":
            theta = torch.eye(2, 3, dtype=y.dtype, device=y.device).mul(0.9).expand(n, 2, 3)
            return functional.grid_sample(y, functional.affine_grid(theta, list(y.shape), False), align_corners=False)
        g = 2
        return torch.cat([y[:, :g].roll(1, 2), y[:, g : 2 * g].roll(-1, 3), y[:, 2 * g :]], 1)


@wild(*ANY, form=("flip", "roll", "roll_all", "strided", "repeat", "interleave", "pick", "permute", "mean_groups",
                  "max_groups", "outer", "expand"))  # fmt: skip
class Order(WildBlock):
    """Whole channels in another order, some of them, or several times over."""

    def __init__(self, site: Site, form: str):
        sizes = {
            "strided": 3,
            "pick": 3,
            "mean_groups": 3,
            "max_groups": 2,
            "repeat": 12,
            "interleave": 12,
            "outer": 12,
        }
        super().__init__(site, sizes.get(form, 6))
        self.form, self.first = form, site.conv(6, 1)
        self.register_buffer("index", torch.tensor([2, 0, 5, 1, 3, 4]))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        forms = {
            "flip": lambda: y.flip(1),
            "roll": lambda: y.roll(1, 1),
            "roll_all": lambda: y.roll(y.shape[1], 1),
            "strided": lambda: y[:, 1::2],
            "repeat": lambda: y.repeat(1, 2, *[1] * self.dims),
            "interleave": lambda: y.repeat_interleave(2, 1),
            "pick": lambda: torch.stack([y[:, 4], y[:, 0], y[:, -1]], 1),
            "permute": lambda: y.index_select(1, self.index),
            "mean_groups": lambda: y.unflatten(1, (3, 2)).mean(2),
            "max_groups": lambda: y.unflatten(1, (2, 3)).amax(2),
            "outer": lambda: (y.unsqueeze(2) * y[:, :2].unsqueeze(1)).flatten(1, 2),
            "expand": lambda: y + fit(stretch(pooled(y), y), y) - y.mean(spatial(y), keepdim=True),
        }
        return forms[self.form]()
