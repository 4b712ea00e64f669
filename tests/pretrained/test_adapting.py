"""A model is made ready for another task: what it learned stays, but for the classifier."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import error, hard_model, images_for, same_bits

import vitnp
from vitnp.pretrained.positions import RULES, resize_grid, resize_matrix


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_all_but_the_classifier_is_as_it_was_and_the_head_is_zero(pool):
    model = hard_model("float32", pool=pool, representation_size=7)
    before = model.flat.copy()
    adapted = vitnp.adapt(model, 9)
    found, learned = adapted.parameters(), model.parameters()
    assert learned.keys() - found.keys() == {"pre_logits.weight", "pre_logits.bias"}
    for name in found.keys() - {"head.weight", "head.bias"}:
        assert same_bits(found[name], learned[name]), name
    assert found["head.weight"].shape == (6, 9)
    assert not found["head.weight"].any()
    assert not found["head.bias"].any()
    config = adapted.config
    assert (config.num_classes, config.representation_size, config.dropout, config.attention_dropout) == (9, None, 0, 0)
    assert same_bits(adapted.features(images_for(model)), model.features(images_for(model)))
    adapted.flat += 1
    assert same_bits(model.flat, before)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_positions_go_to_the_larger_grid_by_the_rule_and_the_token_s_stays(pool, rule):
    model = hard_model(pool=pool)  # a grid of 2 x 4
    adapted = vitnp.adapt(model, 3, image_size=(9, 12), resize=rule)
    assert adapted.config.grid == (3, 6)
    first = int(pool == "token")
    learned, found = model.parameters()["pos_embed"], adapted.parameters()["pos_embed"]
    assert (
        error(found[0, first:].reshape(3, 6, 6), resize_grid(learned[0, first:].reshape(2, 4, 6), (3, 6), rule)) < 1e-15
    )
    assert same_bits(found[:, :first], learned[:, :first])


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"positions": "learned-2d"}, ["pos_embed_rows", "pos_embed_columns"]),
        ({"positions": "relative"}, ["blocks.1.attn.pos_embed_rows", "blocks.1.attn.pos_embed_columns"]),
        ({"positions": "learned", "pos_at": "layers"}, []),
        ({"registers": 2, "layer_scale": 0.1, "qk_norm": True, "stochastic_depth": 0.2}, []),
        ({"stem_blocks": (1,), "patch_size": 1}, []),
    ],
    ids=str,
)
def test_every_kind_of_network_goes_to_larger_images(more, names):
    model = hard_model(**more)
    adapted = vitnp.adapt(model, 3, image_size=(12, 16))
    learned, found = model.parameters(), adapted.parameters()
    for name in names:
        matrix = resize_matrix(len(learned[name]), len(found[name]), "align-corners")
        assert len(matrix) > len(learned[name])
        assert error(found[name], matrix @ learned[name]) < 1e-15
    for name in found.keys() - {"head.weight", "head.bias"}:
        assert "pos_embed" in name or same_bits(found[name], learned[name]), name
    assert np.isfinite(adapted.forward(images_for(adapted))).all()
    assert adapted.config.stochastic_depth == 0
    logits = (m.forward(images_for(m), vitnp.Context(train=True, rng=0)) for m in [vitnp.adapt(model, 3)] * 2)
    assert same_bits(*logits)


def test_a_grid_of_as_many_patches_in_another_shape_is_another_grid():
    model = hard_model()  # a grid of 2 x 4
    found = vitnp.adapt(model, 3, image_size=(12, 4)).parameters()["pos_embed"]
    assert (
        error(
            found[0, 1:].reshape(4, 2, 6),
            resize_grid(model.embeddings.pos_embed[0, 1:].reshape(2, 4, 6), (4, 2), "align-corners"),
        )
        < 1e-15
    )


@pytest.mark.parametrize("pos_at", ["stem", "shared"])
def test_fixed_waves_are_those_of_the_larger_grid(pos_at):
    """The same as learned positions that hold these waves, those of the column in the first half."""
    model = hard_model(positions="sincos", pos_at=pos_at, dim=8)  # a grid of 2 x 4
    found = vitnp.adapt(model, 3, image_size=(9, 12))
    assert (found.config.positions, found.config.grid) == ("sincos", (3, 6))
    truth = vitnp.VisionTransformer(replace(found.config, positions="learned"), rng=None, dtype="float64")
    for name, array in truth.parameters().items():
        array[...] = 0 if name.startswith("head.") or "pos_embed" in name else model.parameters()[name]
    (place,) = [array for name, array in truth.parameters().items() if "pos_embed" in name]
    for n in range(18):
        for i in range(2):  # two frequencies, of 1 and 1/100 radian a patch
            column, row = (where / 100**i for where in (n % 6, n // 6))
            angles = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
            place[0, n - 18, i::2] = angles
    images = images_for(found)
    assert error(found.features(images), truth.features(images)) < 1e-12
    assert error(found.features(images), _without_positions(truth).features(images)) > 1e-3


def _without_positions(model):
    for name, array in model.parameters().items():
        if "pos_embed" in name:
            array[...] = 0
    return model


def test_the_rule_is_the_original_s_unless_said():
    model = hard_model()
    found, truth = vitnp.adapt(model, 3, image_size=12), vitnp.adapt(model, 3, image_size=12, resize="align-corners")
    assert same_bits(found.flat, truth.flat)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="resize is 'zoom'"):
        vitnp.adapt(hard_model(), 3, image_size=12, resize="zoom")
    with pytest.raises(ValueError, match="resize is 'zoom'"):
        vitnp.adapt(hard_model(), 3, resize="zoom")  # though there is nothing to resize
    with pytest.raises(vitnp.ConfigError, match="image height 10 is not divisible by patch height 3"):
        vitnp.adapt(hard_model(), 3, image_size=10)
    with pytest.raises(ValueError, match="positions 'relative-1d' are offsets in raster order for the first"):
        vitnp.adapt(hard_model(positions="relative-1d"), 3, image_size=(6, 12))
    with pytest.raises(TypeError, match=r"predicts masked patches; expected its encoder: adapt model\.backbone\(\)"):
        vitnp.adapt(vitnp.MaskedPatchPrediction(vitnp.ViTConfig()), 3)


def test_a_model_on_a_device_stays_there(double):
    adapted = vitnp.adapt(hard_model().to_device(double.device), 3, image_size=12)
    assert adapted.device == "cuda"
    assert np.array_equal(vitnp.to_cpu(adapted.flat), vitnp.adapt(hard_model(), 3, image_size=12).flat)
