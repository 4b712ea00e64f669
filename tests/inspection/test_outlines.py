"""Arrays without numbers behave as NumPy's do in all but their numbers: shapes, dtypes, views and errors."""

import itertools
import math

import numpy as np
import pytest

import vitnp
from vitnp.inspection.outlines import OutlineFunctions, UnknownOperation

SHAPE = (4, 3, 6, 1)


def both(shape=SHAPE, dtype="float32"):
    """An outline, and an array of its shape."""
    return OutlineFunctions().empty(shape, dtype), np.ones(shape, dtype)


def assert_alike(outline, array):
    assert outline.shape == array.shape
    assert outline.dtype == array.dtype
    assert outline.nbytes == array.nbytes


def is_view(result, of):
    return np.shares_memory(result, of) if isinstance(result, np.ndarray) else result.base is of


def strides(x):
    """How far it is along each axis that has more than one element, in elements."""
    unit = x.itemsize if isinstance(x, np.ndarray) else 1
    return [stride // unit for side, stride in zip(x.shape, x.strides, strict=True) if side > 1]


INDICES = [
    0,
    -1,
    (slice(None), 0),
    (Ellipsis, slice(1, 5, 2), slice(None)),
    (None, slice(2), Ellipsis, None),
    (slice(None, None, -1), slice(1, -1)),
    (slice(3, 3), Ellipsis, 0),
    Ellipsis,
]


@pytest.mark.parametrize("key", INDICES, ids=str)
def test_a_part_is_a_view_with_numpys_shape_and_strides(key):
    outline, array = both()
    assert_alike(outline[key], array[key])
    assert is_view(outline[key], outline)
    if array[key].size:
        assert strides(outline[key]) == strides(array[key])


@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (2, 4, 3, 6, 1), (7, 1, 4, 3, 6, 2)], ids=str)
def test_what_is_broadcast_is_a_view_with_numpys_shape_and_strides(shape):
    outline, array = both()
    found, expected = outline.xp.broadcast_to(outline, shape), np.broadcast_to(array, shape)
    assert_alike(found, expected)
    assert is_view(found, outline)
    assert tuple(4 * stride for stride in found.strides) == expected.strides
    with pytest.raises(ValueError, match=r"cannot broadcast \(4, 3, 6, 1\) to \(4, 3, 1, 1\)"):
        outline.xp.broadcast_to(outline, (4, 3, 1, 1))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(4))), ids=str)
def test_a_reshape_is_a_copy_where_numpys_is(axes):
    outline, array = both()
    outline, array = outline.transpose(*axes), array.transpose(*axes)
    for shape in ((72,), (12, -1), (-1, 12), (6, 12), (2, 2, 18), (4, 18), (3, 24), (1, 4, 3, 6), (3, 1, 4, 6), (9, 8)):
        found, expected = outline.reshape(shape), array.reshape(shape)
        assert_alike(found, expected)
        assert is_view(found, outline.base) == is_view(expected, array.base), (axes, shape)
        assert strides(found) == strides(expected)
        assert found.reshape(outline.size // 3, 3).shape == (24, 3)


def test_a_reshape_takes_sides_one_by_one_too():
    assert both()[0].reshape(8, -1).shape == (8, 9)
    assert both()[0].reshape(-1).shape == (72,)


def test_of_nothing_a_reshape_is_a_view():
    outline = both((3, 0, 2))[0]
    found = outline.swapaxes(0, 1).reshape(0, 5)
    assert (found.shape, found.base) == ((0, 5), outline)


def test_a_reshape_of_a_transposed_view_with_a_side_of_one_is_of_the_same_memory():
    outline, array = both((4, 1, 6))
    for shape in ((1, 24), (2, 2, 1, 3, 2), (6, 4, 1)):
        assert is_view(outline.transpose(1, 0, 2).reshape(shape), outline)
        assert np.shares_memory(array.transpose(1, 0, 2).reshape(shape), array)


def test_strides_are_those_of_the_view_so_that_what_follows_is_right_too():
    outline, array = both((2, 3, 4))
    # a copy, then a view of the copy
    outline, array = outline.swapaxes(0, 1).reshape(3, 8).T, array.swapaxes(0, 1).reshape(3, 8).T
    assert tuple(4 * stride for stride in outline.strides) == array.strides
    assert outline.base.nbytes == array.base.nbytes


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_reductions_have_numpys_shape_and_dtype(name, axis, keepdims, dtype):
    outline, array = both(dtype=dtype)
    assert_alike(getattr(outline, name)(axis, keepdims=keepdims), getattr(array, name)(axis, keepdims=keepdims))


@pytest.mark.parametrize(
    "work",
    [
        lambda a, xp: a + 1,
        lambda a, xp: 0.5 / a,
        lambda a, xp: a * np.float64(2),
        lambda a, xp: np.ones((6, 5)) - a,
        lambda a, xp: -a[:, :1] * a[0],
        lambda a, xp: a >= math.pi,
        lambda a, xp: xp.exp(a[..., None, :]),
        lambda a, xp: xp.sqrt(a.sum(-1, keepdims=True) + 1e-6),
        lambda a, xp: xp.where(a > 0, a, 0),
        lambda a, xp: xp.clip(a, -1, 1).astype("float64"),
        lambda a, xp: xp.take(np.ones(9), a[:, 0].astype("int64")),
        lambda a, xp: xp.zeros_like(a).copy(),
        lambda a, xp: xp.arange(3, 7, dtype="uint32")[:, None] ^ 5,
        lambda a, xp: a[0, 0] ** xp.linspace(0, -2, 5),
        lambda a, xp: (a.swapaxes(-1, -2) @ a).mean((0, 1)),
        lambda a, xp: xp.concatenate([a, a[:, :2], a.astype("float64")], 1),
        lambda a, xp: a[xp.arange(3), xp.ones((2, 1), "int32")],
        lambda a, xp: a[xp.ones((2, 5), "uint8")],
        lambda a, xp: xp.hstack([a[0, :, :, 0], a[1, :, :2, 0]]),
        lambda a, xp: xp.linspace(0, -2, 5)[:, None],
        lambda a, xp: xp.repeat(a, 3, 1),
        lambda a, xp: xp.tile(a[0], (2, 1, 5)),
        lambda a, xp: xp.ones((2, 3), "float32") @ a[0, :, :, 0],
        lambda a, xp: a.argsort(1),
    ],
)
def test_computations_have_numpys_shape_and_dtype(work):
    outline, array = both()
    assert_alike(work(outline, outline.xp), work(array, np))


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_the_real_part_is_a_view_with_numpys_dtype_and_strides(dtype):
    outline, array = both(dtype=dtype)
    assert_alike(outline.real, array.real)
    assert is_view(outline.real, outline)
    assert tuple(array.real.itemsize * stride for stride in outline.real.strides) == array.real.strides


def test_results_own_their_memory():
    outline, _ = both()
    assert all(y.base is None for y in (outline + 1, outline.copy(), outline.astype("float64"), outline.sum(0)))
    assert outline.astype("float32", copy=False) is outline
    assert outline.astype("float32") is not outline


def test_what_is_written_into_an_outline_gives_the_same_outline():
    outline, _ = both()
    before = outline
    outline += outline[0]
    outline *= 2
    assert outline is before
    assert outline.xp.add(outline, 1, out=outline) is before
    outline.fill(0)
    outline[:, 0] = 5


@pytest.mark.parametrize(
    "work",
    [
        lambda a: a + np.ones((5, 1)),
        lambda a: a[:1].__iadd__(a),
        lambda a: a.__setitem__(0, a),
        lambda a: a.reshape(71),
        lambda a: a.reshape(5, -1),
        lambda a: a @ a,
        lambda a: vitnp.array_module(a).matmul(a, a.swapaxes(-1, -2), out=a),
        lambda a: vitnp.array_module(a).add(a, a, out=a[0]),
    ],
)
def test_shapes_that_do_not_go_together_are_an_error_as_in_numpy(work):
    for array in both():
        with pytest.raises(ValueError, match=r"\w"):
            work(array)


@pytest.mark.parametrize("key", [4, (0, 0, -7), (0, 0, 0, 0, 0)], ids=str)
def test_an_index_out_of_bounds_is_an_error_as_in_numpy(key):
    for array in both():
        with pytest.raises(IndexError):
            array[key]


@pytest.mark.parametrize(
    ("a", "b", "products"),
    [((3, 5), (5, 7), 3 * 5 * 7), ((2, 4, 3, 5), (2, 4, 5, 7), 8 * 3 * 5 * 7), ((2, 1, 3, 5), (4, 5, 7), 8 * 105)],
)
def test_a_matrix_product_counts_two_operations_for_each_product_of_numbers(a, b, products):
    xp = OutlineFunctions()
    y = xp.empty(a) @ xp.empty(b)
    assert y.shape == (np.ones(a) @ np.ones(b)).shape
    assert xp.flops == 2 * products
    xp.matmul(xp.empty(a), np.ones(b), out=y)
    assert xp.flops == 4 * products
    xp.matmul(np.ones(a), xp.empty(b))
    assert xp.flops == 6 * products


def test_a_product_with_ones_is_a_sum_and_not_counted():
    xp = OutlineFunctions()
    assert (xp.ones((1, 5)) @ xp.empty((5, 7))).shape == (1, 7)
    assert (xp.empty((2, 3, 5)) @ xp.ones((5, 1))).shape == (2, 3, 1)
    assert xp.flops == 0


@pytest.mark.parametrize("source", range(-4, 4))
@pytest.mark.parametrize("destination", range(-4, 4))
def test_an_axis_moves_as_numpys_does(source, destination):
    outline, array = both((4, 3, 6, 2))
    found, expected = outline.xp.moveaxis(outline, source, destination), np.moveaxis(array, source, destination)
    assert (found.shape, strides(found)) == (expected.shape, strides(expected))
    assert is_view(found, outline)


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda a: a.xp.einsum("abcd->a", a), "the function einsum"),
        (lambda a: a.xp.vecdot(a, a), "np.vecdot"),
        (lambda a: a.xp.modf(a), "np.modf"),
        (lambda a: np.add.reduce(a), "np.add.reduce"),
        (lambda a: np.add(a, a, where=True), "where in np.add"),
        (lambda a: a.argpartition(2), "the attribute argpartition of an array"),
        (lambda a: a[np.array([1, 2])], "indexing with ndarray"),
        (lambda a: a[:, a.astype("int64")], "indexing with Outline"),
        (lambda a: a[a > 0], "indexing with a mask"),
    ],
)
def test_what_has_no_rule_is_an_error_that_says_so(work, name):
    with pytest.raises(UnknownOperation, match=f"^{name} has no rule for arrays without numbers: add one in vitnp/"):
        work(both()[0])


@pytest.mark.parametrize("work", [bool, float, int, np.asarray, np.sort, lambda a: "yes" if a > 0 else "no"])
def test_there_are_no_numbers_to_be_had(work):
    with pytest.raises(TypeError):
        work(both((1,))[0])


def test_an_outlines_functions_are_what_array_module_says():
    outline, array = both()
    assert vitnp.array_module(outline) is vitnp.array_module(outline + 1) is outline.xp
    assert vitnp.array_module(array) is np
