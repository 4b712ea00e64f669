"""Images and labels: where they come from, and how they reach the network batch by batch.

digits.py   ten digits rendered on the spot: needs no file and no network
mnist.py    the MNIST files, checked byte for byte
images.py   one image file, of any kind and mode
folder.py   image files in a sub-folder per class
dataset.py  Dataset, which holds any of them, and the folders where data files are looked for
augment.py  what makes many training images of one
warp.py     pictures turned, slanted, stretched and bent
batches.py  normalisation, and the order of an epoch
"""

from vitnp.data.augment import Augmentation
from vitnp.data.batches import Batches, channel_statistics, normalize, prepared_ahead
from vitnp.data.dataset import DataError, Dataset, data_roots
from vitnp.data.digits import load_digits
from vitnp.data.folder import ImageFiles, find_images, find_splits, load_folder
from vitnp.data.images import read_image
from vitnp.data.mnist import find_mnist, load_mnist, read_idx

__all__ = [
    "Augmentation",
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
    "prepared_ahead",
    "read_idx",
    "read_image",
]
