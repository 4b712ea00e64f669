"""Each kernel computes what the plain formula beside its derivation computes."""

import numpy as np
import pytest
from helpers import normal, same_bits

import vitnp
from vitnp.kernels import cpu
from vitnp.layers import Tanh
from vitnp.layers.attention import product_transposed
from vitnp.layers.gelu import gelu_erf, gelu_tanh
from vitnp.layers.layer_norm import layer_norm, layer_norm_backward
from vitnp.layers.softmax import softmax, softmax_backward

# one element, one row, odd sizes, more than one block of many rows, rows longer than a block
MANY_ROWS = (cpu.BLOCK // 101 + 7, 101)
SHAPES = [(1, 1), (1, 7), (6, 1), (5, 9, 6), (3, 2, 4, 5), MANY_ROWS, (2, cpu.BLOCK + 3), (cpu.BLOCK,)]
DTYPES = ("float64", "float32")


def bar(kernel, dtype):
    """How far two correct forms may be apart, in units of the largest element; measured: a third of that at most.

    The slope of the tanh form cancels where it bends: there the formula itself is 9 float32 units off the truth.
    """
    return 1e-13 if dtype == "float64" else (32 if kernel is gelu_tanh else 6) * np.finfo(dtype).eps


def arguments(kernel, shape, dtype):
    x, row = normal(shape, 1, scale=2), shape[-1:]
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    given = {
        gelu_tanh: (x,),
        gelu_erf: (x,),
        layer_norm: (x, normal(row, 2) + 1, normal(row, 3), 1e-6),
        layer_norm_backward: (normal(shape, 4), normal(row, 2) + 1, x, 1 + abs(normal((*shape[:-1], 1), 5))),
        softmax: (x,),
        softmax_backward: (normal(shape, 4), p),
        product_transposed: (np.atleast_2d(x)[..., :101], np.atleast_2d(normal(shape, 2))[..., :101], 0.7),
    }[kernel]
    return [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in given]


KERNELS = [gelu_tanh, gelu_erf, layer_norm, layer_norm_backward, softmax, softmax_backward, product_transposed]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def fast(kernel, arguments, ctx=None, layer=None):
    """The results of the kernel, as a tuple."""
    memory = (ctx or vitnp.Context(record=True)).memory(layer or Tanh())
    result = kernel(*arguments, memory=memory)
    return result if isinstance(result, tuple) else (result,)


def plain(kernel, arguments):
    """The results of the formula, as a tuple."""
    result = kernel.__wrapped__(*arguments)
    return result if isinstance(result, tuple) else (result,)


def assert_equal(found, truth, tolerance):
    assert len(found) == len(truth)
    for f, t in zip(found, truth, strict=True):
        assert f.shape == t.shape
        assert f.dtype == t.dtype
        assert abs(f - t).max() <= tolerance * max(1e-3, abs(t).max())


@every_kernel
def test_there_is_a_kernel_of_that_name(kernel):
    assert callable(getattr(cpu, kernel.__name__))


@every_kernel
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_the_plain_formula(kernel, dtype, shape):
    given = arguments(kernel, shape, dtype)
    assert_equal(fast(kernel, given), plain(kernel, given), bar(kernel, dtype))


@every_kernel
@every_dtype
def test_kernel_equals_the_plain_formula_on_strided_arrays(kernel, dtype):
    given = [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in arguments(kernel, (40, 60, 24), dtype)]
    strided = [a[::2, ::3] if isinstance(a, np.ndarray) and a.ndim == 3 else a for a in given]
    assert_equal(fast(kernel, strided), plain(kernel, strided), bar(kernel, dtype))


@every_kernel
def test_kernel_equals_the_plain_formula_on_transposed_arrays(kernel):
    given = arguments(kernel, (24, 60, 24), "float64")
    transposed = [a.swapaxes(0, 1) if isinstance(a, np.ndarray) and a.ndim == 3 else a for a in given]
    assert_equal(fast(kernel, transposed), plain(kernel, transposed), bar(kernel, "float64"))


@every_kernel
def test_kernel_leaves_its_arguments_as_they_are(kernel):
    given = arguments(kernel, MANY_ROWS, "float32")
    before = [np.array(a) for a in given]
    fast(kernel, given)
    assert all(same_bits(np.asarray(a), b) for a, b in zip(given, before, strict=True))


class OnlyFloat32(np.ndarray):
    """An array that refuses to meet another of any other type."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        for array in (*inputs, *out):
            assert not isinstance(array, np.ndarray) or array.dtype in (np.float32, np.bool_, np.int32), ufunc
        inputs, out = ([np.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays] for arrays in (inputs, out))
        result = getattr(ufunc, method)(*inputs, **options, **({"out": tuple(out)} if out else {}))
        assert np.asarray(result).dtype in (np.float32, np.bool_, np.int32), ufunc
        return result.view(OnlyFloat32) if isinstance(result, np.ndarray) else result


@every_kernel
def test_kernel_computes_float32_in_float32(kernel):
    given = [a.view(OnlyFloat32) if isinstance(a, np.ndarray) else a for a in arguments(kernel, MANY_ROWS, "float32")]
    fast(kernel, given)


@every_kernel
def test_results_of_two_layers_do_not_share_memory(kernel):
    ctx, given = vitnp.Context(record=True), arguments(kernel, MANY_ROWS, "float32")
    first = fast(kernel, given, ctx, Tanh())
    kept = [a.copy() for a in first]
    fast(kernel, [-a if isinstance(a, np.ndarray) else a for a in given], ctx, Tanh())
    assert all(same_bits(a, b) for a, b in zip(first, kept, strict=True))


@every_kernel
def test_results_of_one_call_do_not_share_memory(kernel):
    first, *others = fast(kernel, arguments(kernel, MANY_ROWS, "float32"))
    assert not any(np.shares_memory(first, other) for other in others)


@every_kernel
def test_memory_is_that_of_the_pass_before(kernel):
    ctx, layer, given = vitnp.Context(record=True), Tanh(), arguments(kernel, MANY_ROWS, "float32")
    first, second = fast(kernel, given, ctx, layer), fast(kernel, given, ctx, layer)
    assert all(np.shares_memory(a, b) for a, b in zip(first, second, strict=True))


@every_kernel
def test_a_smaller_batch_after_a_larger_one(kernel):
    ctx, layer = vitnp.Context(record=True), Tanh()
    fast(kernel, arguments(kernel, MANY_ROWS, "float64"), ctx, layer)
    given = arguments(kernel, (7, 101), "float64")
    assert_equal(fast(kernel, given, ctx, layer), plain(kernel, given), bar(kernel, "float64"))


@every_dtype
@pytest.mark.parametrize("gelu", [gelu_tanh, gelu_erf], ids=lambda gelu: gelu.__name__)
def test_gelu_has_no_slope_where_nothing_is_recorded(gelu, dtype):
    given = arguments(gelu, MANY_ROWS, dtype)
    y, slope = fast(gelu, given, vitnp.Context())
    assert slope is None
    assert same_bits(y, fast(gelu, given)[0])


@every_kernel
def test_complex_arrays_take_the_plain_formula(kernel):
    given = [a.astype("complex128") if isinstance(a, np.ndarray) else a for a in arguments(kernel, (5, 6), "float64")]
    assert_equal(fast(kernel, given), plain(kernel, given), 0)


@pytest.mark.parametrize("kernel", [softmax, layer_norm], ids=lambda kernel: kernel.__name__)
def test_rows_of_a_large_offset(kernel):
    given = arguments(kernel, MANY_ROWS, "float64")
    given[0] = given[0] + 1e4
    assert_equal(fast(kernel, given), plain(kernel, given), 1e-11)


@every_dtype
@pytest.mark.parametrize("spread", [0.01, 1, 100, 1e4])
def test_softmax_of_rows_that_lie_apart(dtype, spread):
    x = (normal(MANY_ROWS, 1) + spread * normal((MANY_ROWS[0], 1), 2)).astype(dtype)
    assert_equal(fast(softmax, [x]), plain(softmax, [x]), bar(softmax, dtype))


@every_dtype
def test_softmax_of_a_row_in_which_one_score_is_masked(dtype):
    x = normal(MANY_ROWS, 1).astype(dtype)
    x[3, 5] = -np.inf
    assert_equal(fast(softmax, [x]), plain(softmax, [x]), bar(softmax, dtype))
