"""Data sets read from files of the original formats, which the tests make; downloads from file://."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest

import disttorch as torch
from disttorch.utils.data.downloads import CIFAR10, IMDB, MNIST, Source, fetch, read_idx

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_mnist(tmp_path, monkeypatch):
    images = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = RNG.integers(0, 10, 5, dtype=np.uint8)
    mirror, root = tmp_path / "mirror", tmp_path / "root"
    mirror.mkdir()
    files = {"t10k-images-idx3-ubyte.gz": idx(images), "t10k-labels-idx1-ubyte.gz": idx(labels)}
    for name, data in files.items():
        (mirror / name).write_bytes(data)
    monkeypatch.setattr(MNIST, "mirror", mirror.as_uri() + "/")
    monkeypatch.setattr(MNIST, "sums", {name: md5(data) for name, data in files.items()})
    with pytest.raises(FileNotFoundError, match="download=True"):
        MNIST(root, train=False)
    data = MNIST(root, train=False, download=True, transform=lambda image: image.float() / 255)
    assert len(data) == 5
    image, label = data[3]
    assert image.dtype is torch.float32 and label == labels[3]
    np.testing.assert_allclose(image.numpy(), images[3] / np.float32(255))
    assert MNIST(root, train=False)[0][1] == labels[0]  # now it is there


def test_cifar10(tmp_path, monkeypatch):
    records = RNG.integers(0, 10, (4, 3073), dtype=np.uint8)
    data = tar({"cifar-10-batches-bin/test_batch.bin": records.tobytes(), "readme": b"x"})
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    monkeypatch.setattr(CIFAR10, "source", CIFAR10.source._replace(md5=md5(data)))
    found = CIFAR10(tmp_path, train=False)
    image, label = found[2]
    assert tuple(image.shape) == (3, 32, 32) and label == records[2, 0]
    assert image.flatten().tolist() == records[2, 1:].tolist()
    with pytest.raises(ValueError, match=r"lacks data_batch_1\.bin"):
        CIFAR10(tmp_path, train=True)


def test_imdb(tmp_path, monkeypatch):
    data = tar({
        "aclImdb/train/pos/0_9.txt": b"good", "aclImdb/train/neg/0_2.txt": "schlecht ä".encode(),
        "aclImdb/train/unsup/0_0.txt": b"?", "aclImdb/test/pos/0_8.txt": b"fine",
    })
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(data)
    monkeypatch.setattr(IMDB, "source", IMDB.source._replace(md5=md5(data)))
    assert list(IMDB(tmp_path)) == [(1, "schlecht ä"), (2, "good")]
    assert list(IMDB(tmp_path, "test")) == [(2, "fine")]


def test_a_damaged_file_is_refused_and_a_bad_download_leaves_nothing(tmp_path):
    origin = tmp_path / "origin.bin"
    origin.write_bytes(b"not what was asked for")
    source = Source("data.bin", origin.as_uri(), md5(b"the real thing"))
    folder = tmp_path / "folder"
    with pytest.raises(RuntimeError, match="MD5"):
        fetch(source, folder, download=True)
    assert list(folder.iterdir()) == []
    (folder / "data.bin").write_bytes(b"torn")
    with pytest.raises(RuntimeError, match="delete it and download again"):
        fetch(source, folder, download=True)


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 10) + b"123"))
    with pytest.raises(ValueError, match="holds 3 bytes"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"GIF89a"))
    with pytest.raises(ValueError, match="no IDX file"):
        read_idx(path)
