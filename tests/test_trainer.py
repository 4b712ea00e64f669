"""A training run loses nothing: through full disks, signals, kills, NaN, damaged files and other machines."""

import errno
import json
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import vitnp
from vitnp import train
from vitnp.data import Dataset
from vitnp.resuming import load_run
from vitnp.stopping import Stop

RUN = {
    "patch_size": 3,
    "dim": 6,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 7,
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "mixup": 0.4,
    "epochs": 3,
    "batch_size": 8,
    "lr": 0.01,
    "warmup_epochs": 0.5,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "shift": 1,
    "held_out": 10,
    "shards": 2,
    "save_every": 1e9,
}
PER_EPOCH, LAST = 4, 12  # steps
DRAW_CURVES = train._draw_curves  # the real one, which the tests here do without
NAMES = ("plain", "striped", "dotted")


def dataset(n, seed):
    """Images whose class can be learned."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(NAMES), n)
    images = rng.integers(0, 60, (n, 6, 9, 1), np.uint8) + 60 * labels[:, None, None, None].astype(np.uint8)
    return Dataset(images, labels, NAMES, f"set {seed}")


def make(folder=None, model=None, rule=None, average=None, train_set=None, **changes):
    """A trainer of a small run, begun in `folder`."""
    args = train.training_parser("A toy.", **{**RUN, **changes}).parse_args([])
    config = train._make_config(args, {"image_size": (6, 9), "channels": 1, "num_classes": len(NAMES)})
    model = model or vitnp.VisionTransformer(config, rng=args.seed)
    train._check_rule(args)
    if rule is None:
        rule, average = train._make_optimizer(model, args), args.ema and vitnp.MovingAverage(model, args.ema)
    trainer = train.Trainer(model, rule, train_set or dataset(40, 1), dataset(20, 2), args, average)
    if folder is not None:
        folder.mkdir(exist_ok=True)
        trainer.begin(folder)
    return trainer


def resumed(path, **changes):
    checkpoint = vitnp.load_checkpoint(path)
    trainer = make(model=checkpoint.model, rule=checkpoint.optimizer, average=checkpoint.average, **changes)
    trainer.restore(path, checkpoint)
    return trainer


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder, other):
    for name in ("checkpoint.safetensors", "best.safetensors"):
        a, b = (vitnp.load_checkpoint(place / name) for place in (folder, other))
        np.testing.assert_array_equal(a.model.flat, b.model.flat)
        assert {**a.progress, "seconds": 0} == {**b.progress, "seconds": 0}
        if a.optimizer is not None:
            for vector in a.optimizer.state:
                np.testing.assert_array_equal(getattr(a.optimizer, vector), getattr(b.optimizer, vector))
            assert (a.optimizer.steps, a.optimizer.lr) == (b.optimizer.steps, b.optimizer.lr)
        if a.average is not None:
            np.testing.assert_array_equal(a.average.averaged.flat, b.average.averaged.flat)
            assert (a.average.updates, a.average.decay) == (b.average.updates, b.average.decay)
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.fixture(autouse=True, scope="module")
def without_pictures():
    """Pictures take longer than these runs, and are tested with the scripts."""
    with mock.patch.object(train.Trainer, "_draw_attention"), mock.patch.object(train, "_draw_curves"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert make(folder).run(0.0) == 0
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """Call it to have a signal come in the middle of a step, counted from 1."""

    def arrange(trainer, step, number=signal.SIGTERM):
        inner = trainer.step.step

        def step_and_signal(images, labels):
            if trainer.optimizer.steps + 1 == step:
                os.kill(os.getpid(), number)
            return inner(images, labels)

        monkeypatch.setattr(trainer.step, "step", step_and_signal)

    return arrange


# -- stopping and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, PER_EPOCH, PER_EPOCH + 1, LAST - 1, LAST])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_step_and_the_resumed_one_ends_alike(
    whole, tmp_path, stop_after, capsys, step, number, status
):
    trainer = make(tmp_path / "run")
    stop_after(trainer, step, number)
    assert trainer.run(0.0) == status
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert f"stopped after step {step} of {LAST}; saved {path}\nresume with: " in capsys.readouterr().out
    assert vitnp.load_checkpoint(path).optimizer.steps == step
    assert resumed(path).run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("which", [1, 2, 3, 4], ids=["epoch 1", "epoch 2", "epoch 3", "test"])
def test_a_signal_during_an_evaluation_ends_it_at_once_and_it_is_done_when_resumed(whole, tmp_path, monkeypatch, which):
    evaluate, calls, ended = train.evaluate, [], []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == which:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(30)
            ended.append(1)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(train, "evaluate", interrupted)
    assert make(tmp_path / "run").run(0.0) == 143
    assert not ended
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert vitnp.load_checkpoint(path).optimizer.steps == min(which, 3) * PER_EPOCH
    assert resumed(path).run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_signal_while_it_saves_waits_until_it_has(whole, tmp_path, monkeypatch):
    fsync = os.fsync
    trainer = make(tmp_path / "run")

    def interrupted(handle):
        monkeypatch.setattr(os, "fsync", fsync)
        os.kill(os.getpid(), signal.SIGTERM)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)  # at the end of the first epoch
    assert trainer.run(0.0) == 143
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert vitnp.load_checkpoint(path).optimizer.steps == PER_EPOCH + 1
    assert resumed(path).run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


def test_handlers_of_signals_are_as_before_after_a_run(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    make(tmp_path / "run").run(0.0)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_ends_the_process_at_once(monkeypatch):
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with Stop():
        os.kill(os.getpid(), signal.SIGINT)
        assert statuses == []
        os.kill(os.getpid(), signal.SIGTERM)
    assert statuses == [143]


@pytest.mark.parametrize("steps", range(LAST + 1))
def test_a_run_killed_after_any_step_goes_on_from_its_last_checkpoint(whole, tmp_path, monkeypatch, steps):
    class Killed(BaseException):
        """As by SIGKILL: nothing is saved, but all that was written to the file of metrics is there."""

    trainer = make(tmp_path / "run", save_every=0)
    one_step = trainer._one_step

    def step_or_die(images, labels):
        one_step(images, labels)
        if trainer.optimizer.steps > steps:
            raise Killed

    monkeypatch.setattr(trainer, "_one_step", step_or_die)
    with pytest.raises(Killed) if steps < LAST else nullcontext():
        trainer.run(0.0)
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert vitnp.load_checkpoint(path).optimizer.steps == steps
    assert resumed(path).run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_run_goes_on_from_the_predecessor_of_a_damaged_checkpoint(whole, tmp_path, stop_after):
    trainer = make(tmp_path / "run", save_every=0)
    stop_after(trainer, 6)
    trainer.run(0.0)
    path, previous = (tmp_path / "run" / name for name in (train.CHECKPOINT, train.PREVIOUS))
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(
        vitnp.CheckpointError, match=f"damaged; the one saved before it is {previous}: resume from that"
    ):
        load_run(path, "cpu")
    assert vitnp.load_checkpoint(previous).optimizer.steps == 5
    again = resumed(previous)
    assert vitnp.load_checkpoint(path).optimizer.steps == 5  # it is the last one now
    assert again.run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_damaged_checkpoint_without_a_predecessor_promises_none(tmp_path):
    (tmp_path / train.CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(vitnp.CheckpointError) as caught:
        load_run(tmp_path / train.CHECKPOINT, "cpu")
    assert "before it" not in str(caught.value)


def test_orphans_of_a_killed_run_are_removed_when_it_goes_on(tmp_path):
    make(tmp_path)
    orphans = [tmp_path / f".{name}.abc.tmp" for name in (train.CHECKPOINT, train.PREVIOUS, train.BEST)]
    for orphan in orphans:
        orphan.touch()
    resumed(tmp_path / train.CHECKPOINT)
    assert not any(orphan.exists() for orphan in orphans)


@pytest.mark.parametrize("part", ["training", "test"])
def test_other_images_are_refused_and_nothing_is_changed(tmp_path, part):
    make(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    checkpoint = vitnp.load_checkpoint(tmp_path / train.CHECKPOINT)
    trainer = make(train_set=dataset(40, 3 if part == "training" else 1))
    trainer.data["test"] = "0" * 64 if part == "test" else trainer.data["test"]
    with pytest.raises(vitnp.CheckpointError, match=f"the {part} set has SHA-256 .*, expected {make().data[part]}"):
        trainer.restore(tmp_path / train.CHECKPOINT, checkpoint)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_going_on_elsewhere_is_told(tmp_path, capsys):
    make(tmp_path)
    checkpoint = vitnp.load_checkpoint(tmp_path / train.CHECKPOINT)
    checkpoint.environment["numpy"] = "1.9.0"
    make(model=checkpoint.model, rule=checkpoint.optimizer).restore(tmp_path / train.CHECKPOINT, checkpoint)
    expected = f"results will agree to rounding, not bit for bit: numpy {np.__version__}, was 1.9.0"
    assert capsys.readouterr().err == f"notice: {expected}\n"


def test_going_on_in_the_same_place_is_not_told(tmp_path, capsys):
    make(tmp_path)
    resumed(tmp_path / train.CHECKPOINT)
    assert capsys.readouterr().err == ""


def test_metrics_that_are_gone_are_told(tmp_path, stop_after, capsys):
    trainer = make(tmp_path)
    stop_after(trainer, 3)
    trainer.run(0.0)
    (tmp_path / "metrics.jsonl").unlink()
    resumed(tmp_path / train.CHECKPOINT)
    assert "lacks 3 lines that the run had written" in capsys.readouterr().err


# -- probes -----------------------------------------------------------------------------------------------------------

PROBED = {"probe_every": 2, "probe_shots": 3, "epochs": 4}


def test_a_probe_is_taken_after_every_so_many_epochs_and_a_resumed_run_has_the_same(tmp_path, stop_after, capsys):
    make(tmp_path / "whole", **PROBED).run(0.0)
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "   probe " in line]
    found = [line for line in lines(tmp_path / "whole") if "probe_accuracy" in line]
    assert ([line["epoch"] for line in found], shown) == ([2, 4], ["2", "4"])
    assert {line["probe_shots"] for line in found} == {3}
    trainer = make(tmp_path / "run", **PROBED)
    stop_after(trainer, 2 * PER_EPOCH)
    trainer.run(0.0)
    assert resumed(tmp_path / "run" / train.CHECKPOINT, **PROBED).run(0.0) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_probe_s_strength_and_its_accuracy_come_from_different_halves_of_the_validation(tmp_path):
    trainer = make(tmp_path, **PROBED)
    found = trainer._probe()
    scale = {"mean": trainer.batches.mean, "std": trainer.batches.std}
    fit, held_out = dataset(40, 1).split(10, 0)
    few = fit.subset(vitnp.few_shot_indices(fit.labels, 3))
    held = vitnp.features(trainer.model, held_out.images, **scale)
    validation = held[::2], held_out.labels[::2]
    options = {"num_classes": 3, "validation": validation}
    probe = vitnp.linear_probe(vitnp.features(trainer.model, few.images, **scale), few.labels, **options)
    assert found["probe_strength"] == probe.strength
    assert found["probe_accuracy"] == probe.accuracy(held[1::2], held_out.labels[1::2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe_shots": 20}, "class 0 has .* images; expected at least 20"),
        ({"held_out": 1}, "--held-out is 1; --probe-every wants 2 or more"),
    ],
)
def test_what_no_probe_could_learn_from_is_told_before_the_training(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**{**PROBED, **changes})


# -- SGD and the moving average ---------------------------------------------------------------------------------------

BY_SGD = {"optimizer": "sgd", "lr": 0.3, "momentum": 0.8, "ema": 0.7}


@pytest.mark.parametrize("step", [2, PER_EPOCH, LAST])
def test_a_run_by_sgd_with_an_average_resumes_to_the_same_bits(tmp_path, stop_after, step):
    assert make(tmp_path / "whole", **BY_SGD).run(0.0) == 0
    trainer = make(tmp_path / "run", **BY_SGD)
    stop_after(trainer, step)
    assert trainer.run(0.0) == 143
    assert resumed(tmp_path / "run" / train.CHECKPOINT, **BY_SGD).run(0.0) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_with_an_average_that_is_what_is_judged_and_kept_as_the_best(tmp_path, monkeypatch):
    judged, evaluate = [], train.evaluate
    monkeypatch.setattr(
        train, "evaluate", lambda model, *rest, **more: judged.append(model) or evaluate(model, *rest, **more)
    )
    trainer = make(tmp_path, **BY_SGD)
    trainer.run(0.0)
    assert len(judged) == 4
    assert all(model is trainer.average.averaged for model in judged)
    last, best = (vitnp.load_checkpoint(tmp_path / name) for name in (train.CHECKPOINT, train.BEST))
    np.testing.assert_array_equal(last.average.averaged.flat, trainer.average.averaged.flat)
    np.testing.assert_array_equal(last.model.flat, trainer.model.flat)
    assert (last.average.updates, best.average) == (LAST, None)
    accuracies = [line["validation_accuracy"] for line in lines(tmp_path) if "epoch" in line]
    scale = {"mean": trainer.batches.mean, "std": trainer.batches.std}
    found = vitnp.evaluate(best.model, trainer.validation.images, trainer.validation.labels, **scale)
    assert found.accuracy == max(accuracies)
    used = vitnp.load_classifier(tmp_path / train.CHECKPOINT).model
    np.testing.assert_array_equal(used.flat, trainer.average.averaged.flat)
    assert not np.array_equal(used.flat, trainer.model.flat)


def test_a_run_in_micro_batches_is_that_of_whole_batches_to_rounding(tmp_path):
    ends = []
    for micro_batch in (None, 3):
        trainer = make(tmp_path / str(micro_batch), micro_batch=micro_batch, **BY_SGD)
        trainer.run(0.0)
        ends.append(trainer.model.flat)
    assert 0 < abs(ends[0] - ends[1]).max() < 1e-5


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_the_best_model_is_that_of_the_epoch_with_the_best_validation(tmp_path, monkeypatch):
    accuracies = iter([0.2, 0.9, 0.9, 0.5])
    flats = []

    def evaluated(self, dataset):
        flats.append(self.model.flat.copy())
        return 1.0, next(accuracies)

    monkeypatch.setattr(train.Trainer, "evaluate", evaluated)
    make(tmp_path).run(0.0)
    best = vitnp.load_checkpoint(tmp_path / train.BEST)
    np.testing.assert_array_equal(best.model.flat, flats[1])
    assert best.progress["best"] == {"epoch": 2, "accuracy": 0.9}
    assert best.optimizer is None
    assert vitnp.load_classifier(tmp_path / train.BEST).class_names == NAMES


def test_last_and_its_predecessor_are_one_save_apart(tmp_path, stop_after):
    trainer = make(tmp_path, save_every=0)
    stop_after(trainer, 7)
    trainer.run(0.0)
    steps = [vitnp.load_checkpoint(tmp_path / name).optimizer.steps for name in (train.CHECKPOINT, train.PREVIOUS)]
    assert steps == [7, 6]


@pytest.mark.parametrize(("save_every", "saves"), [(0, LAST + 3), (1e9, 3)])
def test_checkpoints_are_written_as_often_as_asked(tmp_path, monkeypatch, save_every, saves):
    counted = []
    save = train.save_checkpoint
    trainer = make(tmp_path, save_every=save_every)

    def count(path, *arguments, **options):
        counted.append(path.name)
        save(path, *arguments, **options)

    monkeypatch.setattr(train, "save_checkpoint", count)
    trainer.run(0.0)
    assert counted.count(train.CHECKPOINT) == saves


class FullDisk:
    """While it is full, nothing can be flushed to it."""

    def __init__(self, monkeypatch):
        self.full, fsync = False, os.fsync

        def refuse(handle):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        monkeypatch.setattr(os, "fsync", refuse)


@pytest.fixture
def disk(monkeypatch):
    return FullDisk(monkeypatch)


def test_a_disk_that_is_full_for_a_while_leaves_old_files_and_the_training_alive(whole, tmp_path, disk, capsys):
    trainer = make(tmp_path / "run", save_every=0)
    one_step, seen = trainer._one_step, []

    def step(images, labels):
        one_step(images, labels)
        disk.full = 3 <= trainer.optimizer.steps < 9
        seen.append(vitnp.load_checkpoint(tmp_path / "run" / train.CHECKPOINT).optimizer.steps)

    trainer._one_step = step
    assert trainer.run(0.0) == 0
    assert seen == [0, 1, 2, 2, 2, 2, 2, 2, 2, 9, 10, 11]
    said = capsys.readouterr().err
    assert "step 3 could not be saved (No space left on device), that of step 2 is the last: make room" in said
    assert said.count("training goes on") == 8  # six steps, two of them the last of their epochs
    assert "best.safetensors: not written (No space left on device)" in said
    ends = [vitnp.load_checkpoint(folder / train.CHECKPOINT) for folder in (tmp_path / "run", whole)]
    np.testing.assert_array_equal(ends[0].model.flat, ends[1].model.flat)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_disk_that_stays_full_ends_in_an_error_after_the_result(tmp_path, disk, capsys):
    trainer = make(tmp_path)
    disk.full = True
    with pytest.raises(OSError, match=f"step {LAST} could not be saved .* that of step 0 is the last"):
        trainer.run(0.0)
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy")
    assert vitnp.load_checkpoint(tmp_path / train.CHECKPOINT).optimizer.steps == 0


def test_metrics_that_are_damaged_are_told_after_the_result(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="curves.png needs the extra `plots`")
    trainer = make(tmp_path)
    trainer.metrics.path.write_bytes(b"garbage\n")
    damaged = pytest.raises(OSError, match=r"metrics\.jsonl is damaged, so there is no curves\.png")
    with damaged, mock.patch.object(train, "_draw_curves", DRAW_CURVES):
        trainer.run(0.0)
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy")


def test_a_disk_that_fills_up_after_the_last_epoch_ends_in_an_error_after_the_result(tmp_path, disk, capsys):
    trainer = make(tmp_path)
    evaluate = trainer.evaluate

    def evaluated(dataset):
        disk.full = dataset is trainer.test
        return evaluate(dataset)

    trainer.evaluate = evaluated
    with pytest.raises(OSError, match=r"not everything could be written \(No space left on device\): make room"):
        trainer.run(0.0)
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy")


def test_a_full_disk_when_a_signal_comes_says_which_step_is_saved(tmp_path, disk, stop_after):
    trainer = make(tmp_path)
    stop_after(trainer, 2)
    disk.full = True
    with pytest.raises(OSError, match=r"step 2 could not be saved .* that of step 0 is the last"):
        trainer.run(0.0)


def test_a_full_disk_at_the_beginning_is_an_error_before_the_training(tmp_path, disk):
    disk.full = True
    with pytest.raises(OSError, match="step 0 could not be saved"):
        make(tmp_path)


def test_a_folder_that_is_deleted_is_made_again(tmp_path):
    folder = tmp_path / "run"
    trainer = make(folder)
    one_step = trainer._one_step

    def step(images, labels):
        one_step(images, labels)
        if trainer.optimizer.steps == 6:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    trainer._one_step = step
    assert trainer.run(0.0) == 0
    assert vitnp.load_checkpoint(folder / train.CHECKPOINT).optimizer.steps == LAST
    assert [line["step"] for line in lines(folder) if "lr" in line] == list(range(7, LAST + 1))


# -- what is not finite -----------------------------------------------------------------------------------------------


def spoil(trainer, step, how):
    """Have `how(trainer, images)` done before a step, counted from 1; return the batches that were seen."""
    inner, seen = trainer.step.step, []

    def spoiled(images, labels):
        seen.append(images.copy())  # before it is spoiled
        if trainer.optimizer.steps + 1 == step:
            how(trainer, images)
        return inner(images, labels)

    trainer.step.step = spoiled
    return seen


def spoil_weight(trainer, images):
    trainer.model.blocks[0].mlp.fc1.weight[2, 3] = np.inf


def spoil_image(trainer, images):
    images[5, 1, 1, 0] = np.nan


def spoil_scale(trainer, images):
    trainer.model.blocks[0].mlp.fc2.bias[0] = 1e25


@pytest.mark.parametrize(
    ("how", "named", "saved"),
    [
        (spoil_weight, "the parameter blocks.0.mlp.fc1.weight", PER_EPOCH),
        (spoil_image, "the images, sample 5", 5),
        (spoil_scale, "the variance in norm, sample 0", 5),
    ],
)
def test_the_step_ends_the_run_with_the_first_bad_tensor_and_its_batch(tmp_path, how, named, saved):
    trainer = make(tmp_path, mixup=0.0, shift=0)
    batches = spoil(trainer, 6, how)
    with pytest.raises((FloatingPointError, ValueError)) as caught:
        trainer.run(0.0)
    where = f"its batch is in {tmp_path / train.FAILED}, the state of step {saved} in {tmp_path / train.CHECKPOINT}"
    assert str(caught.value).startswith("step 6: ")
    assert str(caught.value).endswith(f"; the first that is not finite is {named}; {where}")
    note = json.loads((tmp_path / train.FAILED).read_text())
    assert (note["step"], note["epoch"], note["first"]) == (6, 2, named)
    images = dataset(40, 1).images[note["training_images"]]
    scale = trainer.batches.mean, trainer.batches.std
    np.testing.assert_array_equal(train.normalize(images, *scale), batches[-1])
    loaded = vitnp.load_checkpoint(tmp_path / train.CHECKPOINT)
    assert loaded.optimizer.steps == saved
    assert np.isfinite(loaded.model.flat).all()


def test_a_resumed_run_comes_to_the_same_bad_step(tmp_path):
    trainer = make(tmp_path)
    spoil(trainer, 6, spoil_scale)
    messages = []
    with pytest.raises(FloatingPointError) as caught:
        trainer.run(0.0)
    messages.append(str(caught.value))
    with pytest.raises(FloatingPointError) as caught:
        resumed(tmp_path / train.CHECKPOINT).run(0.0)
    assert [*messages, str(caught.value)] == messages * 2


def test_a_loss_that_is_not_finite_on_a_gpu_ends_the_run_in_the_same_step(tmp_path):
    trainer = make(tmp_path)
    inner = trainer.step.step

    def as_on_a_gpu(images, labels):
        loss = inner(images, labels)
        trainer.step.norm = np.float32(np.inf if trainer.optimizer.steps == 2 else 1)
        return loss

    trainer.step.step = as_on_a_gpu
    with pytest.raises(FloatingPointError, match=r"step 2: the loss is \d.*, the gradient's norm inf"):
        trainer.run(0.0)


def test_a_validation_that_is_not_finite_is_an_error_and_no_accuracy(tmp_path):
    trainer = make(tmp_path)
    trainer.validation.images.setflags(write=True)
    end_epoch = trainer._end_epoch

    def spoil_first(epoch, stop):
        trainer.model.classifier.head.bias[0] = np.nan
        end_epoch(epoch, stop)

    trainer._end_epoch = spoil_first
    with pytest.raises(ValueError, match=f"after step {PER_EPOCH}, set 1: image 0: the network's output is NaN or inf"):
        trainer.run(0.0)
    assert np.isfinite(vitnp.load_checkpoint(tmp_path / train.CHECKPOINT).model.flat).all()


# -- before the data are loaded ---------------------------------------------------------------------------------------


def run_main(monkeypatch, options):
    """train.main with a command line, and with data that must not be asked for."""

    def load_data(args):
        raise AssertionError("data were loaded")

    fields = {"image_size": 6, "channels": 1, "num_classes": 3}
    monkeypatch.setattr(sys, "argv", ["train_toy.py", *options])
    parser = train.training_parser("A toy.", out=Path("never"), **RUN)
    return train.main(parser, load_data, lambda args: fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "4"], "dim 6 is not divisible by num_heads 4: use one of [1, 2, 3, 6]"),
        (["--patch-size", "4"], "image height 6 is not divisible by patch height 4: use an image of 4 or 8"),
        (["--lr", "nan"], "--lr is nan; it must be above 0, and finite"),
        (["--dropout", "1"], "dropout is 1.0; it must be at least 0 and below 1"),
        (["--shift", "6"], "--shift is 6; expected an integer from 0 to 5"),
        (["--epochs", "0"], "--epochs is 0; it must be 1 or more, and finite"),
        (["--warmup-epochs", "-1"], "--warmup-epochs is -1.0; it must be 0 or more, and finite"),
        (["--weight-decay", "inf"], "--weight-decay is inf; it must be 0 or more, and finite"),
        (["--probe-every", "0"], "--probe-every is 0; it must be 1 or more, and finite"),
        (["--clip-norm", "nan"], "--clip-norm is nan; it must be above 0"),
        (["--crop", "0"], "crop is 0.0; expected a number from 0.01 to 1"),
        (["--momentum", "0.5"], "--momentum is 0.5, which Adam has no place for: leave it out, or --optimizer sgd"),
        (["--optimizer", "sgd", "--momentum", "1"], "--momentum is 1.0; it must be at least 0 and below 1"),
        (["--ema", "1"], "--ema is 1.0; it must be above 0 and below 1"),
        (["--ema", "nan"], "--ema is nan; it must be above 0 and below 1"),
    ],
)
def test_a_mistake_in_the_options_is_told_before_the_data_are_loaded(monkeypatch, capsys, options, message):
    assert run_main(monkeypatch, options) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


OPTIONS = ("--decay", "--gelu", "--pool", "--pos-init", "--positions", "--pos-at", "--device", "--optimizer")


@pytest.mark.parametrize("option", OPTIONS)
def test_a_choice_that_is_none_is_told_with_the_choices(monkeypatch, capsys, option):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, [option, "other"])
    assert stop.value.code == 2
    assert "invalid choice: 'other' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ("learned", "stem", "sincos")),
        (["--positions", "learned-2d", "--pos-at", "shared"], ("learned-2d", "shared", "sincos")),
        (["--positions", "none"], ("none", "stem", "normal")),
        (["--positions", "relative"], ("relative", "stem", "normal")),
    ],
    ids=str,
)
def test_positions_of_the_command_line_reach_the_network(options, found):
    args = train.training_parser("", dim=8, depth=1, heads=2, mlp_dim=8, patch_size=7, pos_init="sincos").parse_args(
        options
    )
    config = train._make_config(args, {"image_size": 28, "channels": 1, "num_classes": 10})
    assert (config.positions, config.pos_at, config.pos_init) == found


def test_all_settings_that_differ_from_the_run_are_shown(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    make(tmp_path)
    path = tmp_path / train.CHECKPOINT
    assert run_main(monkeypatch, ["--resume", str(path), "--lr", "0.5", "--seed", "3", "--dim", "6"]) == 1
    expected = "--lr is 0.5, but the run to resume has 0.01; --seed is 3, but the run to resume has 0: leave them out"
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_a_run_that_another_process_trains_is_not_resumed(monkeypatch, tmp_path, capsys):
    make(tmp_path)
    with train._lock(tmp_path):
        assert run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT)]) == 1
    expected = f"another process ({os.getpid()}) trains in {tmp_path}: wait until it ends, or stop it"
    assert capsys.readouterr().err == f"error: {expected}\n"
