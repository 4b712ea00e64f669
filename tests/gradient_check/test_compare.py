"""Numeric against claimed gradients: nothing wrong passes, nothing right fails, and what cannot be told is said."""

from collections import Counter

import numpy as np
import pytest
from helpers import normal

from vitnp import gradcheck
from vitnp.gradient_check import compare, locate
from vitnp.gradient_check.derivatives import Estimate

every_mode = pytest.mark.parametrize("mode", ["full", "directions"])
every_method = pytest.mark.parametrize("method", ["auto", "complex", "richardson", "5point", "central"])


def relu(x):
    return np.maximum(x, 0)


def verdicts(report):
    return {row.name: row.verdict for row in report.rows}


# -- small beside large -----------------------------------------------------------------------------------------------

SMALL = {"a": normal((6,), 1), "b": normal((6,), 2)}


def small_beside_large(large, small):
    def f(a, b):
        return large * (a * a).sum() + small * (b * b).sum()

    return f, {"a": 2 * large * SMALL["a"], "b": 2 * small * SMALL["b"]}


@every_mode
@pytest.mark.parametrize("factor", [3, 1.001, 0])
@pytest.mark.parametrize("sizes", [(1e8, 1e-8), (1e3, 1e-9)])
def test_a_gradient_far_below_the_largest_is_not_passed_if_it_is_wrong(mode, factor, sizes):
    f, grads = small_beside_large(*sizes)
    report = gradcheck(f, SMALL, grads={**grads, "b": factor * grads["b"]}, mode=mode)
    assert verdicts(report)["a"] == "PASS"
    assert verdicts(report)["b"] in ("INCONCLUSIVE", "FAIL")
    assert report.verdict == "FAIL" or "check it alone" in report.worst.hint


@every_mode
@pytest.mark.parametrize("sizes", [(1e8, 1e-8), (1e3, 1e-9)])
def test_a_gradient_far_below_the_largest_passes_if_it_is_right(mode, sizes):
    f, grads = small_beside_large(*sizes)
    assert gradcheck(f, SMALL, grads=grads, mode=mode).verdict == "PASS"


@every_mode
def test_what_differences_cannot_see_beside_the_largest_is_said_not_to_be_compared(mode):
    f, grads = small_beside_large(1e8, 1e-8)
    report = gradcheck(f, SMALL, grads=grads, mode=mode, method="richardson")
    assert verdicts(report) == {"a": "PASS", "b": "ZERO"}
    assert report.notes[-1].startswith("b: not compared in itself")


@every_mode
def test_rounding_alone_is_zero_and_not_an_error(mode):
    """Each row of a softmax sums to 1: the derivative of the sum is zero, and what is computed is rounding."""

    def f(a, b):
        e = np.exp(b - b.real.max(-1, keepdims=True))
        return (a * a).sum() + (e / e.sum(-1, keepdims=True)).sum()

    arrays = {"a": normal((4,), 1), "b": normal((5, 3), 2)}
    grads = {"a": 2 * arrays["a"], "b": 1e-17 * normal((5, 3), 3)}
    report = gradcheck(f, arrays, grads=grads, mode=mode)
    assert verdicts(report) == {"a": "PASS", "b": "ZERO"}


@every_mode
@every_method
def test_gradients_that_are_all_claimed_to_be_zero_fail_or_are_vacuous(mode, method):
    zeros = {"a": np.zeros(6), "b": np.zeros(6)}
    f, _ = small_beside_large(1.0, 1e-20)
    assert gradcheck(f, SMALL, grads=zeros, mode=mode, method=method).verdict == "FAIL"
    nothing = gradcheck(lambda a, b: 0 * f(a, b), SMALL, grads=zeros, mode=mode, method=method)
    assert nothing.verdict == "VACUOUS"


# -- NaN and inf ------------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize(("value", "name"), [(np.inf, "inf"), (-np.inf, "-inf"), (np.nan, "nan")])
@pytest.mark.parametrize("where", ["a", "b"])
def test_a_gradient_that_is_not_finite_fails_with_its_place_and_leaves_the_others_alone(mode, value, name, where):
    f, grads = small_beside_large(1.0, 1.0)
    grads[where] = grads[where].copy()
    grads[where][3] = value
    report = gradcheck(f, SMALL, grads=grads, mode=mode)
    assert verdicts(report) == {"a": "PASS", "b": "PASS"} | {where: "FAIL"}
    assert report.worst.hint == f"it has NaN or inf: {name} at (3,)"


def test_a_wrong_gradient_beside_one_that_is_not_finite_fails_too():
    f, grads = small_beside_large(1.0, 1.0)
    report = gradcheck(f, SMALL, grads={"a": grads["a"] * np.inf, "b": 1.5 * grads["b"]})
    assert verdicts(report) == {"a": "FAIL", "b": "FAIL"}


def test_the_complex_step_is_kept_where_the_difference_alone_is_nan():
    with np.errstate(invalid="ignore"):
        report = gradcheck(lambda x: np.log(x).sum(), np.array([1e-8, 1.0, 1e8]), grads=lambda x: 1 / x)
    assert (report.method, report.verdict) == ("complex", "PASS")


@every_mode
def test_a_difference_that_is_nan_is_inconclusive(mode):
    with np.errstate(invalid="ignore"):
        report = gradcheck(
            lambda x: np.log(x).sum(), np.array([1e-8, 1.0, 1e8]), grads=lambda x: 1 / x, method="richardson", mode=mode
        )
    assert report.verdict == "INCONCLUSIVE"
    assert "not finite" in report.worst.hint


@pytest.mark.parametrize("size", [1e-60, 1e-18, 1e18, 1e60])
def test_the_complex_step_does_not_depend_on_the_size_of_the_arrays(size):
    report = gradcheck(lambda x: np.log(x).sum(), size * (1 + normal((4,), 1) ** 2), grads=lambda x: 1 / x)
    assert (report.method, report.verdict) == ("complex", "PASS")


@every_mode
@pytest.mark.parametrize("method", ["richardson", "5point", "central"])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3, 1e6])
def test_the_step_of_a_difference_follows_the_size_of_the_arrays(method, size, mode):
    x = size * (2 + normal((4,), 1) ** 2)
    report = gradcheck(lambda x: np.log(x).sum(), x, grads=lambda x: 1 / x, method=method, mode=mode)
    assert report.verdict == "PASS"
    assert report.worst.error < 1e-7


@pytest.mark.parametrize("method", ["richardson", "5point", "central"])
def test_a_small_array_of_zeros_is_moved_by_a_hundredth_of_the_largest(method):
    """As a bias is that has not been trained: a step of its own size would be none, one of 1 far too large."""
    arrays = {"w": 1e-4 * (2 + normal((4,), 1) ** 2), "b": np.zeros(4)}
    report = gradcheck(
        lambda w, b: np.log(w + b).sum(), arrays, grads=lambda w, b: {"w": 1 / (w + b), "b": 1 / (w + b)}, method=method
    )
    assert report.verdict == "PASS"


# -- kinks ------------------------------------------------------------------------------------------------------------


def many_kinks(wrong):
    x = abs(normal((100,), 0)) + 0.1
    x[:60] = 0

    def grads(dy, x):
        dx = dy * (x > 0)
        dx[80] *= wrong
        return dx

    return x, grads


@every_method
def test_a_wrong_element_shows_among_sixty_kinks(method):
    x, grads = many_kinks(1.05)
    report = gradcheck(relu, x, grads=grads, mode="full", seed=3, method=method)
    assert (report.verdict, report.worst.index) == ("FAIL", (80,))
    assert report.worst.error < 0.05  # that of the element, not of the worst kink


@every_method
def test_sixty_kinks_alone_are_kinks(method):
    x, grads = many_kinks(1)
    assert gradcheck(relu, x, grads=grads, mode="full", seed=3, method=method).verdict == "KINK"


def test_what_there_is_no_time_to_look_at_is_inconclusive(monkeypatch):
    monkeypatch.setattr(locate, "SUSPECTS_BUDGET_S", 0.0)
    x, grads = many_kinks(1.05)
    report = gradcheck(relu, x, grads=grads, mode="full", seed=3)
    assert (report.verdict, report.worst.hint) == ("INCONCLUSIVE", "60 more that differ are left for want of time")


def test_a_kink_of_a_small_slope_is_a_kink():
    x = normal((4, 5), 1)
    x[1, 2] = 0
    cotangent = normal((4, 5), 2)
    cotangent[1, 2] = 1e-4
    report = gradcheck(relu, x, grads=lambda dy, x: dy * (x > 0), cotangent=cotangent, mode="full")
    assert report.verdict == "KINK"


@every_mode
@every_method
def test_several_kinks_at_once_do_not_fail(mode, method):
    """A ReLU layer at inputs of zero: the convention relu'(0) = 0 gives zero, where both slopes are positive."""
    arrays = {"x": np.zeros((3, 4)), "w": normal((4, 6), 3)}

    def grads(dy, x, w):
        dz = dy * (x @ w > 0)
        return {"x": dz @ w.T, "w": x.T @ dz}

    report = gradcheck(lambda x, w: relu(x @ w), arrays, grads=grads, method=method, mode=mode)
    assert report.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("method", ["5point", "central", "richardson", "auto"])
@pytest.mark.parametrize(("factor", "expected"), [(1, {"PASS", "INCONCLUSIVE"}), (1.01, {"FAIL", "INCONCLUSIVE"})])
def test_a_relu_network_fails_only_if_its_gradient_is_wrong(method, factor, expected):
    def network(x, w, v):
        return relu(x @ w) @ v

    def grads(dy, x, w, v):
        dz = (dy @ v.T) * (x @ w > 0)
        return {"x": dz @ w.T, "w": factor * x.T @ dz, "v": relu(x @ w).T @ dy}

    found = Counter()
    for seed in range(20):
        arrays = {"x": normal((5, 8), seed), "w": normal((8, 30), seed + 100), "v": normal((30, 3), seed + 200)}
        found[gradcheck(network, arrays, grads=grads, method=method, mode="directions", seed=seed).verdict] += 1
    assert set(found) <= expected
    assert found["INCONCLUSIVE"] <= 8


# -- float32 inside forward -------------------------------------------------------------------------------------------


def cast_inside(x, w):
    return np.tanh((x @ w).astype("float32").astype("float64")).sum()


def cast_inside_grads(x, w):
    t = 1 - np.tanh(x @ w) ** 2
    return {"x": t @ w.T, "w": x.T @ t}


@every_mode
@pytest.mark.parametrize("method", ["auto", "5point", "central"])
@pytest.mark.parametrize(
    ("factor", "expected"), [(1, "INCONCLUSIVE"), (1 + 1e-4, "INCONCLUSIVE"), (1.2, "FAIL"), (-1, "FAIL")]
)
def test_a_cast_to_float32_inside_forward_leaves_open_what_it_hides(mode, method, factor, expected):
    for seed in range(8):
        arrays = {"x": normal((5, 4), seed), "w": normal((4, 3), seed + 100)}
        grads = {name: factor * grad for name, grad in cast_inside_grads(**arrays).items()}
        report = gradcheck(cast_inside, arrays, grads=grads, mode=mode, method=method, seed=seed)
        found = "FAIL" if report.verdict == "FAIL" else "INCONCLUSIVE"
        assert found == expected or method == "central", f"seed {seed}\n{report}"
        assert factor != 1 or report.verdict != "FAIL", f"seed {seed}\n{report}"
        assert not report.ok
        assert any("as where something is float32" in note for note in report.notes)


def test_a_tolerance_above_its_rounding_lets_float32_pass():
    arrays = {"x": normal((5, 4), 1), "w": normal((4, 3), 2)}
    assert gradcheck(cast_inside, arrays, grads=cast_inside_grads(**arrays), tolerance=3e-3).ok


@pytest.mark.parametrize("value", [1e-3, 1.0, 1e5])
def test_the_noise_of_a_function_is_that_of_the_rounding_in_it(value):
    def noise(f):
        problem = compare.Problem()
        problem.arrays = {"a": value * normal((50,), 1)}
        problem.value = lambda moved: f(moved["a"])
        return compare.Checker(problem, problem.arrays, "richardson", None, np.random.default_rng(0)).measure.noise

    def sum_of(dtype):
        return lambda a: (a.astype(dtype).astype("float64") ** 2).sum()

    size = 50 * value * value
    assert noise(sum_of("float64")) < 1e-14 * size
    assert 1e-9 * size < noise(sum_of("float32")) < 1e-7 * size


@pytest.mark.parametrize("method", ["richardson", "5point", "central"])
def test_a_function_that_is_sharp_beside_a_large_element_does_not_fail_by_differences(method):
    """The step follows the large element; the small one needs far smaller steps."""
    x = np.array([1.0, 1e-6, -2e-6])
    report = gradcheck(
        lambda x: np.tanh(1e6 * x[1:]).sum() + x[0],
        x,
        grads=lambda x: np.append(1.0, 1e6 / np.cosh(1e6 * x[1:]) ** 2),
        method=method,
        mode="full",
    )
    assert report.verdict in ("PASS", "INCONCLUSIVE")


@pytest.mark.parametrize(("numeric", "verdict"), [(1.3, "INCONCLUSIVE"), (1e3, "INCONCLUSIVE"), (-1e5, "INCONCLUSIVE")])
def test_a_referee_that_cannot_tell_does_not_condemn(numeric, verdict):
    """Beside 1e12 a slope of 1 is known to a unit or so."""
    problem = compare.Problem()
    problem.arrays = {"a": np.ones(1)}
    problem.value = lambda moved: moved["a"].sum() + 1e12
    checker = compare.Checker(problem, {"a": np.ones(1)}, "central", None, np.random.default_rng(0))
    assert locate.judge(checker, "a", {"a": np.ones(1)}, 1.0, Estimate(numeric, 0.0), 1.0)[0] == verdict


# -- what a row that passes says --------------------------------------------------------------------------------------


@every_mode
def test_a_row_that_passes_by_its_error_bar_alone_says_so(mode):
    x = normal((6,), 1)
    report = gradcheck(
        lambda x: np.exp(3 * x).sum(), x, grads=3 * np.exp(3 * x) * (1 + 1e-7), method="richardson", mode=mode
    )
    assert report.verdict == "PASS"
    assert report.worst.hint.startswith("above the tolerance, but within its own error bar, ")


@pytest.mark.parametrize(("bars", "verdict"), [(8, "PASS"), (12, "FAIL"), (50, "FAIL")])
def test_ten_error_bars_are_allowed_and_no_more(bars, verdict):
    """Of x³ at 1 the bar of Richardson's difference is h²/4, 2.5e-7 with its step of 1e-3."""
    x = np.ones(4)
    grads = 3 * x + bars * 2.5e-7 + 3e-8
    assert gradcheck(lambda x: (x**3).sum(), x, grads=grads, method="richardson", mode="full").verdict == verdict


# -- imaginary parts lost ---------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("weight", [1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12])
def test_a_small_l1_term_beside_something_larger_does_not_fail(mode, weight):
    w, c = normal((6, 6), 1), normal((6, 3), 5)

    def f(w):
        return (w**3).sum() + np.sin(w @ c).sum() + weight * np.abs(w).sum()

    grads = 3 * w * w + np.cos(w @ c) @ c.T + weight * np.sign(w)
    assert gradcheck(f, w, grads=grads, mode=mode).verdict == "PASS"


@every_mode
@pytest.mark.parametrize("weight", [1e-2, 1e-3, 1e-5, 1e-6])
def test_a_gradient_that_forgets_what_the_complex_step_loses_fails(mode, weight):
    """Both are wrong in the same way, and would agree."""
    w = normal((6, 6), 1)
    report = gradcheck(lambda w: (w**3).sum() + weight * np.abs(w).sum(), w, grads=3 * w * w, mode=mode)
    assert report.verdict == "FAIL"
    assert report.worst.numeric - report.worst.analytic == pytest.approx(
        weight * np.sign(w[report.worst.index]), rel=1e-2
    )


def test_what_fails_by_differences_shows_their_numbers_and_hint():
    b = normal((3, 4), 2)

    def f(a, b):
        return (a * a * a).sum() + 3e-5 * np.abs(b).sum()

    arrays = {"a": normal((3, 4), 1), "b": b}
    grads = {"a": 3 * arrays["a"] ** 2, "b": 1.01 * 3e-5 * np.sign(b)}
    row = gradcheck(f, arrays, grads=grads, mode="full").worst
    assert (row.verdict, row.hint) == ("FAIL", "analytic = 1.01 × numeric everywhere")
    assert abs(row.numeric) == pytest.approx(3e-5, rel=1e-6)


@pytest.mark.parametrize(("tolerance", "verdict"), [(None, "FAIL"), (1e-4, "FAIL"), (0.1, "PASS")])
def test_a_tensor_that_differences_decide_keeps_the_user_s_tolerance(tolerance, verdict):
    arrays = {"a": normal((3, 4), 1), "b": normal((3, 4), 2)}
    grads = {"a": 3 * arrays["a"] ** 2, "b": 1.01e-6 * np.sign(arrays["b"])}
    report = gradcheck(
        lambda a, b: (a * a * a).sum() + 1e-6 * np.abs(b).sum(), arrays, grads=grads, tolerance=tolerance
    )
    assert verdicts(report) == {"a": "PASS", "b": verdict}


def test_no_complex_step_condemns_alone_once_imaginary_parts_are_known_to_get_lost():
    """Beside 1e3, differences cannot see 3e-9 in v; in z they see that parts get lost."""
    v, z = normal((3, 4), 1), normal((3, 4), 2)

    def f(v, z):
        return (v**3).sum() + 3e-9 * np.abs(v).sum() + 3e-5 * np.abs(z).sum() + 1e3

    report = gradcheck(f, {"v": v, "z": z}, grads={"v": 3 * v * v + 3e-9 * np.sign(v), "z": 3e-5 * np.sign(z)})
    assert (report.method, report.verdict) == ("complex", "PASS")


def test_a_standard_deviation_in_a_loss_never_fails():
    for seed in (28, *range(10)):
        a = normal((20,), 1000 + seed)
        report = gradcheck(
            lambda a: a.std() + np.exp(a).sum(), a, grads=(a - a.mean()) / a.std() / a.size + np.exp(a), seed=seed
        )
        assert report.verdict == "PASS", f"seed {seed}\n{report}"


def test_many_tensors_that_differences_decide_have_one_note():
    arrays = {f"w{i}": normal((3,), i) for i in range(40)}

    def f(**w):
        return sum((a**3).sum() + 1e-6 * np.abs(a).sum() for a in w.values())

    report = gradcheck(f, arrays, grads={name: 3 * a * a + 1e-6 * np.sign(a) for name, a in arrays.items()})
    assert report.verdict == "PASS"
    assert report.notes == [
        "w0 and 39 more by richardson, tolerance 1e-08: forward loses imaginary parts on the way from there"
    ]


# -- the cotangent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_cotangent_is_not_the_input_of_a_user_who_takes_the_same_seed(seed):
    """Along x itself the derivative of x/‖x‖ is zero, and any factor of it would pass."""
    x = np.random.default_rng(seed).standard_normal((4, 6))

    def unit(x):
        return x / np.sqrt((x * x).sum(-1, keepdims=True))

    def twice(dy, x):
        y = unit(x)
        return 2 * (dy - y * (dy * y).sum(-1, keepdims=True)) / np.sqrt((x * x).sum(-1, keepdims=True))

    report = gradcheck(unit, x, grads=twice, seed=seed)
    assert (report.verdict, report.worst.hint) == ("FAIL", "analytic = 2 × numeric everywhere: twice")


@pytest.mark.parametrize("method", ["complex", "richardson"])
def test_the_direction_is_not_the_cotangent(method):
    """An error Q dy with an antisymmetric Q is orthogonal to dy."""
    q = np.triu(normal((6, 6), 3), 1)
    report = gradcheck(
        lambda x: x * 1.0, normal((6,), 1), grads=lambda dy, x: dy + (q - q.T) @ dy, mode="directions", method=method
    )
    assert report.verdict == "FAIL"
