"""Images and labels: where they come from, and how they reach the network batch by batch.

digits.py   ten digits rendered on the spot: needs no file and no network
mnist.py    the MNIST files, checked byte for byte
dataset.py  Dataset, which holds either of them, and the folders where data files are looked for
augment.py  what makes many training images of one
warp.py     pictures turned, slanted, stretched and bent
batches.py  normalisation, and the order of an epoch
"""

from vitnp.data.augment import Augmentation
from vitnp.data.batches import Batches, channel_statistics, normalize, prepared_ahead
from vitnp.data.dataset import DataError, Dataset, data_roots
from vitnp.data.digits import load_digits
from vitnp.data.mnist import find_mnist, load_mnist, read_idx

__all__ = [
    "Augmentation",
    "Batches",
    "DataError",
    "Dataset",
    "channel_statistics",
    "data_roots",
    "find_mnist",
    "load_digits",
    "load_mnist",
    "normalize",
    "prepared_ahead",
    "read_idx",
]
