"""Function transforms: derivatives and batching of functions as functions.

``vmap`` runs the function once per element of the batch and stacks the results: the numbers and
the meaning are PyTorch's, the speed is a loop's (so the function may also branch on values).
``jvp`` and ``jacfwd`` are computed by two backwards, not by forward-mode differentiation.
"""

from .derivatives import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, vjp
from .modules import functional_call, stack_module_state
from .vmap import vmap

__all__ = [
    "functional_call", "grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp", "linearize",
    "stack_module_state", "vjp", "vmap",
]
