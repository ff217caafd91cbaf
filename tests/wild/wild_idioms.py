"""Wild idioms: what single published networks do, each in a few lines."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from wild_base import Side, Site, WildBlock, fit, pooled, spatial, stretch, tokens, untokens, wild


@wild(1, 2, 3, form=("mirrored", "response", "circular", "same", "sorted", "largest", "cosine", "neighbours",
                     "parameters", "gathered", "outer_gate", "mean_removed", "several_norms", "loop", "scaled_input",
                     "either"))  # fmt: skip
class Idiom(WildBlock):
    """Concatenated ReLU, global response norm, sorting, parameters in lists, loops over stages, and more."""

    def __init__(self, site: Site, form: str):
        super().__init__(site, 16 if form == "mirrored" else 8)
        self.form, self.first, self.second = form, site.conv(8, 1), site.conv(8, channels=8)
        ones = [1] * site.dims
        self.gamma, self.beta = nn.Parameter(torch.empty(1, 8, *ones)), nn.Parameter(torch.empty(1, 8, *ones))
        self.padded = site.conv(8, channels=8, padding_mode="circular")
        self.same = site.conv(8, 3, channels=8, padding="same", dilation=2)
        self.single = nn.ParameterList([nn.Parameter(torch.empty(8, *ones)) for _ in range(2)])
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.empty(8)), "shift": nn.Parameter(torch.empty(8))})
        self.norms = nn.ModuleDict({"clean": site.batch_norm(8), "other": site.batch_norm(8)})
        self.register_buffer("order", torch.tensor([3, 1, 0, 7, 2, 6, 5, 4]))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = self.first(x)
        if self.form == "mirrored":
            return functional.relu(torch.cat([y, -y], 1))
        if self.form == "response":
            size = y.pow(2).sum(spatial(y), keepdim=True).add(1e-6).sqrt()
            return self.gamma * (y * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta + y
        if self.form in ("circular", "same"):
            return (self.padded if self.form == "circular" else self.same)(functional.relu(y))
        if self.form == "sorted":
            return y.flatten(2).sort(-1)[0].view_as(y)
        if self.form == "largest":
            return y * stretch(torch.sigmoid(y.flatten(2).topk(2, dim=-1)[0].mean(-1)), y)
        if self.form == "cosine":
            other = self.second(y)
            return y * functional.cosine_similarity(y, other, dim=1).unsqueeze(1)
        if self.form == "neighbours":
            return untokens(functional.avg_pool1d(tokens(y), 3, 1, 1), y)
        if self.form == "parameters":
            y = self.single[0] * y + self.single[1]
            return y * stretch(self.named["scale"], y) + stretch(self.named["shift"], y)
        if self.form == "gathered":
            index = stretch(self.order, y).expand_as(y)
            return y + torch.gather(y, 1, index)
        if self.form == "outer_gate":
            line = torch.sigmoid(y.mean(-1, keepdim=True))
            return y * line * torch.sigmoid(self.second(y).amax(-1, keepdim=True))
        if self.form == "mean_removed":
            return y - y.mean((0, *spatial(y)), keepdim=True) if self.training else y - self.beta
        if self.form == "several_norms":
            return self.norms["clean"](y) + self.norms["other"](functional.relu(y))
        if self.form == "loop":
            for step in range(3):
                y = y + 0.3 * torch.tanh(self.second(y)) * (step + 1)
            return y
        if self.form == "scaled_input":
            return self.second(y * 0.5) + self.second(y) * y.detach().abs().amax(spatial(y), keepdim=True)
        return self.second(y) if y.shape[1] % 2 else functional.relu(self.second(y))


@wild(2, form=("fourier", "tied_transposed", "reduced", "talking", "memory", "recurrent_cell", "reparametrized",
               "axial", "deformed", "blurred", "unpooled", "bilinear", "window"))  # fmt: skip
class ImageIdiom(WildBlock):
    """Fourier filters, tied weights, attention with reduced keys, a convolutional LSTM cell, deformable convolution."""

    def __init__(self, site: Site, form: str):
        if form in ("window", "unpooled") and (site.size % 2 or site.size < 4):
            form = "axial"
        super().__init__(site, 8)
        self.form, self.first, self.second = form, site.conv(8, 1), site.conv(8, channels=8)
        self.real = nn.Parameter(torch.empty(8, site.size, site.size // 2 + 1))
        self.q, self.kv, self.leave = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(8, 8)
        self.reduce = nn.Conv2d(8, 8, 2, 2)
        self.talk = nn.Conv2d(2, 2, 1)
        self.memory = nn.Parameter(torch.empty(5, 8))
        self.gates = nn.Conv2d(16, 32, 3, padding=1)
        self.point, self.norms = nn.Conv2d(8, 8, 1), nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.offsets = nn.Conv2d(8, 18, 3, padding=1)
        self.pair = nn.Bilinear(8, 8, 6)
        self.lift = nn.Linear(6, 8)

    def _attend(self, t: Tensor, other: Tensor) -> Tensor:
        k, v = self.kv(other).chunk(2, -1)
        q, k, v = (p.unflatten(-1, (2, 4)).transpose(-3, -2) for p in (self.q(t), k, v))
        scores = q @ k.transpose(-1, -2) / 2
        if self.form == "talking":
            scores = self.talk(scores)
        return self.leave((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))

    def forward(self, x: Tensor, side: Side) -> Tensor:
        y = functional.relu(self.first(x))
        n, c, h, w = y.shape
        if self.form == "fourier":
            return torch.fft.irfft2(torch.fft.rfft2(y, norm="ortho") * self.real, s=(h, w), norm="ortho")
        if self.form == "tied_transposed":
            return functional.conv_transpose2d(torch.tanh(self.second(y)), self.second.weight, padding=1)
        if self.form == "reduced":
            return y + untokens(self._attend(tokens(y), tokens(self.reduce(y) if h > 1 else y)), y)
        if self.form == "talking":
            return y + untokens(self._attend(tokens(y), tokens(y)), y)
        if self.form == "memory":
            return y + untokens((tokens(y) @ self.memory.T).softmax(-1) @ self.memory, y)
        if self.form == "recurrent_cell":
            hidden = cell = torch.zeros_like(y)
            for _ in range(2):
                i, f, o, g = self.gates(torch.cat([y, hidden], 1)).chunk(4, 1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                hidden = torch.sigmoid(o) * torch.tanh(cell)
            return hidden
        if self.form == "reparametrized":
            return functional.relu(
                self.norms[0](self.second(y)) + self.norms[1](self.point(y)) + self.norms[2](y)
            )  # fmt: skip
        if self.form == "axial":
            rows = y.permute(0, 2, 3, 1).reshape(n * h, w, c)
            return y + self._attend(rows, rows).view(n, h, w, -1).permute(0, 3, 1, 2)
        if self.form == "window":
            t = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
            t = self._attend(t, t).view(n, h // 2, w // 2, 2, 2, -1)
            return y + t.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, h, w)
        if self.form == "deformed":
            import torchvision

            return torchvision.ops.deform_conv2d(y, 0.1 * self.offsets(y), self.second.weight, padding=1)
        if self.form == "blurred":
            kernel = torch.tensor([0.25, 0.5, 0.25], dtype=y.dtype, device=y.device)
            kernel = (kernel[:, None] * kernel).expand(c, 1, 3, 3)
            return functional.conv2d(functional.pad(y, (1, 1, 1, 1), mode="reflect") if h > 1 else y.repeat(1, 1, 3, 3),
                                     kernel, groups=c)  # fmt: skip
        if self.form == "unpooled":
            small, where = functional.max_pool2d(y, 2, return_indices=True)
            return fit(functional.max_unpool2d(self.second(small), where, 2), y)
        return y * stretch(torch.sigmoid(self.lift(self.pair(pooled(y), pooled(self.second(y))))), y)
