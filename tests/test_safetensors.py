"""The safetensors format: what is written is read, by its library too; damage is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import disttorch as torch
from disttorch.serialization import safetensors as st

library = pytest.importorskip("safetensors")

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
          "bool"]


def test_round_trip_of_all_dtypes_and_layouts(tmp_path):
    tensors = {d: torch.arange(6).reshape(2, 3).to(getattr(torch, d)).t() for d in DTYPES}
    tensors |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5)}
    path = tmp_path / "x.safetensors"
    st.save_file(tensors, path, {"made": "here"})
    found = st.load_file(path)
    assert found.keys() == tensors.keys()
    for name, t in tensors.items():
        assert found[name].dtype is t.dtype and found[name].shape == t.shape
        assert torch.equal(found[name], t)
    with library.safe_open(path, framework="np") as file:
        assert file.metadata() == {"made": "here"}
        assert file.get_tensor("float32").tolist() == tensors["float32"].tolist()


def test_a_model_with_a_shared_weight(tmp_path):
    def build():
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model, other = build(), build()
    path = tmp_path / "model.safetensors"
    st.save_model(model, path)
    assert len(st.load_file(path)) == 3
    assert st.load_model(other, path) == ([], [])
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_damage_and_wrong_values_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(TypeError, match="'a' is a int"):
        st.save_file({"a": 1}, path)
    assert not path.exists()
    data = st.save({"a": torch.ones(100)})
    for broken in (data[:50], b"", data[:-1], b"\xff" * 64):
        with pytest.raises(library.SafetensorError):
            st.load(broken)


def test_a_script_for_torch_finds_it_under_the_librarys_name(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import torch\nfrom safetensors.torch import load_file, save_file\n"
        "save_file({'a': torch.ones(2, 2)}, 'x.safetensors')\n"
        "print(load_file('x.safetensors')['a'].sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-m", "disttorch", str(script)], capture_output=True,
                          text=True, cwd=tmp_path, timeout=60, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.stdout == "4.0\n"
