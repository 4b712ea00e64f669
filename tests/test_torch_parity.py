"""vitnp against PyTorch, live: the same weights and images in both, in float64 at 1e-12 and in float32.

Models of the sizes that people train (golden.npz holds the small awkward ones), and the reference itself
against torch's own encoder and against golden.npz.
"""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import vitnp

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch: pip install 'vitnp[parity]'")
from reference.torch_vit import TorchViT, adam_path, hard_parameters, logits_by_another_road  # noqa: E402

GOLDEN = Path(__file__).parent / "reference" / "golden.npz"

CONFIGS = {
    "mnist": {
        "image_size": (28, 28), "patch_size": (7, 7), "channels": 1, "num_classes": 10, "dim": 64, "depth": 6,
        "num_heads": 4, "mlp_dim": 128,
    },
    "cifar-mean-erf": {
        "image_size": (32, 32), "patch_size": (4, 4), "channels": 3, "num_classes": 10, "dim": 96, "depth": 3,
        "num_heads": 3, "mlp_dim": 200, "pool": "mean", "gelu": "erf",
    },
    "oblong-representation": {
        "image_size": (20, 42), "patch_size": (5, 6), "channels": 2, "num_classes": 13, "dim": 40, "depth": 4,
        "num_heads": 5, "mlp_dim": 72, "gelu": "erf", "layer_norm_eps": 1e-5, "representation_size": 24,
    },
}  # fmt: skip
SMOOTHING = {"mnist": 0.0, "cifar-mean-erf": 0.1, "oblong-representation": 0.0}
SMALL = {
    "image_size": (6, 8), "patch_size": (3, 2), "channels": 2, "num_classes": 5, "dim": 12, "depth": 2,
    "num_heads": 3, "mlp_dim": 20,
}  # fmt: skip
BATCH = 7


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two libraries that each want every core wait for one another: 0.7 s for a pass that takes 0.03 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def hard_model(config, rng, dtype="float64"):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(**config), rng=0, dtype=dtype)
    values = hard_parameters({name: array.shape for name, array in model.parameters().items()}, rng)
    for name, array in model.parameters().items():
        array[...] = values[name]
    return model, values


def batch_for(case, rng):
    """Unequal samples, and soft labels where the case has a representation layer. Exact in float32."""
    config = CONFIGS[case]
    images = rng.standard_normal((BATCH, *config["image_size"], config["channels"])).astype("float32")
    if "representation_size" in config:
        return images, soft_labels(rng, config["num_classes"])
    return images, rng.integers(config["num_classes"], size=BATCH)


def soft_labels(rng, classes):
    """Distributions in steps of 1/1024: their sum is 1 to the last bit."""
    return rng.multinomial(1024, rng.dirichlet(np.ones(classes), size=BATCH)) / 1024


def pass_of_vitnp(model, images, labels, label_smoothing=0.0, ctx=None):
    ctx = ctx or vitnp.Context(train=True, rng=1)
    logits = model.forward(images, ctx)
    loss, dlogits = vitnp.softmax_cross_entropy(logits, labels, label_smoothing=label_smoothing)
    dimages = model.backward(dlogits, ctx)
    return {"logits": logits, "loss": np.asarray(loss), "dimages": dimages, **model.gradients(ctx)}


def pass_of_torch(model, images, labels, label_smoothing=0.0):
    logits, loss, gradients, dimages = model.measure(images, labels, label_smoothing)
    return {"logits": logits, "loss": np.asarray(loss), "dimages": dimages, **gradients}


@cache
def both_passes(case, **options):
    rng = np.random.default_rng(3)
    model, values = hard_model({**CONFIGS[case], **options}, rng)
    data = (*batch_for(case, rng), SMOOTHING[case])
    return pass_of_vitnp(model, *data), pass_of_torch(TorchViT(**CONFIGS[case]).load(values), *data)


def error(found, truth):
    """The worst entry, in units of the largest true one; where all of these are 0, no other number is right."""
    assert found.shape == truth.shape
    largest = np.abs(truth).max()
    return np.abs(found - truth).max() / largest if largest else math.inf if found.any() else 0.0


def errors(found, truth):
    assert found.keys() == truth.keys()
    return {name: error(found[name], truth[name]) for name in truth}


# -- the reference itself --------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONFIGS)
def test_the_reference_is_torchs_own_encoder(case):
    rng = np.random.default_rng(3)
    _, values = hard_model(CONFIGS[case], rng)
    model = TorchViT(**CONFIGS[case]).load(values)
    images = torch.from_numpy(batch_for(case, rng)[0]).double()
    with torch.no_grad():
        assert error(logits_by_another_road(model, images).numpy(), model(images).numpy()) < 1e-13


@pytest.mark.parametrize("case", ["token-tanh", "mean-erf-smoothed", "representation-soft-labels"])
def test_the_golden_file_is_what_the_reference_computes(case):
    golden = {key.removeprefix(f"{case}/"): array for key, array in read_golden() if key.startswith(case)}
    parameters = {key.removeprefix("parameters/"): a for key, a in golden.items() if key.startswith("parameters/")}
    model = TorchViT(**json.loads(str(golden["config"]))).load(parameters)
    data = (golden["images"], golden["labels"], float(golden["label_smoothing"]))
    found = pass_of_torch(model, *data)
    truth = {key.removeprefix("gradients/"): a for key, a in golden.items() if key.startswith("gradients/")}
    truth.update(logits=golden["logits"], loss=golden["loss"], dimages=golden["image_gradient"])
    assert max(errors(found, truth).values()) < 1e-13


# -- one pass in float64 ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONFIGS)
def test_logits_loss_and_every_gradient_are_those_of_torch(case):
    assert max(errors(*both_passes(case)).values()) < 1e-12


def variant_errors(stochastic_depth=0.0, **changes):
    """The errors of a small network whose architecture is another; both drop the same branches."""
    rng, config = np.random.default_rng(3), {**SMALL, **changes}
    model, values = hard_model({**config, "stochastic_depth": stochastic_depth}, rng)
    images = rng.standard_normal((BATCH, *config["image_size"], config["channels"]))
    labels, ctx = rng.integers(config["num_classes"], size=BATCH), vitnp.Context(train=True, rng=1)
    found, truth = pass_of_vitnp(model, images, labels, ctx=ctx), TorchViT(**config).load(values)
    for ours, theirs in zip(model.blocks, truth.blocks, strict=True):
        if ours.drop_path1 is not None:
            theirs.keep = [torch.tensor(ctx.saved(part).mask) for part in (ours.drop_path1, ours.drop_path2)]
    truth, nothing = pass_of_torch(truth, images, labels), 0.0
    for name in [name for name in truth if name.endswith("k_norm.beta")]:  # 0, and what rounding leaves on both sides
        nothing = max(nothing, abs(found.pop(name)).max(), abs(truth.pop(name)).max())
    return {**errors(found, truth), "nothing": nothing}


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize(
    ("positions", "pos_at"),
    [
        ("learned", "layers"),
        ("learned", "shared"),
        ("learned-2d", "stem"),
        ("learned-2d", "layers"),
        ("learned-2d", "shared"),
        ("sincos", "stem"),
        ("sincos", "shared"),
        ("relative", "stem"),
        ("relative-1d", "stem"),
        ("none", "stem"),
    ],
)
def test_positions_of_every_kind_are_those_of_torch(positions, pos_at, pool):
    assert max(variant_errors(positions=positions, pos_at=pos_at, pool=pool).values()) < 1e-12


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize(
    "options",
    [
        {"layer_scale": 0.1},
        {"registers": 3},
        {"qk_norm": True},
        {"stochastic_depth": 0.5},
        {"layer_scale": 0.1, "registers": 3, "qk_norm": True, "stochastic_depth": 0.5, "positions": "relative"},
    ],
    ids=str,
)
def test_what_later_papers_added_is_what_torch_computes_of_it(options, pool):
    assert max(variant_errors(pool=pool, **options).values()) < 1e-12


def test_dropout_of_zero_in_training_mode_changes_nothing():
    found, truth = both_passes("mnist", dropout=0.0, attention_dropout=0.0)
    assert max(errors(found, truth).values()) < 1e-12


def test_dropout_is_off_in_evaluation():
    rng = np.random.default_rng(4)
    model, values = hard_model({**CONFIGS["mnist"], "dropout": 0.3, "attention_dropout": 0.2}, rng)
    images, _ = batch_for("mnist", rng)
    truth = TorchViT(**CONFIGS["mnist"]).load(values)
    with torch.no_grad():
        logits = truth(torch.from_numpy(images).double()).numpy()
    assert error(model.forward(images), logits) < 1e-12


def test_soft_labels_that_sum_to_one_only_up_to_float32_rounding():
    rng = np.random.default_rng(7)
    model, values = hard_model(SMALL, rng)
    images = rng.standard_normal((BATCH, *SMALL["image_size"], SMALL["channels"]))
    labels = rng.dirichlet(np.ones(SMALL["num_classes"]), size=BATCH).astype("float32")
    truth = pass_of_torch(TorchViT(**SMALL).load(values), images, labels)
    assert max(errors(pass_of_vitnp(model, images, labels), truth).values()) < 1e-12


HYBRIDS = {
    "two stages": {"image_size": (41, 30), "patch_size": (2, 1), "stem_blocks": (1, 2), "pool": "mean"},
    "a root alone": {"image_size": (20, 33), "patch_size": (5, 3), "stem_blocks": ()},
}


@pytest.mark.parametrize("case", HYBRIDS)
def test_logits_loss_and_every_gradient_of_a_hybrid_are_those_of_torch(case):
    rng, config = np.random.default_rng(8), {**SMALL, **HYBRIDS[case], "stem_width": 0.5}
    model, values = hard_model(config, rng)
    images, labels = rng.standard_normal((3, *config["image_size"], 2)), [0, 4, 2]
    truth = pass_of_torch(TorchViT(**config).load(values), images, labels)
    assert max(errors(pass_of_vitnp(model, images, labels), truth).values()) < 1e-12


# -- the optimizer and training --------------------------------------------------------------------


def adam_errors(config, steps, weight_decay):
    """Under gradients of every size from 1e-9 to 100, and a learning rate that changes at every step."""
    rng = np.random.default_rng(5)
    model, values = hard_model(config, rng)
    sizes = {name: 10.0 ** rng.integers(-9, 3, array.shape) for name, array in values.items()}
    base = {name: size * rng.standard_normal(size.shape) for name, size in sizes.items()}
    phase = {name: rng.uniform(0, 2 * np.pi, size.shape) for name, size in sizes.items()}
    rates = rng.uniform(1e-4, 3e-3, steps).tolist()
    settings = {"weight_decay": weight_decay}
    truth = adam_path(TorchViT(**config).load(values), base, phase, rates, settings, stops=(steps,))[steps]
    ctx, optimizer = vitnp.Context(train=True, rng=1), vitnp.Adam(model, **settings)
    for t, rate in enumerate(rates, start=1):
        for name, gradient in model.gradients(ctx).items():
            gradient[...] = base[name] * np.cos(0.1 * t + phase[name])
        optimizer.lr = rate
        optimizer.step(ctx)
    return errors(model.parameters(), truth)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_torchs_adamw_for_a_thousand_steps(weight_decay):
    assert max(adam_errors(SMALL, 1000, weight_decay).values()) < 1e-12


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.1)])
def test_sgd_is_torchs_for_three_hundred_steps_with_the_decay_apart_from_the_gradient(momentum, weight_decay):
    rng = np.random.default_rng(5)
    model, values = hard_model(SMALL, rng)
    truth = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in values.items()}
    base = {
        name: rng.standard_normal(array.shape) * 10.0 ** rng.integers(-9, 1, array.shape)
        for name, array in values.items()
    }
    phase, ctx = {name: rng.uniform(0, 6, array.shape) for name, array in values.items()}, vitnp.Context()
    optimizer = vitnp.SGD(model, 1.0, momentum, weight_decay)
    torchs = torch.optim.SGD(truth.values(), lr=1.0, momentum=momentum)
    for t, rate in enumerate(rng.uniform(1e-3, 0.1, 300).tolist(), start=1):
        for name, gradient in model.gradients(ctx).items():
            gradient[...] = base[name] * np.cos(0.1 * t + phase[name])
            truth[name].grad = torch.from_numpy(gradient.copy())
            if name.endswith("weight"):
                truth[name].data.mul_(1 - rate * weight_decay)
        optimizer.lr = torchs.param_groups[0]["lr"] = rate
        optimizer.step(ctx), torchs.step()
    assert max(errors(model.parameters(), {name: p.detach().numpy() for name, p in truth.items()}).values()) < 1e-12


def test_adam_is_torchs_adamw_on_more_parameters_than_a_cache_holds():
    assert max(adam_errors(CONFIGS["mnist"], 10, weight_decay=0.1).values()) < 1e-12


def learnable_batches(rng, sizes=(16, 16, 9)):
    """Every class has a picture of its own under noise. Exact in float32."""
    shape = (*SMALL["image_size"], SMALL["channels"])
    prototypes = rng.standard_normal((SMALL["num_classes"], *shape))
    drawn = [rng.integers(SMALL["num_classes"], size=size) for size in sizes]
    return [((prototypes[y] + rng.standard_normal((len(y), *shape))).astype("float32"), y) for y in drawn]


@cache
def training_run(dtype, steps=100):
    """-> losses of vitnp, losses of torch in float64"""
    rng = np.random.default_rng(6)
    model, values = hard_model(SMALL, rng, dtype)
    batches = learnable_batches(rng)
    t = np.arange(steps)
    rates = (5e-3 * np.minimum((t + 1) / 10, 0.5 * (1 + np.cos(np.pi * t / steps)))).tolist()
    ctx, optimizer, losses = vitnp.Context(train=True, rng=1), vitnp.Adam(model, weight_decay=0.1), []
    for step, rate in enumerate(rates):
        losses.append(pass_of_vitnp(model, *batches[step % len(batches)], ctx=ctx)["loss"].item())
        optimizer.lr = rate
        optimizer.step(ctx)
        ctx.zero_grad()
    return np.array(losses), TorchViT(**SMALL).load(values).train_on(batches, rates, weight_decay=0.1)


def test_a_hundred_training_steps_follow_torch():
    losses, truth = training_run("float64")
    assert truth[-3:].mean() < 0.1 * truth[:3].mean()
    assert (np.abs(losses - truth) / truth).max() < 1e-10


# -- float32 ---------------------------------------------------------------------------------------


# Measured over these cases with twelve seeds: two attention kernels of torch itself differ by up to 1.8 times
# in the root mean square of a tensor, and by up to 2.5 times in its worst entry.


def rms_error(found, truth):
    """Root mean square over the entries: unlike the worst entry it does not hang on one unlucky rounding."""
    return np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2))


@cache
def float32_passes(case, seed):
    """-> vitnp in float32, torch in float32, torch in float64: the truth"""
    rng = np.random.default_rng(seed)
    model, values = hard_model(CONFIGS[case], rng, "float32")
    data = (*batch_for(case, rng), SMOOTHING[case])
    truth = pass_of_torch(TorchViT(**CONFIGS[case]).load(values), *data)
    torchs = pass_of_torch(TorchViT(**CONFIGS[case], dtype=torch.float32).load(values), *data)
    return pass_of_vitnp(model, *data), torchs, truth


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CONFIGS)
def test_no_float32_tensor_errs_twice_as_much_as_torchs(case, seed):
    found, torchs, truth = float32_passes(case, seed)
    floor = 2 * float(np.finfo("float32").eps)  # what is right to the last bit has no ratio
    ratios = {t: rms_error(found[t], truth[t]) / max(rms_error(torchs[t], truth[t]), floor) for t in truth}
    assert max(ratios.values()) < 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CONFIGS)
def test_the_worst_float32_entry_is_at_most_twice_as_wrong_as_torchs(case, seed):
    found, torchs, truth = float32_passes(case, seed)
    assert max(errors(found, truth).values()) < 2 * max(errors(torchs, truth).values())


@pytest.mark.parametrize("case", CONFIGS)
def test_float32_logits_are_right_to_five_digits(case):
    found, _, truth = float32_passes(case, seed=0)
    assert error(found["logits"], truth["logits"]) < 1e-5


def test_a_hundred_float32_training_steps_follow_float64():
    losses, truth = training_run("float32")
    assert (np.abs(losses - truth) / truth).max() < 1e-5


def read_golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return list(file.items())
