import math

import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, randomize, same_bits, worst_error

import vitnp
from vitnp.initializers import normal as normal_init
from vitnp.initializers import sincos_1d, sincos_2d
from vitnp.layers import Positions

GRID, D, N = (2, 3), 8, 10  # a class token, six patches and three more
KINDS = ("learned", "learned-2d", "sincos")


def positions(kind, grid=GRID, **options):
    return randomize(Positions(kind, grid, D, dtype="float64", **options))


def added(layer, tokens=N):
    """What the layer adds to each token, the same in every sample: (N, D)."""
    found = layer.forward(np.zeros((2, tokens, D)), vitnp.Context())
    assert same_bits(found[0], found[1])
    return found[0].copy()


def test_learned_vectors_are_added_to_the_class_token_and_the_patches():
    layer = positions("learned")
    assert np.array_equal(added(layer), np.concatenate([layer.pos_embed[0], np.zeros((3, D))]))


@pytest.mark.parametrize("first", [0, 1])
def test_a_patch_gets_the_vector_of_its_column_beside_that_of_its_row(first):
    layer = positions("learned-2d", class_token=bool(first))
    found = added(layer)
    for i in range(6):
        row, column = divmod(i, 3)
        both = np.concatenate([layer.pos_embed_columns[column], layer.pos_embed_rows[row]])
        assert np.array_equal(found[first + i], both)
    others = np.delete(found, range(first, first + 6), 0)
    assert not others.any()


def test_fixed_positions_are_those_with_which_learned_ones_may_start():
    layer = positions("sincos")
    waves = sincos_2d(*GRID)(None, (1, 7, D))[0]
    assert not layer.parameters()
    assert same_bits(added(layer, 7), waves)
    assert waves[1 + 3 * 1 + 2] == pytest.approx(  # row 1, column 2
        [f(place * w) for place in (2, 1) for f in (math.sin, math.cos) for w in (1, 0.01)], rel=1e-14
    )


def test_learned_rows_and_columns_may_start_as_the_fixed_ones():
    layer = Positions("learned-2d", GRID, D, pos_init=sincos_1d, dtype="float64")
    assert same_bits(added(layer), added(positions("sincos")))


def test_inputs_are_kept_beside_what_is_added():
    layer, x = positions("learned-2d"), normal((5, N, D), 1)
    assert error(layer.forward(x, vitnp.Context()), x + added(layer)) < 1e-15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_token", [True, False])
def test_every_gradient_is_the_derivative(kind, class_token):
    layer = positions(kind, class_token=class_token)
    assert worst_error(*both_gradients(layer, normal((3, N, D), 1))) < 1e-12


@pytest.mark.parametrize("grid", [(1, 6), (6, 1), (1, 1)], ids=str)
def test_every_gradient_is_the_derivative_in_a_grid_of_one_row_or_column(grid):
    assert worst_error(*both_gradients(positions("learned-2d", grid), normal((3, N, D), 1))) < 1e-12


def test_a_row_gathers_the_gradients_of_all_its_patches():
    dy = normal((5, N, D), 2)
    found = handwritten_gradients(positions("learned-2d"), normal((5, N, D), 1), dy)
    patches = dy[:, 1:7].reshape(5, 2, 3, D)
    columns, rows = patches[..., : D // 2].sum((0, 1)), patches[..., D // 2 :].sum((0, 2))
    assert worst_error(found, {"pos_embed_columns": columns, "pos_embed_rows": rows, "input": dy}) < 1e-15


@pytest.mark.parametrize(("kind", "name"), [("learned", "pos_embed"), ("learned-2d", "pos_embed_rows")])
def test_what_is_learned_starts_normal_with_deviation_0_02_and_does_not_decay(kind, name):
    layer = Positions(kind, (300, 2), 400, dtype="float64")
    assert layer.parameters()[name].std() == pytest.approx(0.02, rel=0.02)
    assert same_bits(
        layer.parameters()[name],
        Positions(kind, (300, 2), 400, pos_init=normal_init(0.02), dtype="float64").parameters()[name],
    )
    assert not any(spec.decay for spec in layer.specs.values())


def test_adding_alone_needs_no_pass_and_leaves_no_record():
    layer, x, ctx = positions("learned"), normal((3, N, D), 1), vitnp.Context(record=True)
    first = layer.add(x, ctx).copy()
    assert same_bits(layer.add(x, ctx), first)
    assert same_bits(layer.forward(x, ctx), first)
