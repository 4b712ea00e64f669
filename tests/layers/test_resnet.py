import numpy as np
import pytest
from helpers import both_gradients, make_layer, normal, randomize, worst_error

import vitnp
from vitnp.layers import BottleneckUnit, ResNetStem


def unit(c_in=16, stride=1, seed=0):
    return randomize(BottleneckUnit(c_in, 4, stride, groups=2, dtype="float64"), seed)


def by_hand(u, x):
    """The unit, layer by layer."""

    def run(name, x):
        return getattr(u, name).forward(x, vitnp.Context()).copy()

    y = np.maximum(run("norm1", run("conv1", x)), 0)
    y = np.maximum(run("norm2", run("conv2", y)), 0)
    shortcut = run("norm_proj", run("conv_proj", x)) if u.projects else x
    return np.maximum(shortcut + run("norm3", run("conv3", y)), 0)


@pytest.mark.parametrize(("c_in", "stride", "projects"), [(16, 1, False), (16, 2, True), (3, 1, True), (3, 2, True)])
def test_a_unit_adds_its_branch_to_the_shortcut_which_projects_where_the_shape_changes(c_in, stride, projects):
    u, x = unit(c_in, stride), normal((3, 6, 5, c_in), 1)
    assert u.projects is projects
    y = u.forward(x, vitnp.Context())
    assert y.shape == (3, 6 // stride, -(-5 // stride), 16)
    assert np.array_equal(y, by_hand(u, x))


@pytest.mark.parametrize(("c_in", "stride"), [(16, 1), (3, 2)])
def test_every_gradient_of_a_unit_is_the_derivative(c_in, stride):
    assert worst_error(*both_gradients(unit(c_in, stride), normal((3, 4, 3, c_in), 1))) < 1e-12


def test_the_stride_of_a_unit_is_in_its_3_x_3_convolution_and_in_the_shortcut():
    u = unit(3, 2)
    found = {name: (layer.kernel, layer.stride) for name, layer in vars(u).items() if name.startswith("conv")}
    assert found == {"conv_proj": (1, 2), "conv1": (1, 1), "conv2": (3, 2), "conv3": (1, 1)}


def test_a_unit_starts_as_its_shortcut():
    u, x = BottleneckUnit(32, 8, groups=4, dtype="float64"), normal((2, 3, 4, 32), 1)
    assert np.array_equal(u.forward(x, vitnp.Context()), np.maximum(x, 0))


def test_gradcheck_passes_on_a_stem():
    layer, x = make_layer("stem")
    vitnp.gradcheck(layer, x, mode="directions", tolerance=1e-12).raise_if_failed()


def test_every_layer_of_a_stem_is_right_by_itself():
    layer, x = make_layer("stem")
    vitnp.check_layers(layer, x, tolerance=1e-12).raise_if_failed()


@pytest.mark.parametrize(
    ("blocks", "shape"),
    [((), (2, 5, 8, 4)), ((1,), (2, 5, 8, 16)), ((1, 1), (2, 3, 4, 32)), ((1, 2, 1), (2, 2, 2, 64))],
)
def test_each_stage_after_the_first_halves_the_map_and_doubles_its_channels(blocks, shape):
    stem = ResNetStem(3, blocks, 4, groups=2)
    assert stem.forward(normal((2, 18, 29, 3), 1).astype("float32"), vitnp.Context()).shape == shape
    assert stem.channels_out == shape[3]
    assert [[unit.projects for unit in stage.units] for stage in stem.stages] == [
        [True] + [False] * (units - 1) for units in blocks
    ]


def test_names_are_those_of_root_stages_and_units_by_number():
    names = list(ResNetStem(3, (2, 1), 4, groups=2).parameters())
    assert names[:4] == ["root.conv.weight", "root.norm.gamma", "root.norm.beta", "stages.0.0.conv_proj.weight"]
    assert {"stages.0.1.conv2.weight", "stages.1.0.norm_proj.gamma", "stages.1.0.norm3.beta"} <= set(names)
    assert "stages.0.1.conv_proj.weight" not in names


def test_norms_have_32_groups_and_only_the_last_of_a_branch_starts_at_zero():
    stem = ResNetStem(3, (1,), 32)
    norms = {layer.path: layer for layer in stem.layers() if hasattr(layer, "groups")}
    assert {norm.groups for norm in norms.values()} == {32}
    assert {norm.eps for norm in norms.values()} == {1e-6}
    assert [path for path, norm in norms.items() if not norm.gamma.any()] == ["stages.0.0.norm3"]
