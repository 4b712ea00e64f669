"""ShardedStep: one training step of a batch cut into shards, each on a thread of its own.

NumPy lets go of Python's lock while it computes, so threads run at the same time; each shard has a Context of its own,
so they share nothing but the parameters, which a pass only reads. One shard on one core with one BLAS thread keeps its
arrays in that core's cache, which several BLAS threads in turn on the same arrays do not.

    loss = Σ_shards loss_s,   loss_s divided by the size of the whole batch
    gradient = Σ_shards gradient_s, added in the order of the shards, so that a step repeats bit for bit
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.config import ViTConfig
from vitnp.context import Context, StreamingContext
from vitnp.cores import usable_cores
from vitnp.layers import GroupNorm, LayerNorm
from vitnp.losses import softmax_cross_entropy
from vitnp.moving_average import MovingAverage
from vitnp.nonfinite import check_update, check_variances
from vitnp.optim import Optimizer, clip_global_norm
from vitnp.vit import VisionTransformer

SAVED = 96 << 20  # bytes of a shard, in no cache anyway: small networks pass in one, and large ones lose 5 % of a step


class ShardedStep:
    """A training step: forward, loss, backward, clipping and the optimizer, on all cores.

    Args:
        model, optimizer: what to train, and how.
        shards: how many parts a batch is cut into, one thread each; `usable_cores()` unless said
            (one on a GPU). Results repeat bit for bit at a fixed number, and agree to rounding between numbers.
        micro_batch: at most so many samples of a shard pass through the network at a time, the others after them,
            whose gradients add up (gradient accumulation): any batch trains in the memory of a micro-batch. On a CPU,
            unless said, as many as keep no more than `SAVED` bytes for their backward.
        clip_norm: the largest norm of the whole gradient; None for no clipping.
        label_smoothing: as in `softmax_cross_entropy`.
        rng: seed of the dropout masks.
        average: of the same model, updated after each step.
        head_only: train the last linear layer alone. What comes before it is then as in an evaluation: without dropout,
            nothing of it is kept, and no backward goes through it. Wants an optimizer without weight decay.

    Attributes:
        contexts: of the shards; the first holds the whole gradient after a step.
        correct: how many rows of logits of the last batch, one a sample unless the model has more, were right, a scalar
            on the model's device.
        norm: of the last step's whole gradient before clipping, a scalar on the model's device.
    """

    def __init__(
        self,
        model: VisionTransformer,
        optimizer: Optimizer,
        shards: int | None = None,
        micro_batch: int | None = None,
        clip_norm: float | None = None,
        label_smoothing: float = 0.0,
        rng: int = 0,
        average: MovingAverage | None = None,
        head_only: bool = False,
    ) -> None:
        if shards is None:
            shards = usable_cores() if array_module(model.flat) is np else 1
        for name, value in (("shards", shards), ("micro_batch", micro_batch), ("clip_norm", clip_norm)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if optimizer.model is not model:
            raise ValueError("the optimizer was made for another model: give ShardedStep the model it was made with")
        if average is not None and average.model is not model:
            raise ValueError("the average is of another model: give ShardedStep the model it was made with")
        if head_only and (optimizer.weight_decay or model.config.representation_size is not None):
            raise ValueError(
                f"head_only with weight_decay {optimizer.weight_decay} and representation_size "
                f"{model.config.representation_size}; expected 0, as decay moves all weights, and None: use vitnp.adapt"
            )
        if micro_batch is None and array_module(model.flat) is np:
            micro_batch = max(1, SAVED // saved_bytes(model))
        self.model, self.optimizer, self.shards, self.micro_batch = model, optimizer, shards, micro_batch
        self.average, self.head_only = average, head_only
        self.clip_norm, self.label_smoothing = math.inf if clip_norm is None else clip_norm, label_smoothing
        self.contexts = [Context(train=True, rng=rng, input_grad=False) for _ in range(shards)]
        self._before: dict[Context, Context] = {}  # for what is not trained, of each shard
        self.correct: Any = 0
        self.norm: Any = 0.0
        self._norms = [layer for layer in model.layers() if isinstance(layer, LayerNorm | GroupNorm)]
        self._blas = blas_controller()
        self._threads = ThreadPoolExecutor(shards, thread_name_prefix="vitnp-shard")

    def step(self, images: Array, labels: Any) -> Any:
        """Train on one batch; return the mean loss before the step, a scalar on the model's device.

        images (B, H, W, C) are floats; labels as in `softmax_cross_entropy`, whose errors this raises too.
        FloatingPointError where the loss is not finite, the gradient's norm or the variance in a layer norm; then no
        parameter has changed. So it is where the update has made a parameter NaN or infinity, which then stays so. (On
        a GPU none of this is looked at, which would make it wait: there `norm` says so afterwards.)
        `correct` is then the number of samples whose class the network had right.
        """
        loss = self.gradients(images, labels)
        if array_module(self.model.flat) is np and not np.isfinite(loss):  # its gradient may be finite
            raise FloatingPointError(f"the loss is {loss}: lower the learning rate, or look for bad input")
        with np.errstate(over="ignore", invalid="ignore"):  # it raises instead
            self.norm = clip_global_norm(self._flat_grad(self.contexts[0]), self.clip_norm)
        self.optimizer.step(self.contexts[0], self._in_parts)
        check_update(self.model, self._in_parts)
        if self.average is not None:
            self.average.update(self._in_parts)
        return loss

    def gradients(self, images: Array, labels: Any) -> Any:
        """Return the mean loss, and leave the gradient of the whole batch in `contexts[0]`; no parameter changes."""
        loss, self.correct, used = self._on_shards(images, labels)
        total, *others = (self._flat_grad(ctx) for ctx in self.contexts[:used])

        def add(start: int, end: int) -> None:
            for other in others:
                total[start:end] += other[start:end]

        if others:
            self._in_parts(add, total.size)
        return loss

    def _train(self, ctx: Context, images: Array, labels: Any, batch_size: int) -> tuple[Any, Any]:
        logits = self.model.forward(images, ctx)
        check_variances(self._norms, ctx)
        targets, rows = self.model.targets(labels, ctx), batch_size * self.model.answers
        loss, dlogits = softmax_cross_entropy(logits, targets, self.label_smoothing, rows)
        self.model.backward(dlogits, ctx)
        return loss, _count_correct(logits, targets)

    def _train_head(self, ctx: Context, images: Array, labels: Any, batch_size: int) -> tuple[Any, Any]:
        head, before = self.model.classifier.head, self._before.setdefault(ctx, StreamingContext())
        features = self.model.features(images, before)
        ctx.begin()
        logits = head.forward(features, ctx)
        loss, dlogits = softmax_cross_entropy(logits, labels, self.label_smoothing, batch_size)
        head.backward(dlogits, ctx)
        return loss, _count_correct(logits, labels)

    def _on_shards(self, images: Array, labels: Any) -> tuple[Any, Any, int]:
        """Return the sums, in the order of the shards, of what `_train` finds, and how many shards there were."""
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images came with {len(labels)} labels")
        if len(images) == 0:
            raise ValueError("a batch of 0 images has no loss: give at least one")
        bounds = [len(images) * i // self.shards for i in range(self.shards + 1)]
        shards = [(first, end) for first, end in pairwise(bounds) if first < end]
        train = self._train_head if self.head_only else self._train

        def run(ctx: Context, first: int, end: int) -> list[tuple[Any, Any]]:
            size, results = _even(end - first, self.micro_batch or end - first), []
            ctx.zero_grad()
            ctx.step = self.optimizer.steps
            for row in range(first, end, size):
                part, ctx.first_row = slice(row, min(row + size, end)), row
                results.append(train(ctx, images[part], labels[part], len(images)))
            return results

        with one_at_a_time, self._blas.limit(limits=1, user_api="blas"):
            used = self.contexts[: len(shards)]
            results = [result for found in self._on_threads(run, used, *zip(*shards, strict=True)) for result in found]
        losses, correct = zip(*results, strict=True)
        return sum(losses[1:], losses[0]), sum(correct[1:], correct[0]), len(shards)

    def _on_threads(self, work: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """Return what `map(work, *arguments)` does, each call on a thread; MemoryError where no more can be started.

        For a GPU the caller's own thread gives the orders: which GPU and which stream is chosen thread by thread.
        """
        jobs: list[Future] = []

        def quietly(*args: Any) -> Any:
            # What overflows shows in loss, norm and parameters, which are looked at; no need to warn as well.
            with np.errstate(over="ignore", invalid="ignore"):
                return work(*args)

        if array_module(self.model.flat) is not np:
            return [quietly(*args) for args in zip(*arguments, strict=True)]
        try:
            for args in zip(*arguments, strict=True):
                jobs.append(self._threads.submit(quietly, *args))
        except RuntimeError as error:  # from the threading module
            raise MemoryError(f"{self.shards} shards want as many threads ({error}): take fewer") from error
        finally:
            wait(jobs)  # all of them, even if one fails: none may go on with memory that is used again
        return [job.result() for job in jobs]

    def _in_parts(self, work: Callable[[int, int], None], size: int) -> None:
        """Call work(start, end) for one part of range(size) a shard, each on its thread."""
        bounds = [size * i // self.shards for i in range(self.shards + 1)]
        self._on_threads(work, bounds[:-1], bounds[1:])

    def _flat_grad(self, ctx: Context) -> Array:
        return ctx.flat_grad(self.model.layout, like=self.model.flat)


def _even(total: int, most: int) -> int:
    """Return the size of the parts when `total` is cut into as few of at most `most` as there can be, all alike."""
    return -(-total // -(-total // most))


def saved_bytes(model: VisionTransformer) -> int:
    """Return how much memory a pass keeps of one sample, in the blocks and a stem's units.

    Of each token these are both norms' x̂ and y, q, k, v, the heads, the block's output and its gradient, D numbers
    each; the MLP's hidden layer and GELU's slope, M each; and its row of every head's probabilities. Norms of q and k
    add their x̂ and y, layer scale what it is given, and dropout and stochastic depth a mask, an output and a gradient,
    the mask of the latter being one number. Of each place of a stem's maps they are every norm's x̂ and every ReLU's y.
    """
    c = model.config
    numbers = 10 * c.dim + 2 * c.mlp_dim + c.num_heads * c.num_tokens
    numbers += 4 * c.dim * c.qk_norm + 2 * c.dim * (c.layer_scale is not None)
    numbers += 3 * (2 * c.dim + c.mlp_dim) * (c.dropout > 0)
    numbers += 3 * c.num_heads * c.num_tokens * (c.attention_dropout > 0)
    in_dropped = 4 * c.dim * (c.depth - 1) * (c.stochastic_depth > 0)  # the first block never is
    in_stem = 0 if c.stem_blocks is None else _kept_by_stem(c)
    itemsize: int = model.flat.itemsize
    kept: int = c.num_tokens * (c.depth * numbers + in_dropped) + in_stem
    return kept * itemsize


def _kept_by_stem(config: ViTConfig) -> int:
    """Return how many numbers a stem keeps of an image, to a few per cent: of the root and of each stage's units."""
    places, width = math.prod(config.image_size) / 4, 64 * config.stem_width
    kept = 2 * width * places
    for stage, units in enumerate(config.stem_blocks):
        places, width = places / 4, width * (2 if stage else 1)
        kept += places * width * (units * (2 + 2 + 8) + 4 + (3 if stage else 0))  # the first unit begins in larger maps
    return int(kept)


def _count_correct(logits: Array, labels: Any) -> Any:
    """Return how many rows of logits are largest where the label is, or where the soft label is largest."""
    xp = array_module(logits)
    labels = xp.asarray(labels)
    return (logits.argmax(-1) == (labels.argmax(-1) if labels.ndim == 2 else labels)).sum()


@functools.cache
def blas_controller() -> Any:
    """Return the controller of BLAS's threads: looking for the libraries takes longer than a small model's step may."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


# BLAS has one number of threads for the whole process. A step uses every core, so steps of several models lose nothing
# by taking turns; and side by side each would restore a number that another had set.
one_at_a_time = threading.Lock()
