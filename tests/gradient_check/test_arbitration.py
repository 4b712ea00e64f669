"""Where claim, complex step and difference disagree: the least step that can tell them apart decides, and says so."""

import numpy as np
import pytest
from helpers import normal

from vitnp import VisionTransformer, ViTConfig, check_layers, gradcheck
from vitnp.layers import LayerNorm, Softmax

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")

SEEDS = range(6)
every_mode = pytest.mark.parametrize("mode", ["full", "directions"])
every_seed = pytest.mark.parametrize("seed", SEEDS)
by_either = pytest.mark.parametrize("method", ["auto", "richardson"])


def verdict(f, arrays, grads, **options):
    return gradcheck(f, arrays, grads=grads, **options).verdict


# -- imaginary parts lost where every wide difference is NaN ----------------------------------------------------------


@every_mode
@every_seed
def test_a_probability_of_nearly_nothing_does_not_hide_that_abs_loses_imaginary_parts(mode, seed):
    p, q = np.array([0.3, 0.5, 1e-7, 0.2]), np.array([0.4, 0.4, 1e-7, 0.2])

    def f(p):
        return -(q * np.log(p / np.abs(p).sum())).sum()

    assert verdict(f, p, lambda p: -q / p, mode=mode, seed=seed) == "FAIL"
    assert verdict(f, p, lambda p: -q / p + q.sum() / p.sum(), mode=mode, seed=seed) == "PASS"


@every_seed
def test_nor_does_a_small_element_hide_that_a_norm_does(seed):
    x = abs(normal((8,), seed)) + 0.1
    x[3] = 1e-7

    def f(x):
        return -np.log(x / np.linalg.norm(x, 1)).sum()

    assert verdict(f, x, lambda x: -1 / x, seed=seed) == "FAIL"
    assert verdict(f, x, lambda x: -1 / x + x.size / x.sum(), seed=seed) == "PASS"


@every_seed
def test_nor_an_element_whose_gradient_is_ten_thousand_times_the_rest(seed):
    y = abs(normal((6,), seed)) + 0.1
    y[2] = 1e-9

    def f(y):
        return np.sqrt(y) / np.linalg.norm(y)

    def wrong(dy, y):
        return dy / (2 * np.sqrt(y) * np.linalg.norm(y))

    def right(dy, y):
        return wrong(dy, y) - y * (dy * np.sqrt(y)).sum() / np.linalg.norm(y) ** 3

    assert verdict(f, y, wrong, seed=seed) == "FAIL"
    assert verdict(f, y, right, seed=seed) == "PASS"


@every_seed
def test_nor_another_array_that_is_nearly_zero(seed):
    x, s = normal((7,), seed), np.array([1e-8])

    def f(x, s):
        return ((x / np.std(x)) ** 3).sum() + np.log(s).sum()

    def wrong(x, s):
        return 3 * (x / x.std()) ** 2 / x.std(), 1 / s

    def right(x, s):
        d = 3 * (x / x.std()) ** 2
        return d / x.std() - (d * x).sum() * (x - x.mean()) / (x.size * x.std() ** 3), 1 / s

    assert verdict(f, (x, s), wrong, seed=seed) == "FAIL"
    assert verdict(f, (x, s), right, seed=seed) == "PASS"


def test_a_complex_step_that_no_difference_can_confirm_passes_nothing():
    """f is finite at x alone."""
    x = np.array([0.5, 1.5])

    def f(x):
        return (x * x).sum() + (0.0 if (x.real == [0.5, 1.5]).all() else np.nan)

    report = gradcheck(f, x, grads=lambda x: 2 * x)
    assert report.verdict == "INCONCLUSIVE"
    assert report.worst.hint.startswith("nothing confirms the complex step")


# -- features far narrower than the array is large --------------------------------------------------------------------


@every_mode
@by_either
@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6])
def test_a_narrow_bump_far_from_zero_is_seen(mode, method, offset):
    for seed in SEEDS:
        x, c, w = offset + normal((6, 2), seed), offset + 0.5, normal((6, 2), seed + 100)

        def f(x, w=w, c=c):
            return (w * x).sum() + np.exp(-((x - c) ** 2)).sum()

        def right(x, w=w, c=c):
            return w - 2 * (x - c) * np.exp(-((x - c) ** 2))

        options = {"mode": mode, "method": method, "seed": seed}
        assert verdict(f, x, lambda x, w=w: w, **options) == "FAIL", f"seed {seed}"
        report = gradcheck(f, x, grads=right, **options)
        assert (report.verdict, report.notes) == ("PASS", []), f"seed {seed}\n{report}"


@pytest.mark.parametrize("size", [50, 500])
@pytest.mark.parametrize("method", ["auto", "richardson", "5point", "central"])
@every_mode
def test_a_smooth_turn_narrower_than_the_step_is_no_kink(size, method, mode):
    for seed in SEEDS:
        x = normal((size,), seed)
        x[2] = 1e-7

        def f(x):
            return np.sqrt(x * x + 1e-12).sum()

        report = gradcheck(f, x, grads=np.sign, method=method, mode=mode, seed=seed)
        assert (report.verdict, report.worst.index) == ("FAIL", (2,)), f"seed {seed}\n{report}"
        assert report.worst.numeric == pytest.approx(0.0995, rel=1e-3)
        right = gradcheck(f, x, grads=lambda x: x / np.sqrt(x * x + 1e-12), method=method, mode=mode, seed=seed)
        assert right.verdict == "PASS", f"seed {seed}\n{right}"


@every_seed
def test_distances_between_two_rows_that_are_nearly_equal_are_smooth_too(seed):
    x, w = normal((5, 3), seed), normal((5, 5), seed + 5)
    x[1] = x[0] + 1e-7 * normal((3,), seed + 9)

    def f(x):
        d = x[:, None] - x[None]
        return (w * np.sqrt((d * d).sum(-1) + 1e-12)).sum()

    def gradient(epsilon):
        def grads(x):
            d = x[:, None] - x[None]
            r = np.sqrt((d * d).sum(-1) + epsilon)
            r[r == 0] = 1
            u = (w / r)[..., None] * d
            return u.sum(1) - u.sum(0)

        return grads

    assert verdict(f, x, gradient(0), seed=seed) == "FAIL"
    assert verdict(f, x, gradient(1e-12), seed=seed) == "PASS"


@every_mode
@by_either
@pytest.mark.parametrize("factor", [1 / 3, 0, 1.01])
def test_a_column_is_checked_by_its_own_size_beside_one_ten_thousand_times_as_large(mode, method, factor):
    for seed in range(10):
        x = np.stack([normal((8,), seed), 1e4 * normal((8,), seed + 50)], 1)

        def f(x):
            return (np.sin(3 * x[:, 0]) + np.tanh(x[:, 1] / 1e4)).sum()

        def grads(x, factor=factor):
            return np.stack([factor * 3 * np.cos(3 * x[:, 0]), 1e-4 / np.cosh(x[:, 1] / 1e4) ** 2], 1)

        options = {"mode": mode, "method": method, "seed": seed}
        assert verdict(f, x, grads, **options) == "FAIL", f"seed {seed}"
        assert verdict(f, x, lambda x, grads=grads: grads(x, 1), **options) == "PASS", f"seed {seed}"


# -- small terms beside a large value ---------------------------------------------------------------------------------


def least_squares(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2000, 3)), 1e3 + 100 * rng.standard_normal(2000)
    return x, y, rng.standard_normal(3), rng.standard_normal(4)


@pytest.mark.parametrize("seed", range(8))
def test_a_penalty_that_the_complex_step_loses_beside_a_large_sum_of_squares_is_missed(seed):
    x, y, w, v = least_squares(seed)

    def f(w, v):
        return ((x @ w - y) ** 2).sum() + 0.1 * np.abs(v).sum()

    def grads(factor):
        return lambda w, v: (2 * x.T @ (x @ w - y), factor * np.sign(v))

    assert verdict(f, (w, v), grads(0), seed=seed) == "FAIL"
    assert verdict(f, (w, v), grads(0.1), seed=seed) in ("PASS", "INCONCLUSIVE")


@pytest.mark.parametrize("seed", range(10))
def test_nor_does_a_norm_in_the_same_tensor_get_lost_unseen(seed):
    x, y, w, _ = least_squares(seed)

    def f(w):
        return 0.5 * ((x @ w - y) ** 2).sum() + 1e-2 * np.linalg.norm(w)

    assert verdict(f, w, lambda w: x.T @ (x @ w - y), seed=seed) == "FAIL"
    assert verdict(f, w, lambda w: x.T @ (x @ w - y) + 1e-2 * w / np.linalg.norm(w), seed=seed) == "PASS"


# -- a complex step that was asked for --------------------------------------------------------------------------------


@every_mode
@every_seed
def test_a_complex_step_that_was_asked_for_is_confirmed_too(mode, seed):
    def f(x):
        return (x - x.mean(0)) / x.std(0)

    x = normal((6, 4), seed)
    report = gradcheck(f, x, grads=lambda dy, x: (dy - dy.mean(0)) / x.std(0), method="complex", mode=mode, seed=seed)
    assert report.verdict == "INCONCLUSIVE"
    assert report.worst.hint.endswith("forward loses imaginary parts; use method richardson")


class ByStd(LayerNorm):
    """A layer norm by np.std, and a backward that takes it for constant, as a complex step does."""

    def forward(self, x, ctx):
        super().forward(x, ctx)
        ctx.save_std = x.std(-1, keepdims=True)
        return (x - x.mean(-1, keepdims=True)) / ctx.save_std * self.gamma + self.beta

    def backward(self, dy, ctx):
        super().backward(dy, ctx)
        d = dy * self.gamma
        return (d - d.mean(-1, keepdims=True)) / ctx.save_std


@every_seed
@pytest.mark.parametrize(("method", "expected"), [("complex", "INCONCLUSIVE"), ("auto", "FAIL")])
def test_so_it_is_layer_by_layer(seed, method, expected):
    layer = ByStd(6, eps=1e-30, dtype="float64")
    layer.gamma[...] = 1 + 0.1 * normal((6,), seed)
    assert check_layers(layer, normal((4, 6), seed), method=method, seed=seed).verdict == expected


def test_the_note_on_tensors_that_differences_decide_has_their_tolerance():
    arrays = {"a": normal((3, 4), 1), "b": normal((3, 4), 2)}
    report = gradcheck(
        lambda a, b: (a**3).sum() + 1e-6 * np.abs(b).sum(),
        arrays,
        grads={"a": 3 * arrays["a"] ** 2, "b": 1e-6 * np.sign(arrays["b"])},
    )
    assert (report.method, report.tolerance) == ("complex", 1e-10)
    assert report.notes[0].startswith("b by richardson, tolerance 1e-08: ")


# -- kinks that excuse too much ---------------------------------------------------------------------------------------


@every_seed
def test_a_gradient_between_the_slopes_of_a_kink_that_is_no_convention_s_is_not_ok(seed):
    rng = np.random.default_rng(seed)
    x, w = np.vstack([rng.standard_normal((4, 3)), np.zeros((4, 3))]), rng.standard_normal((3, 2))
    c = abs(rng.standard_normal((8, 2)))

    def f(b):
        return (np.maximum(x @ w + b, 0) * c).sum()

    def grads(factor):
        return lambda b: factor * (c * (x @ w + b > 0)).sum(0)

    assert not gradcheck(f, np.zeros(2), grads=grads(1.3), seed=seed).ok
    assert verdict(f, np.zeros(2), grads(1), seed=seed) == "KINK"


@every_seed
def test_a_maximum_with_ties_that_gives_each_of_them_everything_is_not_ok(seed):
    x = np.array([1.0, 3.0, 3.0, 0.0])
    report = gradcheck(lambda x: np.max(x), x, grads=lambda x: (x == x.max()) * 1.0, seed=seed)
    assert not report.ok
    assert report.worst.hint.startswith("a kink at each of 2 elements; moving all of them at once the slope is 1")


@pytest.mark.parametrize("norm", [lambda x: np.sqrt((x * x).sum()), lambda x: np.linalg.norm(x)])
def test_a_norm_at_zero_has_no_gradient_of_nine_tenths(norm):
    assert not gradcheck(norm, np.zeros(4), grads=lambda x: np.full(4, 0.9)).ok
    assert gradcheck(norm, np.zeros(4), grads=lambda x: np.zeros(4)).verdict in ("KINK", "VACUOUS")


# -- right gradients --------------------------------------------------------------------------------------------------


@every_seed
def test_masked_scores_pass(seed):
    scores = np.array([[1.0, 2.0, -1e9, 0.5], [0.3, -1e9, -1e9, 1.0]])
    assert gradcheck(Softmax(), scores, seed=seed).verdict == "PASS"
    assert gradcheck(Softmax(), scores, seed=seed, mode="directions").verdict == "PASS"
    assert check_layers(Softmax(), scores, seed=seed).verdict == "PASS"


@pytest.mark.parametrize("seed", range(8))
def test_a_constant_row_of_a_layer_norm_with_a_tiny_epsilon_passes(seed):
    layer, x = LayerNorm(6, eps=1e-12, dtype="float64"), normal((4, 6), seed)
    x[1] = 0.7
    assert check_layers(layer, x, seed=seed).verdict == "PASS"
    assert gradcheck(layer, x, seed=seed).verdict == "PASS"


@every_seed
def test_images_of_sixteen_bits_pass(seed):
    config = ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=3, dim=8, depth=2, num_heads=2, mlp_dim=8)
    model = VisionTransformer(config, rng=seed, dtype="float64")
    model.classifier.head.weight[...] = normal((8, 3), seed)
    report = check_layers(model, 65535 * np.random.default_rng(seed).random((3, 8, 8, 1)), [0, 1, 2], seed=seed)
    assert report.verdict == "PASS", report


@by_either
@pytest.mark.parametrize("size", [1e4, 1e5])
@every_seed
def test_small_weights_beside_large_inputs_move_by_their_own_size(method, size, seed):
    x, w = size * np.random.default_rng(seed).random((7, 6)), normal((6, 3), seed) / size

    def f(x, w):
        return np.tanh(x @ w)

    def grads(factor):
        def backward(dy, x, w):
            d = dy * (1 - np.tanh(x @ w) ** 2)
            return d @ w.T, factor * x.T @ d

        return backward

    report = gradcheck(f, (x, w), grads=grads(1), method=method, seed=seed)
    assert (report.verdict, report.notes) == ("PASS", [])
    assert verdict(f, (x, w), grads(1.01), method=method, seed=seed) == "FAIL"


@every_mode
@every_seed
def test_the_solution_of_an_ill_conditioned_system_does_not_fail(mode, seed):
    a, b = 1 / (np.arange(6)[:, None] + np.arange(6) + 1.0), normal((6,), seed)

    def grads(factor):
        def backward(dy, a, b):
            db = np.linalg.solve(a.T, dy)
            return -factor * np.outer(db, np.linalg.solve(a, b)), db

        return backward

    options = {"mode": mode, "seed": seed}
    assert verdict(lambda a, b: np.linalg.solve(a, b), (a, b), grads(1), **options) in ("PASS", "INCONCLUSIVE")
    assert verdict(lambda a, b: np.linalg.solve(a, b), (a, b), grads(1.1), **options) == "FAIL"


def batch_norm(variance):
    def f(x):
        return (x - x.mean(0)) / np.sqrt(variance(x) + 1e-12)

    return f


def analytic_variance(x):
    c = x - x.mean(0)
    return (c * c).mean(0)


def batch_norm_gradient(dy, x):
    rstd = 1 / np.sqrt(analytic_variance(x) + 1e-12)
    x_hat = (x - x.mean(0)) * rstd
    return rstd * (dy - dy.mean(0) - x_hat * (dy * x_hat).mean(0))


@every_mode
@pytest.mark.parametrize("variance", [lambda x: np.var(x, 0), analytic_variance], ids=["var", "analytic"])
@pytest.mark.parametrize(("mean", "std"), [(1000, 0.01), (1.7e9, 100)])
def test_a_batch_norm_of_what_hardly_varies_does_not_fail(mode, variance, mean, std):
    for seed in SEEDS:
        x = mean + std * normal((6, 3), seed)
        report = gradcheck(batch_norm(variance), x, grads=batch_norm_gradient, mode=mode, seed=seed)
        assert report.verdict in ("PASS", "INCONCLUSIVE"), f"seed {seed}\n{report}"
        wrong = gradcheck(
            batch_norm(variance), x, grads=lambda dy, x: 1.1 * batch_norm_gradient(dy, x), mode=mode, seed=seed
        )
        assert not wrong.ok, f"seed {seed}\n{wrong}"


@every_mode
@every_seed
def test_a_row_that_is_nearly_zero_is_normalised_right(mode, seed):
    x = normal((4, 5), seed)
    x[2] *= 1e-9

    def f(x):
        return x / np.sqrt((x * x).sum(-1, keepdims=True))

    def grads(dy, x):
        y = f(x)
        return (dy - y * (dy * y).sum(-1, keepdims=True)) / np.sqrt((x * x).sum(-1, keepdims=True))

    assert verdict(f, x, grads, mode=mode, seed=seed) == "PASS"


@every_mode
@every_seed
def test_a_clipped_logarithm_far_below_its_limit_passes(mode, seed):
    x = np.random.default_rng(seed).random(6) + 0.1
    x[2] = 1e-14

    def f(x):
        return np.log(np.clip(x, 1e-12, None)).sum()

    assert verdict(f, x, lambda x: np.where(x > 1e-12, 1 / x, 0), mode=mode, seed=seed) == "PASS"


@every_mode
@every_seed
def test_a_softmax_of_a_low_temperature_passes(mode, seed):
    x = normal((3, 5), seed)
    x[:, 0], x[:, 1] = 4, 4 + 1e-5

    def f(x):
        e = np.exp((x - x.real.max(-1, keepdims=True)) / 1e-5)
        return e / e.sum(-1, keepdims=True)

    def grads(dy, x):
        p = f(x)
        return p * (dy - (dy * p).sum(-1, keepdims=True)) / 1e-5

    assert verdict(f, x, grads, mode=mode, seed=seed) == "PASS"


def test_biases_of_nearly_nothing_are_confirmed():
    arrays = {"w": normal((6, 5), 1), "b": 1e-9 * normal((5,), 2), "x": normal((4, 6), 3)}

    def f(w, b, x):
        return np.tanh(x @ w + b)

    def grads(dy, w, b, x):
        d = dy * (1 - f(w, b, x) ** 2)
        return {"w": x.T @ d, "b": d.sum(0), "x": d @ w.T}

    report = gradcheck(f, arrays, grads=grads, method="complex", mode="directions")
    assert (report.verdict, report.notes) == ("PASS", [])


# -- arrays of very different sizes -----------------------------------------------------------------------------------


@every_mode
@by_either
@pytest.mark.parametrize("size", [1e5, 1e6, 1e8])
def test_a_large_array_does_not_blur_a_small_one(mode, method, size):
    a, b = np.array([0.3, -0.5, 0.4]), size * np.array([1.0, 2.0, 1.5])

    def f(a, b):
        return np.linalg.norm(b) + np.exp(-(np.linalg.norm(a) ** 2))

    def right(a, b):
        return -2 * a * np.exp(-a @ a), b / np.linalg.norm(b)

    options = {"mode": mode, "method": method}
    for factor, expected in ((1, "PASS"), (0, "FAIL"), (1.1, "FAIL")):
        claimed = lambda a, b, k=factor: (k * right(a, b)[0], right(a, b)[1])  # noqa: E731
        assert verdict(f, [a, b], claimed, **options) == expected


@every_mode
def test_gravity_in_metres_and_kilograms(mode):
    G, p, m = 6.674e-11, np.array([1.5e11, 1e10, 0.0]), np.array([1.99e30, 5.97e24])

    def f(p, m):
        return -G * m[0] * m[1] / np.linalg.norm(p)

    def right(p, m):
        return G * m[0] * m[1] * p / np.linalg.norm(p) ** 3, -G * m[::-1] / np.linalg.norm(p)

    assert verdict(f, [p, m], right, mode=mode) == "PASS"
    assert verdict(f, [p, m], lambda p, m: (0 * p, right(p, m)[1]), mode=mode) == "FAIL"


@every_seed
def test_a_wide_error_bar_makes_no_zero(seed):
    a, b, w = normal((4,), seed), normal((3,), seed + 10), 0.01 * normal((4,), seed + 20)

    def f(a, b, w):
        return 1e9 + np.sin(a).sum() + (b**2).sum() + np.abs(w).sum()

    assert verdict(f, [a, b, w], lambda a, b, w: (np.cos(a), 2 * b, 0 * w)) == "INCONCLUSIVE"


@every_mode
@every_seed
def test_a_bias_in_front_of_a_batch_norm_has_no_gradient_but_rounding(mode, seed):
    def parts(x, w, c):
        z = x @ w + c
        centred = z - z.mean(0)
        std = np.sqrt((centred * centred).mean(0) + 1e-5)
        return centred / std, std

    def grads(dy, x, w, c):
        z_hat, std = parts(x, w, c)
        dz = (dy - dy.mean(0) - z_hat * (dy * z_hat).mean(0)) / std
        return dz @ w.T, x.T @ dz, dz.sum(0)

    arrays = [normal((8, 5), seed), normal((5, 4), seed + 10), normal((4,), seed + 20)]
    report = gradcheck(lambda x, w, c: parts(x, w, c)[0], arrays, grads=grads, mode=mode)
    assert {row.name: row.verdict for row in report.rows} == {"x": "PASS", "w": "PASS", "c": "ZERO"}


def test_what_no_difference_could_confirm_is_said_in_a_note():
    x, w = 1e8 * normal((4,), 1), normal((4,), 2)
    report = gradcheck(lambda x, w: (x**2).sum() + (w**3).sum(), [x, w], grads=lambda x, w: (2 * x, 3 * w**2))
    assert report.verdict == "PASS"
    assert report.notes == ["w: by the complex step alone: rounding hides this gradient from differences"]


@every_mode
def test_a_place_where_forward_raises_is_one_where_it_is_not_defined(mode):
    S = 0.1 * np.ones((3, 3)) + 1e-5 * np.eye(3)

    def f(A):
        return np.log(np.diag(np.linalg.cholesky((A + A.T) / 2))).sum()

    assert verdict(f, [S], lambda A: 0.5 * np.linalg.inv((A + A.T) / 2), mode=mode) == "PASS"
    # In one coordinate the matrix is positive definite within so small a step alone that rounding hides the derivative.
    wrong = {"full": "INCONCLUSIVE", "directions": "FAIL"}
    assert verdict(f, [S], lambda A: 0.6 * np.linalg.inv((A + A.T) / 2), mode=mode) == wrong[mode]


# -- on the device ----------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("method", ["auto", "complex", "richardson"])
def test_verdicts_on_the_device_are_those_of_numpy(mode, method, backend):
    """A function that loses imaginary parts, one with kinks, one with a narrow turn: right, and wrong in an element."""
    x = backend.put(normal((4, 5), 1))
    flat = x.reshape(-1)
    flat[3:9] = 0.0

    def verdicts(f, slope, factor):
        def grads(x):
            g = slope(x)
            g.reshape(-1)[12] *= factor
            return g

        return verdict(f, x, grads, mode=mode, method=method)

    def relu(x):
        return (x * (x.real > 0)).sum()

    def norm(x):
        return abs(x + 7.0).sum() + (x * x).sum()

    def turn(x):
        return ((x * x + 1e-12) ** 0.5).sum()

    assert verdicts(relu, lambda x: (x > 0) * 1.0, 1) in ("KINK", "INCONCLUSIVE", "PASS")
    assert verdicts(relu, lambda x: (x > 0) + 0.5, 1) != "PASS"
    assert verdicts(norm, lambda x: 1 + 2 * x, 1) == ("INCONCLUSIVE" if method == "complex" else "PASS")
    assert verdicts(norm, lambda x: 1 + 2 * x, 1.5) == ("INCONCLUSIVE" if method == "complex" else "FAIL")
    assert verdicts(turn, lambda x: x / (x * x + 1e-12) ** 0.5, 1) == "PASS"
    assert verdicts(turn, lambda x: x / (x * x + 1e-12) ** 0.5, 1.01) == "FAIL"
