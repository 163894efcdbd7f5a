"""Philox on the CPU: its published vectors, and that numbers do not depend on the grid."""

from __future__ import annotations

import cuda_host
import numpy as np
import pytest
from cuda_host import compile_text, kernel

from disttorch.backend.gpu import source

pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")
ALL = 0xFFFFFFFF
# (counter, key), bits: from the authors' library Random123
KNOWN = [
    ([0] * 6, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ALL] * 6, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]  # fmt: skip
ONE = """
extern "C" __global__ void one(const u32* in, u32* out) {
    Words w = {{in[0], in[1], in[2], in[3]}}, bits = philox(w, in[4], in[5]);
    for (int i = 0; i < 4; i++) out[i] = bits.v[i];
}
"""


def test_known_answers():
    library = compile_text(source.text("random") + ONE, source.options((("ELEMENT", "float32"),)))
    for given, bits in KNOWN:
        out = np.zeros(4, np.uint32)
        cuda_host.Kernel(library, "one")((1,), (1,), (np.array(given, np.uint32), out))
        assert out.tolist() == bits


def draw(name, n, dtype, grid, *args, seed=5, offset=3, state=None):
    out = np.zeros(n, dtype)
    element = out.dtype.name if out.dtype.kind == "f" else "float32"
    kernel("random", name, ELEMENT=element)(
        (grid,), (64,), (out, n, *args, np.uint64(seed), np.uint64(offset), state))
    return out


@pytest.mark.parametrize("name, dtype, args", [
    ("random_uniform", np.float32, ()), ("random_uniform", np.float64, ()),
    ("random_normal", np.float32, ()),
    ("random_exponential", np.float64, ()), ("random_words", np.uint32, ()),
    ("random_integers", np.int64, (-5, np.uint64(11)))])
def test_the_grid_and_the_length_change_nothing(name, dtype, args):
    long = draw(name, 1003, dtype, 1, *args)
    np.testing.assert_array_equal(draw(name, 1003, dtype, 3, *args), long)
    np.testing.assert_array_equal(draw(name, 58, dtype, 1, *args), long[:58])


def test_a_graph_reads_its_state():
    state = np.array([5, 2], np.uint64)
    eager = draw("random_uniform", 50, np.float32, 1)
    np.testing.assert_array_equal(
        draw("random_uniform", 50, np.float32, 1, seed=0, offset=1, state=state), eager)


def test_seeds_and_offsets_give_other_words():
    words = [draw("random_words", 400, np.uint32, 1, seed=s, offset=o)
             for s, o in ((1, 0), (2, 0), (1, 100), (1 << 40, 0), (1, 1 << 40))]
    assert len(np.unique(np.concatenate(words))) > 1995
    later = draw("random_words", 8, np.uint32, 1, seed=1, offset=50)
    np.testing.assert_array_equal(later, words[0][200:208])
