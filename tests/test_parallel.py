import copy
import dataclasses
import math
import threading

import numpy as np
import pytest
from helpers import (
    HYBRID,
    arrays_of,
    error,
    hard_model,
    images_for,
    labels_for,
    one_pass,
    same_bits,
    soft_labels_for,
    worst_error,
)
from threadpoolctl import ThreadpoolController, threadpool_limits

import vitnp
from vitnp import Adam, Context, ShardedStep, parallel
from vitnp.cores import usable_cores

BATCH = 7


class Setup:
    """A model of its own, its optimizer, a step, and a batch whose size no number of shards divides."""

    def __init__(self, dtype="float64", batch=BATCH, model=None, soft=False, **options):
        self.model = model or hard_model(dtype)
        self.optimizer = Adam(self.model, lr=0.01, weight_decay=0.1)
        self.sharded = ShardedStep(self.model, self.optimizer, rng=5, **options)
        self.images = images_for(self.model, batch)
        self.labels = soft_labels_for(self.model, batch) if soft else labels_for(self.model, batch)

    def gradients(self):
        """-> loss, gradients of the whole batch by name"""
        loss = self.sharded.gradients(self.images, self.labels)
        gradients = self.model.gradients(self.sharded.contexts[0])
        return float(loss), {name: gradient.copy() for name, gradient in gradients.items()}

    def steps(self, number=3):
        return [float(self.sharded.step(self.images, self.labels)) for _ in range(number)]

    def state(self):
        return self.model.flat, self.optimizer.m, self.optimizer.v


def whole_batch(setup, label_smoothing=0.0):
    """The same without ShardedStep."""
    ctx = Context(train=True, rng=5)
    _, loss, _ = one_pass(setup.model, ctx, setup.images, setup.labels, label_smoothing)
    return float(loss), setup.model.gradients(ctx)


CUTS = [
    {"shards": 1},
    {"shards": 2},
    {"shards": 3},
    {"shards": 7},
    {"shards": 1, "micro_batch": 2},
    {"shards": 2, "micro_batch": 1},
    {"shards": 2, "micro_batch": 3},
    {"shards": 2, "micro_batch": 100},
]
every_cut = pytest.mark.parametrize("cut", CUTS, ids=str)


@every_cut
@pytest.mark.parametrize("soft", [False, True], ids=["integer labels", "soft labels"])
def test_gradients_are_those_of_the_whole_batch_with_its_dropout(cut, soft):
    setup = Setup(soft=soft, **cut)
    assert worst_error(setup.gradients()[1], whole_batch(setup)[1]) < 1e-12


@every_cut
def test_loss_is_that_of_the_whole_batch(cut):
    setup = Setup(label_smoothing=0.1, **cut)
    assert setup.gradients()[0] == pytest.approx(whole_batch(setup, 0.1)[0], rel=1e-14)


@every_cut
def test_label_smoothing_is_that_of_the_whole_batch(cut):
    setup = Setup(label_smoothing=0.1, **cut)
    assert worst_error(setup.gradients()[1], whole_batch(setup, 0.1)[1]) < 1e-12


def test_one_shard_has_the_bits_of_a_plain_step():
    setup, plain = Setup(shards=1), Setup()
    ctx = Context(train=True, rng=5)
    for step in range(3):
        ctx.zero_grad()
        ctx.step = step
        one_pass(plain.model, ctx, plain.images, plain.labels)
        plain.optimizer.step(ctx)
    setup.steps(3)
    assert same_bits(setup.model.flat, plain.model.flat)


@every_cut
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_repeats_bit_for_bit(cut, dtype):
    first, again = Setup(dtype, **cut), Setup(dtype, **cut)
    assert first.steps() == again.steps()
    assert all(same_bits(a, b) for a, b in zip(first.state(), again.state(), strict=True))


@every_cut
def test_training_in_parts_ends_where_training_of_the_whole_batch_ends(cut):
    first, whole = Setup(clip_norm=1.0, **cut), Setup(clip_norm=1.0, shards=1)
    first.steps(), whole.steps()
    for name, parameter in whole.model.parameters().items():
        found, truth = first.model.parameters()[name], parameter
        if name.endswith("qkv.bias"):  # k's has no gradient but rounding noise, of which Adam makes steps too
            found, truth = (np.delete(p.reshape(3, -1), 1, axis=0) for p in (found, truth))
        assert error(found, truth) < 1e-10


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_batch_smaller_than_the_shards(batch):
    setup = Setup(batch=batch, shards=4)
    loss, gradients = setup.gradients()
    truth = whole_batch(setup)
    assert loss == pytest.approx(truth[0], rel=1e-14)
    assert worst_error(gradients, truth[1]) < 1e-12


def test_a_smaller_last_batch_leaves_nothing_of_the_larger_before():
    setup, fresh = Setup(shards=3), Setup(shards=3)
    setup.gradients()
    for s in (setup, fresh):
        s.images, s.labels = s.images[:2], s.labels[:2]
    assert worst_error(setup.gradients()[1], fresh.gradients()[1]) == 0


def test_masks_follow_the_steps_of_the_optimizer_so_that_a_resumed_run_goes_on():
    straight = Setup(shards=2)
    straight.steps(4)
    before = Setup(shards=2)
    before.steps(2)
    after = Setup(shards=2, model=before.model)
    after.optimizer = after.sharded.optimizer = before.optimizer
    after.steps(2)
    assert same_bits(after.model.flat, straight.model.flat)


def test_masks_are_those_of_seed_zero_unless_said():
    setup = Setup(shards=2)
    found, seeded = (ShardedStep(setup.model, setup.optimizer, shards=2, **seed) for seed in ({}, {"rng": 0}))
    assert found.gradients(setup.images, setup.labels) == seeded.gradients(setup.images, setup.labels)


def test_gradients_leave_the_parameters_as_they_are():
    setup = Setup(shards=2)
    before = setup.model.flat.copy()
    setup.gradients()
    assert same_bits(setup.model.flat, before)


def test_no_gradient_of_the_images_is_computed(monkeypatch):
    monkeypatch.setattr("vitnp.layers.patch_embed.unpatchify", None)
    Setup().steps(1)


def test_gradients_computed_twice_are_the_same():
    setup = Setup(shards=2)
    assert worst_error(setup.gradients()[1], setup.gradients()[1]) == 0


def test_clipping_is_of_the_whole_gradient():
    setup = Setup(shards=2, clip_norm=0.1)
    gradients = setup.gradients()[1]
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    assert norm > 0.1  # or the claim would be empty
    setup.sharded.step(setup.images, setup.labels)
    clipped = setup.model.gradients(setup.sharded.contexts[0])
    assert worst_error(clipped, {name: gradient * 0.1 / norm for name, gradient in gradients.items()}) < 1e-14


def test_without_a_norm_nothing_is_clipped():
    setup = Setup(shards=2)
    gradients = setup.gradients()[1]
    setup.sharded.step(setup.images, setup.labels)
    assert worst_error(setup.model.gradients(setup.sharded.contexts[0]), gradients) == 0


def test_loss_is_that_before_the_step():
    setup = Setup(shards=2)
    assert float(setup.sharded.step(setup.images, setup.labels)) == Setup(shards=2).gradients()[0]


@pytest.mark.parametrize("soft", [False, True], ids=["integer labels", "soft labels"])
def test_correct_is_how_many_of_the_last_batch_were_right(soft):
    setup = Setup(shards=2, soft=soft)
    setup.gradients()
    logits = setup.model.forward(setup.images, Context(train=True, rng=5))
    truth = setup.labels.argmax(-1) if soft else setup.labels
    assert int(setup.sharded.correct) == (logits.argmax(-1) == truth).sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_has_one_dtype_in_contexts_optimizer_and_model(dtype):
    setup = Setup(dtype, shards=2, micro_batch=2, clip_norm=0.1, label_smoothing=0.1)
    loss = setup.sharded.step(setup.images, setup.labels.tolist())
    everything = [loss, *arrays_of(setup.sharded), *arrays_of(setup.optimizer), *arrays_of(setup.model)]
    assert {array.dtype.name for array in everything if array.dtype.kind == "f"} == {dtype}


def test_labels_may_be_a_list():
    first, again = Setup(shards=2), Setup(shards=2)
    again.labels = again.labels.tolist()
    assert first.steps(1) == again.steps(1)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, BATCH - 1], ids=["first shard", "last shard"])
def test_an_error_in_a_shard_is_raised_and_changes_no_parameter(row):
    setup = Setup(shards=2)
    setup.steps(1)
    before = copy.deepcopy(setup.state())
    setup.labels[row] = 99
    with pytest.raises(ValueError, match="label 99 of sample"):
        setup.sharded.step(setup.images, setup.labels)
    assert all(same_bits(a, b) for a, b in zip(before, setup.state(), strict=True))
    assert setup.optimizer.steps == 1


@pytest.mark.parametrize("row", [0, BATCH - 1], ids=["first shard", "last shard"])
def test_a_step_after_an_error_is_as_if_there_had_been_none(row):
    setup, clean = Setup(shards=2), Setup(shards=2)
    wrong = setup.labels.copy()
    wrong[row] = 99
    with pytest.raises(ValueError, match="label 99"):
        setup.sharded.step(setup.images, wrong)
    setup.steps(1), clean.steps(1)
    assert same_bits(setup.model.flat, clean.model.flat)


def test_a_gradient_that_is_not_finite_raises_and_changes_no_parameter():
    setup = Setup(shards=2)
    setup.model.parameters()["head.weight"][...] *= 1e200  # finite, but not when squared
    before = copy.deepcopy(setup.state())
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="the gradient's norm is inf"):
        setup.sharded.step(setup.images, setup.labels)
    assert all(same_bits(a, b) for a, b in zip(before, setup.state(), strict=True))


def test_a_loss_that_is_not_finite_raises_and_changes_no_parameter():
    """Its gradient is: a probability of zero has one of 1."""
    setup = Setup(shards=2, label_smoothing=0.0)
    logits = np.zeros((7, 4))
    logits[2] = [1e308, 0, 0, -1e308]
    setup.model.forward = lambda images, ctx: logits[: len(images)]
    setup.model.backward = lambda dy, ctx: None
    before = copy.deepcopy(setup.state())
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="the loss is inf: lower the learning rate"):
        setup.sharded.step(setup.images, np.full(len(setup.images), 3))
    assert all(same_bits(a, b) for a, b in zip(before, setup.state(), strict=True))


class Slow(vitnp.VisionTransformer):
    """Takes long over all shards but the first, which begins with the first image."""

    def watch(self, first_image):
        self.first_image, self.running, self.started = first_image, 0, threading.Event()

    def forward(self, x, ctx=None):
        if np.array_equal(x[0], self.first_image):
            self.started.wait(10)  # so that the other shard is under way when this one fails
            return super().forward(x, ctx)
        self.running += 1
        self.started.set()
        for _ in range(200):
            logits = super().forward(x, ctx)
        self.running -= 1
        return logits


def test_an_error_is_raised_when_no_shard_is_running_any_more():
    config = hard_model().config
    setup = Setup(shards=2, model=Slow(config, dtype="float64"))
    setup.model.watch(setup.images[0])
    setup.labels[0] = 99
    with pytest.raises(ValueError, match="label 99"):
        setup.sharded.step(setup.images, setup.labels)
    assert setup.model.running == 0


@pytest.mark.parametrize("option", ["shards", "micro_batch", "clip_norm"])
@pytest.mark.parametrize("value", [0, -1])
def test_options_that_are_not_positive_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}; it must be above 0"):
        Setup(**{option: value})


def test_images_and_labels_of_different_number_are_refused():
    setup = Setup(shards=2)
    with pytest.raises(ValueError, match="7 images came with 6 labels"):
        setup.sharded.step(setup.images, setup.labels[:-1])


def test_an_empty_batch_is_refused_for_what_it_is():
    setup = Setup(shards=2)
    with pytest.raises(ValueError, match="images"):
        setup.sharded.step(setup.images[:0], setup.labels[:0])


# -- threads ----------------------------------------------------------------------------------------------------------


def blas_threads():
    return {library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"}


class Spy(vitnp.VisionTransformer):
    """Remembers on which threads it ran, and how many threads BLAS had there."""

    def watch(self):
        self.seen, self.threads = [], set()
        return self

    def forward(self, x, ctx=None):
        self.seen.append(blas_threads())
        self.threads.add(threading.get_ident())
        return super().forward(x, ctx)


@pytest.fixture
def two_blas_threads():
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS cannot have two threads")
        yield


def spying(**options):
    return Setup(model=Spy(hard_model().config, dtype="float64").watch(), **options)


def test_blas_has_one_thread_in_each_shard(two_blas_threads):
    setup = spying(shards=2)
    setup.steps(1)
    assert setup.model.seen == [{1}, {1}]


def test_blas_has_its_threads_back_after_a_step(two_blas_threads):
    Setup(shards=2).steps(1)
    assert blas_threads() == {2}


def test_blas_has_its_threads_back_after_an_error(two_blas_threads):
    setup = Setup(shards=2)
    setup.labels[0] = 99
    with pytest.raises(ValueError, match="label 99"):
        setup.steps(1)
    assert blas_threads() == {2}


def test_blas_has_one_thread_in_a_single_shard_too(two_blas_threads):
    setup = spying(shards=1)
    setup.steps(1)
    assert setup.model.seen == [{1}]


def test_shards_are_as_many_as_cores_unless_said():
    setup = Setup()
    assert setup.sharded.shards == len(setup.sharded.contexts) == usable_cores() >= 1


# -- the head alone ---------------------------------------------------------------------------------------------------

PLAIN = {"dropout": 0.0, "attention_dropout": 0.0}


def head_setup(model=None, **options):
    setup = Setup(model=model or hard_model(**PLAIN))
    setup.optimizer = vitnp.SGD(setup.model, 0.1)
    setup.sharded = ShardedStep(setup.model, setup.optimizer, rng=5, head_only=True, **options)
    return setup


@every_cut
def test_the_head_s_gradient_is_that_of_the_whole_network_and_no_other_parameter_has_one(cut):
    setup = head_setup(label_smoothing=0.1, **cut)
    loss, found = setup.gradients()
    expected_loss, expected = whole_batch(setup, 0.1)
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    head = ("head.weight", "head.bias")
    assert worst_error({name: found[name] for name in head}, {name: expected[name] for name in head}) < 1e-12
    assert not any(gradient.any() for name, gradient in found.items() if name not in head)


@pytest.mark.parametrize("rule", [vitnp.SGD, Adam])
def test_what_is_frozen_keeps_its_bits_and_the_head_learns(rule):
    setup = head_setup(clip_norm=1.0)
    setup.optimizer = setup.sharded.optimizer = rule(setup.model, 0.1)
    before = {name: p.copy() for name, p in setup.model.parameters().items()}
    losses = setup.steps(5)
    assert losses[-1] < losses[0]
    changed = {name for name, p in setup.model.parameters().items() if not same_bits(p, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_nothing_goes_back_through_what_is_frozen_nor_is_any_of_it_kept(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a backward of what is frozen")

    for kind in ("Block", "LayerNorm", "PatchEmbed", "Embeddings"):
        monkeypatch.setattr(getattr(vitnp.layers, kind), "backward", refuse)
    setup = head_setup(shards=2)
    setup.steps(2)
    saved = {layer for ctx in setup.sharded.contexts for layer in ctx._saved}
    assert saved == {setup.model.classifier.head}


def test_no_dropout_acts_in_what_is_frozen():
    setup = head_setup(model=hard_model())
    assert setup.gradients()[0] == head_setup().gradients()[0]


def test_decay_and_a_layer_before_the_head_are_refused_where_the_head_learns_alone():
    for model, decay in ((hard_model(), 0.1), (hard_model(representation_size=7), 0.0)):
        with pytest.raises(ValueError, match=f"head_only with weight_decay {decay} and representation_size"):
            ShardedStep(model, vitnp.SGD(model, 0.1, weight_decay=decay), head_only=True)


# -- micro-batches that choose themselves -----------------------------------------------------------------------------


def sizes_of_passes(monkeypatch, setup):
    """How many images each forward of a step had."""
    sizes, forward = [], setup.model.forward
    monkeypatch.setattr(setup.model, "forward", lambda images, ctx: sizes.append(len(images)) or forward(images, ctx))
    setup.steps(1)
    return sizes


@pytest.mark.parametrize(
    ("fit", "expected"), [(100, [7]), (7, [7]), (6, [4, 3]), (3, [3, 3, 1]), (2, [2, 2, 2, 1]), (0.5, [1] * 7)]
)
def test_passes_keep_no_more_than_they_may_and_are_about_equal(monkeypatch, fit, expected):
    model = hard_model("float32")
    monkeypatch.setattr(parallel, "SAVED", int(fit * parallel.saved_bytes(model)))
    assert sizes_of_passes(monkeypatch, Setup(model=model, shards=1)) == expected


def test_a_micro_batch_that_is_given_is_not_changed(monkeypatch):
    monkeypatch.setattr(parallel, "SAVED", 1)
    assert sizes_of_passes(monkeypatch, Setup(shards=1, micro_batch=4)) == [4, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 3, "num_heads": 1, "pool": "mean"},
        {"registers": 3, "layer_scale": 0.1, "depth": 3},
        {"qk_norm": True, "positions": "relative"},
        {"dropout": 0.2},
        {"attention_dropout": 0.2},
        {"stochastic_depth": 0.2, "depth": 3},
    ],
    ids=str,
)
def test_saved_bytes_are_those_of_a_pass_without_its_ends(changes):
    model = hard_model("float32", **{"attention_dropout": 0.0, "dropout": 0.0, **changes})
    ctx = Context(train=True, rng=0)
    one_pass(model, ctx, images_for(model, 1), labels_for(model, 1))
    blocks = [layer for block in model.blocks for layer in block.layers()]
    kept = [buffer for (layer, *name), buffer in ctx._buffers.items() if layer in blocks and "rstd" not in name]
    assert parallel.saved_bytes(model) == sum(
        buffer.nbytes for buffer in kept if buffer.size > 1
    )  # one number a sample


def test_threads_that_cannot_be_started_are_told_and_the_others_finished(monkeypatch):
    model = hard_model()
    step, begun = ShardedStep(model, Adam(model), shards=3), []
    submit = step._threads.submit

    def refuse_the_third(work, *arguments):
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(submit(work, *arguments))
        return begun[-1]

    monkeypatch.setattr(step._threads, "submit", refuse_the_third)
    with pytest.raises(MemoryError, match=r"3 shards want as many threads \(can't start new thread\): take fewer"):
        step.step(images_for(model), labels_for(model))
    assert all(job.done() for job in begun)


@pytest.mark.parametrize("name", ["R+Ti/16", "R26+S/32", "R50+B/16"])
def test_saved_bytes_of_a_hybrid_are_those_of_its_summary_to_a_few_per_cent(name):
    config, plain = vitnp.ViTConfig.named(name), vitnp.ViTConfig.named(name, stem_blocks=None, patch_size=32)
    in_stem = [row for row in vitnp.summary(config).layers if row.path.startswith("stem.") and row.kind != "StdConv"]
    models = [
        vitnp.VisionTransformer(c, rng=None)
        for c in (config, dataclasses.replace(plain, patch_size=224 // config.grid[0]))
    ]
    found = parallel.saved_bytes(models[0]) - parallel.saved_bytes(models[1])
    assert found == pytest.approx(sum(row.saved for row in in_stem), rel=0.05)


def test_a_hybrid_in_shards_has_the_gradients_of_the_whole_batch():
    setup = Setup(model=hard_model(**HYBRID, dropout=0.2), shards=3, micro_batch=2)
    (loss, found), (true_loss, truth) = setup.gradients(), whole_batch(setup)
    assert loss == pytest.approx(true_loss, rel=1e-13)
    assert worst_error(found, truth) < 1e-12
