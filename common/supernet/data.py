"""Rows with labels to train and measure with: the IDX files of Fashion-MNIST, and augmentation of a batch.

Source: Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017; MIT, Zalando SE), as Debian's package `dataset-fashion-mnist` ships
it; random erasing (Zhong et al., 2020).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class DataError(RuntimeError):
    """A data file is missing or is not what it should be; the message names the file and the way out."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs with labels. inputs: [N, ...], as a supernet takes them; labels: [N] int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int | None = None) -> Self:
        """Rows start..stop, as views."""
        return type(self)(self.inputs[start:stop], self.labels[start:stop])

    def to(self, device: str) -> Self:
        """The rows on a device."""
        return type(self)(self.inputs.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[Self]:
        """All rows in order, in parts of `size`, the last one perhaps smaller."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)


@dataclass(frozen=True, slots=True)
class Images(Rows):
    """inputs: [N, H, W] uint8. As a source of training batches it augments them."""

    def order(self, batch: int, shuffle: torch.Generator) -> Tensor:
        """See train.Source: a random order."""
        del batch
        return torch.randperm(len(self), generator=shuffle)

    def batch(self, rows: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """See train.Source."""
        return augment(self.inputs[rows], draws), self.labels[rows]


def read_fashion(folder: Path) -> tuple[Images, Images]:
    """Read the 60,000 training and the 10,000 test images from the four IDX files in a folder.

    Raises: DataError when a file is missing or malformed.
    """
    return _read_images(folder, "train"), _read_images(folder, "t10k")


def read_rows(path: Path) -> Rows:
    """Read a user's own rows: a safetensors file with `inputs`, as the supernet takes them, and INT64 `labels`.

    Raises: DataError naming the file and what is wrong in it.
    """
    try:
        tensors = load_file(path)
        inputs, labels = tensors["inputs"], tensors["labels"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is no safetensors file: {error}") from error
    except KeyError as error:
        raise DataError(f"{path} has no tensor {error}, but {', '.join(tensors)}") from error
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(inputs) != len(labels) or not len(labels):
        shapes = f"inputs of shape {list(inputs.shape)} and labels of {labels.dtype}, shape {list(labels.shape)}"
        raise DataError(f"{path} has {shapes}; one INT64 label per row is needed, and at least one row")
    return Rows(inputs, labels)


def split(train: Images, held_out: int, seed: int) -> tuple[Images, Images]:
    """Split into a part to train on and a held-out part of that many rows, by a fixed shuffle."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    keep, hold = order[held_out:], order[:held_out]
    return Images(train.inputs[keep], train.labels[keep]), Images(train.inputs[hold], train.labels[hold])


def augment(images: Tensor, generator: torch.Generator, shift: int = 2, erase: int = 8) -> Tensor:
    """Mirror half of the images, move each by up to `shift` pixels, and blank a square in a quarter of them.

    images: [N, H, W] uint8 -> the same shape, a new tensor. The square's side is drawn from 2..erase.
    """
    count, height, width = images.shape

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count, 1), generator=generator)

    rows = torch.arange(height) + draw(0, 2 * shift + 1)  # [N, H], into the padded image
    columns = torch.arange(width)
    columns = torch.where(draw(0, 2) == 1, columns, columns.flip(0)) + draw(0, 2 * shift + 1)  # [N, W]
    padded = torch.nn.functional.pad(images, (shift,) * 4)
    moved = padded[torch.arange(count).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]  # [N, H, W]
    side = draw(2, erase + 1) * (draw(0, 4) == 0)  # 0: not erased
    top, left = draw(0, height), draw(0, width)
    in_rows = (torch.arange(height) >= top) & (torch.arange(height) < top + side)  # [N, H]
    in_columns = (torch.arange(width) >= left) & (torch.arange(width) < left + side)  # [N, W]
    return moved.masked_fill_(in_rows.unsqueeze(2) & in_columns.unsqueeze(1), 0)


def _read_images(folder: Path, prefix: str) -> Images:
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} {prefix} images, but {len(labels)} labels")
    return Images(images, labels.long())


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """One gzipped IDX file of unsigned bytes: 0 0 8 dimensions, big-endian 32-bit extents, data."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        hint = "apt-get install dataset-fashion-mnist, or name the folder with --data"
        raise DataError(f"{path} is missing: {hint}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    head = 4 + 4 * dimensions
    shape = np.frombuffer(raw[4:head], dtype=">u4").astype(np.int64)
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) != head + int(shape.prod()):
        raise DataError(f"{path} is no IDX file of {dimensions} dimensions of bytes")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape).copy())
