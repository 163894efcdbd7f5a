"""Update rules of the optimizers: PyTorch's formulas, in place, in blocks that stay in L2 cache.

A rule is about ten array operations over the same elements. Run over whole parameters each of them
streams the arrays through main memory; run over blocks, the data is read and written once.

Every rule changes ``param`` and its state arrays in place and leaves ``grad`` as it is. All arrays
of one call have one shape; complex arrays are updated as pairs of reals, 16-bit floats in float32.
``wd`` is the weight decay and ``maximize`` flips the gradient's sign.
"""

from __future__ import annotations

_BLOCK = 1 << 15  # elements: a block of six float32 arrays takes 768 KiB


def _real(array):
    """A complex array as its real and imaginary parts, without a copy if that can be."""
    return array.view(array.real.dtype) if array.flags.c_contiguous else None


def _blocks(xp, written, read):
    """Yield matching blocks of the arrays: first those to change, then those to read (or None).

    Arrays that cannot be cut without a copy come as one block. A block of 16-bit floats is a
    float32 copy, rounded back into the array when the caller comes for the next block.
    """
    if written[0].ndim == 0:  # sums of 0-dim arrays are NumPy's scalars, which cannot be written into
        written, read = ([None if a is None else a.reshape(1) for a in some] for some in (written, read))
    arrays = [*written, *read]
    first = written[0]
    if first.dtype.kind == "c":
        reals = [None if a is None else _real(a) for a in arrays]
        if any(r is None and a is not None for r, a in zip(reals, arrays)):
            for part in ("real", "imag"):
                parts = [None if a is None else getattr(a, part) for a in arrays]
                yield from _blocks(xp, parts[: len(written)], parts[len(written) :])
            return
        arrays = reals
    step = _BLOCK if xp.name == "numpy" else first.size * 2 + 1  # a GPU kernel takes all at once
    cuts: list = [...]
    if arrays[0].size > step and all(a is None or a.flags.c_contiguous for a in arrays):
        arrays = [None if a is None else a.reshape(-1) for a in arrays]
        cuts = [slice(i, i + step) for i in range(0, arrays[0].size, step)]
    widen = first.dtype.itemsize == 2
    for cut in cuts:
        block = [None if a is None else a[cut] for a in arrays]
        if not widen:
            yield block
            continue
        wide = [None if b is None else b.astype("float32") for b in block]
        yield wide
        for narrow, b in zip(block[: len(written)], wide):
            if narrow is not None:
                narrow[...] = b


def _descent(xp, grad, param, wd, maximize):
    """The direction to descend: the gradient, negated to maximise, plus L2 decay. Never aliases."""
    if maximize:
        grad = xp.negative(grad)
    if wd:
        decay = param * wd
        decay += grad
        grad = decay
    return grad


def optimizer_steps(xp, rule, arrays, own, shared, counts=(), scale=None):
    """One step of a rule for many tensors, in place.

    Args:
        rule: "adam", "sgd", ...: the name of a function ``..._step``.
        arrays: for each tensor its parameter, gradient and states, as that function takes them.
        own: for each tensor the options that may differ between tensors, such as ``step``.
        shared: the options of all.
        counts: empty: steps are counted by whoever calls.
        scale: 0-dim array that the gradients are divided by first, in place; None for 1.
    """
    step = getattr(xp, f"{rule}_step")
    for given, options in zip(arrays, own):
        if scale is not None:
            given[1][...] = given[1] / scale
        step(*given, **options, **shared)


def convert_all(xp, sources, targets):
    """Copy each array into another of its shape, of any dtype."""
    for source, target in zip(sources, targets):
        xp.assign(target, source)


def counts_on_host(xp):
    """To be called before a step whose number comes from the host."""


def sgd_step(
    xp, param, grad, buf, *, lr, momentum=0.0, dampening=0.0, wd=0.0, nesterov=False,
    maximize=False, first=False,
):
    """Stochastic gradient descent with momentum (Sutskever et al., ICML 2013).

    ``buf`` is the momentum buffer, or None without momentum; ``first`` fills it.
    """
    for p, b, g in _blocks(xp, [param, buf], [grad]):
        g = _descent(xp, g, p, wd, maximize)
        if b is not None:
            if first:
                b[...] = g
            else:
                b *= momentum
                b += g * (1 - dampening) if dampening else g
            g = g + b * momentum if nesterov else b
        p -= g * lr


def adam_step(
    xp, param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq=None, *, step, lr, beta1, beta2, eps,
    wd=0.0, decoupled=False, maximize=False, scaled_eps=False,
):
    """Adam (Kingma & Ba, ICLR 2015); decoupled decay makes it AdamW (Loshchilov & Hutter, 2019).

    ``step`` counts from 1; ``max_exp_avg_sq`` is given for the AMSGrad variant (Reddi, 2018).
    ``scaled_eps`` adds eps to the root before its bias is corrected, as in the paper's section 2.
    """
    step_size = lr / (1 - beta1**step)
    root_correction = (1 - beta2**step) ** 0.5
    if scaled_eps:
        eps = eps / root_correction
    written = [param, exp_avg, exp_avg_sq, max_exp_avg_sq]
    for p, m, v, vmax, g in _blocks(xp, written, [grad]):
        if decoupled and wd:
            p *= 1 - lr * wd
        g = _descent(xp, g, p, 0.0 if decoupled else wd, maximize)
        t = g - m
        t *= 1 - beta1
        m += t
        v *= beta2
        t = xp.multiply(g, 1 - beta2, out=t)
        t *= g
        v += t
        if vmax is not None:
            xp.maximum(vmax, v, out=vmax)
            v = vmax
        t = xp.sqrt(v, out=t)
        t /= root_correction
        t += eps
        update = m * step_size
        update /= t
        p -= update


def rmsprop_step(
    xp, param, grad, square_avg, grad_avg, buf, *, lr, alpha, eps, wd=0.0, momentum=0.0,
    maximize=False,
):
    """RMSprop (Hinton, lecture 6e, 2012); ``grad_avg`` for the centred form (Graves, 2013)."""
    for p, s, a, b, g in _blocks(xp, [param, square_avg, grad_avg, buf], [grad]):
        g = _descent(xp, g, p, wd, maximize)
        s *= alpha
        s += g * (1 - alpha) * g
        if a is not None:
            a += (g - a) * (1 - alpha)
            average = xp.sqrt(s - a * a)
        else:
            average = xp.sqrt(s)
        average += eps
        if b is not None:
            b *= momentum
            b += g / average
            p -= b * lr
        else:
            p -= g * lr / average


def adagrad_step(xp, param, grad, total, *, lr, eps, wd=0.0, maximize=False):
    """Adagrad (Duchi et al., JMLR 2011): ``total`` is the sum of squared gradients so far."""
    for p, s, g in _blocks(xp, [param, total], [grad]):
        g = _descent(xp, g, p, wd, maximize)
        s += g * g
        std = xp.sqrt(s)
        std += eps
        p -= g * lr / std


def vector_norm(xp, array, p):
    """The p-norm of all elements, as a 0-dim array of the array's (real) type.

    Sums of 16-bit floats are taken in float32; ``p`` may be infinite.
    """
    flat = array.reshape(-1)
    out_type = flat.real.dtype
    if flat.dtype.itemsize == 2:
        flat = flat.astype("float32")
    if p == 2:
        value = xp.sqrt(xp.vdot(flat, flat).real)
    elif p == float("inf"):
        value = xp.abs(flat).max() if flat.size else 0.0
    elif p == float("-inf"):
        value = xp.abs(flat).min()
    elif p == 0:
        value = xp.count_nonzero(flat)
    elif p == 1:
        value = xp.abs(flat).sum()
    else:
        value = (xp.abs(flat) ** p).sum() ** (1 / p)
    return xp.asarray(value, dtype=out_type)


def total_norm(xp, arrays, p):
    """The p-norm of all arrays seen as one vector: that of their norms, of the first one's type."""
    norms = [xp.vector_norm(a, p) for a in arrays]
    if len(norms) == 1:
        return norms[0]
    return xp.vector_norm(xp.stack([n.astype(norms[0].dtype, copy=False) for n in norms]), p)


def clip_factor(xp, norm, most):
    """By how much gradients of a norm (0-dim) are to be scaled so that it is at most ``most``: a 0-dim
    array of the norm's type, in which it is computed; a NaN stays."""
    kind = norm.dtype
    wide = kind if kind.itemsize > 2 else "float32"
    shifted = (norm.astype(wide) + 1e-6).astype(kind)
    ratio = xp.asarray(most / shifted.astype(wide)).astype(kind)
    return xp.asarray(xp.minimum(ratio, xp.asarray(1.0, dtype=kind)), dtype=kind)


def scale_all(xp, arrays, factor):
    """Multiply all arrays by a 0-dim array, in place; 16-bit floats in float32."""
    for a in arrays:
        if a.dtype.itemsize == 2:
            a[...] = a.astype("float32") * factor.astype("float32")
        else:
            a *= factor.astype(a.real.dtype, copy=False)


def clip_all(xp, arrays, low, high):
    """Limit all elements to [low, high], in place; a NaN stays."""
    for a in arrays:
        xp.clip(a, low, high, out=a)


def unscale_all(xp, arrays, scale, found):
    """Divide all arrays by ``scale`` (0-dim float32; None: as they are) in place, and set ``found``
    (0-dim float32) to 1 if a result is not finite."""
    inverse = 1.0 if scale is None else float(xp.asarray(1.0 / float(scale), "float32"))
    for a in arrays:
        if inverse != 1.0:
            if a.dtype.itemsize == 2:
                a[...] = a.astype("float32") * inverse
            else:
                a *= inverse
        if not found and not xp.isfinite(a).all():
            found[...] = 1.0


def update_scale(xp, scale, good, found, growth, backoff, interval):
    """Loss scaling's next scale (0-dim float32) and count of good steps (0-dim int32), in place:
    smaller after an overflow (``found``), larger after ``interval`` steps without one."""
    if found:
        scale *= backoff
        good[...] = 0
        return
    good += 1
    if good == interval:
        grown = scale * growth
        if xp.isfinite(grown):  # an infinite scale could never come back
            scale[...] = grown
        good[...] = 0
