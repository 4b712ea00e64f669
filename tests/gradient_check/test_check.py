"""The checker checked: it passes what is right, names what is wrong, and says so where it cannot tell."""

import math

import numpy as np
import pytest
from helpers import HARD, hard_model, images_for, labels_for, make_layer, normal, randomize, same_bits

import vitnp
from vitnp import GradcheckError, Layer, VisionTransformer, ViTConfig, gradcheck
from vitnp.gradient_check import check as module
from vitnp.layers import LayerNorm, Linear, Tanh

MODES = ("full", "directions")
every_mode = pytest.mark.parametrize("mode", MODES)
BEFORE = 3  # forwards: for the shape of the cotangent, for backward, and one to compare with that
CONFIRMED = 4  # more for each tensor: two central differences, to which a complex step is held


class Faulty(Layer):
    """A layer whose backward is right but for one change to the gradient of `name`."""

    def __init__(self, right, name, change):
        super().__init__()
        self.right, self.name, self.change = right, name, change
        self.built(rng=None)

    def forward(self, x, ctx):
        return self.right.forward(x, ctx)

    def backward(self, dy, ctx):
        if self.name == "input":
            dx = self.right.backward(dy, ctx).copy()
            self.change(dx)
            return dx
        gradient = self.gradients(ctx)[f"right.{self.name}"]
        before = gradient.copy()
        gradient.fill(0)  # what this backward adds is changed, and nothing else
        dx = self.right.backward(dy, ctx)
        self.change(gradient)
        gradient += before
        return dx


def at(index, factor):
    def change(gradient):
        gradient[index] *= factor

    return change


def function(a, b):
    return (np.exp(a) * b).sum()


def function_arrays():
    return {"a": normal((3, 4), 1), "b": normal((3, 4), 2)}


def function_grads(a, b):
    return {"a": np.exp(a) * b, "b": np.exp(a)}


# -- what is right ----------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("method", ["auto", "complex", "richardson", "5point", "central"])
def test_right_gradients_of_a_layer_pass(mode, method):
    report = gradcheck(*make_layer("block"), mode=mode, method=method)
    assert report.verdict == "PASS"
    assert report.ok


@every_mode
def test_right_gradients_of_a_function_pass(mode):
    arrays = function_arrays()
    assert gradcheck(function, arrays, grads=function_grads(**arrays), mode=mode, tolerance=1e-13).ok


@pytest.mark.parametrize("seed", range(10))
def test_right_gradients_pass_whatever_the_seed(seed):
    layer, x = make_layer("mlp_tanh", seed=seed)
    assert gradcheck(layer, x, mode="directions", seed=seed, tolerance=1e-12).ok


def test_every_parameter_and_the_input_have_a_row():
    layer, x = make_layer("block")
    rows = {row.name: row for row in gradcheck(layer, x, mode="directions").rows}
    assert rows.keys() == {*layer.parameters(), "input"}
    assert rows["attn.qkv.weight"].shape == (6, 18)
    assert rows["input"].shape == x.shape


def test_full_mode_takes_every_coordinate():
    report = gradcheck(*make_layer("linear"), mode="full", method="complex")
    assert [row.checked for row in report.rows] == ["all 42", "all 7", "all 270"]
    assert report.evaluations == BEFORE + 42 + 7 + 270 + 3 * CONFIRMED


def test_directions_take_one_forward_a_tensor_and_four_to_confirm_it():
    report = gradcheck(*make_layer("linear"), mode="directions", method="complex")
    assert [row.checked for row in report.rows] == ["1 direction"] * 3
    assert report.evaluations == BEFORE + 3 * (1 + CONFIRMED)


def test_complex_steps_are_taken_where_they_can_be():
    report = gradcheck(*make_layer("block"), mode="directions")
    assert (report.method, report.tolerance, report.notes) == ("complex", 1e-10, [])


@pytest.mark.parametrize(("method", "tolerance"), [("richardson", 1e-8), ("5point", 1e-8), ("central", 1e-6)])
def test_differences_can_be_asked_for(method, tolerance):
    report = gradcheck(*make_layer("block"), mode="directions", method=method)
    assert (report.method, report.tolerance) == (method, tolerance)


@pytest.mark.parametrize(("budget", "mode"), [(0.0, "directions"), (math.inf, "full")])
def test_the_mode_follows_the_time_that_it_would_take(monkeypatch, budget, mode):
    monkeypatch.setattr(module, "FULL_BUDGET_S", budget)
    assert gradcheck(*make_layer("linear")).mode == mode


def test_labels_make_the_loss_the_cross_entropy():
    model = hard_model()
    images, labels = images_for(model), labels_for(model)
    ctx = vitnp.Context(train=True, rng=0)
    _, dlogits = vitnp.softmax_cross_entropy(model.forward(images, ctx), labels, 0.1)
    model.backward(dlogits, ctx)
    report = gradcheck(model, images, labels, label_smoothing=0.1, mode="full")
    row = next(row for row in report.rows if row.name == "head.weight")
    assert row.analytic == model.gradients(ctx)["head.weight"][row.index]


def test_layer_and_input_are_left_as_they_are():
    layer, x = make_layer("block")
    before, x_before = {name: p.copy() for name, p in layer.parameters().items()}, x.copy()
    gradcheck(layer, x, mode="directions")
    gradcheck(layer, x, mode="directions", method="central")
    assert same_bits(x, x_before)
    assert all(same_bits(p, before[name]) for name, p in layer.parameters().items())


def test_parameters_are_put_back_where_forward_fails_midway():
    class Fragile(Linear):
        def forward(self, x, ctx):
            if abs(self.weight.imag).max() > 0:
                raise RuntimeError("no imaginary weights")
            return super().forward(x, ctx)

    layer = randomize(Fragile(3, 2, dtype="float64"))
    before = layer.weight.copy()
    with pytest.raises(RuntimeError, match="no imaginary weights"):
        gradcheck(layer, normal((4, 3), 1), method="complex")
    assert same_bits(layer.weight, before)


def test_the_same_seed_gives_the_same_report():
    first, again = (gradcheck(*make_layer("block"), mode="directions", seed=4).rows for _ in range(2))
    assert first == again


# -- what is wrong ----------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize(
    ("name", "index"), [("weight", (4, 5)), ("weight", (0, 0)), ("bias", (6,)), ("input", (3, 8, 2))]
)
@pytest.mark.parametrize("factor", [-1, 1.01, 0, 1 + 1e-6])
def test_one_wrong_element_is_named_with_its_index_and_no_other_tensor(mode, name, index, factor):
    right, x = make_layer("linear")
    report = gradcheck(Faulty(right, name, at(index, factor)), x, mode=mode, method="complex")
    assert report.verdict == "FAIL"
    failed = [row for row in report.rows if row.verdict == "FAIL"]
    assert [(row.name.removeprefix("right."), row.index) for row in failed] == [(name, index)]
    assert report.worst is failed[0]


@every_mode
def test_both_values_of_the_wrong_element_are_told(mode):
    right, x = make_layer("linear")
    true = next(row for row in gradcheck(right, x, mode="full").rows if row.name == "bias")
    report = gradcheck(Faulty(right, "bias", at(true.index, 3)), x, mode=mode)
    assert report.worst.index == true.index
    assert report.worst.analytic == pytest.approx(3 * true.analytic, rel=1e-12)
    assert report.worst.numeric == pytest.approx(true.analytic, rel=1e-12)


@every_mode
@pytest.mark.parametrize("factor", [1 / 5, 5, -1, 0])
def test_a_gradient_of_a_wrong_size_fails(mode, factor):
    right, x = make_layer("block")
    assert gradcheck(Faulty(right, "attn.qkv.weight", at(..., factor)), x, mode=mode).verdict == "FAIL"


@every_mode
def test_a_missing_gradient_fails(mode):
    class Forgetful(Linear):
        def backward(self, dy, ctx):
            return dy @ self.weight.T

    layer = randomize(Forgetful(6, 7, dtype="float64"))
    report = gradcheck(layer, normal((5, 6), 1), mode=mode)
    assert {row.name: row.verdict for row in report.rows} == {"weight": "FAIL", "bias": "FAIL", "input": "PASS"}


@every_mode
def test_a_nan_gradient_fails(mode):
    right, x = make_layer("linear")
    report = gradcheck(Faulty(right, "weight", lambda gradient: gradient.fill(np.nan)), x, mode=mode)
    assert {row.name.removeprefix("right."): row.verdict for row in report.rows}["weight"] == "FAIL"


@every_mode
@pytest.mark.parametrize("method", ["richardson", "5point", "central"])
def test_an_error_of_a_percent_is_caught_by_differences(mode, method):
    right, x = make_layer("linear")
    report = gradcheck(Faulty(right, "weight", at((4, 5), 1.01)), x, mode=mode, method=method)
    assert [row.index for row in report.rows if row.verdict == "FAIL"] == [(4, 5)]


def test_a_tolerance_of_ones_own_is_kept():
    right, x = make_layer("linear")
    assert gradcheck(Faulty(right, "bias", at(..., 1 + 1e-4)), x, tolerance=1e-3).ok
    assert not gradcheck(Faulty(right, "bias", at(..., 1 + 1e-4)), x, tolerance=1e-5).ok


def test_a_faulty_function_fails():
    arrays = function_arrays()
    grads = function_grads(**arrays)
    grads["b"] = grads["b"] * 1.001
    report = gradcheck(function, arrays, grads=grads)
    assert {row.name: row.verdict for row in report.rows} == {"a": "PASS", "b": "FAIL"}


def test_a_failure_raises_with_its_table():
    right, x = make_layer("linear")
    report = gradcheck(Faulty(right, "weight", at((4, 5), 2)), x)
    with pytest.raises(GradcheckError, match=r"right\.weight .* \(4, 5\) .* FAIL") as error:
        report.raise_if_failed()
    assert str(report) in str(error.value)


def test_a_failure_is_an_assertion_error():
    assert issubclass(GradcheckError, AssertionError)


def test_a_pass_does_not_raise():
    gradcheck(*make_layer("linear")).raise_if_failed()


# -- where it cannot tell ---------------------------------------------------------------------------------------------


@every_mode
def test_a_fresh_zero_head_makes_the_check_vacuous(mode):
    model = VisionTransformer(ViTConfig(**HARD), rng=0, dtype="float64")
    report = gradcheck(model, images_for(model), labels_for(model), mode=mode)
    assert report.verdict == "VACUOUS"
    assert not report.ok
    zero = {row.name for row in report.rows if row.verdict == "ZERO"}
    assert zero == {row.name for row in report.rows} - {"head.weight", "head.bias"}


def test_a_vacuous_check_raises():
    model = VisionTransformer(ViTConfig(**HARD), rng=0, dtype="float64")
    with pytest.raises(GradcheckError, match="VACUOUS"):
        gradcheck(model, images_for(model), labels_for(model), mode="directions").raise_if_failed()


def test_a_few_zero_gradients_pass():
    arrays = {**function_arrays(), "unused": np.ones(3)}
    grads = {**function_grads(**function_arrays()), "unused": np.zeros(3)}
    report = gradcheck(lambda a, b, unused: function(a, b), arrays, grads=grads)
    assert [row.verdict for row in report.rows] == ["PASS", "PASS", "ZERO"]
    assert report.ok


@every_mode
def test_a_gradient_that_is_claimed_to_be_zero_and_is_not_fails(mode):
    arrays = function_arrays()
    grads = function_grads(**arrays)
    report = gradcheck(function, arrays, grads={**grads, "a": np.zeros((3, 4))}, mode=mode)
    assert [row.verdict for row in report.rows] == ["FAIL", "PASS"]


class Random(Tanh):
    """A forward that draws from a stream."""

    def __init__(self):
        super().__init__()
        self.stream = np.random.default_rng(0)

    def forward(self, x, ctx):
        return super().forward(x * self.stream.random(x.shape), ctx)


def test_a_forward_that_does_not_repeat_is_named_nondeterministic():
    report = gradcheck(Random(), normal((5, 11), 1))
    assert report.verdict == "NONDETERMINISTIC"
    assert not report.ok


class LosesImaginaryParts(Layer):
    def __init__(self, function, derivative):
        super().__init__()
        self.function, self.derivative = function, derivative
        self.built(rng=None)

    def forward(self, x, ctx):
        ctx.save(self, x=x)
        return self.function(x)

    def backward(self, dy, ctx):
        return dy * self.derivative(ctx.saved(self).x)


def test_np_abs_makes_it_fall_back_to_differences_with_the_reason():
    report = gradcheck(LosesImaginaryParts(np.abs, np.sign), normal((5, 11), 1))
    assert (report.method, report.verdict) == ("richardson", "PASS")
    assert "forward loses imaginary parts" in report.notes[0]
    assert "note: richardson, as forward loses imaginary parts" in str(report)


def test_a_cast_to_float_makes_it_fall_back_with_the_reason():
    layer = LosesImaginaryParts(lambda x: x.astype("float64") ** 2, lambda x: 2 * x)
    report = gradcheck(layer, normal((5, 11), 1))
    assert (report.method, report.verdict) == ("richardson", "PASS")
    assert "forward casts complex numbers to real ones" in report.notes[0]


def test_a_function_that_takes_no_complex_numbers_makes_it_fall_back_with_the_reason():
    report = gradcheck(lambda x: math.sin(x.item()), {"x": np.array(0.5)}, grads={"x": np.array(math.cos(0.5))})
    assert (report.method, report.verdict) == ("richardson", "PASS")
    assert "a complex step is not possible: TypeError" in report.notes[0]


class NormByVar(LayerNorm):
    """A right layer norm, written with np.var."""

    def forward(self, x, ctx):
        super().forward(x.astype("float64") if x.dtype.kind == "f" else x, ctx)
        rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + self.eps)
        return (x - x.mean(-1, keepdims=True)) * rstd * self.gamma + self.beta


def test_np_var_on_the_input_alone_makes_it_fall_back_too():
    layer = randomize(NormByVar(6, dtype="float64"))
    report = gradcheck(layer, normal((5, 6), 1), mode="full")
    assert (report.method, report.verdict) == ("richardson", "PASS")


@every_mode
def test_a_forward_of_nan_is_inconclusive_and_not_called_nondeterministic(mode):
    report = gradcheck(lambda x: np.nan * x.sum(), normal((3,), 1), grads=np.ones_like, mode=mode)
    assert (report.verdict, report.ok) == ("INCONCLUSIVE", False)
    assert report.worst.hint.startswith("forward gives nan here, where it has no derivative")


@every_mode
def test_a_numeric_gradient_of_nan_is_neither_zero_nor_right(mode):
    def broken(a, b):
        return (a * a).sum() + (0 if b.dtype.kind == "f" else 1j * np.nan)

    arrays = function_arrays()
    grads = {"a": 2 * arrays["a"], "b": np.zeros((3, 4))}
    report = gradcheck(broken, arrays, grads=grads, method="complex", mode=mode)
    assert {row.name: row.verdict for row in report.rows}["b"] == "INCONCLUSIVE"
    assert not report.ok


# -- misuse -----------------------------------------------------------------------------------------------------------


def test_a_float32_layer_is_refused_with_the_reason_and_the_way_out():
    layer, x = make_layer("linear", "float32")
    with pytest.raises(TypeError, match=r"weight is float32; a gradient check needs float64.*upcast=True"):
        gradcheck(layer, x)


def test_a_float32_input_is_refused_by_name():
    layer, x = make_layer("linear")
    with pytest.raises(TypeError, match="input is float32"):
        gradcheck(layer, x.astype("float32"))


def test_a_float32_array_of_a_function_is_refused_by_name():
    arrays = function_arrays()
    arrays["b"] = arrays["b"].astype("float32")
    with pytest.raises(TypeError, match="b is float32"):
        gradcheck(function, arrays, grads=function_grads(**arrays))


def test_a_function_without_gradients_is_refused_with_the_way_to_call():
    with pytest.raises(TypeError, match=r"gradcheck\(f, arrays, grads=...\)"):
        gradcheck(function, function_arrays())


def test_a_vector_valued_function_needs_its_gradients_as_a_function():
    with pytest.raises(TypeError, match=r"returns an array \(3, 4\).*give them as a function, grads\(dy, ...\)"):
        gradcheck(lambda a: a * 2, {"a": normal((3, 4), 1)}, grads={"a": np.ones((3, 4))})


def test_a_gradient_of_something_else_is_refused_by_name():
    arrays = function_arrays()
    with pytest.raises(ValueError, match="a gradient for c, which is none of the arrays a, b"):
        gradcheck(function, arrays, grads={**function_grads(**arrays), "c": np.ones(3)})


def test_what_is_no_array_is_refused_by_name():
    with pytest.raises(TypeError, match="b is a float; expected an array"):
        gradcheck(function, {"a": np.ones(3), "b": 2.0}, grads=function_grads)


def test_no_direction_at_all_is_refused():
    with pytest.raises(ValueError, match="directions is 0; it must be at least 1"):
        gradcheck(*make_layer("linear"), directions=0)


@pytest.mark.parametrize(("name", "value"), [("method", "forward"), ("mode", "sample")])
def test_unknown_method_and_mode_are_refused_with_the_choices(name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}'; choose one of auto, "):
        gradcheck(*make_layer("linear"), **{name: value})
