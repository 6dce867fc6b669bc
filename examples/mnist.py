"""Labelled images to train on: any data set in the MNIST file format, or scikit-learn's digits.

The format, called IDX, is two zero bytes, a type code (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit integer, then the values. It is described at the end of
http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CLASSES = 10
UNSIGNED_BYTE = 8


class DataError(Exception):
    """A data set that cannot be used; the message names the file, what is wrong, and what to do."""


class Images(NamedTuple):
    """A data set, split in two.

    The images are float32 of shape (images, pixels), from 0 (background) to 1; the labels are
    integers of shape (images,), from 0 to 9.
    """

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.intp]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.intp]


def load(directory: Path) -> Images:
    """Read the four files of MNIST, Fashion-MNIST or any set in their format, plain or gzipped."""
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder; give the one that holds the four IDX files")
    train_images, train_labels = _read_pair(directory, "train")
    test_images, test_labels = _read_pair(directory, "t10k")
    if train_images.shape[1] != test_images.shape[1]:
        raise DataError(
            f"{directory}: the training images have {train_images.shape[1]} pixels and the test "
            f"images {test_images.shape[1]}; use files of one data set"
        )
    return Images(train_images, train_labels, test_images, test_labels)


def digits() -> Images:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, a fifth of them for the test."""
    # Imported here, so that a data set of one's own needs no scikit-learn.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        (pixels / 16).astype(np.float32),
        labels.astype(np.intp),
        test_size=0.2,
        stratify=labels,
        random_state=0,
    )
    return Images(train_images, train_labels, test_images, test_labels)


def _read_pair(directory: Path, part: str) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    images_path = _find(directory, f"{part}-images-idx3-ubyte")
    labels_path = _find(directory, f"{part}-labels-idx1-ubyte")
    pixels = _read_idx(images_path, dimensions=3)
    labels = _read_idx(labels_path, dimensions=1)
    if pixels.size == 0:
        raise DataError(f"{images_path} holds no pixels; download it again")
    if len(pixels) != len(labels):
        raise DataError(
            f"{labels_path} has {len(labels)} labels for the {len(pixels)} images of "
            f"{images_path.name}; use files of one data set"
        )
    if labels.max() >= CLASSES:
        raise DataError(
            f"{labels_path} has the label {labels.max()}, beyond {CLASSES - 1}; "
            f"use a data set of {CLASSES} classes"
        )
    images = np.divide(pixels.reshape(len(pixels), -1), 255, dtype=np.float32)
    return images, labels.astype(np.intp)


def _find(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{directory / name} is missing, with and without .gz; put it in that folder")


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    content = _read_bytes(path)
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise DataError(
            f"{path} begins with the bytes '{content[:4].hex(' ')}' instead of '{magic.hex(' ')}', "
            f"so it is no IDX file of {dimensions} dimensions; is it another file, renamed?"
        )
    header = struct.Struct(f">4x{dimensions}I")
    if len(content) < header.size:
        raise DataError(f"{path} ends within its header; download it again")
    shape = header.unpack_from(content)
    values = len(content) - header.size
    if values != math.prod(shape):
        raise DataError(
            f"{path} holds {values:,} values where its header announces "
            f"{' x '.join(map(str, shape))}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=header.size).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except gzip.BadGzipFile as error:
        raise DataError(f"{path} is no gzip file; download it again, or drop the .gz") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is cut short or damaged ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the file") from error
