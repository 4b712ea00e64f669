"""A Vision Transformer in plain NumPy, every forward and every backward written by hand, the same code on CuPy."""

from vitnp.backend import DeviceError, array_module, to_cpu, to_device
from vitnp.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from vitnp.config import ConfigError, ViTConfig
from vitnp.context import Context, ContextError
from vitnp.few_shot import LinearProbe, few_shot_indices, linear_probe
from vitnp.gradient_check import GradcheckError, assert_gradients, check_layers, gradcheck
from vitnp.inference import Classifier, Evaluation, evaluate, features, load_classifier, predict
from vitnp.inspection.summary import summary
from vitnp.layer import Layer
from vitnp.losses import softmax_cross_entropy
from vitnp.masked import MaskedPatchPrediction, patch_colours
from vitnp.moving_average import MovingAverage
from vitnp.optim import SGD, Adam, clip_global_norm
from vitnp.parallel import ShardedStep
from vitnp.pretrained import adapt, load_pretrained, save_pretrained
from vitnp.schedules import warmup_decay
from vitnp.vit import VisionTransformer

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "Checkpoint",
    "CheckpointError",
    "Classifier",
    "ConfigError",
    "Context",
    "ContextError",
    "DeviceError",
    "Evaluation",
    "GradcheckError",
    "Layer",
    "LinearProbe",
    "MaskedPatchPrediction",
    "MovingAverage",
    "ShardedStep",
    "ViTConfig",
    "VisionTransformer",
    "adapt",
    "array_module",
    "assert_gradients",
    "check_layers",
    "clip_global_norm",
    "evaluate",
    "features",
    "few_shot_indices",
    "gradcheck",
    "linear_probe",
    "load_checkpoint",
    "load_classifier",
    "load_pretrained",
    "patch_colours",
    "predict",
    "save_checkpoint",
    "save_pretrained",
    "softmax_cross_entropy",
    "summary",
    "to_cpu",
    "to_device",
    "warmup_decay",
]
