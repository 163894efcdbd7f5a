"""Results with names: ``torch.return_types.sort(values=..., indices=...)``.

A result of several tensors is a tuple whose members also are attributes. The classes are made here,
one for each function that returns one, under PyTorch's names.
"""

from __future__ import annotations

from operator import itemgetter


class _Result(tuple):
    """A tuple of tensors with named members."""

    __slots__ = ()
    fields: tuple = ()

    def __new__(cls, values):
        return tuple.__new__(cls, values)

    def __repr__(self):
        members = ",\n".join(f"{n}={v!r}" for n, v in zip(self.fields, self))
        return f"torch.return_types.{type(self).__name__}(\n{members})"

    def __reduce__(self):
        return (type(self), (tuple(self),))


def _make(name: str, *fields: str):
    members = {f: property(itemgetter(i)) for i, f in enumerate(fields)}
    members |= {"__slots__": (), "fields": fields, "n_fields": len(fields), "__module__": __name__}
    cls = type(name, (_Result,), members)
    globals()[name] = cls
    __all__.append(name)
    return cls


__all__: list[str] = []
for _name in ("max", "min", "sort", "topk", "median", "nanmedian", "mode", "kthvalue", "cummax",
              "cummin"):
    _make(_name, "values", "indices")
_make("aminmax", "min", "max")
_make("frexp", "mantissa", "exponent")
_make("histogram", "hist", "bin_edges")
_make("svd", "U", "S", "V")
_make("qr", "Q", "R")
_make("slogdet", "sign", "logabsdet")
_make("triangular_solve", "solution", "cloned_coefficient")
_make("lu_unpack", "P", "L", "U")
_make("geqrf", "a", "tau")
_make("linalg_svd", "U", "S", "Vh")
_make("linalg_qr", "Q", "R")
_make("linalg_eig", "eigenvalues", "eigenvectors")
_make("linalg_eigh", "eigenvalues", "eigenvectors")
_make("linalg_slogdet", "sign", "logabsdet")
_make("linalg_cholesky_ex", "L", "info")
_make("linalg_inv_ex", "inverse", "info")
_make("linalg_solve_ex", "result", "info")
_make("linalg_lstsq", "solution", "residuals", "rank", "singular_values")
_make("linalg_lu", "P", "L", "U")
_make("linalg_lu_factor", "LU", "pivots")
_make("linalg_lu_factor_ex", "LU", "pivots", "info")
