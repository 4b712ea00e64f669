import math

import numpy as np
import pytest
from helpers import both_gradients, handwritten_gradients, normal, randomize, same_bits, worst_error

import vitnp
from vitnp import ContextError
from vitnp.layers import PatchCorruption

N, D = 9, 6


def corruption(n=N, dtype="float64"):
    return randomize(PatchCorruption(n, D, dtype=dtype))


def context(seed=7, step=0, first_row=0, train=True):
    ctx = vitnp.Context(train=train, rng=seed, record=True)
    ctx.step, ctx.first_row = step, first_row
    return ctx


def sources(samples, n=N, **where):
    """Where the embedding of each patch comes from: its number, or −1 for [mask]; and which are corrupted."""
    layer, ctx = PatchCorruption(n, 1, dtype="float64"), context(**where)
    layer.mask_token.fill(-1)
    x = np.broadcast_to(np.arange(n, dtype="float64")[None, :, None], (samples, n, 1))
    y = layer.forward(x, ctx)[..., 0].astype(int)
    corrupted = np.zeros((samples, n), bool)
    np.put_along_axis(corrupted, layer.places(samples, ctx, like=x), True, 1)
    return y, corrupted


# -- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "half"), [(2, 1), (3, 1), (8, 4), (9, 4)])
def test_half_of_the_patches_of_every_image_are_corrupted_and_the_others_are_as_they_were(n, half):
    y, corrupted = sources(50, n)
    assert (corrupted.sum(1) == half).all()
    assert (y == np.arange(n))[~corrupted].all()


def test_patches_are_masked_replaced_and_kept_in_the_shares_of_the_paper():
    y, corrupted = sources(4000)
    count, own = corrupted.sum(), np.arange(N)
    for share, found in ((0.8, y == -1), (0.1, (y >= 0) & (y != own)), (0.1, corrupted & (y == own))):
        assert found.sum() / count == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / count))


def test_every_patch_is_corrupted_equally_often_and_replaced_by_every_other():
    y, corrupted = sources(20000)
    assert corrupted.mean(0) == pytest.approx(4 / N, abs=5 * math.sqrt(4 / N * (1 - 4 / N) / 20000))
    others = y[(y >= 0) & (y != np.arange(N))]
    steps = ((y - np.arange(N)) % N)[(y >= 0) & (y != np.arange(N))]
    for found, kinds in ((others, N), (steps, N - 1)):
        assert np.bincount(found, minlength=N)[-kinds:] / len(found) == pytest.approx(1 / kinds, abs=0.015)


def test_output_is_made_of_embeddings_and_the_token_to_the_bit():
    layer, x = corruption(), normal((5, N, D), 1)
    y = layer.forward(x, context())
    source, _ = sources(5)
    rows = np.arange(5)[:, None]
    assert {-1} < set(source.ravel())
    assert np.array_equal(y, np.where((source == -1)[..., None], layer.mask_token, x[rows, source]))


# -- its gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5])
def test_every_gradient_is_the_derivative(batch):
    assert worst_error(*both_gradients(corruption(), normal((batch, N, D), 1))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    report = vitnp.gradcheck(corruption(), normal((5, N, D), 1), mode="full", tolerance=1e-12)
    report.raise_if_failed()


def test_a_patch_has_the_gradients_of_every_place_where_its_embedding_stands():
    source, _ = sources(5)
    assert ((source != np.arange(N)) & (source >= 0)).any()
    dy = normal((5, N, D), 2)
    truth = {"mask_token": dy[source == -1].sum(0)[None, None], "input": np.zeros_like(dy)}
    for b, i in np.ndindex(5, N):
        if source[b, i] >= 0:
            truth["input"][b, source[b, i]] += dy[b, i]
    assert worst_error(handwritten_gradients(corruption(), normal((5, N, D), 1), dy, seed=7), truth) < 1e-15


# -- of what the choice is a function ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[5], [2, 3], [1, 1, 1, 2], [4, 1]], ids=str)
def test_the_choice_is_the_same_however_the_batch_is_cut(parts):
    starts = np.cumsum([0, *parts[:-1]])
    pieces = [sources(rows, first_row=start) for start, rows in zip(starts, parts, strict=True)]
    for found, whole in zip(zip(*pieces, strict=True), sources(5), strict=True):
        assert np.array_equal(np.concatenate(found), whole)


@pytest.mark.parametrize("other", [{"step": 1}, {"seed": 8}, {"first_row": 1}], ids=str)
def test_another_step_seed_or_row_has_another_choice(other):
    assert (sources(40)[1] == sources(40, **other)[1]).mean() == pytest.approx((4 / 9) ** 2 + (5 / 9) ** 2, abs=0.13)


def test_the_choice_is_the_same_in_training_and_in_evaluation():
    assert np.array_equal(sources(5)[0], sources(5, train=False)[0])


def test_places_are_those_of_the_same_pass_before_and_after_forward():
    layer, x, ctx = corruption(), normal((5, N, D), 1), context()
    before = layer.places(5, ctx, like=x)
    layer.forward(x, ctx)
    assert np.array_equal(layer.places(5, ctx, like=x), before)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_the_choice_is_the_same_in_every_dtype(dtype):
    x = normal((5, N, D), 1)
    for layer, truth in ((corruption(dtype=dtype), corruption()),):
        found, expected = layer.forward(x.astype(dtype), context()), truth.forward(x, context())
        assert found.dtype == dtype
        assert same_bits(found.copy(), expected.astype(dtype)) or dtype == "float32"
        assert abs(found - expected).max() < 1e-6


def test_without_a_seed_it_is_refused_in_evaluation_too():
    with pytest.raises(ContextError, match="rng=0"):
        corruption().forward(normal((5, N, D), 1), vitnp.Context())


def test_a_single_patch_is_refused():
    with pytest.raises(ValueError, match="there is 1 patch in an image; expected 2 or more"):
        PatchCorruption(1, D)


def test_the_token_starts_normal_with_deviation_0_02_and_does_not_decay():
    layer = PatchCorruption(4, 5000, dtype="float64")
    assert layer.mask_token.std() == pytest.approx(0.02, rel=0.05)
    assert not layer.specs["mask_token"].decay
