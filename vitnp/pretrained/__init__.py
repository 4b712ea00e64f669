"""Published Vision Transformers: read them, and write models in the layouts that other programs read.

layouts     the names and shapes of four layouts, as tables
files       .npz, safetensors and folders of transformers: what they hold, and what they say of the network
positions   a grid of position embeddings at another size
loading     load_pretrained
saving      save_pretrained
adapting    adapt: a model that has learned one thing, made ready to learn another
"""

from vitnp.pretrained.adapting import adapt
from vitnp.pretrained.files import read_class_names, read_scale
from vitnp.pretrained.loading import load_pretrained
from vitnp.pretrained.saving import save_pretrained

__all__ = ["adapt", "load_pretrained", "read_class_names", "read_scale", "save_pretrained"]
