"""Inference: the same numbers as the network's own forward, whatever the batches, and no answer without a number."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref

import numpy as np
import pytest
from helpers import error, hard_model, images_for, labels_for, normal, randomize, same_bits

import vitnp
from vitnp import inference
from vitnp.data import DataError, normalize

N = 23  # more than two batches of 7, the last one smaller
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pixels(n=N, seed=4):
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 8, 3), np.uint8)


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


# the numbers


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_probabilities_are_the_softmax_of_the_logits_whatever_the_batches(batch_size):
    model = hard_model()
    images = images_for(model, N)
    found = vitnp.predict(model, images, batch_size=batch_size)
    assert error(found, softmax(model.forward(images))) < 1e-13


def test_uint8_images_are_normalised_as_in_training():
    model = hard_model()
    found = vitnp.predict(model, pixels(), mean=MEAN, std=STD, batch_size=7)
    assert error(found, softmax(model.forward(normalize(pixels(), MEAN, STD, "float64")))) < 1e-13


def test_probabilities_of_large_logits_are_finite():
    model = hard_model("float32")
    model.classifier.head.weight[...] *= 1e4
    images = images_for(model)
    found = vitnp.predict(model, images)
    assert (found.max(-1) > 0.99).all()
    assert (found.argmax(-1) == model.forward(images).argmax(-1)).all()


def test_probabilities_keep_the_models_dtype():
    model = hard_model("float32")
    assert vitnp.predict(model, images_for(model)).dtype == np.float32


def test_the_same_call_gives_the_same_bits():
    model = hard_model("float32")
    images = images_for(model, 200)
    assert same_bits(vitnp.predict(model, images, batch_size=16), vitnp.predict(model, images, batch_size=16))


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_features_are_what_the_head_reads(pool):
    model = hard_model(pool=pool)
    images = images_for(model, N)
    found = vitnp.features(model, images, batch_size=7)
    assert found.shape == (N, 6)
    head = model.classifier.head
    assert error(found @ head.weight + head.bias, model.forward(images)) < 1e-13


def test_features_come_before_the_pre_logits():
    model = hard_model(representation_size=11)
    images = images_for(model)
    pre, head = model.classifier.pre_logits, model.classifier.head
    found = vitnp.features(model, images)
    logits = np.tanh(found @ pre.weight + pre.bias) @ head.weight + head.bias
    assert error(logits, model.forward(images)) < 1e-13


def test_features_of_the_model_are_memory_of_their_own():
    model, ctx = hard_model(), vitnp.Context()
    first = model.features(images_for(model, seed=1), ctx)
    before = first.copy()
    model.features(images_for(model, seed=2), ctx)
    assert same_bits(first, before)


def test_results_of_a_model_on_a_gpu_are_numpy_arrays(double):
    model = hard_model()
    images = images_for(model, N)
    found = vitnp.predict(model.to_device(double.device), images, batch_size=7)
    assert type(found) is np.ndarray
    assert error(found, vitnp.predict(model, images)) < 1e-12


def test_images_on_a_gpu_are_evaluated_there(double):
    model = hard_model()
    images, labels = images_for(model, N), labels_for(model, N)
    found = vitnp.evaluate(model.to_device(double.device), double.put(images), double.put(labels))
    assert found.accuracy == vitnp.evaluate(model, images, labels).accuracy


def test_several_models_predict_on_several_threads():
    models = [hard_model(seed=seed) for seed in range(3)]
    images, found = images_for(models[0], 40), [None] * 3

    def predict(i):
        found[i] = vitnp.predict(models[i], images, batch_size=4)

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, probabilities in zip(models, found, strict=True):
        assert error(probabilities, softmax(model.forward(images))) < 1e-13


def test_no_more_than_a_batch_is_in_the_network_at_a_time(monkeypatch):
    model = hard_model()
    sizes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x, ctx: sizes.append(len(x)) or forward(x, ctx))
    monkeypatch.setattr("vitnp.inference.usable_cores", lambda: 3)
    vitnp.predict(model, images_for(model, 100), batch_size=12)
    assert max(sizes) == 4  # on each of three threads


# evaluation


def evaluation(labels=None, **changes):
    model = hard_model(**changes)
    images = images_for(model, N)
    labels = labels_for(model, N) if labels is None else labels
    return vitnp.evaluate(model, images, labels, batch_size=7), model.forward(images), labels


def test_accuracy_is_that_of_the_largest_logits():
    found, logits, labels = evaluation()
    assert found.accuracy == (logits.argmax(-1) == labels).mean()
    assert (found.predicted == logits.argmax(-1)).all()
    assert found.samples == N


def test_loss_is_the_mean_cross_entropy():
    found, logits, labels = evaluation()
    assert found.loss == pytest.approx(-np.log(softmax(logits)[np.arange(N), labels]).mean(), rel=1e-12)


def test_rows_of_the_confusion_are_true_and_columns_predicted_classes():
    found, logits, labels = evaluation()
    expected = np.zeros((4, 4), int)
    for label, guess in zip(labels, logits.argmax(-1), strict=True):
        expected[label, guess] += 1
    assert (found.confusion == expected).all()
    assert (expected != expected.T).any()


def test_accuracy_per_class_is_that_of_its_images():
    found, logits, labels = evaluation()
    for name in range(4):
        assert found.per_class[name] == (logits.argmax(-1)[labels == name] == name).mean()


def test_a_class_without_images_has_no_accuracy():
    found, *_ = evaluation(np.full(N, 2))
    assert np.isnan(found.per_class).tolist() == [True, True, False, True]


def test_mistakes_are_the_wrong_ones_and_the_most_confident_come_first():
    found, logits, labels = evaluation()
    guess = logits.argmax(-1)
    wrong = found.mistakes()
    assert sorted(wrong) == np.flatnonzero(guess != labels).tolist()
    assert (np.diff(softmax(logits).max(-1)[wrong]) <= 0).all()


def test_mistakes_of_equal_confidence_come_in_the_order_of_the_images():
    predicted, labels, confusion = np.zeros(200, int), np.ones(200, int), np.array([[0, 0], [200, 0]])
    probabilities = np.tile([[0.75, 0.25], [0.5, 0.5]], (100, 1))
    found = vitnp.Evaluation(1.0, 0.0, np.zeros(2), confusion, probabilities, predicted, labels)
    assert found.mistakes().tolist() == [*range(0, 200, 2), *range(1, 200, 2)]


def test_memory_of_inference_does_not_grow_with_depth():
    def kilobytes(depth):
        model = hard_model("float32", depth=depth)
        images = images_for(model, 400)
        tracemalloc.start()
        vitnp.predict(model, images)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 1e3

    kilobytes(1)  # what is loaded and cached at first
    assert kilobytes(8) < kilobytes(1) + 1000  # each block's own would be 8,000 more


def test_few_images_are_spread_over_all_cores(monkeypatch):
    model = hard_model("float32")
    monkeypatch.setattr("vitnp.inference.usable_cores", lambda: 3)
    seen = []
    model.forward = lambda x, ctx: seen.append(len(x)) or type(model).forward(model, x, ctx)
    vitnp.predict(model, images_for(model, 8))
    assert sorted(seen) == [2, 3, 3]


def test_memory_and_threads_stay_with_the_model_for_the_next_call(monkeypatch):
    monkeypatch.setattr("vitnp.inference.usable_cores", lambda: 2)
    model = hard_model()
    images, seen, forward = images_for(model, 40), set(), model.forward
    monkeypatch.setattr(model, "forward", lambda x, ctx: seen.add(ctx) or forward(x, ctx))
    for _ in range(3):
        vitnp.predict(model, images, batch_size=4)
    assert len(seen) == 2
    monkeypatch.setattr("vitnp.inference.usable_cores", lambda: 3)
    assert error(vitnp.predict(model, images), softmax(forward(images))) < 1e-13


def test_parameters_that_change_between_calls_change_the_answers():
    model = hard_model()
    images = images_for(model, 5)
    vitnp.predict(model, images)
    randomize(model, 7)
    assert error(vitnp.predict(model, images), softmax(model.forward(images))) < 1e-13


def test_a_model_that_is_let_go_takes_its_threads_along():
    model = hard_model()
    vitnp.predict(model, images_for(model, 5))
    before, reference = threading.active_count(), weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    deadline = time.monotonic() + 5
    while threading.active_count() >= before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() < before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_process_predicts_with_threads_of_its_own():
    child = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60)
    assert child.stdout.split() == ["0"], child.stderr


FORKING = """
import os, numpy, vitnp
model = vitnp.VisionTransformer(vitnp.ViTConfig(depth=1))
images = numpy.ones((3, 28, 28, 1), "float32")
vitnp.predict(model, images)
pid = os.fork()
if pid == 0:
    vitnp.predict(model, images)
    os._exit(0)
print(os.waitpid(pid, 0)[1])
"""


def test_an_error_in_one_pass_leaves_none_running_and_the_next_call_right(monkeypatch):
    model = hard_model()
    images, calls, running, forward = images_for(model, 40), itertools.count(), [], model.forward

    def failing(x, ctx):
        running.append(1)
        try:
            if next(calls) == 3:
                raise MemoryError("no memory for this one")
            time.sleep(0.01)
            return forward(x, ctx)
        finally:
            running.append(-1)

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(MemoryError):
        vitnp.predict(model, images, batch_size=2)
    assert sum(running) == 0
    monkeypatch.setattr(model, "forward", forward)
    assert error(vitnp.predict(model, images), softmax(forward(images))) < 1e-13


# refusals


def test_images_of_another_size_are_refused_with_the_right_one():
    with pytest.raises(ValueError, match=r"images have shape \(2, 8, 6, 3\); expected \(n, 6, 8, 3\)"):
        vitnp.predict(hard_model(), np.zeros((2, 8, 6, 3)))


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="n at least 1"):
        vitnp.predict(hard_model(), np.zeros((0, 6, 8, 3)))


def test_uint8_images_without_mean_and_std_are_refused():
    with pytest.raises(ValueError, match="images are uint8, without mean and std"):
        vitnp.predict(hard_model(), pixels(), mean=MEAN)


def test_floats_are_not_normalised_a_second_time():
    with pytest.raises(ValueError, match="images are float64, with mean or std"):
        vitnp.predict(hard_model(), np.zeros((2, 6, 8, 3)), mean=MEAN, std=STD)


def test_integers_other_than_uint8_are_refused():
    with pytest.raises(TypeError, match="images are int64; expected floats"):
        vitnp.predict(hard_model(), np.zeros((2, 6, 8, 3), int))


def test_a_mean_for_each_channel_is_wanted():
    with pytest.raises(DataError, match="expected 3 numbers in each"):
        vitnp.predict(hard_model(), pixels(), mean=(0.5,), std=(0.5,))


def test_a_pixel_that_is_nan_is_told_by_its_image():
    images = normal((N, 6, 8, 3))
    images[[9, 17], 2, 3, 1] = np.nan
    with pytest.raises(ValueError, match="image 9 has pixels that are NaN or inf"):
        vitnp.predict(hard_model(), images, batch_size=4)


@pytest.mark.parametrize("function", [vitnp.predict, vitnp.features])
def test_a_diverged_model_gives_an_error_and_no_answer(function):
    model = hard_model()
    model.blocks[0].mlp.fc1.bias[0] = np.nan
    with pytest.raises(ValueError, match="image 0: the network's output is NaN or inf"):
        function(model, images_for(model, N))


def test_logits_that_are_all_nan_are_no_accuracy():
    model = hard_model()
    model.classifier.head.weight[...] = np.nan
    with pytest.raises(ValueError, match="output is NaN or inf"):
        vitnp.evaluate(model, images_for(model), np.zeros(5, int))


def test_an_error_on_a_thread_reaches_the_caller_and_leaves_the_next_call_free(monkeypatch):
    model = hard_model()
    forward, calls = model.forward, []

    def failing(x, ctx):
        calls.append(1)
        raise MemoryError("full")

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(MemoryError, match="full"):
        vitnp.predict(model, images_for(model, 200), batch_size=2)
    monkeypatch.setattr(model, "forward", forward)
    assert vitnp.predict(model, images_for(model)).shape == (5, 4)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0, 1, 2, 3, 4], ValueError, "label 4 of image 4 is outside the 4 classes 0 to 3"),
        ([0, 1, -1, 3, 0], ValueError, "label -1 of image 2 is outside"),
        ([0, 1], ValueError, r"labels have shape \(2,\); expected \(5,\)"),
        (np.eye(5, 4), TypeError, "labels are float64; expected integers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, kind, message):
    model = hard_model()
    with pytest.raises(kind, match=message):
        vitnp.evaluate(model, images_for(model), labels)


# classifiers


def saved(path, **progress):
    model = randomize(vitnp.VisionTransformer(vitnp.ViTConfig(depth=1, num_classes=2)))
    everything = {"classes": ("cat", "dog"), "mean": (0.5,), "std": (0.25,), **progress}
    vitnp.save_checkpoint(path, model, progress={name: value for name, value in everything.items() if value})
    return model


def test_a_classifier_knows_classes_and_scale_of_its_training(tmp_path):
    model = saved(tmp_path / "m", script="train_x.py")
    found = vitnp.load_classifier(tmp_path / "m")
    assert (found.class_names, found.mean, found.std) == (("cat", "dog"), (0.5,), (0.25,))
    assert found.progress["script"] == "train_x.py"
    assert same_bits(found.model.flat, model.flat)


@pytest.mark.parametrize(
    ("progress", "message"),
    [
        ({"classes": None}, "classes is None; expected a list of 2"),
        ({"classes": ("cat",)}, r"classes is \['cat'\]; expected a list of 2"),
        ({"mean": (0.1, 0.2)}, r"mean is \[0.1, 0.2\]; expected a list of 1"),
        ({"std": 3}, "std is 3; expected a list of 1"),
        ({"classes": (1, 2)}, r"classes are \[1, 2\]; expected their names"),
        ({"mean": ("x",)}, r"mean is \['x'\], std \[0.25\]; expected numbers"),
        ({"std": (0,)}, r"mean is \[0.5\], std \[0\]; expected numbers, those of std above 0"),
    ],
)
def test_a_model_without_its_classes_or_scale_is_no_classifier(tmp_path, progress, message):
    saved(tmp_path / "m", **progress)
    with pytest.raises(vitnp.CheckpointError, match=message):
        vitnp.load_classifier(tmp_path / "m")


# -- images of another size -------------------------------------------------------------------------------------------


def test_images_of_another_size_and_colour_are_fitted_a_batch_at_a_time(monkeypatch):
    model = hard_model("float32")  # of 6 x 8 pixels in 3 channels
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 7, 1), np.uint8)
    scale, fitted = {"mean": [0.5] * 3, "std": [0.3] * 3}, vitnp.data.fit_images(images, (6, 8), 3)
    sizes, fit = [], inference.fit_images
    monkeypatch.setattr(inference, "fit_images", lambda some, *shape: sizes.append(len(some)) or fit(some, *shape))
    for use in (vitnp.predict, vitnp.features):
        assert same_bits(use(model, images, **scale, batch_size=4, fit=True), use(model, fitted, **scale, batch_size=4))
    assert max(sizes) <= 4
    labels = labels_for(model, 20)
    found, truth = (vitnp.evaluate(model, x, labels, **scale, fit=True) for x in (images, fitted))
    assert found.loss == truth.loss


def test_images_of_another_size_are_refused_unless_they_are_to_be_fitted():
    model = hard_model("float32")
    images = np.zeros((2, 9, 7, 3), np.uint8)
    for more in ({}, {"fit": False}):
        with pytest.raises(ValueError, match=r"images have shape \(2, 9, 7, 3\); expected"):
            vitnp.predict(model, images, mean=[0.5] * 3, std=[0.5] * 3, **more)
    with pytest.raises(ValueError, match=r"images have shape \(2, 9, 7, 3\); expected"):
        vitnp.predict(model, images.astype("float32"), fit=True)
