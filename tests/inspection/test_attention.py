"""Attention rollout against its definition, and the picture that shows it."""

import numpy as np
import pytest
from PIL import Image

import vitnp
from vitnp.inspection import attention_picture, attention_rollout

SIZES = {"image_size": (6, 8), "patch_size": (3, 2), "channels": 3, "num_classes": 5, "dim": 6, "num_heads": 2}


def random_model(**options):
    rng = np.random.default_rng(0)
    model = vitnp.VisionTransformer(vitnp.ViTConfig(**SIZES, **options), dtype="float64")
    for parameter in model.parameters().values():
        parameter[...] = rng.standard_normal(parameter.shape)
    return model, rng.standard_normal((3, 6, 8, 3))


def test_rollout_of_two_blocks_is_the_product_of_their_mixed_attentions():
    model, images = random_model(depth=2)
    ctx = vitnp.Context(record=True)
    model.forward(images, ctx)
    first, second = (ctx.saved(block.attn).probs.mean(1) / 2 + np.eye(9) / 2 for block in model.blocks)
    expected = (second @ first)[:, 0, 1:]
    maps, _ = attention_rollout(model, images)
    np.testing.assert_allclose(maps.reshape(3, 8), expected / expected.sum(-1, keepdims=True), rtol=1e-12)


def test_rollout_of_a_mean_pooled_model_counts_every_token():
    model, images = random_model(depth=1, pool="mean")
    ctx = vitnp.Context(record=True)
    model.forward(images, ctx)
    expected = (ctx.saved(model.blocks[0].attn).probs.mean(1) / 2 + np.eye(8) / 2).mean(1)
    maps, _ = attention_rollout(model, images)
    np.testing.assert_allclose(maps.reshape(3, 8), expected, rtol=1e-12)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_rollout_shows_patches_and_leaves_registers_out(pool):
    model, images = random_model(depth=2, pool=pool, registers=2)
    first, N = int(pool == "token"), model.config.num_tokens
    ctx = vitnp.Context(record=True)
    model.forward(images, ctx)
    one, two = (ctx.saved(block.attn).probs.mean(1) / 2 + np.eye(N) / 2 for block in model.blocks)
    rollout = two @ one
    read = rollout[:, 0] if first else rollout[:, :8].mean(1)  # by the class token, or the mean of the patches
    expected = read[:, first : first + 8]
    maps, _ = attention_rollout(model, images)
    np.testing.assert_allclose(maps.reshape(3, 8), expected / expected.sum(-1, keepdims=True), rtol=1e-12)


def test_rollout_returns_a_map_of_the_patches_and_the_logits():
    model, images = random_model(depth=2)
    maps, logits = attention_rollout(model, images)
    assert maps.shape == (3, 2, 4)
    np.testing.assert_array_equal(logits, model.forward(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_shows_each_image_beside_its_map(tmp_path, channels):
    images = np.zeros((2, 10, 10, channels), np.uint8)
    images[0] = 255
    maps = np.zeros((2, 2, 2))
    maps[:, 0, 0] = 1  # all attention in the upper left
    attention_picture(images, maps, ["white", "black"], tmp_path / "p.png", columns=2, side=40)
    with Image.open(tmp_path / "p.png") as picture:
        sheet = np.asarray(picture, int)
    assert sheet[20, 20].tolist() == [255, 255, 255]  # the first image, then its map: yellow to blue
    assert sheet[12, 52, 0] > sheet[44, 84, 0] + 50
    assert sheet[20, 8 + 92 + 20].tolist() == [0, 0, 0]


def test_picture_of_uniform_attention_is_drawn_without_a_warning(tmp_path):
    images, maps = np.zeros((1, 4, 4, 1), np.uint8), np.full((1, 2, 2), 0.25)
    attention_picture(images, maps, ["flat"], tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
