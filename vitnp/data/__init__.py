"""Images and labels: where they come from, and how they reach the network batch by batch.

digits.py   ten digits rendered on the spot: needs no file and no network
mnist.py    the MNIST files, checked byte for byte
images.py   one image file, of any kind and mode
folder.py   image files in a sub-folder per class
dataset.py  Dataset, which holds any of them, and the folders where data files are looked for
batches.py  normalisation, random shifts, and the order of an epoch
"""

from vitnp.data.batches import Batches, channel_statistics, normalize, shift
from vitnp.data.dataset import DataError, Dataset, data_roots
from vitnp.data.digits import load_digits
from vitnp.data.folder import ImageFiles, find_images, find_splits, load_folder
from vitnp.data.images import read_image
from vitnp.data.mnist import find_mnist, load_mnist, read_idx

__all__ = [
    "Batches",
    "DataError",
    "Dataset",
    "ImageFiles",
    "channel_statistics",
    "data_roots",
    "find_images",
    "find_mnist",
    "find_splits",
    "load_digits",
    "load_folder",
    "load_mnist",
    "normalize",
    "read_idx",
    "read_image",
    "shift",
]
