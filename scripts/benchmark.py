#!/usr/bin/env python3
"""Time training steps or inference, beside PyTorch and JAX, and say where the time goes.

    python scripts/benchmark.py --compare torch                          five workloads, training steps
    python scripts/benchmark.py --compare torch,torch-compile,jax cifar-96 --picture speed.png
    python scripts/benchmark.py --inference --compare torch
    python scripts/benchmark.py --layers ti-224                          the time of each kind of layer
    python scripts/benchmark.py --memory --compare torch cifar-192       peak memory, each side in a process of its own
    python scripts/benchmark.py Ti/16:batch=4,image_size=160,dropout=0.1 any other size
    python scripts/benchmark.py --device cuda --tf32 --compare torch,torch-compile cifar-192:batch=1024 B/16:batch=64

A training step is forward, cross-entropy, backward and Adam, in float32; with --tf32 a GPU may round the factors of
products to TF32's 11 bits, on every side or on none. CuPy then rounds in products of two matrices, not in attention's.
All sides start from the same weights and see the same batch, take turns in one process, and their losses are compared,
so that none is timed at other work. Medians count; on a shared machine only ratios do. GFLOP/s are those of the matrix
products alone, and beside them stands their share of what this machine's matrix product of 2048 x 2048 reaches in the
same run. The sides shift-flip and rand-augment tell what data cost: vitnp's step on images that are augmented ahead of
it on a thread.
"""

import argparse
import collections
import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import peers

import vitnp
from vitnp import train
from vitnp.cores import usable_cores
from vitnp.data import Augmentation, Batches, Dataset, channel_statistics, prepared_ahead
from vitnp.inspection import check_new_picture

MNIST = {"image_size": 28, "channels": 1, "dim": 64, "num_heads": 4, "mlp_dim": 128}
CIFAR = {"image_size": 32, "patch_size": 4, "channels": 3, "depth": 6, "num_heads": 3}
WORKLOADS = {
    "mnist-p7": (128, {**MNIST, "patch_size": 7, "depth": 6}),
    "mnist-p4": (128, {**MNIST, "patch_size": 4, "depth": 4}),
    "cifar-96": (128, {**CIFAR, "dim": 96, "mlp_dim": 192}),
    "cifar-192": (128, {**CIFAR, "dim": 192, "mlp_dim": 768}),
    "ti-224": (8, vars(vitnp.ViTConfig.named("Ti/16"))),
}
TURN = 0.5  # seconds
SQUARE = 2048  # side of the matrices whose product shows what the machine can do
AGREE = 1e-4  # relative: how close the losses of two libraries are after three steps
AGREE_TF32 = 1e-2  # the same where products have three digits


def vitnp_side(model, images, labels, device, micro_batch=None):
    """What this package does unless told otherwise."""
    model = model.to_device(device)
    step = vitnp.ShardedStep(model, vitnp.Adam(model, peers.LEARNING_RATE), micro_batch=micro_batch)
    images, labels = (vitnp.to_device(array, device) for array in (images, labels))
    whole = {} if device == "cpu" else {"batch_size": len(images)}  # in one pass, as the others do
    return peers.Side(lambda: float(step.step(images, labels)), lambda: vitnp.predict(model, images, **whole))


def augmented_side(model, images, labels, device, **changes):
    """The same where every batch is chosen, augmented and normalised while the one before trains."""
    rng, batch = np.random.default_rng(0), len(images)
    images = rng.integers(0, 256, (16 * batch, *images.shape[1:]), np.uint8)
    names = tuple(map(str, range(model.config.num_classes)))
    dataset = Dataset(images, np.tile(labels, 16), names, "noise")
    mean, std = channel_statistics(images)
    batches = Batches(dataset, batch, mean=mean, std=std, augmentation=Augmentation(**changes))
    stream = prepared_ahead(batch for epoch in itertools.count() for batch in batches.epoch(epoch))
    model = model.to_device(device)
    step = vitnp.ShardedStep(model, vitnp.Adam(model, peers.LEARNING_RATE))

    def take():
        images, labels = next(stream)
        return float(step.step(vitnp.to_device(images, device), labels))

    return peers.Side(take, lambda: vitnp.predict(model, images, mean=mean, std=std))


SIDES = {
    "vitnp": vitnp_side,
    "torch": peers.torch_side,
    "torch-compile": functools.partial(peers.torch_side, compiled=True),
    "jax": peers.jax_side,
    "shift-flip": functools.partial(augmented_side, shift=4, flip=True),
    "rand-augment": functools.partial(augmented_side, shift=4, flip=True, rand_augment=9.0),
}
OTHER_WORK = ("shift-flip", "rand-augment")  # on other images, so their losses are their own


def parse_workload(text):
    """NAME or NAME:field=value,... -> (name, batch, config); NAME is one of WORKLOADS or a published size as B/32."""
    name, _, changes = text.partition(":")
    if name in WORKLOADS:
        batch, fields = WORKLOADS[name]
    else:
        try:
            batch, fields = 8, vars(vitnp.ViTConfig.named(name))
        except ValueError:
            known = ", ".join(WORKLOADS)
            raise ValueError(f"there is no workload {name!r}: choose one of {known}, or a size as B/16") from None
    fields = dict(fields)
    for change in filter(None, changes.split(",")):
        field, _, value = change.partition("=")
        if field != "batch" and field not in vitnp.ViTConfig.__dataclass_fields__:
            raise ValueError(f"{text}: there is no field {field!r}; write NAME:batch=64,depth=4 and the like")
        fields[field] = json.loads(value) if value.replace(".", "").isdigit() else value
    batch = fields.pop("batch", batch)
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"{text}: batch is {batch!r}; it must be an integer of at least 1")
    return text, batch, vitnp.ViTConfig(**fields)


def make_batch(batch, config):
    """Return a new model and a batch of noise for it."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *config.image_size, config.channels), np.float32)
    return vitnp.VisionTransformer(config, rng=0), images, rng.integers(0, config.num_classes, batch)


def square_product():
    """Return a function that multiplies two large square matrices on all cores, and its operations."""
    a, b = np.random.default_rng(0).standard_normal((2, SQUARE, SQUARE), np.float32)
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out), 2 * SQUARE**3


def time_in_turn(steps, seconds):
    """Return the milliseconds of each side's calls, taken in turns for so many seconds."""
    times = {side: [] for side in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for side, step in steps.items():
            step()  # not counted: the other side's threads may still spin, waiting for work
            turn = time.perf_counter() + TURN
            while (start := time.perf_counter()) < turn:
                step()
                times[side].append(1000 * (time.perf_counter() - start))
    return times


def compare_results(sides, inference, agree=AGREE):
    """Call each side three times, and raise ValueError where one computes something else than vitnp."""
    found = {name: [side.infer() if inference else side.train() for _ in range(3)] for name, side in sides.items()}
    for name in sides.keys() - set(OTHER_WORK) - {"vitnp"}:
        values = [_softmax(logits) for logits in found[name]] if inference else found[name]
        if not np.allclose(values, found["vitnp"], rtol=agree, atol=agree if inference else 0):
            what = "probabilities" if inference else f"losses, {found[name]},"
            raise ValueError(f"{name} computes other {what} than vitnp: both would be timed at different work")


def _softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def measure(name, batch, config, args):
    """Time one workload; return a dict that JSON can hold."""
    model, images, labels = make_batch(batch, config)
    if args.inference:  # a new model's head is zero, and so would all answers be
        model.classifier.head.weight[...] = np.random.default_rng(1).standard_normal(model.classifier.head.weight.shape)
    sides = {side: SIDES[side](model.astype("float32"), images, labels, args.device) for side in args.sides}
    compare_results(sides, args.inference, AGREE_TF32 if args.tf32 else AGREE)
    calls = {side: functions.infer if args.inference else functions.train for side, functions in sides.items()}
    flops = vitnp.summary(config, batch).flops * (1 if args.inference else 3)  # backward has twice as many as forward
    if args.device == "cpu":
        calls["square"], square_flops = square_product()
    times = time_in_turn(calls, args.seconds)
    ms = {side: statistics.median(values) for side, values in times.items()}
    rate = square_flops / ms.pop("square") / 1e6 if args.device == "cpu" else None
    rows = {
        side: {"ms": value, "images_per_s": 1000 * batch / value, "gflop_per_s": flops / value / 1e6}
        for side, value in ms.items()
    }
    return {"workload": name, "batch": batch, "inference": args.inference, "square_gflop_per_s": rate, "sides": rows}


def print_times(result):
    """One line a side."""
    rate, sides = result["square_gflop_per_s"], result["sides"]
    for i, (side, row) in enumerate(sides.items()):
        name = f"{result['workload']:24} {result['batch']:5}" if i == 0 else " " * 30
        share = f"{100 * row['gflop_per_s'] / rate:6.0f} %" if rate else " " * 8
        ratio = f"{row['ms'] / sides['vitnp']['ms']:8.2f}" if i else ""
        print(f"{name} {side:13} {row['ms']:9.2f} {row['images_per_s']:9,.0f} {row['gflop_per_s']:8.0f}{share}{ratio}")
    sys.stdout.flush()


# -- where the time goes ----------------------------------------------------------------------------------------------


def profile(name, batch, config, seconds):
    """Print the time of one shard's step on one core by phase and by kind of layer."""
    cores = usable_cores()
    model, images, labels = make_batch(max(1, batch // cores), config)
    ctx, optimizer = vitnp.Context(train=True, rng=0), vitnp.Adam(model)
    spent, calls, phases, end = collections.Counter(), [], collections.defaultdict(list), time.perf_counter() + seconds
    for layer in model.layers():
        for phase in ("forward", "backward"):
            _time_calls(layer, phase, spent, calls)
    per_layer = collections.defaultdict(list)
    with vitnp.parallel.blas_controller().limit(limits=1, user_api="blas"):
        while time.perf_counter() < end or len(phases["step"]) < 5:
            spent.clear()
            marks = [time.perf_counter()]
            for work in _phases(model, images, labels, ctx, optimizer):
                work()
                marks.append(time.perf_counter())
            for phase, (start, stop) in zip(PHASES, itertools.pairwise(marks), strict=True):
                phases[phase].append(stop - start)
            phases["step"].append(marks[-1] - marks[0])
            for key, value in spent.items():
                per_layer[key].append(value)
    _print_profile(name, len(images), phases, per_layer)


PHASES = ("forward", "loss", "backward", "optimizer")


def _phases(model, images, labels, ctx, optimizer):
    """The four parts of a step, in order."""
    results = {}
    yield lambda: results.update(logits=model.forward(images, ctx))
    yield lambda: results.update(dlogits=vitnp.softmax_cross_entropy(results["logits"], labels)[1])
    yield lambda: model.backward(results["dlogits"], ctx)
    yield lambda: (optimizer.step(ctx), ctx.zero_grad())


def _time_calls(layer, phase, spent, running):
    """Wrap a layer's method so that `spent` counts its time without that of the layers it calls."""
    method, kind = getattr(layer, phase), layer.path.rpartition(".")[2] or "the whole"
    key = (f"{type(layer).__name__} {kind}" if type(layer).__name__ == "Linear" else type(layer).__name__, phase)

    def timed(*arrays):
        start = time.perf_counter()
        running.append(0.0)
        result = method(*arrays)
        taken = time.perf_counter() - start
        spent[key] += taken - running.pop()
        if running:
            running[-1] += taken
        return result

    setattr(layer, phase, timed)


def _print_profile(name, batch, phases, per_layer):
    medians = {key: 1000 * statistics.median(values) for key, values in per_layer.items()}
    whole = {phase: 1000 * statistics.median(values) for phase, values in phases.items()}
    parts = ", ".join(f"{phase} {whole[phase]:.2f}" for phase in PHASES)
    print(f"{name}, {batch} images on one core: {whole['step']:.2f} ms ({parts})")
    print(f"    {'layer':20} {'forward':>9} {'backward':>9} {'share':>7}")
    kinds = sorted({kind for kind, _ in medians}, key=lambda kind: -_both(medians, kind))
    for kind in kinds:
        forward, backward = medians.get((kind, "forward"), 0.0), medians.get((kind, "backward"), 0.0)
        print(f"    {kind:20} {forward:9.2f} {backward:9.2f} {100 * (forward + backward) / whole['step']:6.1f} %")


def _both(medians, kind):
    return sum(medians.get((kind, phase), 0.0) for phase in ("forward", "backward"))


# -- memory -----------------------------------------------------------------------------------------------------------


def peak_memory(side, text, args):
    """Return the peak of a process that does nothing but three steps of one side, in MB; on a GPU, of its memory."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_use_memory, args=(send, side, text, args))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise ValueError(f"{side}: its process has died; its own message stands above") from None
    finally:
        process.join()


def _use_memory(send, side, text, args):
    _, batch, config = parse_workload(text)
    peak = _peak_of_the_process if args.device == "cpu" else _taken_on_the_gpu()
    functions = SIDES[side](*make_batch(batch, config), args.device)
    for _ in range(3):
        functions.infer() if args.inference else functions.train()
    send.send(peak() / 1e6)


def _peak_of_the_process():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _taken_on_the_gpu():
    """Return a function that says by how many bytes the GPU's free memory has shrunk; no side gives any back."""
    free = vitnp.backend.require_cupy().cuda.runtime.memGetInfo
    before, _ = free()
    return lambda: before - free()[0]


# -- the command ------------------------------------------------------------------------------------------------------


def draw(results, path):
    """Bars of images a second, relative to vitnp's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 + 1.6 * len(results), 4), layout="constrained")
    axes, sides = figure.subplots(), list(results[0]["sides"])
    for i, side in enumerate(sides):
        heights = [result["sides"]["vitnp"]["ms"] / result["sides"][side]["ms"] for result in results]
        places = [j + i * 0.8 / len(sides) for j in range(len(results))]
        bars = axes.bar(places, heights, 0.8 / len(sides), label=side)
        speeds = [f"{result['sides'][side]['images_per_s']:,.0f}" for result in results]
        axes.bar_label(bars, speeds, fontsize="small", rotation=90 if len(sides) > 2 else 0, padding=2)
    axes.set_xticks([j + 0.4 - 0.4 / len(sides) for j in range(len(results))], [r["workload"] for r in results])
    what = "Inference" if results[0]["inference"] else "Training"
    axes.set(title=f"{what}: images a second, beside vitnp's", ylabel="speed, vitnp = 1")
    axes.margins(y=0.2)
    axes.legend()
    figure.savefig(path, dpi=120)


def benchmark(args):
    os.environ["CUPY_TF32"] = str(int(args.tf32))  # CuPy looks at its first product; so do the other sides, in `peers`
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or JAX takes most of a GPU's memory, which all sides share
    workloads = [parse_workload(text) for text in args.workloads]
    if args.picture is not None:
        check_new_picture(args.picture)
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--picture needs matplotlib: pip install matplotlib")
    if args.layers:
        for name, batch, config in workloads:
            profile(name, batch, config, args.seconds)
        return 0
    if args.memory:
        return report_memory(workloads, args)
    if not args.json:
        side = "inference" if args.inference else "training"
        numbers = f"{'ms':>9} {'images/s':>9} {'GFLOP/s':>8} {'of peak':>7} {'ratio':>7}"
        print(f"{'workload':24} {'batch':>5} {side:13} {numbers}")
    results = []
    for name, batch, config in workloads:
        results.append(measure(name, batch, config, args))
        if not args.json:
            print_times(results[-1])
    if args.json:
        print(json.dumps(results))
    elif results[-1]["square_gflop_per_s"]:
        rates = ", ".join(f"{result['square_gflop_per_s']:.0f}" for result in results)
        print(f"peak: GFLOP/s of the product of two {SQUARE} x {SQUARE} matrices, in the order of the rows: {rates}")
    if args.picture is not None:
        draw(results, args.picture)
    return 0


def report_memory(workloads, args):
    results = []
    for name, *_ in workloads:
        found = {side: peak_memory(side, name, args) for side in args.sides}
        results.append({"workload": name, "peak_mb": found})
        if not args.json:
            shares = (f"{side} {mb:,.0f} MB ({found['vitnp'] / mb:.2f})" for side, mb in found.items())
            print(f"{name:24} {'   '.join(shares)}", flush=True)
    print(json.dumps(results) if args.json else "in brackets: vitnp's peak, as a share of that side's")
    return 0


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    known = ", ".join(WORKLOADS)
    parser.add_argument(
        "workloads",
        nargs="*",
        default=list(WORKLOADS),
        metavar="WORKLOAD",
        help=f"{known}, or a published size as B/32; each with changes, as cifar-96:batch=64,depth=12",
    )
    parser.add_argument(
        "--compare", action="append", default=[], metavar="SIDES", help=f"in the same run: {', '.join(list(SIDES)[1:])}"
    )
    parser.add_argument("--inference", action="store_true", help="time inference instead of training steps")
    parser.add_argument("--layers", action="store_true", help="time each kind of layer instead, on one core")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--seconds", type=float, default=20, help="how long to measure a workload, all sides together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round the factors of products to TF32")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="of the speeds; needs matplotlib")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def parse(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    compared = list(dict.fromkeys(side for text in args.compare for side in text.split(",")))
    if unknown := [side for side in compared if side not in list(SIDES)[1:]]:
        parser.error(f"--compare is {unknown[0]!r}; choose from {', '.join(list(SIDES)[1:])}")
    for side in compared:
        package = {"torch": "torch", "torch-compile": "torch", "jax": "jax"}.get(side)
        if package and importlib.util.find_spec(package) is None:
            parser.error(f"--compare {side} needs {package}: pip install {package}")
    if not 0 < args.seconds < float("inf"):
        parser.error(f"--seconds is {args.seconds}; it must be above 0, and finite")
    if args.tf32 and args.device == "cpu":
        parser.error("--tf32 is a way of GPUs; it needs --device cuda")
    if args.layers and args.device != "cpu":
        parser.error("--layers times one core; leave out --device cuda")
    args.sides = ["vitnp", *compared]
    return args


if __name__ == "__main__":
    args = parse()
    raise SystemExit(train.report_errors(lambda: benchmark(args), debug=args.debug))
