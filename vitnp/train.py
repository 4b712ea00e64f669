"""What every training script shares: the loop, what it prints and writes, and how it stops and resumes.

A script says which data (`load_data`), what these images are (`image_fields`) and which defaults its options have
(`vitnp.options`), and hands over:

    raise SystemExit(train.main(parser, load_data, image_fields))

or, where it begins with a model that has learned something already, `make_model` in place of `image_fields`.

A run is a pure function of its settings: the order of the data, its augmentation and the dropout masks follow from the
seed and the step, so a run that was stopped or killed and resumed ends with the same bits as one that never stopped.

In its folder are checkpoint.safetensors, the run at its last save; checkpoint.previous.safetensors, at the one before;
best.safetensors, the model of the epoch with the best accuracy on the validation images; and metrics.jsonl.

With `--ema` it is the moving average of the parameters that is validated, tested and kept as the best model. A
checkpoint then holds both, the parameters that train and the average.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from vitnp.backend import array_module, to_cpu
from vitnp.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from vitnp.console import report_errors, say, warn
from vitnp.data import Batches, Dataset, channel_statistics, fit_images, normalize, prepared_ahead
from vitnp.durable import Lock, LockedError, remove_orphans, write_atomically
from vitnp.environment import changes, environment
from vitnp.few_shot import few_shot_indices, linear_probe
from vitnp.inference import evaluate, features
from vitnp.inspection import attention_picture, attention_rollout
from vitnp.metrics import Metrics
from vitnp.moving_average import MovingAverage
from vitnp.nonfinite import bad_parameter, first_not_finite
from vitnp.optim import SGD, Adam, Optimizer
from vitnp.options import TrainingParser, check_options, check_ranges, check_shift, make_augmentation, make_config
from vitnp.parallel import ShardedStep
from vitnp.resuming import CHANGEABLE, CHECKPOINT, PLACES, PREVIOUS, load_run, take_settings
from vitnp.schedules import warmup_decay
from vitnp.stopping import Stop, Stopped
from vitnp.vit import VisionTransformer

PICTURED = 16  # test images in the picture of attention
BEST = "best.safetensors"
BACKBONE = "backbone.safetensors"  # what pre-training leaves for training and probes
SAVED = CHECKPOINT, PREVIOUS, BEST, BACKBONE
METRICS, FAILED = "metrics.jsonl", "failed_step.json"
RESULTS = (*SAVED, METRICS, FAILED, "attention.png", "curves.png")
NONE_YET = {"epoch": 0, "accuracy": -1.0}
NOTHING_SEEN = {"loss": 0.0, "correct": 0, "images": 0}
Loader = Callable[[argparse.Namespace], tuple[Dataset, Dataset]]
ImageFields = Callable[[argparse.Namespace], dict[str, Any]]
ModelMaker = Callable[[argparse.Namespace], VisionTransformer]


def main(
    parser: TrainingParser,
    load_data: Loader,
    image_fields: ImageFields | None = None,
    make_model: ModelMaker | None = None,
    trainer: type[Trainer] | None = None,
) -> int:
    """Parse the command line, train, and return the process's exit status.

    `image_fields` returns the fields of ViTConfig that follow from the data, image_size, channels and num_classes; or
    `make_model` returns the model that training begins with. Either is called before the data are loaded, so that a
    mistake in the options costs no waiting. `trainer` is the kind of training, by labels unless said.
    """
    args, kind = parser.parse_args(), trainer or Trainer
    start = make_model or (lambda args: _random_model(args, cast(ImageFields, image_fields)))
    return report_errors(lambda: _train(parser, args, load_data, start, kind), debug=args.debug)


def _train(
    parser: TrainingParser,
    args: argparse.Namespace,
    load_data: Loader,
    make_model: ModelMaker,
    kind: type[Trainer],
) -> int:
    with Stop() as stop:
        try:
            if args.resume is not None:
                return _resume(parser, args, load_data, kind, stop)
            return _begin(args, load_data, make_model, kind, stop)
        except Stopped:  # before there was anything to save
            warn("interrupted")
            return 128 + stop.signal


def _begin(args: argparse.Namespace, load_data: Loader, make_model: ModelMaker, kind: type[Trainer], stop: Stop) -> int:
    started = time.perf_counter()
    check_options(args)  # before any data is loaded
    model = make_model(args).to_device(args.device)
    average = None if args.ema is None else MovingAverage(model, args.ema)
    trainer = kind(model, _make_optimizer(model, args), *load_data(args), args, average)
    with stop.later():
        folder = _claim_folder(args.out)
        try:
            with _lock(folder) as trainer.lock:
                trainer.begin(folder)
                return trainer.run(started, stop)
        finally:
            if trainer.saved_steps is None:  # there was no room to begin
                with suppress(OSError):
                    (folder / METRICS).unlink()
                    folder.rmdir()


def _resume(
    parser: TrainingParser, args: argparse.Namespace, load_data: Loader, kind: type[Trainer], stop: Stop
) -> int:
    started = time.perf_counter()
    if args.resume.is_dir():
        raise ValueError(f"--resume is {args.resume}, a folder; expected a checkpoint, as {args.resume / CHECKPOINT}")
    with _lock(args.resume.parent) as lock:
        checkpoint = load_run(args.resume, args.device)
        take_settings(args, parser.given, checkpoint)
        check_ranges(args)
        learned = checkpoint.model, cast(Optimizer, checkpoint.optimizer)
        trainer = kind(*learned, *load_data(args), args, checkpoint.average)
        trainer.lock = lock
        with stop.later():
            trainer.restore(args.resume, checkpoint)
            return trainer.run(started, stop)


@contextmanager
def _lock(folder: Path) -> Iterator[Lock]:
    """Hold the lock of a run's folder, and of any other that links in it lead to: a file there may be another run's.

    Where there is no such folder, whatever is to be read there will say so.
    """
    real = {os.path.dirname(os.path.realpath(folder / name)) for name in SAVED} - {os.path.realpath(folder)}
    own, *others = (Lock(place / ".lock", f"trains in {place}") for place in (folder, *map(Path, sorted(real))))
    with ExitStack() as locks:
        for lock in (own, *others):
            if lock.path.parent.is_dir():
                locks.enter_context(lock)
        yield own


def _random_model(args: argparse.Namespace, image_fields: ImageFields) -> VisionTransformer:
    config = make_config(args, image_fields(args))
    check_shift(args, config)
    return VisionTransformer(config, rng=args.seed)


def _make_optimizer(model: VisionTransformer, args: argparse.Namespace) -> Optimizer:
    if args.optimizer == "sgd":
        return SGD(model, args.lr, args.momentum, args.weight_decay)
    return Adam(model, args.lr, weight_decay=args.weight_decay)


def _claim_folder(folder: Path) -> Path:
    """Make and return `folder`, or folder-2, folder-3, …: the first that has no file which a run would write over."""
    candidate, number = folder, 2
    while True:
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            if not any((candidate / name).exists() for name in RESULTS):
                with suppress(FileExistsError):  # another run was quicker
                    (candidate / METRICS).touch(exist_ok=False)
                    return candidate
        except OSError as error:
            raise OSError(
                f"--out is {folder}, where nothing can be written ({error.strerror}): name another folder"
            ) from error
        if folder.name in ("", ".."):
            raise ValueError(f"--out is {folder}, which holds a run already: name another folder")
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1


class Trainer:
    """One training run: a model, its data, and the `folder` that it writes to, which `begin` or `restore` tells it."""

    folder: Path
    lock: Lock | None = None  # of the folder, where it is held
    metrics: Metrics
    targets: Callable[[np.ndarray], np.ndarray] | None = None  # of a batch's images, instead of their labels

    def __init__(
        self,
        model: VisionTransformer,
        optimizer: Optimizer,
        train_set: Dataset,
        test_set: Dataset,
        args: argparse.Namespace,
        average: MovingAverage | None = None,
    ) -> None:
        self.model, self.optimizer, self.args, self.average = model, optimizer, args, average
        self.judged = model if average is None else average.averaged  # what is validated, tested and kept as the best
        self.fit_indices, held_out = train_set.split_indices(args.held_out, args.seed)
        fit_set, self.validation = train_set.subset(self.fit_indices), train_set.subset(held_out)
        self.test, (mean, std) = test_set, channel_statistics(fit_set.images)
        if getattr(args, "mean", None) is not None:  # what a model that has learned already expects
            mean, std = tuple(args.mean), tuple(args.std)
        self.shots = self._choose_shots(fit_set) if args.probe_every else None
        self.data = {"training": train_set.digest(), "test": test_set.digest()}
        options: dict[str, Any] = {"seed": args.seed, "mean": mean, "std": std}
        self.fit = model.config.image_size, model.config.channels
        options |= {"augmentation": make_augmentation(args), "fit": self.fit, "targets": self.targets}
        self.batches = Batches(fit_set, args.batch_size, **options)
        self.total_steps = args.epochs * self.batches.steps_per_epoch
        self.step = ShardedStep(
            model,
            optimizer,
            shards=args.shards if args.device == "cpu" else 1,
            micro_batch=args.micro_batch,
            clip_norm=args.clip_norm,
            label_smoothing=args.label_smoothing,
            rng=args.seed,
            average=average,
            head_only=getattr(args, "freeze", False),
        )
        self.seen = dict(NOTHING_SEEN)  # sums over the epoch so far; not nothing until it is validated
        self.images, self.seconds = 0, 0.0  # trained on and spent in steps, over the whole run
        self.best: dict[str, Any] = dict(NONE_YET)  # of the model in best.safetensors
        self.better: tuple[VisionTransformer, dict[str, Any]] | None = None  # a model, and its notes, still to go there
        self.saved_steps: int | None = None
        self.saved_at, self.unsaved = -math.inf, True

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, started: float, stop: Stop | None = None) -> int:
        """Train to the end, test once, and return the exit status; SIGINT and SIGTERM stop it after a step.

        `stop`, where it is in use already, is one that holds signals back.
        """
        if stop is None:
            with Stop() as stop, stop.later():
                return self.run(started, stop)
        self._print_head()
        try:
            while self.optimizer.steps < self.total_steps or self.seen["images"]:
                self._epoch(stop)
            with stop.at_once():
                loss, accuracy = self.evaluate(self.test)
            unwritten = self._write_results(stop, test_loss=loss, test_accuracy=accuracy)
        except Stopped:
            self._save_the_rest()
            return self._say_how_to_resume(stop.signal)
        if unwritten is None:
            shown = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            say(f"\nresults in {self.folder}: {', '.join(shown)}")
        wall = time.perf_counter() - started
        say(f"test accuracy {100 * accuracy:.2f} %  ({len(self.test)} images; {wall:.1f} s in all)")
        if unwritten is not None:
            raise unwritten
        return 0

    def _write_results(self, stop: Stop, **test: float) -> OSError | None:
        """Write what is left to write at the end; what hinders it is returned, for the result is to be told anyway."""
        try:
            self._save_the_rest()
            self.metrics.add(step=self.optimizer.steps, **test)
            self.metrics.flush()
            (self.folder / FAILED).unlink(missing_ok=True)  # of a step that has been taken since
            with stop.at_once():
                self._draw_attention()
                try:
                    _draw_curves(self.folder)
                except (ValueError, KeyError) as error:
                    return OSError(f"{self.folder / METRICS} is damaged, so there is no curves.png: {error}")
        except OSError as error:
            reason = f"not everything could be written ({error.strerror}): make room, and resume"
            return OSError(f"{self.folder}: {reason}") if error.strerror else error
        return None

    def _save_the_rest(self) -> None:
        """Save what there was no room for, or what has gone with the folder; OSError where there still is none."""
        held = self.lock is None or self.lock.held
        if self.unsaved or self.better is not None or not held:
            self.save()

    def _epoch(self, stop: Stop) -> None:
        """Take the steps that are left of the current epoch, then validate; a stop leaves it after a step."""
        from tqdm import tqdm

        per_epoch = self.batches.steps_per_epoch
        # Until it is validated, an epoch whose steps are all done is the current one.
        epoch = (self.optimizer.steps - (self.seen["images"] > 0)) // per_epoch
        done = self.optimizer.steps - epoch * per_epoch
        disabled = True if sys.stderr is None else None  # closed; else tqdm looks whether it is a terminal
        look = {"desc": f"epoch {epoch + 1}", "bar_format": "{desc} {percentage:3.0f}% |{bar:10}|{postfix}"}
        with tqdm(total=per_epoch, initial=done, leave=False, disable=disabled, **look) as bar:
            for images, labels in prepared_ahead(self.batches.epoch(epoch, start=done)):
                self._one_step(images, labels)
                bar.update()
                bar.set_postfix(self._running(), refresh=False)
                if stop.signal:
                    raise Stopped
                if time.monotonic() - self.saved_at >= self.args.save_every:
                    self._try_to_save()
        self._end_epoch(epoch, stop)

    def _one_step(self, images: np.ndarray, labels: np.ndarray) -> None:
        start, number = time.perf_counter(), self.optimizer.steps + 1
        self.optimizer.lr = self._rate(self.optimizer.steps)
        self.unsaved = True
        try:
            loss, norm, correct = self._results(self.step.step(images, labels))
            if not math.isfinite(loss + norm):  # on a GPU it shows here only
                raise FloatingPointError(f"the loss is {loss}, the gradient's norm {norm}")
        except (FloatingPointError, ValueError) as error:
            self._give_up(number, error, images, labels)
        self.seen["loss"] += loss * len(images)
        self.seen["correct"] += int(correct)
        self.seen["images"] += len(images)
        self.images += len(images)
        self.seconds += time.perf_counter() - start
        accuracy = correct / (len(images) * self.model.answers)
        self.metrics.add(step=number, loss=loss, accuracy=accuracy, lr=self.optimizer.lr)

    def _results(self, loss: Any) -> tuple[float, float, float]:
        """Return a step's loss, norm and count of right answers; a GPU is waited for once, not for each of them."""
        results = array_module(loss).stack([loss, self.step.norm, self.step.correct])
        found, norm, correct = to_cpu(results).tolist()
        return found, norm, correct

    def _give_up(
        self, number: int, error: ValueError | FloatingPointError, images: np.ndarray, labels: Any
    ) -> NoReturn:
        """Raise `error` with what was the first bad tensor; save the batch's indices and the state before the step."""
        first = bad_parameter(self.model)
        if first is None and self.optimizer.steps < number:  # else the parameters have changed already
            size = min(self.step.micro_batch or len(images), -(-len(images) // self.step.shards))
            options = {"rng": self.args.seed, "step": self.optimizer.steps, "size": size}
            smoothing = self.args.label_smoothing
            with suppress(MemoryError):
                first = first_not_finite(self.model, images, labels, label_smoothing=smoothing, **options)
        self._fail(number, error, first)

    def _fail(self, number: int, error: ValueError | FloatingPointError, first: str | None) -> NoReturn:
        """The same, once it is known what was the first; None where it is not."""
        epoch, batch = divmod(number - 1, self.batches.steps_per_epoch)
        indices = self.fit_indices[self.batches.indices(epoch, batch)].tolist()
        note = {"step": number, "epoch": epoch + 1, "error": str(error), "first": first, "training_images": indices}
        with suppress(OSError, ValueError):  # no room; or parameters that are not finite, which are not to be kept
            self._hold_folder()
            write_atomically(self.folder / FAILED, json.dumps(note).encode())
            self.save()
        named = f"; the first that is not finite is {first}" if first and first not in str(error) else ""
        raise type(error)(
            f"step {number}: {error}{named}; its batch is in {self.folder / FAILED}, the state of step "
            f"{self.saved_steps} in {self.folder / CHECKPOINT}"
        ) from error

    def _end_epoch(self, epoch: int, stop: Stop) -> None:
        images, speed = self.seen["images"], self._speed()
        train = self.seen["loss"] / images, self.seen["correct"] / (images * self.model.answers)
        with stop.at_once():
            validation = self.evaluate(self.validation)
            probed = self._probe() if self.shots and (epoch + 1) % self.args.probe_every == 0 else {}
        result = {"epoch": epoch + 1, "validation_loss": validation[0], "validation_accuracy": validation[1]}
        self.metrics.add(step=self.optimizer.steps, **result, **probed)
        self.seen = dict(NOTHING_SEEN)
        self._note_if_best(epoch + 1, validation[1])
        self._try_to_save()
        numbers = f"{train[0]:10.4f} {100 * train[1]:8.2f} % {validation[0]:10.4f} {100 * validation[1]:8.2f} %"
        probe = f"   probe {100 * probed['probe_accuracy']:.2f} %" if probed else ""
        say(f"{epoch + 1:5d} {numbers} {self.optimizer.lr:9.2e} {speed:9,.0f} {self.seconds:8.1f}{probe}")

    def _choose_shots(self, fit_set: Dataset) -> Dataset:
        """Return what a probe learns from: the same images in every epoch."""
        if len(self.validation) < 2:
            raise ValueError(f"--held-out is {len(self.validation)}; --probe-every wants 2 or more")
        options = {"seed": self.args.seed, "num_classes": len(fit_set.class_names)}
        return fit_set.subset(few_shot_indices(fit_set.labels, self.args.probe_shots, **options))

    def _probe(self) -> dict[str, float]:
        """Return the accuracy of a linear probe on one half of the validation images; the other chose its strength."""
        shots, labels = cast(Dataset, self.shots), self.validation.labels
        mean, std = self.batches.mean, self.batches.std
        few, held_out = (
            features(self.judged, x.images, mean=mean, std=std, fit=True) for x in (shots, self.validation)
        )
        chosen_by, classes = (held_out[::2], labels[::2]), len(shots.class_names)
        probe = linear_probe(few, shots.labels, num_classes=classes, validation=chosen_by)
        return {
            "probe_shots": self.args.probe_shots,
            "probe_strength": probe.strength,
            "probe_accuracy": probe.accuracy(held_out[1::2], labels[1::2]),
        }

    def evaluate(self, dataset: Dataset) -> tuple[float, float]:
        """Return the mean loss and the accuracy in [0, 1], dropout off; ValueError where they would not be finite."""
        mean, std = self.batches.mean, self.batches.std
        try:
            found = evaluate(self.judged, dataset.images, dataset.labels, mean=mean, std=std, fit=True)
        except ValueError as error:
            raise ValueError(f"after step {self.optimizer.steps}, {dataset.name}: {error}") from error
        return found.loss, found.accuracy

    def _rate(self, step: int) -> float:
        warmup_epochs = min(self.args.warmup_epochs, self.args.epochs)
        warmup = min(round(warmup_epochs * self.batches.steps_per_epoch), self.total_steps // 2)
        options = {"total_steps": self.total_steps, "warmup_steps": warmup, "decay": self.args.decay}
        return warmup_decay(step, peak=self.args.lr, **options)

    # -- what it prints ---------------------------------------------------------------------------------------------

    def _print_head(self) -> None:
        config, sets = self.model.config, (self.batches.dataset, self.validation, self.test)
        train, validation, test = (f"{len(dataset):,}" for dataset in sets)
        say(
            f"{self.batches.dataset.name}: {train} training, {validation} validation and {test} test images\n"
            f"ViT of {self.model.num_parameters:,} parameters: {config.num_tokens} tokens, dim {config.dim}, "
            f"depth {config.depth}, {config.num_heads} heads\n"
            f"{self.total_steps} steps of {self.args.batch_size} images, {self.step.shards} shards\n\n"
            "epoch train loss   accuracy validation   accuracy        lr  images/s  seconds"
        )

    def _running(self) -> dict[str, str]:
        images = self.seen["images"]
        return {
            "loss": f"{self.seen['loss'] / images:.3f}",
            "accuracy": f"{100 * self.seen['correct'] / (images * self.model.answers):.1f} %",
            "lr": f"{self.optimizer.lr:.1e}",
            "images/s": f"{self._speed():,.0f}",
        }

    def _speed(self) -> float:
        """Return images a second over the whole run."""
        return self.images / self.seconds

    def _say_how_to_resume(self, number: int) -> int:
        path = self.folder / CHECKPOINT
        say(f"\nstopped after step {self.optimizer.steps} of {self.total_steps}; saved {path}")
        command = [sys.executable, sys.argv[0], "--resume", str(path)]
        command += ["--data", str(self.args.data)] if getattr(self.args, "data", None) else []
        command += [] if getattr(self.args, "download", True) else ["--no-download"]
        command += ["--device", self.args.device] if self.args.device != "cpu" else []
        say(f"resume with: {shlex.join(command)}")
        return 128 + number

    # -- what it writes ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write checkpoint.safetensors, from which the run resumes, and keep the one before it.

        Raises OSError, which says what is saved; the checkpoint there is then as it was.
        """
        path = self.folder / CHECKPOINT
        try:
            self._hold_folder()
            self._write_models()
            self.metrics.flush()  # first: a checkpoint must not know more than the metrics do
            state = self.model, self.optimizer, self._progress(), self.folder / PREVIOUS, self.average
            save_checkpoint(path, *state)
        except OSError as error:
            last = "none is saved yet" if self.saved_steps is None else f"that of step {self.saved_steps} is the last"
            advice = ": make room, or make the folder writable" if error.strerror else ""
            raise OSError(
                f"{path}: step {self.optimizer.steps} could not be saved ({error.strerror or error}), {last}{advice}"
            ) from error
        self.saved_steps, self.unsaved = self.optimizer.steps, False

    def _hold_folder(self) -> None:
        """Make the folder again if it has gone, and hold it; OSError where another one has its name."""
        if self.lock is None or self.lock.held:
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        try:
            if self.lock.in_place:  # the lock alone has gone
                self.lock.renew()
                return
            self.folder.mkdir(parents=True)
            self.lock.renew()
        except (FileExistsError, LockedError):
            raise OSError(
                f"{self.folder} was moved or deleted, and what has its name now is not this run's: move that away"
            ) from None
        warn(f"notice: {self.folder} was moved or deleted, with all that the run had written; it is made again")
        self.best = dict(NONE_YET)

    def _try_to_save(self) -> None:
        """Save; a disk that is full, or gone, does not end the run, which saves again later."""
        try:
            self.save()
        except OSError as error:
            warn(f"warning: {error}; training goes on")
        except ValueError as error:  # on a GPU, where no step has shown that its update was not finite
            self._fail(self.optimizer.steps, error, bad_parameter(self.model))
        self.saved_at = time.monotonic()

    def _note_if_best(self, epoch: int, accuracy: float) -> None:
        """Keep the model for best.safetensors, which is written before the next checkpoint, if none was better."""
        best = self.best if self.better is None else self.better[1]["best"]
        if accuracy > best["accuracy"]:
            notes = {**self._progress(), "best": {"epoch": epoch, "accuracy": accuracy}}
            self.better = self.judged.to_device("cpu"), notes

    def _write_models(self) -> None:
        """Write best.safetensors, which holds the model alone, where a better one has been found; or raise OSError.

        A checkpoint is written after it: a run that resumes beyond the epoch of that model would never write it.
        """
        if self.better is None:
            return
        model, notes = self.better
        try:
            save_checkpoint(self.folder / BEST, model, progress=notes)
        except OSError as error:
            raise OSError(error.errno, f"{BEST} could not be written: {error.strerror or error}") from error
        self.best, self.better = notes["best"], None

    def _progress(self) -> dict[str, Any]:
        return {
            "script": Path(sys.argv[0]).name,
            "settings": {name: value for name, value in vars(self.args).items() if name not in PLACES},
            "seen": dict(self.seen),  # which goes on, and what is said of a best model must not
            "images": self.images,
            "seconds": self.seconds,
            "data": self.data,
            "best": self.best,
            "metrics": self.metrics.state,
            "classes": self.batches.dataset.class_names,
            "mean": self.batches.mean,
            "std": self.batches.std,
        }

    def begin(self, folder: Path) -> None:
        """Begin a run in `folder`, with a checkpoint of step 0: whenever it is killed, there is one to resume from."""
        self.folder, self.metrics = folder, Metrics(folder / METRICS, self.lock)
        self.save()
        self.saved_at = time.monotonic()

    def restore(self, path: Path, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint at `path` was saved, and drop what was written to its folder since.

        Raises ValueError, and changes nothing, where the data are others, or the metrics not those that the run wrote.
        """
        progress, self.folder = checkpoint.progress, path.parent
        for name, digest in self.data.items():
            if (expected := progress["data"].get(name)) != digest:
                raise CheckpointError(
                    f"{path}: a run on other images: the {name} set has SHA-256 {digest}, expected {expected}: "
                    "give the data that it began with"
                )
        self.metrics = Metrics(self.folder / METRICS, self.lock)
        if missing := self.metrics.go_on(progress["metrics"]):
            warn(f"notice: {self.metrics.path} lacks {missing} lines that the run had written")
        if changed := changes(checkpoint.environment, environment(self.model.device)):
            warn(f"notice: results will agree to rounding, not bit for bit: {changed}")
        for name in SAVED:
            remove_orphans(self.folder / name)
        if path.name == PREVIOUS:
            # The one after it is given up, but what is a link stays one.
            write_atomically(self.folder / CHECKPOINT, path.read_bytes())
        self.seen, self.images, self.seconds = progress["seen"], progress["images"], progress["seconds"]
        self.best = progress["best"]
        if self.best["epoch"] and (lost := self._what_is_wrong_with_the_best()):
            warn(f"notice: {lost}: the best of the epochs to come takes its place")
            self.best = dict(NONE_YET)
        self.saved_steps, self.saved_at, self.unsaved = self.optimizer.steps, time.monotonic(), False

    def _what_is_wrong_with_the_best(self) -> str:
        try:
            found = load_checkpoint(self.folder / BEST).progress
        except FileNotFoundError:
            return f"{self.folder / BEST}, the model of epoch {self.best['epoch']}, is not there any more"
        except (CheckpointError, OSError) as error:
            return f"{error}"
        # It may be of a later epoch, if the run was killed before it saved that.
        noted = found.get("best")
        same = _of_the_run(found) == json.loads(json.dumps(_of_the_run(self._progress())))
        if same and isinstance(noted, dict) and noted.get("epoch", 0) >= self.best["epoch"]:
            return ""
        return f"{self.folder / BEST} is not this run's"

    def _draw_attention(self) -> None:
        images, names = fit_images(self.test.images[:PICTURED], *self.fit), self.test.class_names
        maps, logits = attention_rollout(self.judged, normalize(images, self.batches.mean, self.batches.std))
        captions = [
            f"{names[guess]}" + ("" if guess == label else f", is {names[label]}")
            for guess, label in zip(logits.argmax(-1), self.test.labels[:PICTURED], strict=True)
        ]
        attention_picture(images, maps, captions, self.folder / "attention.png", columns=4)


def _of_the_run(progress: dict[str, Any]) -> dict[str, Any]:
    """Return what of a checkpoint's notes is the same in all of a run's."""
    settings = progress.get("settings")
    lasting = settings.items() if isinstance(settings, dict) else ()
    found = {name: progress.get(name) for name in ("script", "data", "mean", "std")}
    return found | {"settings": {name: value for name, value in lasting if name not in CHANGEABLE}}


def _draw_curves(folder: Path) -> None:
    """Write curves.png from metrics.jsonl where matplotlib is installed, as the extra `plots` does."""
    if importlib.util.find_spec("matplotlib") is None:
        say("for curves.png: pip install matplotlib")
        return
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    if not any("lr" in row for row in rows) or not any("epoch" in row for row in rows):
        return  # a run that was resumed at its end, without its metrics
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        steps, values = zip(*((row["step"], row[what]) for row in rows if what in row), strict=True)
        window = max(1, len(values) // 100)
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :], smooth, label=f"training, mean of {window} steps")
        validation = [(row["step"], row[f"validation_{what}"]) for row in rows if f"validation_{what}" in row]
        axes.plot(*zip(*validation, strict=True), "o-", label="validation")
        axes.set(xlabel="step", ylabel=what, yscale="log" if what == "loss" else "linear")
        axes.legend()
    figure.savefig(folder / "curves.png", dpi=120)
