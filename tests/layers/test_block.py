import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, randomize, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import Block


def block(dim=6, heads=2, mlp_dim=7, seed=0, **options):
    return randomize(Block(dim, heads, mlp_dim, dtype="float64", **options), seed)


def silence(*linears):
    """Make the output of these layers zero, whatever their input."""
    for linear in linears:
        linear.weight[...] = linear.bias[...] = 0


def alone(layer, x):
    """The output of a part of a block, in a context of its own."""
    return layer.forward(x, vitnp.Context()).copy()


def test_output_is_equations_2_and_3():
    layer, x = block(), normal((5, 9, 6), 1)
    z = x + alone(layer.attn, alone(layer.norm1, x))
    truth = z + alone(layer.mlp, alone(layer.norm2, z))
    assert error(alone(layer, x), truth) < 1e-15


def test_dropout_acts_on_each_branch_before_its_skip():
    layer, x, ctx = block(dropout=0.4), normal((5, 9, 6), 1), vitnp.Context(train=True, rng=3)
    y = layer.forward(x, ctx)
    z = x + alone(layer.attn, alone(layer.norm1, x)) * ctx.saved(layer.dropout).mask
    mlp, hidden = layer.mlp, alone(layer.mlp.gelu, alone(layer.mlp.fc1, alone(layer.norm2, z)))
    branch = alone(mlp.fc2, hidden * ctx.saved(mlp.dropout1).mask) * ctx.saved(mlp.dropout2).mask
    assert error(y, z + branch) < 1e-14


def test_layer_scale_and_stochastic_depth_come_last_in_each_branch():
    layer, x = block(dropout=0.4, layer_scale=0.1, stochastic_depth=0.3), normal((5, 9, 6), 1)
    ctx = vitnp.Context(train=True, rng=3)
    y = layer.forward(x, ctx)
    masks = [ctx.saved(part).mask for part in (layer.drop_path1, layer.drop_path2)]
    assert {0.0} < set(np.concatenate(masks).ravel())  # some are dropped, and some are not
    branch = alone(layer.attn, alone(layer.norm1, x)) * ctx.saved(layer.dropout).mask
    z = x + masks[0] * layer.ls1.gamma * branch
    mlp, hidden = layer.mlp, alone(layer.mlp.gelu, alone(layer.mlp.fc1, alone(layer.norm2, z)))
    branch = alone(mlp.fc2, hidden * ctx.saved(mlp.dropout1).mask) * ctx.saved(mlp.dropout2).mask
    assert error(y, z + masks[1] * layer.ls2.gamma * branch) < 1e-14


def test_a_dropped_sample_passes_by_the_skips_alone():
    layer, x, dy = block(stochastic_depth=0.5), normal((8, 9, 6), 1), normal((8, 9, 6), 2)
    ctx = vitnp.Context(train=True, rng=3)
    y = layer.forward(x, ctx)
    dx = layer.backward(dy, ctx)
    both = [(ctx.saved(part).mask == 0).ravel() for part in (layer.drop_path1, layer.drop_path2)]
    dropped = both[0] & both[1]
    assert 0 < dropped.sum() < 8
    assert np.array_equal(y[dropped], x[dropped])
    assert np.array_equal(dx[dropped], dy[dropped])


@pytest.mark.parametrize(
    "options",
    [{"layer_scale": 0.1}, {"stochastic_depth": 0.4}, {"qk_norm": True}, {"layer_scale": 0.1, "stochastic_depth": 0.4}],
    ids=str,
)
def test_every_gradient_is_the_derivative_with_later_options(options):
    found, truth = both_gradients(block(dropout=0.2, attention_dropout=0.3, **options), normal((5, 9, 6), 1))
    assert worst_error(found, truth) < 1e-12


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
@pytest.mark.parametrize("rates", [{}, {"dropout": 0.2, "attention_dropout": 0.3}], ids=["no dropout", "dropout"])
def test_every_gradient_is_the_derivative(gelu, rates):
    assert worst_error(*both_gradients(block(gelu=gelu, **rates), normal((5, 9, 6), 1))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    layer = block(dropout=0.2, attention_dropout=0.3)
    vitnp.gradcheck(layer, normal((5, 9, 6), 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_both_skips_alone_pass_the_input_and_the_gradient_unchanged():
    layer, x, dy = block(), normal((5, 9, 6), 1), normal((5, 9, 6), 2)
    silence(layer.attn.proj, layer.mlp.fc2)
    assert error(alone(layer, x), x) == 0
    assert error(handwritten_gradients(layer, x, dy)["input"], dy) == 0


def test_eps_reaches_both_norms():
    layer = block(layer_norm_eps=0.25)
    assert (layer.norm1.eps, layer.norm2.eps) == (0.25, 0.25)


def test_eps_is_that_of_the_original_unless_said():
    layer = Block(6, 2, 7)
    assert (layer.norm1.eps, layer.norm2.eps) == (1e-6, 1e-6)


def test_rates_reach_their_layers():
    layer = block(dropout=0.2, attention_dropout=0.3)
    rates = (layer.dropout.rate, layer.mlp.dropout1.rate, layer.mlp.dropout2.rate, layer.attn.dropout.rate)
    assert rates == (0.2, 0.2, 0.2, 0.3)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    heads=st.integers(1, 2),
    size=st.integers(1, 3),
    mlp_dim=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_gradients_are_right_for_any_shape(shape, heads, size, mlp_dim, seed):
    layer = block(heads * size, heads, mlp_dim, seed)
    assert worst_error(*both_gradients(layer, normal((*shape, heads * size), seed)), floor=1) < 1e-11
