"""check_layers: a fault anywhere in a model shows in one row, that of the layer which has it."""

import numpy as np
import pytest
from helpers import hard_model, images_for, labels_for, make_layer, normal

from vitnp import check_layers
from vitnp.layers import MLP, Attention, Block, LayerNorm, Linear, Softmax


def wrong(base, factor=1.01):
    """A class of layers whose input gradient is off by a factor."""

    class Wrong(base):
        def backward(self, dy, ctx):
            return factor * super().backward(dy, ctx)

    return Wrong


def check(model, **options):
    return check_layers(model, images_for(model), labels_for(model), **options)


@pytest.mark.parametrize("method", ["complex", "richardson"])
def test_every_layer_of_a_right_model_passes(method):
    report = check(hard_model(), method=method)
    assert report.verdict == "PASS"


def test_every_parameter_every_layer_s_input_and_every_composite_has_a_row():
    model = hard_model()
    names = {row.name for row in check(model).rows}
    composites = {layer.path or "the whole" for layer in model.layers() if len(list(layer.layers())) > 1}
    assert {*model.parameters()} <= names
    assert composites <= names
    assert "blocks.1.attn.qkv, input" in names


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("blocks.0.norm1", LayerNorm),
        ("blocks.1.attn.qkv", Linear),
        ("blocks.1.attn.softmax", Softmax),
        ("blocks.0.mlp.fc2", Linear),
        ("head", Linear),
        ("norm", LayerNorm),
    ],
)
def test_a_fault_in_a_layer_without_children_shows_in_its_row_alone(path, base):
    model = hard_model()
    layer = next(layer for layer in model.layers() if layer.path == path)
    layer.__class__ = wrong(base)
    report = check(model)
    assert [row.name for row in report.rows if row.verdict != "PASS"] == [f"{path}, input"]
    assert "layers around it are wrong with it" in report.notes[0]


@pytest.mark.parametrize(("path", "base"), [("blocks.1.attn", Attention), ("blocks.0.mlp", MLP), ("blocks.1", Block)])
def test_a_fault_in_how_a_layer_puts_its_children_together_shows_in_its_row_alone(path, base):
    model = hard_model()
    layer = next(layer for layer in model.layers() if layer.path == path)
    layer.__class__ = wrong(base)
    assert [row.name for row in check(model).rows if row.verdict != "PASS"] == [path]


def test_a_wrong_parameter_gradient_shows_in_its_row_alone():
    class HalfBias(Linear):
        def backward(self, dy, ctx):
            before = ctx.grad(self, "bias").copy()
            ctx.grad(self, "bias").fill(0)
            dx = super().backward(dy, ctx)
            ctx.grad(self, "bias")[...] = before + 0.5 * ctx.grad(self, "bias")
            return dx

    model = hard_model()
    model.blocks[0].mlp.fc1.__class__ = HalfBias
    report = check(model)
    bad = [row for row in report.rows if row.verdict != "PASS"]
    assert [row.name for row in bad] == ["blocks.0.mlp.fc1.bias"]
    assert bad[0].hint == "analytic = 0.5 × numeric everywhere: half"


def test_two_faults_show_in_two_rows():
    model = hard_model()
    model.blocks[0].norm1.__class__ = wrong(LayerNorm)
    model.blocks[1].mlp.fc2.__class__ = wrong(Linear)
    bad = {row.name for row in check(model).rows if row.verdict != "PASS"}
    assert bad == {"blocks.0.norm1, input", "blocks.1.mlp.fc2, input"}


def test_a_layer_whose_backward_is_not_called_is_missing():
    class Skipping(Block):
        def backward(self, dy, ctx):
            return dy + self.norm1.backward(self.attn.backward(dy, ctx), ctx)

    model = hard_model()
    model.blocks[1].__class__ = Skipping
    report = check(model)
    missing = {row.name for row in report.rows if row.verdict == "MISSING"}
    assert {"blocks.1.norm2", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"} <= missing
    assert report.worst.hint == "its backward was not called"


def test_a_single_layer_may_be_given():
    layer, x = make_layer("block")
    report = check_layers(layer, x)
    assert report.verdict == "PASS"
    assert len(report.rows) > 10


# -- imaginary parts lost ---------------------------------------------------------------------------------------------


class ByVar(LayerNorm):
    """A layer norm written with np.var, which loses imaginary parts, and a backward with a fault or none."""

    fault = "none"

    def forward(self, x, ctx):
        super().forward(x, ctx)
        rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + self.eps)
        return (x - x.mean(-1, keepdims=True)) * rstd * self.gamma + self.beta

    def backward(self, dy, ctx):
        dx = super().backward(dy, ctx).copy()
        if self.fault == "an element":
            dx[0, 0] *= 1.2
        elif self.fault == "constant variance":  # as the complex step has it, too
            dx_hat = dy * self.gamma
            rstd = 1 / np.sqrt(self.x.var(-1, keepdims=True) + self.eps)
            dx = (dx_hat - dx_hat.mean(-1, keepdims=True)) * rstd
        return dx


def with_var(fault):
    class Faulty(ByVar):
        def forward(self, x, ctx):
            self.x = x
            return super().forward(x, ctx)

    Faulty.fault = fault
    model = hard_model()
    model.blocks[0].norm1.__class__ = Faulty
    return model


def test_a_right_layer_that_loses_imaginary_parts_passes_with_a_note():
    report = check(with_var("none"))
    assert (report.verdict, report.ok) == ("PASS", True)
    assert len(report.notes) == 1
    assert report.notes[0].endswith(
        "more by richardson, tolerance 1e-08: forward loses imaginary parts on the way from there"
    )


@pytest.mark.parametrize("method", ["auto", "richardson"])
@pytest.mark.parametrize("fault", ["an element", "constant variance"])
def test_a_wrong_layer_that_loses_imaginary_parts_fails_in_its_row_alone(fault, method):
    report = check(with_var(fault), method=method)
    assert [(row.name, row.verdict) for row in report.rows if row.verdict != "PASS"] == [
        ("blocks.0.norm1, input", "FAIL")
    ]


@pytest.mark.parametrize("fault", ["none", "an element"])
def test_it_is_left_open_where_a_complex_step_was_asked_for(fault):
    report = check(with_var(fault), method="complex")
    assert (report.verdict, report.ok) == ("INCONCLUSIVE", False)
    assert [row.name for row in report.rows if row.verdict != "PASS"] == ["blocks.0.norm1, input"]


def test_a_tolerance_of_ones_own_holds_for_them_too():
    assert check(with_var("an element"), tolerance=0.9).ok


def test_a_layer_that_takes_no_complex_numbers_is_checked_by_differences():
    class Strict(LayerNorm):
        def forward(self, x, ctx):
            assert x.dtype == np.float64
            return super().forward(x, ctx)

    model = hard_model()
    model.blocks[0].norm1.__class__ = Strict
    assert check(model).verdict == "PASS"


@pytest.mark.parametrize("method", ["auto", "complex", "richardson", "central"])
def test_a_model_without_any_gradient_is_vacuous(method):
    model = hard_model()
    model.flat[...] = 0
    report = check(model, method=method)
    assert (report.verdict, report.ok) == ("VACUOUS", False)
    assert next(row.verdict for row in report.rows if row.name == "blocks.0.mlp") == "ZERO"


# -- what cannot be compared ------------------------------------------------------------------------------------------


def test_a_right_model_has_no_note():
    assert check(hard_model()).notes == []


def test_a_softmax_whose_dx_has_another_shape_is_named():
    class Flat(Softmax):
        def backward(self, dy, ctx):
            return super().backward(dy, ctx).ravel()

    layer, x = make_layer("softmax")
    layer.__class__ = Flat
    report = check_layers(layer, x)
    assert [(row.name, row.verdict) for row in report.rows] == [("the whole, input", "SHAPE")]


def test_a_layer_that_does_not_repeat_is_named_and_not_compared():
    class Random(Softmax):
        stream = np.random.default_rng(0)

        def forward(self, x, ctx):
            return super().forward(x * self.stream.random(x.shape), ctx)

    model = hard_model()
    model.blocks[1].attn.softmax.__class__ = Random
    rows = {row.name: row.verdict for row in check(model).rows if row.verdict != "PASS"}
    assert rows == {"blocks.1.attn.softmax, forward": "NONDETERMINISTIC"}


def test_a_layer_that_writes_into_dy_is_named():
    class Writing(Softmax):
        def backward(self, dy, ctx):
            dx = super().backward(dy, ctx).copy()
            dy *= 2
            return dx

    model = hard_model()
    model.blocks[1].attn.softmax.__class__ = Writing
    assert "blocks.1.attn.softmax, cotangent" in {row.name for row in check(model).rows if row.verdict == "IMPURE"}


@pytest.mark.parametrize("method", ["auto", "complex"])
def test_a_gradient_of_nan_fails_by_name(method):
    report = check(with_nan(), method=method)
    row = next(row for row in report.rows if row.name == "blocks.0.norm1, input")
    assert (row.verdict, row.hint) == ("FAIL", "it has NaN or inf: nan at (0, 0, 0)")


def with_nan():
    class Nan(LayerNorm):
        def backward(self, dy, ctx):
            dx = super().backward(dy, ctx).copy()
            dx[0, 0, 0] = np.nan
            return dx

    model = hard_model()
    model.blocks[0].norm1.__class__ = Nan
    return model


@pytest.mark.parametrize(("model", "text"), [(np.sin, "the model is a ufunc"), (None, "the model is a NoneType")])
def test_what_is_no_layer_is_refused(model, text):
    with pytest.raises(TypeError, match=text):
        check_layers(model, normal((2, 6), 1))


def test_a_list_is_refused_as_an_input():
    with pytest.raises(TypeError, match="input is a list; expected an array"):
        check_layers(make_layer("linear")[0], [[1.0] * 6])


def test_the_model_is_left_as_it_was():
    model = hard_model()
    before = model.flat.copy()
    check(model)
    assert np.array_equal(model.flat, before)
    assert not any("forward" in vars(layer) for layer in model.layers())


def test_a_float32_model_is_refused():
    model = hard_model("float32")
    with pytest.raises(TypeError, match="float64"):
        check(model)


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="method is 'forward'; choose one of auto, complex, "):
        check_layers(*make_layer("linear"), method="forward")


def test_soft_inputs_of_another_size_are_not_needed():
    assert check_layers(make_layer("linear")[0], normal((2, 6), 1)).ok
