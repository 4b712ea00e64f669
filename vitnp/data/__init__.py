"""Images and labels: where they come from, and how they reach the network batch by batch.

digits.py   ten digits rendered on the spot: needs no file and no network
mnist.py    the MNIST files, checked byte for byte
dataset.py  Dataset, which holds either of them, and the folders where data files are looked for
batches.py  normalisation, random shifts, and the order of an epoch
"""

from vitnp.data.batches import Batches, channel_statistics, normalize, shift
from vitnp.data.dataset import DataError, Dataset, data_roots
from vitnp.data.digits import load_digits
from vitnp.data.mnist import find_mnist, load_mnist, read_idx

__all__ = [
    "Batches",
    "DataError",
    "Dataset",
    "channel_statistics",
    "data_roots",
    "find_mnist",
    "load_digits",
    "load_mnist",
    "normalize",
    "read_idx",
    "shift",
]
