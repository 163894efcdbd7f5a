"""cuBLAS and cuBLASLt through ctypes: matrix products on plain integers.

CuPy's own wrappers refuse to run while a stream is captured into a CUDA graph, know no cuBLASLt, and
leave the workspace to the library, which may allocate it in the middle of a capture. Here a handle of
our own has a workspace of our own, so that a product is nothing but kernels in the current stream.

``Cublas`` is everything that the rest of the engine sees of the two libraries, and ``library(cupy)`` the
one way to it. Tests put another class in its place (``FACTORY``): the same methods computed by NumPy.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
import warnings
from pathlib import Path
from typing import Any

from . import cublaslt, graphs

# cudaDataType
R_32F, R_64F, R_16F, C_32F, C_64F, R_16BF = 0, 1, 2, 4, 5, 14
# cublasComputeType_t
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70
# cublasOperation_t
OP_N, OP_T, OP_C = 0, 1, 2
# cublasMath_t: how partial sums of 16-bit products may be added up
DEFAULT_MATH, NO_REDUCED_SUMS = 0, 16

_DEFAULT_ALGORITHM = -1
_PER_THREAD_STREAM = 2  # cudaStreamPerThread: one number, another stream in every thread
_HOPPER_WORKSPACE, _WORKSPACE = 32 << 20, 8 << 20

STATUS = {
    1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED", 16: "LICENSE_ERROR",
}


class CublasError(RuntimeError):
    """A call of the library that failed."""


def check(status: int, call: str, *arguments) -> None:
    """Raise for a status other than 0, with its name, the function and what it was given."""
    if status:
        given = ", ".join(map(str, arguments))
        raise CublasError(
            f"CUDA error: CUBLAS_STATUS_{STATUS.get(status, status)} when calling {call}({given})"
        )


# ---------------------------------------------------------------- finding and declaring
def _loaded(cuda_major: int) -> str | None:
    """The path of a libcublas of this CUDA that the process has mapped already (Linux)."""
    try:
        text = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = re.search(rf"(/\S*/libcublas\.so\.{cuda_major}\S*)$", text, re.MULTILINE)
    return found[1] if found else None


@functools.cache
def _open(cuda_major: int):
    """The library that CuPy uses, which the import of its wrapper loads; else what the linker finds.

    libcublasLt needs no search: libcublas is linked to it, and symbols of what a library is linked to
    are found through its handle, of exactly the version that belongs to it.
    """
    try:
        from cupy_backends.cuda.libs import cublas  # noqa: F401
    except ImportError:
        pass  # said below, if nothing else finds the library
    names = [_loaded(cuda_major), f"libcublas.so.{cuda_major}", "libcublas.so"]
    for name in filter(None, names):
        try:
            return _declare(ctypes.CDLL(name))
        except OSError:
            continue
    raise RuntimeError(
        f"cuBLAS of CUDA {cuda_major} is not found: pip install nvidia-cublas (CUDA 13) or "
        "nvidia-cublas-cu12, or put libcublas.so on LD_LIBRARY_PATH"
    )


def _declare(lib):
    """Set the argument types, once: i an int, l an int64, p an address or a handle."""
    kinds = {"i": ctypes.c_int, "l": ctypes.c_int64, "p": ctypes.c_void_p, "s": ctypes.c_size_t}
    for name, arguments in {
        "cublasCreate_v2": "p",
        "cublasDestroy_v2": "p",
        "cublasSetStream_v2": "pp",
        "cublasSetWorkspace_v2": "pps",
        "cublasSetMathMode": "pi",
        # handle, opA, opB, m, n, k, alpha, A, type, lda, B, type, ldb, beta, C, type, ldc, compute type,
        # algorithm
        "cublasGemmEx_64": "piilllppilpilppilii",
        # the same with a stride after each leading dimension, and the number of products
        "cublasGemmStridedBatchedEx_64": "piilllppillpillppilllii",
        **cublaslt.SIGNATURES,
    }.items():
        function = getattr(lib, name)
        function.argtypes = [kinds[c] for c in arguments]
        function.restype = ctypes.c_int
    return lib


# ---------------------------------------------------------------- numbers
_NUMBERS: dict[int, Any] = {
    R_32F: ctypes.c_float, R_64F: ctypes.c_double,
    C_32F: ctypes.c_float * 2, C_64F: ctypes.c_double * 2,
}


def scale_type(dtype: int) -> int:
    """The type of alpha and beta for matrices of a type: float32 for 16-bit floats, else their own."""
    return R_32F if dtype in (R_16F, R_16BF) else dtype


@functools.lru_cache(512)
def number(dtype: int, value):
    """A host number as cuBLAS wants it for matrices of ``dtype``: an argument that keeps its memory."""
    kind = _NUMBERS[scale_type(dtype)]
    held = kind(value.real, value.imag) if dtype in (C_32F, C_64F) else kind(value)
    return ctypes.byref(held)


# ---------------------------------------------------------------- workspaces
_workspaces: dict[tuple, Any] = {}


def _workspace(cupy, device: int, stream: int):
    """(address, bytes) of the workspace of a stream; made once, never freed.

    One for each stream: kernels of a stream run one after another, those of two may not share. Graphs
    that were captured in a stream may use its workspace as long as the process lives.
    """
    thread = threading.get_ident() if stream == _PER_THREAD_STREAM else 0
    key = (device, stream, thread)
    held = _workspaces.get(key)
    if held is None:
        hopper = int(cupy.cuda.Device(device).compute_capability) >= 90
        with graphs.uncaptured(cupy):  # it outlives the graph whose capture happens to come first
            held = cupy.empty(_HOPPER_WORKSPACE if hopper else _WORKSPACE, dtype="uint8")
        held = _workspaces.setdefault(key, held)
    return held.data.ptr, held.size


# ---------------------------------------------------------------- the seam
class Cublas:
    """The two libraries, for one device and one thread at a time.

    Every method puts one product into CuPy's current stream, and takes integers: ``dtype`` is the
    cudaDataType of all matrices (R_32F ...), ``compute`` the cublasComputeType, ``math`` DEFAULT_MATH
    or NO_REDUCED_SUMS, ``op_a`` and ``op_b`` OP_N, OP_T or OP_C; ``a, b, c, d`` are addresses on the
    device, ``alpha`` and ``beta`` Python numbers. Matrices lie column by column: element (i, j) of X is
    at ``x + (i + j·ldx)`` elements. Sums are made in the compute type, results are rounded once.

    What a stand-in must do, and check, is said at each method; and for all of them:

    - addresses are multiples of the element's size and lie, with every element that is touched, inside
      one allocation of the device; ``m, n, k ≥ 1``;
    - ``ld ≥ rows`` of the matrix as it is stored: A is m×k (OP_N) or k×m (OP_T, OP_C), B is k×n or n×k,
      C m×n;
    - C is not read where ``beta == 0`` (NaNs in it do not spread), and does not overlap A or B;
    - TF32 may be computed exactly.
    """

    def __init__(self, cupy, device: int):
        self._cupy, self.device = cupy, device
        self._current = cupy.cuda.get_current_stream
        self._lib = lib = _open(cupy.cuda.runtime.runtimeGetVersion() // 1000)
        handle = ctypes.c_void_p()
        check(lib.cublasCreate_v2(ctypes.byref(handle)), "cublasCreate")
        self.handle: int = handle.value  # type: ignore[assignment]
        self._gemm, self._batched = lib.cublasGemmEx_64, lib.cublasGemmStridedBatchedEx_64
        self._stream, self._math = -1, DEFAULT_MATH
        self._scratch = (0, 0)
        self._plans = cublaslt.Plans(lib, self.handle)

    def _follow(self, stream: int) -> None:
        """Move on to another stream, and to its workspace (which a change of stream takes away)."""
        lib = self._lib
        self._scratch = _workspace(self._cupy, self.device, stream)
        check(lib.cublasSetStream_v2(self.handle, stream), "cublasSetStream", stream)
        status = lib.cublasSetWorkspace_v2(self.handle, *self._scratch)
        check(status, "cublasSetWorkspace", *self._scratch)
        self._stream = stream

    def _set_math(self, math: int) -> None:
        check(self._lib.cublasSetMathMode(self.handle, math), "cublasSetMathMode", math)
        self._math = math

    def gemm(
        self, dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc
    ) -> None:
        """C = alpha·op(A)·op(B) + beta·C, C m×n, op(A) m×k, op(B) k×n.

        Raises:
            CublasError: if the library refuses.
        """
        stream = self._current().ptr
        if stream != self._stream:
            self._follow(stream)
        if math != self._math:
            self._set_math(math)
        status = self._gemm(
            self.handle, op_a, op_b, m, n, k, number(dtype, alpha), a, dtype, lda, b, dtype, ldb,
            number(dtype, beta), c, dtype, ldc, compute, _DEFAULT_ALGORITHM,
        )
        if status:
            check(status, "cublasGemmEx", "NTC"[op_a], "NTC"[op_b], m, n, k, a, dtype, lda, b, ldb, c,
                  ldc, compute)

    def gemm_batched(
        self, dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, stride_a, b, ldb, stride_b,
        beta, c, ldc, stride_c, count
    ) -> None:
        """``count`` ≥ 1 products like ``gemm``'s; the matrices of number i begin i strides further.

        ``stride_a`` and so on count elements.
        Strides of A and B may be 0 (the same matrix each time) or negative; those of C keep the results
        apart.

        Raises:
            CublasError: if the library refuses.
        """
        stream = self._current().ptr
        if stream != self._stream:
            self._follow(stream)
        if math != self._math:
            self._set_math(math)
        status = self._batched(
            self.handle, op_a, op_b, m, n, k, number(dtype, alpha), a, dtype, lda, stride_a,
            b, dtype, ldb, stride_b, number(dtype, beta), c, dtype, ldc, stride_c, count, compute,
            _DEFAULT_ALGORITHM,
        )
        if status:
            check(status, "cublasGemmStridedBatchedEx", "NTC"[op_a], "NTC"[op_b], m, n, k, a, dtype, lda,
                  stride_a, b, ldb, stride_b, c, ldc, stride_c, count, compute)

    def lt_matmul(
        self, dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, d, ldd,
        epilogue=cublaslt.DEFAULT, bias=0, aux=0, ld_aux=0
    ) -> bool:
        """D = f(alpha·op(A)·op(B) + beta·C): one product of cuBLASLt with what ``epilogue`` adds to it.

        C may be D, or another m×n matrix, which stays as it is. With v the sum before rounding:

        - DEFAULT: D = v;
        - BIAS: D[i, j] = v + bias[i] (bias: m elements, one after another);
        - GELU_AUX_BIAS: aux[i, j] = v + bias[i], rounded; D = gelu(v + bias[i]), gelu in its tanh form;
        - DGELU_BGRAD: D = v·gelu'(aux[i, j]); bias[i] = Σ over j of D[i, j], written.

        aux is m×n with leading dimension ``ld_aux``, a multiple of 8; bias and aux have D's type.
        The algorithm is chosen once for each problem and kept: the same call gives the same bits.

        Returns:
            False, with nothing computed, if cuBLASLt has no algorithm for the problem (with a warning if
            it finds that out only when the algorithm is to run). A stand-in says False for types other
            than R_32F, R_16F and R_16BF with an epilogue.
        Raises:
            CublasError: if the library fails otherwise.
        """
        stream = self._current().ptr
        if stream != self._stream:
            self._follow(stream)
        plan = self._plans.find(dtype, compute, math, op_a, op_b, m, n, k, a, lda, b, ldb, beta == 0, c,
                                ldc, d, ldd, epilogue, bias, aux, ld_aux, self._scratch[1])
        if plan is None:
            return False
        status = plan.run(self.handle, number(dtype, alpha), a, b, number(dtype, beta), c, d, bias, aux,
                          self._scratch, stream)
        if status in cublaslt.REFUSALS:  # the heuristic was wrong: seen with sliced operands
            warnings.warn(
                f"cublasLtMatmul refused the algorithm that its heuristic chose (CUBLAS_STATUS_"
                f"{STATUS[status]}; m, n, k = {m}, {n}, {k}, type {dtype}, epilogue {epilogue}): such "
                "products take two calls from now on", stacklevel=2)
            self._plans.refuse(plan)
            return False
        if status:
            check(status, "cublasLtMatmul", "NTC"[op_a], "NTC"[op_b], m, n, k, a, dtype, lda, b, ldb, c,
                  ldc, d, ldd, compute, epilogue, bias, aux, ld_aux)
        return True


# Tests replace it: a class that is made with (cupy, device) and has Cublas' three methods.
FACTORY = Cublas

_idle: dict[int, list] = {}  # by device: those of threads that have ended
_local = threading.local()


class _Lease:
    """A thread's hold on a library object; with the thread's end it is free for another one."""

    def __init__(self, cupy, device: int):
        free = _idle.setdefault(device, [])
        self.device = device
        try:
            self.library = free.pop()
        except IndexError:
            with graphs.uncaptured(cupy):
                self.library = FACTORY(cupy, device)

    def __del__(self):
        library = self.__dict__.get("library")
        if library is not None and _idle is not None:
            _idle.setdefault(self.device, []).append(library)


def library(cupy) -> Cublas:
    """The library for the current device, to be used in this thread.

    Making the first one of a device and thread takes a moment and memory of the device.
    """
    device = cupy.cuda.runtime.getDevice()
    try:
        return _local.leases[device].library
    except (AttributeError, KeyError):
        leases = _local.__dict__.setdefault("leases", {})
        leases[device] = lease = _Lease(cupy, device)
        return lease.library
