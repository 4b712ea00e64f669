"""The linear probe is the solution of its normal equations, chooses by validation alone, and says what does not fit."""

import numpy as np
import pytest
from helpers import error, normal

import vitnp
from vitnp.few_shot import STRENGTHS

CLASSES = 3


def features_for(labels, D=6, seed=0):
    """Features whose columns differ in size and place, and that say something of the labels."""
    noise = normal((len(labels), D), seed)
    return (noise + 0.7 * normal((CLASSES, D), 9)[labels]) * np.arange(1, D + 1) + 5


def labels_of(n, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(n) % CLASSES)


def by_normal_equations(features, labels, strength):
    """W and b with the column of 100 beside the standardised features, as one dense system in long double.

    Its condition number is up to 1e9: what a solution in float64 leaves over is solved for again.
    """
    z = (features - features.mean(0)) / (features.std(0) + 1e-5)
    x = np.concatenate([z, np.full((len(z), 1), 100.0)], 1).astype(np.longdouble)
    y = 2.0 * np.eye(CLASSES)[labels] - 1
    a, b, w = x.T @ x + strength * np.eye(x.shape[1]), x.T @ y, 0
    for _ in range(4):
        w = w + np.linalg.solve(a.astype("float64"), (b - a @ w if np.ndim(w) else b).astype("float64"))
    return w[:-1].astype("float64"), 100 * w[-1].astype("float64")


def by_augmented_rows(features, labels, strength):
    """The same as a plain least-squares problem: √λ I below the features, zeros below the targets."""
    torch = pytest.importorskip("torch", reason="the reference needs the extra `parity`")
    z = (features - features.mean(0)) / (features.std(0) + 1e-5)
    x = np.concatenate([z, np.full((len(z), 1), 100.0)], 1)
    rows = np.concatenate([x, np.sqrt(strength) * np.eye(x.shape[1])])
    y = np.concatenate([2.0 * np.eye(CLASSES)[labels] - 1, np.zeros((x.shape[1], CLASSES))])
    w = torch.linalg.lstsq(torch.from_numpy(rows), torch.from_numpy(y), driver="gelsd").solution.numpy()
    return w[:-1], 100 * w[-1]


@pytest.fixture
def problem():
    labels, more = labels_of(60), labels_of(45, 1)
    return features_for(labels), labels, (features_for(more, seed=1), more)


@pytest.mark.parametrize("D", [6, 80], ids=["more images", "more features"])
def test_weights_of_every_strength_solve_the_normal_equations(D):
    labels = labels_of(40)
    features = features_for(labels, D)
    probe = vitnp.linear_probe(features, labels, validation=(features, labels))
    for strength in STRENGTHS:
        weight, bias = probe.weights(strength)
        true_weight, true_bias = by_normal_equations(features, labels, strength)
        assert error(weight, true_weight) < 1e-10
        assert error(bias, true_bias) < 1e-10


@pytest.mark.parametrize("D", [6, 80], ids=["more images", "more features"])
@pytest.mark.parametrize("strength", [0.1, 3.0, 1e5])
def test_weights_are_those_of_torch_s_least_squares(D, strength):
    labels = labels_of(40)
    features = features_for(labels, D)
    weight, bias = vitnp.linear_probe(features, labels, strengths=[strength]).weights()
    true_weight, true_bias = by_augmented_rows(features, labels, strength)
    assert error(weight, true_weight) < 1e-10
    assert error(bias, true_bias) < 1e-10


def test_the_bias_is_held_back_like_a_weight_of_a_feature_of_100():
    labels = np.array([0, 0, 0, 1, 2, 0])
    _, bias = vitnp.linear_probe(normal((6, 2)), labels, strengths=[6e4]).weights()
    assert error(bias, np.array([1 / 3, -2 / 3, -2 / 3]) / 2) < 1e-14


def test_scores_and_classes_are_those_of_the_weights(problem):
    features, labels, (others, _) = problem
    probe = vitnp.linear_probe(features, labels, strengths=[2.0])
    weight, bias = by_normal_equations(features, labels, 2.0)
    scores = (others - features.mean(0)) / (features.std(0) + 1e-5) @ weight + bias
    assert error(probe.scores(others), scores) < 1e-10
    assert np.array_equal(probe.predict(others), scores.argmax(1))


def test_the_strength_is_the_one_that_is_best_on_the_validation(problem):
    features, labels, validation = problem
    probe = vitnp.linear_probe(features, labels, validation=validation)
    by_hand = {s: (probe.predict(validation[0], s) == validation[1]).mean() for s in STRENGTHS}
    assert probe.accuracies == by_hand
    assert len(set(by_hand.values())) > 3
    assert probe.strength == max(s for s in STRENGTHS if by_hand[s] == max(by_hand.values()))
    assert probe.accuracy(*validation) == max(by_hand.values())


def test_of_strengths_that_are_equally_good_the_largest_is_chosen():
    labels = np.array([0, 1] * 5)
    features = np.stack([labels * 2.0 - 1, normal(10)], 1)
    probe = vitnp.linear_probe(features, labels, strengths=[1.0, 4.0, 2.0], validation=(features, labels))
    assert set(probe.accuracies.values()) == {1.0}
    assert probe.strength == 4.0


def test_features_in_float32_are_solved_in_float64(problem):
    features, labels, _ = problem
    narrow = features.astype("float32")
    weight, _ = vitnp.linear_probe(narrow, labels, strengths=[2.0]).weights()
    assert weight.dtype == np.float64
    assert error(weight, by_normal_equations(narrow.astype("float64"), labels, 2.0)[0]) < 1e-10


@pytest.mark.parametrize("value", [0.0, 0.1, -1e3])
def test_a_feature_that_never_changes_counts_for_nothing(problem, value):
    features, labels, (others, _) = problem
    with_it = np.insert(features, 2, value, axis=1)
    probe, without = (vitnp.linear_probe(x, labels, strengths=[1.0]) for x in (with_it, features))
    assert error(probe.scores(np.insert(others, 2, value, axis=1)), without.scores(others)) < 1e-10


def test_features_that_all_never_change_leave_the_bias():
    labels = np.array([0, 0, 0, 1, 2])
    probe = vitnp.linear_probe(np.full((5, 4), 0.3), labels, strengths=[1.0])
    assert np.array_equal(probe.predict(normal((7, 4)) * 1e-9 + 0.3), np.zeros(7))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"labels": np.arange(6) % 2}, ValueError, "of 6 labels none is of class 2; expected images of each"),
        ({"labels": np.zeros(6, int), "num_classes": None}, ValueError, "of 6 labels all are of class 0"),
        ({"labels": np.arange(5) % 3}, ValueError, r"labels have shape \(5,\); expected \(6,\), one for each image"),
        ({"labels": np.arange(6)}, ValueError, "label 3 of image 3 is outside the classes; .* and below 3"),
        ({"labels": np.arange(6) - 1, "num_classes": None}, ValueError, "label -1 of image 0 is outside"),
        ({"labels": np.ones(6)}, TypeError, "labels are float64; expected integers"),
        ({"features": np.ones((6, 2), int)}, ValueError, r"features are int64 of shape \(6, 2\); expected floats"),
        ({"features": np.ones(6)}, ValueError, r"features are float64 of shape \(6,\); expected floats \(n, D\)"),
        ({"features": np.full((6, 2), np.nan)}, ValueError, "features of image 0 are NaN or inf"),
        ({"strengths": [0.0]}, ValueError, "strength is 0.0; it must be above 0"),
        ({"strengths": [np.inf]}, ValueError, "strength is inf; it must be above 0, and finite"),
        ({"strengths": [1.0, 2.0]}, ValueError, "2 strengths came without validation"),
        ({"strengths": []}, ValueError, "0 strengths came without validation"),
        ({"validation": (np.ones((4, 3)), np.zeros(4, int))}, ValueError, "features have 3 columns; the probe .* 2"),
        ({"validation": (np.ones((4, 2)), np.zeros(3, int))}, ValueError, r"labels have shape \(3,\)"),
    ],
)
def test_what_does_not_fit_is_told(change, kind, message):
    good = {"features": normal((6, 2)), "labels": np.arange(6) % 3, "num_classes": 3, "strengths": [1.0]}
    arguments = {**good, **change}
    with pytest.raises(kind, match=message):
        vitnp.linear_probe(arguments.pop("features"), arguments.pop("labels"), **arguments)


# -- few shots --------------------------------------------------------------------------------------------------------


def test_every_class_has_so_many_shots_and_none_twice():
    labels = labels_of(60)
    chosen = vitnp.few_shot_indices(labels, 4)
    assert np.array_equal(labels[chosen], np.repeat(np.arange(CLASSES), 4))
    assert len(set(chosen)) == 12


def test_fewer_shots_are_the_first_of_more():
    labels = labels_of(60)
    five, ten = (vitnp.few_shot_indices(labels, shots, seed=3).reshape(CLASSES, -1) for shots in (5, 10))
    assert np.array_equal(five, ten[:, :5])


def test_shots_are_a_function_of_the_seed():
    labels = labels_of(60)
    first, again, other = (vitnp.few_shot_indices(labels, 5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("labels", "shots", "message"),
    [
        ([0, 1, 1], 2, "class 0 has 1 images; expected at least 2, one for each shot"),
        ([0, 2, 2], 1, "class 1 has 0 images; expected at least 1"),
        ([0, 1], 0, "shots is 0; expected an integer of at least 1"),
    ],
)
def test_a_class_with_too_few_images_is_told(labels, shots, message):
    with pytest.raises(ValueError, match=message):
        vitnp.few_shot_indices(labels, shots)


def test_a_class_without_any_label_is_told_where_the_classes_are_known():
    with pytest.raises(ValueError, match="class 2 has 0 images"):
        vitnp.few_shot_indices([0, 1], 1, num_classes=3)
