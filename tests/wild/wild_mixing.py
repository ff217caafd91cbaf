"""Wild mixing: gates, einsum, attention of every making, recurrent layers, kernels made from the input."""

import math

import torch
from network_blocks import CHAIN
from torch import Tensor, nn
from torch.nn import functional
from wild_base import ChainRecipe, Projected, Side, Site, WildBlock, pooled, stretch, tokens, untokens, wild

ANY = (1, 2, 3)


@wild(*ANY, form=("squeeze", "squeeze_conv", "spatial", "vector", "image", "highway", "film", "hard", "effective",
                  "both", "own_mean"), inner=CHAIN)  # fmt: skip
class Gate(WildBlock):
    """A map multiplied by something between 0 and 1: from itself, from its pixels, or from another input."""

    def __init__(self, site: Site, form: str, inner: ChainRecipe):
        super().__init__(site)
        c, self.form = site.channels, form
        self.inner = Projected(site, inner)
        self.down, self.up = nn.Linear(c, 5), nn.Linear(5, c)
        self.from_vector, self.from_image = nn.Linear(5, 2 * c), site.conv(c, channels=2)
        self.map, self.fuse = site.conv(1), nn.Conv1d(1, 1, 3, padding=1)
        self.wide = site.conv(c, 1)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = self.inner(x, side)
        vector = side["vector"] if "vector" in side else self.down(pooled(x))
        image = self.from_image(side["image"]) if "image" in side else x
        if self.form == "film":
            scale, shift = self.from_vector(vector).chunk(2, 1)
            return y * (1 + stretch(scale, y)) + stretch(shift, y)
        if self.form == "highway":
            t = torch.sigmoid(self.wide(x))
            return t * y + (1 - t) * x
        gates = {
            "squeeze": lambda: stretch(torch.sigmoid(self.up(functional.relu(self.down(pooled(y))))), y),
            "squeeze_conv": lambda: torch.sigmoid(self.wide(stretch(pooled(y), y))),
            "spatial": lambda: torch.sigmoid(self.map(x)),
            "vector": lambda: stretch(torch.sigmoid(self.from_vector(vector)[:, : y.shape[1]]), y),
            "image": lambda: stretch(torch.sigmoid(pooled(image)), y),
            "hard": lambda: functional.hardsigmoid(self.wide(y)),
            "effective": lambda: stretch(torch.sigmoid(self.fuse(pooled(y).unsqueeze(1)).squeeze(1)), y),
            "both": lambda: torch.sigmoid(self.map(x)) * stretch(torch.sigmoid(pooled(self.wide(y))), y),
            "own_mean": lambda: torch.sigmoid(y.mean(1, keepdim=True)),
        }
        return y * gates[self.form]()


@wild(*ANY, form=("mix", "heads", "bilinear", "gram", "channels", "three", "diagonal", "depth"), out=(6, 8))
class Einsum(WildBlock):
    """Products written as einsum: with a parameter, and between two activations."""

    def __init__(self, site: Site, form: str, out: int):
        super().__init__(site, 8 if form in ("heads", "bilinear", "channels", "diagonal", "depth") else out)
        self.form = form
        self.first, self.second = site.conv(8, 1), site.conv(8, 1)
        shapes = {"heads": (2, 4, 4), "diagonal": (8, 1), "depth": (8, 2)}
        self.w = nn.Parameter(torch.empty(shapes.get(form, (8, out))))
        self.last = nn.Linear(64, out)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        a, b = functional.relu(self.first(x)).flatten(2), self.second(x).flatten(2)
        shape = x.shape[2:]
        if self.form == "gram":
            g = self.last(torch.einsum("ncs,nds->ncd", a, b).flatten(1)) / a.shape[-1]
            return stretch(g, x).expand(-1, -1, *shape)
        forms = {
            "mix": lambda: torch.einsum("ncs,co->nos", a, self.w),
            "heads": lambda: torch.einsum("nhds,hde->nhes", a.unflatten(1, (2, 4)), self.w).flatten(1, 2),
            "bilinear": lambda: torch.einsum("ncs,ncs->ns", a, b).unsqueeze(1) * a,
            "channels": lambda: torch.einsum("ncd,nds->ncs", torch.einsum("ncs,nds->ncd", a, b).softmax(-1), a),
            "three": lambda: torch.einsum("ncs,ncs,co->nos", a, b, self.w),
            "diagonal": lambda: torch.einsum("ncs,cd->ncs", a, self.w),
            "depth": lambda: torch.einsum("ncs,cd->ncds", a, self.w).sum(2),
        }
        return forms[self.form]().unflatten(2, shape)


@wild(*ANY, heads=(2, 1, 3), per_head=(4, 2), skip=(True, False),
      form=("chunk", "unbind", "reshape", "fused", "separate", "convs", "einsum", "module", "linear", "channels",
            "masked", "cosine", "relative", "query_norm", "shared_kv"))  # fmt: skip
class SelfAttention(WildBlock):
    """Attention over the pixels or over the channels, with q, k and v made and cut apart in every usual way."""

    def __init__(self, site: Site, heads: int, per_head: int, form: str, skip: bool):
        wide = heads * per_head
        super().__init__(site)
        self.heads, self.wide, self.form, self.skip = heads, wide, form, skip
        self.enter = nn.Linear(site.channels, wide)
        self.qkv = nn.Linear(site.channels, 3 * wide)
        self.q, self.k, self.v = (nn.Linear(site.channels, wide) for _ in range(3))
        self.convs = nn.ModuleList(site.conv(wide, 1, bias=False) for _ in range(3))
        self.leave = nn.Linear(wide, site.channels)
        self.module = nn.MultiheadAttention(wide, heads, batch_first=True) if form == "module" else None
        self.temperature = nn.Parameter(torch.empty(heads, 1, 1))
        self.position = nn.Parameter(torch.empty((heads, 1, site.size**site.dims) if form == "relative" else 1))
        self.norm = nn.LayerNorm(per_head) if form == "query_norm" else nn.Identity()

    def _heads(self, t: Tensor) -> Tensor:
        return t.view(t.shape[0], t.shape[1], self.heads, -1).transpose(1, 2)

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = tokens(x)
        n, length = t.shape[:2]
        if self.form in ("unbind", "fused", "masked"):
            q, k, v = self.qkv(t).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.form in ("reshape", "cosine"):
            q, k, v = self.qkv(t).view(n, length, self.heads, -1).transpose(1, 2).chunk(3, -1)
        elif self.form in ("separate", "query_norm", "einsum", "linear"):
            q, k, v = (self._heads(layer(t)) for layer in (self.q, self.k, self.v))
        elif self.form == "shared_kv":
            q, k = self._heads(self.q(t)), self._heads(self.k(t))
            v = k
        elif self.form == "convs":
            q, k, v = (self._heads(tokens(conv(x))) for conv in self.convs)
        else:
            q, k, v = (self._heads(part) for part in self.qkv(t).chunk(3, -1))
        return self.norm(q), self.norm(k), v

    def forward(self, x: Tensor, side: Side) -> Tensor:
        if self.module is not None:
            t = self.enter(tokens(x))
            y = self.module(t, t, t, need_weights=False)[0]
        else:
            q, k, v = self._apart(x)
            y = self._attend(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, self.wide)
        y = untokens(self.leave(y), x)
        return x + y if self.skip else y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = 1 / math.sqrt(self.wide // self.heads)
        if self.form == "fused":
            return functional.scaled_dot_product_attention(q, k, v)
        if self.form == "masked":
            length = q.shape[-2]
            mask = torch.full((length, length), -math.inf, dtype=q.dtype, device=q.device).triu(1)
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.form == "einsum":
            scores = torch.einsum("nhqd,nhkd->nhqk", q, k) * scale
            return torch.einsum("nhqk,nhkd->nhqd", scores.softmax(-1), v)
        if self.form == "linear":
            return q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)
        if self.form == "channels":
            scores = functional.normalize(q, dim=-2).transpose(-1, -2) @ functional.normalize(k, dim=-2)
            return v @ (scores * self.temperature).softmax(-1)
        if self.form == "cosine":
            q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        scores = (q * scale) @ k.transpose(-2, -1)
        if self.form == "relative":
            scores = scores + self.position[..., : scores.shape[-1]]
        return scores.softmax(dim=-1) @ v


@wild(*ANY, heads=(2, 1), form=("image", "vector", "module", "queries", "fused"))
class CrossAttention(WildBlock):
    """Attention whose keys and values come from another input, or whose queries are parameters."""

    def __init__(self, site: Site, heads: int, form: str):
        super().__init__(site)
        self.heads, self.form, wide = heads, form, 4 * heads
        self.lift, self.lift_vector = nn.Linear(2, wide), nn.Linear(1, wide)
        self.own = nn.Linear(site.channels, wide)
        self.q, self.kv = nn.Linear(wide, wide), nn.Linear(wide, 2 * wide)
        self.leave = nn.Linear(wide, site.channels)
        self.queries = nn.Parameter(torch.empty(1, 3, wide))
        self.module = nn.MultiheadAttention(wide, heads, batch_first=True) if form == "module" else None

    def forward(self, x: Tensor, side: Side) -> Tensor:
        t = self.own(tokens(x))
        other = t.flip(1)
        if self.form == "vector" and "vector" in side:
            other = self.lift_vector(side["vector"].unsqueeze(-1))
        elif self.form in ("image", "module", "fused") and "image" in side:
            other = self.lift(tokens(side["image"]))
        if self.module is not None:
            return x + untokens(self.leave(self.module(t, other, other)[0]), x)
        asks = self.queries.expand(len(x), -1, -1) if self.form == "queries" else t
        k, v = self.kv(other).chunk(2, -1)
        q, k, v = (p.view(p.shape[0], p.shape[1], self.heads, -1).transpose(1, 2) for p in (self.q(asks), k, v))
        y = functional.scaled_dot_product_attention(q, k, v) if self.form == "fused" else (
            (q @ k.mT / 2).softmax(-1) @ v)  # fmt: skip
        y = self.leave(y.transpose(1, 2).flatten(2))
        return x + stretch(y.mean(1), x) if self.form == "queries" else x + untokens(y, x)


@wild(*ANY, form=("lstm", "gru", "both_ways", "last", "cell"), skip=(False, True))
class Recurrent(WildBlock):
    """A recurrent layer along the pixels."""

    def __init__(self, site: Site, form: str, skip: bool):
        super().__init__(site)
        self.form, self.skip = form, skip
        kind = nn.GRU if form == "gru" else nn.LSTM
        self.layer = kind(site.channels, 4, batch_first=True, bidirectional=form == "both_ways")
        self.cell = nn.GRUCell(site.channels, 4)
        self.leave = nn.Linear(8 if form == "both_ways" else 4, site.channels)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        t = tokens(x)[:, :12]
        if self.form == "cell":
            y = self.leave(self.cell(t[:, 0]))
        elif self.form == "last":
            y = self.leave(self.layer(t)[1][0][-1])
        else:
            y = self.leave(self.layer(t)[0]).mean(1)
        return x * stretch(torch.sigmoid(y), x) if self.skip else x + stretch(y, x)


@wild(2, form=("experts", "modulated", "grouped_by_batch", "depthwise"), out=(6, 8))
class MadeKernel(WildBlock):
    """A convolution whose kernel comes from the input: a mixture of experts, StyleGAN's modulation."""

    def __init__(self, site: Site, form: str, out: int):
        super().__init__(site, site.channels if form == "depthwise" else out)
        c, self.form = site.channels, form
        self.route, self.style = nn.Linear(c, 3), nn.Linear(c, c)
        self.experts = nn.Parameter(torch.empty(3, out, c, 3, 3))
        self.weight = nn.Parameter(torch.empty(out, c, 3, 3))
        self.make = nn.Linear(c, c * 9)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        n, c, h, w = x.shape
        if self.form == "experts":
            mixed = self.route(pooled(x).mean(0)).softmax(-1)
            return functional.conv2d(x, torch.einsum("e,eoikl->oikl", mixed, self.experts), padding=1)
        if self.form == "depthwise":
            kernels = self.make(pooled(x)).view(n * c, 1, 3, 3)
            return functional.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n * c).view(n, c, h, w)
        style = self.style(pooled(x)) + 1
        if self.form == "modulated":
            y = functional.conv2d(x * stretch(style, x), self.weight, padding=1)
            return y / stretch((self.weight.pow(2).sum((2, 3)) @ style.pow(2).T).T.add(0.1).sqrt(), y)
        kernels = (self.weight.unsqueeze(0) * style.view(n, 1, c, 1, 1)).view(-1, c, 3, 3)
        return functional.conv2d(x.reshape(1, -1, h, w), kernels, padding=1, groups=n).view(n, -1, h, w)
