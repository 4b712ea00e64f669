"""The layers of a Vision Transformer, one file and one derivation each; the files read in this order."""

from vitnp.layers.linear import Linear
from vitnp.layers.layer_norm import LayerNorm
from vitnp.layers.gelu import GELU
from vitnp.layers.tanh import Tanh
from vitnp.layers.dropout import Dropout
from vitnp.layers.softmax import Softmax
from vitnp.layers.patch_embed import PatchEmbed
from vitnp.layers.embeddings import Embeddings
from vitnp.layers.positions import Positions
from vitnp.layers.raster_positions import RasterPositions
from vitnp.layers.relative_positions import RelativePositions
from vitnp.layers.attention import Attention
from vitnp.layers.layer_scale import LayerScale
from vitnp.layers.stochastic_depth import StochasticDepth
from vitnp.layers.mlp import MLP
from vitnp.layers.block import Block
from vitnp.layers.head import ClassifierHead
from vitnp.layers.corruption import PatchCorruption
from vitnp.layers.relu import ReLU
from vitnp.layers.group_norm import GroupNorm
from vitnp.layers.conv import StdConv
from vitnp.layers.max_pool import MaxPool
from vitnp.layers.bottleneck import BottleneckUnit
from vitnp.layers.resnet import ResNetStem

__all__ = [
    "GELU",
    "MLP",
    "Attention",
    "Block",
    "BottleneckUnit",
    "ClassifierHead",
    "Dropout",
    "Embeddings",
    "GroupNorm",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "MaxPool",
    "PatchCorruption",
    "PatchEmbed",
    "Positions",
    "RasterPositions",
    "ReLU",
    "RelativePositions",
    "ResNetStem",
    "Softmax",
    "StdConv",
    "StochasticDepth",
    "Tanh",
]
