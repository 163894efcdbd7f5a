"""cuBLASLt's descriptors: a product with its epilogue, set up once for each problem and kept.

A problem is types, shapes, leading dimensions, the epilogue and how well the addresses are aligned: all
that the library's heuristic looks at. Its first choice is kept with the descriptors, so that a product
that is made again, or replayed from a graph, is made by the same kernel.
"""

from __future__ import annotations

import ctypes

# cublasLtEpilogue_t
DEFAULT, BIAS, GELU_AUX_BIAS, DGELU_BGRAD = 1, 4, 32 | 128 | 4, 64 | 128 | 16

# cublasLtMatmulDescAttributes_t
_OP_A, _OP_B, _EPILOGUE, _BIAS_POINTER, _AUX_POINTER, _AUX_LD = 3, 4, 7, 8, 11, 12
# cublasLtMatmulPreferenceAttributes_t
_WORKSPACE_BYTES, _REDUCTIONS, _ALIGNMENT_A = 1, 3, 5  # B, C and D follow A
# cublasLtReductionScheme_t: none or in the compute type, but not in the output's type
_EXACT_REDUCTIONS = 2
_SCALE = {2: 0, 14: 0}  # alpha and beta of 16-bit floats are float32
REFUSALS = (7, 15)  # INVALID_VALUE and NOT_SUPPORTED: the two answers for "no such product"
_MOST_PLANS = 4096
_BEST_ALIGNMENT = 256

SIGNATURES = {
    "cublasLtMatmulDescCreate": "pii",
    "cublasLtMatmulDescDestroy": "p",
    "cublasLtMatmulDescSetAttribute": "pips",
    "cublasLtMatrixLayoutCreate": "pilll",  # type, rows, columns, leading dimension
    "cublasLtMatrixLayoutDestroy": "p",
    "cublasLtMatmulPreferenceCreate": "p",
    "cublasLtMatmulPreferenceDestroy": "p",
    "cublasLtMatmulPreferenceSetAttribute": "pips",
    # handle, description, layouts of A, B, C, D, preference, how many wanted, results, how many found
    "cublasLtMatmulAlgoGetHeuristic": "pppppppipp",
    # handle, description, alpha, A, layout, B, layout, beta, C, layout, D, layout, algorithm,
    # workspace, its bytes, stream
    "cublasLtMatmul": "ppppppppppppppsp",
}


class _Choice(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
        ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    ]


def alignment(address: int) -> int:
    """The largest power of two up to 256 that divides an address."""
    return min(address & -address, _BEST_ALIGNMENT) if address else _BEST_ALIGNMENT


def _check(status: int, call: str) -> None:
    from .cublas import check

    check(status, call)


class Plan:
    """Descriptors and algorithm of one problem; the addresses come with each run."""

    def __init__(self, lib, dtype, compute, op_a, op_b, shapes, epilogue, ld_aux):
        self._lib = lib
        self._made: list = []  # (destroying function, handle)
        self.description = self._make("MatmulDesc", compute, _SCALE.get(dtype, dtype))
        self._set(_OP_A, ctypes.c_int(op_a))
        self._set(_OP_B, ctypes.c_int(op_b))
        self._set(_EPILOGUE, ctypes.c_uint32(epilogue))
        if ld_aux:
            self._set(_AUX_LD, ctypes.c_int64(ld_aux))
        self.layouts = [self._make("MatrixLayout", dtype, *shape) for shape in shapes]
        self._bias = self._aux = 0
        self._choice = _Choice()
        self._algorithm = ctypes.byref(self._choice)  # its first member

    def _make(self, what: str, *arguments) -> int:
        handle = ctypes.c_void_p()
        status = getattr(self._lib, f"cublasLt{what}Create")(ctypes.byref(handle), *arguments)
        _check(status, f"cublasLt{what}Create")
        self._made.append((getattr(self._lib, f"cublasLt{what}Destroy"), handle.value))
        return handle.value  # type: ignore[return-value]

    def _set(self, attribute: int, value) -> None:
        status = self._lib.cublasLtMatmulDescSetAttribute(
            self.description, attribute, ctypes.byref(value), ctypes.sizeof(value)
        )
        _check(status, "cublasLtMatmulDescSetAttribute")

    def _point(self, bias: int, aux: int) -> None:
        """Where the epilogue's vectors lie: set only if it is elsewhere than in the last run."""
        if bias != self._bias:
            self._set(_BIAS_POINTER, ctypes.c_void_p(bias))
            self._bias = bias
        if aux != self._aux:
            self._set(_AUX_POINTER, ctypes.c_void_p(aux))
            self._aux = aux

    def choose(self, handle: int, addresses, bias: int, aux: int, exact_sums: bool, workspace: int):
        """Ask the heuristic; whether it knows an algorithm."""
        self._point(bias, aux)
        preference = self._make("MatmulPreference")

        def prefer(attribute, value):
            status = self._lib.cublasLtMatmulPreferenceSetAttribute(
                preference, attribute, ctypes.byref(value), ctypes.sizeof(value)
            )
            _check(status, "cublasLtMatmulPreferenceSetAttribute")

        prefer(_WORKSPACE_BYTES, ctypes.c_uint64(workspace))
        if exact_sums:
            prefer(_REDUCTIONS, ctypes.c_uint32(_EXACT_REDUCTIONS))
        for i, address in enumerate(addresses):
            prefer(_ALIGNMENT_A + i, ctypes.c_uint32(alignment(address)))
        found = ctypes.c_int(0)
        status = self._lib.cublasLtMatmulAlgoGetHeuristic(
            handle, self.description, *self.layouts, preference, 1, ctypes.byref(self._choice),
            ctypes.byref(found),
        )
        if status in REFUSALS:
            return False
        _check(status, "cublasLtMatmulAlgoGetHeuristic")
        return found.value > 0 and self._choice.state == 0

    def run(self, handle, alpha, a, b, beta, c, d, bias, aux, scratch, stream) -> int:
        """Put the product into a stream; cuBLASLt's status."""
        if bias != self._bias or aux != self._aux:
            self._point(bias, aux)
        la, lb, lc, ld = self.layouts
        return self._lib.cublasLtMatmul(
            handle, self.description, alpha, a, la, b, lb, beta, c, lc, d, ld, self._algorithm,
            scratch[0], scratch[1], stream,
        )

    def close(self) -> None:
        """Free the descriptors."""
        while self._made:
            destroy, handle = self._made.pop()
            destroy(handle)


class Plans:
    """The plans of one handle, by problem. A problem without an algorithm is remembered as None."""

    def __init__(self, lib, handle: int):
        self._lib, self._handle = lib, handle
        self._plans: dict[tuple, Plan | None] = {}

    def find(self, dtype, compute, math, op_a, op_b, m, n, k, a, lda, b, ldb, fresh, c, ldc, d, ldd,
             epilogue, bias, aux, ld_aux, workspace) -> Plan | None:
        """The plan of a problem; ``fresh`` says that C is not read. None: cuBLASLt has no algorithm."""
        aligned = None  # the usual case, in one look at all addresses
        if (a | b | c | d | bias | aux) & (_BEST_ALIGNMENT - 1):
            aligned = tuple(map(alignment, (a, b, c, d, bias, aux)))
        key = (dtype, compute, math, op_a, op_b, m, n, k, lda, ldb, fresh, ldc, ldd, epilogue, ld_aux,
               aligned)
        try:
            return self._plans[key]
        except KeyError:
            pass
        if len(self._plans) >= _MOST_PLANS:
            self._forget()
        rows_a, columns_a = (m, k) if op_a == 0 else (k, m)
        rows_b, columns_b = (k, n) if op_b == 0 else (n, k)
        shapes = ((rows_a, columns_a, lda), (rows_b, columns_b, ldb), (m, n, ldc), (m, n, ldd))
        plan = Plan(self._lib, dtype, compute, op_a, op_b, shapes, epilogue, ld_aux)
        if not plan.choose(self._handle, (a, b, c, d), bias, aux, math != 0, workspace):
            plan.close()
            plan = None  # type: ignore[assignment]
        self._plans[key] = plan
        return plan

    def refuse(self, plan: Plan) -> None:
        """Give up a plan whose algorithm did not run: its problem has none."""
        for key, known in self._plans.items():
            if known is plan:
                self._plans[key] = None
        plan.close()

    def _forget(self) -> None:
        """Problems without end (each batch of another length): begin anew."""
        for plan in self._plans.values():
            if plan is not None:
                plan.close()
        self._plans.clear()
