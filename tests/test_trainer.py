"""A training run loses nothing: through full disks, signals, kills, NaN, damaged files and other machines."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import strict_cupy

import vitnp
from vitnp import train
from vitnp.data import Dataset
from vitnp.durable import LockedError
from vitnp.options import check_rule, make_config, training_parser
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
SAVED = ("checkpoint.safetensors", "checkpoint.previous.safetensors", "best.safetensors", "backbone.safetensors")


def dataset(n, seed):
    """Images whose class can be learned."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(NAMES), n)
    images = rng.integers(0, 60, (n, 6, 9, 1), np.uint8) + 60 * labels[:, None, None, None].astype(np.uint8)
    return Dataset(images, labels, NAMES, f"set {seed}")


def make(folder=None, model=None, rule=None, average=None, train_set=None, **changes):
    """A trainer of a small run, begun in `folder`."""
    args = training_parser("A toy.", **{**RUN, **changes}).parse_args([])
    config = make_config(args, {"image_size": (6, 9), "channels": 1, "num_classes": len(NAMES)})
    model = model or vitnp.VisionTransformer(config, rng=args.seed)
    check_rule(args)
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
        for state in (a, b):  # what nothing else depends on
            state.progress["seconds"] = state.progress["settings"]["save_every"] = 0
        assert a.progress == b.progress
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


def test_a_signal_while_the_results_are_drawn_ends_it_at_once_and_they_are_drawn_when_resumed(whole, tmp_path):
    drawn = []

    def interrupted(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)
        drawn.append(1)

    with mock.patch.object(train.Trainer, "_draw_attention", interrupted):
        assert make(tmp_path / "run").run(0.0) == 143
    assert not drawn
    assert resumed(tmp_path / "run" / train.CHECKPOINT).run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_signal_while_a_run_begins_waits_for_its_first_checkpoint_and_step(whole, tmp_path, capsys):
    fsync = os.fsync

    def interrupted(handle):
        os.fsync = fsync
        os.kill(os.getpid(), signal.SIGINT)
        fsync(handle)

    with Stop() as stop, stop.later(), mock.patch.object(os, "fsync", interrupted):
        assert make(tmp_path / "run").run(0.0, stop) == 130
    path = tmp_path / "run" / train.CHECKPOINT
    assert f"stopped after step 1 of {LAST}; saved {path}\nresume with: " in capsys.readouterr().out
    assert resumed(path).run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


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
    real = tmp_path / "elsewhere.safetensors"
    path.rename(real)
    path.symlink_to(real)
    again = resumed(previous)
    assert vitnp.load_checkpoint(path).optimizer.steps == 5  # it is the last one now
    assert path.is_symlink()
    assert again.run(0.0) == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "the model of epoch 1, is not there any more"), (b"garbage", "damaged or cut short|no readable")],
)
def test_a_best_model_that_is_lost_is_told_and_replaced(tmp_path, monkeypatch, stop_after, capsys, content, told):
    trainer, accuracies = make(tmp_path), iter([0.9, 0.3, 0.5, 0.5])
    monkeypatch.setattr(train.Trainer, "evaluate", lambda self, dataset: (1.0, next(accuracies)))
    stop_after(trainer, PER_EPOCH + 1)
    trainer.run(0.0)
    (tmp_path / train.BEST).unlink()
    if content is not None:
        (tmp_path / train.BEST).write_bytes(content)
    assert resumed(tmp_path / train.CHECKPOINT).run(0.0) == 0
    said = capsys.readouterr().err
    assert re.search(rf"notice: {tmp_path / train.BEST}.*({told}).*: the best of the epochs to come takes its", said)
    assert vitnp.load_checkpoint(tmp_path / train.BEST).progress["best"] == {"epoch": 3, "accuracy": 0.5}


def test_seconds_between_saves_are_remembered_and_may_be_others_when_a_run_resumes(monkeypatch, tmp_path, stop_after):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    make(tmp_path, save_every=7)
    found = []
    monkeypatch.setattr(train.Trainer, "run", lambda self, started, stop: found.append(self.args.save_every) or 0)
    for options in ([], ["--save-every", "3"]):
        assert run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT), *options], load_toy) == 0
    assert found == [7, 3]


def test_a_bar_needs_no_standard_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", None)
    assert make(tmp_path).run(0.0) == 0


def test_a_large_sum_of_losses_is_no_damage(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    trainer = make(tmp_path)
    trainer.seen["loss"] = 1e22
    trainer.save()
    monkeypatch.setattr(train.Trainer, "run", lambda self, started, stop: 0)
    assert run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT)], load_toy) == 0


def test_a_damaged_checkpoint_without_a_predecessor_promises_none(tmp_path):
    (tmp_path / train.CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(vitnp.CheckpointError) as caught:
        load_run(tmp_path / train.CHECKPOINT, "cpu")
    assert "before it" not in str(caught.value)


def test_orphans_of_a_killed_run_are_removed_when_it_goes_on(tmp_path):
    make(tmp_path)
    orphans = [tmp_path / f".{name}.abc.tmp" for name in SAVED]
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


def test_metrics_that_the_run_did_not_write_are_refused_and_nothing_is_changed(tmp_path, stop_after):
    trainer = make(tmp_path, save_every=0)
    stop_after(trainer, 3)
    trainer.run(0.0)
    path = tmp_path / train.METRICS
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))) + b"{}\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in (train.CHECKPOINT, train.PREVIOUS):
        with pytest.raises(
            ValueError, match=r"metrics.jsonl: its first . lines have .*: to go on without .*, move the"
        ):
            resumed(tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_reach_the_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    events, save, flush = [], train.save_checkpoint, train.Metrics.flush
    trainer = make(tmp_path)
    monkeypatch.setattr(train, "save_checkpoint", lambda *a, **o: (events.append(a[0].name), save(*a, **o)))
    monkeypatch.setattr(train.Metrics, "flush", lambda metrics: (events.append("metrics"), flush(metrics)))
    trainer.save()
    assert events == ["metrics", train.CHECKPOINT]


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

    def noted(model, *data, **options):
        judged.append((model, model.flat.copy()))
        return evaluate(model, *data, **options)

    monkeypatch.setattr(train, "evaluate", noted)
    trainer = make(tmp_path, **BY_SGD)
    trainer.run(0.0)
    assert len(judged) == 4
    assert all(model is trainer.average.averaged for model, _ in judged)
    last, best = (vitnp.load_checkpoint(tmp_path / name) for name in (train.CHECKPOINT, train.BEST))
    np.testing.assert_array_equal(last.average.averaged.flat, trainer.average.averaged.flat)
    np.testing.assert_array_equal(last.model.flat, trainer.model.flat)
    np.testing.assert_array_equal(best.model.flat, judged[trainer.best["epoch"] - 1][1])
    assert (last.average.updates, best.average) == (LAST, None)
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


def test_the_best_model_is_written_before_the_checkpoint_that_knows_of_it(tmp_path, monkeypatch):
    """Else a run killed in between would go on after that epoch, and never write it."""
    events, save = [], train.save_checkpoint
    trainer = make(tmp_path)
    monkeypatch.setattr(train, "save_checkpoint", lambda *a, **o: (events.append(a[0].name), save(*a, **o)))
    monkeypatch.setattr(train.Trainer, "evaluate", lambda self, dataset: (1.0, self.optimizer.steps / LAST))
    trainer.run(0.0)
    assert events == [train.BEST, train.CHECKPOINT] * 3


def best_at(trainer, monkeypatch, disk, accuracies, full_at):
    """Have these accuracies found, and no room for the best model in one of the epochs; return the models."""
    accuracies, flats = iter(accuracies), []
    save = train.save_checkpoint

    def evaluated(self, dataset):
        flats.append(self.model.flat.copy())
        return 1.0, next(accuracies)

    def save_or_not(path, *arguments, **options):
        disk.full = path.name == train.BEST and len(flats) in full_at
        try:
            save(path, *arguments, **options)
        finally:
            disk.full = False

    monkeypatch.setattr(train.Trainer, "evaluate", evaluated)
    monkeypatch.setattr(train, "save_checkpoint", save_or_not)
    return flats


def test_a_best_model_that_found_no_room_is_written_as_soon_as_there_is_some(tmp_path, monkeypatch, disk):
    trainer = make(tmp_path)
    flats = best_at(trainer, monkeypatch, disk, [0.2, 0.9, 0.5, 0.5], full_at=[2])
    write_results, kept = trainer._write_results, []

    def look_and_write(*arguments, **options):
        kept.append(vitnp.load_checkpoint(tmp_path / train.BEST).progress["best"]["epoch"])
        return write_results(*arguments, **options)

    trainer._write_results = look_and_write
    assert trainer.run(0.0) == 0
    assert kept == [2]  # with the checkpoint of the third epoch already
    best = vitnp.load_checkpoint(tmp_path / train.BEST)
    np.testing.assert_array_equal(best.model.flat, flats[1])
    assert best.progress["best"] == {"epoch": 2, "accuracy": 0.9}
    assert vitnp.load_checkpoint(tmp_path / train.CHECKPOINT).progress["best"] == {"epoch": 2, "accuracy": 0.9}


def test_while_the_best_model_finds_no_room_a_checkpoint_says_which_one_is_on_the_disk(tmp_path, monkeypatch, disk):
    trainer = make(tmp_path)
    last = rf"step {LAST} could not be saved \(best.safetensors could not be written: .*that of step {PER_EPOCH} is the"
    with monkeypatch.context() as meanwhile:
        flats = best_at(trainer, meanwhile, disk, [0.2, 0.9, 0.5, 0.5], full_at=[2, 3, 4])
        with pytest.raises(OSError, match=last):
            trainer.run(0.0)
    for name in (train.CHECKPOINT, train.BEST):
        assert vitnp.load_checkpoint(tmp_path / name).progress["best"] == {"epoch": 1, "accuracy": 0.2}
    assert vitnp.load_checkpoint(tmp_path / train.CHECKPOINT).optimizer.steps == PER_EPOCH
    best_at(again := resumed(tmp_path / train.CHECKPOINT), monkeypatch, disk, [0.9, 0.5, 0.5], full_at=[])
    assert again.run(0.0) == 0
    best = vitnp.load_checkpoint(tmp_path / train.BEST)
    assert best.progress["best"] == {"epoch": 2, "accuracy": 0.9}
    np.testing.assert_array_equal(best.model.flat, flats[1])


def test_a_worse_model_takes_no_place_of_one_that_waits_for_room(tmp_path, monkeypatch, disk):
    trainer = make(tmp_path)
    flats = best_at(trainer, monkeypatch, disk, [0.2, 0.9, 0.8, 0.5], full_at=[2, 3])
    assert trainer.run(0.0) == 0
    np.testing.assert_array_equal(vitnp.load_checkpoint(tmp_path / train.BEST).model.flat, flats[1])


def test_seconds_count_from_the_last_save_and_from_an_attempt_at_one(tmp_path, monkeypatch, disk):
    clock, at = [0.0], []
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    trainer = make(tmp_path, save_every=10)
    one_step, save = trainer._one_step, trainer.save

    def step(images, labels):
        one_step(images, labels)
        clock[0] += 6

    def note():
        at.append(trainer.optimizer.steps)
        save()

    trainer._one_step, trainer.save = step, note
    disk.full = True
    with pytest.raises(OSError, match="could not be saved"):
        trainer.run(0.0)
    assert at == [2, 4, 4, 6, 8, 8, 10, 12, 12, 12]  # every second step, after each epoch, and at the end


def test_a_resumed_run_does_not_save_at_once(tmp_path, stop_after, monkeypatch):
    trainer = make(tmp_path)
    stop_after(trainer, 1)
    trainer.run(0.0)
    again, saved = resumed(tmp_path / train.CHECKPOINT), []
    monkeypatch.setattr(again, "save", lambda: saved.append(again.optimizer.steps))
    again.run(0.0)
    assert saved[0] == PER_EPOCH


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
    assert "(best.safetensors could not be written: No space left on device), that of step 2 is the last" in said
    assert_same_run(tmp_path / "run", whole)


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
    with pytest.raises(
        OSError, match=r"step 0 could not be saved \(No space left on device\), none is saved yet: make"
    ):
        make(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_goes_to_a_full_disk_changes_nothing(whole, tmp_path, monkeypatch, disk):
    with open("/dev/full", "w") as out, open("/dev/full", "w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        trainer = make(tmp_path / "run", save_every=0)
        one_step = trainer._one_step

        def step(images, labels):
            one_step(images, labels)
            disk.full = trainer.optimizer.steps == 3  # so that there is a warning to print, too

        trainer._one_step = step
        assert trainer.run(0.0) == 0
        for file in (out, err):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # or it could not be closed
    assert_same_run(tmp_path / "run", whole)


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


def test_an_update_that_is_not_finite_ends_the_run_in_its_own_step_without_a_warning(tmp_path):
    trainer = make(tmp_path, lr=1e39, warmup_epochs=0)
    with pytest.raises(FloatingPointError) as caught:
        trainer.run(0.0)
    first = "the parameter patch_embed.weight"
    assert str(caught.value).startswith(f"step 1: the step has made {first} NaN or infinity: lower the learning rate; ")
    assert str(caught.value).endswith(f"the state of step 0 in {tmp_path / train.CHECKPOINT}")
    note = json.loads((tmp_path / train.FAILED).read_text())
    assert (note["step"], note["first"]) == (1, first)
    assert vitnp.load_checkpoint(tmp_path / train.CHECKPOINT).optimizer.steps == 0


def test_a_state_that_cannot_be_saved_for_its_numbers_ends_the_run_with_the_step_and_the_tensor(tmp_path):
    """On a GPU a step does not look at what its update made, but no checkpoint takes it."""
    trainer = make(tmp_path, save_every=0)
    one_step = trainer._one_step

    def step(images, labels):
        one_step(images, labels)
        if trainer.optimizer.steps == 3:
            trainer.model.classifier.head.bias[1] = np.nan

    trainer._one_step = step
    with pytest.raises(
        ValueError, match=r"step 3: head.bias holds NaN or infinity: .*; its batch is in .*, the state of"
    ):
        trainer.run(0.0)
    note = json.loads((tmp_path / train.FAILED).read_text())
    assert (note["step"], note["first"]) == (3, "the parameter head.bias")
    assert vitnp.load_checkpoint(tmp_path / train.CHECKPOINT).optimizer.steps == 2


def test_the_note_of_a_failed_step_goes_when_the_run_has_ended_well(tmp_path):
    trainer = make(tmp_path)
    spoil(trainer, 6, spoil_image)
    with pytest.raises(ValueError, match="step 6"):
        trainer.run(0.0)
    assert (tmp_path / train.FAILED).exists()
    assert resumed(tmp_path / train.CHECKPOINT).run(0.0) == 0
    assert not (tmp_path / train.FAILED).exists()


def test_a_warm_up_longer_than_any_run_is_half_of_it(tmp_path):
    rates = [[make(warmup_epochs=epochs)._rate(step) for step in range(LAST)] for epochs in (1e308, 2.0)]
    assert rates[0] == rates[1]


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


def test_a_loss_that_is_not_finite_on_a_gpu_ends_the_run_in_the_same_step(tmp_path, monkeypatch):
    def repeat(*arguments, **options):
        raise AssertionError("a pass with other parameters than the step's was looked at")

    monkeypatch.setattr(train, "first_not_finite", repeat)
    trainer = make(tmp_path)
    inner = trainer.step.step

    def as_on_a_gpu(images, labels):
        loss = inner(images, labels)
        trainer.step.norm = np.float32(np.inf if trainer.optimizer.steps == 2 else 1)
        return loss

    trainer.step.step = as_on_a_gpu
    with pytest.raises(FloatingPointError, match=r"step 2: the loss is \d.*, the gradient's norm inf"):
        trainer.run(0.0)
    note = json.loads((tmp_path / train.FAILED).read_text())
    assert (note["step"], note["first"]) == (2, None)


def run_on(device, folder):
    trainer = make(folder, make().model.to_device(device), ema=0.9, clip_norm=1.0, device=device, shards=1)
    assert trainer.run(0.0) == 0
    return lines(folder)


def test_a_run_on_any_device_finds_what_one_on_a_cpu_does(tmp_path, backend):
    truth, found = run_on("cpu", tmp_path / "there"), run_on(backend.device, tmp_path / "here")
    for there, here in zip(truth, found, strict=True):
        assert here == pytest.approx(there, rel=1e-6)
    before_the_last_epoch = tmp_path / "here" / train.PREVIOUS
    checkpoint = vitnp.load_checkpoint(before_the_last_epoch, backend.device)
    assert checkpoint.optimizer.steps == LAST - PER_EPOCH
    learned = {"model": checkpoint.model, "rule": checkpoint.optimizer, "average": checkpoint.average}
    trainer = make(**learned, ema=0.9, clip_norm=1.0, device=backend.device, shards=1)
    trainer.restore(before_the_last_epoch, checkpoint)
    assert trainer.run(0.0) == 0
    for first, again in zip(found, lines(tmp_path / "here"), strict=True):
        assert again == pytest.approx(first, rel=1e-6)


def test_a_run_waits_for_its_gpu_once_a_step(tmp_path, double, monkeypatch):
    waits, one_step = [], train.Trainer._one_step

    def counted(trainer, images, labels):
        with strict_cupy.count_syncs() as syncs:
            one_step(trainer, images, labels)
        waits.append(len(syncs))

    monkeypatch.setattr(train.Trainer, "_one_step", counted)
    run_on(double.device, tmp_path)
    assert waits == [1] * LAST


def test_a_run_that_leaves_its_gpu_for_a_cpu_is_told(tmp_path, double, capsys):
    make(tmp_path, make().model.to_device(double.device), device=double.device)
    assert resumed(tmp_path / train.CHECKPOINT).run(0.0) == 0
    said = r"notice: results will agree to rounding, not bit for bit: device cpu, was strict double, CuPy \S+\n"
    assert re.match(said, capsys.readouterr().err)


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


def no_data(args):
    raise AssertionError("data were loaded")


def run_main(monkeypatch, options, load_data=no_data):
    """train.main with a command line, and with data that must not be asked for unless there are some."""
    fields = {"image_size": (6, 9), "channels": 1, "num_classes": 3}
    monkeypatch.setattr(sys, "argv", ["train_toy.py", *options])
    parser = training_parser("A toy.", out=Path("never"), **RUN)
    return train.main(parser, load_data, lambda args: fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "4"], "dim 6 is not divisible by num_heads 4: use one of [1, 2, 3, 6]"),
        (
            ["--patch-size", "4"],
            "image height 6 is not divisible by patch height 4: use an image of 4 or 8, or another patch_size",
        ),
        (["--lr", "nan"], "--lr is nan; it must be above 0, and finite"),
        (["--dropout", "1"], "dropout is 1.0; it must be at least 0 and below 1"),
        (["--shift", "6"], "--shift is 6; expected an integer from 0 to 5"),
        (["--epochs", "0"], "--epochs is 0; it must be 1 or more, and finite"),
        (["--warmup-epochs", "-1"], "--warmup-epochs is -1.0; it must be 0 or more, and finite"),
        (["--weight-decay", "inf"], "--weight-decay is inf; it must be 0 or more, and finite"),
        (["--probe-every", "0"], "--probe-every is 0; it must be 1 or more, and finite"),
        (["--probe-every", "1", "--probe-shots", "-3"], "--probe-shots is -3; it must be 1 or more, and finite"),
        (["--probe-every", "1", "--held-out", "1"], "--held-out is 1; --probe-every wants 2 or more"),
        (["--clip-norm", "nan"], "--clip-norm is nan; it must be above 0"),
        (["--shards", "100000"], "--shards is 100000; it must be at most the 8 images of a batch"),
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
    args = training_parser("", dim=8, depth=1, heads=2, mlp_dim=8, patch_size=7, pos_init="sincos").parse_args(options)
    config = make_config(args, {"image_size": 28, "channels": 1, "num_classes": 10})
    assert (config.positions, config.pos_at, config.pos_init) == found


def test_what_later_papers_added_reaches_the_network():
    options = ["--stochastic-depth", "0.1", "--layer-scale", "1e-3", "--registers", "4", "--qk-norm"]
    sizes = {"dim": 8, "depth": 2, "heads": 2, "mlp_dim": 8, "patch_size": 7}
    found = []
    for given in ([], options):
        args = training_parser("", **sizes).parse_args(given)
        config = make_config(args, {"image_size": 28, "channels": 1, "num_classes": 10})
        found.append((config.stochastic_depth, config.layer_scale, config.registers, config.qk_norm))
    assert found == [(0.0, None, 0, False), (0.1, 1e-3, 4, True)]


@pytest.mark.parametrize(("text", "blocks"), [("1,2", (1, 2)), ("", ())])
def test_a_stem_and_a_layer_before_the_head_reach_the_network_and_its_run_s_settings(text, blocks):
    sizes = {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "patch_size": 1}
    options = ["--stem-blocks", text, "--stem-width", "0.5", "--representation-size", "12"]
    args = training_parser("", **sizes).parse_args(options)
    config = make_config(args, {"image_size": 32, "channels": 1, "num_classes": 10})
    assert (config.stem_blocks, config.stem_width, config.representation_size) == (blocks, 0.5, 12)
    assert json.loads(json.dumps(args.stem_blocks)) == args.stem_blocks  # or a run that resumes would differ
    assert vitnp.VisionTransformer(config).stem is not None


def test_a_width_without_a_stem_is_refused():
    args = training_parser("", dim=8, depth=1, heads=2, mlp_dim=8, patch_size=7).parse_args(["--stem-width", "2"])
    with pytest.raises(ValueError, match=r"--stem-width is 2\.0, but there is no stem"):
        make_config(args, {"image_size": 28, "channels": 1, "num_classes": 10})


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


@pytest.mark.parametrize("value", ["nan", "-5", "inf"])
def test_options_of_a_run_that_resumes_are_checked_too(monkeypatch, tmp_path, capsys, value):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    make(tmp_path)
    assert run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT), "--save-every", value]) == 1
    expected = f"error: --save-every is {float(value)}; it must be 0 or more, and finite\n"
    assert capsys.readouterr().err == expected


def test_a_run_resumes_in_its_own_folder_and_no_other(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    make(tmp_path)
    assert run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT), "--out", "elsewhere"]) == 1
    expected = "--out is elsewhere, but a run resumes in its own folder: leave it out"
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.parametrize("given", ["--resume=", "--resume=."])
def test_a_folder_to_resume_is_named_with_the_file_that_it_may_hold(monkeypatch, tmp_path, capsys, given):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, [given]) == 1
    expected = "--resume is ., a folder; expected a checkpoint, as checkpoint.safetensors"
    assert capsys.readouterr().err == f"error: {expected}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [".", ".."])
def test_a_folder_to_which_no_number_can_be_added_is_told(monkeypatch, tmp_path, folder):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    Path(folder, train.METRICS).touch()
    with pytest.raises(ValueError, match=f"--out is {folder}, which holds a run already: name another folder"):
        train._claim_folder(Path(folder))


def test_a_folder_where_nothing_can_be_written_is_told(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        OSError, match=r"--out is .*run, where nothing can be written \(Permission denied\): name another"
    ):
        train._claim_folder(tmp_path / "run")


# -- before the first step --------------------------------------------------------------------------------------------


def load_toy(args):
    return dataset(40, 1), dataset(20, 2)


def test_a_run_that_finds_no_room_to_begin_leaves_no_folder(monkeypatch, tmp_path, capsys, disk):
    disk.full = True
    assert run_main(monkeypatch, ["--out", str(tmp_path / "new")], load_toy) == 1
    assert "could not be saved (No space left on device), none is saved yet: make room" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [None, Path("a folder")])
def test_a_stopped_run_says_how_it_resumes_with_its_data(monkeypatch, tmp_path, capsys, stop_after, data):
    trainer = make(tmp_path)
    trainer.args.data = data
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    stop_after(trainer, 1)
    trainer.run(0.0)
    command = [sys.executable, "train_toy.py", "--resume", str(tmp_path / train.CHECKPOINT)]
    command += [] if data is None else ["--data", "a folder"]
    assert capsys.readouterr().out.splitlines()[-1] == f"resume with: {shlex.join(command)}"


def test_a_resumed_run_that_trains_the_head_alone_still_does(monkeypatch, tmp_path):
    def main(*options):
        monkeypatch.setattr(sys, "argv", ["train_toy.py", *map(str, options)])
        parser = training_parser("A toy.", **{**RUN, "weight_decay": 0.0})
        parser.add_argument("--freeze", action="store_true")
        return train.main(parser, load_toy, lambda args: {"image_size": (6, 9), "channels": 1, "num_classes": 3})

    assert main("--freeze", "--out", tmp_path / "whole") == 0
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "whole" / train.PREVIOUS, tmp_path / "again" / train.CHECKPOINT)
    assert main("--resume", tmp_path / "again" / train.CHECKPOINT) == 0
    found, truth = (vitnp.load_checkpoint(tmp_path / name / train.CHECKPOINT).model for name in ("again", "whole"))
    start = vitnp.load_checkpoint(tmp_path / "whole" / train.PREVIOUS).model.parameters()
    changed = {name for name, p in found.parameters().items() if not np.array_equal(p, start[name])}
    assert changed == {"head.weight", "head.bias"}
    np.testing.assert_array_equal(found.flat, truth.flat)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_data_are_loaded_ends_it_at_once_and_leaves_nothing(
    monkeypatch, tmp_path, capsys, number, status
):
    def interrupted(args):
        os.kill(os.getpid(), number)
        threading.Event().wait(30)
        raise AssertionError("it went on")

    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    make(tmp_path)
    for options in (["--out", str(tmp_path / "new")], ["--resume", str(tmp_path / train.CHECKPOINT)]):
        assert run_main(monkeypatch, options, interrupted) == status
        assert capsys.readouterr().err == "interrupted\n"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in before} | {train.PREVIOUS}


def test_a_signal_while_a_run_is_restored_waits_for_the_next_step(whole, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    make(tmp_path)

    def interrupted(path):
        if path.name == train.CHECKPOINT:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(train, "remove_orphans", interrupted):
        assert run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT)], load_toy) == 143
    assert "stopped after step 1 of 12; saved" in capsys.readouterr().out
    assert run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT)], load_toy) == 0
    assert vitnp.load_checkpoint(tmp_path / train.CHECKPOINT).optimizer.steps == LAST
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("what", ["a new run", "a resumed one"])
def test_nobody_else_trains_in_the_folder_of_a_run(monkeypatch, tmp_path, what):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    refused = []

    def look(trainer, started, stop):
        with pytest.raises(LockedError) as caught, train._lock(trainer.folder):
            pass
        refused.append(str(caught.value))
        return 0

    monkeypatch.setattr(train.Trainer, "run", look)
    if what == "a new run":
        run_main(monkeypatch, ["--out", str(tmp_path)], load_toy)
    else:
        make(tmp_path)
        run_main(monkeypatch, ["--resume", str(tmp_path / train.CHECKPOINT)], load_toy)
    assert len(refused) == 1


def test_a_folder_that_is_made_again_is_held_again(monkeypatch, tmp_path, capsys):
    """A folder takes its lock along when it is moved, and the run goes on where it was."""
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    one_step, refused, folder = train.Trainer._one_step, [], tmp_path / "run"

    def step(trainer, images, labels):
        if trainer.optimizer.steps == 2:
            folder.rename(tmp_path / "moved")
        elif trainer.optimizer.steps == 4:
            with pytest.raises(LockedError) as caught, train._lock(folder):
                pass
            refused.append(str(caught.value))
        one_step(trainer, images, labels)

    monkeypatch.setattr(train.Trainer, "_one_step", step)
    assert run_main(monkeypatch, ["--out", str(folder), "--save-every", "0"], load_toy) == 0
    assert refused == [f"another process ({os.getpid()}) trains in {folder}: wait until it ends, or stop it"]
    assert vitnp.load_checkpoint(folder / train.CHECKPOINT).optimizer.steps == LAST
    assert (folder / train.BEST).exists()
    assert not (folder / ".lock").exists()
    said = capsys.readouterr().err
    assert said == f"notice: {folder} was moved or deleted, with all that the run had written; it is made again\n"


def test_a_folder_that_goes_after_the_last_epoch_is_made_again_with_its_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    evaluate, folder = train.Trainer.evaluate, tmp_path / "run"

    def evaluated(trainer, dataset):
        if dataset is trainer.test:
            folder.rename(tmp_path / "moved")
        return evaluate(trainer, dataset)

    monkeypatch.setattr(train.Trainer, "evaluate", evaluated)
    assert run_main(monkeypatch, ["--out", str(folder)], load_toy) == 0
    assert vitnp.load_checkpoint(folder / train.CHECKPOINT).optimizer.steps == LAST


def test_a_lock_that_somebody_removed_is_taken_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    one_step, folder = train.Trainer._one_step, tmp_path / "run"

    def step(trainer, images, labels):
        one_step(trainer, images, labels)
        if trainer.optimizer.steps == 2:
            (folder / ".lock").unlink()
        elif trainer.optimizer.steps == 4:
            assert (folder / ".lock").read_text() == str(os.getpid())

    monkeypatch.setattr(train.Trainer, "_one_step", step)
    assert run_main(monkeypatch, ["--out", str(folder), "--save-every", "0"], load_toy) == 0
    assert capsys.readouterr().err == ""
    assert len(lines(folder)) == LAST + LAST // PER_EPOCH + 1


@pytest.mark.parametrize("holder", ["another process", "nobody any more"])
def test_a_run_does_not_write_where_another_has_taken_its_place(monkeypatch, tmp_path, capsys, holder):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    one_step, folder, locks = train.Trainer._one_step, tmp_path / "run", ExitStack()

    def step(trainer, images, labels):
        if trainer.optimizer.steps == 2:
            folder.rename(tmp_path / "moved")
            folder.mkdir()
            if holder == "another process":
                locks.enter_context(train._lock(folder))
        one_step(trainer, images, labels)

    monkeypatch.setattr(train.Trainer, "_one_step", step)
    with locks:
        assert run_main(monkeypatch, ["--out", str(folder), "--save-every", "0"], load_toy) == 1
        assert [path.name for path in folder.iterdir()] == [".lock"] * (holder == "another process")
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"could not be saved ({folder} was moved or deleted, and what has its name now is not this run's" in said
    assert said.endswith("that of step 2 is the last")
    assert vitnp.load_checkpoint(tmp_path / "moved" / train.CHECKPOINT).optimizer.steps == 2


def test_another_run_s_best_model_is_told_and_replaced(tmp_path, monkeypatch, stop_after, capsys):
    trainer, accuracies = make(tmp_path / "run"), iter([0.9, 0.3, 0.5, 0.5])
    monkeypatch.setattr(train.Trainer, "evaluate", lambda self, dataset: (1.0, next(accuracies)))
    stop_after(trainer, PER_EPOCH + 1)
    trainer.run(0.0)
    best = tmp_path / "run" / train.BEST
    found = vitnp.load_checkpoint(best)
    vitnp.save_checkpoint(best, found.model, progress={**found.progress, "mean": [0.0]})
    assert resumed(tmp_path / "run" / train.CHECKPOINT).run(0.0) == 0
    assert (
        f"notice: {best} is not this run's: the best of the epochs to come takes its place" in capsys.readouterr().err
    )
    assert vitnp.load_checkpoint(best).progress["best"] == {"epoch": 3, "accuracy": 0.5}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize("name", SAVED)
def test_two_folders_that_share_a_file_by_a_link_are_not_trained_in_at_once(monkeypatch, tmp_path, capsys, name):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    for folder in ("one", "two"):
        make(tmp_path / folder)
    (tmp_path / "two" / name).unlink(missing_ok=True)
    (tmp_path / "two" / name).symlink_to(tmp_path / "one" / name)
    (tmp_path / "one" / name).touch()
    with train._lock(tmp_path / "one"):
        assert run_main(monkeypatch, ["--resume", str(tmp_path / "two" / train.CHECKPOINT)]) == 1
    expected = f"another process ({os.getpid()}) trains in {tmp_path / 'one'}: wait until it ends, or stop it"
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen": {"loss": 0}}, r"seen of its run is {'loss': 0}, which no run says: damaged, or of another version"),
        ({"seen": {"loss": 0, "correct": -1, "images": 0}}, "seen of its run is"),
        ({"seen": {"loss": 0, "correct": 0, "images": 0.5}}, "seen of its run is"),
        ({"seen": []}, "seen of its run is"),
        ({"settings": []}, r"settings of its run is \[\]"),
        ({"settings": {}}, "says nothing of --attention-dropout, --batch-size, .*: damaged, or of another version"),
        ({"data": []}, r"data of its run is \[\]"),
        ({"data": {"training": "a"}}, "data of its run is"),
        ({"metrics": -5}, "metrics of its run is -5"),
        ({"metrics": {"lines": -5, "sha256": ""}}, "metrics of its run is"),
        ({"metrics": {"lines": 5}}, "metrics of its run is"),
        ({"images": True}, "images of its run is True"),
        ({"images": 10**30}, "images of its run is"),
        ({"seconds": -1}, "seconds of its run is -1"),
        ({"best": {"epoch": 1}}, "best of its run is"),
        ({"best": {"epoch": 1, "accuracy": "x"}}, "best of its run is"),
        ({"script": 5}, "script of its run is 5"),
        ({"script": "train_other.py"}, "a run of train_other.py, which alone can resume it"),
    ],
)
def test_a_run_that_says_what_no_run_says_is_not_resumed(monkeypatch, tmp_path, capsys, change, message):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    trainer, path = make(tmp_path), tmp_path / train.CHECKPOINT
    vitnp.save_checkpoint(path, trainer.model, trainer.optimizer, {**trainer._progress(), **change})
    assert run_main(monkeypatch, ["--resume", str(path)]) == 1
    assert re.fullmatch(f"error: {path}: {message}.*\n", capsys.readouterr().err)


def test_a_setting_that_is_no_number_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["train_toy.py"])
    trainer, path = make(tmp_path), tmp_path / train.CHECKPOINT
    progress = trainer._progress()
    progress["settings"]["epochs"] = "three"
    vitnp.save_checkpoint(path, trainer.model, trainer.optimizer, progress)
    assert run_main(monkeypatch, ["--resume", str(path)]) == 1
    assert capsys.readouterr().err == "error: --epochs is 'three'; it must be a number\n"
