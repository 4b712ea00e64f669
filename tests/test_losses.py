import math

import numpy as np
import pytest
from helpers import complex_step, error, normal, same_bits
from hypothesis import given
from hypothesis import strategies as st

from vitnp import softmax_cross_entropy

B, CLASSES = 5, 4
LABELS = np.array([2, 0, 3, 3, 1])
SOFT = np.random.default_rng(0).dirichlet(np.ones(CLASSES), size=B)


def logits(scale=2.0, dtype="float64"):
    return normal((B, CLASSES), 1, scale).astype(dtype)


def one_by_one(z, targets):
    """The mean over the samples of −Σ t log p."""
    total = 0.0
    for row, target in zip(z, targets, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        total -= sum(t * math.log(q) for t, q in zip(target, p, strict=True))
    return total / len(z)


def smoothed(e):
    return (1 - e) * np.eye(CLASSES)[LABELS] + e / CLASSES


@pytest.mark.parametrize("e", [0.0, 0.1, 0.7])
def test_loss_is_the_mean_cross_entropy_of_the_smoothed_labels(e):
    assert softmax_cross_entropy(logits(), LABELS, e)[0] == pytest.approx(one_by_one(logits(), smoothed(e)), rel=1e-14)


def test_loss_of_soft_labels_is_their_mean_cross_entropy():
    assert softmax_cross_entropy(logits(), SOFT)[0] == pytest.approx(one_by_one(logits(), SOFT), rel=1e-14)


def test_loss_of_equal_logits_is_the_logarithm_of_the_classes():
    assert softmax_cross_entropy(np.zeros((B, CLASSES)), LABELS)[0] == pytest.approx(math.log(CLASSES), rel=1e-15)


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["integers", "soft"])
@pytest.mark.parametrize("e", [0.0, 0.1])
@pytest.mark.parametrize("batch_size", [None, 17])
def test_dlogits_are_the_derivative(labels, e, batch_size):
    z = logits().astype("complex128")
    truth = complex_step(lambda: softmax_cross_entropy(z, labels, e, batch_size)[0], z)
    assert error(softmax_cross_entropy(logits(), labels, e, batch_size)[1], truth) < 1e-14


def test_dlogits_are_the_derivative_for_targets_whose_sums_are_rounded():
    soft, z = SOFT.astype("float32"), logits().astype("complex128")
    truth = complex_step(lambda: softmax_cross_entropy(z, soft)[0], z)
    assert error(softmax_cross_entropy(logits(), soft)[1], truth) < 1e-14


def test_dlogits_are_the_probabilities_less_the_targets_over_the_batch():
    p = np.exp(logits()) / np.exp(logits()).sum(-1, keepdims=True)
    assert error(softmax_cross_entropy(logits(), LABELS, 0.1)[1], (p - smoothed(0.1)) / B) < 1e-14


def test_smoothed_labels_are_soft_labels():
    loss, dlogits = softmax_cross_entropy(logits(), LABELS, 0.1)
    soft_loss, soft_dlogits = softmax_cross_entropy(logits(), smoothed(0.1))
    assert loss == pytest.approx(soft_loss, rel=1e-15)
    assert error(dlogits, soft_dlogits) < 1e-15


def test_soft_labels_may_be_certain():
    assert softmax_cross_entropy(logits(), np.eye(CLASSES)[LABELS])[0] == softmax_cross_entropy(logits(), LABELS)[0]


def test_soft_labels_are_smoothed_too():
    loss = softmax_cross_entropy(logits(), SOFT, 0.2)[0]
    assert loss == pytest.approx(one_by_one(logits(), 0.8 * SOFT + 0.2 / CLASSES), rel=1e-14)


def test_parts_of_a_batch_divided_by_the_whole_add_up_to_it():
    loss, dlogits = softmax_cross_entropy(logits(), LABELS)
    parts = [softmax_cross_entropy(logits()[part], LABELS[part], 0.0, B) for part in (slice(0, 2), slice(2, 5))]
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-14)
    assert error(np.concatenate([part[1] for part in parts]), dlogits) < 1e-15


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_of_extreme_logits_is_their_gap(dtype):
    z = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype)
    loss, dlogits = softmax_cross_entropy(z, [1, 1])
    assert float(loss) == 1e4
    assert dlogits.tolist() == [[0.5, -0.5, 0], [0, 0, 0]]


def test_gradient_of_a_single_class_is_zero():
    loss, dlogits = softmax_cross_entropy(normal((B, 1), 1), np.zeros(B, int))
    assert float(loss) == 0
    assert not dlogits.any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("labels", [LABELS, SOFT, SOFT.astype("float32")], ids=["integers", "soft64", "soft32"])
def test_loss_and_gradient_have_the_dtype_of_the_logits(dtype, labels):
    loss, dlogits = softmax_cross_entropy(logits(dtype=dtype), labels, 0.1)
    assert loss.dtype == dlogits.dtype == dtype


@pytest.mark.parametrize("labels", [LABELS.astype("uint8"), LABELS.astype("int16"), LABELS.tolist()], ids=str)
def test_labels_may_be_of_any_integer_type_or_a_list(labels):
    found, truth = softmax_cross_entropy(logits(), labels), softmax_cross_entropy(logits(), LABELS)
    assert same_bits(found[1], truth[1])


def test_logits_may_be_a_list():
    found, truth = softmax_cross_entropy(logits().tolist(), LABELS), softmax_cross_entropy(logits(), LABELS)
    assert same_bits(found[1], truth[1])


def test_a_class_that_no_target_asks_for_may_be_impossible():
    z, without = logits()[:1], np.delete(logits()[:1], 1, axis=1)
    z[0, 1] = -np.inf
    loss, dlogits = softmax_cross_entropy(z, [2])
    assert loss == pytest.approx(softmax_cross_entropy(without, [1])[0], rel=1e-14)
    assert dlogits[0, 1] == 0


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["integers", "soft"])
def test_logits_and_labels_are_left_as_they_are(labels):
    z, given = logits(), labels.copy()
    softmax_cross_entropy(z, given, 0.1)
    assert same_bits(z, logits())
    assert same_bits(given, labels)


@given(shift=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_a_shift_of_the_logits_of_a_sample_cancels(shift, seed):
    z = normal((B, CLASSES), seed)
    assert float(softmax_cross_entropy(z + shift, LABELS)[0]) == pytest.approx(softmax_cross_entropy(z, LABELS)[0])


@given(batch=st.integers(1, 4), classes=st.integers(1, 5), scale=st.sampled_from([1e-6, 1, 1e4]), e=st.floats(0, 0.9))
def test_dlogits_are_right_for_any_shape_and_scale(batch, classes, scale, e):
    z = normal((batch, classes), 1, scale)
    labels = np.random.default_rng(2).integers(classes, size=batch)
    twin = z.astype("complex128")
    truth = complex_step(lambda: softmax_cross_entropy(twin, labels, e)[0], twin)
    assert abs(softmax_cross_entropy(z, labels, e)[1] - truth).max() < 1e-12 / batch


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (0, 4), (5, 0), (5, 4, 1)], ids=str)
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits have shape .*expected"):
        softmax_cross_entropy(np.zeros(shape), LABELS)


@pytest.mark.parametrize(("label", "row"), [(CLASSES, 2), (-1, 0), (1000, 4)])
def test_label_outside_the_classes_is_refused_with_its_sample(label, row):
    labels = LABELS.copy()
    labels[row] = label
    with pytest.raises(ValueError, match=f"label {label} of sample {row} is outside the 4 classes 0 to 3"):
        softmax_cross_entropy(logits(), labels)


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), (5, 4), ()], ids=str)
def test_integer_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"labels have shape .*expected \(5,\)"):
        softmax_cross_entropy(logits(), np.zeros(shape, int))


@pytest.mark.parametrize("shape", [(5, 3), (4, 4)], ids=str)
def test_soft_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"soft labels have shape .*expected \(5, 4\)"):
        softmax_cross_entropy(logits(), np.full(shape, 1 / shape[1]))


@pytest.mark.parametrize(
    "labels",
    [LABELS > 1, np.eye(CLASSES, dtype=bool)[LABELS], LABELS.astype("float64"), LABELS.astype(str), SOFT * 1j],
    ids=["bool", "bool one-hot", "float", "text", "complex"],
)
def test_labels_of_another_type_are_refused(labels):
    with pytest.raises(TypeError, match=r"labels are .*expected integers"):
        softmax_cross_entropy(logits(), labels)


@pytest.mark.parametrize("row", [[0.5, 0.6, 0, 0], [1.5, -0.5, 0, 0], [0, 0, 0, 0], [np.nan, 1, 0, 0]], ids=str)
def test_soft_labels_that_are_no_distribution_are_refused_with_their_sample(row):
    labels = SOFT.copy()
    labels[3] = row
    with pytest.raises(ValueError, match="soft labels of sample 3 are no distribution"):
        softmax_cross_entropy(logits(), labels)


@pytest.mark.parametrize("e", [-0.1, 1, 1.5, math.nan])
def test_smoothing_outside_its_range_is_refused(e):
    with pytest.raises(ValueError, match="label_smoothing is"):
        softmax_cross_entropy(logits(), LABELS, e)


def test_nan_logits_are_refused_with_their_sample():
    z = logits()
    z[3, 1] = np.nan
    with pytest.raises(ValueError, match="logits of sample 3 are NaN"):
        softmax_cross_entropy(z, LABELS)
