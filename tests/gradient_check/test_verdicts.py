"""Every verdict is reached, on functions and layers that people might bring, and is the right one."""

import numpy as np
import pytest
from helpers import hard_model, images_for, labels_for, make_layer, normal, randomize

import vitnp
from vitnp import Layer, assert_gradients, check_layers, gradcheck
from vitnp.layers import Linear, Softmax, Tanh

MODES = ("full", "directions")
every_mode = pytest.mark.parametrize("mode", MODES)


def verdicts(report):
    return {row.name: row.verdict for row in report.rows}


def square(a):
    return (a * a).sum()


# -- plain functions, called as they are ------------------------------------------------------------------------------


@every_mode
def test_arrays_may_come_in_order(mode):
    def f(a, b):
        return a @ b

    arrays = normal((3, 4), 1), normal((4, 5), 2)
    report = gradcheck(f, arrays, grads=lambda dy, a, b: (dy @ b.T, a.T @ dy), mode=mode)
    assert verdicts(report) == {"a": "PASS", "b": "PASS"}


def test_one_array_and_one_gradient_need_no_tuple():
    assert gradcheck(np.sin, normal((3, 4), 1), grads=lambda dy, x: dy * np.cos(x)).ok


def test_arrays_of_a_function_without_names_are_numbered():
    def f(*arrays):
        return arrays[0] * arrays[1]

    report = gradcheck(f, (normal((3,), 1), normal((3,), 2)), grads=lambda dy, a, b: (dy * b, dy * a))
    assert list(verdicts(report)) == ["argument 0", "argument 1"]


def test_a_vector_valued_function_is_checked_against_a_random_cotangent():
    """The gradient of the sum of a softmax is zero, so a backward of zeros would pass with a sum."""

    def softmax(z):
        e = np.exp(z - z.real.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    z = normal((3, 5), 1)
    assert gradcheck(softmax, {"z": z}, grads=lambda dy, z: {"z": 0 * z}).verdict == "FAIL"
    right = gradcheck(
        softmax, {"z": z}, grads=lambda dy, z: {"z": softmax(z) * (dy - (dy * softmax(z)).sum(-1, keepdims=True))}
    )
    assert right.verdict == "PASS"


def test_a_cotangent_of_ones_own_is_taken():
    seen = []
    ones = np.ones((3, 4))
    gradcheck(np.sin, normal((3, 4), 1), grads=lambda dy, x: seen.append(dy) or dy * np.cos(x), cotangent=ones)
    assert all((dy == 1).all() for dy in seen)


def test_gradients_may_be_a_function_of_a_scalar_s_arrays():
    assert gradcheck(square, {"a": normal((3, 4), 1)}, grads=lambda a: {"a": 2 * a}).ok


@every_mode
def test_a_loss_that_returns_value_and_gradient_is_checked_with_its_labels(mode):
    logits, labels = normal((5, 4), 1), np.array([0, 3, 1, 1, 2])
    report = gradcheck(vitnp.softmax_cross_entropy, logits, labels, mode=mode, tolerance=1e-12)
    assert (report.verdict, list(verdicts(report))) == ("PASS", ["input"])


def test_a_loss_whose_gradient_forgets_the_mean_fails_by_name():
    def loss(logits, labels):
        value, gradient = vitnp.softmax_cross_entropy(logits, labels)
        return value, gradient * len(labels)

    report = gradcheck(loss, normal((5, 4), 1), np.array([0, 3, 1, 1, 2]))
    assert (report.verdict, report.worst.hint) == ("FAIL", "analytic = 5 × numeric everywhere: B (B = 5)")


# -- KINK -------------------------------------------------------------------------------------------------------------


def relu(x):
    return np.maximum(x, 0)


def with_zeros():
    x = normal((4, 5), 1)
    x[1, 2] = x[3, 0] = 0
    return x


@pytest.mark.parametrize("method", ["complex", "richardson", "central", "5point"])
def test_at_a_kink_the_slopes_of_both_sides_are_told(method):
    report = gradcheck(relu, with_zeros(), grads=lambda dy, x: dy * (x > 0), method=method, mode="full")
    assert report.verdict == "KINK"
    assert report.ok
    assert report.worst.index in ((1, 2), (3, 0))
    assert report.worst.hint.startswith("a kink: the slope is ")


@pytest.mark.parametrize("method", ["complex", "richardson", "central", "5point"])
def test_a_wrong_gradient_beside_a_kink_still_fails(method):
    def wrong(dy, x):
        dx = dy * (x > 0)
        dx[0, int(x[0].argmax())] *= 1.5
        return dx

    x = with_zeros()
    report = gradcheck(relu, x, grads=wrong, method=method, mode="full")
    assert (report.verdict, report.worst.index) == ("FAIL", (0, int(x[0].argmax())))


def test_a_gradient_beyond_both_slopes_of_a_kink_fails():
    report = gradcheck(relu, with_zeros(), grads=lambda dy, x: dy * ((x > 0) + 3 * (x == 0)), mode="full")
    assert report.verdict == "FAIL"


@pytest.mark.parametrize("method", ["richardson", "5point", "central"])
@every_mode
def test_kinks_within_the_step_are_not_taken_for_faults(method, mode):
    x = normal((40, 30), 1)
    x[::4] = 1e-4 * np.sign(x[::4])
    assert gradcheck(relu, x, grads=lambda dy, x: dy * (x > 0), method=method, mode=mode).verdict == "PASS"


@pytest.mark.parametrize("method", ["complex", "richardson"])
def test_a_direction_across_kinks_leaves_it_open_rather_than_fail(method):
    x = normal((4, 5), 1)
    x[::2] = 0
    report = gradcheck(relu, x, grads=lambda dy, x: dy * (x > 0), method=method, mode="directions")
    assert report.verdict == "INCONCLUSIVE"
    assert "use mode full" in report.worst.hint


# -- INCONCLUSIVE -----------------------------------------------------------------------------------------------------


@every_mode
def test_a_forward_in_float32_is_inconclusive_and_said_to_be_float32(mode):
    def f(a):
        a32 = a.astype("float32")
        return (a32 * a32).sum(dtype="float32")

    report = gradcheck(f, {"a": normal((6, 5), 1)}, grads=lambda a: {"a": 2 * a}, mode=mode)
    assert report.verdict == "INCONCLUSIVE"
    assert not report.ok
    assert any("float32" in note for note in report.notes)


@every_mode
def test_a_loss_that_drowns_in_a_constant_is_inconclusive_by_differences(mode):
    def f(a):
        return square(a) + 1e12

    report = gradcheck(f, {"a": normal((6, 5), 1)}, grads=lambda a: {"a": 2 * a}, mode=mode, method="richardson")
    assert report.verdict == "INCONCLUSIVE"


def test_the_complex_step_does_not_drown():
    def f(a):
        return square(a) + 1e12

    assert gradcheck(f, {"a": normal((6, 5), 1)}, grads=lambda a: {"a": 2 * a}, method="complex").verdict == "PASS"


# -- imaginary parts lost on one way of many --------------------------------------------------------------------------


def regularised(a, b):
    return (a * a * a).sum() + 1e-6 * np.abs(b).sum()  # too small a part for the probe to notice


def regularised_grads(a, b):
    return {"a": 3 * a * a, "b": 1e-6 * np.sign(b)}


@every_mode
def test_an_array_whose_imaginary_part_gets_lost_is_checked_by_differences(mode):
    arrays = {"a": normal((3, 4), 1), "b": normal((3, 4), 2)}
    report = gradcheck(regularised, arrays, grads=regularised_grads, mode=mode)
    assert (report.method, report.verdict) == ("complex", "PASS")
    assert any("b by richardson, tolerance 1e-08: forward loses imaginary parts" in note for note in report.notes)


def test_it_is_left_open_where_a_complex_step_was_asked_for():
    arrays = {"a": normal((3, 4), 1), "b": normal((3, 4), 2)}
    report = gradcheck(regularised, arrays, grads=regularised_grads, method="complex")
    assert verdicts(report) == {"a": "PASS", "b": "INCONCLUSIVE"}
    assert "use method richardson" in report.worst.hint


# -- MISSING, SHAPE ---------------------------------------------------------------------------------------------------


def test_an_array_without_a_gradient_is_missing():
    report = gradcheck(
        lambda a, b: square(a) + square(b), {"a": np.ones(3), "b": np.ones(2)}, grads=lambda a, b: {"a": 2 * a}
    )
    assert verdicts(report) == {"b": "MISSING", "a": "PASS"}
    assert report.verdict == "MISSING"
    assert report.worst.hint == "there is no gradient for it; there are a"


def test_no_gradient_at_all_is_missing():
    assert gradcheck(square, {"a": np.ones(3)}, grads={}).verdict == "MISSING"


def test_a_gradient_that_is_none_is_missing():
    assert gradcheck(square, {"a": np.ones(3)}, grads=lambda a: {"a": None}).verdict == "MISSING"


def test_a_gradient_of_another_shape_says_both_shapes():
    report = gradcheck(lambda a: square(a), {"a": normal((3, 4), 1)}, grads=lambda a: {"a": 2 * a.T})
    assert report.verdict == "SHAPE"
    assert report.worst.hint == "its gradient has shape (4, 3); expected (3, 4): it is transposed"


def test_a_layer_s_input_gradient_of_another_shape_is_named():
    class Flat(Tanh):
        def backward(self, dy, ctx):
            return super().backward(dy, ctx).ravel()

    report = gradcheck(Flat(), normal((5, 11), 1))
    assert verdicts(report) == {"input": "SHAPE"}


# -- NONDETERMINISTIC, NOT REENTRANT, IMPURE --------------------------------------------------------------------------


def test_a_function_that_draws_random_numbers_is_nondeterministic():
    stream = np.random.default_rng(0)
    report = gradcheck(lambda a: (a * stream.random(3)).sum(), {"a": np.ones(3)}, grads={"a": np.ones(3)})
    assert report.verdict == "NONDETERMINISTIC"
    assert "hold its random numbers" in report.worst.hint


def test_dropout_that_ignores_the_context_s_randomness_is_nondeterministic():
    class Careless(Layer):
        def __init__(self):
            super().__init__()
            self.stream = np.random.default_rng(0)
            self.built(rng=None)

        def forward(self, x, ctx):
            mask = self.stream.random(x.shape) < 0.5
            ctx.save(self, mask=mask)
            return x * mask

        def backward(self, dy, ctx):
            return dy * ctx.saved(self).mask

    assert gradcheck(Careless(), normal((5, 6), 1)).verdict == "NONDETERMINISTIC"


def test_a_backward_that_uses_up_what_forward_saved_is_not_reentrant():
    class Consuming(Softmax):
        def backward(self, dy, ctx):
            probs = ctx.saved(self).p
            dx = probs * (dy - (dy * probs).sum(-1, keepdims=True))
            probs *= 0
            return dx

    report = gradcheck(Consuming(), normal((2, 3, 4, 5), 1))
    assert report.verdict == "NOT REENTRANT"


def test_a_backward_that_overwrites_gradients_instead_of_adding_is_not_reentrant():
    class Setting(Linear):
        def backward(self, dy, ctx):
            before = ctx.grad(self, "bias").copy()
            dx = super().backward(dy, ctx)
            ctx.grad(self, "bias")[...] -= before
            return dx

    layer = randomize(Setting(6, 7, dtype="float64"))
    report = gradcheck(layer, normal((5, 6), 1))
    assert report.verdict == "NOT REENTRANT"
    assert report.worst.name == "bias"


class FreesItsCache(Linear):
    """A backward that throws away what forward has saved, as to save memory."""

    def forward(self, x, ctx):
        self.cache = x
        return super().forward(x, ctx)

    def backward(self, dy, ctx):
        x, self.cache = self.cache, None
        return super().backward(dy * (x.shape == x.shape), ctx)


def test_a_backward_that_works_once_is_not_reentrant():
    layer = randomize(FreesItsCache(6, 7, dtype="float64"))
    report = gradcheck(layer, normal((5, 6), 1))
    assert verdicts(report) == {"backward": "NOT REENTRANT", "weight": "PASS", "bias": "PASS", "input": "PASS"}
    assert report.worst.hint.startswith("a second backward of the same record raised AttributeError: ")
    assert check_layers(layer, normal((5, 6), 1)).verdict == "NOT REENTRANT"


def test_gradients_that_use_up_a_stack_are_not_reentrant():
    stack = []

    def f(a):
        if not stack and a.dtype.kind == "f":
            stack.append(a)
        return square(a)

    report = gradcheck(f, {"a": normal((3,), 1)}, grads=lambda a: {"a": 2 * stack.pop()})
    assert report.verdict == "NOT REENTRANT"
    assert report.worst.hint == "a second call raised IndexError: pop from empty list"


class ForgetsToReturn(Linear):
    def backward(self, dy, ctx):
        super().backward(dy, ctx)


def test_a_backward_that_forgets_to_return_is_missing_its_gradient():
    report = gradcheck(randomize(ForgetsToReturn(6, 7, dtype="float64")), normal((5, 6), 1))
    assert verdicts(report) == {"weight": "PASS", "bias": "PASS", "input": "MISSING"}
    assert report.worst.hint == "there is no gradient for it; there are weight, bias"


def test_so_it_is_inside_a_model_layer_by_layer():
    model = hard_model()
    model.blocks[0].mlp.fc1.__class__ = ForgetsToReturn
    report = check_layers(model, images_for(model), labels_for(model))
    bad = {row.name: row.verdict for row in report.rows if row.verdict not in ("PASS", "ZERO")}
    assert bad == {"blocks.0.mlp.fc1, input": "MISSING"}


def test_gradients_that_change_from_call_to_call_are_not_reentrant():
    calls = []
    report = gradcheck(square, {"a": np.ones(3)}, grads=lambda a: calls.append(1) or {"a": 2 * a * len(calls)})
    assert report.verdict == "NOT REENTRANT"


@pytest.mark.parametrize("where", ["weight", "input", "cotangent"])
def test_a_backward_that_writes_into_what_it_was_given_is_impure(where):
    class Writing(Linear):
        def backward(self, dy, ctx):
            dx = super().backward(dy, ctx).copy()
            target = {"weight": self.weight, "input": ctx.saved(self).rows, "cotangent": dy}[where]
            target *= 1.5
            return dx

    layer, x = randomize(Writing(6, 7, dtype="float64")), normal((5, 6), 1)
    before = layer.weight.copy(), x.copy()
    report = gradcheck(layer, x)
    assert report.verdict == "IMPURE"
    assert where in {row.name for row in report.rows if row.verdict == "IMPURE"}
    assert np.array_equal(layer.weight, before[0])
    assert np.array_equal(x, before[1])


def test_a_function_that_writes_into_its_array_is_impure_and_the_array_is_put_back():
    def f(a):
        a.real[0] = 0.0 if a.dtype.kind == "f" else a.real[0]
        return square(a)

    a = normal((4,), 1)
    before = a.copy()
    assert gradcheck(f, {"a": a}, grads=lambda a: {"a": 2 * a}).verdict == "IMPURE"
    assert np.array_equal(a, before)


# -- float32, assert --------------------------------------------------------------------------------------------------


@every_mode
def test_a_float32_model_is_checked_as_a_float64_copy_on_request(mode):
    model = hard_model("float32")
    report = gradcheck(model, images_for(model), labels_for(model), upcast=True, mode=mode)
    assert report.verdict == "PASS"
    assert model.flat.dtype == "float32"


def test_arrays_of_a_function_are_upcast_too():
    report = gradcheck(square, {"a": normal((3, 4), 1).astype("float32")}, grads=lambda a: {"a": 2 * a}, upcast=True)
    assert report.ok


def test_assert_gradients_returns_the_report_or_raises_it():
    assert assert_gradients(*make_layer("linear")).ok
    with pytest.raises(AssertionError, match="FAIL"):
        assert_gradients(square, {"a": np.ones(3)}, grads={"a": np.ones(3)})
