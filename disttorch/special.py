"""``disttorch.special``: PyTorch's names of the special functions, by ``disttorch.ops``."""

from __future__ import annotations

from . import ops
from .ops.special import SPECIAL

_SAME = ("digamma", "erf", "erfc", "erfinv", "exp2", "expm1", "i0", "log1p", "log_softmax", "logit",
         "logsumexp", "polygamma", "round", "sinc", "softmax", "xlogy")
_RENAMED = {"expit": "sigmoid", "gammaln": "lgamma", "psi": "digamma", "multigammaln": "mvlgamma",
            "modified_bessel_i0": "i0", "gammainc": "igamma", "gammaincc": "igammac"}

globals().update(SPECIAL)
modified_bessel_i1 = SPECIAL["i1"]
globals().update({name: ops.PUBLIC[name] for name in _SAME})
globals().update({name: ops.PUBLIC[top] for name, top in _RENAMED.items()})

