"""Make ddlib/assets/fashion_mini.npz: the first 500 training and 100 test images of every class of Fashion-MNIST.

    python tests/make_fashion_mini.py FOLDER [OUT]

FOLDER holds Fashion-MNIST as torchvision lays it out (FOLDER/FashionMNIST/raw). The images are stored losslessly, class
after class in their original order, so a label is a position: train (10, 500, 28, 28), test (10, 100, 28, 28), uint8.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

TARGET = Path(__file__).parents[1] / "ddlib" / "assets" / "fashion_mini.npz"


def first_of_each_class(root: Path, train: bool, count: int) -> np.ndarray:
    """(10, count, 28, 28) uint8: the first `count` images of every class, in their original order."""
    whole = FashionMNIST(root, train=train, download=False)
    images, labels = whole.data.numpy(), whole.targets.numpy()
    return np.stack([images[labels == label][:count] for label in range(10)])


def arrays(root: Path) -> dict[str, np.ndarray]:
    """The two arrays of the file."""
    return {"train": first_of_each_class(root, True, 500), "test": first_of_each_class(root, False, 100)}


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    out = Path(sys.argv[2]) if len(sys.argv) == 3 else TARGET
    np.savez_compressed(out, **arrays(Path(sys.argv[1])))
    print(f"{out}: {out.stat().st_size:,} bytes, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}")
