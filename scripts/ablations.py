#!/usr/bin/env python3
"""Ablations: what positions, pooling, patches, depth and width each do for a Vision Transformer.

    python scripts/ablations.py digits                                    rendered on the spot
    python scripts/ablations.py mnist --only pooling,depth --seeds 5
    python scripts/ablations.py cifar10 --epochs 30 --out runs/long

Each variant changes one thing in one network, as the paper does (Dosovitskiy et al., appendix D). All train with the
same recipe, the same seeds and on the same images in the same order, and are tested once, with their final weights.
Nothing is chosen: the accuracy on images kept for validation is written to the log, and no more.

Results are kept in --out, one folder for each variant and seed. The same command goes on after a stop, or a kill, where
it was, and trains what is not there yet: more --seeds, another --only. The tables are ablations.md and ablations.json,
the picture ablations.png, and all three have everything that is finished there.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import vitnp
from vitnp import train
from vitnp.console import report_errors
from vitnp.cores import usable_cores
from vitnp.data import load_cifar10, load_digits, load_mnist
from vitnp.durable import Lock, write_atomically
from vitnp.options import training_parser
from vitnp.resuming import CHANGEABLE, CHECKPOINT, PLACES, load_run

TEST_SEED = 1_000_000  # of the digits, as in train_digits.py
GREY = {
    "image_size": 28,
    "patch_size": 7,
    "channels": 1,
    "num_classes": 10,
    "dim": 64,
    "depth": 4,
    "num_heads": 4,
    "mlp_dim": 128,
}
COLOUR = {**GREY, "image_size": 32, "patch_size": 4, "channels": 3, "dim": 96, "depth": 6, "num_heads": 3}
COLOUR["mlp_dim"] = 192
RECIPE = {"batch_size": 128, "warmup_epochs": 0.5, "weight_decay": 0.05, "label_smoothing": 0.05, "held_out": 1000}
SIZES = {"patch": (4, 7, 14), "depth": (1, 2, 4, 8), "width": (32, 64, 128)}


class Bench(NamedTuple):
    """A data set, the network that the ablations change, its recipe, and the sizes to compare."""

    load: object
    network: vitnp.ViTConfig
    recipe: dict
    sizes: dict


BENCHES = {
    "digits": Bench(
        lambda args: (load_digits(21000, seed=0), load_digits(2000, seed=TEST_SEED)),
        vitnp.ViTConfig(**GREY),
        {**RECIPE, "epochs": 5, "lr": 2e-3, "shift": 2},
        SIZES,
    ),
    "mnist": Bench(
        lambda args: [load_mnist(part, root=args.data, download=args.download) for part in ("train", "test")],
        vitnp.ViTConfig(**GREY),
        {**RECIPE, "epochs": 7, "lr": 4e-3, "shift": 1, "distort": 0.4},
        SIZES,
    ),
    "cifar10": Bench(
        lambda args: [load_cifar10(part, root=args.data, download=args.download) for part in ("train", "test")],
        vitnp.ViTConfig(**COLOUR),
        {**RECIPE, "epochs": 12, "lr": 2e-3, "warmup_epochs": 1.0, "label_smoothing": 0.1, "shift": 4, "flip": True},
        {"patch": (4, 8, 16), "depth": (2, 4, 6, 8), "width": (32, 96, 192)},
    ),
}


def ablations(network, sizes):
    """Return what there is to change: a name -> values -> the fields of ViTConfig.

    `positions` are of which kind, `places` where learned ones are added, and `start` is what those begin as.
    """
    head, ratio = network.dim // network.num_heads, network.mlp_dim // network.dim
    return {
        "positions": {
            kind: {"positions": kind} for kind in ("none", "learned", "learned-2d", "relative-1d", "relative", "sincos")
        },
        "places": {place: {"pos_at": place} for place in ("stem", "layers", "shared")},
        "start": {start: {"pos_init": start} for start in ("normal", "sincos")},
        "pooling": {pool: {"pool": pool} for pool in ("token", "mean")},
        "patch": {str(side): {"patch_size": side} for side in sizes["patch"]},
        "depth": {str(depth): {"depth": depth} for depth in sizes["depth"]},
        # wider as published networks are: more heads of the same size, and the MLP in proportion
        "width": {str(d): {"dim": d, "num_heads": d // head, "mlp_dim": ratio * d} for d in sizes["width"]},
    }


class Variant(NamedTuple):
    """One line of the table; `name` is that of its folder, which all that change nothing share."""

    ablation: str
    value: str
    config: vitnp.ViTConfig
    name: str


def choose(args):
    """Return all variants of the data set, and those to train, of the ablations of --only."""
    if args.dataset not in BENCHES:
        raise ValueError(f"there is no data set {args.dataset!r}; choose one of {', '.join(BENCHES)}")
    network = BENCHES[args.dataset].network
    known = ablations(network, BENCHES[args.dataset].sizes)
    names = args.only.split(",") if args.only else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--only is {unknown[0]!r}; choose from {','.join(known)}")
    variants = []
    for ablation, values in known.items():
        for value, fields in values.items():
            config = dataclasses.replace(network, **fields)
            variants.append(Variant(ablation, value, config, "base" if config == network else f"{ablation}-{value}"))
    chosen = [variant for name in dict.fromkeys(names) for variant in variants if variant.ablation == name]
    return variants, chosen


def recipe_of(args):
    """The options of a training script that has this recipe."""
    recipe = training_parser("", **BENCHES[args.dataset].recipe).parse_args([])
    for name in ("epochs", "shards", "save_every", "data"):
        if getattr(args, name) is not None:
            setattr(recipe, name, getattr(args, name))
    return recipe


# -- one run ----------------------------------------------------------------------------------------------------------


class Run(train.Trainer):
    """A training run as the training scripts have it, whose output goes to a file."""

    def _say_how_to_resume(self, number):
        return 128 + number  # the same command goes on: `run` says so


def train_one(variant, seed, sets, recipe, out):
    """Train one network, from where it was; return its result, or the exit status of a run that was stopped."""
    folder = out / variant.name / f"seed-{seed}"
    path, kept = folder / CHECKPOINT, folder / "result.json"
    if kept.exists():
        return read_result(kept, variant.config)
    folder.mkdir(parents=True, exist_ok=True)
    settings = argparse.Namespace(**{**vars(recipe), "seed": seed})
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        if path.exists():
            checkpoint = load_run(path, "cpu")
            trainer = Run(checkpoint.model, checkpoint.optimizer, *sets, settings)
            trainer.restore(path, checkpoint)
        else:
            model = vitnp.VisionTransformer(variant.config, rng=seed)
            trainer = Run(model, vitnp.Adam(model, settings.lr, weight_decay=settings.weight_decay), *sets, settings)
            trainer.begin(folder)
        if status := trainer.run(time.perf_counter()):
            return status
    tested = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    result = {
        "config": variant.config.to_dict(),
        "seed": seed,
        "test_accuracy": tested["test_accuracy"],
        "images_per_s": trainer.images / trainer.seconds,
        "seconds": trainer.seconds,
    }
    write_sealed(kept, result)
    return result


def read_result(path, config):
    """Return a result that is there; ValueError where it is another network's, or not as it was written."""
    result = read_sealed(path, "remove it, and the same command tests that network again")
    if vitnp.ViTConfig(**result["config"]) != config:
        raise ValueError(f"{path}: a result of another network, {result['config']}: choose another --out")
    return result


def read_finished(variants, out):
    """Return by the variants' names what is there: a dict of results by their seeds."""
    results = {}
    for variant in variants:
        found = [read_result(path, variant.config) for path in out.glob(f"{variant.name}/seed-*/result.json")]
        results[variant.name] = {result["seed"]: result for result in found}
    return results


def write_sealed(path, content):
    """Write a dict as JSON, with a digest by which `read_sealed` knows it again."""
    write_atomically(path, json.dumps({**content, "sha256": _digest(content)}).encode())


def read_sealed(path, advice):
    """Return the dict that is in a file; ValueError with the advice unless it is as `write_sealed` left it."""
    try:
        content = json.loads(path.read_bytes())
        whole = content.pop("sha256") == _digest(content)
    except (ValueError, TypeError, AttributeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: is damaged, or was changed after it was written: {advice}")
    return content


def _digest(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_recipe(out, recipe, args):
    """Return what results depend on; ValueError where `out` holds those of another recipe, which is no comparison."""
    path, settings = out / "recipe.json", {"dataset": args.dataset, "images": args.images}
    others = (*PLACES, *CHANGEABLE, "seed", "shards")
    settings |= {name: value for name, value in vars(recipe).items() if name not in others}
    # where nothing was trained yet, there is nothing to compare with
    if path.exists() and any(list(out.glob(f"*/seed-*/{name}")) for name in (CHECKPOINT, "result.json")):
        before = read_sealed(path, "choose another --out")
        others = [
            f"{name} {before[name]}" for name in settings.keys() & before.keys() if before[name] != settings[name]
        ]
        if others:
            raise ValueError(f"{out} holds results with {', '.join(others)}: give the same, or another --out")
    return settings


# -- the table --------------------------------------------------------------------------------------------------------


def tabulate(variants, results):
    """Return a dict for each variant with results, that JSON can hold; `results` are by names and seeds."""
    rows = []
    for variant in variants:
        if found := [result for _, result in sorted(results.get(variant.name, {}).items())]:
            accuracies, costs = [result["test_accuracy"] for result in found], vitnp.summary(variant.config)
            rows.append(
                {
                    "ablation": variant.ablation,
                    "value": variant.value,
                    "base": variant.name == "base",
                    "test_accuracies": accuracies,
                    "mean": statistics.fmean(accuracies),
                    "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                    "parameters": costs.parameters,
                    "flops": costs.flops,
                    "images_per_s": statistics.median(result["images_per_s"] for result in found),
                }
            )
    return rows


def markdown(rows):
    """The table as text: it is read as it is, too."""
    lines = [("ablation", "value", "test accuracy, %", "seeds", "parameters", "MFLOP", "images/s")]
    for row in rows:
        spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.2f}"
        lines.append(
            (
                row["ablation"],
                row["value"] + " (base)" * row["base"],
                f"{100 * row['mean']:.2f}{spread}",
                str(len(row["test_accuracies"])),
                f"{row['parameters']:,}",
                f"{row['flops'] / 1e6:.2f}",
                f"{row['images_per_s']:,.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)))
    return "\n".join("| " + " | ".join(map(_align, line, widths, range(7))) + " |" for line in lines) + "\n"


def _align(cell, width, column):
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def write_tables(variants, results, out, dataset):
    rows = tabulate(variants, results)
    write_atomically(out / "ablations.md", markdown(rows).encode())
    write_atomically(out / "ablations.json", json.dumps({"dataset": dataset, "rows": rows}, indent=1).encode())
    return rows


def draw(rows, path, dataset):
    """A panel for each ablation: every seed a point, and their mean a line."""
    if importlib.util.find_spec("matplotlib") is None:
        print(f"for {path.name}: pip install matplotlib")
        return
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["ablation"] for row in rows))
    figure = Figure(figsize=(2.6 * len(names) + 0.8, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        panel = [row for row in rows if row["ablation"] == name]
        for i, row in enumerate(panel):
            accuracies = [100 * accuracy for accuracy in row["test_accuracies"]]
            axes.plot([i] * len(accuracies), accuracies, "o", color="tab:blue", alpha=0.5)
        axes.plot(range(len(panel)), [100 * row["mean"] for row in panel], "_-", color="tab:blue", markersize=18)
        axes.set_xticks(range(len(panel)), [row["value"] + "*" * row["base"] for row in panel], rotation=30)
        axes.set(title=name, xlim=(-0.5, len(panel) - 0.5))
    figure.supylabel(f"test accuracy on {dataset}, %  (* the base)", fontsize="medium")
    figure.savefig(path, dpi=120)


# -- the command ------------------------------------------------------------------------------------------------------


def run(args):
    variants, chosen = choose(args)
    for name, least in (("seeds", 1), ("epochs", 1), ("shards", 1), ("images", 1), ("save_every", 0)):
        if (value := getattr(args, name)) is not None and not least <= value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be {least} or more, and finite")
    recipe, out = recipe_of(args), args.out or Path(f"runs/ablations-{args.dataset}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, which is a file; it must be a folder, or one that can be made")
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out / ".lock", f"runs ablations in {out}"):
        settings = check_recipe(out, recipe, args)
        train_set, test_set = BENCHES[args.dataset].load(args)
        write_sealed(out / "recipe.json", settings)
        if args.images is not None:
            train_set = train_set.subset(range(min(len(train_set), args.images + recipe.held_out)))
        return train_all(variants, chosen, (train_set, test_set), recipe, out, args)


def train_all(variants, chosen, sets, recipe, out, args):
    """Train the chosen ones with the first seed, then with the second: whenever it is stopped, they compare fairly.

    It has all that is finished, whichever command did that.
    """
    results, unique = read_finished(variants, out), {variant.name: variant for variant in chosen}
    # the base alone, which they all share, compares nothing
    known = {variant.ablation for variant in variants if variant.name != "base" and results[variant.name]}
    known |= {variant.ablation for variant in chosen}
    lines = [variant for variant in variants if variant.ablation in known]
    jobs = [(seed, variant) for seed in range(args.seeds) for variant in unique.values()]
    for number, (seed, variant) in enumerate(jobs, 1):
        result = train_one(variant, seed, sets, recipe, out)
        if isinstance(result, int):
            print(f"stopped in {variant.name}, seed {seed}: the same command goes on")
            return result
        results[variant.name][seed] = result
        accuracy, speed = 100 * result["test_accuracy"], result["images_per_s"]
        print(
            f"{number:3}/{len(jobs)}  {variant.name}, seed {seed}: {accuracy:.2f} %, {speed:,.0f} images/s, "
            f"{result['seconds']:.0f} s",
            flush=True,
        )
        rows = write_tables(lines, results, out, args.dataset)
    draw(rows, out / "ablations.png", args.dataset)
    print(f"\n{markdown(rows)}\nin {out}: ablations.md, ablations.json, and each run in a folder of its own")
    return 0


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("dataset", metavar="DATASET", help=f"{', '.join(BENCHES)}")
    known = ",".join(ablations(BENCHES["digits"].network, SIZES))
    parser.add_argument("--only", metavar="NAMES", help=f"some of {known}; all unless given")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each variant, with the seeds 0, 1, ...")
    parser.add_argument("--epochs", type=int, help="passes over the training set; the data set's own unless given")
    parser.add_argument("--images", type=int, help="train on so many images alone")
    parser.add_argument("--shards", type=int, default=usable_cores(), help="threads, each with a part of the batch")
    parser.add_argument("--out", type=Path, help="folder for results; runs/ablations-DATASET unless given")
    parser.add_argument("--data", type=Path, help="folder of the data set, as for train_mnist.py and train_cifar.py")
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--download", action=flag, default=True, help="fetch what is not found")
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints, 0 for every step")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    args = make_parser().parse_args()
    raise SystemExit(report_errors(lambda: run(args), debug=args.debug))
