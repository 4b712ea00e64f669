"""Writes pretrained/, small networks as other programs hold them, with what these programs compute.

    python tests/reference/make_pretrained.py

It wants torch, timm, torchvision, transformers, jax and flax. The flax network is written here, after the original's
models_vit.py; the others are the programs' own. Each case has

    model       the network, as the program itself writes it
    gradients   the gradients of sum(cotangent * logits), in the same layout: they are as many and of the same shapes
    data.npz    images (B, H, W, C), cotangent (B, classes), logits, image_gradient

All weights are random and in float64, so that no parameter is without effect, and no two axes that meet have the same
length where the program permits that. positions.npz has grids that torch and scipy have resized.
"""

import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import timm
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

PATH = Path(__file__).with_name("pretrained")
BATCH, CLASSES, DIM, DEPTH, HEADS, MLP, CHANNELS = 3, 5, 6, 2, 3, 7, 2
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(MLP, **DOUBLE)(x))  # flax counts the layers in the order of their making
        return nn.Dense(x.shape[-1], **DOUBLE)(hidden)


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(**DOUBLE)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS, deterministic=True, **DOUBLE)(y, y)
        return x + MlpBlock()(nn.LayerNorm(**DOUBLE)(x))


class AddPositions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]), jnp.float64)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = AddPositions(name="posembed_input")(x)
        for i in range(DEPTH):
            x = EncoderBlock(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm", **DOUBLE)(x)


class StandardisedConv(nn.Module):
    features: int
    side: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        shape = self.side, self.side, x.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.normal(), shape, jnp.float64)
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


class Bottleneck(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        shortcut = x
        if self.stride != 1 or x.shape[-1] != 4 * self.width:
            shortcut = StandardisedConv(4 * self.width, 1, self.stride, name="conv_proj")(x)
            shortcut = nn.GroupNorm(name="gn_proj", **DOUBLE)(shortcut)
        sizes = (self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)
        for number, size in enumerate(sizes, start=1):
            x = nn.GroupNorm(name=f"gn{number}", **DOUBLE)(StandardisedConv(*size, name=f"conv{number}")(x))
            x = nn.relu(x if number < 3 else shortcut + x)
        return x


class Stage(nn.Module):
    units: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        for unit in range(self.units):
            x = Bottleneck(self.width, 1 if unit else self.stride, name=f"unit{unit + 1}")(x)
        return x


class FlaxViT(nn.Module):
    patch: tuple
    token: bool
    representation: int | None
    stem: tuple | None = None
    stem_width: float = 0.5

    @nn.compact
    def __call__(self, x):
        if self.stem is not None:
            width = int(64 * self.stem_width)
            x = nn.relu(nn.GroupNorm(name="gn_root", **DOUBLE)(StandardisedConv(width, 7, 2, name="conv_root")(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for stage, units in enumerate(self.stem):
                x = Stage(units, width << stage, 2 if stage else 1, name=f"block{stage + 1}")(x)
        x = nn.Conv(DIM, self.patch, strides=self.patch, padding="VALID", name="embedding", **DOUBLE)(x)
        x = x.reshape(len(x), -1, DIM)
        if self.token:
            cls = self.param("cls", nn.initializers.normal(), (1, 1, DIM), jnp.float64)
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = Encoder(name="Transformer")(x)
        x = x[:, 0] if self.token else x.mean(1)
        if self.representation:
            x = jnp.tanh(nn.Dense(self.representation, name="pre_logits", **DOUBLE)(x))
        return nn.Dense(CLASSES, name="head", **DOUBLE)(x)


def values(name, shape, rng):
    """Random numbers of the size that a trained network has, none of them near zero everywhere."""
    return rng.standard_normal(shape) * 0.5 + (name.endswith(("scale", "norm1.weight", "norm2.weight")))


def draw(image_size, rng):
    return rng.standard_normal((BATCH, *image_size, CHANNELS)), rng.standard_normal((BATCH, CLASSES))


def write_data(case, images, cotangent, logits, image_gradient):
    arrays = {"images": images, "cotangent": cotangent, "logits": logits, "image_gradient": image_gradient}
    np.savez(PATH / case / "data.npz", **arrays)
    print(case, sum(path.stat().st_size for path in (PATH / case).rglob("*.*")), "bytes")


def flax_case(case, rng, token, representation, patch=(3, 2), image_size=(9, 6), thin=1, **stem):
    """Square grid, oblong images and patches; of a stem's gradients every `thin`-th channel is kept."""
    model, (images, cotangent) = FlaxViT(patch, token, representation, **stem), draw(image_size, rng)
    variables = model.init(jax.random.key(0), images)
    names = flatten_dict(variables["params"], sep="/")
    parameters = {name: values(name, array.shape, rng) for name, array in names.items()}
    if model.stem is not None:  # many numbers, in steps of 1/8 each: small in a compressed file
        parameters = {name: np.round(8 * array) / 8 for name, array in parameters.items()}

    def loss(parameters, images):
        logits = model.apply({"params": unflatten_dict(parameters, sep="/")}, images)
        return (cotangent * logits).sum(), logits

    (gradients, image_gradient), logits = jax.grad(loss, argnums=(0, 1), has_aux=True)(parameters, images)
    (PATH / case).mkdir(parents=True, exist_ok=True)
    save = np.savez if model.stem is None else np.savez_compressed
    save(PATH / case / "model.npz", **parameters)
    gradients = {name: np.asarray(array) for name, array in gradients.items()}
    thinned = {name: array[..., ::thin] if "conv" in name else array for name, array in gradients.items()}
    save(PATH / case / "gradients.npz", **thinned)
    write_data(case, images, cotangent, logits, image_gradient)


def torch_case(case, rng, model, image_size, save):
    """`save(model, path)` writes the parameters of a module, as the program does."""
    model, (images, cotangent) = model.double().eval(), draw(image_size, rng)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(values(name, parameter.shape, rng)))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    logits = model(x)
    logits = getattr(logits, "logits", logits)
    (torch.from_numpy(cotangent) * logits).sum().backward()
    (PATH / case).mkdir(parents=True, exist_ok=True)
    save(model, PATH / case / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    save(model, PATH / case / "gradients")
    write_data(case, images, cotangent, logits.detach().numpy(), x.grad.permute(0, 2, 3, 1).numpy())


def save_state(model, path):
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, f"{path}.safetensors")


def save_transformers(model, path):
    model.save_pretrained(path)


def timm_model(**options):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=(6, 8), patch_size=(3, 2), in_chans=CHANNELS, num_classes=CLASSES, embed_dim=DIM, depth=DEPTH,
        mlp_ratio=MLP / DIM, **{"num_heads": HEADS, **options},
    )  # fmt: skip


def transformers_model(**options):
    config = transformers.ViTConfig(
        image_size=[6, 8], patch_size=[3, 2], num_channels=CHANNELS, num_labels=CLASSES, hidden_size=DIM,
        num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=MLP, **options,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def torchvision_model(representation):
    model = TorchvisionViT(
        image_size=8, patch_size=4, num_layers=DEPTH, num_heads=HEADS, hidden_dim=DIM, mlp_dim=MLP,
        num_classes=CLASSES, representation_size=representation,
    )  # fmt: skip
    model.conv_proj = torch.nn.Conv2d(CHANNELS, DIM, kernel_size=4, stride=4)  # it takes three channels otherwise
    return model


def resized(rng):
    """Grids larger, smaller, and both at once, by the four rules."""
    arrays = {"grid": rng.standard_normal((4, 7, 3))}
    channels_first = torch.from_numpy(arrays["grid"]).permute(2, 0, 1)[None]
    for size in [(9, 10), (3, 5), (6, 2), (1, 1)]:
        key = f"{size[0]}x{size[1]}"
        zoom = (size[0] / 4, size[1] / 7, 1)
        if size != (1, 1):
            arrays[f"align-corners/{key}"] = scipy.ndimage.zoom(arrays["grid"], zoom, order=1)
        for rule, options in {
            "bilinear": {"mode": "bilinear"},
            "bicubic": {"mode": "bicubic"},
            "bicubic-antialias": {"mode": "bicubic", "antialias": True},
        }.items():
            y = F.interpolate(channels_first, size=size, align_corners=False, **options)
            arrays[f"{rule}/{key}"] = y[0].permute(1, 2, 0).numpy()
    np.savez(PATH / "positions.npz", **arrays)


def main():
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    rng = np.random.default_rng(2010_11929)
    flax_case("google", rng, token=True, representation=None)
    flax_case("google-pre-logits", rng, token=True, representation=11)
    flax_case("google-mean", rng, token=False, representation=None)
    torch_case("timm", rng, timm_model(), (6, 8), save_state)
    mean = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    torch_case("timm-mean", rng, timm_model(**mean), (6, 8), save_state)
    later = np.random.default_rng(2309_16588)  # two heads: a norm of two columns would leave nothing of q and k
    options = {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True, "num_heads": 2}
    torch_case("timm-later", later, timm_model(**options), (6, 8), save_state)
    torch_case("timm-later-mean", later, timm_model(**options, **mean, no_embed_class=True), (6, 8), save_state)
    pooled = np.random.default_rng(2403_19588)
    last = {"class_token": False, "global_pool": "avg"}  # its final norm is then the last
    torch_case("timm-mean-norm", pooled, timm_model(**last, reg_tokens=2, no_embed_class=True), (6, 8), save_state)
    torch_case("huggingface", rng, transformers_model(), (6, 8), save_transformers)
    tanh = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5}
    torch_case("huggingface-tanh", rng, transformers_model(**tanh), (6, 8), save_transformers)
    torch_case("torchvision", rng, torchvision_model(None), (8, 8), save_state)
    torch_case("torchvision-pre-logits", rng, torchvision_model(11), (8, 8), save_state)
    resized(rng)
    rng = np.random.default_rng(1912_11370)
    flax_case("google-root", rng, True, None, (2, 1), (15, 12), thin=4, stem=())
    flax_case("google-hybrid", rng, True, None, (1, 2), (41, 30), thin=16, stem=(2, 1))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
