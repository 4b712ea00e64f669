"""Mistakes in linear layers: beside vitnp/layers/linear.py.

Right       y = x W + b,   dx = dy Wᵀ,   dW = xᵀ dy,   db = Σ dy over the rows
"""

from __future__ import annotations

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.layers import Linear
from vitnp.museum.exhibit import Exhibit


class WrongParameters(Linear):
    """A linear layer whose dx is right; each mistake below has gradients of W and b of its own."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., d_out) -> dx (..., d_in)."""
        dweight, dbias = self._gradients(ctx.saved(self).rows, dy)
        ctx.add_grad(self, weight=dweight, bias=dbias)
        return dy @ self.weight.T

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        """x as rows (R, d_in), dy (..., d_out) -> dW (d_in, d_out), db (d_out,)."""
        drows = dy.reshape(len(rows), -1)
        return rows.T @ drows, drows.sum(0)


class MeanOverRows(WrongParameters):
    """Linear with the mean over the rows where their sum belongs."""

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        drows = dy.reshape(len(rows), -1)
        return rows.T @ drows / len(rows), drows.mean(0)


class FirstSample(WrongParameters):
    """Linear with the gradients of the first sample."""

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        x = rows.reshape(*dy.shape[:-1], -1)
        return super()._gradients(x[0].reshape(-1, rows.shape[-1]), dy[0])


class OutputForInput(WrongParameters):
    """Linear that has kept its output for backward, and not its input."""

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        return super()._gradients(rows @ self.weight + self.bias, dy)


class WeightGradientTransposed(WrongParameters):
    """Linear with dyᵀ x for xᵀ dy."""

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        dweight, dbias = super()._gradients(rows, dy)
        return dweight.T, dbias


class BiasMeanOverTokens(WrongParameters):
    """Linear whose bias gradient is summed over the samples, and averaged over the tokens."""

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        per_token = dy.sum(0).reshape(-1, dy.shape[-1])
        return super()._gradients(rows, dy)[0], per_token.mean(0)


class BiasSumOverFeatures(WrongParameters):
    """Linear whose bias gradient is one number, the sum over the features too."""

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        dweight, dbias = super()._gradients(rows, dy)
        return dweight, dbias * 0 + dbias.sum()


class InFloat32(WrongParameters):
    """Linear that forms its gradients in float32, whatever the model's dtype."""

    def _gradients(self, rows: Array, dy: Array) -> tuple[Array, Array]:
        return super()._gradients(rows.astype("float32"), dy.astype("float32"))


class WeightTransposed(Linear):
    """Linear that goes back through W as it went forward."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., d_out) -> dx (..., d_in), for d_in = d_out."""
        super().backward(dy, ctx)  # dW and db are right
        return dy @ self.weight


EXHIBITS = (
    Exhibit(
        name="linear-weight-transposed",
        title="Backward multiplies by W where Wᵀ belongs",
        wrong="dx = dy W",
        why="Only a square W lets it pass, as attention's output projection is; with any other the shapes do not fit.",
        right="dx = dy Wᵀ",
        first="blocks.1.attn.qkv",
        layer=WeightTransposed,
        replaces=Linear,
        path="attn.proj",
    ),
    Exhibit(
        name="linear-gradient-transposed",
        title="The gradient of a square weight is transposed",
        wrong="dW = dyᵀ x",
        why="In attention's output projection. The loss still falls, for the biases and all other weights are right.",
        right="dW = xᵀ dy",
        first="blocks.1.attn.proj.weight",
        layer=WeightGradientTransposed,
        replaces=Linear,
        path="attn.proj",
    ),
    Exhibit(
        name="linear-output-for-input",
        title="The layer has kept its output for backward, and not its input",
        wrong="dW = yᵀ dy",
        why="In attention's output projection, whose input and output have one shape.",
        right="dW = xᵀ dy",
        first="blocks.1.attn.proj.weight",
        layer=OutputForInput,
        replaces=Linear,
        path="attn.proj",
    ),
    Exhibit(
        name="linear-mean-for-sum",
        title="Gradients are averaged over the rows, not summed",
        wrong="dW = xᵀ dy / rows,   db = mean dy",
        why="The loss is a mean already: dy holds the 1/B. Layers with tokens shrink more than those without.",
        right="dW = xᵀ dy,   db = Σ dy",
        first="head",
        layer=MeanOverRows,
        replaces=Linear,
    ),
    Exhibit(
        name="linear-first-sample",
        title="Only the first sample of a batch teaches the linear layers",
        wrong="dW = x[0]ᵀ dy[0],   db = Σ dy[0]",
        why="Written for one image. A check with a batch of one passes to the last digit.",
        right="dW = Σ_b x[b]ᵀ dy[b],   db = Σ dy",
        first="head",
        layer=FirstSample,
        replaces=Linear,
    ),
    Exhibit(
        name="linear-bias-token-mean",
        title="The gradient of a bias is not summed over the tokens",
        wrong="db = dy.sum(0).mean(0)",
        why="Right for (batch, features). With tokens in between sum(0) has one row each, and a mean makes it fit.",
        right="db = dy.sum((0, 1)): over every axis but the last",
        first="blocks.1.mlp.fc2.bias",
        layer=BiasMeanOverTokens,
        replaces=Linear,
    ),
    Exhibit(
        name="linear-bias-feature-sum",
        title="The gradient of a bias is one number for all features",
        wrong="db = Σ dy over rows and features",
        why="Broadcasting hides the lost axis. For the head that number is 0: the rows of p − t sum to it.",
        right="db = Σ dy over the rows",
        first="head.bias",
        layer=BiasSumOverFeatures,
        replaces=Linear,
    ),
    Exhibit(
        name="linear-in-float32",
        title="A cast to float32 within backward",
        wrong="dW = (x in float32)ᵀ (dy in float32)",
        why="Training in float32 is the same. But no check can now be closer than 1e-7, and there small mistakes hide.",
        right="dW = xᵀ dy, in the dtype of the parameters",
        first="head",
        layer=InFloat32,
        replaces=Linear,
    ),
)
