"""Hints name the mistake where it is certain, and say nothing where it is not."""

import math

import pytest
from helpers import hard_model, images_for, labels_for, normal, randomize

from vitnp import gradcheck
from vitnp.gradient_check.hints import explain, explain_samples, start_here
from vitnp.layers import LayerNorm, Linear

BATCH = {"B": 5, "N": 9, "K": 3}


def right(shape=(6, 18)):
    return normal(shape, 3)


def hint(change, name="weight", shape=(6, 18), tolerance=1e-10):
    numeric = right(shape)
    analytic = change(numeric.copy())
    scale = max(abs(analytic).max(), abs(numeric).max())
    return explain(name, analytic, numeric, BATCH, scale, tolerance)


def test_zeros_are_called_zeros():
    assert hint(lambda g: 0 * g) == "the analytic gradient is zero everywhere"


@pytest.mark.parametrize(
    ("factor", "name"),
    [
        (5, "B (B = 5)"),
        (1 / 5, "1/B (B = 5)"),
        (9, "N (N = 9)"),
        (1 / 9, "1/N (N = 9)"),
        (math.sqrt(3), "√K (K = 3)"),
        (1 / math.sqrt(3), "1/√K (K = 3)"),
        (3, "√N (N = 9) or K (K = 3)"),
        (-1, "the sign"),
        (2, "twice"),
        (0.5, "half"),
    ],
)
def test_a_constant_factor_has_its_name(factor, name):
    assert hint(lambda g: factor * g) == f"analytic = {factor:.6g} × numeric everywhere: {name}"


def test_a_constant_factor_without_a_name_is_given_as_a_number():
    assert hint(lambda g: 1.7 * g) == "analytic = 1.7 × numeric everywhere"


def test_a_factor_that_is_almost_constant_is_not_called_constant():
    assert "everywhere" not in hint(lambda g: 1.7 * g * (1 + 1e-3 * right()))


def test_a_transpose_is_recognised():
    assert hint(lambda g: g.T, shape=(6, 6)) == "it is the transpose of the right one"


def test_a_single_element_is_said_to_be_single():
    def change(g):
        g[2, 3] *= 1.01
        return g

    assert hint(change) == "this element alone is wrong"


@pytest.mark.parametrize(("part", "letter"), [(slice(0, 6), "Q"), (slice(6, 12), "K"), (slice(12, 18), "V")])
@pytest.mark.parametrize(("name", "shape"), [("attn.qkv.weight", (6, 18)), ("attn.qkv.bias", (18,))])
def test_the_parts_of_qkv_have_names(part, letter, name, shape):
    def change(g):
        g[..., part] *= 1 + right((6,))
        return g

    told = hint(change, name, shape)
    axis = len(shape) - 1
    assert told == f"only {part.start}:{part.stop} of axis {axis} is wrong ({letter} of qkv)"


def test_a_factor_in_two_parts_of_qkv_is_named_with_them():
    def change(g):
        g[:, :12] *= math.sqrt(3)
        return g

    told = hint(change, "attn.qkv.weight")
    assert told == "only 0:12 of axis 1 is wrong (Q and K of qkv), by a factor of 1.73205: √K (K = 3)"


def test_one_row_is_named_by_its_index():
    def change(g):
        g[4] += 1
        return g

    assert hint(change) == "only index 4 of axis 0 is wrong"


def test_scattered_errors_get_no_part():
    def change(g):
        g[::2, ::3] += right((3, 6))
        return g

    assert hint(change) == ""


def test_a_gradient_stored_in_float32_is_recognised_by_its_values():
    told = hint(lambda g: g.astype("float32").astype("float64"))
    assert told == "every value is a float32: the gradient was computed or stored in it"


def test_an_error_of_float32_s_size_is_said_to_be_of_that_size():
    noise = normal((6, 18), 8)
    assert "size of float32's rounding" in hint(lambda g: g * (1 + 1e-7 * noise))


@pytest.mark.parametrize("size", [1e-11, 1e-10, 1e-4, 1e-2])
def test_an_error_of_another_size_is_not_said_to_be_float32_s(size):
    noise = normal((6, 18), 8)
    assert hint(lambda g: g * (1 + size * noise), tolerance=1e-13) == ""


def test_an_error_of_one_entry_in_ten_is_not_said_to_be_float32_s():
    noise = normal((6, 18), 8) * (normal((6, 18), 9) > 1.3)
    assert "float32" not in hint(lambda g: g * (1 + 1e-7 * noise))


def test_a_part_beside_which_nothing_has_a_gradient_is_not_said_to_be_wrong_alone():
    """As of the tokens that the last block of a network passes on, one in each image."""
    numeric = normal((4, 5, 6), 3)
    numeric[:, 1:] = 0
    analytic = numeric * (1 + 0.1 * normal((4, 5, 6), 4))
    assert explain("input", analytic, numeric, {}, float(abs(numeric).max()), 1e-10) == ""


def test_a_product_of_sizes_has_a_name_too():
    sizes = {"B": 5, "H": 4, "W": 11}
    numeric = right()
    for factor, name in ((1 / 220, "1/(B·H·W) (B = 5, H = 4, W = 11)"), (55, "B·W (B = 5, W = 11)")):
        analytic = factor * numeric
        scale = max(abs(analytic).max(), abs(numeric).max())
        assert explain("x", analytic, numeric, sizes, scale, 1e-10).endswith(f" × numeric everywhere: {name}")


def test_a_root_that_is_two_is_named_beside_twice():
    numeric = right()
    told = explain("x", 2 * numeric, numeric, {"K": 4}, float(abs(2 * numeric).max()), 1e-10)
    assert told == "analytic = 2 × numeric everywhere: twice or √K (K = 4)"


def test_a_large_scattered_error_gets_no_hint():
    assert hint(lambda g: g + normal((6, 18), 9)) == ""


def test_samples_show_a_constant_factor_too():
    numeric = right((24,))
    assert explain_samples(5 * numeric, numeric, BATCH) == (
        "analytic = 5 × numeric, wherever it was looked at: B (B = 5)"
    )
    assert explain_samples(0 * numeric, numeric, BATCH) == "the analytic gradient is zero, wherever it was looked at"
    assert explain_samples(numeric[::-1], numeric, BATCH) == ""


# where to start

NAMES = [
    *("cls_token", "patch_embed.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"),
    *("blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.1.norm1.gamma", "head.weight", "head.bias"),
]


@pytest.mark.parametrize(
    ("failing", "place"),
    [
        ({"head.bias"}, "head, the first from the loss"),
        ({"head.weight"}, "head"),
        ({"blocks.1.norm1.gamma", "cls_token"}, "between head and blocks.1.norm1"),
        ({"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"}, "blocks.0.attn, between proj and qkv"),
        ({"blocks.0.mlp.fc1.weight"}, "blocks, between 1.norm1 and 0.mlp.fc1"),
        ({"patch_embed.weight"}, "between blocks.0.attn.qkv and patch_embed"),
        (set(), ""),
    ],
)
def test_the_place_is_between_the_last_right_tensor_and_the_first_wrong_one(failing, place):
    assert start_here(NAMES, failing) == place


def test_a_wrong_input_gradient_alone_is_placed_at_the_beginning():
    assert start_here(["input", *NAMES], {"input"}) == "before cls_token, where the input's gradient is computed"


# the same through gradcheck


class BadScale(LayerNorm):
    """A layer norm whose gamma's gradient is a mean over the rows."""

    def backward(self, dy, ctx):
        gradient = ctx.grad(self, "gamma")
        before = gradient.copy()
        gradient.fill(0)
        dx = super().backward(dy, ctx)
        gradient /= dy.size // dy.shape[-1]
        gradient += before
        return dx


@pytest.mark.parametrize("mode", ["full", "directions"])
def test_a_mean_over_the_batch_is_named_in_the_report(mode):
    layer = randomize(BadScale(6, dtype="float64"))
    report = gradcheck(layer, normal((5, 6), 1), mode=mode)
    assert report.worst.hint == "analytic = 0.2 × numeric everywhere: 1/B (B = 5)"


class HalfLinear(Linear):
    """A linear layer that forgets half of what comes back."""

    def backward(self, dy, ctx):
        return 0.5 * super().backward(dy, ctx)


def test_a_fault_inside_a_model_is_placed():
    model = hard_model()
    model.blocks[1].attn.proj.__class__ = HalfLinear
    report = gradcheck(model, images_for(model), labels_for(model), mode="directions")
    assert report.start_here == "blocks.1.attn, between proj and qkv"
    assert "start here: blocks.1.attn, between proj and qkv" in str(report)
