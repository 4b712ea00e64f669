"""The V-curve shows what its lesson says: two arms for differences, one for the complex step."""

import numpy as np
import pytest
from helpers import make_layer, normal
from PIL import Image

from vitnp.gradient_check import v_curve
from vitnp.layers import Tanh


@pytest.fixture(scope="module")
def curve():
    return v_curve(*make_layer("block"))


def error(curve, method, step):
    return min(e for e, h in zip(curve.errors[method], curve.steps, strict=True) if 0.99 < h / step < 1.01)


@pytest.mark.parametrize(("method", "order"), [("forward", 1), ("central", 2), ("complex", 2)])
def test_truncation_falls_with_the_order_of_the_method(curve, method, order):
    ratio = error(curve, method, 1e-2) / error(curve, method, 1e-3)
    assert 10**order / 2 < ratio < 10**order * 2


@pytest.mark.parametrize("method", ["forward", "central", "5point", "richardson"])
def test_differences_have_a_bottom_and_are_worthless_below(curve, method):
    step, least = curve.best(method)
    assert 1e-9 < step < 1e-1
    assert least < 1e-6
    assert error(curve, method, 1e-20) == pytest.approx(1)


def test_the_better_the_method_the_deeper_the_bottom(curve):
    bottoms = [curve.best(method)[1] for method in ("forward", "central", "richardson", "complex")]
    assert bottoms == sorted(bottoms, reverse=True)


def test_the_complex_step_stays_at_the_last_digits(curve):
    assert max(error(curve, "complex", 10.0**-k) for k in range(9, 21)) < 1e-14


def test_the_table_has_a_row_a_decade_and_the_best_below(curve):
    lines = str(curve).splitlines()
    assert lines[1].split() == ["step", "forward", "central", "5point", "richardson", "complex"]
    assert len(lines) == 2 + 21 + 2
    assert max(map(len, lines)) <= 100


def test_a_layer_that_loses_imaginary_parts_has_no_complex_curve_and_says_why():
    class Absolute(Tanh):
        def forward(self, x, ctx):
            ctx.save(self, x=x)
            return abs(x)

        def backward(self, dy, ctx):
            return dy * np.sign(ctx.saved(self).x)

    curve = v_curve(Absolute(), normal((5, 6), 1))
    assert list(curve.errors) == ["forward", "central", "5point", "richardson"]
    lines = str(curve).splitlines()
    assert any(line.startswith("complex is left out: forward loses imaginary parts") for line in lines)
    assert max(map(len, lines)) <= 100


def test_a_wrong_backward_is_said_to_be_wrong_in_lines_that_fit():
    class Wrong(Tanh):
        def backward(self, dy, ctx):
            return 1.5 * super().backward(dy, ctx)

    lines = str(v_curve(Wrong(), normal((5, 6), 1))).splitlines()
    assert lines[-1].startswith("no method comes nearer than 3e-01: the gradient is wrong")
    assert max(map(len, lines)) <= 100


def test_a_gradient_of_zero_is_refused():
    class Nothing(Tanh):
        def forward(self, x, ctx):
            return 0 * x

        def backward(self, dy, ctx):
            return 0 * dy

    with pytest.raises(ValueError, match="the gradient of Nothing is zero here"):
        v_curve(Nothing(), normal((5, 6), 1))


@pytest.mark.parametrize(("name", "bends"), [("linear", False), ("dropout", False), ("tanh", True), ("block", True)])
def test_truncation_is_there_where_a_layer_bends(name, bends):
    assert v_curve(*make_layer(name)).has_truncation == bends


def test_it_is_drawn_where_matplotlib_is(curve, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs the extra `plots`")
    curve.draw(tmp_path / "v.png")
    with Image.open(tmp_path / "v.png") as picture:
        assert picture.width > 800
    with pytest.raises(FileExistsError):
        curve.draw(tmp_path / "v.png")
