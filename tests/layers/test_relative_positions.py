import math

import numpy as np
import pytest
from helpers import both_gradients, error, normal, randomize, worst_error

import vitnp
from vitnp.layers import Attention, RelativePositions

GRID, K, N, B, H = (2, 3), 4, 9, 3, 2  # a class token, six patches and two more


def relative(grid=GRID, **options):
    return randomize(RelativePositions(grid, K, dtype="float64", **options))


def pair_by_pair(layer, q, first=1):
    """The definition with loops: q · (rows[r − r'] + columns[c − c']) for patches, 0 for all other pairs."""
    R, C = layer.grid
    bias = np.zeros((*q.shape[:3], q.shape[2]))
    for i in range(R * C):
        for j in range(R * C):
            down, right = i // C - j // C, i % C - j % C
            offset = layer.pos_embed_rows[down + R - 1] + layer.pos_embed_columns[right + C - 1]
            bias[:, :, first + i, first + j] = q[:, :, first + i] @ offset
    return bias


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 5), (5, 1), (1, 1)], ids=str)
def test_bias_is_that_of_the_definition(grid, first):
    layer, q = relative(grid, class_token=bool(first)), normal((B, H, N, K), 1)
    assert error(layer.forward(q, vitnp.Context()), pair_by_pair(layer, q, first)) < 1e-14


def test_tokens_that_are_no_patches_have_no_bias():
    bias = relative().forward(normal((B, H, N, K), 1), vitnp.Context())
    others = [0, 7, 8]
    assert not bias[:, :, others].any()
    assert not bias[..., others].any()
    assert bias[:, :, 1:7, 1:7].all()


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 5), (5, 1)], ids=str)
def test_every_gradient_is_the_derivative(grid, class_token):
    layer = relative(grid, class_token=class_token)
    assert worst_error(*both_gradients(layer, normal((B, H, N, K), 1))) < 1e-12


def test_every_offset_of_the_grid_is_learned():
    shapes = {name: array.shape for name, array in relative((3, 5)).parameters().items()}
    assert shapes == {"pos_embed_rows": (5, K), "pos_embed_columns": (9, K)}


def test_what_is_learned_starts_normal_with_deviation_0_02_and_does_not_decay():
    layer = RelativePositions((100, 150), 300, dtype="float64")
    for array in layer.parameters().values():
        assert array.std() == pytest.approx(0.02, rel=0.02)
    assert not any(spec.decay for spec in layer.specs.values())


def test_attention_adds_the_bias_to_its_scores_under_the_root():
    offsets = relative()
    layer = randomize(Attention(H * K, H, relative=offsets, dtype="float64"), 5)
    x, ctx = normal((B, N, H * K), 1), vitnp.Context(record=True)
    layer.forward(x, ctx)
    saved = ctx.saved(layer)
    scores = (saved.q @ saved.k.swapaxes(-1, -2) + pair_by_pair(offsets, saved.q)) / math.sqrt(K)
    weights = np.exp(scores)
    assert error(saved.probs, weights / weights.sum(-1, keepdims=True)) < 1e-14


def test_every_gradient_of_attention_is_the_derivative():
    layer = randomize(Attention(H * K, H, dropout=0.3, relative=relative(), dtype="float64"), 5)
    vitnp.gradcheck(layer, normal((B, N, H * K), 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_a_picture_that_moves_has_the_same_attention_among_its_patches():
    # what absolute positions do not give: equal content at equal offsets, equal scores
    layer, content = relative((3, 4), class_token=False), normal((1, 1, 1, K), 1)
    bias = layer.forward(np.tile(content, (1, 1, 12, 1)), vitnp.Context())[0, 0].reshape(3, 4, 3, 4)
    assert error(bias[0, 1, 1, 2], bias[1, 0, 2, 1]) < 1e-15
    assert abs(bias[0, 1, 1, 2] - bias[1, 2, 0, 1]) > 0.01
