"""Numbers for tests; not CuPy's."""

import numpy as _np
from cupy_standin.functions import array as _array

_generator = _np.random.default_rng(0)


def rand(*shape, dtype=float):
    return _array(_generator.random(shape).astype(dtype))
