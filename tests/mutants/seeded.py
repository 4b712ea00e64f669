"""Mistakes, as patches of the real sources: each of them was made in some network written by hand.

    gradient    89  a backward that is not the derivative of its forward
    forward     26  forward and backward agree, and the network is not a Vision Transformer: no gradient check sees it
    optimizer   20  an update that is not Adam's or SGD's, an average that is another
    structural   4  right numbers once, by a pass that leaves traces
    costs        8  a summary that counts what is not there, or something twice
    masked      12  masked patch prediction that hides, credits or asks for something else than the paper's
    probe        8  a linear probe that is not the solution, or chooses its strength or its images unfairly

Where a mistake would be made in the plain formula and in its kernel alike, both are patched: comparing the two does not
help. Each patch replaces text that is in its file exactly once, so a change of the sources that makes one meaningless
does not go unnoticed.
"""

from __future__ import annotations

from typing import NamedTuple

from mutants.trial import Edit

ATTENTION = "vitnp/layers/attention.py"
AVERAGE = "vitnp/moving_average.py"
BLOCK = "vitnp/layers/block.py"
BOTTLENECK = "vitnp/layers/bottleneck.py"
CONTEXT = "vitnp/context.py"
CONV = "vitnp/layers/conv.py"
CPU = "vitnp/kernels/cpu.py"
CORRUPTION = "vitnp/layers/corruption.py"
DROPOUT = "vitnp/layers/dropout.py"
EMBEDDINGS = "vitnp/layers/embeddings.py"
FEW_SHOT = "vitnp/few_shot.py"
GELU = "vitnp/layers/gelu.py"
GROUP_NORM = "vitnp/layers/group_norm.py"
HEAD = "vitnp/layers/head.py"
LAYER_NORM = "vitnp/layers/layer_norm.py"
LAYER_SCALE = "vitnp/layers/layer_scale.py"
LINEAR = "vitnp/layers/linear.py"
LOSSES = "vitnp/losses.py"
MAX_POOL = "vitnp/layers/max_pool.py"
MASKED = "vitnp/masked.py"
OPTIM = "vitnp/optim.py"
OUTLINES = "vitnp/inspection/outlines.py"
PARALLEL = "vitnp/parallel.py"
PATCH_EMBED = "vitnp/layers/patch_embed.py"
POSITIONS = "vitnp/layers/positions.py"
RASTER = "vitnp/layers/raster_positions.py"
RELATIVE = "vitnp/layers/relative_positions.py"
STOCHASTIC_DEPTH = "vitnp/layers/stochastic_depth.py"
VIT = "vitnp/vit.py"
RELU = "vitnp/layers/relu.py"
SOFTMAX = "vitnp/layers/softmax.py"
WINDOWS = "vitnp/layers/windows.py"
SUMMARY = "vitnp/inspection/summary.py"


class Mutant(NamedTuple):
    """A mistake: its kind, the layer that has it (by the paths of a model, as "norm"), what it is, and the patch."""

    name: str
    kind: str
    layer: str
    mistake: str
    edits: tuple[Edit, ...]


def _mutant(name: str, kind: str, layer: str, mistake: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name, kind, layer, mistake, tuple(Edit(*edit) for edit in edits))


# the lines that the patches change
UNMIX = "array_module(dy).matmul(s.S.swapaxes(-1, -2), dy, out=dx)"
PLACES = "[:, : self.corrupted]"
INTACT = "[:, self.corrupted : 2 * self.corrupted]"
LN_DX = "dx = rstd * (dx_hat - dx_hat.mean(-1, keepdims=True) - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))"
LN_MEAN = "dx_ -= (dy_ @ mean_weights)[:, None]"
LN_VARIANCE = "dx_ -= np.multiply(x_hat_, (rows_ @ mean_weights)[:, None], out=term)"
GAMMA = 'ctx.add_row_sum(self, "gamma", dgamma_rows.reshape(-1, dim))'
WEIGHT = 'ctx.add_product(self, "weight", rows.T, drows)'
BIAS = 'ctx.add_row_sum(self, "bias", drows)'
DX_LINEAR = "array_module(dy).matmul(drows, self.weight.T, out=dx)"
ERF_SLOPE = "return x * cdf, cdf + x * pdf"
DU = "du = SQRT_2_OVER_PI * (1 + 3 * CUBIC * square)"
DU_CUBIC = "slope_ *= 6 * CUBIC * SQRT_2_OVER_PI"
DU_LINEAR = "slope_ += 2 * SQRT_2_OVER_PI  # 2 u'"
DSOFTMAX = "return p * (dp - (dp * p).sum(-1, keepdims=True))"
DSOFTMAX_SUMS = "sums = (dx_ @ ones)[:, None]"
DSOFTMAX_TERM = 'dx_ -= np.multiply(p_, sums, out=memory.scratch("term", p_.shape, like=dp))'
DHEADS = "dheads = self._by_head(self.proj.backward(dy, ctx))"
DV = "xp.matmul(s.weights.swapaxes(-1, -2), dheads, out=dv)"
DSCORES = "dscores = self.softmax.backward(self.dropout.backward(dweights, ctx), ctx)"
DQ = "xp.matmul(dscores, s.k, out=dq)"
DK = "xp.matmul(dscores.swapaxes(-1, -2), s.q, out=dk)"
SCALE = "dqkv[..., : 2 * D] *= self.scale"
Z = 'z = self._add("z", x, self._weigh(branch, 1, ctx), ctx)'
Y_BLOCK = 'return self._add("y", z, self._weigh(branch, 2, ctx), ctx)'
DMLP = "dbranch = self.mlp.backward(self._weigh_backward(dy, 2, ctx), ctx)"
DZ = 'dz = self._add("dz", dy, self.norm2.backward(dbranch, ctx), ctx)'
DX_BLOCK = 'dx = self._add("dx", dz, self.norm1.backward(dbranch, ctx), ctx)'
DPOS = 'ctx.add_row_sum(self, "pos_embed", dy[:, :stop].reshape(len(dy), -1))'
DCLS = 'ctx.add_row_sum(self, "cls_token", dy[:, 0])'
UNPATCHIFY = "grid.swapaxes(2, 3).reshape(B, H, W, -1)"
UNPATCHIFY_GRID = "grid = patches.reshape(B, H // P_h, W // P_w, P_h, P_w, -1)"
DLOGITS = "return loss, (mass * (exp / total) - targets) / B"
DROPOUT_BACKWARD = 'return self._apply(dy, ctx.saved(self).mask, "dx", ctx)'

POOLED_TOKEN = 'x[:, 0] if self.pool == "token"'
DMEAN_NORM = "self.norm.backward(dpooled, ctx)[:, None] / stop, 0"
POOLED_MEAN = "self.norm.forward(x, ctx).mean(1)"
SPLIT = "return self._by_head(qkv[..., :D]), self._by_head(qkv[..., D : 2 * D]), self._by_head(qkv[..., 2 * D :])"
UNBIASED = "(rows_ @ mean_weights)[:, None]"
ROOT = "root = array_module(v).sqrt(v)\n"
CORRECT_ROOT = "root *= 1 / math.sqrt(1 - beta2**t)\n"
ADD_EPS = "root += self.eps\n"
STEP_SIZE = "step *= self.lr / (1 - beta1**t)"
DECAY = "flat[first : min(part.stop, layout.decayed)] *= 1 - self.lr * self.weight_decay\n"
SUM_OF_GRADIENTS = "u *= self.momentum\n        u += g\n"
STEP = (
    "        self.optimizer.step(self.contexts[0], self._in_parts)\n        check_update(self.model, self._in_parts)\n"
)
TAKE_AVERAGE = "        if self.average is not None:\n            self.average.update(self._in_parts)\n"
RISE = "kept = min(self.decay, (1 + self.updates) / (10 + self.updates))"
UPDATE = "self._update(flat[part], gradients[part], *(vector[part] for vector in state), self.steps)"


_GRADIENT: tuple[tuple, ...] = (
    # layer norm: 11
    (
        "layer-norm-no-mean-term",
        "norm",
        "the way through the mean is forgotten",
        (LAYER_NORM, LN_DX, "dx = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))"),
        (CPU, LN_MEAN, "pass"),
    ),
    (
        "layer-norm-no-variance-term",
        "norm",
        "the way through the variance is forgotten",
        (LAYER_NORM, LN_DX, "dx = rstd * (dx_hat - dx_hat.mean(-1, keepdims=True))"),
        (CPU, LN_VARIANCE, "pass"),
    ),
    (
        "layer-norm-variance-term-sign",
        "norm",
        "the way through the variance has the wrong sign",
        (LAYER_NORM, LN_DX, LN_DX.replace("- x_hat", "+ x_hat")),
        (CPU, LN_VARIANCE, LN_VARIANCE.replace("-=", "+=")),
    ),
    (
        "layer-norm-no-gamma",
        "norm",
        "dx as if gamma were 1",
        (LAYER_NORM, "dx_hat = gamma * dy", "dx_hat = dy"),
        (CPU, "mean_weights = gamma / dim", "mean_weights = gamma**0 / dim"),
        (CPU, "np.multiply(dy_, gamma, out=dx_)", "dx_[...] = dy_"),
    ),
    (
        "layer-norm-no-rstd",
        "norm",
        "dx as if the deviation were 1",
        (LAYER_NORM, LN_DX, LN_DX.replace("rstd * ", "")),
        (CPU, "dx_ *= rstd_", "pass"),
    ),
    (
        "layer-norm-rstd-squared",
        "norm",
        "dx divides by the variance instead of the deviation",
        (LAYER_NORM, LN_DX, LN_DX.replace("rstd * ", "rstd * rstd * ")),
        (CPU, "dx_ *= rstd_", "dx_ *= rstd_ * rstd_"),
    ),
    (
        "layer-norm-mean-over-rows",
        "norm",
        "the mean is taken over the rows instead of the columns",
        (LAYER_NORM, LN_DX, LN_DX.replace("dx_hat.mean(-1, keepdims=True)", "dx_hat.mean(0, keepdims=True)")),
        (CPU, LN_MEAN, "dx_ -= dx_.mean(0)"),
    ),
    (
        "layer-norm-no-eps-in-backward",
        "norm",
        "backward takes 1/√var for 1/√(var + eps)",
        (LAYER_NORM, "x_hat=x_hat, rstd=rstd)", "x_hat=x_hat, rstd=(rstd**-2 - self.eps) ** -0.5)"),
    ),
    (
        "layer-norm-dgamma-without-x-hat",
        "norm",
        "dgamma sums dy as dbeta does",
        (LAYER_NORM, GAMMA, 'ctx.add_row_sum(self, "gamma", dy.reshape(-1, dim))'),
    ),
    (
        "layer-norm-dgamma-mean",
        "norm",
        "dgamma is the mean over the rows instead of the sum",
        (LAYER_NORM, GAMMA, GAMMA.replace("dim))", "dim) * (dim / dy.size))")),
    ),
    (
        "layer-norm-dbeta-of-gamma-dy",
        "norm",
        "dbeta sums gamma dy",
        (LAYER_NORM, 'ctx.add_row_sum(self, "beta", dy', 'ctx.add_row_sum(self, "beta", (self.gamma * dy)'),
    ),
    # linear: 7
    ("linear-bias-first-row", "head", "db is dy of the first row", (LINEAR, BIAS, BIAS.replace("drows", "drows[:1]"))),
    (
        "linear-bias-mean",
        "head",
        "db is the mean over the rows instead of the sum",
        (LINEAR, BIAS, BIAS.replace("drows", "drows / len(drows)")),
    ),
    (
        "linear-weight-mean",
        "head",
        "dW is divided by the number of rows",
        (LINEAR, WEIGHT, WEIGHT.replace("drows", "drows / len(drows)")),
    ),
    (
        "linear-weight-last-row",
        "head",
        "dW is that of the last row",
        (LINEAR, WEIGHT, WEIGHT.replace("rows.T, drows", "rows[-1:].T, drows[-1:]")),
    ),
    (
        "linear-dx-untransposed",
        "blocks.1.attn",
        "dx = dy W where W is square",
        (
            LINEAR,
            DX_LINEAR,
            DX_LINEAR.replace("self.weight.T", "self.weight if len(self.weight) == len(self.bias) else self.weight.T"),
        ),
    ),
    (
        "linear-weight-transposed",
        "blocks.1.attn",
        "dW = dyᵀ x where W is square",
        (
            LINEAR,
            WEIGHT,
            "square = len(self.weight) == len(self.bias)\n        "
            'ctx.add_product(self, "weight", *((drows.T, rows) if square else (rows.T, drows)))',
        ),
    ),
    (
        "linear-weight-float32",
        "head",
        "dW is computed in float32",
        (LINEAR, WEIGHT, WEIGHT.replace("rows.T, drows", 'rows.T.astype("float32"), drows.astype("float32")')),
    ),
    # GELU: 9
    ("gelu-erf-no-pdf-term", "blocks.1.mlp", "the slope is the cdf alone", (GELU, ERF_SLOPE, "return x * cdf, cdf")),
    (
        "gelu-erf-pdf-without-x",
        "blocks.1.mlp",
        "the slope has pdf instead of x pdf",
        (GELU, ERF_SLOPE, "return x * cdf, cdf + pdf"),
    ),
    (
        "gelu-erf-pdf-unnormalised",
        "blocks.1.mlp",
        "the pdf in the slope lacks 1/√(2π)",
        (GELU, ERF_SLOPE, "return x * cdf, cdf + x * pdf * math.sqrt(2 * math.pi)"),
    ),
    (
        "gelu-erf-slope-of-tanh",
        "blocks.1.mlp",
        "the exact form has the slope of the tanh form",
        (GELU, ERF_SLOPE, "return x * cdf, gelu_tanh.__wrapped__(x)[1]"),
    ),
    (
        "gelu-tanh-no-cubic-in-du",
        "blocks.1.mlp",
        "the slope forgets that u has a cubic term",
        (GELU, DU, "du = SQRT_2_OVER_PI"),
        (CPU, DU_CUBIC, "slope_ *= 0"),
    ),
    (
        "gelu-tanh-no-three-in-du",
        "blocks.1.mlp",
        "the derivative of x³ is x²",
        (GELU, DU, DU.replace("3 * ", "")),
        (CPU, DU_CUBIC, DU_CUBIC.replace("6", "2")),
    ),
    (
        "gelu-tanh-truncated-cubic",
        "blocks.1.mlp",
        "the slope has 0.0447 for 0.044715",
        (GELU, DU, DU.replace("CUBIC", "0.0447")),
        (CPU, DU_CUBIC, DU_CUBIC.replace("CUBIC", "0.0447")),
    ),
    (
        "gelu-tanh-truncated-root",
        "blocks.1.mlp",
        "the slope has 0.8 for √(2/π)",
        (GELU, DU, DU.replace("SQRT_2_OVER_PI", "0.8")),
        (CPU, DU_CUBIC, DU_CUBIC.replace("SQRT_2_OVER_PI", "0.8")),
        (CPU, DU_LINEAR, "slope_ += 2 * 0.8"),
    ),
    (
        "gelu-tanh-float32-root",
        "blocks.1.mlp",
        "the slope has √(2/π) to float32",
        (GELU, DU, DU.replace("SQRT_2_OVER_PI", "float(np.float32(SQRT_2_OVER_PI))")),
        (CPU, DU_CUBIC, DU_CUBIC.replace("SQRT_2_OVER_PI", "float(np.float32(SQRT_2_OVER_PI))")),
        (CPU, DU_LINEAR, "slope_ += 2 * float(np.float32(SQRT_2_OVER_PI))"),
    ),
    # attention and its softmax: 17
    (
        "softmax-no-sum",
        "blocks.1.attn",
        "the term of the sum is forgotten: dx = p dp",
        (SOFTMAX, DSOFTMAX, "return p * dp"),
        (CPU, DSOFTMAX_TERM, "pass"),
    ),
    (
        "softmax-diagonal-only",
        "blocks.1.attn",
        "only the diagonal of the Jacobian: dx = p (1 - p) dp",
        (SOFTMAX, DSOFTMAX, "return p * (1 - p) * dp"),
        (CPU, DSOFTMAX_TERM, "dx_ *= 1 - p_"),
    ),
    (
        "softmax-sum-sign",
        "blocks.1.attn",
        "the term of the sum has the wrong sign",
        (SOFTMAX, DSOFTMAX, DSOFTMAX.replace("dp - ", "dp + ")),
        (CPU, DSOFTMAX_TERM, DSOFTMAX_TERM.replace("-=", "+=")),
    ),
    (
        "softmax-sum-over-rows",
        "blocks.1.attn",
        "the sum is over the rows instead of the columns",
        (SOFTMAX, DSOFTMAX, "return p * (dp - (dp * p).reshape(-1, p.shape[-1]).sum(0))"),
        (CPU, DSOFTMAX_SUMS, "sums = dx_.sum(0)"),
    ),
    (
        "softmax-float32",
        "blocks.1.attn",
        "backward has p in float32",
        (
            SOFTMAX,
            "softmax_backward(dp, ctx.saved(self).p,",
            'softmax_backward(dp, ctx.saved(self).p.astype("float32"),',
        ),
    ),
    ("attention-no-scale-in-backward", "blocks.1.attn", "dq and dk lack 1/√K", (ATTENTION, SCALE, "pass")),
    ("attention-no-scale-in-dq", "blocks.1.attn", "dq lacks 1/√K", (ATTENTION, SCALE, SCALE.replace(": 2", "D : 2"))),
    ("attention-no-scale-in-dk", "blocks.1.attn", "dk lacks 1/√K", (ATTENTION, SCALE, SCALE.replace(": 2 * D", ":D"))),
    (
        "attention-scale-squared",
        "blocks.1.attn",
        "dq and dk have 1/K for 1/√K",
        (ATTENTION, SCALE, SCALE.replace("self.scale", "self.scale**2")),
    ),
    (
        "attention-dk-untransposed",
        "blocks.1.attn",
        "dk = dscores q, without the transpose",
        (ATTENTION, DK, "xp.matmul(dscores, s.q, out=dk)"),
    ),
    (
        "attention-dv-untransposed",
        "blocks.1.attn",
        "dv = weights dheads, without the transpose",
        (ATTENTION, DV, "xp.matmul(s.weights, dheads, out=dv)"),
    ),
    (
        "attention-dq-dk-swapped",
        "blocks.1.attn",
        "dq is written where dk belongs, and dk where dq does",
        (ATTENTION, DQ, DQ.replace("out=dq", "out=dk")),
        (ATTENTION, DK, DK.replace("out=dk", "out=dq")),
    ),
    (
        "attention-dq-of-q",
        "blocks.1.attn",
        "dq = dscores q instead of dscores k",
        (ATTENTION, DQ, "xp.matmul(dscores, s.q, out=dq)"),
    ),
    ("attention-no-dv", "blocks.1.attn", "the gradient of the values is forgotten", (ATTENTION, DV, "dv[...] = 0")),
    (
        "attention-dv-of-probs",
        "blocks.1.attn",
        "dv takes the probabilities before dropout",
        (ATTENTION, DV, DV.replace("s.weights", "s.probs")),
    ),
    (
        "attention-no-dropout-in-backward",
        "blocks.1.attn",
        "backward goes past the dropout of the weights",
        (ATTENTION, DSCORES, "dscores = self.softmax.backward(dweights, ctx)"),
    ),
    (
        "attention-heads-merged-wrongly",
        "blocks.1.attn",
        "heads are cut from the rows without the transpose",
        (ATTENTION, DHEADS, "dheads = self.proj.backward(dy, ctx).reshape(B, self.num_heads, N, -1)"),
    ),
    # residuals: 3
    (
        "block-no-skip-of-mlp",
        "blocks.1",
        "the skip beside the MLP is forgotten",
        (BLOCK, DZ, "dz = self.norm2.backward(dbranch, ctx)"),
    ),
    (
        "block-no-skip-of-attention",
        "blocks.1",
        "the skip beside attention is forgotten",
        (BLOCK, DX_BLOCK, "dx = self.norm1.backward(dbranch, ctx)"),
    ),
    (
        "block-skip-past-mlp",
        "blocks.1",
        "the skip beside attention takes dy instead of dz",
        (BLOCK, DX_BLOCK, DX_BLOCK.replace("dz", "dy")),
    ),
    # embeddings, patches, class token, pooling: 9
    (
        "embeddings-dpos-first-sample",
        "embeddings",
        "dpos is that of the first sample",
        (EMBEDDINGS, DPOS, DPOS.replace("-1))", "-1)[:1])")),
    ),
    (
        "embeddings-dpos-mean",
        "embeddings",
        "dpos is the mean over the batch instead of the sum",
        (EMBEDDINGS, DPOS, DPOS.replace("-1))", "-1) / len(dy))")),
    ),
    (
        "embeddings-dcls-of-all-tokens",
        "embeddings",
        "dcls sums over all tokens",
        (EMBEDDINGS, DCLS, DCLS.replace("dy[:, 0]", "dy.sum(1)")),
    ),
    (
        "embeddings-dcls-of-last-token",
        "embeddings",
        "dcls is that of the last token",
        (EMBEDDINGS, DCLS, DCLS.replace("0]", "-1]")),
    ),
    ("embeddings-no-dcls", "embeddings", "the class token has no gradient", (EMBEDDINGS, DCLS, "pass")),
    (
        "embeddings-dx-one-off",
        "embeddings",
        "dx loses the last token instead of the class token",
        (EMBEDDINGS, "return dy[:, self.first : stop]", "return dy[:, : stop - self.first]"),
    ),
    (
        "patches-not-put-back",
        "patch_embed",
        "dimages has patch after patch instead of row after row",
        (PATCH_EMBED, UNPATCHIFY, "grid.reshape(B, H, W, -1)"),
    ),
    (
        "patches-by-column",
        "patch_embed",
        "dimages counts the patches column by column",
        (PATCH_EMBED, UNPATCHIFY_GRID, UNPATCHIFY_GRID.replace("H // P_h, W // P_w", "W // P_w, H // P_h")),
    ),
    (
        "head-mean-without-n",
        "classifier",
        "each token gets the whole gradient of the mean",
        (HEAD, "dx[:, :stop] = dpooled[:, None] / stop", "dx[:, :stop] = dpooled[:, None]"),
    ),
    (
        "head-mean-norm-without-n",
        "classifier",
        "each token gets the whole gradient of the mean before the norm",
        (HEAD, DMEAN_NORM, "self.norm.backward(dpooled, ctx)[:, None], 0"),
    ),
    # loss: 4
    ("loss-not-divided-by-batch", "loss", "the gradient is that of the sum", (LOSSES, DLOGITS, DLOGITS[:-4])),
    (
        "loss-divided-by-classes",
        "loss",
        "the gradient is divided by the number of classes",
        (LOSSES, DLOGITS, DLOGITS[:-1] + "logits.shape[1]"),
    ),
    (
        "loss-hard-targets",
        "loss",
        "the gradient takes the most probable class for the target",
        (LOSSES, DLOGITS, DLOGITS.replace("- targets", "- (targets == targets.max(-1, keepdims=True))")),
    ),
    ("loss-sign", "loss", "the gradient has the wrong sign", (LOSSES, DLOGITS, DLOGITS.replace("/ B", "/ -B"))),
    # single elements: 2
    (
        "one-weight-off-by-a-hundredth",
        "blocks.1.attn",
        "one element of dW_qkv is 1 % too large",
        (
            LINEAR,
            WEIGHT,
            WEIGHT + '\n        if self.path.endswith("qkv"):\n'
            '            ctx._grad(self, "weight")[1, 2] += 0.01 * (rows[:, 1] @ drows[:, 2])',
        ),
    ),
    (
        "one-bias-with-the-wrong-sign",
        "blocks.1.mlp",
        "one element of the bias of fc1 has the wrong sign",
        (
            LINEAR,
            BIAS,
            BIAS + '\n        if self.path.endswith("fc1"):\n'
            '            ctx._grad(self, "bias")[1] -= 2 * drows[:, 1].sum()',
        ),
    ),
    # dropout: 2
    (
        "dropout-no-mask-in-backward",
        "blocks.1.mlp",
        "what was dropped has a gradient",
        (DROPOUT, DROPOUT_BACKWARD, "return dy"),
    ),
    (
        "dropout-unscaled-in-backward",
        "blocks.1.mlp",
        "backward lacks 1/(1 - rate)",
        (DROPOUT, DROPOUT_BACKWARD, DROPOUT_BACKWARD.replace("dy,", "dy * (1 - self.rate),")),
    ),
    # other architectures: 12
    (
        "relative-no-dq",
        "blocks.1.attn",
        "queries get no gradient from relative attention",
        (ATTENTION, "dq += self.relative.backward(dscores, ctx)", "self.relative.backward(dscores, ctx)"),
    ),
    (
        "raster-offset-turned-round-in-backward",
        "blocks.1.attn",
        "the embedding of an offset gets the gradient of the opposite one",
        (RASTER, "pos_embed_offsets=dreversed[::-1]", "pos_embed_offsets=dreversed"),
    ),
    (
        "relative-unscaled",
        "blocks.1.attn",
        "the bias is not divided by √K, but its gradient is",
        (ATTENTION, "self.relative.forward(q * self.scale, ctx)", "self.relative.forward(q, ctx)"),
    ),
    (
        "positions-2d-first-sample",
        "positions",
        "rows and columns get the gradient of one sample",
        (POSITIONS, "grid, half = dpos.sum(0)", "grid, half = dpos[0]"),
    ),
    (
        "positions-2d-mean",
        "positions",
        "a row gets the mean over its patches instead of the sum",
        (POSITIONS, "pos_embed_rows=grid[..., half:].sum(1)", "pos_embed_rows=grid[..., half:].mean(1)"),
    ),
    (
        "positions-shared-of-one-block",
        "positions",
        "positions in every layer get the gradient of the first block alone",
        (VIT, "sum(dinputs[1:], dinputs[0])", "dinputs[-1]"),
    ),
    (
        "layer-scale-no-gamma",
        "blocks.1.ls2",
        "dx as if gamma were 1",
        (LAYER_SCALE, "return xp.multiply(dy, self.gamma,", "return xp.multiply(dy, 1,"),
    ),
    (
        "layer-scale-dgamma-of-the-output",
        "blocks.1.ls2",
        "dgamma is Σ dy y instead of Σ dy x",
        (LAYER_SCALE, "rows = xp.multiply(dy, x,", "rows = xp.multiply(dy, x * self.gamma,"),
    ),
    (
        "qk-norm-passed-by",
        "blocks.1.attn",
        "the gradients of q and k pass their norms unchanged",
        (
            ATTENTION,
            "dq[...], dk[...] = self.q_norm.backward(dq, ctx), self.k_norm.backward(dk, ctx)",
            "self.q_norm.backward(dq, ctx), self.k_norm.backward(dk, ctx)",
        ),
    ),
    (
        "qk-norm-before-the-scale",
        "blocks.1.attn",
        "gamma and beta of the norms get gradients that 1/√K has not reached",
        (ATTENTION, "dqkv[..., : 2 * D] *= self.scale\n", "pass\n"),
        (ATTENTION, "# 1  qkv = x @ W_qkv + b\n        return", "dqkv[..., : 2 * D] *= self.scale\n        return"),
    ),
    (
        "branch-ends-passed-by",
        "blocks.1",
        "the gradient passes layer scale and stochastic depth unchanged",
        (BLOCK, "for layer in reversed(self._ends[which - 1]):", "for layer in []:"),
    ),
    (
        "registers-no-gradient",
        "embeddings",
        "registers have no gradient",
        (EMBEDDINGS, 'ctx.add_row_sum(self, "reg_token", dy[:, stop:].reshape(len(dy), -1))', "pass"),
    ),
    (
        "registers-gradient-in-the-mean",
        "classifier",
        "registers get a gradient from a mean that leaves them out",
        (
            HEAD,
            "dx[:, :stop], dx[:, stop:] = self.norm.backward(dx[:, :stop], ctx), 0",
            "dx[:, :stop], dx[:, stop:] = self.norm.backward(dx[:, :stop], ctx), dx[:, :1]",
        ),
    ),
)

_FORWARD: tuple[tuple, ...] = (
    (
        "attention-unscaled",
        "attention",
        "scores are not divided by √K",
        (ATTENTION, "1 / math.sqrt(dim // num_heads)", "1.0"),
    ),
    (
        "attention-scaled-by-width",
        "attention",
        "scores are divided by √D instead of √K",
        (ATTENTION, "1 / math.sqrt(dim // num_heads)", "1 / math.sqrt(dim)"),
    ),
    (
        "attention-qkv-by-head",
        "attention",
        "the columns of qkv are q, k, v of the first head, then of the second",
        (
            ATTENTION,
            SPLIT,
            "heads = qkv.reshape(*qkv.shape[:2], self.num_heads, 3, -1).swapaxes(1, 2)\n"
            "        return heads[..., 0, :], heads[..., 1, :], heads[..., 2, :]",
        ),
        (ATTENTION, SCALE, "dq *= self.scale\n        dk *= self.scale"),
    ),
    (
        "attention-softmax-over-queries",
        "attention",
        "softmax over the queries of a key instead of the keys of a query",
        (
            ATTENTION,
            "self.softmax.forward(scores, ctx)",
            "self.softmax.forward(scores.swapaxes(-1, -2), ctx).swapaxes(-1, -2)",
        ),
        (
            ATTENTION,
            DSCORES,
            "dweights = self.dropout.backward(dweights, ctx).swapaxes(-1, -2)\n"
            "        dscores = self.softmax.backward(dweights, ctx).swapaxes(-1, -2)",
        ),
    ),
    (
        "layer-norm-unbiased-variance",
        "layer norm",
        "the variance divides by D - 1",
        (
            LAYER_NORM,
            "(centred * centred).mean(-1, keepdims=True)",
            "(centred * centred).sum(-1, keepdims=True) / (x.shape[-1] - 1)",
        ),
        (
            LAYER_NORM,
            "(dx_hat * x_hat).mean(-1, keepdims=True)",
            "(dx_hat * x_hat).sum(-1, keepdims=True) / (dy.shape[-1] - 1)",
        ),
        (CPU, "variance = squares / dim", "variance = squares / (dim - 1)"),
        (CPU, UNBIASED, UNBIASED + " * (dim / (dim - 1))"),
    ),
    (
        "layer-norm-eps-times-ten",
        "layer norm",
        "eps is ten times too large",
        (LAYER_NORM, "self.eps = eps", "self.eps = 10 * eps"),
    ),
    (
        "layer-norm-eps-outside-the-root",
        "layer norm",
        "rstd = 1/(√var + eps)",
        (
            LAYER_NORM,
            "(centred * centred).mean(-1, keepdims=True) + eps)",
            "(centred * centred).mean(-1, keepdims=True)) + eps)",
        ),
        (LAYER_NORM, "rstd = 1 / array_module", "rstd = 1 / (array_module"),
        (
            LAYER_NORM,
            "x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))",
            "x_hat * (dx_hat * x_hat).mean(-1, keepdims=True) / (1 - 1e-6 * rstd))",
        ),
        (CPU, "np.sqrt(variance + eps)", "np.sqrt(variance) + eps"),
        (CPU, UNBIASED, UNBIASED + " / (1 - 1e-6 * rstd_)"),
    ),
    (
        "gelu-forms-swapped",
        "GELU",
        "the exact form where the tanh form is asked for, and the other way round",
        (GELU, 'if self.form == "tanh"', 'if self.form != "tanh"'),
    ),
    (
        "block-post-norm",
        "block",
        "norms stand after the sums instead of before the branches",
        (BLOCK, "self.attn.forward(self.norm1.forward(x, ctx), ctx)", "self.attn.forward(x, ctx)"),
        (BLOCK, Z, 'z = self.norm1.forward(self._add("z", x, branch, ctx), ctx)'),
        (BLOCK, "self.mlp.forward(self.norm2.forward(z, ctx), ctx)", "self.mlp.forward(z, ctx)"),
        (BLOCK, Y_BLOCK, 'return self.norm2.forward(self._add("y", z, branch, ctx), ctx)'),
        (BLOCK, DMLP, "dy = self.norm2.backward(dy, ctx)\n        dbranch = self.mlp.backward(dy, ctx)"),
        (BLOCK, DZ, 'dz = self.norm1.backward(self._add("dz", dy, dbranch, ctx), ctx)'),
        (BLOCK, DX_BLOCK, 'dx = self._add("dx", dz, dbranch, ctx)'),
    ),
    (
        "head-norm-after-the-mean",
        "head",
        "mean pooling comes before the final norm",
        (HEAD, POOLED_MEAN, "self.norm.forward(x.mean(1), ctx)"),
        (
            HEAD,
            "dx[:, :stop] = dpooled[:, None] / stop",
            "dx[:, :stop] = self.norm.backward(dpooled, ctx)[:, None] / stop",
        ),
        (HEAD, "return self.norm.backward(dx, ctx)", "return dx"),
    ),
    (
        "head-norm-before-the-mean",
        "head",
        "the norm that comes after the mean comes before it",
        (HEAD, 'if self.pool == "mean":', 'if self.pool != "token":'),
        (HEAD, 'if self.pool == "mean-norm":', "if False:"),
    ),
    (
        "head-reads-the-last-token",
        "head",
        "the classifier reads the last patch instead of the class token",
        (HEAD, POOLED_TOKEN, POOLED_TOKEN.replace("[:, 0]", "[:, -1]")),
        (HEAD, "dx[:, 0] = ", "dx[:, -1] = "),
    ),
    (
        "patches-by-channel",
        "patches",
        "a patch flattens channel by channel",
        (
            PATCH_EMBED,
            "return grid.swapaxes(2, 3).reshape(B, -1, P_h * P_w * C)",
            "return grid.transpose(0, 1, 3, 5, 2, 4).reshape(B, -1, P_h * P_w * C)",
        ),
        (PATCH_EMBED, UNPATCHIFY_GRID, "grid = patches.reshape(B, H // P_h, W // P_w, -1, P_h, P_w)"),
        (PATCH_EMBED, UNPATCHIFY, "grid.transpose(0, 1, 4, 2, 5, 3).reshape(B, H, W, -1)"),
    ),
    (
        "embeddings-no-position-of-the-token",
        "embeddings",
        "the class token has no position",
        (EMBEDDINGS, "y[:, :stop] += self.pos_embed", "y[:, self.first : stop] += self.pos_embed[:, self.first :]"),
        (
            EMBEDDINGS,
            DPOS,
            "dpos = dy.copy()\n        dpos[:, : self.first] = 0\n        " + DPOS.replace("dy[", "dpos["),
        ),
    ),
    (
        "loss-smoothing-over-the-others",
        "loss",
        "smoothing gives nothing to the right class",
        (
            LOSSES,
            "return targets * (1 - label_smoothing) + label_smoothing / classes",
            "return targets * (1 - label_smoothing) + (1 - targets) * label_smoothing / (classes - 1)",
        ),
    ),
    (
        "relative-offset-turned-round",
        "attention",
        "offsets are those from the query to the key",
        (RELATIVE, "place[:, None] - place", "place - place[:, None]"),
    ),
    (
        "positions-2d-row-first",
        "positions",
        "the vector of the row comes before that of the column",
        (POSITIONS, "grid[..., :half] += columns", "grid[..., half:] += columns"),
        (POSITIONS, "grid[..., half:] += rows[:, None]", "grid[..., :half] += rows[:, None]"),
        (
            POSITIONS,
            "pos_embed_columns=grid[..., :half].sum(0), pos_embed_rows=grid[..., half:].sum(1)",
            "pos_embed_columns=grid[..., half:].sum(0), pos_embed_rows=grid[..., :half].sum(1)",
        ),
    ),
    (
        "registers-in-the-mean",
        "head",
        "the mean is that of the registers, too",
        (HEAD, "x = x[:, : x.shape[1] - self.registers]", "pass"),
        (HEAD, "stop = tokens.shape[1] - self.registers", "stop = tokens.shape[1]"),
    ),
    (
        "stochastic-depth-by-element",
        "block",
        "elements are dropped instead of samples",
        (STOCHASTIC_DEPTH, "return (len(x), *(1 for _ in x.shape[1:]))", "return tuple(x.shape)"),
    ),
    (
        "stochastic-depth-in-the-first-block",
        "model",
        "the first block is dropped as well",
        (VIT, "c.stochastic_depth * i / max(c.depth - 1, 1)", "c.stochastic_depth * (i + 1) / c.depth"),
    ),
    (
        "layer-scale-on-the-skip",
        "block",
        "gamma scales the sum instead of the branch",
        (BLOCK, Z, 'z = self._weigh(self._add("z", x, branch, ctx), 1, ctx)'),
        (BLOCK, Y_BLOCK, 'return self._weigh(self._add("y", z, branch, ctx), 2, ctx)'),
        (
            BLOCK,
            "dbranch = self.mlp.backward(self._weigh_backward(dy, 2, ctx), ctx)",
            "dy = self._weigh_backward(dy, 2, ctx).copy()\n        dbranch = self.mlp.backward(dy, ctx)",
        ),
        (BLOCK, "self._weigh_backward(dz, 1, ctx)", "(dz := self._weigh_backward(dz, 1, ctx).copy())"),
    ),
)

_OPTIMIZER: tuple[tuple, ...] = (
    (
        "adam-eps-inside-the-root",
        "eps is added to v̂ instead of its root",
        (OPTIM, ROOT, "root = array_module(v).sqrt(v + self.eps * (1 - beta2**t))\n"),
        (OPTIM, ADD_EPS, "pass\n"),
    ),
    (
        "adam-eps-before-the-correction",
        "eps is added to √v instead of √v̂",
        (OPTIM, ROOT, ROOT + "        root += self.eps\n"),
        (OPTIM, CORRECT_ROOT + "        " + ADD_EPS, CORRECT_ROOT),
    ),
    ("adam-no-correction-of-m", "m is not divided by 1 - β₁ᵗ", (OPTIM, STEP_SIZE, "step *= self.lr")),
    ("adam-no-correction-of-v", "v is not divided by 1 - β₂ᵗ", (OPTIM, CORRECT_ROOT, "pass\n")),
    (
        "adam-steps-one-ahead",
        "the corrections are those of step t + 1",
        (OPTIM, CORRECT_ROOT, CORRECT_ROOT.replace("**t", "**(t + 1)")),
        (OPTIM, STEP_SIZE, STEP_SIZE.replace("**t", "**(t + 1)")),
    ),
    ("adam-m-sums", "m adds g instead of (1 - β₁) g", (OPTIM, "m += (1 - beta1) * g", "m += g")),
    (
        "adam-betas-swapped",
        "β₁ and β₂ change places",
        (OPTIM, "beta1, beta2 = self.betas", "beta2, beta1 = self.betas"),
    ),
    (
        "adam-decay-after-the-step",
        "decay acts on the parameters after the step",
        (OPTIM, "if self.weight_decay:\n                    " + DECAY, "pass\n"),
        (OPTIM, UPDATE, UPDATE + "\n                " + DECAY),
    ),
    (
        "adam-decay-in-the-gradient",
        "decay is added to the gradient, as L2 regularisation is",
        (
            OPTIM,
            DECAY,
            "decayed = slice(first, min(part.stop, layout.decayed))\n"
            "                    gradients = gradients.copy()\n"
            "                    gradients[decayed] += self.weight_decay * flat[decayed]\n",
        ),
    ),
    (
        "adam-decay-of-everything",
        "biases, norms, class token and positions decay too",
        (OPTIM, DECAY, DECAY.replace("min(part.stop, layout.decayed)", "part.stop")),
    ),
    (
        "adam-float32-means",
        "m and v are float32 whatever the parameters are",
        (OPTIM, "model.layout.zeros(like=model.flat)", 'model.layout.zeros(model.flat.astype("f4"))'),
    ),
)

_SGD: tuple[tuple, ...] = (
    ("sgd-momentum-forgets", "the sum is of the last gradient alone", (OPTIM, SUM_OF_GRADIENTS, "u[...] = g\n")),
    (
        "sgd-momentum-dampened",
        "the sum adds (1 - μ) g instead of g",
        (OPTIM, SUM_OF_GRADIENTS, SUM_OF_GRADIENTS.replace("+= g", "+= (1 - self.momentum) * g")),
    ),
    (
        "sgd-rate-in-the-sum",
        "each gradient keeps the rate of its own step",
        (OPTIM, SUM_OF_GRADIENTS, SUM_OF_GRADIENTS.replace("+= g", "+= self.lr * g")),
        (OPTIM, "p -= self.lr * u", "p -= u"),
    ),
    (
        "sgd-looks-ahead",
        "the step is along g + μ u, as Nesterov's",
        (OPTIM, "p -= self.lr * u", "p -= self.lr * (g + self.momentum * u)"),
    ),
    (
        "average-of-stale-weights",
        "the average takes the parameters from before the step",
        (PARALLEL, STEP + TAKE_AVERAGE, TAKE_AVERAGE + STEP),
    ),
    (
        "average-decay-turned-round",
        "what is new counts d, what is old 1 - d",
        (AVERAGE, "(1 - kept) * (p[part] - a[part])", "kept * (p[part] - a[part])"),
    ),
    ("average-never-warms-up", "d is the decay from the first step on", (AVERAGE, RISE, "kept = self.decay")),
    (
        "average-counts-late",
        "d is that of the update before",
        (AVERAGE, RISE, RISE.replace("self.updates", "(self.updates - 1)")),
    ),
    ("average-is-the-model", "the average has the model's own memory", (AVERAGE, "copy.deepcopy(model)", "model")),
)

_STRUCTURAL: tuple[tuple, ...] = (
    (
        "backward-writes-into-the-record",
        "GELU",
        "backward multiplies the saved slope in place",
        (GELU, 'dx = ctx.lend(self, "dx", dy.shape, like=dy)', "dx = ctx.saved(self).slope"),
    ),
    (
        "forward-writes-into-its-input",
        "dropout",
        "dropout multiplies what it was given in place",
        (DROPOUT, "out=ctx.empty(self, name, x.shape, like=x)", "out=x"),
    ),
    (
        "gradients-outlive-the-step",
        "context",
        "zero_grad clears nothing: steps add up",
        (CONTEXT, "            array.fill(0)\n        self._written.clear()\n", "            array.view()\n"),
    ),
    (
        "mask-drawn-again",
        "dropout",
        "backward draws a mask of its own",
        (
            DROPOUT,
            DROPOUT_BACKWARD,
            "kept = array_module(dy).random.default_rng().random(dy.shape) >= self.rate\n"
            "        return dy * kept / (1 - self.rate)",
        ),
    ),
)

FLOPS = "self.flops += 2 * math.prod(shape) * a.shape[-1]"
OWN_FLOPS = "self.flops[layer] += found - self._within"
OWNER_BYTES = "self.kept[layer] += owner.nbytes"
COPY_OR_VIEW = "self.xp.empty(new, self.dtype) if strides is None else self._view(new, strides)"

_COSTS: tuple[tuple, ...] = (
    (
        "flops-are-multiply-adds",
        "a multiplication and its addition are one",
        (OUTLINES, FLOPS, "self.flops += math.prod(shape) * a.shape[-1]"),
    ),
    (
        "flops-of-one-head",
        "of many products at a time one is counted",
        (OUTLINES, FLOPS, "self.flops += 2 * math.prod(shape[-2:]) * a.shape[-1]"),
    ),
    (
        "flops-of-the-layers-within",
        "a layer's operations are counted in the layers around it too",
        (SUMMARY, OWN_FLOPS, "self.flops[layer] += found"),
    ),
    (
        "saved-by-each-that-saves",
        "what two layers save counts twice",
        (SUMMARY, "self._seen[id(owner)] = owner\n", "pass\n"),
    ),
    (
        "saved-bytes-of-a-view",
        "a view counts as its own elements, not as the memory that it keeps alive",
        (SUMMARY, OWNER_BYTES, "self.kept[layer] += tensor.nbytes"),
    ),
    (
        "saved-parameters",
        "parameters that a layer saves count as memory of the pass",
        (SUMMARY, "{id(owner): owner for owner in owners}", "{}"),
    ),
    (
        "saved-without-copies",
        "a reshape is a view wherever it is asked for",
        (OUTLINES, COPY_OR_VIEW, "self._view(new, _contiguous(new))"),
    ),
    (
        "blocks-folded-by-name",
        "blocks are shown as one whatever they hold",
        (SUMMARY, "_place(layer.path)[2], *layer[1:])", "_place(layer.path)[2])"),
    ),
)

UNIT = "stem.stages.0.1"
DW_HAT = "dw = (dw_hat - dw_hat.mean(0) - w_hat * (dw_hat * w_hat).mean(0) * (s / divisor)) / s"
PUT_BACK = "self._put_back(drows, w_hat, dx[part], ctx)"
GROUP_MEANS = "self._group_mean(self.gamma * a, dplaces), "
BRANCHES = "dx, dshortcut = back(self.branch, dtotal, ctx), back(self.shortcut, dtotal, ctx)"

_HYBRID_GRADIENT: tuple[tuple, ...] = (
    (
        "conv-dw-without-the-deviation",
        f"{UNIT}.conv3",
        "the standard deviation of the weights is a constant",
        (CONV, DW_HAT, "dw = (dw_hat - dw_hat.mean(0)) / s"),
    ),
    (
        "conv-dw-without-the-mean",
        f"{UNIT}.conv3",
        "the mean of the weights is a constant",
        (CONV, DW_HAT, DW_HAT.replace("dw_hat - dw_hat.mean(0)", "dw_hat")),
    ),
    (
        "conv-dw-of-the-standardised-weights",
        f"{UNIT}.conv3",
        "dw is that of the standardised weights",
        (CONV, "weight=dw.reshape", "weight=dw_hat.reshape"),
    ),
    (
        "conv-dw-as-if-epsilon-were-in-the-root",
        f"{UNIT}.conv3",
        "the last term is layer norm's",
        (CONV, DW_HAT, DW_HAT.replace(" * (s / divisor)", "")),
    ),
    (
        "conv-dx-of-raw-weights",
        f"{UNIT}.conv3",
        "dx goes through the weights as they are stored",
        (CONV, PUT_BACK, "self._put_back(drows, self.weight.reshape(w_hat.shape), dx[part], ctx)"),
    ),
    (
        "conv-windows-overwrite",
        f"{UNIT}.conv2",
        "of overlapping windows the last one's gradient stays",
        (CONV, "place += by_place", "place[...] = by_place"),
    ),
    (
        "group-norm-mean-without-gamma",
        f"{UNIT}.norm3",
        "the mean of ĝ forgets gamma",
        (GROUP_NORM, GROUP_MEANS, "self._group_mean(a, dplaces), "),
    ),
    (
        "group-norm-constant-variance",
        f"{UNIT}.norm3",
        "the variance is a constant",
        (GROUP_NORM, "xp.multiply(x_hat, -rstd * mean_gx, out=dx)", "dx.fill(0)"),
    ),
    (
        "group-norm-dgamma-of-one-image",
        f"{UNIT}.norm3",
        "dgamma is that of the first image",
        (GROUP_NORM, "gamma=b.sum((0, 1))", "gamma=b[0, 0]"),
    ),
    (
        "max-pool-windows-overwrite",
        "stem.root.norm",
        "of overlapping windows the last one's gradient stays",
        (MAX_POOL, "place += dy * (which == i)", "place[...] = dy * (which == i)"),
    ),
    (
        "relu-passes-everything",
        f"{UNIT}.norm3",
        "backward is the identity",
        (RELU, "_where_positive(dy, ctx.saved(self).y, ", "_where_positive(dy, 1 + ctx.saved(self).y, "),
    ),
    (
        "unit-shortcut-around-the-relu",
        "stem.stages.0.0.norm3",
        "the gradient of the shortcut does not come through the ReLU behind the sum",
        (BOTTLENECK, BRANCHES, BRANCHES.replace("back(self.shortcut, dtotal", "back(self.shortcut, dy")),
    ),
)

_HYBRID_FORWARD: tuple[tuple, ...] = (
    (
        "border-before",
        "stem.root",
        "the odd place of a border is before the image, as in PyTorch's symmetric padding",
        (WINDOWS, "return lacking // 2, lacking - lacking // 2", "return lacking - lacking // 2, lacking // 2"),
    ),
    ("conv-epsilon-of-timm", "stem.root.conv", "epsilon is another", (CONV, "EPS = 1e-5", "EPS = 1e-4")),
    (
        "group-norm-epsilon-of-pytorch",
        "stem.root.norm",
        "epsilon is PyTorch's",
        (GROUP_NORM, "eps: float = 1e-6", "eps: float = 1e-5"),
    ),
    (
        "max-pool-last-of-equal",
        "stem.root.pool",
        "of equal numbers the last is taken",
        (MAX_POOL, "(place.real > y.real)", "(place.real >= y.real)"),
    ),
    (
        "max-pool-border-of-zeros",
        "stem.root.pool",
        "zeros stand around the image, and are larger than what is negative",
        (MAX_POOL, "-math.inf, ctx", "0.0, ctx"),
    ),
    (
        "unit-stride-in-the-first-convolution",
        "stem.stages.1.0",
        "the stride is in the 1 x 1 convolution, as in the first ResNet",
        (BOTTLENECK, "StdConv(width, width, 3, stride, **options)", "StdConv(width, width, 3, 1, **options)"),
        (BOTTLENECK, "StdConv(c_in, width, **options)", "StdConv(c_in, width, 1, stride, **options)"),
    ),
)

_MASKED: tuple[tuple, ...] = (
    (
        "replacement-gets-no-gradient",
        "corruption",
        "a patch that stands in for another gets nothing from there",
        (CORRUPTION, UNMIX, "array_module(dy).multiply(dy, s.S.diagonal(0, 1, 2)[:, :, None], out=dx)"),
    ),
    (
        "corruption-not-transposed",
        "corruption",
        "the gradient goes where embeddings came from, not back",
        (CORRUPTION, UNMIX, UNMIX.replace("s.S.swapaxes(-1, -2)", "s.S")),
    ),
    (
        "masked-patch-keeps-its-gradient",
        "corruption",
        "the gradient passes [mask] by",
        (CORRUPTION, f"return {UNMIX}", f"return {UNMIX} + s.m[:, :, None] * dy"),
    ),
    (
        "mask-token-learns-from-all-that-moved",
        "corruption",
        "[mask] takes the gradients of replaced patches too",
        (CORRUPTION, "s.m.reshape(1, -1)", "(1 - s.S.diagonal(0, 1, 2)).reshape(1, -1)"),
    ),
    (
        "mask-token-kept-fixed",
        "corruption",
        "[mask] has no gradient",
        (CORRUPTION, 'ctx.add_product(self, "mask_token", s.m', 'ctx.add_product(self, "mask_token", 0 * s.m'),
    ),
    (
        "replaced-by-itself",
        "corruption",
        "the other patch may be the same one",
        (CORRUPTION, "own + 1 + step % (n - 1)", "own + step % n"),
    ),
    (
        "corruption-mixes-images",
        "corruption",
        "the other patch is that of the next image",
        (CORRUPTION, "y = xp.matmul(S, x,", "y = xp.matmul(S, xp.roll(x, 1, axis=0),"),
    ),
    (
        "corruption-of-any-patch",
        "corruption",
        "80 % of all patches are hidden",
        (CORRUPTION, "masked = corrupted & (kind", "masked = (kind"),
    ),
    (
        "asks-for-the-patch-before",
        "model",
        "the class token is counted as a patch",
        (MASKED, "[rows, columns - self.embeddings.first]", "[rows, columns - 1]"),
    ),
    ("reads-what-was-not-hidden", "model", "the tokens read are the intact ones", (CORRUPTION, PLACES, INTACT)),
    (
        "loss-summed-over-patches",
        "model",
        "a step divides by the images, not by the patches",
        (PARALLEL, "batch_size * self.model.answers", "batch_size"),
    ),
    (
        "colours-backwards",
        "model",
        "blue is the most significant channel",
        (MASKED, "np.arange(C - 1, -1, -1)", "np.arange(C)"),
    ),
)

_PROBE: tuple[tuple, ...] = (
    ("probe-targets-0-and-1", "probe", "other classes are 0 instead of −1", (FEW_SHOT, "1.0, -1.0)", "1.0, 0.0)")),
    (
        "probe-not-centred",
        "probe",
        "the mean stays in the features",
        (FEW_SHOT, "(features - self.mean) / self.std", "features / self.std"),
    ),
    (
        "probe-ridge-of-one-feature",
        "probe",
        "the bias is as expensive as a weight of 1",
        (FEW_SHOT, "CONSTANT**2", "1"),
    ),
    (
        "probe-bias-free",
        "probe",
        "the bias is not held back",
        (FEW_SHOT, " * (self._constants / (self._constants + strength))", ""),
    ),
    (
        "probe-strength-squared",
        "probe",
        "strength is taken for its root",
        (FEW_SHOT, "self._s + strength)", "self._s + strength * strength)"),
    ),
    (
        "probe-weakest-of-equals",
        "probe",
        "of equals the weakest is chosen",
        (FEW_SHOT, "0.0), strength))", "0.0), -strength))"),
    ),
    (
        "probe-chooses-by-training",
        "probe",
        "the strength is that of the best fit",
        (FEW_SHOT, "accuracy(*validation, strength)", "accuracy(features, labels, strength)"),
    ),
    ("shots-not-nested", "probe", "ten shots have none of the five", (FEW_SHOT, "[:shots]", "[-shots:]")),
)

MUTANTS = (
    *(_mutant(name, "gradient", *rest) for name, *rest in (*_GRADIENT, *_HYBRID_GRADIENT)),
    *(_mutant(name, "forward", *rest) for name, *rest in (*_FORWARD, *_HYBRID_FORWARD)),
    *(_mutant(name, "optimizer", "optimizer", *rest) for name, *rest in (*_OPTIMIZER, *_SGD)),
    *(_mutant(name, "structural", *rest) for name, *rest in _STRUCTURAL),
    *(_mutant(name, "costs", "summary", *rest) for name, *rest in _COSTS),
    *(_mutant(name, "masked", *rest) for name, *rest in _MASKED),
    *(_mutant(name, "probe", *rest) for name, *rest in _PROBE),
)
