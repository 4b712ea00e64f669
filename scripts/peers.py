"""The same Vision Transformer in PyTorch and in JAX, each written as its users would to be fast, for benchmark.py.

Both take vitnp's parameters and batches and do the same work: tanh GELU, cross-entropy, the same Adam, float32. A side
is a pair of functions without arguments: one takes a training step and returns its loss, one returns logits.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 1e-3
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}


class Side(NamedTuple):
    """One way to run a workload."""

    train: Callable[[], float]
    infer: Callable[[], np.ndarray]


def tf32_allowed():
    """Whether a GPU may round the factors of float32 products to TF32: CuPy's own setting holds for all sides."""
    return os.environ.get("CUPY_TF32") == "1"


def cut(images, config):
    """images (B, H, W, C) -> patches (B, n, P_h P_w C), an argument of either library."""
    (H, W), (P_h, P_w), B = config.image_size, config.patch_size, len(images)
    grid = images.reshape(B, H // P_h, P_h, W // P_w, P_w, config.channels)
    return grid.swapaxes(2, 3).reshape(B, config.num_patches, -1)


def torch_side(model, images, labels, device, compiled=False):
    """PyTorch: fused attention, fused Adam, and with `compiled` torch.compile around the network and its loss."""
    import torch
    import torch.nn.functional as F

    config = model.config
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU: install a PyTorch that is built for CUDA, or leave it out of --compare")
    torch.set_float32_matmul_precision("high" if tf32_allowed() else "highest")
    p = {
        # F.linear wants weights as (d_out, d_in)
        name: torch.tensor(array.T.copy() if name.endswith(".weight") else array, device=device, requires_grad=True)
        for name, array in model.parameters().items()
    }
    optimizer = torch.optim.Adam(p.values(), LEARNING_RATE, fused=True)
    x, y = torch.tensor(images, device=device), torch.tensor(labels, device=device)

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (config.dim,), p[f"{name}.gamma"], p[f"{name}.beta"], config.layer_norm_eps)

    def forward(images):
        x = linear(cut(images, config), "patch_embed")
        if config.pool == "token":
            x = torch.cat([p["cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + p["pos_embed"]
        for i in range(config.depth):
            name = f"blocks.{i}"
            qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
            q, k, v = qkv.unflatten(-1, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + linear(heads, f"{name}.attn.proj")
            hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"), approximate="tanh")
            x = x + linear(hidden, f"{name}.mlp.fc2")
        pooled = norm(x[:, 0], "norm") if config.pool == "token" else norm(x, "norm").mean(1)
        return linear(pooled, "head")

    def loss_of(images, labels):
        return F.cross_entropy(forward(images), labels)

    if compiled:
        forward_, loss_of_ = torch.compile(forward), torch.compile(loss_of)
    else:
        forward_, loss_of_ = forward, loss_of

    def train():
        optimizer.zero_grad()
        loss = loss_of_(x, y)
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer():
        with torch.inference_mode():
            return forward_(x).cpu().numpy()

    return Side(train, infer)


def jax_side(model, images, labels, device):
    """JAX: one jitted function for a whole step, its old state given up for the new one."""
    import jax
    import jax.numpy as jnp

    config = model.config
    try:
        place = jax.devices("cpu" if device == "cpu" else "gpu")[0]
    except RuntimeError as error:
        raise ValueError("jax finds no GPU: pip install 'jax[cuda13]', or leave it out of --compare") from error
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32_allowed() else "float32")
    x, y = jax.device_put(images, place), jax.device_put(labels, place)
    # parameters, both means of Adam, and the number of steps
    p = {name: jax.device_put(array, place) for name, array in model.parameters().items()}
    state = [p, *(jax.tree.map(jnp.zeros_like, p) for _ in range(2)), jnp.zeros((), "float32")]

    def linear(p, x, name):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def norm(p, x, name):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + config.layer_norm_eps) * p[f"{name}.gamma"] + p[f"{name}.beta"]

    def forward(p, images):
        x = linear(p, cut(images, config), "patch_embed")
        if config.pool == "token":
            x = jnp.concatenate([jnp.broadcast_to(p["cls_token"], (len(x), 1, config.dim)), x], 1)
        x = x + p["pos_embed"]
        for i in range(config.depth):
            name = f"blocks.{i}"
            qkv = linear(p, norm(p, x, f"{name}.norm1"), f"{name}.attn.qkv")
            qkv = qkv.reshape(*x.shape[:2], 3, config.num_heads, -1)
            heads = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
            x = x + linear(p, heads.reshape(x.shape), f"{name}.attn.proj")
            hidden = jax.nn.gelu(linear(p, norm(p, x, f"{name}.norm2"), f"{name}.mlp.fc1"), approximate=True)
            x = x + linear(p, hidden, f"{name}.mlp.fc2")
        pooled = norm(p, x[:, 0], "norm") if config.pool == "token" else norm(p, x, "norm").mean(1)
        return linear(p, pooled, "head")

    def loss_of(p, images, labels):
        return -jnp.take_along_axis(jax.nn.log_softmax(forward(p, images)), labels[:, None], 1).mean()

    def step(p, m, v, t, images, labels):
        loss, g = jax.value_and_grad(loss_of)(p, images, labels)
        t, b1, b2 = t + 1, ADAM["b1"], ADAM["b2"]
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)

        def moved(p, m, v):
            return p - LEARNING_RATE * (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + ADAM["eps"])

        return jax.tree.map(moved, p, m, v), m, v, t, loss

    jitted_step, jitted_forward = jax.jit(step, donate_argnums=(0, 1, 2)), jax.jit(forward)

    def train():
        *state[:], loss = jitted_step(*state, x, y)
        return float(loss)

    return Side(train, lambda: np.asarray(jitted_forward(state[0], x)))
