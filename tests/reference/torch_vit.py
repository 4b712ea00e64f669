"""The Vision Transformer a second time, in PyTorch with automatic differentiation, to measure vitnp against.

A gradient check proves that a backward belongs to its forward, not that the forward is a ViT: a lost
1/sqrt(K), an unbiased variance or a permuted qkv pass it to the last bit. So this file is written from the
paper (Dosovitskiy et al., arXiv 2010.11929, equations 1 to 4) and from the names and layouts that vitnp
promises in public. It shares no code with vitnp and goes other ways where it can: a convolution for the
patches, three separate projections for q, k and v, torch's own attention, layer norm, GELU and cross-entropy.

    vitnp                             here
    weight (d_in, d_out)              nn.Linear.weight (d_out, d_in)
    patch_embed.weight (PhPwC, D)     nn.Conv2d.weight (D, C, Ph, Pw)
    qkv.weight (D, 3D)                q.weight, k.weight, v.weight, each (D, D)
    gamma, beta                       nn.LayerNorm.weight, nn.LayerNorm.bias
    stem ... conv (k, k, C, C_out)    nn.Conv2d.weight (C_out, C, k, k)
    images (B, H, W, C)               the same on entry
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Equations 2 and 3: z' = MSA(LN(z)) + z,   z = MLP(LN(z')) + z'."""

    def __init__(self, dim, num_heads, mlp_dim, gelu, eps, dtype, relative=None, layer_scale=False, qk_norm=False):
        super().__init__()
        self.relative = relative
        self.gammas = nn.ParameterList(torch.ones(dim, dtype=dtype) for _ in range(2 * layer_scale))
        self.norms = nn.ModuleList(nn.LayerNorm(dim // num_heads, eps=eps, dtype=dtype) for _ in range(2 * qk_norm))
        self.keep = 1.0, 1.0  # of stochastic depth: a factor for each sample, if it is to be dropped
        self.num_heads = num_heads
        self.approximate = {"tanh": "tanh", "erf": "none"}[gelu]
        self.norm1 = nn.LayerNorm(dim, eps=eps, dtype=dtype)
        self.q = nn.Linear(dim, dim, dtype=dtype)
        self.k = nn.Linear(dim, dim, dtype=dtype)
        self.v = nn.Linear(dim, dim, dtype=dtype)
        self.proj = nn.Linear(dim, dim, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, eps=eps, dtype=dtype)
        self.fc1 = nn.Linear(dim, mlp_dim, dtype=dtype)
        self.fc2 = nn.Linear(mlp_dim, dim, dtype=dtype)

    def split(self, x):
        """(B, N, D) -> (B, H, N, K)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, z):
        y = self.norm1(z)
        q, k, v = (self.split(project(y)) for project in (self.q, self.k, self.v))
        if self.norms:  # arXiv 2302.05442: softmax[1/sqrt(d) LN(X Wq) (LN(X Wk))^T]
            q, k = self.norms[0](q), self.norms[1](k)
        bias = None if self.relative is None else self.relative(q, z.shape[1])
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        z = z + self.end(self.proj(heads.transpose(1, 2).flatten(2)), 0)
        return z + self.end(self.fc2(F.gelu(self.fc1(self.norm2(z)), approximate=self.approximate)), 1)

    def end(self, branch, which):
        """arXiv 2103.17239: diag(lambda) on the branch. arXiv 1603.09382: b_l on all of a sample's branch."""
        return self.keep[which] * (branch * self.gammas[which] if self.gammas else branch)


class Relative(nn.Module):
    """Appendix D.4: a second attention, whose keys are embeddings of p_q - p_k; its logits are added to the first's.

    Offsets are those of rows and of columns, one embedding each, and what is no patch has none.
    """

    def __init__(self, grid, size, first, dtype):
        super().__init__()
        self.first = first
        self.y = nn.Parameter(torch.zeros(2 * grid[0] - 1, size, dtype=dtype))
        self.x = nn.Parameter(torch.zeros(2 * grid[1] - 1, size, dtype=dtype))
        self.places = [divmod(i, grid[1]) for i in range(grid[0] * grid[1])]
        self.middle = grid[0] - 1, grid[1] - 1

    def forward(self, q, tokens):
        """(B, H, N, K) -> (B, H, N, N)"""
        keys = q.new_zeros(tokens, tokens, q.shape[-1])
        for i, (row_i, column_i) in enumerate(self.places):
            for j, (row_j, column_j) in enumerate(self.places):
                offset = self.y[self.middle[0] + row_i - row_j] + self.x[self.middle[1] + column_i - column_j]
                keys[self.first + i, self.first + j] = offset
        return torch.einsum("bhik,ijk->bhij", q, keys) / q.shape[-1] ** 0.5


class Raster(nn.Module):
    """The same with one offset, of places in raster order, as the appendix has it."""

    def __init__(self, patches, size, first, dtype):
        super().__init__()
        self.first, self.patches = first, patches
        self.offsets = nn.Parameter(torch.zeros(2 * patches - 1, size, dtype=dtype))

    def forward(self, q, tokens):
        """(B, H, N, K) -> (B, H, N, N)"""
        bias, inside = q.new_zeros(*q.shape[:2], tokens, tokens), slice(self.first, self.first + self.patches)
        place = torch.arange(self.patches)
        keys = self.offsets[place[:, None] - place + self.patches - 1]
        bias[:, :, inside, inside] = torch.einsum("bhik,ijk->bhij", q[:, :, inside], keys)
        return bias / q.shape[-1] ** 0.5


class Positions(nn.Module):
    """Appendix D.4: what is added to each patch, and, if `kind` is "learned", to the class token in front."""

    def __init__(self, kind, grid, dim, first, dtype):
        super().__init__()
        self.kind, self.grid, self.first, self.dim = kind, grid, first, dim
        if kind == "learned":
            self.vectors = nn.Parameter(torch.zeros(1, first + grid[0] * grid[1], dim, dtype=dtype))
        elif kind == "learned-2d":
            self.x = nn.Parameter(torch.zeros(grid[1], dim // 2, dtype=dtype))
            self.y = nn.Parameter(torch.zeros(grid[0], dim // 2, dtype=dtype))

    def forward(self, z):
        first = 0 if self.kind == "learned" else self.first
        pos = self.table(z)
        after = z.shape[1] - first - pos.shape[1]
        return z + F.pad(pos, (0, 0, first, after))

    def table(self, z):
        if self.kind == "learned":
            return self.vectors
        places = [(row, column) for row in range(self.grid[0]) for column in range(self.grid[1])]
        if self.kind == "learned-2d":  # the X-embedding and the Y-embedding, side by side
            return torch.stack([torch.cat([self.x[column], self.y[row]]) for row, column in places])[None]
        quarter = self.dim // 4
        periods = [100 ** (i / max(quarter - 1, 1)) for i in range(quarter)]
        waves = [[f(place / p) for place in (c, r) for f in (math.sin, math.cos) for p in periods] for r, c in places]
        return z.new_tensor(waves)[None]


class StdConv(nn.Conv2d):
    """A convolution without bias, whose weights are standardised, and with TensorFlow's padding SAME."""

    def __init__(self, c_in, c_out, side, stride, dtype):
        super().__init__(c_in, c_out, side, stride, bias=False, dtype=dtype)

    def forward(self, x):
        std, mean = torch.std_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(
            same(x, self.kernel_size[0], self.stride[0], 0.0), (self.weight - mean) / (std + 1e-5), None, self.stride
        )


def same(x, side, stride, value):
    """(B, C, H, W) with enough around it for ceil(n / stride) windows, the odd one more behind."""
    lacking = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in (x.shape[3], x.shape[2])]
    return F.pad(x, [n for lack in lacking for n in (lack // 2, lack - lack // 2)], value=value)


class Unit(nn.Module):
    """A bottleneck of He et al., with standardised weights and group norms."""

    def __init__(self, c_in, width, stride, dtype):
        super().__init__()
        parts = {"1": (c_in, width, 1, 1), "2": (width, width, 3, stride), "3": (width, 4 * width, 1, 1)}
        if stride != 1 or c_in != 4 * width:
            parts["_proj"] = (c_in, 4 * width, 1, stride)
        self.convs = nn.ModuleDict({name: StdConv(*sizes, dtype) for name, sizes in parts.items()})
        self.norms = nn.ModuleDict({n: nn.GroupNorm(32, s[1], eps=1e-6, dtype=dtype) for n, s in parts.items()})

    def forward(self, x):
        y = x
        for name in "123":
            y = self.norms[name](self.convs[name](y if name == "1" else F.relu(y)))
        return F.relu(y + (self.norms["_proj"](self.convs["_proj"](x)) if "_proj" in self.convs else x))


class Stem(nn.Module):
    """The ResNet of a hybrid: root, and stages of units."""

    def __init__(self, channels, blocks, width, dtype):
        super().__init__()
        self.conv = StdConv(channels, width, 7, 2, dtype)
        self.norm = nn.GroupNorm(32, width, eps=1e-6, dtype=dtype)
        self.units, c_in = nn.ModuleDict(), width
        for s, units in enumerate(blocks):
            for u in range(units):
                self.units[f"{s}_{u}"] = Unit(c_in, width * 2**s, 2 if s and not u else 1, dtype)
                c_in = 4 * width * 2**s
        self.channels = c_in

    def forward(self, x):
        x = F.max_pool2d(same(F.relu(self.norm(self.conv(x))), 3, 2, -torch.inf), 3, 2)
        for unit in self.units.values():
            x = unit(x)
        return x

    def layout(self):
        table = {"stem.root.conv.weight": ([self.conv.weight], *_HWIO), **_norm("stem.root.norm", self.norm)}
        for name, unit in self.units.items():
            for number, conv in unit.convs.items():
                path = f"stem.stages.{name.replace('_', '.')}"
                table[f"{path}.conv{number}.weight"] = ([conv.weight], *_HWIO)
                table.update(_norm(f"{path}.norm{number}", unit.norms[number]))
        return table


class TorchViT(nn.Module):
    """Takes the fields of a ViTConfig by name, and arrays in vitnp's names and layouts."""

    def __init__(
        self,
        image_size,
        patch_size,
        channels,
        num_classes,
        dim,
        depth,
        num_heads,
        mlp_dim,
        pool="token",
        gelu="tanh",
        layer_norm_eps=1e-6,
        representation_size=None,
        positions="learned",
        pos_at="stem",
        layer_scale=None,
        registers=0,
        qk_norm=False,
        stem_blocks=None,
        stem_width=1,
        dtype=torch.float64,
    ):
        super().__init__()
        self.dtype = dtype
        self.patch_size = tuple(patch_size)
        self.stem = None
        if stem_blocks is not None:
            self.stem = Stem(channels, stem_blocks, int(64 * stem_width), dtype)
            channels, stride = self.stem.channels, 4 * 2 ** max(0, len(stem_blocks) - 1)
            image_size = [-(-side // stride) for side in image_size]
        grid = image_size[0] // patch_size[0], image_size[1] // patch_size[1]
        first = int(pool == "token")
        self.patch_embed = nn.Conv2d(channels, dim, self.patch_size, stride=self.patch_size, dtype=dtype)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim, dtype=dtype)) if pool == "token" else None
        relative = positions in ("relative", "relative-1d")
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            offsets = None
            if relative:
                size = dim // num_heads
                flat = positions == "relative-1d"
                patches = grid[0] * grid[1]
                offsets = Raster(patches, size, first, dtype) if flat else Relative(grid, size, first, dtype)
            later = offsets, layer_scale is not None, qk_norm
            self.blocks.append(Block(dim, num_heads, mlp_dim, gelu, layer_norm_eps, dtype, *later))
        self.registers = nn.Parameter(torch.zeros(1, registers, dim, dtype=dtype)) if registers else None
        self.pos_at = pos_at
        tables = 0 if relative or positions == "none" else depth if pos_at == "layers" else 1
        self.positions = nn.ModuleList(Positions(positions, grid, dim, first, dtype) for _ in range(tables))
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps, dtype=dtype)
        self.pre_logits = nn.Linear(dim, representation_size, dtype=dtype) if representation_size else None
        self.head = nn.Linear(representation_size or dim, num_classes, dtype=dtype)

    def forward(self, images):
        """images (B, H, W, C) -> logits (B, classes)"""
        maps = images.permute(0, 3, 1, 2)
        z = self.patch_embed(maps if self.stem is None else self.stem(maps)).flatten(2).transpose(1, 2)
        return self.classify(self.encode(self.embed(z)))

    def embed(self, patches):
        """Equation 1: [class token; patches] + positions. The mean-pooled model has no class token."""
        if self.cls_token is not None:
            patches = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        if self.pos_at == "stem":
            for positions in self.positions:
                patches = positions(patches)
        if self.registers is not None:  # arXiv 2309.16588: learned, without a position, discarded at the end
            patches = torch.cat([patches, self.registers.expand(len(patches), -1, -1)], dim=1)
        return patches

    def encode(self, z):
        """Positions may be added in every layer (Table 8), new ones or the same."""
        for i, block in enumerate(self.blocks):
            if self.pos_at != "stem":
                z = self.positions[i % len(self.positions)](z)
            z = block(z)
        return z

    def classify(self, z):
        """Equation 4, y = LN(z)_0 (or the mean over tokens), then the head."""
        y = self.norm(z if self.registers is None else z[:, : -self.registers.shape[1]])
        y = y.mean(1) if self.cls_token is None else y[:, 0]
        if self.pre_logits is not None:
            y = torch.tanh(self.pre_logits(y))
        return self.head(y)

    def layout(self):
        """vitnp name -> (torch parameters, join: their arrays to vitnp's array, split: the way back)"""
        table = {**_norm("norm", self.norm), **_dense("head", self.head)}
        for i, positions in enumerate(self.positions):
            table.update(_vectors(f"blocks.{i}." if self.pos_at == "layers" else "", positions))
        if self.stem is not None:
            table.update(self.stem.layout())
        if self.cls_token is not None:
            table["cls_token"] = ([self.cls_token], *_SAME)
        if self.registers is not None:
            table["reg_token"] = ([self.registers], *_SAME)
        if self.pre_logits is not None:
            table.update(_dense("pre_logits", self.pre_logits))
        table["patch_embed.weight"] = ([self.patch_embed.weight], *self._kernel())
        table["patch_embed.bias"] = ([self.patch_embed.bias], *_SAME)
        for i, block in enumerate(self.blocks):
            qkv = (block.q, block.k, block.v)
            table.update(_norm(f"blocks.{i}.norm1", block.norm1))
            table[f"blocks.{i}.attn.qkv.weight"] = ([part.weight for part in qkv], *_FUSED_WEIGHT)
            table[f"blocks.{i}.attn.qkv.bias"] = ([part.bias for part in qkv], *_FUSED_BIAS)
            table.update(_dense(f"blocks.{i}.attn.proj", block.proj))
            table.update({f"blocks.{i}.ls{j}.gamma": ([gamma], *_SAME) for j, gamma in enumerate(block.gammas, 1)})
            for letter, norm in zip("qk" if block.norms else "", block.norms, strict=True):
                table.update(_norm(f"blocks.{i}.attn.{letter}_norm", norm))
            if block.relative is not None:
                table.update(_vectors(f"blocks.{i}.attn.", block.relative))
            table.update(_norm(f"blocks.{i}.norm2", block.norm2))
            table.update(_dense(f"blocks.{i}.mlp.fc1", block.fc1))
            table.update(_dense(f"blocks.{i}.mlp.fc2", block.fc2))
        return table

    def _kernel(self):
        """(D, C, Ph, Pw) to rows in (row, column, channel) order, and back."""
        dim, channels = self.patch_embed.weight.shape[:2]
        return (
            lambda parts: parts[0].transpose(2, 3, 1, 0).reshape(-1, dim),
            lambda array: [array.reshape(*self.patch_size, channels, dim).transpose(3, 2, 0, 1)],
        )

    def load(self, parameters):
        """Copy vitnp's parameters in. Names and shapes must match exactly."""
        table = self.layout()
        if table.keys() != parameters.keys():
            raise ValueError(f"names that only one side has: {sorted(table.keys() ^ parameters.keys())}")
        for name, (tensors, _, split) in table.items():
            for tensor, part in zip(tensors, split(np.asarray(parameters[name])), strict=True):
                if tensor.shape != part.shape:
                    raise ValueError(f"{name} has shape {parameters[name].shape}, which does not fit")
                tensor.data.copy_(torch.from_numpy(np.array(part)))
        return self

    def arrays(self):
        """The parameters in vitnp's names and layouts (copies)."""
        return {
            name: np.array(join([_numpy(t) for t in tensors])) for name, (tensors, join, _) in self.layout().items()
        }

    def gradients(self):
        """The gradients that autograd left behind, in vitnp's names and layouts (copies)."""
        table = self.layout()
        return {name: np.array(join([_numpy(t.grad) for t in tensors])) for name, (tensors, join, _) in table.items()}

    def loss(self, images, labels, label_smoothing=0.0):
        """Mean cross-entropy of arrays: labels are integers (B,) or soft targets (B, classes)."""
        labels = torch.from_numpy(np.array(labels))
        labels = labels.to(self.dtype) if labels.is_floating_point() else labels.long()
        logits = self(images)
        return logits, F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def measure(self, images, labels, label_smoothing=0.0):
        """-> logits, loss, {name: gradient}, image gradient, as arrays"""
        self.zero_grad()
        x = torch.from_numpy(np.array(images)).to(self.dtype).requires_grad_()
        logits, loss = self.loss(x, labels, label_smoothing)
        loss.backward()
        return _numpy(logits), loss.item(), self.gradients(), _numpy(x.grad)

    def adamw(self, lr, weight_decay, betas=(0.9, 0.999), eps=1e-8):
        """torch.optim.AdamW, decaying the matrices called `weight` and nothing else."""
        decayed, plain = [], []
        for name, (tensors, _, _) in self.layout().items():
            (decayed if name.endswith(".weight") else plain).extend(tensors)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)

    def train_on(self, batches, rates, weight_decay):
        """One AdamW step for each learning rate, cycling over the batches -> the loss before each step"""
        optimizer = self.adamw(rates[0], weight_decay)
        losses = []
        for step, rate in enumerate(rates):
            images, labels = batches[step % len(batches)]
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            optimizer.zero_grad()
            _, loss = self.loss(torch.from_numpy(np.array(images)).to(self.dtype), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)


def adam_path(model, base, phase, rates, settings, stops):
    """AdamW under the gradients base * cos(t / 10 + phase), t = 1, 2, ... -> {stop: parameters after it}"""
    optimizer = model.adamw(rates[0], **settings)
    table, seen = model.layout(), {}
    for step, rate in enumerate(rates, start=1):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        for name, (tensors, _, split) in table.items():
            parts = split(base[name] * np.cos(0.1 * step + phase[name]))
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.grad = torch.from_numpy(np.array(part)).to(model.dtype)
        optimizer.step()
        if step in stops:
            seen[step] = model.arrays()
    return seen


def logits_by_another_road(model, images):
    """The reference's own witness: patches cut with unfold, nn.TransformerEncoderLayer for every block."""
    height, width = model.patch_size
    cut = images.unfold(1, height, height).unfold(2, width, width)  # (B, rows, columns, C, Ph, Pw)
    z = cut.flatten(3).flatten(1, 2) @ model.patch_embed.weight.flatten(1).T + model.patch_embed.bias
    z = model.embed(z)
    for block in model.blocks:
        z = _encoder_layer(block)(z)
    return model.classify(z)


def _encoder_layer(block):
    layer = nn.TransformerEncoderLayer(
        block.q.in_features,
        block.num_heads,
        block.fc1.out_features,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate=block.approximate),
        layer_norm_eps=block.norm1.eps,
        batch_first=True,
        norm_first=True,
        dtype=block.q.weight.dtype,
    )
    qkv = (block.q, block.k, block.v)
    layer.self_attn.in_proj_weight.data = torch.cat([part.weight.data for part in qkv])
    layer.self_attn.in_proj_bias.data = torch.cat([part.bias.data for part in qkv])
    layer.self_attn.out_proj.load_state_dict(block.proj.state_dict())
    for ours, theirs in [("norm1", "norm1"), ("norm2", "norm2"), ("fc1", "linear1"), ("fc2", "linear2")]:
        getattr(layer, theirs).load_state_dict(getattr(block, ours).state_dict())
    return layer


def hard_parameters(shapes, rng):
    """Random values under which no mistake can hide: gamma is not 1, and nothing is 0.

    shapes: {name: shape}. Multiples of 2**-12, so exact in float32 too and small in a compressed file.
    """

    def draw(name, shape):
        noise = rng.standard_normal(shape)
        if name.endswith("weight"):
            return noise * (2.0 if "qkv" in name else 1.0) / np.sqrt(shape[0])
        return 1 + 0.3 * noise if name.endswith("gamma") else 0.4 * noise

    return {name: np.round(draw(name, shape) * 4096) / 4096 for name, shape in shapes.items()}


def _numpy(tensor):
    return tensor.detach().numpy()


def _norm(name, norm):
    return {f"{name}.gamma": ([norm.weight], *_SAME), f"{name}.beta": ([norm.bias], *_SAME)}


def _vectors(prefix, positions):
    named = {"vectors": "pos_embed", "offsets": "pos_embed_offsets", "x": "pos_embed_columns", "y": "pos_embed_rows"}
    return {f"{prefix}{named[name]}": ([tensor], *_SAME) for name, tensor in positions.named_parameters()}


def _dense(name, linear):
    return {f"{name}.weight": ([linear.weight], *_TRANSPOSED), f"{name}.bias": ([linear.bias], *_SAME)}


# Each pair is (join, split): arrays of the torch parameters -> vitnp's array, and back.
_SAME = (lambda parts: parts[0], lambda array: [array])
_TRANSPOSED = (lambda parts: parts[0].T, lambda array: [array.T])
_FUSED_WEIGHT = (lambda parts: np.concatenate(parts).T, lambda array: np.split(array.T, 3))
_HWIO = (lambda parts: parts[0].transpose(2, 3, 1, 0), lambda array: [array.transpose(3, 2, 0, 1)])
_FUSED_BIAS = (np.concatenate, lambda array: np.split(array, 3))
