"""What people bring: it is taken as it comes, or refused in a line that says what was expected."""

import math

import numpy as np
import pytest
from helpers import make_layer, normal

import vitnp
from vitnp import gradcheck
from vitnp.layers import Tanh

A = normal((3, 4), 1)
LABELS = np.array([0, 1, 2])


def square(a):
    return (a * a).sum()


def twice(a):
    return 2 * a


def refused(error, text, *arguments, **options):
    with pytest.raises(error, match=text) as caught:
        gradcheck(*arguments, **options)
    assert "\n" not in str(caught.value)


# -- arrays -----------------------------------------------------------------------------------------------------------


def read_only():
    a = A.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("a", [read_only(), np.broadcast_to(A[0], (3, 4)), np.float64(2.0), A[::2, ::-1], A.T])
def test_arrays_need_not_be_writeable_or_contiguous(a):
    assert gradcheck(square, a, grads=twice, mode="full").verdict == "PASS"


@pytest.mark.parametrize("arrays", [{}, ()])
def test_no_array_at_all_is_refused(arrays):
    refused(ValueError, "there is no array to check; expected one at least", lambda: 1.0, arrays, grads={})


def test_an_empty_array_is_refused_by_name():
    refused(ValueError, r"a is empty, of shape \(0, 3\); expected", square, np.zeros((0, 3)), grads=twice)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_an_array_that_is_not_finite_is_refused_with_the_place(value, name):
    a = A.copy()
    a[1, 2] = value
    refused(ValueError, rf"^a has {name} at \(1, 2\); expected finite numbers", square, a, grads=twice)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "float32"])
def test_other_real_numbers_are_refused_with_the_way_out_which_is_one(dtype):
    a = A.astype(dtype)
    refused(TypeError, rf"^a is {dtype}; a gradient check needs float64.*upcast=True", square, a, grads=twice)
    assert gradcheck(square, a, grads=twice, upcast=True).verdict in ("PASS", "VACUOUS")


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex128"])
def test_no_word_of_float32_where_there_is_none(dtype):
    with pytest.raises(TypeError) as caught:
        gradcheck(square, A.astype(dtype), grads=twice)
    assert "float32" not in str(caught.value)


@pytest.mark.parametrize("upcast", [False, True])
def test_complex_arrays_are_refused_whatever_is_asked_for(upcast):
    refused(TypeError, "a is complex128; .* real numbers", square, A + 0j, grads=twice, upcast=upcast)


def test_a_matrix_is_refused():
    refused(TypeError, "a is a matrix; expected an array", square, A.view(np.matrix), grads=twice)


def test_a_bare_list_is_refused():
    refused(TypeError, "a float; expected an array, as np.asarray makes one", square, [1.0, 2.0], grads=twice)


def test_a_layer_s_input_without_axes_is_refused():
    refused(ValueError, "input has no axes; expected a batch", make_layer("linear")[0], np.array(1.0))


class Tensor:
    """As torch's: it has a dtype, and that is none of NumPy's."""

    dtype, shape, size = "torch.float64", (3, 4), 12


def test_tensors_of_another_library_are_refused():
    refused(TypeError, "a is a Tensor; expected an array, as np.asarray makes one", square, Tensor(), grads=twice)
    refused(TypeError, "a is a Tensor; expected an array", square, {"a": Tensor()}, grads=twice, upcast=True)
    refused(TypeError, "the gradient of a is a Tensor; expected an array", square, A, grads=lambda a: Tensor())
    refused(TypeError, "cotangent is a Tensor", np.tanh, A, grads=lambda dy, x: dy, cotangent=Tensor())


@pytest.mark.parametrize(
    ("make", "name"), [(lambda a: a.view(np.matrix), "matrix"), (np.ma.masked_array, "MaskedArray")]
)
def test_gradients_that_behave_unlike_arrays_are_refused(make, name):
    text = f"the gradient of a is an? {name}; expected an array"
    refused(TypeError, text, square, A, grads=lambda a: make(2 * a))
    refused(TypeError, f"a is an? {name}; expected an array", square, make(A), grads=twice)


def test_labels_among_the_arrays_are_told_where_to_go():
    text = r"labels is int64; .*upcast=True makes, unless it is labels or indices: leave those out, as in lambda"
    refused(TypeError, text, lambda a, labels: a[labels].sum(), {"a": A, "labels": LABELS}, grads=twice)


# -- functions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "name"), [((1, 2), "a tuple"), ([1.0], "a list"), (None, "None")])
def test_a_function_that_returns_no_number_is_refused(value, name):
    text = f"the function returned {name}; expected one array or number"
    refused(TypeError, text, lambda a: value, A, grads=twice)


def test_a_function_that_returns_complex_numbers_is_refused():
    refused(TypeError, "the function returned complex numbers", lambda a: a + 0j, A, grads=lambda dy, a: dy)


def test_what_is_no_function_is_refused():
    refused(TypeError, "the target is a float; expected a layer, or a function", 1.0, A, grads=twice)


def test_arrays_that_a_function_does_not_take_are_refused_with_the_call():
    text = r"the function is called as f\(w=...\): missing a required argument: 'a'"
    refused(TypeError, text, square, {"w": A}, grads=twice)


@pytest.mark.parametrize("arrays", [A, {"x": A}])
def test_gradients_without_dy_are_refused_with_the_call_where_an_array_comes_back(arrays):
    text = r"the function returns an array, so grads is called as grads\(dy, x"
    refused(TypeError, text, lambda x: np.tanh(x), arrays, grads=lambda x: x)


def test_gradients_with_dy_are_refused_with_the_call_where_a_number_comes_back():
    text = r"the function returns a number, so grads is called as grads\(a\): missing"
    refused(TypeError, text, square, A, grads=lambda dy, a: dy * a)


def test_an_array_may_be_called_dy():
    report = gradcheck(lambda dy, x: dy * x, (A, A + 1), grads=lambda g, dy, x: (g * x, g * dy))
    assert {row.name: row.verdict for row in report.rows} == {"dy": "PASS", "x": "PASS"}


def test_a_gradient_of_complex_numbers_is_refused_by_name():
    refused(TypeError, "the gradient of a is complex128; expected real numbers", square, A, grads=lambda a: 2 * a + 0j)


def test_too_many_gradients_are_refused():
    refused(ValueError, "there are 6 gradients for 1 arrays", lambda a: a.sum(), normal((6,)), grads=[1.0] * 6)


def test_a_gradient_for_an_unknown_name_lists_a_few_of_many():
    arrays = {f"w{i}": A for i in range(40)}
    text = "a gradient for b, which is none of the arrays w0, w1, w2, w3, w4, w5 and 34 more$"
    refused(ValueError, text, lambda **w: sum(map(np.sum, w.values())), arrays, grads={"b": A})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["auto", "complex", "richardson"])
def test_a_value_that_is_not_finite_is_looked_at_first(value, method):
    report = gradcheck(lambda a: a.sum() * value, abs(A), grads=np.ones_like, method=method)
    assert [(row.name, row.verdict) for row in report.rows] == [("forward", "INCONCLUSIVE")]
    assert report.worst.hint.startswith(f"forward gives {value} here, where it has no derivative")


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [lambda x, y: 1.0, lambda x, y: (x, x), lambda x, y: (1.0, x, x), lambda x, y: None])
def test_a_loss_that_does_not_return_value_and_gradient_is_refused(loss):
    refused(TypeError, r"the loss returned .*; expected \(value, gradient\), the value a number", loss, A, LABELS)


def test_a_loss_without_a_gradient_is_missing_one():
    report = gradcheck(lambda x, y: (square(x), None), A, LABELS)
    assert (report.verdict, report.worst.hint) == ("MISSING", "there is no gradient for it, nor for anything else")


def test_a_loss_that_forgets_to_divide_by_an_axis_hears_its_name():
    def loss(x, labels):
        return ((x - 1) ** 2).mean(), 2 * (x - 1) / len(x)

    report = gradcheck(loss, normal((5, 3)), LABELS)
    assert report.worst.hint == "analytic = 3 × numeric everywhere: input.shape[1] = 3"


# -- cotangents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cotangent", [np.ones(4), np.ones((3, 1)), np.ones((4, 3)), 1.0, np.ones((3, 4)) * 1j])
def test_a_cotangent_that_is_not_the_value_s_is_refused(cotangent):
    text = r"cotangent has shape .*; expected \(3, 4\)"
    refused(ValueError, text, np.tanh, A, grads=lambda dy, x: dy, cotangent=cotangent)


def test_a_layer_s_cotangent_is_looked_at_too():
    layer, x = make_layer("linear")
    refused(ValueError, r"cotangent has shape \(7,\).*expected \(5, 9, 7\)", layer, x, cotangent=np.ones(7))
    refused(ValueError, "cotangent has NaN or inf", layer, x, cotangent=np.full((5, 9, 7), np.inf))


def test_a_cotangent_may_be_a_list():
    report = gradcheck(np.tanh, A[0], grads=lambda dy, x: dy * (1 - np.tanh(x) ** 2), cotangent=[1, 2, 3, 4])
    assert report.verdict == "PASS"


# -- options that do not go together ----------------------------------------------------------------------------------

LINEAR = make_layer("linear")


@pytest.mark.parametrize(
    ("text", "arguments", "options"),
    [
        ("both labels and grads are given", (square, A, LABELS), {"grads": twice}),
        ("grads are given for a layer", LINEAR, {"grads": twice}),
        ("a number, which takes no cotangent", (square, A), {"grads": twice, "cotangent": np.ones(())}),
        ("both cotangent and labels are given", (*LINEAR, LABELS), {"cotangent": A}),
        ("label_smoothing is 0.1; only the loss of a layer", LINEAR, {"label_smoothing": 0.1}),
        (
            "label_smoothing is 0.1; only the loss of a layer",
            (vitnp.softmax_cross_entropy, A, LABELS),
            {"label_smoothing": 0.1},
        ),
    ],
)
def test_what_would_be_ignored_is_refused(text, arguments, options):
    refused(ValueError, text, *arguments, **options)


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (ValueError, "tolerance", -1),
        (ValueError, "tolerance", math.nan),
        (ValueError, "tolerance", math.inf),
        (TypeError, "tolerance", "1e-3"),
        (TypeError, "tolerance", True),
        (TypeError, "directions", 1.5),
        (TypeError, "directions", True),
        (TypeError, "seed", None),
        (ValueError, "seed", -1),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(error, name, value):
    refused(error, f"{name} is {value!r}; it must be ", square, A, grads=twice, **{name: value})


# -- how functions behave ---------------------------------------------------------------------------------------------


def test_a_function_that_writes_into_its_input_again_and_again_is_impure_not_random():
    def f(a):
        a *= 2
        return square(a)

    a = A.copy()
    report = gradcheck(f, a, grads=twice)
    assert [(row.name, row.verdict) for row in report.rows] == [("a", "IMPURE")]
    assert np.array_equal(a, A)


def test_gradients_that_write_into_dy_are_impure():
    def grads(dy, a):
        dy *= np.cos(a)
        return dy

    report = gradcheck(lambda a: np.sin(a), A, grads=grads)  # older ufuncs do not tell the name of their argument
    assert {row.name: row.verdict for row in report.rows} == {"cotangent": "IMPURE", "a": "PASS"}


def test_gradients_that_add_up_in_a_buffer_of_their_own_are_not_reentrant():
    buffer = np.zeros_like(A)

    def grads(a):
        np.add(buffer, 2 * a, out=buffer)
        return buffer

    report = gradcheck(square, A, grads=grads)
    assert [row.verdict for row in report.rows] == ["NOT REENTRANT", "PASS"]


def test_a_loss_that_adds_up_in_a_buffer_of_its_own_is_not_reentrant():
    buffer = np.zeros_like(A)

    def loss(x, labels):
        if x.dtype.kind == "f":
            np.add(buffer, 2 * x, out=buffer)
        return square(x), buffer

    assert gradcheck(loss, A, LABELS).verdict == "NOT REENTRANT"


def test_both_values_of_a_function_that_does_not_repeat_are_told():
    values = iter([1.5, 2.5, 3.5, 4.5])
    report = gradcheck(lambda a: next(values), A, grads=twice)
    assert report.worst.hint == "two forwards gave 2.5 and 3.5: hold its random numbers fixed"
    assert (report.method, report.mode) == ("", "")


def test_forwards_are_counted():
    calls = []
    report = gradcheck(lambda a: calls.append(1) or square(a), A, grads=twice)
    assert report.evaluations == len(calls)


def test_a_layer_that_takes_several_axes_has_a_cotangent_of_its_output_s_shape():
    assert gradcheck(Tanh(), normal((2, 3, 4, 5))).verdict == "PASS"
