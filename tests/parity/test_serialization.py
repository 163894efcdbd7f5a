"""Files of disttorch read by PyTorch, and PyTorch's read by disttorch."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict

import numpy as np
import pytest

import disttorch as dt
from disttorch import nn, optim

torch = pytest.importorskip("torch")
tnn = torch.nn
pytestmark = pytest.mark.parity

DTYPES = [
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128",
]


def there(obj, tmp_path):
    """Saved here, loaded by PyTorch with its safe loader."""
    path = tmp_path / "ours.pt"
    dt.save(obj, path)
    return torch.load(path, weights_only=True)


def here(obj, tmp_path):
    """Saved by PyTorch, loaded here."""
    path = tmp_path / "theirs.pt"
    torch.save(obj, path)
    return dt.load(path)


def tensors(package):
    values = [0, 1, 2, 3, 5, 100]
    return {d: package.tensor(values, dtype=getattr(package, d)).reshape(2, 3) for d in DTYPES}


def plain(value):
    """Tensors as (dtype, shape, values), for comparisons across packages."""
    if isinstance(value, (torch.Tensor, dt.Tensor)):
        return str(value.dtype), tuple(value.shape), value.requires_grad, value.tolist()
    if isinstance(value, dict):
        return type(value).__name__, [(k, plain(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [plain(v) for v in value]
    if isinstance(value, (torch.dtype, dt.dtype, torch.device, dt.device)):
        return str(value)
    return value


def containers(p):
    return OrderedDict(
        a=[1, 2.5, None, True, "text", b"bytes", 1 + 2j, -(10**30)], t=(p.ones(2), (3, ())),
        s={1, 2}, by=bytearray(b"xy"), c=Counter("abca"), d=p.float16, where=p.device("cpu"),
        size=p.Size([2, 3]), empty=p.zeros(0, 4), scalar=p.tensor(2.5), e=b"",
        nested={"x": {"y": [{}, [], ""]}},
    )


@pytest.mark.parametrize("build", [tensors, containers], ids=["dtypes", "containers"])
def test_both_directions(build, tmp_path):
    assert plain(there(build(dt), tmp_path)) == plain(build(torch))
    assert plain(here(build(torch), tmp_path)) == plain(build(dt))


def test_views_and_shared_storages(tmp_path):
    def build(p):
        a = p.arange(24, dtype=p.float32).reshape(4, 6)
        return {"a": a, "t": a.t(), "part": a[1:3, ::2], "row": a[2], "wide": a[:, :1].expand(4, 5)}

    for load, package in ((there, dt), (here, torch)):
        loaded = load(build(package), tmp_path)
        assert plain(loaded) == plain(build(torch if package is dt else dt))
        loaded["a"][2, 2] = 99.0
        assert loaded["t"][2, 2] == 99 and loaded["row"][2] == 99 and loaded["part"][1, 1] == 99


def test_parameters_models_and_optimizers(tmp_path):
    def train(package, module, optimizers):
        m = module.Sequential(module.Linear(3, 4), module.LayerNorm(4), module.Linear(4, 2))
        optimizer = optimizers.AdamW(m.parameters(), amsgrad=True)
        m(package.ones(5, 3)).sum().backward()
        optimizer.step()
        return m, optimizer

    m, optimizer = train(dt, nn, optim)
    loaded = there({"m": m.state_dict(), "o": optimizer.state_dict(), "p": m[0].weight}, tmp_path)
    tm, toptimizer = train(torch, tnn, torch.optim)
    tm.load_state_dict(loaded["m"])
    toptimizer.load_state_dict(loaded["o"])
    assert loaded["m"]._metadata == m.state_dict()._metadata
    assert isinstance(loaded["p"], tnn.Parameter)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(
        tm(torch.tensor(x)).detach().numpy(), m(dt.tensor(x)).detach().numpy(), 1e-5, 1e-6
    )
    back = here({"m": tm.state_dict(), "o": toptimizer.state_dict(), "p": tm[0].weight}, tmp_path)
    assert plain(dict(back["m"])) == plain(dict(m.state_dict()))
    assert plain(back["o"]) == plain(optimizer.state_dict())
    assert isinstance(back["p"], nn.Parameter)
    optimizer.load_state_dict(back["o"])


def test_file_objects_and_big_endian_files(tmp_path):
    buffer = io.BytesIO()
    dt.save({"x": dt.arange(4)}, buffer)
    buffer.seek(0)
    assert torch.load(buffer)["x"].tolist() == [0, 1, 2, 3]
    big = tmp_path / "big.pt"
    torch.serialization.set_default_load_endianness(None)
    torch.save({"x": torch.arange(4)}, big)
    content = big.read_bytes()
    assert content.count(b"little") == 1
    import zipfile

    swapped = tmp_path / "swapped.pt"
    with zipfile.ZipFile(big) as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif name.endswith("data/0"):
                data = np.arange(4, dtype=">i8").tobytes()
            new.writestr(name, data)
    assert dt.load(swapped)["x"].tolist() == [0, 1, 2, 3]


def test_memory_mapped_by_pytorch(tmp_path):
    """Storages begin where PyTorch's mmap wants them."""
    dt.save(tensors(dt), tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", mmap=True)
    assert plain(loaded) == plain(tensors(torch))
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt") as archive, open(tmp_path / "x.pt", "rb") as f:
        for info in archive.infolist():
            f.seek(info.header_offset + 26)
            name, extra = (int.from_bytes(f.read(2), "little") for _ in range(2))
            assert (info.header_offset + 30 + name + extra) % 64 == 0


@pytest.mark.parametrize(
    "obj", [lambda: tnn.Linear(2, 2), lambda: np.float64(3.0), lambda: torch.zeros(2).to_sparse(),
            lambda: torch.zeros(2, dtype=torch.uint16), lambda: print],
    ids=["module", "numpy", "sparse", "uint16", "function"],
)
def test_unknown_objects_of_pytorch_are_named(obj, tmp_path):
    import pickle

    torch.save(obj(), tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"refers to [\w.]+"):
        dt.load(tmp_path / "x.pt")


def test_old_format_is_told(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RuntimeError, match=r"before 1\.6"):
        dt.load(tmp_path / "x.pt")


def test_cuda_files_need_map_location(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(
        tmp_path / "cuda.pt", "w"
    ) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7")
            new.writestr(name, data)
    assert content
    with pytest.raises(RuntimeError, match="map_location"):
        dt.load(tmp_path / "cuda.pt")
    for where in ("cpu", dt.device("cpu"), {"cuda:7": "cpu"}, lambda storage, loc: storage):
        assert dt.load(tmp_path / "cuda.pt", map_location=where)["x"].tolist() == [1, 1]
