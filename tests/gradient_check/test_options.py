"""Options that nothing can be made of are refused in one line, by gradcheck and check_layers alike."""

import numpy as np
import pytest
from helpers import hard_model, images_for, labels_for, make_layer, normal

from vitnp import check_layers, gradcheck
from vitnp.gradient_check import v_curve

REFUSED = [
    (TypeError, "seed is None; it must be an integer", {"seed": None}),
    (ValueError, "seed is -1; it must be at least 0", {"seed": -1}),
    (TypeError, "label_smoothing is 'a'; it must be a number from 0 to below 1", {"label_smoothing": "a"}),
    (ValueError, "label_smoothing is 1.5; it must be a number from 0 to below 1", {"label_smoothing": 1.5}),
    (TypeError, "tolerance is 'a'; it must be a number", {"tolerance": "a"}),
    (ValueError, "method is 'a'; choose one of auto, complex", {"method": "a"}),
]


@pytest.mark.parametrize("check", [gradcheck, check_layers])
@pytest.mark.parametrize(("error", "text", "options"), REFUSED)
def test_an_option_that_is_none_is_refused_with_its_name(check, error, text, options):
    model = hard_model()
    with pytest.raises(error, match=text) as caught:
        check(model, images_for(model), labels_for(model), **options)
    assert "\n" not in str(caught.value)


def test_a_curve_of_a_function_is_refused():
    with pytest.raises(TypeError, match="the layer is a ufunc; expected a layer"):
        v_curve(np.sin, normal((3, 4)))


def test_a_curve_takes_no_seed_that_is_none():
    with pytest.raises(TypeError, match="seed is None; it must be an integer"):
        v_curve(*make_layer("linear"), seed=None)
