import math

import numpy as np
import pytest
from helpers import both_gradients, copies, error, handwritten_gradients, normal, randomize, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import Attention, LayerNorm

D, H, K, N, B = 6, 2, 3, 9, 5


def attention(dim=D, heads=H, seed=0, scale=1.0, **options):
    layer = randomize(Attention(dim, heads, dtype="float64", **options), seed)
    layer.qkv.weight[...] *= scale
    return layer


def one_query_at_a_time(layer, x):
    """Equations 5 to 8 of the paper with loops: -> y (B, N, D), probs (B, H, N, N)"""
    batch, tokens, dim = x.shape
    size = dim // layer.num_heads
    y, probs = np.empty(x.shape), np.empty((batch, layer.num_heads, tokens, tokens))
    for b in range(batch):
        heads = np.empty((tokens, dim))
        for h in range(layer.num_heads):
            columns = [slice(part * dim + h * size, part * dim + (h + 1) * size) for part in range(3)]
            q, k, v = (x[b] @ layer.qkv.weight[:, c] + layer.qkv.bias[c] for c in columns)
            for i in range(tokens):
                weights = np.exp([q[i] @ k[j] / math.sqrt(size) for j in range(tokens)])
                probs[b, h, i] = weights / weights.sum()
                heads[i, h * size : (h + 1) * size] = sum(probs[b, h, i, j] * v[j] for j in range(tokens))
        y[b] = heads @ layer.proj.weight + layer.proj.bias
    return y, probs


def forward(layer, x):
    return layer.forward(x, vitnp.Context()).copy()


@pytest.mark.parametrize(("dim", "heads"), [(6, 2), (6, 3), (6, 1), (6, 6)])
def test_output_is_that_of_the_equations(dim, heads):
    layer, x = attention(dim, heads), normal((B, N, dim), 1)
    assert error(forward(layer, x), one_query_at_a_time(layer, x)[0]) < 1e-14


def test_probabilities_are_saved():
    layer, x, ctx = attention(), normal((B, N, D), 1), vitnp.Context(record=True)
    layer.forward(x, ctx)
    assert error(ctx.saved(layer).probs, one_query_at_a_time(layer, x)[1]) < 1e-14


def test_q_k_and_v_are_saved_by_head():
    layer, x, ctx = attention(), normal((B, N, D), 1), vitnp.Context(record=True)
    layer.forward(x, ctx)
    qkv = (x @ layer.qkv.weight + layer.qkv.bias).reshape(B, N, 3, H, K)
    saved = ctx.saved(layer)
    for part, found in enumerate((saved.q, saved.k, saved.v)):
        assert error(found, qkv[:, :, part].swapaxes(1, 2)) < 1e-14


@pytest.mark.parametrize("shape", [(1, N, D), (B, 1, D), (B, N, D)], ids=str)
def test_every_gradient_is_the_derivative(shape):
    assert worst_error(*both_gradients(attention(), normal(shape, 1))) < 1e-12


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_every_gradient_is_the_derivative_for_any_number_of_heads(heads):
    assert worst_error(*both_gradients(attention(heads=heads), normal((3, 4, D), 1))) < 1e-12


def test_every_gradient_is_the_derivative_with_dropout():
    assert worst_error(*both_gradients(attention(dropout=0.4), normal((B, N, D), 1))) < 1e-12


def test_gradients_where_the_softmax_is_nearly_saturated():
    layer, x = attention(scale=5), normal((3, 5, D), 1)
    assert one_query_at_a_time(layer, x)[1].max() > 0.999  # or the claim would be empty
    assert worst_error(*both_gradients(layer, x)) < 1e-11


def test_gradcheck_passes_on_every_coordinate():
    report = vitnp.gradcheck(attention(dropout=0.4), normal((B, N, D), 1), mode="full", tolerance=1e-12)
    report.raise_if_failed()


def test_key_bias_has_no_gradient():
    # it adds the same to all scores of a query, and softmax does not see that
    found = handwritten_gradients(attention(), normal((B, N, D), 1), normal((B, N, D), 2))["qkv.bias"]
    assert abs(found[D : 2 * D]).max() < 1e-15 * abs(found).max() * N


def normed(dim=D, heads=H, **options):
    """An attention with norms of q and k."""
    norms = {name: LayerNorm(dim // heads, eps=0.1, dtype="float64") for name in ("q_norm", "k_norm")}
    return attention(dim, heads, **norms, **options)


def test_q_and_k_of_every_head_are_normed_over_their_columns_and_v_is_not():
    layer, x, ctx = normed(), normal((B, N, D), 1), vitnp.Context(record=True)
    layer.forward(x, ctx)
    saved, qkv = ctx.saved(layer), (x @ layer.qkv.weight + layer.qkv.bias).reshape(B, N, 3, H, K)
    for part, (found, norm) in enumerate(((saved.q, layer.q_norm), (saved.k, layer.k_norm))):
        a = qkv[:, :, part].swapaxes(1, 2)
        deviation = np.sqrt(a.var(-1, keepdims=True) + 0.1)
        assert error(found, norm.gamma * (a - a.mean(-1, keepdims=True)) / deviation + norm.beta) < 1e-14
    assert error(saved.v, qkv[:, :, 2].swapaxes(1, 2)) < 1e-14
    scores = saved.q @ saved.k.swapaxes(-1, -2) / math.sqrt(K)
    assert error(saved.probs, np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)) < 1e-14


@pytest.mark.parametrize("heads", [1, 2])
def test_every_gradient_is_the_derivative_with_norms_of_q_and_k(heads):
    layer = normed(heads=heads, dropout=0.4)
    assert worst_error(*both_gradients(layer, normal((3, 4, D), 1))) < 1e-12


def test_gradcheck_passes_on_every_coordinate_with_norms_of_q_and_k():
    vitnp.gradcheck(normed(), normal((3, 5, D), 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_beta_of_the_keys_norm_has_no_gradient():
    # as with the keys' bias: it adds the same to all scores of a query
    found = handwritten_gradients(normed(), normal((B, N, D), 1), normal((B, N, D), 2))
    assert abs(found["k_norm.beta"]).max() < 1e-14 * abs(found["q_norm.beta"]).max() * N


def test_dropout_acts_on_the_weights_that_multiply_v():
    layer, x, ctx = attention(dropout=0.4), normal((B, N, D), 1), vitnp.Context(train=True, rng=3)
    y = layer.forward(x, ctx)
    saved = ctx.saved(layer)
    heads = (saved.weights @ saved.v).swapaxes(1, 2).reshape(B, N, D)
    assert error(y, heads @ layer.proj.weight + layer.proj.bias) < 1e-14
    kept = saved.weights != 0
    assert error(saved.weights[kept], saved.probs[kept] / 0.6) < 1e-15
    assert 0.3 < (~kept).mean() < 0.5


def test_weights_are_the_probabilities_in_evaluation():
    layer, ctx = attention(dropout=0.4), vitnp.Context(record=True)
    layer.forward(normal((B, N, D), 1), ctx)
    assert np.array_equal(ctx.saved(layer).weights, ctx.saved(layer).probs)


def test_samples_do_not_attend_to_one_another():
    layer, x = attention(), normal((B, N, D), 1)
    alone = np.concatenate([forward(layer, x[b : b + 1]) for b in range(B)])
    assert error(forward(layer, x), alone) < 1e-14


@given(seed=st.integers(0, 99))
def test_permuted_tokens_give_permuted_outputs(seed):
    layer, x = attention(seed=seed), normal((2, 5, D), seed)
    order = np.random.default_rng(seed).permutation(5)
    assert error(forward(layer, x[:, order]), forward(layer, x)[:, order]) < 1e-12


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    heads=st.integers(1, 3),
    size=st.integers(1, 3),
    scale=st.sampled_from([1e-6, 1e-3, 1]),
    seed=st.integers(0, 99),
)
def test_gradients_are_right_for_any_shape_and_scale(shape, heads, size, scale, seed):
    layer = attention(heads * size, heads, seed)
    found, truth = both_gradients(layer, normal((*shape, heads * size), seed, scale))
    # in units of the largest gradient: those of q and k may be nothing but what is left after cancelling
    assert worst_error(found, truth, floor=1) < 1e-12


def test_qkv_starts_uniform_within_the_limit_of_one_projection():
    weight, limit = Attention(256, 4, dtype="float64").qkv.weight, math.sqrt(6 / 512)
    assert 0.999 * limit < abs(weight).max() <= limit
    assert weight.var() == pytest.approx(1 / 256, rel=0.01)


def test_proj_starts_uniform_within_its_limit():
    weight, limit = Attention(256, 4, dtype="float64").proj.weight, math.sqrt(6 / 512)
    assert 0.999 * limit < abs(weight).max() <= limit


def test_biases_start_at_zero():
    layer = Attention(6, 2)
    assert not layer.qkv.bias.any()
    assert not layer.proj.bias.any()


def test_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim 6 is not divisible by num_heads 4"):
        Attention(6, 4)


def test_gradients_do_not_depend_on_what_the_context_computed_before():
    layer, x, dy = attention(dropout=0.4), normal((B, N, D), 1), normal((B, N, D), 2)
    fresh = copies(handwritten_gradients(layer, x, dy))
    ctx = vitnp.Context(train=True, rng=3)
    layer.forward(normal((B + 2, N + 3, D), 4), ctx)
    ctx.begin()
    layer.forward(x, ctx)
    dx = layer.backward(dy, ctx)
    assert worst_error({**layer.gradients(ctx), "input": dx}, fresh) == 0
