import threading

import numpy as np
import pytest
from helpers import copies, error, hard_model, images_for, labels_for, make_layer, normal, one_pass, same_bits

from vitnp import Context, ContextError, softmax_cross_entropy
from vitnp.layers import Dropout, Linear


def linear():
    return make_layer("linear")[0]


# -- what it is made of -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rng", [1.5, "1", True, [1], np.random.default_rng(0)], ids=lambda rng: type(rng).__name__)
def test_a_seed_that_is_no_integer_is_refused(rng):
    with pytest.raises(TypeError, match="a Context takes an integer seed or None"):
        Context(rng=rng)


@pytest.mark.parametrize("rng", [0, 5, -3, 2**70, np.int64(5), np.uint8(5)], ids=repr)
def test_any_integer_is_a_seed(rng):
    assert Context(rng=rng).rng == int(rng)


@pytest.mark.parametrize("train", [True, False])
def test_recording_follows_the_mode(train):
    assert Context(train=train).record is train


@pytest.mark.parametrize(("train", "record"), [(True, False), (False, True)])
def test_recording_can_be_said_apart_from_the_mode(train, record):
    ctx = Context(train=train, record=record)
    assert (ctx.train, ctx.record) == (train, record)


def test_a_context_is_one_of_evaluation_unless_said():
    ctx = Context()
    assert (ctx.train, ctx.rng, ctx.record, ctx.step, ctx.first_row) == (False, None, False, 0, 0)


# -- saved tensors ----------------------------------------------------------------------------------------------------


def test_what_is_saved_is_read_back_by_name():
    ctx, layer, x = Context(record=True), linear(), normal(3)
    ctx.save(layer, x=x, n=3)
    assert ctx.saved(layer).x is x
    assert ctx.saved(layer).n == 3


def test_a_layer_that_saves_twice_in_one_pass_is_refused():
    ctx, layer = Context(record=True), linear()
    ctx.save(layer, x=1)
    with pytest.raises(ContextError, match=r"Linear ran twice in one pass.*ctx\.begin"):
        ctx.save(layer, x=2)


def test_begin_opens_a_new_pass():
    ctx, layer = Context(record=True), linear()
    ctx.save(layer, x=1)
    ctx.begin()
    with pytest.raises(ContextError, match="has not run in this pass"):
        ctx.saved(layer)
    ctx.save(layer, x=2)
    assert ctx.saved(layer).x == 2


def test_begin_keeps_gradients_and_the_step():
    ctx, layer = Context(record=True), linear()
    ctx.add_grad(layer, bias=np.ones(7))
    ctx.step = 5
    ctx.begin()
    assert (ctx.grad(layer, "bias") == 1).all()
    assert ctx.step == 5


def test_reading_what_was_never_saved_is_refused_with_the_name_of_the_layer():
    model = hard_model()
    with pytest.raises(ContextError, match=r"Attention 'blocks\.1\.attn'.*has not run in this pass"):
        Context(record=True).saved(model.blocks[1].attn)


def test_reading_from_a_context_that_does_not_record_is_refused_with_the_reason():
    ctx, layer = Context(), linear()
    layer.forward(normal((5, 6)), ctx)
    with pytest.raises(ContextError, match=r"this Context does not record; run forward with Context\(train=True"):
        ctx.saved(layer)


def test_a_context_that_does_not_record_lets_a_layer_run_again():
    ctx, layer, x = Context(), linear(), normal((5, 6))
    first = layer.forward(x, ctx).copy()
    assert same_bits(layer.forward(x, ctx), first)


# -- gradients --------------------------------------------------------------------------------------------------------


def test_a_gradient_is_zero_until_something_is_added():
    ctx, layer = Context(), linear()
    assert ctx.grad(layer, "weight").shape == (6, 7)
    assert not ctx.grad(layer, "weight").any()


def test_add_grad_always_adds():
    ctx, layer = Context(), linear()
    for value in (1.0, 2.0, 4.0):
        ctx.add_grad(layer, weight=np.full((6, 7), value), bias=np.full(7, -value))
    assert (ctx.grad(layer, "weight") == 7).all()
    assert (ctx.grad(layer, "bias") == -7).all()


def test_add_product_adds_whatever_came_before():
    a, b, c = normal((6, 3), 1), normal((3, 7), 2), normal((6, 7), 3)
    for before in ([], ["grad"], ["product"], ["product", "grad"], ["grad", "product"]):
        ctx, layer, truth = Context(), linear(), a @ b
        for kind in before:
            if kind == "grad":
                ctx.add_grad(layer, weight=c)
            else:
                ctx.add_product(layer, "weight", a, b)
            truth = truth + (c if kind == "grad" else a @ b)
        ctx.add_product(layer, "weight", a, b)
        assert error(ctx.grad(layer, "weight"), truth) < 1e-15


def test_add_product_after_zero_grad_starts_at_zero():
    ctx, layer, a, b = Context(), linear(), normal((6, 3), 1), normal((3, 7), 2)
    ctx.add_product(layer, "weight", a, b)
    ctx.zero_grad()
    ctx.add_product(layer, "weight", a, b)
    assert error(ctx.grad(layer, "weight"), a @ b) < 1e-15


def test_the_first_product_of_a_step_goes_straight_into_its_place(monkeypatch):
    ctx, layer, a, b = Context(), linear(), normal((6, 3), 1), normal((3, 7), 2)
    monkeypatch.setattr(ctx, "scratch", None)
    for _ in range(2):
        ctx.add_product(layer, "weight", a, b)
        ctx.zero_grad()


def test_add_row_sum_adds_the_sum_of_the_rows():
    ctx, layer, rows = Context(), linear(), normal((40, 7), 1)
    ctx.add_row_sum(layer, "bias", rows)
    ctx.add_row_sum(layer, "bias", rows[:3])
    assert error(ctx.grad(layer, "bias"), rows.sum(0) + rows[:3].sum(0)) < 1e-14


def test_row_sums_of_float32_keep_five_digits_over_many_rows():
    ctx, layer = Context(), Linear(6, 7)
    rows = (normal((12608, 7), 1) + 1).astype("float32")
    ctx.add_row_sum(layer, "bias", rows)
    assert error(ctx.grad(layer, "bias"), rows.astype("float64").sum(0)) < 1e-5


def test_zero_grad_clears_in_place_and_begins_the_next_step():
    ctx, layer = Context(), linear()
    gradient = ctx.grad(layer, "weight")
    ctx.add_grad(layer, weight=np.ones((6, 7)))
    ctx.zero_grad()
    assert ctx.grad(layer, "weight") is gradient
    assert not gradient.any()
    assert ctx.step == 1


def test_each_zero_grad_begins_another_step():
    ctx = Context()
    for step in range(3):
        assert ctx.step == step
        ctx.zero_grad()


def test_zero_grad_clears_a_whole_model():
    model, ctx = hard_model(), Context(train=True, rng=0)
    one_pass(model, ctx, images_for(model), labels_for(model))
    assert all(gradient.any() for gradient in model.gradients(ctx).values())
    ctx.zero_grad()
    assert not ctx.flat_grad(model.layout, like=model.flat).any()
    assert not any(gradient.any() for gradient in model.gradients(ctx).values())


def test_gradients_of_a_model_are_views_into_one_vector():
    model, ctx = hard_model(), Context()
    flat = ctx.flat_grad(model.layout, like=model.flat)
    flat[...] = np.arange(len(flat))
    for name, gradient in model.gradients(ctx).items():
        assert np.shares_memory(gradient, flat)
        assert same_bits(gradient, model.layout.view(flat, name))


def test_one_context_holds_the_gradients_of_several_models_apart():
    ctx, models = Context(train=True, rng=0), [hard_model(), hard_model(seed=5)]
    alone = [copies(gradients_of(model, Context(train=True, rng=0))) for model in models]
    for model, truth in zip(models, alone, strict=True):
        found = gradients_of(model, ctx)
        assert all(same_bits(found[name], truth[name]) for name in truth)


def gradients_of(model, ctx):
    one_pass(model, ctx, images_for(model), labels_for(model))
    return model.gradients(ctx)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_empty_is_the_same_memory_in_the_next_pass():
    ctx, layer, like = Context(), linear(), np.ones(1)
    first = ctx.empty(layer, "y", (5, 6), like)
    ctx.begin()
    second = ctx.empty(layer, "y", (5, 6), like)
    assert first.ctypes.data == second.ctypes.data


def test_empty_for_a_smaller_batch_is_the_beginning_of_the_larger():
    ctx, layer, like = Context(), linear(), np.ones(1)
    larger, smaller = ctx.empty(layer, "y", (5, 6), like), ctx.empty(layer, "y", (3, 6), like)
    assert smaller.shape == (3, 6)
    assert smaller.ctypes.data == larger.ctypes.data


def test_empty_grows_where_it_must_and_stays():
    ctx, layer, like = Context(), linear(), np.ones(1)
    ctx.empty(layer, "y", (3, 6), like)
    larger = ctx.empty(layer, "y", (5, 6), like)
    larger[...] = 1
    assert ctx.empty(layer, "y", (5, 6), like).ctypes.data == larger.ctypes.data


def test_empty_in_another_shape_of_the_same_size_is_the_same_memory():
    ctx, layer, like = Context(), linear(), np.ones(1)
    first, turned = ctx.empty(layer, "y", (5, 6), like), ctx.empty(layer, "y", (6, 5), like)
    assert turned.shape == (6, 5)
    assert first.ctypes.data == turned.ctypes.data


@pytest.mark.parametrize("other", ["layer", "name", "dtype"])
def test_empty_is_other_memory_for_another(other):
    ctx, layer = Context(), linear()
    first = ctx.empty(layer, "y", (5, 6), np.ones(1))
    second = ctx.empty(
        linear() if other == "layer" else layer,
        "x" if other == "name" else "y",
        (5, 6),
        np.ones(1, "float32" if other == "dtype" else "float64"),
    )
    assert not np.shares_memory(first, second)


def test_two_contexts_have_memory_of_their_own():
    layer, like = linear(), np.ones(1)
    assert not np.shares_memory(Context().empty(layer, "y", (5,), like), Context().empty(layer, "y", (5,), like))


def with_role(role):
    layer = linear()
    layer.role = role
    return layer


def test_lent_memory_is_shared_by_layers_of_one_role():
    ctx, like = Context(), np.ones(1)
    first, second = (ctx.lend(with_role("block.fc1"), "y", (5, 6), like) for _ in range(2))
    assert first.ctypes.data == second.ctypes.data
    assert not np.shares_memory(first, ctx.lend(with_role("block.fc2"), "y", (5, 6), like))
    assert not np.shares_memory(first, ctx.lend(with_role("block.fc1"), "dx", (5, 6), like))


def test_layers_without_a_role_lend_memory_of_their_own():
    ctx, like = Context(), np.ones(1)
    assert not np.shares_memory(ctx.lend(linear(), "y", (5,), like), ctx.lend(linear(), "y", (5,), like))


def test_lent_memory_that_has_grown_is_lent_no_more_and_what_gets_its_place_is_not():
    ctx, like, layer = Context(train=True), np.empty(0), with_role("block.fc1")
    small = ctx.lend(layer, "y", (5,), like)
    large = ctx.lend(layer, "y", (50,), like)
    assert [ctx._is_lent(small), ctx._is_lent(large), ctx._is_lent(ctx.lend(layer, "y", (5,), like))] == [
        False,
        True,
        True,
    ]


def test_what_is_saved_of_lent_memory_is_a_copy(backend):
    ctx, layer, like = Context(record=True), with_role("block.fc1"), backend.put(np.ones(1))
    lent, kept = ctx.lend(layer, "y", (5, 6), like), ctx.empty(layer, "x", (5, 6), like)
    lent.fill(1)
    kept.fill(1)
    ctx.save(layer, part=lent.reshape(6, 5)[2:], kept=kept[2:], number=3, nothing=None)
    lent.fill(2)
    kept.fill(2)
    saved = ctx.saved(layer)
    assert saved.part.sum() == 20
    assert saved.kept.sum() == 36
    assert (saved.number, saved.nothing) == (3, None)


def test_memory_does_not_grow_with_depth_but_for_what_is_saved():
    def lent(depth):
        model, ctx = hard_model(depth=depth), Context(train=True, rng=0)
        one_pass(model, ctx, images_for(model), labels_for(model))
        return sum(buffer.nbytes for (role, _), buffer in _by_layer(ctx).items() if isinstance(role, str))

    assert lent(2) == lent(3) > 0


def _by_layer(ctx):
    return {key: buffer for key, buffer in ctx._buffers.items() if isinstance(key, tuple)}


def test_scratch_is_shared_by_all_layers_and_apart_from_what_is_kept():
    ctx, like = Context(), np.ones(1)
    first, second = ctx.scratch("term", (5, 6), like), ctx.scratch("term", (5, 6), like)
    assert first.ctypes.data == second.ctypes.data
    assert not np.shares_memory(first, ctx.empty(linear(), "term", (5, 6), like))


def test_a_context_is_used_again_for_a_smaller_last_batch():
    model = hard_model()
    images, labels = images_for(model), labels_for(model)
    ctx, fresh = Context(train=True, rng=0), Context(train=True, rng=0)
    one_pass(model, ctx, images, labels)
    ctx.zero_grad()
    ctx.step = 0
    found = one_pass(model, ctx, images[:2], labels[:2])
    truth = one_pass(model, fresh, images[:2], labels[:2])
    assert all(same_bits(np.asarray(f), np.asarray(t)) for f, t in zip(found, truth, strict=True))
    assert same_bits(*(c.flat_grad(model.layout, like=model.flat) for c in (ctx, fresh)))


def test_a_context_is_used_again_for_a_larger_batch():
    model = hard_model()
    images, labels = images_for(model), labels_for(model)
    ctx, fresh = Context(train=True, rng=0), Context(train=True, rng=0)
    one_pass(model, ctx, images[:2], labels[:2])
    ctx.zero_grad()
    ctx.step = 0
    found, truth = one_pass(model, ctx, images, labels), one_pass(model, fresh, images, labels)
    assert all(same_bits(np.asarray(f), np.asarray(t)) for f, t in zip(found, truth, strict=True))


def test_interleaved_contexts_do_not_disturb_one_another():
    model = hard_model()
    batches = [(images_for(model, seed=seed), labels_for(model, seed=seed)) for seed in (1, 2)]
    truth = [one_pass(model, Context(train=True, rng=seed), *batches[seed])[2].copy() for seed in (0, 1)]
    contexts = [Context(train=True, rng=seed) for seed in (0, 1)]
    logits = [model.forward(batches[seed][0], contexts[seed]) for seed in (0, 1)]
    for seed in (0, 1):
        dlogits = softmax_cross_entropy(logits[seed], batches[seed][1])[1]
        assert same_bits(model.backward(dlogits, contexts[seed]), truth[seed])


def test_passes_on_threads_do_not_disturb_one_another():
    model = hard_model()
    images, labels = images_for(model), labels_for(model)
    truth = [one_pass(model, Context(train=True, rng=seed), images, labels)[2] for seed in range(4)]
    found = [None] * 4

    def work(seed):
        ctx = Context(train=True, rng=seed)
        for _ in range(5):
            found[seed] = one_pass(model, ctx, images, labels)[2]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(f, t) for f, t in zip(found, truth, strict=True))


# -- randomness -------------------------------------------------------------------------------------------------------


def bits(shape=(5, 4), rng=7, step=0, first_row=0, layer=None):
    ctx = Context(train=True, rng=rng)
    ctx.step, ctx.first_row = step, first_row
    return ctx.random_bits(layer or Dropout(0.5), shape, like=np.ones(1))


def test_random_bits_are_uint32_of_the_shape():
    assert (bits((5, 2, 3)).shape, bits((5, 2, 3)).dtype) == ((5, 2, 3), np.uint32)


def test_random_bits_are_a_function_of_the_position_alone():
    assert same_bits(bits((9, 4))[3:8], bits((5, 4), first_row=3))


def test_random_bits_are_written_down():
    # A change of these breaks the resumption of every run that was saved before it.
    assert bits((2, 3)).tolist() == [[1000076181, 3929182801, 669127123], [1334294276, 2236195682, 3720762627]]


def test_drawing_moves_no_state():
    ctx, layer = Context(train=True, rng=7), Dropout(0.5)
    first = ctx.random_bits(layer, (5, 4), like=np.ones(1))
    assert same_bits(ctx.random_bits(layer, (5, 4), like=np.ones(1)), first)


def test_random_bits_without_a_seed_are_refused_with_the_layer():
    model = hard_model()
    with pytest.raises(ContextError, match=r"Dropout 'blocks\.0\.attn\.dropout' draws random bits.*rng=0"):
        Context(train=True).random_bits(model.blocks[0].attn.dropout, (5, 4), like=np.ones(1))


def test_the_step_of_zero_grad_draws_other_masks():
    model, ctx = hard_model(), Context(train=True, rng=0)
    images = images_for(model)
    first = model.forward(images, ctx)
    again = model.forward(images, ctx)
    ctx.zero_grad()
    assert same_bits(first, again)
    assert not same_bits(first, model.forward(images, ctx))
