"""Files: round trips, atomic writing, refusals, and damaged or hostile input."""

from __future__ import annotations

import io
import os
import pickle
import random
import stat
import zipfile
from collections import Counter, OrderedDict

import pytest

import disttorch as torch
from disttorch import nn
from disttorch.serialization import archive

DTYPES = [
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128",
]


def through_memory(obj, **options):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    buffer.seek(0)
    return torch.load(buffer, **options)


# ---------------------------------------------------------------- round trips
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    t = torch.tensor([0, 1, 2, 100], dtype=getattr(torch, dtype)).reshape(2, 2)
    loaded = through_memory(t)
    assert loaded.dtype is t.dtype and loaded.tolist() == t.tolist() and loaded.shape == (2, 2)


def test_containers():
    obj = OrderedDict(
        a=[1, 2.5, None, True, "text", b"bytes", b"", 1 + 2j, -(10**30)], t=(1, (2, ())),
        s={1, 2}, f=frozenset("ab"), by=bytearray(b"xy"), c=Counter("abca"), d=torch.float16,
        where=torch.device("cpu"), size=torch.Size([2, 3]), sl=slice(1, None, 2), r=range(3),
        nested={"x": {("y", 1): [{}, [], ""]}}, inf=float("inf"),
    )
    loaded = through_memory(obj)
    assert loaded == obj and list(loaded) == list(obj)
    assert [type(v) for v in loaded.values()] == [type(v) for v in obj.values()]


def test_views_keep_sharing_and_copies_do_not():
    a = torch.arange(24.0).reshape(4, 6)
    loaded = through_memory(
        {"a": a, "t": a.t(), "part": a[1:3, ::2], "copy": a.clone(), "again": a}
    )
    assert loaded["again"] is loaded["a"]
    loaded["a"][2, 2] = 99.0
    assert loaded["t"][2, 2] == 99 and loaded["part"][1, 1] == 99
    assert loaded["copy"][2, 2] == 14
    assert loaded["t"].tolist() == loaded["a"].t().tolist()


def test_a_file_loads_and_saves_again():
    first = through_memory({"x": torch.arange(6.0).reshape(2, 3)[:, 1:]})
    assert through_memory(first)["x"].tolist() == [[1, 2], [4, 5]]


def test_parameters_and_state_dicts(tmp_path):
    m = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    m[0].bias.requires_grad_(False)
    torch.save({"state": m.state_dict(), "p": list(m.parameters())}, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt")
    assert isinstance(loaded["p"][0], nn.Parameter)
    assert [p.requires_grad for p in loaded["p"]] == [True, False, True, True]
    assert loaded["state"]._metadata == m.state_dict()._metadata
    loaded["p"][0].data.fill_(7.0)
    assert loaded["state"]["0.weight"].tolist() == [[7.0, 7.0]] * 3  # tied in the file, too
    with open(tmp_path / "m.pt", "rb") as f:
        assert list(torch.load(f)["state"]) == list(m.state_dict())


def test_tied_and_non_contiguous_weights():
    w = nn.Parameter(torch.randn(3, 2))
    tied = through_memory([w, w, w.data.t()])
    assert tied[0] is tied[1] and tied[2].tolist() == w.t().tolist()
    flipped = torch.arange(5).flip(0) if hasattr(torch, "flip") else torch.arange(5)
    assert through_memory(flipped).tolist() == flipped.tolist()


def test_map_location():
    seen = []

    def place(storage, location):
        seen.append((storage.shape, location))
        return storage * 2

    assert through_memory(torch.ones(2, 3), map_location=place).sum().item() == 12
    assert seen == [((6,), "cpu")]
    for where in ("cpu", torch.device("cpu"), {"cpu": "cpu"}, lambda s, loc: None):
        assert through_memory(torch.ones(2), map_location=where).device.type == "cpu"
    with pytest.raises(RuntimeError, match="map_location"):
        through_memory(torch.ones(2), map_location="cuda:9")
    with pytest.raises(KeyError, match="cpu"):  # the user's own error comes through
        through_memory(torch.ones(2), map_location=lambda s, loc: {}[loc])


# ---------------------------------------------------------------- writing
def test_equal_contents_give_equal_files(tmp_path):
    for name in ("x.pt", "again/x.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save({"a": torch.arange(5), "b": torch.ones(3)}, tmp_path / name)
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "again/x.pt").read_bytes()


class _Unwritable:
    pass


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(torch.ones(2), path)
    with pytest.raises(pickle.PicklingError, match="_Unwritable is neither"):
        torch.save({"a": torch.ones(1000), "b": _Unwritable()}, path)
    with pytest.raises(KeyboardInterrupt), archive.atomic_file(str(path)) as f:
        f.write(b"half")
        raise KeyboardInterrupt
    assert torch.load(path).tolist() == [1, 1]
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("obj", [nn.Linear(1, 1), lambda: 0, type("D", (dict,), {})()])
def test_unloadable_objects_are_refused_when_saving(obj):
    with pytest.raises(pickle.PicklingError, match="is neither"):
        torch.save([obj], io.BytesIO())


def test_disk_is_flushed_before_the_name_changes(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            archive.os, name, lambda *a, real=real, name=name: (order.append(name), real(*a))[1]
        )
    torch.save(torch.ones(1), tmp_path / "x.pt")
    assert order == ["fsync", "replace", "fsync"]


def test_paths(tmp_path):
    (tmp_path / "real.pt").touch()
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    torch.save(torch.ones(1), tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and torch.load(tmp_path / "real.pt").item() == 1
    torch.save(torch.ones(1), str(tmp_path / "ünï.pt").encode())
    assert torch.load(tmp_path / "ünï.pt").item() == 1
    umask = os.umask(0o027)
    try:
        torch.save(torch.ones(1), tmp_path / "mode.pt")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "mode.pt").stat().st_mode) == 0o640
    with pytest.raises(FileNotFoundError, match="Parent directory"):
        torch.save(torch.ones(1), tmp_path / "no" / "x.pt")
    with pytest.raises(FileNotFoundError):
        torch.load(tmp_path / "missing.pt")
    torch.save(torch.ones(1), "/dev/null")


def test_records_are_aligned(tmp_path):
    torch.save([torch.ones(n) for n in range(1, 40)], tmp_path / "some_name.pt")
    content = (tmp_path / "some_name.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "some_name.pt") as z:
        assert z.testzip() is None
        for info in z.infolist():
            start = info.header_offset
            name, extra = (
                int.from_bytes(content[start + k : start + k + 2], "little") for k in (26, 28)
            )
            assert (start + 30 + name + extra) % 64 == 0, info.filename


# ---------------------------------------------------------------- hostile files
class Global:
    """Pickles as a call of any importable function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def file_with(pickled: bytes, records=()) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("archive/data.pkl", pickled)
        z.writestr("archive/byteorder", "little")
        for name, content in records:
            z.writestr(f"archive/{name}", content)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_runs(tmp_path, protocol):
    mark = tmp_path / "ran"
    for function, args in (
        (os.mkdir, (str(mark),)), (eval, (f"__import__('os').mkdir({str(mark)!r})",)),
        (os.system, (f"mkdir {mark}",)),
    ):
        evil = pickle.dumps({"a": Global(function, *args)}, protocol)
        assert pickle.loads(evil) and mark.exists()  # it works on an open unpickler
        mark.rmdir()
        with pytest.raises(pickle.UnpicklingError, match=r"refers to \w+\.(mkdir|eval|system)|opc"):
            torch.load(file_with(evil), weights_only=False)
        assert not mark.exists()


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x04tQ"
)


def tensor_pickle(offset=b"K\x00", size=b"K\x04\x85", stride=b"K\x01\x85"):
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    tail = b"\x89ccollections\nOrderedDict\n)RtR."
    return head + STORAGE + offset + size + stride + tail


def test_handmade_tensor():
    data = [("data/0", b"\0\0\x80?" * 4)]
    assert torch.load(file_with(tensor_pickle(), data)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "pickled, text",
    [
        (tensor_pickle(offset=b"K\x01"), "reaches element 4"),
        (tensor_pickle(size=b"K\x02K\x04\x86", stride=b"K\x04K\x01\x86"), "reaches element 7"),
        (tensor_pickle(stride=b"J\xff\xff\xff\xff\x85"), "no window"),
        (tensor_pickle(size=b"J\xff\xff\xff\xff\x85"), "no window"),
        (tensor_pickle(size=b"G?\xf0\0\0\0\0\0\0\x85"), "sizes as ints"),
        (tensor_pickle(size=b"\x8a\x0b" + b"\xff" * 10 + b"\x00\x85"), "reaches"),
        (b"\x80\x02cdisttorch\nTensor\n.", "refers to disttorch.Tensor"),
        (b"\x80\x02ctorch\nSize\n}X\x01\x00\x00\x00aK\x01sb.", "attributes for a _Builder"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}X\x04\x00\x00\x00keysK\x01sb.",
         "attribute 'keys'"),
        (b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.", "bytes in an"),
        (b"\x80\x02ctorch\nSize\n)\x81.", "disallowed opcode 0x81"),
        (b"\x80\x02K\x01)R.", "a call of int"),
        (b"\x80\x02]r\xff\xff\xff\xff.", None),  # a huge memo index costs nothing
        (b"\x80\x02}](K\x01eK\x02s.", "a list as a key"),
        (b"\x80\x02" + b")" + b"2\x86" * 60 + b"}" + b"0" * 0 + b".", None),
        (b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.", "nested tuple as a key"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
        (b"\x80\x02" + b"(" * 100 + b"t" * 3, "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_hostile_pickles(pickled, text):
    file = file_with(pickled, [("data/0", b"\0" * 16)])
    if text is None:
        torch.load(file)
        return
    with pytest.raises(pickle.UnpicklingError, match=text):
        torch.load(file)


def test_storages_that_do_not_fit():
    for records, text in (
        ([], "lacks the record data/0"), ([("data/0", b"\0" * 15)], "has 15 bytes"),
        ([("data/0", b"\0" * 4000)], "has 4000 bytes"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch.load(file_with(tensor_pickle(), records))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", tensor_pickle())
        z.writestr("archive/data/0", b"\0" * 16)
    with pytest.raises(RuntimeError, match="compressed"):
        torch.load(buffer)


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "empty"), (b"hello world", "begins with b'hello wo'"),
        (archive._OLD_MAGIC + b"....", r"before 1\.6"), (b"PK\x03\x04....", "truncated or damaged"),
    ],
)
def test_other_files(content, text, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(RuntimeError, match=f"x.pt.*{text}"):
        torch.load(tmp_path / "x.pt")


def example() -> bytes:
    buffer = io.BytesIO()
    m = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    torch.save({"m": m.state_dict(), "step": 3, "n": [1.5, "x", b"y"], "p": m[0].weight}, buffer)
    return buffer.getvalue()


def test_every_truncation_is_told():
    content = example()
    for n in range(0, len(content), 7):
        with pytest.raises((RuntimeError, pickle.UnpicklingError)) as caught:
            torch.load(io.BytesIO(content[:n]))
        assert "\n" not in str(caught.value)


def test_flipped_bytes_of_tensors_are_noticed():
    content = bytearray(example())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as z:
        info = z.getinfo("archive/data/0")
    at = content.index(b"PK\x03\x04", info.header_offset) + 30 + len("archive/data/0")
    at += int.from_bytes(content[info.header_offset + 28 : info.header_offset + 30], "little")
    content[at] ^= 1
    with pytest.raises(RuntimeError, match="truncated or damaged: Bad CRC-32"):
        torch.load(io.BytesIO(bytes(content)))


def test_mutated_files_do_no_harm():
    """Random changes, in the file and in its pickle: an object or one clear error, nothing else."""
    draw, content, outcomes = random.Random(0), example(), Counter()
    with zipfile.ZipFile(io.BytesIO(content)) as z:
        parts = {n.partition("/")[2]: z.read(n) for n in z.namelist()}
    for _ in range(1500):
        inside = draw.random() < 0.7
        data = bytearray(parts["data.pkl"] if inside else content)
        for _ in range(draw.choice([1, 1, 2, 5])):
            at = draw.randrange(len(data))
            change = draw.random()
            if change < 0.6:
                data[at] = draw.randrange(256)
            elif change < 0.8:
                del data[at : at + draw.randrange(1, 9)]
            else:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 5)))
        file = io.BytesIO(bytes(data))
        if inside:
            records = [(n, c) for n, c in parts.items() if n not in ("data.pkl", "byteorder")]
            file = file_with(bytes(data), records)
        try:
            torch.load(file)
            outcomes["loaded"] += 1
        except (RuntimeError, pickle.UnpicklingError) as error:
            outcomes[type(error).__name__] += 1
    assert len(outcomes) >= 3 and outcomes["loaded"] < 1000, outcomes


def test_options():
    with pytest.raises(ValueError, match="pickle_protocol must be 2"):
        torch.save(1, io.BytesIO(), pickle_protocol=4)
    with pytest.raises(NotImplementedError, match="mmap"):
        torch.load(io.BytesIO(example()), mmap=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        torch.load(io.BytesIO(example()), x=1)
