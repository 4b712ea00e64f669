"""Pre-training by masked patches runs, stops and goes on as training does, and leaves a backbone that others read."""

import dataclasses
import json
import os
import shutil
import signal
from unittest import mock

import numpy as np
import pytest
from helpers import same_bits

import vitnp
from vitnp import train
from vitnp.data import Augmentation, Batches, DataError, Dataset, normalize
from vitnp.options import training_parser
from vitnp.pretraining import MaskedTrainer, masked_model

RUN = {
    "patch_size": 3,
    "dim": 6,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 7,
    "dropout": 0.2,
    "epochs": 3,
    "batch_size": 8,
    "lr": 0.01,
    "warmup_epochs": 0.5,
    "weight_decay": 0.05,
    "label_smoothing": 0.0,
    "shift": 1,
    "held_out": 10,
    "shards": 2,
    "save_every": 1e9,
    "probe_every": 1,
    "probe_shots": 3,
}
NAMES = ("plain", "striped", "dotted")
CONFIG = {"image_size": (6, 9), "channels": 1}


def dataset(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(NAMES))
    images = rng.integers(0, 60, (count, 6, 9, 1), np.uint8) + 60 * labels[:, None, None, None].astype(np.uint8)
    return Dataset(images, labels, NAMES, f"set {seed}")


def make(folder, checkpoint=None, **changes):
    args = training_parser("A toy.", **{**RUN, **changes}).parse_args([])
    model = masked_model(args, CONFIG)
    optimizer = vitnp.Adam(model, args.lr, weight_decay=args.weight_decay)
    average = None if args.ema is None else vitnp.MovingAverage(model, args.ema)
    if checkpoint is not None:
        model, optimizer, average = checkpoint.model, checkpoint.optimizer, checkpoint.average
    trainer = MaskedTrainer(model, optimizer, dataset(40, 1), dataset(20, 2), args, average)
    if checkpoint is None:
        folder.mkdir()
        trainer.begin(folder)
    else:
        trainer.restore(folder / train.CHECKPOINT, checkpoint)
    return trainer


@pytest.fixture(autouse=True, scope="module")
def without_curves():
    with mock.patch.object(train, "_draw_curves"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert make(folder).run(0.0) == 0
    return folder


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(whole, tmp_path, monkeypatch, capsys):
    trainer = make(tmp_path / "run")
    inner = trainer.step.step

    def step_and_signal(images, labels):
        if trainer.optimizer.steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(images, labels)

    monkeypatch.setattr(trainer.step, "step", step_and_signal)
    assert trainer.run(0.0) == 143
    checkpoint = vitnp.load_checkpoint(tmp_path / "run" / train.CHECKPOINT)
    assert checkpoint.optimizer.steps == 6
    assert make(tmp_path / "run", checkpoint).run(0.0) == 0
    for name in (train.CHECKPOINT, train.BACKBONE, train.BEST):
        found, truth = (vitnp.load_checkpoint(folder / name) for folder in (tmp_path / "run", whole))
        np.testing.assert_array_equal(found.model.flat, truth.model.flat)
        assert {**found.progress, "seconds": 0} == {**truth.progress, "seconds": 0}
    assert (tmp_path / "run" / train.METRICS).read_bytes() == (whole / train.METRICS).read_bytes()


def test_accuracies_are_shares_of_corrupted_patches(whole):
    rows = [json.loads(line) for line in (whole / train.METRICS).read_text().splitlines()]
    sizes = [8, 8, 8, 6] * 3  # images in a batch, each with three corrupted patches of six
    right = [3 * size * row["accuracy"] for size, row in zip(sizes, (row for row in rows if "lr" in row), strict=True)]
    assert right == pytest.approx(np.rint(right), abs=1e-9)
    assert 0 < max(right) <= 24
    assert all("probe_accuracy" in row for row in rows if "epoch" in row)


def test_the_backbone_is_a_classifier_of_the_last_weights_with_a_head_of_zeros(whole):
    trained = vitnp.load_classifier(whole / train.BACKBONE)
    last = vitnp.load_checkpoint(whole / train.CHECKPOINT).model
    images = normalize(dataset(20, 2).images, trained.mean, trained.std)
    assert trained.class_names == NAMES
    np.testing.assert_array_equal(vitnp.features(trained.model, images), vitnp.features(last, images))
    assert not trained.model.forward(images).any()


def test_with_a_moving_average_the_backbone_is_that_of_the_average(tmp_path):
    trainer = make(tmp_path / "run", ema=0.9)
    assert trainer.run(0.0) == 0
    backbone = vitnp.load_checkpoint(tmp_path / "run" / train.BACKBONE).model
    images = normalize(dataset(20, 2).images, trainer.batches.mean, trainer.batches.std)
    found, averaged, last = (model.features(images) for model in (backbone, trainer.average.averaged, trainer.model))
    np.testing.assert_array_equal(found, averaged)
    assert (found != last).any()


def test_a_batch_asks_for_the_colours_of_its_images_as_augmentation_left_them(tmp_path):
    trainer = make(tmp_path / "run", shift=2, flip=True)
    images, colours = next(trainer.batches.epoch(0))
    mean, std = trainer.batches.mean, trainer.batches.std
    pixels = np.rint((images * std[0] + mean[0]) * 255).astype(np.uint8)
    assert np.array_equal(colours, vitnp.patch_colours(pixels, (3, 3)))
    assert colours.shape == (8, 6)


def test_an_evaluation_is_the_mean_over_all_images_and_repeats_itself(tmp_path, monkeypatch):
    trainer = make(tmp_path / "run")
    trainer.model.flat[...] += 0.1 * np.random.default_rng(0).standard_normal(trainer.model.flat.size).astype("float32")
    test, ctx = trainer.test, vitnp.Context(rng=0)
    logits = trainer.model.forward(normalize(test.images, trainer.batches.mean, trainer.batches.std), ctx)
    targets = trainer.model.targets(vitnp.patch_colours(test.images, (3, 3)), ctx)
    loss, _ = vitnp.softmax_cross_entropy(logits, targets)
    for at_a_time in (128, 7):
        monkeypatch.setattr("vitnp.pretraining.AT_A_TIME", at_a_time)
        found = trainer.evaluate(test)
        assert found == (pytest.approx(float(loss), rel=1e-5), (logits.argmax(-1) == targets).mean())


def test_a_variance_that_overflows_is_no_accuracy(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.model.blocks[0].mlp.fc2.bias[0] = 1e25
    where = "after step 0, set 2: images 0 to 19: the variance in norm overflows"
    with np.errstate(all="raise"), pytest.raises(FloatingPointError, match=where):
        trainer.evaluate(trainer.test)


def test_logits_that_are_not_finite_are_no_accuracy(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.model.classifier.head.bias[1] = np.inf
    with pytest.raises(ValueError, match=r"after step 0, set 2: images 0 to 19: .*inf"):
        trainer.evaluate(trainer.test)


def test_a_loss_that_nobody_looked_at_is_looked_at(tmp_path, monkeypatch):
    """As on a GPU, where a loss is not looked at when it is computed."""
    trainer = make(tmp_path / "run")
    monkeypatch.setattr("vitnp.pretraining.softmax_cross_entropy", lambda *a, **o: (np.float32("nan"), None))
    with pytest.raises(ValueError, match="after step 0, set 2: images 0 to 19: the loss is nan"):
        trainer.evaluate(trainer.test)


def test_patches_of_an_evaluation_are_the_same_at_every_step(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.model.classifier.head.weight[...] = np.random.default_rng(1).standard_normal(
        trainer.model.classifier.head.weight.shape
    )
    before = trainer.evaluate(trainer.test)
    trainer.optimizer.steps += 1
    assert trainer.evaluate(trainer.test) == before


def test_a_backbone_that_the_disk_does_not_take_is_told_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def full(path, *arguments, **options):
        raise OSError(28, "No space left on device")

    trainer = make(tmp_path / "run", epochs=1)
    monkeypatch.setattr("vitnp.pretraining.save_checkpoint", full)
    with pytest.raises(OSError, match=r"backbone\.safetensors could not be written: No space left on device"):
        trainer.run(0.0)
    output, told = capsys.readouterr()
    assert "test accuracy" in output
    assert (
        told.count("(backbone.safetensors could not be written: No space left on device), that of step 0 is the last")
        == 1
    )


def test_a_backbone_that_found_room_later_is_the_last(tmp_path, monkeypatch, whole):
    save, calls = vitnp.save_checkpoint, []

    def full_at_first(path, *arguments, **options):
        calls.append(path)
        if len(calls) < 4:  # after every epoch
            raise OSError(28, "No space left on device")
        save(path, *arguments, **options)

    trainer = make(tmp_path / "run")
    (tmp_path / "run" / train.BACKBONE).unlink()
    monkeypatch.setattr("vitnp.pretraining.save_checkpoint", full_at_first)
    assert trainer.run(0.0) == 0
    found, truth = (vitnp.load_checkpoint(place / train.BACKBONE).model for place in (tmp_path / "run", whole))
    assert same_bits(found.flat, truth.flat)


def test_the_backbone_is_written_before_the_checkpoint_that_goes_with_it(tmp_path, monkeypatch):
    trainer, names, save = make(tmp_path / "run", epochs=1), [], vitnp.save_checkpoint

    def note(path, *arguments, **options):
        names.append(path.name)
        save(path, *arguments, **options)

    for module in ("pretraining", "train"):
        monkeypatch.setattr(f"vitnp.{module}.save_checkpoint", note)
    assert trainer.run(0.0) == 0
    assert names == [train.BEST, train.BACKBONE, train.CHECKPOINT]


def test_no_checkpoint_is_saved_whose_backbone_found_no_room(tmp_path, monkeypatch):
    def full(path, *arguments, **options):
        raise OSError(28, "No space left on device")

    trainer = make(tmp_path / "run", epochs=1)
    monkeypatch.setattr("vitnp.pretraining.save_checkpoint", full)
    with pytest.raises(
        OSError, match=r"could not be saved \(backbone.safetensors could not be .*\), that of step 0 is"
    ):
        trainer.run(0.0)
    assert vitnp.load_checkpoint(tmp_path / "run" / train.CHECKPOINT).optimizer.steps == 0


@pytest.mark.parametrize("left", ["nothing", "an older one"])
def test_a_run_that_resumes_at_its_end_writes_the_backbone_again(whole, tmp_path, left):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / train.BACKBONE).unlink()
    if left != "nothing":
        make(tmp_path / "older")
        shutil.copy(tmp_path / "older" / train.BACKBONE, folder)
    assert make(folder, vitnp.load_checkpoint(folder / train.CHECKPOINT)).run(0.0) == 0
    found, truth = (vitnp.load_checkpoint(place / train.BACKBONE).model for place in (folder, whole))
    assert same_bits(found.flat, truth.flat)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_images_that_are_mixed_are_refused(name):
    args = training_parser("A toy.", **RUN).parse_args([f"--{name}", "0.4"])
    with pytest.raises(ValueError, match=f"--{name} is 0.4, which mixes labels, of which there are none"):
        masked_model(args, CONFIG)
    options = {"mean": [0.5], "std": [0.2], "augmentation": Augmentation(**{name: 0.4})}
    with pytest.raises(DataError, match="mixup and cutmix mix labels, and there are none to mix"):
        Batches(dataset(8, 1), 4, targets=lambda images: images, **options)


def test_the_backbone_differs_from_the_network_by_its_classes_alone(whole):
    masked, backbone = (vitnp.load_checkpoint(whole / name).model.config for name in (train.CHECKPOINT, train.BACKBONE))
    assert masked.num_classes == 8
    assert dataclasses.replace(masked, num_classes=3) == backbone
