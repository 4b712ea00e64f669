import numpy as np
import pytest
from helpers import both_gradients, handwritten_gradients, normal, randomize, worst_error

import vitnp
from vitnp.layers import Embeddings


def embeddings(class_token=True, **options):
    return randomize(Embeddings(8, 6, class_token=class_token, dtype="float64", **options))


def test_class_token_comes_first_and_positions_are_added():
    layer, x = embeddings(), normal((5, 8, 6), 1)
    token = np.broadcast_to(layer.cls_token, (5, 1, 6))
    truth = np.concatenate([token, x], axis=1) + layer.pos_embed
    assert np.array_equal(layer.forward(x, vitnp.Context()), truth)


def test_positions_alone_are_added_without_a_class_token():
    layer, x = embeddings(class_token=False), normal((5, 8, 6), 1)
    assert np.array_equal(layer.forward(x, vitnp.Context()), x + layer.pos_embed)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_gradient_is_the_derivative(class_token, batch):
    assert worst_error(*both_gradients(embeddings(class_token), normal((batch, 8, 6), 1))) < 1e-12


@pytest.mark.parametrize("class_token", [True, False])
def test_gradcheck_passes_on_every_coordinate(class_token):
    report = vitnp.gradcheck(embeddings(class_token), normal((5, 8, 6), 1), mode="full", tolerance=1e-12)
    report.raise_if_failed()


def test_gradients_of_token_and_positions_sum_over_the_batch():
    dy = normal((5, 9, 6), 2)
    found = handwritten_gradients(embeddings(), normal((5, 8, 6), 1), dy)
    truth = {"pos_embed": dy.sum(0, keepdims=True), "cls_token": dy[:, :1].sum(0, keepdims=True), "input": dy[:, 1:]}
    assert worst_error(found, truth) < 1e-15


@pytest.mark.parametrize("class_token", [True, False])
def test_registers_come_last_and_have_no_position(class_token):
    layer, x = embeddings(class_token, registers=2), normal((5, 8, 6), 1)
    found, N = layer.forward(x, vitnp.Context()), 8 + class_token
    assert np.array_equal(found[:, N:], np.broadcast_to(layer.reg_token, (5, 2, 6)))
    assert np.array_equal(found[:, class_token:N], x + layer.pos_embed[:, class_token:])
    assert layer.pos_embed.shape == (1, N, 6)


@pytest.mark.parametrize(
    "options", [{"registers": 2}, {"positions": False}, {"registers": 3, "positions": False}], ids=str
)
@pytest.mark.parametrize("class_token", [True, False])
def test_every_gradient_is_the_derivative_with_registers_and_without_positions(class_token, options):
    layer = embeddings(class_token, **options)
    assert worst_error(*both_gradients(layer, normal((3, 8, 6), 1))) < 1e-12


def test_without_positions_none_are_declared_and_none_are_added():
    layer, x = embeddings(class_token=False, positions=False), normal((5, 8, 6), 1)
    assert not layer.parameters()
    assert np.array_equal(layer.forward(x, vitnp.Context()), x)


def test_registers_start_apart():
    registers = Embeddings(8, 300, registers=50, dtype="float64").reg_token[0]
    assert registers.std() == pytest.approx(0.02, rel=0.02)
    assert len({row.tobytes() for row in registers}) == 50


def test_names_are_those_of_the_parent():
    model = vitnp.VisionTransformer(vitnp.ViTConfig(dim=8, depth=1, num_heads=2, mlp_dim=8))
    assert {"cls_token", "pos_embed"} < model.parameters().keys()


def test_class_token_starts_at_zero():
    assert not Embeddings(8, 6).cls_token.any()


def test_positions_start_normal_with_deviation_0_02():
    positions = Embeddings(400, 300, dtype="float64").pos_embed
    assert positions.std() == pytest.approx(0.02, rel=0.01)
    assert positions.mean() == pytest.approx(0, abs=5 * 0.02 / np.sqrt(positions.size))
    assert 4 < abs(positions).max() / 0.02 < 6  # as far out as 120 000 normal numbers go: not cut, not uniform


def test_neither_token_nor_positions_decay():
    assert not any(spec.decay for spec in Embeddings(8, 6, registers=2).specs.values())
