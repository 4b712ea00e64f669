"""Every exhibit makes its mistake and no other, where it says, and trains all the same."""

import copy
import functools
import math
import pickle
import re

import numpy as np
import pytest
from helpers import BATCH, hard_model, images_for, labels_for, make_layer, one_pass, same_bits
from PIL import Image

import vitnp
from vitnp import museum
from vitnp.museum import pictures
from vitnp.museum.attention import InSteps
from vitnp.museum.embeddings import WrongGradients
from vitnp.museum.linear import WrongParameters
from vitnp.museum.pictures import Curve, curves_picture

EXHIBITS = museum.exhibits()


def parametrize(kept):
    """Run a test on every exhibit of which `kept` is true."""
    chosen = [exhibit for exhibit in EXHIBITS if kept(exhibit)]
    return pytest.mark.parametrize("exhibit", chosen, ids=lambda exhibit: exhibit.name)


every_exhibit = parametrize(lambda exhibit: True)
wrong_gradients = parametrize(lambda exhibit: exhibit.fails_gradcheck)


@functools.cache
def checked(exhibit):
    """A report on a specimen in which nothing is zero, square or alone."""
    specimen = exhibit.install(hard_model())
    return vitnp.gradcheck(specimen, images_for(specimen), labels_for(specimen), mode="directions")


def flat_gradient(model, batch=BATCH, ctx=None):
    ctx = ctx or vitnp.Context(train=True, rng=0)
    one_pass(model, ctx, images_for(model, batch), labels_for(model, batch))
    return ctx.flat_grad(model.layout, like=model.flat)


# -- what an exhibit says ---------------------------------------------------------------------------------------------


def test_names_are_unique():
    names = [exhibit.name for exhibit in EXHIBITS]
    assert len(set(names)) == len(names)


@every_exhibit
def test_a_name_is_lower_case_words_with_dashes(exhibit):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", exhibit.name)


@every_exhibit
def test_an_exhibit_says_what_is_wrong_why_and_what_is_right_in_a_line_each(exhibit):
    for text in (exhibit.title, exhibit.wrong, exhibit.why, exhibit.right):
        assert 0 < len(text) <= 110
        assert "\n" not in text


@every_exhibit
def test_an_exhibit_with_a_wrong_gradient_says_where_it_shows_first_and_no_other_does(exhibit):
    assert bool(exhibit.first) == exhibit.fails_gradcheck


def test_every_kind_is_on_show():
    assert {exhibit.kind for exhibit in EXHIBITS} == {"gradient", "function", "both", "update"}


def test_what_is_no_name_is_refused():
    with pytest.raises(TypeError, match=r"the name is 3; expected one of museum.exhibits\(\)"):
        museum.install(hard_model(), 3)


def test_an_exhibit_is_found_by_its_name():
    assert museum.exhibit("softmax-diagonal").title.startswith("Softmax backward keeps only the diagonal")


def test_an_unknown_name_is_refused_with_names_that_are_like_it():
    with pytest.raises(ValueError, match=r"^there is no exhibit 'softmax-diag'; expected .* softmax-diagonal or "):
        museum.install(hard_model(), "softmax-diag")


# -- the mistake ------------------------------------------------------------------------------------------------------


@parametrize(lambda exhibit: exhibit.forward_is_right)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_has_the_bits_of_the_right_network(exhibit, dtype):
    model = hard_model(dtype)
    passes = [m.forward(images_for(m), vitnp.Context(train=True, rng=0)) for m in (model, exhibit.install(model))]
    assert same_bits(*passes)


@parametrize(lambda exhibit: not exhibit.forward_is_right)
def test_a_wrong_function_has_other_logits(exhibit):
    model = hard_model()
    right, wrong = (m.forward(images_for(m)) for m in (model, exhibit.install(model)))
    assert abs(right - wrong).max() > 1e-3


@wrong_gradients
def test_gradcheck_fails_for_a_wrong_gradient(exhibit):
    assert checked(exhibit).verdict == "FAIL"


@wrong_gradients
def test_the_first_wrong_tensor_is_where_the_exhibit_says(exhibit):
    wrong = [row.name for row in checked(exhibit).rows if row.verdict == "FAIL"]
    first = museum.first_on_the_way_back(hard_model(), wrong)
    assert first == exhibit.first or first.startswith(f"{exhibit.first}.")


@parametrize(lambda exhibit: not exhibit.fails_gradcheck)
def test_gradcheck_passes_a_wrong_function_and_a_wrong_update(exhibit):
    assert checked(exhibit).verdict == "PASS"


def test_gradcheck_passes_the_right_network_in_the_same_set_up():
    model = hard_model()
    assert vitnp.gradcheck(model, images_for(model), labels_for(model), mode="directions").verdict == "PASS"


@pytest.mark.parametrize("steps", [InSteps, WrongParameters, WrongGradients], ids=lambda steps: steps.__name__)
def test_the_steps_that_mistakes_replace_are_right_themselves(steps):
    unchanged = museum.Exhibit("as-it-is", "", "", "", "", layer=steps, replaces=steps.__base__)
    assert checked(unchanged).verdict == "PASS"


@wrong_gradients
def test_the_wrong_gradient_is_another_than_the_right_one(exhibit):
    model = hard_model()
    assert museum.relative_error(exhibit.install(model), model, images_for(model), labels_for(model)) > 1e-9


@parametrize(lambda exhibit: exhibit.kind == "update")
def test_the_gradient_of_a_wrong_update_has_the_bits_of_the_right_one(exhibit):
    model = hard_model()
    assert same_bits(flat_gradient(exhibit.install(model)), flat_gradient(model))


@every_exhibit
def test_a_specimen_trains(exhibit):
    specimen = exhibit.install(hard_model("float32"))
    step = vitnp.ShardedStep(specimen, exhibit.optimizer(specimen, lr=1e-3), shards=2, clip_norm=1.0)
    before, (images, labels) = specimen.flat.copy(), (images_for(specimen), labels_for(specimen))
    losses = [float(step.step(images, labels)) for _ in range(4)]
    assert np.isfinite(losses).all()
    assert (specimen.flat.dtype, np.isfinite(specimen.flat).all()) == ("float32", True)
    assert not same_bits(specimen.flat, before)


@every_exhibit
def test_a_specimen_runs_on_another_device(exhibit, double):
    specimen = exhibit.install(hard_model("float32")).to_device(double.device)
    images, labels = (double.put(x) for x in (images_for(hard_model("float32")), labels_for(specimen)))
    ctx = vitnp.Context(train=True, rng=0)
    dimages = double.get(one_pass(specimen, ctx, images, labels)[2])
    assert np.isfinite(dimages).all()


@parametrize(lambda exhibit: exhibit.name.startswith("dropout"))
def test_a_recorded_evaluation_has_no_dropout_to_be_wrong_in(exhibit):
    model = hard_model()
    right, wrong = (flat_gradient(m, ctx=vitnp.Context(record=True)) for m in (model, exhibit.install(model)))
    assert same_bits(right, wrong)


def test_drawing_a_mask_anew_leaves_the_step_as_it_was():
    specimen, ctx = museum.install(hard_model(), "dropout-redrawn"), vitnp.Context(train=True, rng=0)
    ctx.step = 5
    one_pass(specimen, ctx, images_for(specimen), labels_for(specimen))
    assert ctx.step == 5


# -- the wrong updates ------------------------------------------------------------------------------------------------


def updates(optimizer, gradients):
    """By how much each step moves a parameter, in units of the learning rate, when these are its gradients."""
    model, ctx, moves = hard_model(), vitnp.Context(), []
    adam = optimizer(model, lr=1e-3)
    for gradient in gradients:
        before = model.flat[0]
        ctx.flat_grad(model.layout, like=model.flat)[...] = gradient
        adam.step(ctx)
        moves.append((before - model.flat[0]) / 1e-3)
    return moves


def test_a_frozen_adam_begins_as_adam_does():
    assert updates(museum.exhibit("adam-frozen-step").optimizer, [1.0]) == pytest.approx([1], rel=1e-7)


@pytest.mark.parametrize("t", [10, 2000])
def test_a_frozen_adam_divides_by_what_the_first_step_lacks(t):
    moves = updates(museum.exhibit("adam-frozen-step").optimizer, [1.0] * t)
    assert moves[-1] == pytest.approx(10 * (1 - 0.9**t) / math.sqrt(1000 * (1 - 0.999**t)), rel=1e-6)


def test_a_frozen_adam_still_counts_its_steps():
    model = hard_model()
    adam, ctx = museum.exhibit("adam-frozen-step").optimizer(model), vitnp.Context(train=True, rng=0)
    one_pass(model, ctx, images_for(model), labels_for(model))
    adam.step(ctx)
    adam.step(ctx)
    assert adam.steps == 2


def test_gradients_that_are_never_cleared_are_the_sum_of_all_so_far():
    uncleared = updates(museum.exhibit("gradients-never-cleared").optimizer, [1.0, -3.0, 0.5])
    assert uncleared == updates(vitnp.Adam, [1.0, -2.0, -1.5])


# -- the copy that makes it -------------------------------------------------------------------------------------------


@every_exhibit
def test_installing_leaves_the_model_as_it_was(exhibit):
    model = hard_model()
    before, classes = model.flat.copy(), [type(layer) for layer in model.layers()]
    specimen = exhibit.install(model)
    specimen.flat += 1
    assert same_bits(model.flat, before)
    assert [type(layer) for layer in model.layers()] == classes


@every_exhibit
def test_every_parameter_keeps_its_name_its_value_and_its_place(exhibit):
    model = hard_model()
    specimen = exhibit.install(model)
    assert specimen.layout.names == model.layout.names
    assert same_bits(specimen.flat, model.flat)


def test_only_the_layers_of_the_exhibit_are_replaced():
    model = hard_model()
    specimen = museum.install(model, "linear-weight-transposed")
    replaced = [a.path for a, b in zip(specimen.layers(), model.layers(), strict=True) if type(a) is not type(b)]
    assert replaced == ["", "blocks.0.attn.proj", "blocks.1.attn.proj"]  # the first is the model itself


def test_a_patch_embedding_is_no_linear_layer_to_an_exhibit():
    specimen = museum.install(hard_model(), "linear-mean-for-sum")
    assert type(specimen.patch_embed) is vitnp.layers.PatchEmbed


COPIES = {
    "astype": lambda model: model.astype("float64"),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "to_device": lambda model: model.to_device("cpu"),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["softmax-diagonal", "attention-unscaled", "patches-scrambled"])
def test_a_copy_makes_the_same_mistake(name, how):
    specimen = museum.install(hard_model(), name)
    duplicate = COPIES[how](specimen)
    assert duplicate.exhibit == museum.exhibit(name)
    assert same_bits(flat_gradient(duplicate), flat_gradient(specimen))


def test_a_checkpoint_holds_the_parameters_and_no_mistake(tmp_path):
    model = hard_model()
    vitnp.save_checkpoint(tmp_path / "m", museum.install(model, "attention-unscaled"))
    loaded = vitnp.load_checkpoint(tmp_path / "m").model
    assert same_bits(flat_gradient(loaded), flat_gradient(model))


@pytest.mark.parametrize("model", [None, make_layer("block")[0]])
def test_what_is_no_whole_model_is_refused(model):
    with pytest.raises(TypeError, match=r"the model is .*; expected a VisionTransformer"):
        museum.install(model, "softmax-diagonal")


def test_a_second_mistake_is_refused():
    specimen = museum.install(hard_model(), "softmax-diagonal")
    with pytest.raises(TypeError, match=r"with softmax-diagonal makes a mistake already; expected a right model"):
        museum.install(specimen, "gelu-forgotten")


def test_a_specimen_is_called_by_its_mistake():
    assert repr(museum.install(hard_model(), "gelu-forgotten")) == "VisionTransformer with gelu-forgotten"


# -- measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor"), [("linear-first-sample", "head.weight"), ("positions-of-first-sample", "pos_embed")]
)
def test_what_the_first_sample_alone_teaches_is_its_share(name, tensor):
    model = hard_model()
    gradients = []
    for m, batch in ((museum.install(model, name), BATCH), (model, 1)):
        ctx = vitnp.Context(train=True, rng=0)
        one_pass(m, ctx, images_for(model, batch), labels_for(model)[:batch])
        gradients.append(m.gradients(ctx)[tensor])
    assert abs(BATCH * gradients[0] - gradients[1]).max() < 1e-14


def test_the_relative_error_of_a_gradient_that_is_b_times_too_large_is_b_less_one():
    model = hard_model()
    specimen = museum.install(model, "loss-sum-for-mean")
    error = museum.relative_error(specimen, model, images_for(model), labels_for(model))
    assert error == pytest.approx(BATCH - 1, rel=1e-12)


@pytest.mark.parametrize(("name", "digits"), [("gelu-six-digits", 6), ("linear-in-float32", 6), ("gelu-other-form", 3)])
def test_what_is_rounded_or_nearly_right_is_off_in_late_digits_alone(name, digits):
    model = hard_model()
    error = museum.relative_error(museum.install(model, name), model, images_for(model), labels_for(model))
    assert error < 10.0**-digits


def test_the_relative_error_of_the_right_network_is_zero():
    model = hard_model()
    assert museum.relative_error(copy.deepcopy(model), model, images_for(model), labels_for(model)) == 0


def test_the_way_back_leads_from_the_head_to_the_images():
    model = hard_model()
    names = ["input", "patch_embed.weight", "blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.bias", "head.weight"]
    way = []
    while names:
        way.append(museum.first_on_the_way_back(model, names))
        names.remove(way[-1])
    assert way == ["head.weight", "blocks.1.attn.qkv.bias", "blocks.0.mlp.fc1.weight", "patch_embed.weight", "input"]


def test_where_nothing_is_wrong_nothing_is_first():
    assert museum.first_on_the_way_back(hard_model(), []) == ""


# -- where mistakes hide ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["linear-first-sample", "positions-of-first-sample", "loss-sum-for-mean", "softmax-of-first-sample"]
)
def test_a_batch_of_one_hides_what_mixes_up_samples(name):
    model = hard_model()
    assert same_bits(flat_gradient(model, 1), flat_gradient(copy.deepcopy(model), 1))
    assert abs(flat_gradient(museum.install(model, name), 1) - flat_gradient(model, 1)).max() < 1e-15


@parametrize(lambda exhibit: exhibit.name.startswith("dropout"))
def test_a_rate_of_zero_hides_the_mistakes_in_dropout(exhibit):
    model = hard_model(dropout=0.0, attention_dropout=0.0)
    assert same_bits(flat_gradient(exhibit.install(model)), flat_gradient(model))


def test_a_head_of_zeros_hides_every_mistake_below_it():
    model = hard_model()
    model.classifier.head.weight[...] = 0
    below = [exhibit for exhibit in EXHIBITS if exhibit.kind == "gradient" and "head" not in exhibit.first]
    batch = images_for(model), labels_for(model)
    assert max(museum.relative_error(exhibit.install(model), model, *batch) for exhibit in below) < 1e-15


# -- the picture ------------------------------------------------------------------------------------------------------


def curve(name, kind="gradient", accuracies=(0.1, 0.5, 0.9), tested=0.9):
    return Curve(name, kind, accuracies, tested)


def test_the_picture_has_a_panel_for_each_curve(tmp_path):
    heights = []
    for panels in (3, 4):
        curves_picture("t", curve("right"), [curve("wrong")] * panels, tmp_path / "p.png", columns=3)
        with Image.open(tmp_path / "p.png") as image:
            heights.append(image.height)
    assert heights[1] - heights[0] == pictures.ABOVE + pictures.HEIGHT + pictures.GAP


@pytest.mark.parametrize("kind", pictures.WRONG)
def test_a_curve_has_the_colour_of_its_kind(tmp_path, kind):
    curves_picture("t", curve("right"), [curve("wrong", kind)], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in image.getcolors(1 << 20)}
    assert {other for other in pictures.WRONG.values() if other in colours} == {pictures.WRONG[kind]}


def places(image, kind):
    """The rows and the columns below the key in which a pixel has the colour of this kind, or nearly so."""
    panels = np.asarray(image, float)[pictures.MARGIN + pictures.HEADER :]
    colour = np.frombuffer(bytes.fromhex(pictures.WRONG[kind][1:]), np.uint8)
    return np.nonzero((abs(panels - colour) < 30).all(-1))


def test_the_best_trained_comes_first_and_what_diverged_last(tmp_path):
    ranked = [curve("a", "update", tested=math.nan), curve("b", "function", tested=0.2), curve("c", "both", tested=0.8)]
    curves_picture("t", curve("right"), ranked, tmp_path / "p.png", columns=1)
    with Image.open(tmp_path / "p.png") as image:
        tops = [places(image, kind)[0].min() for kind in ("both", "function", "update")]
    assert tops == sorted(tops)


def test_a_curve_ends_where_its_network_diverged(tmp_path):
    cut = curve("wrong", "update", accuracies=(0.1, 0.2), tested=0.0)
    curves_picture("t", curve("right", accuracies=(0.1,) * 4), [cut], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        rows, columns = places(image, "update")
    line = columns[rows > pictures.ABOVE]
    assert line.max() <= pictures.MARGIN + pictures.LEFT + pictures.WIDTH / 2 + 2


def test_a_network_that_diverged_at_once_has_a_panel_too(tmp_path):
    diverged = curve("wrong", accuracies=(), tested=math.nan)
    curves_picture("t", curve("right"), [diverged, curve("other")], tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
