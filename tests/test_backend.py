"""The same code on NumPy, on the strict double of CuPy and on CuPy: the same numbers, the same types, no waiting."""

import math
import sys
import threading
import types

import numpy as np
import pytest
import strict_cupy
from helpers import (
    CPU,
    LAYERS,
    copies,
    error,
    hard_model,
    images_for,
    labels_for,
    make_layer,
    normal,
    one_pass,
    same_bits,
    soft_labels_for,
    worst_error,
)

import vitnp
from vitnp import SGD, Adam, Context, DeviceError, MovingAverage, ShardedStep, array_module, to_cpu, to_device
from vitnp.layers.gelu import erf

every_layer = pytest.mark.parametrize("name", LAYERS)


def pass_of(layer, x, backend, repeats=1):
    """-> output, gradients by name with that of the input, in NumPy; inputs are in NumPy too"""
    layer, x, ctx = layer.to_device(backend.device), backend.put(x), Context(train=True, rng=3)
    y = layer.forward(x, ctx)
    dy = backend.put(normal(y.shape, 9).astype(y.dtype))
    for _ in range(repeats):
        dx = layer.backward(dy, ctx)
    gradients = {name: backend.get(gradient).copy() for name, gradient in layer.gradients(ctx).items()}
    return backend.get(y).copy(), {**gradients, "input": backend.get(dx).copy()}


# -- layers -----------------------------------------------------------------------------------------------------------


@every_layer
def test_output_is_that_of_numpy(name, backend):
    layer, x = make_layer(name)
    assert error(pass_of(layer, x, backend)[0], pass_of(layer, x, CPU)[0]) < 1e-12


@every_layer
def test_gradients_are_those_of_numpy(name, backend):
    layer, x = make_layer(name)
    assert worst_error(pass_of(layer, x, backend)[1], pass_of(layer, x, CPU)[1]) < 1e-12


@every_layer
def test_gradients_added_to_are_those_of_numpy(name, backend):
    layer, x = make_layer(name)
    assert worst_error(pass_of(layer, x, backend, 2)[1], pass_of(layer, x, CPU, 2)[1]) < 1e-12


@every_layer
def test_float32_stays_float32(name, backend):
    y, gradients = pass_of(*make_layer(name, "float32"), backend)
    assert {array.dtype.name for array in (y, *gradients.values())} == {"float32"}


@every_layer
def test_complex_pass_is_that_of_numpy(name, backend):
    layer, x = make_layer(name)
    twin, x = layer.astype("complex128"), x * (1 + 1e-3j)
    found = twin.to_device(backend.device).forward(backend.put(x), Context(train=True, rng=3))
    assert error(backend.get(found), twin.forward(x, Context(train=True, rng=3))) < 1e-12


def test_gradcheck_passes_on_the_device(backend):
    model = hard_model().to_device(backend.device)
    images, labels = backend.put(images_for(hard_model())), labels_for(hard_model())
    vitnp.gradcheck(model, images, labels, mode="directions", label_smoothing=0.1).raise_if_failed()


def test_erf_is_that_of_numpy(backend):
    x = np.append(np.linspace(-8, 8, 1001), [np.nan, np.inf, -np.inf])
    np.testing.assert_allclose(backend.get(erf(backend.put(x))), erf(x), rtol=0, atol=2e-15, equal_nan=True)


def test_dropout_masks_are_those_of_numpy(backend):
    layer = vitnp.layers.Dropout(0.3)
    ones = np.ones((40, 9, 6))
    found = layer.forward(backend.put(ones), Context(train=True, rng=3))
    assert same_bits(backend.get(found), layer.forward(ones, Context(train=True, rng=3)))


# -- a training step --------------------------------------------------------------------------------------------------


def training(backend, steps=3, dtype="float64", soft=False, **options):
    """-> losses, parameters"""
    model = hard_model(dtype).to_device(backend.device)
    optimizer = Adam(model, lr=0.01, weight_decay=0.1)
    step = ShardedStep(model, optimizer, clip_norm=1.0, label_smoothing=0.1, rng=5, **options)
    losses = []
    for seed in range(steps):
        images = backend.put(images_for(hard_model(dtype), seed=seed))
        labels = soft_labels_for(model, seed=seed) if soft else labels_for(model, seed=seed)
        losses.append(step.step(images, backend.put(labels)))
    losses = [float(backend.get(loss)) if backend.device == "cuda" else float(loss) for loss in losses]
    return losses, {name: backend.get(array).copy() for name, array in model.parameters().items()}


@pytest.mark.parametrize("soft", [False, True], ids=["integer labels", "soft labels"])
def test_losses_of_training_are_those_of_numpy(backend, soft):
    found, truth = (training(where, soft=soft)[0] for where in (backend, CPU))
    assert found == pytest.approx(truth, rel=1e-12)


def test_losses_of_a_hundred_steps_in_float32_are_those_of_numpy(backend):
    found, truth = (training(where, 100, "float32")[0] for where in (backend, CPU))
    assert found == pytest.approx(truth, rel=1e-5)


def test_training_ends_at_the_parameters_of_numpy(backend):
    (_, found), (_, truth) = training(backend), training(CPU)
    # The key bias has no gradient, and Adam makes steps even of the rounding noise there: q and v only.
    for name in [name for name in truth if name.endswith("qkv.bias")]:
        found[name], truth[name] = (np.delete(p[name].reshape(3, -1), 1, axis=0) for p in (found, truth))
    assert worst_error(found, truth) < 1e-10


def test_sgd_and_a_moving_average_end_at_the_parameters_of_numpy(backend):
    ends = []
    for where in (backend, CPU):
        model = hard_model().to_device(where.device)
        average = MovingAverage(model, 0.5)
        step = ShardedStep(model, SGD(model, 0.1, weight_decay=0.1), clip_norm=1.0, rng=5, average=average)
        for seed in range(3):
            step.step(where.put(images_for(hard_model(), seed=seed)), where.put(labels_for(model, seed=seed)))
        ends.append({name: where.get(array).copy() for name, array in average.averaged.parameters().items()})
    assert worst_error(*ends) < 1e-12


def test_training_keeps_float32(backend):
    _, parameters = training(backend, dtype="float32")
    assert {array.dtype.name for array in parameters.values()} == {"float32"}


def test_micro_batches_and_shards_run_on_the_device(backend):
    found, truth = training(backend, shards=2, micro_batch=2)[0], training(CPU)[0]
    assert found == pytest.approx(truth, rel=1e-12)


def test_a_device_has_one_shard_unless_said(double):
    model = hard_model().to_device("cuda")
    assert ShardedStep(model, Adam(model)).shards == 1


def test_evaluation_is_that_of_numpy(backend):
    model = hard_model()
    images, labels = images_for(model), labels_for(model)
    truth = vitnp.evaluate(model, images, labels)
    found = vitnp.evaluate(model.to_device(backend.device), backend.put(images), labels)
    assert found.loss == pytest.approx(truth.loss, rel=1e-12)
    assert np.array_equal(found.predicted, truth.predicted)


def test_a_device_gets_its_orders_from_the_thread_that_asks(double, monkeypatch):
    """Which GPU is the current one, and which stream, is a setting of each thread."""
    model = hard_model().to_device("cuda")
    images, labels = images_for(hard_model()), labels_for(model)
    threads, forward = set(), model.forward
    monkeypatch.setattr(model, "forward", lambda *args: threads.add(threading.current_thread()) or forward(*args))
    ShardedStep(model, Adam(model), shards=2).step(double.put(images), labels)
    vitnp.predict(model, images)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("soft", [False, True], ids=["integer labels", "soft labels"])
@pytest.mark.parametrize("uploaded", [False, True], ids=["from the host", "on the device"])
def test_a_training_step_never_makes_the_host_wait(double, soft, uploaded):
    model = hard_model("float32").to_device("cuda")
    step = ShardedStep(model, Adam(model, weight_decay=0.1), clip_norm=1.0, label_smoothing=0.1, micro_batch=2)
    images = double.put(images_for(hard_model("float32")))
    labels = soft_labels_for(model) if soft else labels_for(model)
    with strict_cupy.count_syncs() as syncs:
        step.step(images, double.put(labels) if uploaded else labels)
    assert syncs == []


@pytest.mark.parametrize("changes", [{}, {"gelu": "erf", "pool": "mean", "representation_size": 11}], ids=str)
def test_a_pass_makes_no_float64_array_of_float32(double, changes):
    model = hard_model("float32", **changes).to_device("cuda")
    ctx = Context(train=True, rng=0)
    for _ in range(2):
        one_pass(model, ctx, double.put(images_for(hard_model("float32"))), labels_for(model), 0.1)
    buffers = [*ctx._buffers.values(), *ctx._flat_grads.values()]
    saved = [value for record in ctx._saved.values() for value in vars(record).values() if value is not None]
    assert {array.dtype.name for array in (*buffers, *saved)} == {"float32"}


@pytest.mark.parametrize("changes", [{}, {"gelu": "erf", "pool": "mean", "representation_size": 11}], ids=str)
def test_a_training_step_in_float32_computes_nothing_in_float64(double, monkeypatch, changes):
    model = hard_model("float32", **changes).to_device("cuda")
    step = ShardedStep(model, Adam(model, weight_decay=0.1), clip_norm=1.0, label_smoothing=0.1)
    images, labels = double.put(images_for(hard_model("float32"))), labels_for(model)
    made, of = set(), strict_cupy.ndarray._of
    monkeypatch.setattr(strict_cupy.ndarray, "_of", lambda array: made.add(array.dtype.name) or of(array))
    step.step(images, labels)
    assert {name for name in made if name.startswith(("float", "complex"))} == {"float32"}


# -- arrays and devices -----------------------------------------------------------------------------------------------


def test_module_of_an_array_is_the_one_that_made_it(backend):
    x = backend.put(np.ones(3))
    assert array_module(x).__name__ == ("numpy" if backend.device == "cpu" else "cupy")


def test_module_of_a_subclass_or_a_scalar_is_numpy():
    assert array_module(np.ones(3).view(np.memmap)) is np
    assert array_module(np.float32(1)) is np


def test_array_comes_back_from_the_device_with_its_bits(backend):
    x = normal((5, 4), 1)
    assert same_bits(to_cpu(to_device(x, backend.device)), x)


def test_array_that_is_on_the_cpu_already_is_not_copied():
    x = normal(3)
    assert to_cpu(x) is x
    assert to_device(x, "cpu") is x


def test_array_that_is_on_the_device_already_is_not_copied(double):
    x = double.put(normal(3))
    assert to_device(x, "cuda") is x


def test_model_knows_its_device(backend):
    model = hard_model().to_device(backend.device)
    assert model.device == model.blocks[0].device == backend.device


def test_copy_on_the_device_has_the_parameters_of_the_original(backend):
    model = hard_model()
    twin = model.to_device(backend.device)
    for name, parameter in twin.parameters().items():
        assert same_bits(backend.get(parameter).copy(), model.parameters()[name].copy())


def test_copy_on_the_device_is_laid_out_in_one_vector_too(backend):
    twin = hard_model().to_device(backend.device)
    twin.flat.fill(2)
    assert all((backend.get(parameter) == 2).all() for parameter in twin.parameters().values())


def test_parameters_can_be_drawn_anew_on_the_device(backend):
    model = hard_model()
    twin = model.to_device(backend.device)
    for layer in (model, twin):
        layer.initialize(4)
    found = {name: backend.get(parameter) for name, parameter in twin.parameters().items()}
    assert all(same_bits(found[name].copy(), truth) for name, truth in copies(model.parameters()).items())


def test_images_on_the_host_are_taken_to_the_device_of_the_model(backend):
    model = hard_model()
    logits = model.to_device(backend.device).forward(images_for(model))
    assert error(backend.get(logits), model.forward(images_for(model))) < 1e-12


def test_images_on_the_device_are_taken_to_a_model_on_the_host(double):
    model = hard_model()
    logits = model.forward(double.put(images_for(model)))
    assert same_bits(logits, model.forward(images_for(model)))


@pytest.mark.parametrize("soft", [False, True], ids=["integer labels", "soft labels"])
def test_labels_on_the_device_go_with_logits_on_the_host(double, soft):
    model = hard_model()
    labels = soft_labels_for(model) if soft else labels_for(model)
    logits = model.forward(images_for(model))
    found = vitnp.softmax_cross_entropy(logits, double.put(labels))
    assert math.isclose(found[0], vitnp.softmax_cross_entropy(logits, labels)[0], rel_tol=1e-15)


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:0", ""])
def test_unknown_device_is_refused_with_the_choices(device):
    with pytest.raises(ValueError, match=f'device is {device!r}; choose "cpu" or "cuda"'):
        to_device(np.ones(1), device)


def without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


def without_gpu(monkeypatch, count=lambda: 0):
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(is_available=lambda: False, runtime=types.SimpleNamespace(getDeviceCount=count))
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def with_an_old_driver(monkeypatch):
    def count():
        raise RuntimeError("cudaErrorInsufficientDriver: driver too old")

    without_gpu(monkeypatch, count)


def with_a_broken_cupy(monkeypatch):
    _refuse_import(monkeypatch, ImportError("\n====\nFailed to import CuPy.\n"), ImportError("libcudart.so.13: none"))


def with_half_a_cupy(monkeypatch):
    _refuse_import(monkeypatch, ModuleNotFoundError("No module named 'cuda'", name="cuda"))


def _refuse_import(monkeypatch, error, cause=None):
    def load(name):
        raise error from cause

    monkeypatch.setattr(vitnp.backend.importlib, "import_module", load)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (without_cupy, r"needs CuPy, which is not installed: pip install 'cupy-cuda13x\[ctk\]'"),
        (without_gpu, r"NVIDIA GPU, and CuPy finds none \(CUDA counts 0\): install the NVIDIA driver"),
        (with_an_old_driver, r"none \(cudaErrorInsufficientDriver: driver too old\): .*the CuPy of its CUDA version"),
        (with_a_broken_cupy, r"is installed and cannot be loaded \(libcudart.so.13: none\): install it anew"),
        (with_half_a_cupy, r"is installed and cannot be loaded \(No module named 'cuda'\): install it anew"),
    ],
)
@pytest.mark.parametrize("ask", [lambda: to_device(np.ones(1), "cuda"), lambda: hard_model().to_device("cuda")])
def test_a_device_that_is_not_there_is_an_error_that_says_what_to_install(monkeypatch, remove, message, ask):
    remove(monkeypatch)
    with pytest.raises(DeviceError, match=message):
        ask()


def test_the_cpu_needs_no_cupy(monkeypatch):
    without_cupy(monkeypatch)
    model = hard_model().to_device("cpu")
    one_pass(model, Context(train=True, rng=0), images_for(model), labels_for(model))
