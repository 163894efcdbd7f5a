"""Well-known data sets, fetched once, checked, and read from their original files.

    train = MNIST("data", train=True, download=True)
    image, label = train[0]                       # uint8 [28, 28], int

A download goes to a temporary name and takes its own only when its MD5 sum is right, so a file that
is there is whole. Nothing is unpickled: CIFAR-10 is read in its binary version.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

from ... import ops
from ...backend import dtypes
from ...tensor import Tensor
from .dataset import Dataset

_CHUNK = 1 << 20


class Source(NamedTuple):
    """A file to fetch: its name, where it is, and its MD5 sum in hexadecimal."""

    name: str
    url: str
    md5: str


def md5_of(path: str | os.PathLike) -> str:
    """The MD5 sum of a file."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def fetch(source: Source, folder: str | os.PathLike, download: bool) -> Path:
    """The path of a whole file, downloaded into ``folder`` if it is not there and may be.

    Raises:
        FileNotFoundError: if it is absent and ``download`` is False.
        RuntimeError: if what is there, or what came, has another MD5 sum.
    """
    path = Path(folder, source.name)
    if path.exists():
        found = md5_of(path)
        if found != source.md5:
            raise RuntimeError(
                f"{path} has the MD5 sum {found}, not {source.md5}: it is damaged or of another "
                "version; delete it and download again"
            )
        return path
    if not download:
        raise FileNotFoundError(f"{path} is not there; use download=True, or put the file there")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as part:
        try:
            with urllib.request.urlopen(source.url) as answer:
                while block := answer.read(_CHUNK):
                    part.write(block)
            part.close()
            found = md5_of(part.name)
            if found != source.md5:
                raise RuntimeError(
                    f"{source.url} gave a file with the MD5 sum {found}, expected {source.md5}"
                )
            os.replace(part.name, path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    return path


def read_idx(path: str | os.PathLike):
    """A gzipped IDX file of unsigned bytes as a uint8 tensor of the shape in its header.

    Raises:
        ValueError: if it is no such file, or is cut short.
    """
    with gzip.open(path, "rb") as file:
        data = file.read()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes (it begins with {data[:4]!r})")
    dims = data[3]
    shape = struct.unpack(f">{dims}I", data[4:4 + 4 * dims])
    body, count = data[4 + 4 * dims:], 1
    for size in shape:
        count *= size
    if len(body) != count:
        raise ValueError(f"{path} holds {len(body)} bytes where its header {shape} asks for {count}")
    return ops.frombuffer(bytearray(body), dtype=dtypes.uint8).reshape(shape)


class _Arrays(Dataset):
    """Images and labels in memory, with optional transforms of each.

    Attributes:
        data: uint8 [N, ...]; targets: int64 [N].
    """

    data: Tensor
    targets: Tensor

    def __init__(self, transform=None, target_transform=None):
        self.transform, self.target_transform = transform, target_transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index):
        image, label = self.data[index], int(self.targets[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label


class MNIST(_Arrays):
    """Handwritten digits (LeCun et al., 1998): images uint8 [28, 28], labels 0 to 9.

    Args:
        root: folder of the four original files.
        train: the 60,000 for training, or the 10,000 for testing.
        transform, target_transform: applied to each image and label.
        download: fetch what is missing.
    """

    mirror = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    sums = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        super().__init__(transform, target_transform)
        part = "train" if train else "t10k"
        paths = [
            fetch(Source(name, self.mirror + name, self.sums[name]), root, download)
            for name in (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
        ]
        self.data, self.targets = read_idx(paths[0]), read_idx(paths[1]).long()


class CIFAR10(_Arrays):
    """Small colour pictures (Krizhevsky, 2009): uint8 [3, 32, 32], labels 0 to 9.

    Arguments as ``MNIST``; ``root`` holds the archive of the binary version.
    """

    source = Source("cifar-10-binary.tar.gz",
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "c32a1d4ab5d03f1284b67883e8d87530")
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
               "truck")

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        super().__init__(transform, target_transform)
        wanted = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
        records = {}
        with tarfile.open(fetch(self.source, root, download)) as archive:
            for member in archive:
                if Path(member.name).name in wanted and member.isfile():
                    records[Path(member.name).name] = archive.extractfile(member).read()
        missing = [name for name in wanted if name not in records]
        if missing:
            raise ValueError(f"{self.source.name} lacks {', '.join(missing)}")
        data = bytearray(b"".join(records[name] for name in wanted))
        if len(data) % 3073:
            raise ValueError(f"{self.source.name}: {len(data)} bytes are no whole records of 3073")
        rows = ops.frombuffer(data, dtype=dtypes.uint8).reshape(-1, 3073)
        self.targets, self.data = rows[:, 0].long(), rows[:, 1:].reshape(-1, 3, 32, 32)


class IMDB(Dataset):
    """Film reviews (Maas et al., ACL 2011): ``(label, text)``, label 1 for negative, 2 for positive.

    Args:
        root: folder of the archive.
        split: "train" or "test", 25,000 reviews each.
        download: fetch the archive if it is missing.
    """

    source = Source("aclImdb_v1.tar.gz",
                    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
                    "7c2ac02c03563afcf9b574c7e56c153a")

    def __init__(self, root, split="train", download=False):
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        found = []
        with tarfile.open(fetch(self.source, root, download)) as archive:
            for member in archive:
                parts = Path(member.name).parts
                if len(parts) == 4 and parts[1] == split and parts[2] in ("neg", "pos"):
                    text = archive.extractfile(member).read().decode("utf-8")
                    found.append((member.name, 1 if parts[2] == "neg" else 2, text))
        if not found:
            raise ValueError(f"{self.source.name} holds no reviews for {split!r}")
        self.reviews = [(label, text) for _, label, text in sorted(found)]

    def __len__(self) -> int:
        return len(self.reviews)

    def __getitem__(self, index):
        return self.reviews[index]


__all__ = ["CIFAR10", "IMDB", "MNIST", "Source", "fetch", "md5_of", "read_idx"]
