"""Masked patch prediction: the colours, the network, its gradients, and its place in what trains and saves."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from helpers import HARD, error, handwritten_gradients, normal, randomize, same_bits, worst_error
from safetensors.numpy import load_file, save_file

import vitnp
from vitnp import ConfigError, Context, MaskedPatchPrediction
from vitnp.nonfinite import first_not_finite

GREY = {**HARD, "channels": 1}
B, n, k = 5, 8, 4


def masked(dtype="float64", **changes):
    return randomize(MaskedPatchPrediction(vitnp.ViTConfig(**{**GREY, **changes}), dtype=dtype))


def images_of(model, batch=B, seed=1):
    config = model.config
    return normal((batch, *config.image_size, config.channels), seed).astype(model.flat.dtype)


def colours_of(model, batch=B, seed=2):
    config = model.config
    return np.random.default_rng(seed).integers(config.num_classes, size=(batch, config.num_patches))


# -- colours ----------------------------------------------------------------------------------------------------------


def test_colours_are_the_mean_of_each_channel_in_three_bits():
    images = np.random.default_rng(3).integers(0, 256, (4, 6, 8, 3), np.uint8)
    truth = np.zeros((4, 8), int)
    for b, row, column in np.ndindex(4, 2, 4):
        patch = images[b, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2].astype(float)
        red, green, blue = (math.floor(patch[..., c].mean() / 32) for c in range(3))
        truth[b, 4 * row + column] = 64 * red + 8 * green + blue
    found = vitnp.patch_colours(images, (3, 2))
    assert (found.dtype, found.shape) == (np.int64, (4, 8))
    assert np.array_equal(found, truth)


@pytest.mark.parametrize(
    ("values", "level"), [([255, 255], 7), ([0, 0], 0), ([63, 64], 1), ([64, 64], 2), ([31, 33], 1)]
)
def test_a_level_is_32_grey_values_wide(values, level):
    images = np.array(values, np.uint8).reshape(1, 1, 2, 1)
    assert vitnp.patch_colours(images, (1, 2)).tolist() == [[level]]


def test_white_is_the_last_of_512_colours():
    assert vitnp.patch_colours(np.full((1, 2, 2, 3), 255, np.uint8), (2, 2)).tolist() == [[511]]


def test_colours_of_normalised_images_are_refused():
    with pytest.raises(TypeError, match="images are float32; expected uint8"):
        vitnp.patch_colours(np.zeros((1, 2, 2, 3), "float32"), (2, 2))


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "colours"), [(1, 8), (3, 512)])
def test_there_are_eight_levels_a_channel_and_a_row_for_every_corrupted_patch(channels, colours):
    model = masked(channels=channels, num_classes=10, representation_size=5)
    logits = model.forward(images_of(model), Context(train=True, rng=3))
    assert logits.shape == (B * k, colours)
    assert model.answers == k
    assert model.classifier.pre_logits is None


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_every_gradient_passes_the_check(pool):
    model = masked(pool=pool, depth=1)
    vitnp.gradcheck(model, images_of(model, 3), mode="full", tolerance=1e-12).raise_if_failed()


def test_every_gradient_of_the_loss_passes_the_check_in_colour():
    model = masked(channels=3)
    images, colours = images_of(model, 3), colours_of(model, 3)
    vitnp.gradcheck(model, images, colours, seed=3, mode="directions", tolerance=1e-12).raise_if_failed()


def test_every_layer_passes_the_check_by_itself():
    model = masked()
    vitnp.check_layers(model, images_of(model), tolerance=1e-12).raise_if_failed()


def test_every_layer_passes_the_check_with_colours():
    model = masked()
    options = {"seed": 4, "tolerance": 1e-12, "label_smoothing": 0.1}
    vitnp.check_layers(model, images_of(model), colours_of(model), **options).raise_if_failed()


@pytest.fixture
def one_torch_thread():
    """Two libraries that each want every core wait for one another."""
    torch = pytest.importorskip("torch", reason="parity is measured against PyTorch: pip install 'vitnp[parity]'")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_torch(model, images, colours, seed, step):
    """Logits, loss and every gradient, by PyTorch: embeddings are put together patch by patch."""
    import torch
    from reference.torch_vit import TorchViT

    known = TorchViT.__init__.__code__.co_varnames
    twin = TorchViT(**{name: value for name, value in model.config.to_dict().items() if name in known})
    parameters = {name: value for name, value in model.parameters().items() if name != "mask_token"}
    twin.load(parameters)
    token = torch.from_numpy(model.corruption.mask_token.reshape(-1).copy()).requires_grad_()
    x = torch.from_numpy(images.copy()).requires_grad_()
    patches = twin.patch_embed(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    sources, corrupted = choice_of(model, len(images), seed, step)
    rows = [[token if s < 0 else patches[b, s] for s in sources[b]] for b in range(len(images))]
    seen = torch.stack([torch.stack(row) for row in rows])
    first = 0 if twin.cls_token is None else 1
    z = twin.norm(twin.encode(twin.embed(seen)))[:, first:]
    logits = torch.cat([twin.head(z[b, corrupted[b]]) for b in range(len(images))])
    truth = torch.from_numpy(np.concatenate([colours[b, corrupted[b]] for b in range(len(images))]))
    loss = torch.nn.functional.cross_entropy(logits, truth)
    loss.backward()
    gradients = {**twin.gradients(), "mask_token": token.grad.numpy().reshape(1, 1, -1), "input": x.grad.numpy()}
    return logits.detach().numpy(), loss.item(), gradients


def choice_of(model, batch, seed, step):
    """Where each patch comes from, −1 for [mask], and the corrupted ones of each image, read off the layer alone."""
    ctx = Context(train=True, rng=seed)
    ctx.step = step
    layer = vitnp.layers.PatchCorruption(model.config.num_patches, 1, dtype="float64")
    layer.path = model.corruption.path
    layer.mask_token.fill(-1)
    numbers = np.broadcast_to(np.arange(model.config.num_patches, dtype="float64")[:, None], (batch, n, 1))
    sources = layer.forward(numbers, ctx)[..., 0].astype(int)
    return sources, layer.places(batch, ctx, like=numbers)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_logits_loss_and_every_gradient_are_those_of_torch(pool):
    model = masked(pool=pool, dropout=0.0, attention_dropout=0.0)
    images, colours, ctx = images_of(model), colours_of(model), Context(train=True, rng=6)
    ctx.step = 4
    logits = model.forward(images, ctx)
    loss, dlogits = vitnp.softmax_cross_entropy(logits, model.targets(colours, ctx))
    found = {"input": model.backward(dlogits, ctx), **model.gradients(ctx)}
    true_logits, true_loss, truth = by_torch(model, images, colours, seed=6, step=4)
    sources, _ = choice_of(model, B, 6, 4)
    assert ((sources >= 0) & (sources != np.arange(n))).any()  # some patch stands where another was
    assert error(logits, true_logits) < 1e-12
    assert abs(loss - true_loss) < 1e-12
    assert worst_error(found, truth) < 1e-12


def test_a_backward_without_the_images_gradient_has_all_others():
    model = masked()
    images, dy = images_of(model), normal((B * k, 8), 3)
    ctx = Context(train=True, rng=3, input_grad=False)
    model.forward(images, ctx)
    assert model.backward(dy, ctx) is None
    truth = handwritten_gradients(model, images, dy)
    truth.pop("input")
    assert worst_error(model.gradients(ctx), truth) < 1e-15


def test_colours_that_are_not_of_every_patch_are_refused():
    model = masked()
    with pytest.raises(ValueError, match=r"colours have shape \(5,\); expected \(batch, 8\), one for each patch"):
        model.targets(np.zeros(B, int), Context(rng=0))


def test_a_stem_is_refused_through_which_hidden_patches_would_be_seen():
    config = vitnp.ViTConfig(image_size=32, patch_size=1, stem_blocks=(1,))
    with pytest.raises(ConfigError, match=r"stem_blocks is \(1,\); expected None: a stem's windows overlap"):
        vitnp.MaskedPatchPrediction(config, rng=None)


def test_channels_whose_colours_no_integer_tells_are_refused():
    with pytest.raises(ConfigError, match="channels is 21; expected at most 20: a colour is one integer"):
        MaskedPatchPrediction(vitnp.ViTConfig(**{**GREY, "channels": 21}))


def test_an_image_of_one_patch_is_refused():
    with pytest.raises(ConfigError, match=r"patch_size \(6, 8\) makes 1 patch of an image; expected 2 or more"):
        MaskedPatchPrediction(vitnp.ViTConfig(**{**GREY, "patch_size": (6, 8)}))


def test_the_first_loss_is_that_of_equally_likely_colours():
    model = MaskedPatchPrediction(vitnp.ViTConfig(**HARD), dtype="float64")
    ctx = Context(train=True, rng=0)
    loss, _ = vitnp.softmax_cross_entropy(model.forward(images_of(model), ctx), model.targets(colours_of(model), ctx))
    assert loss == pytest.approx(math.log(512), rel=1e-14)


# -- its backbone -----------------------------------------------------------------------------------------------------


def test_the_same_seed_begins_with_the_network_of_a_vision_transformer():
    config = vitnp.ViTConfig(**GREY)
    plain = vitnp.VisionTransformer(config, rng=3).parameters()
    found = MaskedPatchPrediction(config, rng=3).parameters()
    assert found.keys() - plain.keys() == {"mask_token"}
    assert all(same_bits(found[name], plain[name]) for name in plain if not name.startswith("head."))


def test_the_backbone_has_its_features_and_a_head_of_zeros():
    model = masked(pool="mean")
    backbone = model.backbone(num_classes=3)
    images = images_of(model)
    assert type(backbone) is vitnp.VisionTransformer
    assert same_bits(vitnp.features(backbone, images), vitnp.features(model, images))
    assert np.array_equal(backbone.forward(images), np.zeros((B, 3)))
    backbone.flat.fill(0)
    assert model.flat.any()


# -- training ---------------------------------------------------------------------------------------------------------


def gradients_of(model, images, colours, **options):
    step = vitnp.ShardedStep(model, vitnp.Adam(model), rng=3, **options)
    loss = step.gradients(images, colours)
    return loss, step.contexts[0].flat_grad(model.layout, like=model.flat).copy(), step.correct


@pytest.mark.parametrize("options", [{"shards": 2}, {"shards": 3}, {"shards": 1, "micro_batch": 2}], ids=str)
def test_a_step_is_the_same_however_the_batch_is_cut(options):
    model = masked()
    images, colours = images_of(model), colours_of(model)
    (loss, gradient, correct), (whole_loss, whole, whole_correct) = (
        gradients_of(model, images, colours, **given) for given in (options, {"shards": 1})
    )
    assert loss == pytest.approx(whole_loss, rel=1e-13)
    assert error(gradient, whole) < 1e-13
    assert correct == whole_correct


def test_a_step_takes_the_mean_over_all_corrupted_patches():
    model = masked()
    images, colours, ctx = images_of(model), colours_of(model), Context(train=True, rng=3)
    logits = model.forward(images, ctx)
    targets = model.targets(colours, ctx)
    loss, _ = vitnp.softmax_cross_entropy(logits, targets)
    found, _, correct = gradients_of(model, images, colours, shards=1)
    assert found == loss
    assert correct == (logits.argmax(-1) == targets).sum()


@pytest.mark.parametrize("where", ["list", "host", "device"])
def test_a_step_is_the_same_on_a_device_wherever_its_colours_are(backend, where):
    model = masked()
    images, colours = images_of(model), colours_of(model)
    loss, gradient, _ = gradients_of(model, images, colours, shards=1)
    given = {"list": colours.tolist(), "host": colours, "device": backend.put(colours)}[where]
    found_loss, found, _ = gradients_of(model.to_device(backend.device), backend.put(images), given, shards=1)
    assert float(found_loss) == pytest.approx(float(loss), rel=1e-13)
    assert error(backend.get(found), gradient) < 1e-13


def test_a_network_learns_what_is_behind_the_mask():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (16, 1, 1, 1), np.uint8)
    images = np.broadcast_to(grey, (16, 6, 8, 1))  # every patch tells of every other
    model = MaskedPatchPrediction(vitnp.ViTConfig(**{**GREY, "dropout": 0.0, "attention_dropout": 0.0}))
    step = vitnp.ShardedStep(model, vitnp.Adam(model, lr=2e-2), shards=1)
    colours = vitnp.patch_colours(images, (3, 2))
    losses = [float(step.step((images / 255 - 0.5).astype("float32"), colours)) for _ in range(120)]
    assert losses[0] == pytest.approx(math.log(8), rel=1e-6)
    assert losses[-1] < 0.3


def test_the_first_tensor_that_is_not_finite_is_found():
    model = masked("float32")
    images, colours = images_of(model), colours_of(model)
    assert first_not_finite(model, images, colours, rng=0, step=0, size=2) is None
    model.corruption.mask_token[...] = np.inf
    assert first_not_finite(model, images, colours, rng=0, step=0, size=2) == "the parameter mask_token"


# -- copies and checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_computes_the_same(copied):
    model = masked()
    twin = copied(model)
    assert same_bits(twin.forward(images_of(model), Context(rng=1)), model.forward(images_of(model), Context(rng=1)))
    assert twin.answers == k


def test_a_checkpoint_brings_back_the_model_its_optimizer_and_its_next_step(tmp_path):
    model = masked("float32")
    images, colours = images_of(model), colours_of(model)
    optimizer = vitnp.Adam(model)
    vitnp.ShardedStep(model, optimizer, shards=1, rng=3).step(images, colours)
    vitnp.save_checkpoint(tmp_path / "m", model, optimizer)
    loaded = vitnp.load_checkpoint(tmp_path / "m")
    assert type(loaded.model) is MaskedPatchPrediction
    for twin, steps in ((model, optimizer), (loaded.model, loaded.optimizer)):
        vitnp.ShardedStep(twin, steps, shards=1, rng=3).step(images, colours)
    assert same_bits(loaded.model.flat, model.flat)


def test_a_checkpoint_of_an_unknown_kind_is_refused(tmp_path):
    import hashlib

    from safetensors import safe_open

    vitnp.save_checkpoint(tmp_path / "m", masked("float32"))
    with safe_open(tmp_path / "m", framework="numpy") as file:
        meta = json.loads(file.metadata()["vitnp"])
    text = json.dumps({**meta, "model": "a poem"})
    digest = hashlib.sha256(text.encode()).hexdigest()
    save_file(load_file(tmp_path / "m"), tmp_path / "other", {"vitnp": text, "sha256": digest})
    with pytest.raises(vitnp.CheckpointError, match="the model is 'a poem'; expected none named, or 'masked patch"):
        vitnp.load_checkpoint(tmp_path / "other")


def test_as_a_classifier_it_is_refused_with_the_file_that_is_one(tmp_path):
    vitnp.save_checkpoint(tmp_path / "m", masked("float32"))
    with pytest.raises(vitnp.CheckpointError, match=r"predicts patches; expected .* as backbone\.safetensors"):
        vitnp.load_classifier(tmp_path / "m")
