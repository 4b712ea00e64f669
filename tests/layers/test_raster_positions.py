import numpy as np
import pytest
from helpers import both_gradients, error, normal, randomize, worst_error

import vitnp
from vitnp.layers import RasterPositions

K, N, B, H = 4, 9, 3, 2  # a class token, six patches and two more


def raster(patches=6, **options):
    return randomize(RasterPositions(patches, K, dtype="float64", **options))


def pair_by_pair(layer, q, patches, first):
    """The definition with loops: q · offsets[p − p'] for patches, 0 for all other pairs."""
    bias = np.zeros((*q.shape[:3], q.shape[2]))
    for i in range(patches):
        for j in range(patches):
            bias[:, :, first + i, first + j] = q[:, :, first + i] @ layer.pos_embed_offsets[i - j + patches - 1]
    return bias


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("patches", [2, 3, 6, 8])
def test_bias_is_that_of_the_definition(patches, first):
    layer, q = raster(patches, class_token=bool(first)), normal((B, H, N, K), 1)
    assert error(layer.forward(q, vitnp.Context()), pair_by_pair(layer, q, patches, first)) < 1e-14


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("patches", [2, 6, 8])
def test_every_gradient_is_the_derivative(patches, class_token):
    layer = raster(patches, class_token=class_token)
    assert worst_error(*both_gradients(layer, normal((B, H, N, K), 1))) < 1e-12


def test_in_one_row_of_patches_it_is_what_columns_give():
    layer, q = raster(5), normal((B, H, N, K), 1)
    other = vitnp.layers.RelativePositions((1, 5), K, dtype="float64")
    other.pos_embed_rows[...], other.pos_embed_columns[...] = 0, layer.pos_embed_offsets
    found, truth = (one.forward(q, vitnp.Context()).copy() for one in (layer, other))
    assert error(found, truth) < 1e-14


def test_what_is_learned_starts_normal_with_deviation_0_02_and_does_not_decay():
    layer = RasterPositions(400, 50, dtype="float64")
    assert layer.pos_embed_offsets.shape == (799, 50)
    assert layer.pos_embed_offsets.std() == pytest.approx(0.02, rel=0.02)
    assert not any(spec.decay for spec in layer.specs.values())


def test_a_single_patch_is_refused():
    with pytest.raises(ValueError, match="there is 1 patch in an image; expected 2 or more"):
        RasterPositions(1, K)
