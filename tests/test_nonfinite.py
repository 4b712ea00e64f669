"""NaN and infinity are found in the step where they appear, nothing hides them, and the first tensor is named."""

import copy
import math

import numpy as np
import pytest
from helpers import hard_model, images_for, labels_for

import vitnp
from vitnp.layers import LayerNorm, Linear
from vitnp.nonfinite import check_update, first_not_finite

BATCH = 5


def named(model, images=None, labels=None, **changes):
    images = images_for(model) if images is None else images
    labels = labels_for(model) if labels is None else labels
    return first_not_finite(model, images, labels, **{"rng": 0, "step": 0, "size": 2, **changes})


def test_a_finite_pass_has_none():
    assert named(hard_model("float32")) is None


def test_a_parameter_is_named_before_what_it_makes():
    model = hard_model("float32")
    model.blocks[1].attn.qkv.weight[2, 3] = np.nan
    assert named(model) == "the parameter blocks.1.attn.qkv.weight"


def test_an_image_is_named_by_its_number_in_the_batch():
    model = hard_model("float32")
    images = images_for(model)
    images[3, 1, 2, 0] = np.inf
    assert named(model, images) == "the images, sample 3"


def test_an_output_is_named_by_the_innermost_layer_that_made_it():
    model = hard_model("float32")
    model.blocks[0].mlp.fc1.weight[...] *= 1e30
    model.blocks[0].mlp.fc2.weight[...] *= 1e30
    assert named(model) == "the output of blocks.0.mlp.fc2, sample 0"


def test_a_variance_that_overflows_is_named_though_the_output_is_finite():
    model = hard_model("float32")
    model.blocks[0].mlp.fc2.bias[0] = 1e25
    assert named(model) == "the variance in blocks.1.norm1, sample 0"


class Overflowing(Linear):
    """Its output is right, its gradients are infinite."""

    def backward(self, dy, ctx):
        return super().backward(dy * np.float32(np.inf), ctx)


def test_a_gradient_is_named_by_its_parameter():
    model = hard_model("float32")
    model.blocks[1].mlp.fc2.__class__ = Overflowing
    assert named(model) == "the gradient of blocks.1.mlp.fc2.weight"


def test_labels_that_do_not_fit_are_not_taken_for_numbers_that_are_not_finite():
    assert named(hard_model("float32"), labels=np.full(BATCH, 99)) is None


def test_looking_leaves_the_model_as_it_was():
    model = hard_model("float32")
    before = model.flat.copy()
    named(model)
    np.testing.assert_array_equal(model.flat, before)
    assert all(not {"forward", "backward"} & vars(layer).keys() for layer in model.layers())


def test_the_masks_are_those_of_the_step_that_failed():
    """Only a pass with the masks of its seed and step can find what only they let through."""
    model, found = hard_model("float32"), set()
    model.blocks[0].mlp.fc1.weight[...] *= 1e20
    model.blocks[0].mlp.fc2.weight[...] *= 1e18  # overflows where the mask keeps enough
    for step in range(20):
        found.add(named(model, step=step, size=BATCH))
    assert len(found) > 1
    assert named(model, step=3) == named(model, step=3)


# -- the step ---------------------------------------------------------------------------------------------------------


def sharded(model, **options):
    return vitnp.ShardedStep(model, vitnp.Adam(model), shards=2, **options)


def state_of(step):
    return [step.model.flat.copy(), step.optimizer.m.copy(), step.optimizer.v.copy(), step.optimizer.steps]


def spoil_image(step, images):
    images[3, 0, 0, 0] = np.nan


def spoil_weight(step, images):
    step.model.blocks[0].attn.qkv.weight[1, 1] = np.inf


def spoil_gradient(step, images):
    backward = step.model.classifier.backward
    step.model.classifier.backward = lambda dy, ctx: backward(dy * np.float32(np.inf), ctx)


def spoil_variance(model):
    model.patch_embed.weight[...] *= 1e25
    assert np.isfinite(model.forward(images_for(model))).all()  # or it would be found without looking


def test_a_variance_that_overflows_stops_a_step_of_the_head_alone():
    model = hard_model("float32")
    step = vitnp.ShardedStep(model, vitnp.SGD(model, 0.1), shards=2, head_only=True)
    with np.errstate(all="ignore"):
        spoil_variance(model)
        before = model.flat.copy()
        with pytest.raises(FloatingPointError, match=r"the variance in blocks\.0\.norm1 overflows"):
            step.step(images_for(model), labels_for(model))
    assert np.array_equal(model.flat, before)


def test_a_variance_that_overflows_is_no_answer():
    model = hard_model("float32")
    images, labels = images_for(model), labels_for(model)
    with np.errstate(all="ignore"):
        spoil_variance(model)
    for judge in (
        lambda: vitnp.predict(model, images),
        lambda: vitnp.features(model, images),
        lambda: vitnp.evaluate(model, images, labels),
    ):
        with pytest.raises(ValueError, match=r"images 0 to \d: the variance in blocks\.0\.norm1 overflows"):
            judge()


@pytest.mark.parametrize("spoil", [spoil_image, spoil_weight, spoil_gradient])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_what_is_not_finite_is_found_in_the_same_step_and_nothing_is_updated(spoil, clip_norm):
    model = hard_model("float32")
    step, images, labels = sharded(model, clip_norm=clip_norm), images_for(model), labels_for(model)
    step.step(images, labels)
    spoil(step, images)
    before = copy.deepcopy(state_of(step))
    with pytest.raises((ValueError, FloatingPointError)):
        step.step(images, labels)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(state_of(step), before, strict=True))


@pytest.mark.parametrize("layer", ["blocks.0.norm1", "blocks.1.norm2", "norm"])
def test_a_variance_that_overflows_stops_the_step_and_names_the_layer(layer):
    model = hard_model("float32")
    before = {"blocks.0.norm1": model.embeddings.pos_embed, "blocks.1.norm2": model.blocks[1].attn.proj.bias}
    before.get(layer, model.blocks[1].mlp.fc2.bias)[..., 0] = 1e25
    with pytest.raises(FloatingPointError, match=f"the variance in {layer} overflows"):
        sharded(model).step(images_for(model), labels_for(model))


def test_a_norm_that_takes_no_part_is_not_looked_for():
    model = hard_model("float32")
    model.spare = LayerNorm(6)
    step = sharded(model)
    assert np.isfinite(step.step(images_for(model), labels_for(model)))


def test_the_norm_of_the_step_is_kept():
    model = hard_model("float32")
    step = sharded(model, clip_norm=1e-3)
    step.gradients(images_for(model), labels_for(model))
    gradients = model.gradients(step.contexts[0]).values()
    norm = math.sqrt(sum(float((gradient.astype("float64") ** 2).sum()) for gradient in gradients))
    step.step(images_for(model), labels_for(model))
    assert float(step.norm) == pytest.approx(norm, rel=1e-5)


def test_scores_of_1e37_give_a_finite_loss_and_finite_gradients():
    model = hard_model("float32")
    dim, attn = model.config.dim, model.blocks[0].attn
    attn.qkv.weight[:, : 2 * dim] *= 1e18  # q and k
    ctx = vitnp.Context(train=True, rng=0)
    loss, dlogits = vitnp.softmax_cross_entropy(model.forward(images_for(model), ctx), labels_for(model))
    scores = ctx.saved(attn).q @ ctx.saved(attn).k.swapaxes(-1, -2)
    assert abs(scores).max() > 1e36  # or the claim would be empty
    model.backward(dlogits, ctx)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in model.gradients(ctx).values())


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_logits_of_1e4_train_on(size):
    model = hard_model("float32")
    model.parameters()["head.bias"][1] = size
    step = sharded(model, clip_norm=1.0)
    assert np.isfinite(step.step(images_for(model), labels_for(model)))
    assert np.isfinite(model.flat).all()


def test_one_class_has_no_loss_and_trains_on():
    model = hard_model("float32", num_classes=1)
    step = sharded(model, clip_norm=1.0)
    assert float(step.step(images_for(model), np.zeros(BATCH, int))) == 0
    assert np.isfinite(model.flat).all()


def in_halves(work, size):
    work(0, size // 2)
    work(size // 2, size)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["patch_embed.weight", "blocks.1.attn.qkv.bias", "head.bias"])
def test_a_parameter_that_a_step_has_made_not_finite_is_named(name, bad):
    model = hard_model("float32")
    model.parameters()[name][..., -1] = bad
    with pytest.raises(FloatingPointError, match=f"the step has made the parameter {name} NaN or infinity"):
        check_update(model, in_halves)


def test_infinities_of_both_signs_do_not_make_up_for_each_other():
    model = hard_model("float32")
    model.parameters()["head.bias"][:2] = np.inf, -np.inf
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match=r"the parameter head\.bias"):
        check_update(model, in_halves)


def test_finite_parameters_whose_sum_overflows_are_no_fault():
    model = hard_model("float32")
    model.flat[...] = 1e38
    with np.errstate(over="ignore"):
        check_update(model, in_halves)


@pytest.mark.parametrize("make", [lambda model: vitnp.Adam(model, lr=1e39), lambda model: vitnp.SGD(model, lr=1e39)])
def test_an_update_that_overflows_ends_the_step_without_a_warning(make):
    model = hard_model("float32")
    step = vitnp.ShardedStep(model, make(model), shards=2)
    with pytest.raises(FloatingPointError, match="the step has made the parameter"):
        step.step(images_for(model), labels_for(model))


def test_the_average_is_not_spoiled_by_an_update_that_overflows():
    model = hard_model("float32")
    average = vitnp.MovingAverage(model, 0.9)
    step = vitnp.ShardedStep(model, vitnp.Adam(model, lr=1e39), shards=2, average=average)
    with pytest.raises(FloatingPointError, match="the step has made the parameter"):
        step.step(images_for(model), labels_for(model))
    assert np.isfinite(average.averaged.flat).all()
