"""The options that all training scripts have, and what their values may be."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any, cast

from vitnp.config import POOLS, POSITIONS, ViTConfig
from vitnp.cores import usable_cores
from vitnp.data import NAMED_SETS, Augmentation, Dataset
from vitnp.data.dataset import whole_number
from vitnp.resuming import option_name
from vitnp.schedules import DECAYS

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


def training_parser(description: str, network: bool = True, **defaults: Any) -> TrainingParser:
    """Return a parser with the options that all training scripts have; `defaults` are the script's own.

    `network` says whether the options of the network are among them.
    """
    parser = TrainingParser(description=description)
    if network:
        _add_network_options(parser)
    _add_recipe_options(parser)
    _add_augmentation_options(parser)
    places = parser.add_argument_group("places")
    places.add_argument("--out", type=Path, help="folder for results; a number is added if it holds a run")
    places.add_argument("--resume", type=Path, help="checkpoint of a stopped run, whose settings and folder apply")
    places.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints, 0 for every step")
    places.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    places.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(**defaults)
    return parser


def _add_network_options(parser: TrainingParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument("--patch-size", type=int, help="pixels on a side of a patch")
    network.add_argument("--dim", type=int, help="width of a token")
    network.add_argument("--depth", type=int, help="encoder blocks")
    network.add_argument("--heads", type=int, help="attention heads; must divide dim")
    network.add_argument("--mlp-dim", type=int, help="width of the MLP's hidden layer")
    network.add_argument("--dropout", type=float, default=0.0, help="rate after dense layers and position embedding")
    network.add_argument("--attention-dropout", type=float, default=0.0, help="rate on attention weights")
    network.add_argument("--gelu", choices=("tanh", "erf"), default="tanh", help="form of the activation")
    network.add_argument("--pool", choices=POOLS, default="token", help="what the classifier reads")
    network.add_argument(
        "--pos-init", choices=("normal", "sincos"), default="normal", help="how the learned positions start"
    )
    network.add_argument(
        "--positions", choices=POSITIONS, default="learned", help="how the network knows where a patch is"
    )
    network.add_argument("--pos-at", choices=POSITIONS["learned"], default="stem", help="where positions are added")
    network.add_argument("--stochastic-depth", type=float, default=0.0, help="rate at which the last block drops out")
    network.add_argument("--layer-scale", type=float, help="where the weights of channels of a branch start; none else")
    network.add_argument("--registers", type=int, default=0, help="tokens that no classifier reads")
    network.add_argument("--qk-norm", action=argparse.BooleanOptionalAction, default=False, help="norms of q and k")
    network.add_argument("--representation-size", type=int, help="width of a tanh layer before the head; none else")
    network.add_argument(
        "--stem-blocks",
        type=counts,
        metavar="N,N",
        help="units of each stage of a ResNet in front, '' for its root alone",
    )
    network.add_argument("--stem-width", type=float, default=1.0, help="times 64, the channels of the stem's root")
    for kind in ("sincos", "relative", "relative-1d", "none"):
        parser.when("positions", kind, pos_init="normal")  # whatever a script's default is: nothing starts as waves


def _add_recipe_options(parser: TrainingParser) -> None:
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=int, help="passes over the training set")
    recipe.add_argument("--batch-size", type=int, help="images in a step")
    recipe.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="the rule of a step")
    recipe.add_argument("--lr", type=float, help="peak learning rate")
    recipe.add_argument("--momentum", type=float, help="of SGD, 0.9 unless said")
    recipe.add_argument("--warmup-epochs", type=float, help="epochs in which the rate rises, half the run at most")
    recipe.add_argument("--decay", choices=DECAYS, default="cosine", help="how the rate falls")
    recipe.add_argument("--weight-decay", type=float, help="decoupled, of weights only")
    recipe.add_argument("--label-smoothing", type=float, help="share of the target spread over all classes")
    recipe.add_argument("--clip-norm", type=norm, default=1.0, help="largest norm of the gradient, inf for any")
    recipe.add_argument(
        "--ema", type=float, metavar="DECAY", help="judge and keep a moving average of the weights, as of 0.9999"
    )
    recipe.add_argument("--held-out", type=int, help="training images kept for validation")
    recipe.add_argument(
        "--probe-every", type=int, metavar="EPOCHS", help="epochs between linear probes of the features"
    )
    recipe.add_argument("--probe-shots", type=int, default=10, help="images of each class that a probe learns from")
    recipe.add_argument("--seed", type=int, default=0, help="of everything random")
    recipe.add_argument("--shards", type=int, default=usable_cores(), help="threads, each with a part of the batch")
    recipe.add_argument(
        "--micro-batch",
        type=int,
        help="gradient accumulation: at most so many images of a shard at a time, whose gradients add up to the "
        "batch's; on a CPU chosen by their size unless given",
    )


def _add_augmentation_options(parser: TrainingParser) -> None:
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


def counts(text: str) -> list[int]:
    """The integers between commas; a list, as settings come back from a checkpoint."""
    return [int(word) for word in text.split(",")] if text else []


def norm(text: str) -> float | None:
    """The number, or None if it is infinite, which no checkpoint could hold."""
    return None if float(text) == math.inf else float(text)


def add_download_options(parser: TrainingParser, layout: str) -> None:
    """Add what a script has whose data set can be downloaded; `layout` says what --data may hold."""
    places = parser.add_argument_group("data")
    places.add_argument("--data", type=Path, help=f"folder with {layout}, or to download to")
    places.add_argument("--mirror", help="web address of a folder with the archives, asked before the known ones")
    flag = argparse.BooleanOptionalAction
    places.add_argument("--download", action=flag, default=True, help="fetch what is not found")


def load_named_set(name: str, args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Return the training and the test set of one of `vitnp.data.NAMED_SETS`, from where these options say."""
    load, where = NAMED_SETS[name].loader, {"root": args.data, "download": args.download, "mirror": args.mirror}
    return load("train", **where), load("test", **where)


def check_held_out(name: str, args: argparse.Namespace, unless_said: int | None = None) -> None:
    """Set --held-out where it is not said; DataError, before any image is loaded, where it leaves none to train on."""
    if args.held_out is None:
        args.held_out = unless_said
    whole_number("--held-out", args.held_out, 1, NAMED_SETS[name].training_images - 1)


# what load_pretrained may have to be told
PRETRAINED = ("num_heads", "grid", "pool", "gelu", "layer_norm_eps")


def add_pretrained_options(parser: Any) -> None:
    """Add, to a parser or a group of one, --pretrained's companions: what its file does not say of the network."""
    parser.add_argument("--num-heads", type=int, metavar="N", help="its attention heads, where its file does not say")
    parser.add_argument("--grid", type=grid, metavar="ROWSxCOLUMNS", help="its patches, where they are not a square")
    parser.add_argument("--pool", choices=POOLS, help="what it classifies by, where you know: is checked")
    parser.add_argument("--gelu", choices=("tanh", "erf"), help="its GELU, if another than its program's")
    parser.add_argument("--layer-norm-eps", type=float, metavar="EPS", help="of its norms, if not its program's")


def told_of_pretrained(args: argparse.Namespace) -> dict[str, Any]:
    """Return these options as load_pretrained takes them."""
    return {name: getattr(args, name) for name in PRETRAINED}


def grid(text: str) -> list[int]:
    """7x9 -> [7, 9], and 7 -> [7, 7]: a list, as a checkpoint's settings have it."""
    sides = [int(side) for side in text.split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides * (3 - len(sides))


def make_config(args: argparse.Namespace, images: dict[str, Any]) -> ViTConfig:
    names = ["patch_size", "dim", "depth", "mlp_dim", "dropout", "attention_dropout", "pool", "gelu", "pos_init"]
    names += ["positions", "pos_at", "stochastic_depth", "layer_scale", "registers", "qk_norm"]
    names += ["representation_size", "stem_blocks", "stem_width"]
    if args.stem_blocks is None and args.stem_width != 1:
        raise ValueError(
            f"--stem-width is {args.stem_width}, but there is no stem: leave it out, or give --stem-blocks"
        )
    return ViTConfig(num_heads=args.heads, **{name: getattr(args, name) for name in names}, **images)


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError that names an option whose value cannot be, whatever the data are."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out is {args.out}, which is a file; it must be a folder, or one that can be made")
    check_ranges(args)


def check_ranges(args: argparse.Namespace) -> None:
    """The same of all options but where it is written, which a run that resumes knows."""
    at_least = dict.fromkeys(
        ("epochs", "batch_size", "held_out", "shards", "micro_batch", "images", "probe_every", "probe_shots"), 1
    )
    at_least |= dict.fromkeys(("seed", "warmup_epochs", "weight_decay", "label_smoothing", "save_every"), 0)
    for name, least in at_least.items():
        value = getattr(args, name, None)
        if not isinstance(value, int | float | None):  # from a checkpoint
            raise ValueError(f"{option_name(name)} is {value!r}; it must be a number")
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{option_name(name)} is {value}; it must be {least} or more, and finite")
    if args.clip_norm is not None and not args.clip_norm > 0:
        raise ValueError(f"--clip-norm is {args.clip_norm}; it must be above 0")
    if not 0 < args.lr < math.inf:
        raise ValueError(f"--lr is {args.lr}; it must be above 0, and finite")
    if not args.label_smoothing < 1:
        raise ValueError(f"--label-smoothing is {args.label_smoothing}; it must be below 1")
    if args.shards > max(args.batch_size, usable_cores()):
        raise ValueError(f"--shards is {args.shards}; it must be at most the {args.batch_size} images of a batch")
    if args.probe_every and args.held_out == 1:
        raise ValueError("--held-out is 1; --probe-every wants 2 or more")
    check_rule(args)
    make_augmentation(args)


def check_shift(args: argparse.Namespace, config: ViTConfig) -> None:
    """Raise ValueError where images of the network's size would be moved out of sight."""
    whole_number("--shift", args.shift, 0, min(config.image_size) - 1)


def check_rule(args: argparse.Namespace) -> None:
    """The same of the options that say how a step, and an average, is made."""
    if args.optimizer == "sgd":
        args.momentum = 0.9 if args.momentum is None else args.momentum
        if not 0 <= args.momentum < 1:
            raise ValueError(f"--momentum is {args.momentum}; it must be at least 0 and below 1")
    elif args.momentum is not None:
        raise ValueError(
            f"--momentum is {args.momentum}, which Adam has no place for: leave it out, or --optimizer sgd"
        )
    if args.ema is not None and not 0 < args.ema < 1:
        raise ValueError(f"--ema is {args.ema}; it must be above 0 and below 1")


def make_augmentation(args: argparse.Namespace) -> Augmentation:
    return Augmentation(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Augmentation)})
