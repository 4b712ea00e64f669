"""What every training script shares: its options, the loop, what it prints and writes, and how it stops and resumes.

A script says which data (`load_data`), what these images are (`image_fields`) and which defaults, and
hands over:

    raise SystemExit(train.main(parser, load_data, image_fields))

A run is a pure function of its settings: the order of the data, its augmentation and the dropout masks follow from the
seed and the step, so a run that was stopped and resumed ends with the same bits as one that never stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np

from vitnp.backend import DeviceError
from vitnp.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from vitnp.cores import usable_cores
from vitnp.data import Augmentation, Batches, DataNotice, Dataset, channel_statistics, normalize, prepared_ahead
from vitnp.inference import evaluate
from vitnp.inspection import attention_picture, attention_rollout
from vitnp.optim import Adam
from vitnp.parallel import ShardedStep
from vitnp.schedules import DECAYS, warmup_decay
from vitnp.vit import VisionTransformer, ViTConfig

PLACES = (
    "resume",
    "out",
    "data",
    "mirror",
    "download",
    "device",
    "debug",
)  # options that say where a run happens, not what it is
PICTURED = 16  # test images in the picture of attention
CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
RESULTS = (CHECKPOINT, METRICS, "attention.png", "curves.png")

Loader = Callable[[argparse.Namespace], tuple[Dataset, Dataset]]
ImageFields = Callable[[argparse.Namespace], dict[str, Any]]


_UNSET = object()


class TrainingParser(argparse.ArgumentParser):
    """A parser some of whose defaults depend on an option: a preset, or another data set."""

    given: dict[str, Any]  # what the last command line said itself

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)
        self._variants: list[tuple[str, Any, dict[str, Any]]] = []

    def when(self, option: str, value: Any, **defaults: Any) -> None:
        """Where `option` (as in the namespace) has this value, the others have these defaults."""
        self._variants.append((option, value, defaults))

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse as usual, but what the user leaves out has the defaults of the variant that he chose."""
        # argparse leaves alone what a namespace has already, unless the command line says it.
        blank = argparse.Namespace(**{action.dest: _UNSET for action in self._actions})
        found = vars(super().parse_args(args, blank))
        self.given = {name: value for name, value in found.items() if value is not _UNSET}
        for option, value, defaults in self._variants:
            if self.given.get(option, self.get_default(option)) == value:
                self.set_defaults(**defaults)
        return cast(argparse.Namespace, super().parse_args(args, namespace))


def training_parser(description: str, **defaults: Any) -> TrainingParser:
    """Return a parser with the options that all training scripts have; `defaults` are the script's own."""
    parser = TrainingParser(description=description)
    network = parser.add_argument_group("network")
    network.add_argument("--patch-size", type=int, help="pixels on a side of a patch")
    network.add_argument("--dim", type=int, help="width of a token")
    network.add_argument("--depth", type=int, help="encoder blocks")
    network.add_argument("--heads", type=int, help="attention heads; must divide dim")
    network.add_argument("--mlp-dim", type=int, help="width of the MLP's hidden layer")
    network.add_argument("--dropout", type=float, default=0.0, help="rate after dense layers and position embedding")
    network.add_argument("--attention-dropout", type=float, default=0.0, help="rate on attention weights")
    network.add_argument("--gelu", choices=("tanh", "erf"), default="tanh", help="form of the activation")
    network.add_argument("--pool", choices=("token", "mean"), default="token", help="what the classifier reads")
    network.add_argument(
        "--pos-init", choices=("normal", "sincos"), default="normal", help="how the learned positions start"
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=int, help="passes over the training set")
    recipe.add_argument("--batch-size", type=int, help="images in a step")
    recipe.add_argument("--lr", type=float, help="peak learning rate of Adam")
    recipe.add_argument("--warmup-epochs", type=float, help="epochs in which the rate rises, half the run at most")
    recipe.add_argument("--decay", choices=DECAYS, default="cosine", help="how the rate falls")
    recipe.add_argument("--weight-decay", type=float, help="decoupled, of weights only")
    recipe.add_argument("--label-smoothing", type=float, help="share of the target spread over all classes")
    recipe.add_argument("--clip-norm", type=float, default=1.0, help="largest norm of the gradient, inf for any")
    recipe.add_argument("--held-out", type=int, help="training images kept for validation")
    recipe.add_argument("--seed", type=int, default=0, help="of everything random")
    recipe.add_argument("--shards", type=int, default=usable_cores(), help="threads, each with a part of the batch")
    recipe.add_argument(
        "--micro-batch",
        type=int,
        help="at most so many images of a shard at a time; on a CPU chosen by their size unless given",
    )
    augmentation = parser.add_argument_group("augmentation")
    flag = argparse.BooleanOptionalAction
    augmentation.add_argument("--distort", type=float, default=0.0, help="strength of turning, slanting, bending")
    augmentation.add_argument("--crop", type=float, default=1.0, help="least share of an image that a random part has")
    augmentation.add_argument("--shift", type=int, default=0, help="pixels by which images move at random")
    augmentation.add_argument(
        "--flip", action=flag, default=False, help="mirror images left to right, each with probability 1/2"
    )
    augmentation.add_argument("--rand-augment", type=float, default=0.0, help="magnitude, 0 to 10, of two operations")
    augmentation.add_argument("--erase", type=float, default=0.0, help="probability that a rectangle becomes noise")
    augmentation.add_argument("--mixup", type=float, default=0.0, help="alpha of blending two images and labels")
    augmentation.add_argument("--cutmix", type=float, default=0.0, help="alpha of pasting a part of another image")
    places = parser.add_argument_group("places")
    places.add_argument("--out", type=Path, help="folder for results; a number is added if it holds a run")
    places.add_argument("--resume", type=Path, help="checkpoint of a stopped run, whose settings and folder apply")
    places.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    places.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(**defaults)
    return parser


def add_download_options(parser: TrainingParser, layout: str) -> None:
    """Add what a script has whose data set can be downloaded; `layout` says what --data may hold."""
    places = parser.add_argument_group("data")
    places.add_argument("--data", type=Path, help=f"folder with {layout}, or to download to")
    places.add_argument("--mirror", help="web address of a folder with the archives, asked before the known ones")
    flag = argparse.BooleanOptionalAction
    places.add_argument("--download", action=flag, default=True, help="fetch what is not found")


def main(parser: TrainingParser, load_data: Loader, image_fields: ImageFields) -> int:
    """Parse the command line, train, and return the process's exit status.

    `image_fields` returns the fields of ViTConfig that follow from the data, image_size, channels and num_classes; it
    is called before the data are loaded, so that a mistake in the options costs no waiting.
    """
    args = parser.parse_args()
    return report_errors(lambda: _train(parser, args, load_data, image_fields), debug=args.debug)


def report_errors(work: Callable[[], int], debug: bool) -> int:
    """Return what `work` returns; an error that the user can mend is one line and status 1, no traceback."""
    try:
        with _notices():
            return work()
    except BrokenPipeError:
        # Whoever read the output has gone (as `| head` does): nothing is left to tell, not even when Python flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as shells have it
    except (ValueError, TypeError, OSError, DeviceError, FloatingPointError, MemoryError) as error:
        if debug:
            raise
        print(f"error: {error if str(error) else type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


@contextmanager
def _notices() -> Iterator[None]:
    """Meanwhile, what a DataNotice says is one line, without the place in the source that warnings have."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DataNotice):
            print(f"notice: {message}", file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _train(parser: TrainingParser, args: argparse.Namespace, load_data: Loader, image_fields: ImageFields) -> int:
    started = time.perf_counter()
    checkpoint = load_checkpoint(args.resume, args.device) if args.resume else None
    if checkpoint is not None:
        _take_settings(parser, args, checkpoint)
        model, optimizer = checkpoint.model, cast(Adam, checkpoint.optimizer)
    else:
        # Before any data is loaded.
        _check_options(args)
        model = VisionTransformer(_make_config(args, image_fields(args)), rng=args.seed).to_device(args.device)
        optimizer = Adam(model, args.lr, weight_decay=args.weight_decay)
    trainer = Trainer(model, optimizer, *load_data(args), args)
    if checkpoint is not None:
        trainer.restore(args.resume.parent, checkpoint.progress)
    else:
        trainer.folder = _claim_folder(args.out)
    return trainer.run(started)


def _make_config(args: argparse.Namespace, images: dict[str, Any]) -> ViTConfig:
    names = ("patch_size", "dim", "depth", "mlp_dim", "dropout", "attention_dropout", "pool", "gelu", "pos_init")
    return ViTConfig(num_heads=args.heads, **{name: getattr(args, name) for name in names}, **images)


def _check_options(args: argparse.Namespace) -> None:
    """Raise ValueError that names the option whose value cannot be."""
    at_least = dict.fromkeys(("epochs", "batch_size", "held_out", "shards", "micro_batch", "images"), 1)
    at_least |= dict.fromkeys(("seed", "warmup_epochs", "weight_decay", "label_smoothing"), 0)
    for name, least in at_least.items():
        value = getattr(args, name, None)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{_option(name)} is {value}; it must be {least} or more, and finite")
    if not args.clip_norm > 0:
        raise ValueError(f"--clip-norm is {args.clip_norm}; it must be above 0")
    if not 0 < args.lr < math.inf:
        raise ValueError(f"--lr is {args.lr}; it must be above 0, and finite")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out is {args.out}, which is a file; it must be a folder, or one that can be made")
    if not args.label_smoothing < 1:
        raise ValueError(f"--label-smoothing is {args.label_smoothing}; it must be below 1")
    _augmentation(args)


def _augmentation(args: argparse.Namespace) -> Augmentation:
    return Augmentation(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Augmentation)})


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _take_settings(parser: TrainingParser, args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Give `args` the settings of the run that resumes; refuse a command line that says otherwise."""
    progress = checkpoint.progress
    if checkpoint.optimizer is None or not {"script", "settings", "seen", "images", "seconds"} <= progress.keys():
        raise CheckpointError(f"{args.resume}: holds a model, but no run that could be resumed")
    script, settings = progress["script"], progress["settings"]
    if script != Path(sys.argv[0]).name:
        raise CheckpointError(f"{args.resume}: a run of {script}, which alone can resume it")
    if args.resume.name != CHECKPOINT:
        raise ValueError(
            f"--resume is {args.resume}, but a run goes on in the folder of its {CHECKPOINT}: to go on from a copy, "
            "put it into another folder, under that name"
        )
    if "out" in parser.given:
        raise ValueError(f"--out is {args.out}, but a run resumes in its own folder: leave it out")
    for name, value in settings.items():
        if parser.given.get(name, value) != value:
            raise ValueError(
                f"{_option(name)} is {parser.given[name]}, but the run to resume has {value}: leave it out"
            )
        setattr(args, name, value)


def _claim_folder(folder: Path) -> Path:
    """Make and return `folder`, or folder-2, folder-3, …: the first that has no file which a run would write over."""
    candidate, number = folder, 2
    while True:
        candidate.mkdir(parents=True, exist_ok=True)
        if not any((candidate / name).exists() for name in RESULTS):
            with suppress(FileExistsError):  # another run was quicker
                (candidate / METRICS).touch(exist_ok=False)
                return candidate
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1


class Trainer:
    """One training run: a model, its data, and the `folder` that it writes to."""

    folder: Path

    def __init__(
        self,
        model: VisionTransformer,
        optimizer: Adam,
        train_set: Dataset,
        test_set: Dataset,
        args: argparse.Namespace,
    ) -> None:
        self.model, self.optimizer, self.args = model, optimizer, args
        fit_set, self.validation = train_set.split(args.held_out, args.seed)
        self.test, (mean, std) = test_set, channel_statistics(fit_set.images)
        options = {"seed": args.seed, "mean": mean, "std": std}
        self.batches = Batches(fit_set, args.batch_size, augmentation=_augmentation(args), **options)
        self.total_steps = args.epochs * self.batches.steps_per_epoch
        self.step = ShardedStep(
            model,
            optimizer,
            shards=args.shards if args.device == "cpu" else 1,
            micro_batch=args.micro_batch,
            clip_norm=args.clip_norm,
            label_smoothing=args.label_smoothing,
            rng=args.seed,
        )
        self.seen = {"loss": 0.0, "correct": 0, "images": 0}  # sums over the epoch so far
        self.images, self.seconds = 0, 0.0  # trained on and spent in steps, over the whole run

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, started: float) -> int:
        """Train to the end, test once, and return the exit status; SIGINT and SIGTERM stop it after a step."""
        self._print_head()
        with _Stop() as stop:
            while self.optimizer.steps < self.total_steps:
                self._epoch(stop)
                self.save()
                if stop.signal and self.optimizer.steps < self.total_steps:
                    return self._say_how_to_resume(stop.signal)
        loss, accuracy = self.evaluate(self.test)
        self._record(test_loss=loss, test_accuracy=accuracy)
        self._draw_attention()
        _draw_curves(self.folder)
        print(f"\nresults in {self.folder}: {', '.join(sorted(path.name for path in self.folder.iterdir()))}")
        wall = time.perf_counter() - started
        print(f"test accuracy {100 * accuracy:.2f} %  ({len(self.test)} images; {wall:.1f} s in all)")
        return 0

    def _epoch(self, stop: _Stop) -> None:
        """Take the steps that are left of the current epoch, then validate; a stop leaves it after a step."""
        from tqdm import tqdm

        per_epoch = self.batches.steps_per_epoch
        epoch, done = divmod(self.optimizer.steps, per_epoch)
        look = {"desc": f"epoch {epoch + 1}", "bar_format": "{desc} {percentage:3.0f}% |{bar:10}|{postfix}"}
        with tqdm(total=per_epoch, initial=done, leave=False, disable=None, **look) as bar:
            for images, labels in prepared_ahead(self.batches.epoch(epoch, start=done)):
                self._one_step(images, labels)
                bar.update()
                bar.set_postfix(self._running(), refresh=False)
                if stop.signal:
                    break
        if self.optimizer.steps % per_epoch == 0:
            self._end_epoch(epoch)

    def _one_step(self, images: np.ndarray, labels: np.ndarray) -> None:
        start = time.perf_counter()
        self.optimizer.lr = self._rate(self.optimizer.steps)
        try:
            loss = float(self.step.step(images, labels))
        except (FloatingPointError, ValueError) as error:
            raise type(error)(f"step {self.optimizer.steps + 1}: {error}") from error
        self.seen["loss"] += loss * len(images)
        self.seen["correct"] += int(self.step.correct)
        self.seen["images"] += len(images)
        self.images += len(images)
        self.seconds += time.perf_counter() - start
        self._record(loss=loss, accuracy=int(self.step.correct) / len(images), lr=self.optimizer.lr)

    def _end_epoch(self, epoch: int) -> None:
        images, speed = self.seen["images"], self._speed()
        train = self.seen["loss"] / images, self.seen["correct"] / images
        validation = self.evaluate(self.validation)
        self._record(epoch=epoch + 1, validation_loss=validation[0], validation_accuracy=validation[1])
        numbers = f"{train[0]:10.4f} {100 * train[1]:8.2f} % {validation[0]:10.4f} {100 * validation[1]:8.2f} %"
        print(f"{epoch + 1:5d} {numbers} {self.optimizer.lr:9.2e} {speed:9,.0f} {self.seconds:8.1f}", flush=True)
        self.seen = {"loss": 0.0, "correct": 0, "images": 0}

    def evaluate(self, dataset: Dataset) -> tuple[float, float]:
        """Return the mean loss and the accuracy in [0, 1], dropout off."""
        mean, std = self.batches.mean, self.batches.std
        found = evaluate(self.model, dataset.images, dataset.labels, mean=mean, std=std)
        return found.loss, found.accuracy

    def _rate(self, step: int) -> float:
        warmup = min(round(self.args.warmup_epochs * self.batches.steps_per_epoch), self.total_steps // 2)
        options = {"total_steps": self.total_steps, "warmup_steps": warmup, "decay": self.args.decay}
        return warmup_decay(step, peak=self.args.lr, **options)

    # -- what it prints ---------------------------------------------------------------------------------------------

    def _print_head(self) -> None:
        config, sets = self.model.config, (self.batches.dataset, self.validation, self.test)
        train, validation, test = (f"{len(dataset):,}" for dataset in sets)
        print(
            f"{self.batches.dataset.name}: {train} training, {validation} validation and {test} test images\n"
            f"ViT of {self.model.num_parameters:,} parameters: {config.num_tokens} tokens, dim {config.dim}, "
            f"depth {config.depth}, {config.num_heads} heads\n"
            f"{self.total_steps} steps of {self.args.batch_size} images, {self.step.shards} shards\n\n"
            "epoch train loss   accuracy validation   accuracy        lr  images/s  seconds",
            flush=True,
        )

    def _running(self) -> dict[str, str]:
        images = self.seen["images"]
        return {
            "loss": f"{self.seen['loss'] / images:.3f}",
            "accuracy": f"{100 * self.seen['correct'] / images:.1f} %",
            "lr": f"{self.optimizer.lr:.1e}",
            "images/s": f"{self._speed():,.0f}",
        }

    def _speed(self) -> float:
        """Return images a second over the whole run."""
        return self.images / self.seconds

    def _say_how_to_resume(self, number: int) -> int:
        path = self.folder / CHECKPOINT
        print(f"\nstopped after step {self.optimizer.steps} of {self.total_steps}; saved {path}")
        command = [sys.executable, sys.argv[0], "--resume", str(path)]
        command += ["--data", str(self.args.data)] if getattr(self.args, "data", None) else []
        command += [] if getattr(self.args, "download", True) else ["--no-download"]
        command += ["--device", self.args.device] if self.args.device != "cpu" else []
        print(f"resume with: {shlex.join(command)}")
        return 128 + number

    # -- what it writes ---------------------------------------------------------------------------------------------

    def _record(self, **values: float) -> None:
        with open(self.folder / METRICS, "a") as file:
            file.write(json.dumps({"step": self.optimizer.steps, **values}) + "\n")

    def save(self) -> None:
        """Write checkpoint.safetensors, from which the run resumes."""
        settings = {name: value for name, value in vars(self.args).items() if name not in PLACES}
        mean, std = self.batches.mean, self.batches.std
        progress = {
            "script": Path(sys.argv[0]).name,
            "settings": settings,
            "seen": self.seen,
            "images": self.images,
            "seconds": self.seconds,
            "classes": self.batches.dataset.class_names,
            "mean": mean,
            "std": std,
        }
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.optimizer, progress)

    def restore(self, folder: Path, progress: dict[str, Any]) -> None:
        """Go on in `folder` where a checkpoint was saved: also drop what metrics.jsonl has beyond it."""
        if [progress.get("mean"), progress.get("std")] != [list(self.batches.mean), list(self.batches.std)]:
            raise CheckpointError(
                f"{folder / CHECKPOINT}: a run on other images than these, by their mean and deviation"
            )
        self.folder = folder
        self.seen, self.images, self.seconds = progress["seen"], progress["images"], progress["seconds"]
        metrics = folder / METRICS
        if metrics.exists():
            lines = metrics.read_text().splitlines(keepends=True)
            kept = folder / "metrics.jsonl.new"
            kept.write_text("".join(line for line in lines if _belongs(line, self.optimizer.steps)))
            kept.replace(metrics)

    def _draw_attention(self) -> None:
        images, names = self.test.images[:PICTURED], self.test.class_names
        maps, logits = attention_rollout(self.model, normalize(images, self.batches.mean, self.batches.std))
        captions = [
            f"{names[guess]}" + ("" if guess == label else f", is {names[label]}")
            for guess, label in zip(logits.argmax(-1), self.test.labels[:PICTURED], strict=True)
        ]
        attention_picture(images, maps, captions, self.folder / "attention.png", columns=4)


def _belongs(line: str, steps: int) -> bool:
    """Return whether a line of metrics.jsonl is whole and from before the checkpoint; the test comes after it."""
    try:
        row = json.loads(line)
    except ValueError:
        return False  # the last line of a run that was cut off while it wrote
    return row["step"] <= steps and "test_loss" not in row


def _draw_curves(folder: Path) -> None:
    """Write curves.png from metrics.jsonl where matplotlib is installed, as the extra `plots` does."""
    if importlib.util.find_spec("matplotlib") is None:
        print("for curves.png: pip install matplotlib")
        return
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
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


class _Stop:
    """While it is entered, the first SIGINT or SIGTERM is noted in `signal`; a second one acts as always."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)
