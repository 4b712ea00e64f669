"""What every layer promises, one test for each promise and layer; and how layers are named, copied and laid out."""

import copy
import math
import warnings

import numpy as np
import pytest
from helpers import (
    DRAW_ALWAYS,
    HARD,
    LAYERS,
    arrays_of,
    copies,
    hard_model,
    make_layer,
    normal,
    randomize,
    same_bits,
    worst_error,
)

import vitnp
from vitnp import Context, ContextError, Layer
from vitnp.layer import Layout
from vitnp.layers import Dropout, Embeddings, LayerNorm, Linear

every_layer = pytest.mark.parametrize("name", LAYERS)
MODELS = [name for name in LAYERS if name.startswith("vit")]


def context(**options):
    return Context(**{"train": True, "rng": 3, **options})


def forward_and_cotangent(layer, x, ctx):
    y = layer.forward(x, ctx)
    return y, normal(y.shape, 9).astype(y.dtype)


# -- the contract of a pass -------------------------------------------------------------------------------------------


@every_layer
def test_forward_and_backward_leave_their_arguments_as_they_are(name):
    layer, x = make_layer(name)
    ctx, before = context(), x.copy()
    _, dy = forward_and_cotangent(layer, x, ctx)
    dy_before = dy.copy()
    layer.backward(dy, ctx)
    assert same_bits(x, before)
    assert same_bits(dy, dy_before)


@every_layer
def test_forward_and_backward_accept_arrays_that_cannot_be_written(name):
    layer, x = make_layer(name)
    x.flags.writeable = False
    ctx = context()
    _, dy = forward_and_cotangent(layer, x, ctx)
    dy.flags.writeable = False
    layer.backward(dy, ctx)


@every_layer
def test_a_pass_leaves_the_parameters_as_they_are(name):
    layer, x = make_layer(name)
    ctx, before = context(), copies(layer.parameters())
    _, dy = forward_and_cotangent(layer, x, ctx)
    layer.backward(dy, ctx)
    assert all(same_bits(parameter, before[key]) for key, parameter in layer.parameters().items())


@every_layer
def test_a_pass_leaves_nothing_in_the_layer(name):
    layer, x = make_layer(name)
    before = sorted(map(id, arrays_of(layer)))
    ctx = context()
    _, dy = forward_and_cotangent(layer, x, ctx)
    layer.backward(dy, ctx)
    assert sorted(map(id, arrays_of(layer))) == before


@every_layer
def test_backward_twice_gives_the_same_dx(name):
    layer, x = make_layer(name)
    ctx = context()
    _, dy = forward_and_cotangent(layer, x, ctx)
    first = layer.backward(dy, ctx).copy()
    assert same_bits(layer.backward(dy, ctx).copy(), first)


@every_layer
def test_backward_twice_gives_exactly_doubled_gradients(name):
    layer, x = make_layer(name)
    ctx = context()
    _, dy = forward_and_cotangent(layer, x, ctx)
    layer.backward(dy, ctx)
    once = copies(layer.gradients(ctx))
    layer.backward(dy, ctx)
    assert all(same_bits(gradient, 2 * once[key]) for key, gradient in layer.gradients(ctx).items())


@every_layer
def test_a_second_pass_adds_to_the_gradients_of_the_first(name):
    layer, x = make_layer(name)
    ctx = context()
    single = []
    for batch in (x, -x):
        alone = context()
        _, dy = forward_and_cotangent(layer, batch, alone)
        layer.backward(dy, alone)
        single.append(copies(layer.gradients(alone)))
        ctx.begin()
        layer.forward(batch, ctx)
        layer.backward(dy, ctx)
    for key, gradient in layer.gradients(ctx).items():
        assert same_bits(gradient, single[0][key] + single[1][key])


@every_layer
def test_a_cotangent_of_zero_gives_gradients_of_exactly_zero(name):
    layer, x = make_layer(name)
    ctx = context()
    y = layer.forward(x, ctx)
    assert not layer.backward(np.zeros_like(y), ctx).any()
    assert not any(gradient.any() for gradient in layer.gradients(ctx).values())


@every_layer
def test_gradients_are_linear_in_the_cotangent(name):
    layer, x = make_layer(name)
    found = []
    for factor in (1, 2):
        ctx = context()
        _, dy = forward_and_cotangent(layer, x, ctx)
        found.append({"input": layer.backward(factor * dy, ctx).copy(), **copies(layer.gradients(ctx))})
    assert all(same_bits(found[1][key], 2 * found[0][key]) for key in found[0])


@every_layer
def test_the_same_pass_again_has_the_same_bits(name):
    layer, x = make_layer(name)
    ctx = context()
    first = layer.forward(x, ctx).copy()
    ctx.begin()
    assert same_bits(layer.forward(x, ctx).copy(), first)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in DRAW_ALWAYS])
def test_evaluation_needs_no_seed_and_repeats_its_bits(name):
    layer, x = make_layer(name)
    first = layer.forward(x, Context()).copy()
    assert same_bits(layer.forward(x, Context()).copy(), first)


@every_layer
def test_recording_does_not_change_the_output(name):
    layer, x = make_layer(name)
    first = layer.forward(x, Context(rng=3, record=True)).copy()
    assert same_bits(layer.forward(x, Context(rng=3, record=False)).copy(), first)


@every_layer
def test_an_evaluation_saves_nothing(name):
    layer, x = make_layer(name)
    ctx = Context(rng=3)
    layer.forward(x, ctx)
    assert not ctx._saved


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in MODELS])
def test_a_layer_that_runs_twice_in_one_pass_is_refused(name):
    layer, x = make_layer(name)
    ctx = context()
    layer.forward(x, ctx)
    with pytest.raises(ContextError, match="ran twice in one pass"):
        layer.forward(x, ctx)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_opens_a_new_pass_by_itself(name):
    model, x = make_layer(name)
    ctx = context()
    model.forward(x, ctx)
    model.forward(x, ctx)


@every_layer
@pytest.mark.parametrize("ctx", [{"record": False}, {"record": True}], ids=["not recorded", "not run"])
def test_backward_without_a_record_is_a_clear_error(name, ctx):
    layer, x = make_layer(name)
    ctx = context(**ctx)
    if not ctx.record:
        layer.forward(x, ctx)
    dy = np.zeros_like(layer.forward(x, Context(rng=3)))
    with pytest.raises(ContextError, match=r"nothing is saved for .*run forward with Context\(train=True\)"):
        layer.backward(dy, ctx)


@every_layer
def test_backward_of_a_pass_in_evaluation_mode_is_possible_where_recorded(name):
    layer, x = make_layer(name)
    ctx = Context(rng=3, record=True)
    _, dy = forward_and_cotangent(layer, x, ctx)
    assert layer.backward(dy, ctx).shape == x.shape


# -- dtypes -----------------------------------------------------------------------------------------------------------


@every_layer
def test_float32_stays_float32_everywhere(name):
    layer, x = make_layer(name, "float32")
    ctx = context()
    y, dy = forward_and_cotangent(layer, x, ctx)
    dx = layer.backward(dy, ctx)
    layer.backward(dy, ctx)  # the second time gradients are added to
    everything = [y, dx, *arrays_of(ctx), *arrays_of(layer), *layer.gradients(ctx).values()]
    assert len(everything) > 2
    # a max pool keeps places too, one byte each
    assert {array.dtype.name for array in everything if array.dtype.kind not in "iu"} == {"float32"}


@every_layer
def test_float32_gradients_are_those_of_float64(name):
    found = {}
    for dtype in ("float32", "float64"):
        layer, x = make_layer(name, "float32")
        layer, x, ctx = layer.astype(dtype), x.astype(dtype), context()
        _, dy = forward_and_cotangent(layer, x, ctx)
        found[dtype] = {"input": layer.backward(dy, ctx), **layer.gradients(ctx)}
    assert worst_error(found["float32"], found["float64"]) < 1e-5


@every_layer
def test_complex128_stays_complex_and_loses_no_imaginary_part(name):
    layer, x = make_layer(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        y = layer.astype("complex128").forward(x * (1 + 1e-20j), context(record=False))
    assert y.dtype == np.complex128
    assert y.imag.any()


@every_layer
def test_real_part_of_a_complex_pass_is_the_real_pass(name):
    layer, x = make_layer(name)
    truth = layer.forward(x, context()).copy()
    found = layer.astype("complex128").forward(x.astype("complex128"), context())
    assert abs(found.real - truth).max() < 1e-14 * abs(truth).max()
    assert not found.imag.any()


# -- names and trees --------------------------------------------------------------------------------------------------


class Pair(Layer):
    """Children as an attribute, in a list, and inline."""

    def __init__(self, rng=0):
        super().__init__()
        self.declare("scale", (2,), "float64", lambda generator, shape: 3.0)
        self.first = Linear(2, 3, rng=None, dtype="float64")
        self.more = [LayerNorm(3, rng=None, dtype="float64"), Dropout(0.5)]
        self.inlined = Embeddings(4, 3, rng=None, dtype="float64")
        self.built(rng)


NAMES = [
    "scale",
    "first.weight",
    "first.bias",
    "more.0.gamma",
    "more.0.beta",
    "cls_token",
    "pos_embed",
]


def test_parameters_go_by_dotted_names_in_order():
    assert list(Pair().parameters()) == NAMES


def test_gradients_go_by_the_names_of_the_parameters():
    assert list(Pair().gradients(Context())) == NAMES


def test_parameters_are_the_arrays_themselves():
    layer = Pair()
    layer.parameters()["first.weight"][...] = 5
    assert (layer.first.weight == 5).all()


def test_every_layer_knows_its_path():
    assert [layer.path for layer in Pair().layers()] == ["", "first", "more.0", "more.1", ""]


def test_a_layer_shows_its_path():
    assert repr(Pair().more[0]) == "LayerNorm 'more.0'"
    assert repr(Pair()) == "Pair"


def test_number_of_parameters_is_that_of_their_elements():
    assert Pair().num_parameters == 2 + 6 + 3 + 3 + 3 + 3 + 15


def test_a_layer_without_parameters_is_on_the_cpu():
    assert Dropout(0.5).device == "cpu"


def test_the_base_computes_nothing():
    with pytest.raises(NotImplementedError):
        Layer().forward(np.ones(1), Context())
    with pytest.raises(NotImplementedError):
        Layer().backward(np.ones(1), Context())


def test_initialisation_is_a_function_of_the_seed():
    first, again, other = Pair(rng=1), Pair(rng=1), Pair(rng=2)
    for name in ("first.weight", "pos_embed"):
        assert same_bits(first.parameters()[name], again.parameters()[name])
        assert not same_bits(first.parameters()[name], other.parameters()[name])


def test_initialize_draws_anew():
    layer = randomize(Pair(rng=1))
    layer.initialize(1)
    assert all(same_bits(p, Pair(rng=1).parameters()[name]) for name, p in layer.parameters().items())


def test_a_generator_is_drawn_from_where_it_stands():
    generator = np.random.default_rng(1)
    first, second = Linear(2, 3, rng=generator), Linear(2, 3, rng=generator)
    assert same_bits(first.weight, Linear(2, 3, rng=1).weight)
    assert not same_bits(first.weight, second.weight)


@every_layer
def test_a_layer_starts_from_seed_zero_unless_said(name):
    make, _ = LAYERS[name]
    first, seeded = make(dtype="float64").parameters(), make(dtype="float64")
    seeded.initialize(0)
    assert all(same_bits(first[key], parameter) for key, parameter in seeded.parameters().items())


def test_float32_starts_at_the_rounded_values_of_float64():
    assert same_bits(Linear(6, 7).weight, Linear(6, 7, dtype="float64").weight.astype("float32"))


# -- copies -----------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_astype_copies_the_parameters_to_another_dtype(name, dtype):
    layer, _ = make_layer(name)
    found = layer.astype(dtype).parameters()
    assert found.keys() == layer.parameters().keys()
    for key, parameter in layer.parameters().items():
        assert same_bits(found[key], parameter.astype(dtype))


@every_layer
def test_a_copy_shares_no_memory_with_its_original(name):
    layer, x = make_layer(name)
    before = layer.forward(x, Context(rng=3)).copy()
    for twin in (layer.astype("float64"), layer.to_device("cpu")):
        for parameter in twin.parameters().values():
            parameter.fill(0)
    assert same_bits(layer.forward(x, Context(rng=3)).copy(), before)


@every_layer
def test_a_copy_computes_what_its_original_does(name):
    layer, x = make_layer(name)
    found, truth = layer.to_device("cpu").forward(x, context()).copy(), layer.forward(x, context()).copy()
    assert same_bits(found, truth)


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_of_a_model_has_a_vector_of_its_own(name):
    model, _ = make_layer(name)
    twin = model.astype("float32")
    assert twin.flat.dtype == np.float32
    twin.flat.fill(0)
    assert not any(parameter.any() for parameter in twin.parameters().values())
    assert model.flat.any()


def test_a_copy_has_children_of_its_own_wherever_they_are_kept():
    layer = Pair()
    twin = layer.astype("float64")
    assert list(twin.parameters()) == NAMES
    assert not {id(part) for part in layer.layers()} & {id(part) for part in twin.layers()}
    for parameter in twin.parameters().values():
        parameter.fill(7)
    assert not any((parameter == 7).any() for parameter in layer.parameters().values())


class Doubled(vitnp.VisionTransformer):
    """A model whose logits are twice those of its base."""

    def forward(self, x, ctx=None):
        return 2 * super().forward(x, ctx)


@pytest.mark.parametrize("make", [lambda m: m.astype("float64"), lambda m: m.to_device("cpu"), copy.deepcopy])
def test_a_copy_of_a_subclass_is_of_that_class_and_computes_what_it_does(make):
    model = randomize(Doubled(vitnp.ViTConfig(**HARD), dtype="float64"))
    twin, images = make(model), normal((5, 6, 8, 3), 1)
    assert type(twin) is Doubled
    assert same_bits(twin.forward(images), model.forward(images))


def test_a_copy_of_part_of_a_model_stands_alone():
    model = hard_model()
    twin, ctx = model.blocks[0].astype("float64"), context()
    y = twin.forward(normal((5, 9, 6), 1), ctx)
    twin.backward(np.ones_like(y), ctx)
    assert all(gradient.base is None for gradient in twin.gradients(ctx).values())


# -- the flat layout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_parameters_of_a_model_are_aligned_views_into_one_vector(dtype):
    model = hard_model(dtype)
    for parameter in model.parameters().values():
        assert np.shares_memory(parameter, model.flat)
        assert parameter.flags.c_contiguous
        assert parameter.ctypes.data % 64 == 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_a_vector_of_the_layout_is_aligned_wherever_its_memory_begins(dtype):
    layout, like = hard_model().layout, np.ones(1, dtype)
    vectors = [layout.zeros(like) for _ in range(64)]
    assert {vector.ctypes.data % 64 for vector in vectors} == {0}
    assert {len(vector) for vector in vectors} == {layout.size}


def test_parameters_do_not_overlap_and_cover_the_vector_but_for_gaps():
    model = hard_model()
    covered = np.zeros(model.flat.shape, int)
    for name in model.layout.names:
        model.layout.view(covered, name)[...] += 1
    assert set(np.unique(covered)) == {0, 1}
    assert covered.sum() == model.num_parameters
    assert len(covered) < model.num_parameters + 16 * len(model.layout.names)


def test_decayed_parameters_come_first():
    model = hard_model()
    decayed = np.zeros(model.flat.shape, bool)
    decayed[: model.layout.decayed] = True
    found = {name: set(np.unique(model.layout.view(decayed, name))) for name in model.layout.names}
    assert found == {name: {name.endswith("weight")} for name in model.parameters()}


def test_gradients_of_a_model_are_aligned_as_its_parameters_are():
    model, ctx = hard_model("float32"), Context()
    assert all(gradient.ctypes.data % 64 == 0 for gradient in model.gradients(ctx).values())


def test_layout_gives_every_parameter_its_own_shape_back():
    model = hard_model()
    layout, vector = Layout(model), np.arange(model.layout.size)
    for name, parameter in model.parameters().items():
        assert layout.view(vector, name).shape == parameter.shape
        assert layout.view(vector, name).size == math.prod(parameter.shape)


def test_a_model_written_in_place_computes_with_what_was_written():
    model, x = make_layer("vit_token")
    model.forward(x)
    model.parameters()["head.bias"][...] += 1
    model.flat[...] *= 0.5
    twin = randomize(vitnp.VisionTransformer(model.config, dtype="float64"))
    for name, parameter in twin.parameters().items():
        parameter[...] = model.parameters()[name]
    assert same_bits(model.forward(x), twin.forward(x))
