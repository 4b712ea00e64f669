"""What people do to models that nobody thought of: copies, mixed-up optimizers, infinities, odd memory."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers import hard_model, normal

import vitnp
from vitnp.layers import Dropout, LayerNorm, Linear

LABELS = np.array([3, 0, 2, 1, 0])
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_same_numbers_and_trains_on_its_own(make_copy):
    model = hard_model()
    before, twin = model.flat.copy(), make_copy(model)
    np.testing.assert_array_equal(twin.flat, before)
    vitnp.ShardedStep(twin, vitnp.Adam(twin), shards=2).step(normal((5, 6, 8, 3), 1), LABELS)
    assert not np.array_equal(twin.parameters()["norm.gamma"], model.parameters()["norm.gamma"])
    np.testing.assert_array_equal(model.flat, before)


def test_an_optimizer_of_another_model_is_refused():
    model = hard_model()
    with pytest.raises(ValueError, match="made for another model"):
        vitnp.ShardedStep(hard_model(), vitnp.Adam(model))
    with pytest.raises(ValueError, match=r"holds no gradients of the optimizer.s model"):
        vitnp.Adam(model).step(vitnp.Context(train=True))


def test_an_average_of_another_model_is_refused():
    model = hard_model()
    with pytest.raises(ValueError, match="the average is of another model"):
        vitnp.ShardedStep(model, vitnp.SGD(model, 0.1), average=vitnp.MovingAverage(hard_model()))


@pytest.mark.parametrize("kind", [vitnp.Adam, vitnp.SGD])
def test_an_optimizer_of_a_lone_layer_is_refused(kind):
    with pytest.raises(TypeError, match=f"{kind.__name__} trains a VisionTransformer"):
        kind(Linear(2, 2), lr=0.1)


def test_an_infinite_clip_norm_means_none():
    gradients = normal(7, 0)
    before = gradients.copy()
    assert vitnp.clip_global_norm(gradients, float("inf")) == np.sqrt(before @ before)
    np.testing.assert_array_equal(gradients, before)


@pytest.mark.parametrize("max_norm", [0, -1, float("nan")])
def test_a_clip_norm_that_cannot_be_is_refused(max_norm):
    with pytest.raises(ValueError, match=r"max_norm is .*; it must be above 0"):
        vitnp.clip_global_norm(normal(7, 0), max_norm)


def test_zero_gradients_are_clipped_to_zero():
    gradients = np.zeros(7)
    vitnp.clip_global_norm(gradients, 1.0)
    assert not gradients.any()


def test_a_gradient_that_is_not_finite_raises_without_clipping_too():
    model = hard_model()
    model.parameters()["head.weight"][...] *= 1e200
    step, before = vitnp.ShardedStep(model, vitnp.Adam(model), shards=2), model.flat.copy()
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match="norm is inf"):
        step.step(normal((5, 6, 8, 3), 1), LABELS)
    np.testing.assert_array_equal(model.flat, before)


def test_a_class_without_target_may_have_the_logit_minus_infinity():
    logits = normal((3, 4), 0)
    logits[0, 3] = -np.inf
    loss, dlogits = vitnp.softmax_cross_entropy(logits, [0, 1, 2])
    truth, dtruth = vitnp.softmax_cross_entropy(np.where(np.isinf(logits), -1e4, logits), [0, 1, 2])
    assert loss == pytest.approx(truth, rel=1e-15)
    np.testing.assert_allclose(dlogits, dtruth, atol=1e-16)


def test_a_logit_of_plus_infinity_is_refused():
    logits = normal((3, 4), 0)
    logits[1, 2] = np.inf
    with pytest.raises(ValueError, match="logits of sample 1 are NaN or inf"):
        vitnp.softmax_cross_entropy(logits, [0, 1, 2])


def test_numpy_scalars_do_not_turn_the_loss_into_float64():
    logits = normal((3, 4), 0).astype("float32")
    loss, dlogits = vitnp.softmax_cross_entropy(logits, [0, 1, 2], np.float64(0.1), np.int64(6))
    assert (loss.dtype, dlogits.dtype) == ("float32", "float32")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_that_cannot_be_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; it must be at least 1"):
        vitnp.softmax_cross_entropy(normal((3, 4), 0), [0, 1, 2], batch_size=batch_size)


def test_complex_images_are_refused_by_a_real_model():
    with pytest.raises(TypeError, match="images are complex128; expected floats"):
        hard_model().forward(normal((5, 6, 8, 3), 1) + 1j)


def test_numpy_integers_are_sizes():
    config = vitnp.ViTConfig(image_size=np.int64(28), dim=np.int32(64))
    assert config == vitnp.ViTConfig()
    assert {type(size) for size in (*config.image_size, config.dim)} == {int}


@pytest.mark.parametrize(
    "wrong", [{"image_size": 28.0}, {"image_size": None}, {"dropout": "0.1"}, {"layer_norm_eps": float("inf")}]
)
def test_a_field_of_another_type_is_a_config_error_that_names_it(wrong):
    with pytest.raises(vitnp.ConfigError, match=next(iter(wrong))):
        vitnp.ViTConfig(**wrong)


@pytest.mark.parametrize("dtype", ["float16", "int32", "longdouble"])
def test_a_dtype_that_no_kernel_was_tested_for_is_refused(dtype):
    with pytest.raises(ValueError, match="choose one of float32, float64, complex64, complex128"):
        vitnp.VisionTransformer(vitnp.ViTConfig(depth=1), dtype=dtype)


def test_a_gradient_of_another_shape_is_not_broadcast():
    with pytest.raises(ValueError, match=r"LayerNorm's gamma has shape \(1,\); expected \(4,\)"):
        vitnp.Context().add_grad(LayerNorm(4), gamma=np.ones(1))


def test_what_was_written_to_a_gradient_before_backward_stays():
    layer, x, ctx = Linear(3, 2, dtype="float64"), normal((5, 3), 0), vitnp.Context(record=True)
    layer.gradients(ctx)["weight"][...] = 100
    layer.forward(x, ctx)
    layer.backward(normal((5, 2), 1), ctx)
    np.testing.assert_allclose(layer.gradients(ctx)["weight"], 100 + x.T @ normal((5, 2), 1))


def test_two_lone_dropouts_draw_different_masks():
    first, second, ctx = Dropout(0.5), Dropout(0.5), vitnp.Context(train=True, rng=0)
    x = np.ones((5, 40))
    assert not np.array_equal(first.forward(x, ctx), second.forward(x, ctx))


@pytest.mark.parametrize("value", [1.0, 100.0, 1e4])
def test_layer_norm_of_constant_float32_rows_is_beta(value):
    layer = LayerNorm(768)
    layer.beta[...] = normal(768, 0)
    y = layer.forward(np.full((5, 768), value, "float32"), vitnp.Context())
    np.testing.assert_allclose(y, np.tile(layer.beta, (5, 1)), atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_central_differences_pass_a_model_with_its_own_initialisation(seed):
    config = vitnp.ViTConfig(
        image_size=(6, 8), patch_size=(3, 2), channels=3, num_classes=4, dim=32, depth=2, num_heads=2, mlp_dim=40
    )
    model = vitnp.VisionTransformer(config, rng=seed, dtype="float64")
    model.parameters()["head.weight"][...] = normal((32, 4), seed)
    report = vitnp.gradcheck(model, normal((5, 6, 8, 3), seed), LABELS, method="central", mode="directions", seed=seed)
    assert report.ok, report


@pytest.mark.parametrize("size", [1e-6, 1e8])
def test_central_differences_do_not_depend_on_the_size_of_the_numbers(size):
    a = size * normal((3, 4), 0)
    vitnp.gradcheck(lambda a: (a**3).sum(), {"a": a}, grads={"a": 3 * a**2}, method="central").raise_if_failed()


@pytest.mark.parametrize("mode", ["full", "directions"])
def test_arrays_in_fortran_order_are_checked_right(mode):
    a = np.asfortranarray(normal((3, 4), 0))
    vitnp.gradcheck(lambda a: (a**3).sum(), {"a": a}, grads={"a": 3 * a**2}, mode=mode).raise_if_failed()


CONCURRENT_STEPS = """
import threading, numpy, vitnp
from threadpoolctl import ThreadpoolController

def threads():
    return {info["num_threads"] for info in ThreadpoolController().info() if info["user_api"] == "blas"}

def train():
    model = vitnp.VisionTransformer(vitnp.ViTConfig(depth=1))
    step = vitnp.ShardedStep(model, vitnp.Adam(model), shards=2)
    for _ in range(20):
        step.step(numpy.zeros((4, 28, 28, 1), "float32"), [0, 1, 2, 3])

before = threads()
trainers = [threading.Thread(target=train) for _ in range(3)]
[trainer.start() for trainer in trainers]
[trainer.join() for trainer in trainers]
print(threads() == before)
"""


def test_blas_gets_its_threads_back_after_steps_on_several_threads():
    # in a process of its own, for here the tests hold BLAS to one thread already
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", CONCURRENT_STEPS], env=environment, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("True\n", "")
