"""Images and labels: where they come from, and how they reach the network batch by batch.

digits.py    ten digits rendered on the spot: needs no file and no network
mnist.py     MNIST and Fashion-MNIST, told apart by their content
cifar.py     CIFAR-10 and CIFAR-100, in both published forms
named.py     the table of these four by name
folder.py    image files in a sub-folder per class; images.py reads one of them, of any kind and mode
download.py  files from the web that end as the right ones or as none
files.py     where files are looked for, and whose content it is; idx.py, archives.py and pickles.py read them
dataset.py   Dataset, which holds any of them, and the folders where data files are looked for
augment.py   what makes many training images of one
warp.py      pictures turned, slanted, stretched and bent
batches.py   normalisation, and the order of an epoch
"""

from vitnp.data.augment import Augmentation
from vitnp.data.batches import Batches, channel_statistics, normalize, prepared_ahead
from vitnp.data.cifar import load_cifar10, load_cifar100
from vitnp.data.dataset import DataError, Dataset, data_roots
from vitnp.data.digits import load_digits
from vitnp.data.files import DataNotice
from vitnp.data.folder import ImageFiles, find_images, find_splits, load_folder
from vitnp.data.idx import read_idx
from vitnp.data.images import fit_images, read_image
from vitnp.data.mnist import load_fashion_mnist, load_mnist
from vitnp.data.named import NAMED_SETS, NamedSet

__all__ = [
    "NAMED_SETS",
    "Augmentation",
    "Batches",
    "DataError",
    "DataNotice",
    "Dataset",
    "ImageFiles",
    "NamedSet",
    "channel_statistics",
    "data_roots",
    "find_images",
    "find_splits",
    "fit_images",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_folder",
    "load_mnist",
    "normalize",
    "prepared_ahead",
    "read_idx",
    "read_image",
]
