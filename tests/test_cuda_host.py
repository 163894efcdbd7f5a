"""The kernels' sources on the CPU, and that what goes wrong in a kernel is told (tests/cuda_host)."""

from __future__ import annotations

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cuda_host import KernelError, compile_text

from disttorch.backend.gpu import source

pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")
COMMON = (source.FOLDER / "common.cuh").read_text()
SOFTMAX = COMMON + """
typedef ELEMENT T;
extern "C" __global__ void softmax(const T* x, T* out, i64 width) {
    typedef Acc<T>::type A;
    __shared__ A scratch[WARP];
    x += blockIdx.x * width, out += blockIdx.x * width;
    A top = (A)-INFINITY_, sum = 0;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) top = Max()(top, up(x[i]));
    top = block_reduce(top, Max(), scratch, (A)-INFINITY_);
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) sum += exp(up(x[i]) - top);
    sum = block_reduce(sum, Add(), scratch, (A)0);
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) out[i] = down<T>(exp(up(x[i]) - top) / sum);
}
"""


def run(body: str, *args, parameters="float* x", block=64, grid=1, shared=0, before="", **kwargs):
    """A kernel of this body, with ``common.cuh``'s names."""
    text = (f"{COMMON}\n{before}\nextern \"C\" __global__ void planted({parameters}) {{ {body} }}\n")
    kernel = cuda_host.Kernel(compile_text(text), "planted")
    kernel((grid,) if isinstance(grid, int) else grid, (block,), args, shared, **kwargs)



@pytest.mark.parametrize("name,near", [("float32", 1e-6), ("float64", 1e-14), ("float16", 1e-3),
                                       ("bfloat16", 8e-3)])
@pytest.mark.parametrize("width,threads", [(1, 32), (333, 128), (40, 64)])
def test_softmax(name, near, width, threads):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    x = np.random.default_rng(0).standard_normal((5, width)).astype(dtype)
    out = np.empty_like(x)
    library = compile_text(SOFTMAX, source.options((("ELEMENT", name),)))
    cuda_host.Kernel(library, "softmax")((5,), (threads,), (x, out, width))
    e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(out.astype(np.float64), e / e.sum(1, keepdims=True), rtol=near)


def test_indices_of_threads_and_views():
    x = np.zeros((4, 3, 2, 8), np.int32)
    run("""int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        x[block * blockDim.x + threadIdx.x] = block * 100 + threadIdx.x;""",
        x[1:], parameters="int* x", block=8, grid=(2, 3, 3))
    want = np.zeros((4, 3, 2, 8), np.int32)
    want[1:] = (np.arange(18)[:, None] * 100 + np.arange(8)).reshape(3, 3, 2, 8)
    np.testing.assert_array_equal(x, want)


def test_half_conversions_are_numpys():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide, back = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.uint16)
    run("""int i = blockIdx.x * blockDim.x + threadIdx.x;
        wide[i] = up(x[i]); back[i] = down<half_t>(wide[i]);""",
        bits, wide, back, parameters="const half_t* x, float* wide, half_t* back", block=256, grid=256)
    np.testing.assert_array_equal(wide, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(back.view(np.float16), bits.view(np.float16))


@pytest.mark.parametrize("backwards", [False, True])
def test_shared_memory_barriers_and_votes(backwards):
    x = np.arange(64, dtype=np.float32)
    run("""DYNAMIC_SHARED(float, seen); __shared__ int fixed[64];
        int i = threadIdx.x, n = blockDim.x;
        seen[i] = x[i]; fixed[i] = i;
        int many = __syncthreads_count(i < 10);
        x[i] = seen[n - 1 - i] + fixed[n - 1 - i] + 1000 * many + 20000 * __syncthreads_or(i == 3)
            + 40000 * __syncthreads_and(i == 3);""", x, shared=256, backwards=backwards)
    np.testing.assert_array_equal(x, np.arange(64)[::-1] * 2 + 30000)


def test_shuffles_and_atomics():
    x = np.arange(64, dtype=np.float32)
    got, total = np.empty((7, 64), np.float32), np.zeros(1, np.float32)
    run("""int i = threadIdx.x; float v = x[i]; unsigned all = FULL_WARP;
        got[i] = __shfl_sync(all, v, 5); got[64 + i] = __shfl_up_sync(all, v, 1);
        got[128 + i] = __shfl_down_sync(all, v, 2); got[192 + i] = __shfl_xor_sync(all, v, 3);
        got[256 + i] = __shfl_sync(all, v, 1, 8); got[320 + i] = __popc(__ballot_sync(all, i % 3 == 0));
        if (i % 32 < 16) got[384 + i] = __shfl_xor_sync(0x0000ffffu, v, 8);
        else got[384 + i] = __shfl_xor_sync(0xffff0000u, v, 4);
        __syncwarp(); atomicAdd(total, v);""",
        x, got, total, parameters="const float* x, float* got, float* total")
    i = np.arange(64)
    np.testing.assert_array_equal(got, [
        i // 32 * 32 + 5, np.where(i % 32 < 1, i, i - 1), np.where(i % 32 > 29, i, i + 2), i ^ 3,
        i // 8 * 8 + 1, np.full(64, 11), np.where(i % 32 < 16, i ^ 8, i ^ 4)])
    assert total[0] == 2016


def test_lanes_exchange_bytes():
    x = np.arange(32, dtype=np.float32)
    run("""float mine[2] = {x[threadIdx.x], 2 * x[threadIdx.x]}, all[64];
        host::warp_exchange(mine, sizeof mine, all);
        float sum = 0; for (int i = 0; i < 64; i++) sum += all[i]; x[threadIdx.x] = sum;""", x, block=32)
    assert (x == 3 * 496).all()


# ---- planted errors --------------------------------------------------------------------------------


def test_threads_that_miss_a_barrier():
    words = (r"planted, block \(0,0,0\).*wait at the barrier of line \d+ \(`.*thread \(0,0,0\)"
             r".*have ended \(first: thread \(40,0,0\)\)")
    with pytest.raises(KernelError, match=words):
        run("if (threadIdx.x >= 40) return; __syncthreads();", np.zeros(1, np.float32))


def test_threads_at_different_barriers():
    with pytest.raises(KernelError, match=r"planted.*barrier of line .*barrier of line|that of line"):
        run("if (threadIdx.x < 32)\n __syncthreads();\n else\n __syncthreads();",
            np.zeros(1, np.float32))


def test_lanes_that_do_not_arrive():
    with pytest.raises(KernelError, match="wait for other lanes.*mask ffffffff, arrived 000fffff"):
        run("if (threadIdx.x < 20) x[0] = __shfl_xor_sync(FULL_WARP, x[0], 1);", np.zeros(1, np.float32),
            block=32)
    with pytest.raises(KernelError, match="a shuffle reads lane 20, which the mask 000fffff lacks"):
        run("if (threadIdx.x < 20) x[0] = __shfl_down_sync(0xfffffu, x[0], 1);", np.zeros(1, np.float32),
            block=32)


@pytest.mark.parametrize("body", ["x[100 + threadIdx.x] = 1;", "x[0] = x[100];", "x[0] = x[-1000];"])
def test_access_outside_an_array(body):
    with pytest.raises(KernelError, match=r"planted, block.*outside memory: byte .* 400 bytes"):
        run(body, np.zeros(100, np.float32))


@pytest.mark.parametrize("index", [-1, 101])
def test_write_next_to_an_array(index):
    with pytest.raises(KernelError, match=r"has written next to an array: float32 \(101,\)"):
        run(f"x[{index}] = 1;", np.zeros(101, np.float32))


def test_misaligned_access_and_constant_index():
    with pytest.raises(KernelError, match="misaligned"):
        run("*(Pack<float, 4>*)(x + 1) = Pack<float, 4>();", np.zeros(100, np.float32), block=1)


def test_dynamic_shared_memory_has_an_end():
    with pytest.raises(KernelError, match="outside memory"):
        run("DYNAMIC_SHARED(float, s); s[threadIdx.x] = 1;", np.zeros(1, np.float32), shared=128)


def test_shared_memory_is_not_zero():
    x = np.zeros(1, np.uint32)
    run("__shared__ unsigned s[4]; s[threadIdx.x] = 1; x[0] = s[2];", x, parameters="u32* x", block=1)
    assert x[0] == 0xCBCBCBCB


@pytest.mark.parametrize("args,words", [
    ((1.5, 3, 2.0), "argument 0 is passed as float64 .8 bytes., but the kernel takes a pointer"),
    ((np.zeros(1), 3, 2.0), "argument 0 is an array of float64, but the kernel takes a"),
    ((np.zeros(1, np.float32), np.int32(3), 2.0), "argument 1 is passed as int32 .4 bytes., but"),
    ((np.zeros(1, np.float32), 3, np.float32(2)), "argument 2 is passed as float32"),
    ((np.zeros(1, np.float32), 3), "takes 3 arguments, 2 were given"),
])
def test_arguments_of_the_wrong_type(args, words):
    with pytest.raises(KernelError, match=words):
        run("x[0] = n * d;", *args, parameters="float* x, i64 n, double d", block=1)


def test_launches_that_the_driver_refuses():
    x = np.zeros(1, np.float32)
    for sizes in ({"block": 1025}, {"grid": 0}, {"grid": (1, 70000, 1)}, {"shared": 228 << 10}):
        with pytest.raises(KernelError, match="planted"):
            run("x[0] = 1;", x, **sizes)
    with pytest.raises(KernelError, match="49156 bytes of static shared memory"):
        run("__shared__ float s[12289]; s[threadIdx.x] = 1; x[0] = s[3];", x)
    text = 'extern "C" __global__ void __launch_bounds__(2 * 32, 4) small(float* x) { x[0] = 1; }'
    small = cuda_host.Kernel(compile_text(text), "small")
    small((1,), (64,), (x,))
    with pytest.raises(KernelError, match="where 64 are allowed"):
        small((1,), (96,), (x,))


def test_a_source_that_does_not_compile():
    with pytest.raises(RuntimeError, match="wrong.cu.*undefined_name"):
        compile_text("extern \"C\" __global__ void f() { undefined_name; }", (), "wrong.cu")


def test_a_kernel_works_after_one_that_failed():
    for _ in range(3):
        test_threads_that_miss_a_barrier()
        test_softmax("float32", 1e-6, 40, 64)
