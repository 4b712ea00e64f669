"""SGD with momentum and Adam, each on a model's one vector of parameters.

Both first decay weights, apart from the gradient (Loshchilov and Hutter, arXiv 1711.05101). At step t, for every
parameter p with gradient g,

    p ← p − lr · λ p                         decay, for weights only: never biases, norms, class token or positions

SGD with momentum (Polyak, 1964), the rate outside of the sum, as in PyTorch and in the original, so that a schedule
acts at once:

    u ← μ u + g                              the sum of all gradients, that of i steps ago times μⁱ
    p ← p − lr · u

PyTorch's own `weight_decay` of SGD is another, λ p added to g: the momentum makes that a decay of λ / (1 − μ).

Adam (Kingma and Ba, arXiv 1412.6980):

    m ← β₁ m + (1 − β₁) g                    running mean of g
    v ← β₂ v + (1 − β₂) g²                   running mean of g²
    p ← p − lr · m̂ / (√v̂ + ε)               m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)

m and v start at zero, so after t steps they hold 1 − βᵗ of the weight that a mean has: the division makes up for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.vit import VisionTransformer


class Optimizer:
    """What SGD and Adam share: the decay, and the way through the vector; `_update` is the rule of each.

    `settings` names the attributes that say how it trains, `state` its vectors of the model's layout, which start at
    zero: together they are what a checkpoint holds.
    """

    settings: tuple[str, ...]
    state: tuple[str, ...]
    _update: Callable[..., None]  # of parameters, gradients and state, all of one part of the vectors, and t

    def __init__(self, model: VisionTransformer, lr: float, weight_decay: float) -> None:
        if not isinstance(model, VisionTransformer):
            trains = f"{type(self).__name__} trains a VisionTransformer"
            raise TypeError(f"{trains}, whose parameters are one vector; this is {model!r}")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr is {lr}; it must be above 0")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0, and finite")
        self.model, self.lr, self.weight_decay = model, float(lr), float(weight_decay)
        self.steps = 0
        for name in self.state:
            setattr(self, name, model.layout.zeros(like=model.flat))

    def step(self, ctx: Context, in_parts: Callable[[Callable[[int, int], None], int], Any] | None = None) -> None:
        """Update every parameter by the gradients in `ctx`, which stay as they are.

        No element depends on another, so threads may share the work: `in_parts(work, size)` is to call work(start, end)
        for parts that make up range(size).

        Raises ValueError where `ctx` has seen no backward of this optimizer's model.
        """
        if not ctx.has_gradients(self.model.layout):
            raise ValueError("this Context holds no gradients of the optimizer's model: backward ran on another model?")
        self.steps += 1
        flat, layout = self.model.flat, self.model.layout
        gradients, state = ctx.flat_grad(layout, like=flat), [getattr(self, name) for name in self.state]
        # On a CPU all passes run over a block while it is in the cache; on a GPU a block is everything.
        block = 1 << 15 if array_module(flat) is np else layout.size

        def update(start: int, end: int) -> None:
            for first in range(start, end, block):
                part = slice(first, min(first + block, end))
                if self.weight_decay:
                    flat[first : min(part.stop, layout.decayed)] *= 1 - self.lr * self.weight_decay
                self._update(flat[part], gradients[part], *(vector[part] for vector in state), self.steps)

        (in_parts or in_one_part)(update, layout.size)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum and decoupled weight decay, on a model's one vector of parameters.

    Args:
        model: its parameters are updated in place.
        lr: step size; assign to `optimizer.lr` to follow a schedule.
        momentum, weight_decay: μ, 0 for none, and λ.

    Attributes:
        steps: the number of steps taken.
        u: the sum of gradients, a vector of the model's layout.

    Raises ValueError for rates outside their ranges, TypeError for what is no VisionTransformer.
    """

    settings = ("lr", "momentum", "weight_decay", "steps")
    state = ("u",)
    u: Array

    def __init__(self, model: VisionTransformer, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(model, lr, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and below 1")
        self.momentum = float(momentum)

    def _update(self, p: Array, g: Array, u: Array, t: int) -> None:
        u *= self.momentum
        u += g
        p -= self.lr * u


class Adam(Optimizer):
    """Adam with decoupled weight decay, on a model's one vector of parameters.

    Args:
        model: its parameters are updated in place.
        lr: step size; assign to `optimizer.lr` to follow a schedule.
        betas, eps, weight_decay: β₁ and β₂, ε, λ.

    Attributes:
        steps: t, the number of steps taken.
        m, v: the running means, vectors of the model's layout.

    Raises ValueError for rates outside their ranges, TypeError for what is no VisionTransformer.
    """

    settings = ("lr", "betas", "eps", "weight_decay", "steps")
    state = ("m", "v")
    m: Array
    v: Array

    def __init__(
        self,
        model: VisionTransformer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(model, lr, weight_decay)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; they must be two, both at least 0 and below 1")
        if not eps > 0:
            raise ValueError(f"eps is {eps}; it must be above 0")
        self.betas, self.eps = (float(betas[0]), float(betas[1])), float(eps)

    def _update(self, p: Array, g: Array, m: Array, v: Array, t: int) -> None:
        beta1, beta2 = self.betas
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        # m̂ / (√v̂ + ε) = m / (√v / √(1 − β₂ᵗ) + ε) / (1 − β₁ᵗ)
        root = array_module(v).sqrt(v)
        root *= 1 / math.sqrt(1 - beta2**t)
        root += self.eps
        step = m / root
        step *= self.lr / (1 - beta1**t)
        p -= step


def in_one_part(work: Callable[[int, int], None], size: int) -> None:
    """Do all the work at once: how an optimizer goes through its vector unless threads share it."""
    work(0, size)


def clip_global_norm(gradients: Array, max_norm: float) -> Array:
    """Scale a vector of gradients in place so that its Euclidean norm is at most `max_norm`; return the norm before.

    (Pascanu et al., arXiv 1211.5063, algorithm 1.) The norm is a scalar on the gradients' device; with an infinite
    `max_norm` nothing is scaled. Raises ValueError unless max_norm is above 0, and FloatingPointError on a CPU where
    the norm is not finite, as scaling would turn an infinity into NaN, or where nothing is scaled and its square is
    not, for an optimizer squares gradients as well.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; it must be above 0")
    xp = array_module(gradients)
    norm = xp.sqrt(gradients @ gradients)
    if xp is np and not np.isfinite(norm):
        largest = xp.abs(gradients).max()
        if max_norm < math.inf and np.isfinite(largest):  # then squares overflow, which after scaling they do not
            norm = largest * xp.sqrt(xp.square(gradients / largest).sum())
        if not np.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}: lower the learning rate, or look for bad input")
    if max_norm < math.inf:
        gradients *= max_norm / xp.maximum(norm, max_norm)
    return norm
