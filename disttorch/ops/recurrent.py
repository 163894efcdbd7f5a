"""Recurrent layers as one op for a whole sequence: one GEMM projects all inputs, a loop does the
steps in place, and backward gathers all weight gradients in one GEMM each.

Sequences lie packed: the rows of step t are the ``sizes[t]`` longest sequences of the batch, in the
same order at every step, so that step t works on the first ``sizes[t]`` rows of the state. Going
backward in time (``reverse``) the same rows join the batch where, forward, they leave it.

The products want the gates of a row side by side (B×G·H); everything else is several times faster on
whole contiguous gates (G×B×H), which is how the activations of a step are kept for backward.

Shape legend: T steps, B batch, N = Σ sizes rows, I inputs, H hidden, P outputs (H, or the width of
an LSTM's projection), G gates.
"""

from __future__ import annotations

from .core import REGISTRY, op
from .samples import case


def _steps(sizes, reverse) -> list[tuple[slice, int]]:
    """(rows, batch size) of each step, in the order in which the steps are done."""
    steps, start = [], 0
    for b in sizes:
        steps.append((slice(start, start + b), b))
        start += b
    return steps[::-1] if reverse else steps


def _projected(xp, input, weight, bias):
    """input·weightᵀ + bias: N×I -> N×G·H."""
    out = xp.matmul(input, weight.T)
    if bias is not None:
        out += bias
    return out


def _sigmoid_(xp, a):
    """The sigmoid, in place. NumPy's tanh is several times faster than its exp."""
    a *= a.dtype.type(0.5)
    xp.tanh(a, out=a)
    a *= a.dtype.type(0.5)
    a += a.dtype.type(0.5)


def _times_sigmoid_slope(grad, s):
    """grad·s·(1 − s), in place."""
    grad *= s
    grad *= 1 - s


def _times_tanh_slope(grad, t):
    """grad·(1 − t²), in place."""
    grad *= 1 - t * t


def _block(flat, rows, gates):
    """The activations of one step in their common memory N·G·H: G×b×H, contiguous."""
    width = flat.size // flat.shape[0]
    b = rows.stop - rows.start
    return flat[rows].reshape(gates, b, width // gates)


def _gate_first(a, gates):
    """b×G·H as a view G×b×H."""
    return a.reshape(a.shape[0], gates, -1).swapaxes(0, 1)


def _start(xp, grad, like):
    """The gradient of a final state as the running gradient of the state."""
    return xp.zeros_like(like) if grad is None else xp.array(grad, like.dtype)


def _outside(xp, needs, grads, inner, input, before, weight_ih):
    """Gradients of input, weights and biases, from those of the gates.

    grads: N×G·H of the input's side; inner: of the state's side (the same array, but for a GRU).
    """
    return (
        xp.matmul(grads, weight_ih) if needs[0] else None,
        xp.matmul(grads.T, input) if needs[1] else None,
        xp.matmul(inner.T, before) if needs[2] else None,
        grads.sum(axis=0) if needs[3] else None,
        inner.sum(axis=0) if needs[4] else None,
    )


def _carry(F, new, state, b):
    """The state after a step of b rows: sequences that are over keep what they have."""
    return new if b == state.shape[0] else F["cat"].call([new, state[b:]], 0)


def _in_row_order(F, outs, reverse):
    return F["cat"].call(outs[::-1] if reverse else outs, 0)


def _linear(x, weight, bias=None):
    return REGISTRY["linear"].call(x, weight, bias)


_GRADS = ("input", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
_SIZES = [((2, 2, 2), False), ((3, 2, 2, 1), False), ((3, 2, 1), True)]


def _rows_and_state(m, sizes, outputs):
    return m(sum(sizes), 3), m(sizes[0], outputs)


# ---------------------------------------------------------------- plain
def _rnn_cases(m):
    return [
        case(*_rows_and_state(m, sizes, 2), m(2, 3), m(2, 2), bias, bias, kind, sizes, reverse)
        for (sizes, reverse), bias, kind in zip(_SIZES, (m(2), None, m(2)), ("tanh", "relu", "tanh"))
    ]


@op(tensors=("input", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"), nout=2, aux=True,
    optional=("bias_ih", "bias_hh"), method=False, samples=_rnn_cases)
def rnn_layer(xp, input, h0, weight_ih, weight_hh, bias_ih, bias_hh, kind, sizes, reverse):
    """h ← tanh or relu of (W·x + b + U·h + c). input: N×I, h0: B×H -> (N×H, final B×H)."""
    out = _projected(xp, input, weight_ih, None if bias_ih is None else bias_ih + bias_hh)
    h, before = xp.contiguous_copy(h0), xp.empty_like(out)
    for rows, b in _steps(sizes, reverse):
        a = out[rows]
        before[rows] = h[:b]
        a += xp.matmul(before[rows], weight_hh.T)
        xp.tanh(a, out=a) if kind == "tanh" else xp.maximum(a, a.dtype.type(0), out=a)
        h[:b] = a
    return (out, h), (before,)


@rnn_layer.fast_grad(*_GRADS)
def _(F, g, needs, input, h0, weight_ih, weight_hh, out0, aux, kind, sizes, reverse):
    xp, (before,), (grad_out, grad_final) = F.xp, aux, g
    running, grads = _start(xp, grad_final, h0), xp.empty_like(before)
    for rows, b in reversed(_steps(sizes, reverse)):
        d, a = grads[rows], out0[rows]
        xp.assign(d, running[:b])
        if grad_out is not None:
            d += grad_out[rows]
        if kind == "tanh":
            _times_tanh_slope(d, a)
        else:
            d *= a > 0
        running[:b] = xp.matmul(d, weight_hh)
    gx, *rest = _outside(xp, (needs[0], *needs[2:]), grads, grads, input, before, weight_ih)
    return gx, running, *rest


@rnn_layer.compose
def _(input, h0, weight_ih, weight_hh, bias_ih, bias_hh, kind, sizes, reverse):
    F, h, outs = REGISTRY, h0, []
    x = _linear(input, weight_ih, bias_ih)
    for rows, b in _steps(sizes, reverse):
        new = F[kind].call(x[rows] + _linear(h[:b], weight_hh, bias_hh))
        outs.append(new)
        h = _carry(F, new, h, b)
    return _in_row_order(F, outs, reverse), h


# ---------------------------------------------------------------- LSTM
def _lstm_cases(m):
    made = []
    for (sizes, reverse), bias, outputs in zip(_SIZES, (m(8), None, m(8)), (2, 2, 3)):
        made.append(case(
            *_rows_and_state(m, sizes, outputs), m(sizes[0], 2), m(8, 3), m(8, outputs), bias, bias,
            m(3, 2) if outputs == 3 else None, sizes, reverse))
    return made


@op(tensors=("input", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"),
    optional=("bias_ih", "bias_hh", "weight_hr"), nout=3, aux=True, method=False,
    samples=_lstm_cases)
def lstm_layer(xp, input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, sizes,
               reverse):
    """Hochreiter & Schmidhuber, Neural Computation 9 (1997); projection: arXiv:1402.1128.

    input: N×I, h0: B×P, c0: B×H, weights 4H×I, 4H×P (rows: input, forget, cell, output gate) and,
    with a projection, P×H -> (N×P, final h B×P, final c B×H).
    """
    width = c0.shape[1]
    x = _projected(xp, input, weight_ih, None if bias_ih is None else bias_ih + bias_hh)
    n, h, c = x.shape[0], xp.contiguous_copy(h0), xp.contiguous_copy(c0)
    gates = xp.empty_like(x)
    out, before = (xp.empty((n, h.shape[1]), x.dtype) for _ in range(2))
    cells, squashed, hidden = (xp.empty((n, width), x.dtype) for _ in range(3))
    for rows, b in _steps(sizes, reverse):
        a, cell = _block(gates, rows, 4), c[:b]
        before[rows], cells[rows] = h[:b], cell
        from_state = xp.matmul(before[rows], weight_hh.T)
        xp.add(_gate_first(x[rows], 4), _gate_first(from_state, 4), out=a)
        _lstm_activations_(xp, a)
        cell *= a[1]
        cell += a[0] * a[2]
        s = xp.tanh(cell, out=squashed[rows])
        xp.multiply(a[3], s, out=hidden[rows])
        if weight_hr is not None:
            out[rows] = xp.matmul(hidden[rows], weight_hr.T)
        h[:b] = hidden[rows] if weight_hr is None else out[rows]
    return (hidden if weight_hr is None else out, h, c), (gates, before, cells, squashed, hidden)


def _lstm_activations_(xp, a):
    """Sigmoid of the input, forget and output gates and tanh of the cell gate with one tanh."""
    sides = (a[:2], a[3])
    for s in sides:
        s *= a.dtype.type(0.5)
    xp.tanh(a, out=a)
    for s in sides:
        s *= a.dtype.type(0.5)
        s += a.dtype.type(0.5)


@lstm_layer.fast_grad("input", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh",
                      "weight_hr")
def _(F, g, needs, input, h0, c0, weight_ih, weight_hh, weight_hr, aux, sizes, reverse):
    xp, (gates, before, cells, squashed, hidden), (grad_out, grad_h, grad_c) = F.xp, aux, g
    running, grad_cell = _start(xp, grad_h, h0), _start(xp, grad_c, c0)
    grads = xp.empty_like(gates)
    outs = xp.empty_like(before)  # gradients of the outputs, once the later steps' are in
    for rows, b in reversed(_steps(sizes, reverse)):
        d = outs[rows]
        xp.assign(d, running[:b])
        if grad_out is not None:
            d += grad_out[rows]
        if weight_hr is not None:
            d = xp.matmul(d, weight_hr)
        made = _lstm_gate_grads(xp, _block(gates, rows, 4), d, grad_cell[:b], cells[rows],
                                squashed[rows])
        xp.assign(_gate_first(grads[rows], 4), made)
        running[:b] = xp.matmul(grads[rows], weight_hh)
    gx, *rest = _outside(
        xp, (needs[0], *needs[3:7]), grads, grads, input, before, weight_ih
    )
    grad_hr = xp.matmul(outs.T, hidden) if needs[7] else None
    return gx, running, grad_cell, *rest, grad_hr


def _lstm_gate_grads(xp, gates, d, cell, before, squashed):
    """Gradients of one step's gates before their activations, 4×b×H; ``cell``, the gradient of the
    cell after the step, becomes that of the cell before it."""
    grads, (i, f, c, o) = xp.empty_like(gates), gates
    through = d * o
    _times_tanh_slope(through, squashed)
    cell += through
    xp.multiply(cell, c, out=grads[0])
    xp.multiply(cell, before, out=grads[1])
    xp.multiply(cell, i, out=grads[2])
    xp.multiply(d, squashed, out=grads[3])
    _times_sigmoid_slope(grads[:2], gates[:2])
    _times_tanh_slope(grads[2], c)
    _times_sigmoid_slope(grads[3], o)
    cell *= f
    return grads


@lstm_layer.compose
def _(input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, sizes, reverse):
    F, h, c, outs = REGISTRY, h0, c0, []
    width, sigmoid, tanh = c0.shape[1], REGISTRY["sigmoid"].call, REGISTRY["tanh"].call
    x = _linear(input, weight_ih, bias_ih)
    for rows, b in _steps(sizes, reverse):
        a = x[rows] + _linear(h[:b], weight_hh, bias_hh)
        i, f, cell, o = (a[:, k * width : (k + 1) * width] for k in range(4))
        new_c = sigmoid(f) * c[:b] + sigmoid(i) * tanh(cell)
        new = sigmoid(o) * tanh(new_c)
        if weight_hr is not None:
            new = _linear(new, weight_hr)
        outs.append(new)
        h, c = _carry(F, new, h, b), _carry(F, new_c, c, b)
    return _in_row_order(F, outs, reverse), h, c


# ---------------------------------------------------------------- GRU
def _gru_cases(m):
    return [
        case(*_rows_and_state(m, sizes, 2), m(6, 3), m(6, 2), bias, bias, sizes, reverse)
        for (sizes, reverse), bias in zip(_SIZES, (m(6), None, m(6)))
    ]


@op(tensors=("input", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"), nout=2, aux=True,
    optional=("bias_ih", "bias_hh"), method=False, samples=_gru_cases)
def gru_layer(xp, input, h0, weight_ih, weight_hh, bias_ih, bias_hh, sizes, reverse):
    """Cho et al., arXiv:1406.1078, with the reset gate after the product, as in PyTorch.

    input: N×I, h0: B×H, weights 3H×I and 3H×H (rows: reset, update, new) -> (N×H, final B×H).
    """
    x, width = _projected(xp, input, weight_ih, bias_ih), h0.shape[1]
    n, h, gates = x.shape[0], xp.contiguous_copy(h0), xp.empty_like(x)
    out, before, inner = (xp.empty((n, width), x.dtype) for _ in range(3))
    for rows, b in _steps(sizes, reverse):
        a = _block(gates, rows, 3)
        before[rows] = h[:b]
        from_state = xp.matmul(before[rows], weight_hh.T)
        if bias_hh is not None:
            from_state += bias_hh
        both, state = _gate_first(x[rows], 3), _gate_first(from_state, 3)
        xp.add(both[:2], state[:2], out=a[:2])
        _sigmoid_(xp, a[:2])
        inner[rows] = state[2]
        xp.multiply(a[0], inner[rows], out=a[2])
        a[2] += both[2]
        new = xp.tanh(a[2], out=a[2])
        step = xp.subtract(h[:b], new, out=out[rows])  # new + update·(h − new)
        step *= a[1]
        step += new
        h[:b] = step
    return (out, h), (gates, before, inner)


@gru_layer.fast_grad(*_GRADS)
def _(F, g, needs, input, h0, weight_ih, weight_hh, aux, sizes, reverse):
    xp, (gates, before, inner), (grad_out, grad_final) = F.xp, aux, g
    running = _start(xp, grad_final, h0)
    grads, state_grads = xp.empty_like(gates), xp.empty_like(gates)
    for rows, b in reversed(_steps(sizes, reverse)):
        d = running[:b]
        if grad_out is not None:
            d += grad_out[rows]
        a, made = _block(gates, rows, 3), xp.empty_like(_block(gates, rows, 3))
        reset, update, new = a
        xp.multiply(d, 1 - update, out=made[2])
        _times_tanh_slope(made[2], new)
        xp.multiply(made[2], inner[rows], out=made[0])
        xp.multiply(d, before[rows] - new, out=made[1])
        _times_sigmoid_slope(made[:2], a[:2])
        xp.assign(_gate_first(grads[rows], 3), made)
        made[2] *= reset
        xp.assign(_gate_first(state_grads[rows], 3), made)
        d *= update
        d += xp.matmul(state_grads[rows], weight_hh)
    gx, *rest = _outside(xp, (needs[0], *needs[2:]), grads, state_grads, input, before, weight_ih)
    return gx, running, *rest


@gru_layer.compose
def _(input, h0, weight_ih, weight_hh, bias_ih, bias_hh, sizes, reverse):
    F, h, outs = REGISTRY, h0, []
    width, sigmoid = h0.shape[1], REGISTRY["sigmoid"].call
    x = _linear(input, weight_ih, bias_ih)
    for rows, b in _steps(sizes, reverse):
        a, s = x[rows], _linear(h[:b], weight_hh, bias_hh)
        reset = sigmoid(a[:, :width] + s[:, :width])
        update = sigmoid(a[:, width : 2 * width] + s[:, width : 2 * width])
        new = F["tanh"].call(a[:, 2 * width :] + reset * s[:, 2 * width :])
        new = new + update * (h[:b] - new)
        outs.append(new)
        h = _carry(F, new, h, b)
    return _in_row_order(F, outs, reverse), h


# ---------------------------------------------------------------- one step
def _cell(name, layer, gates):
    def cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
        state = hx if isinstance(hx, (tuple, list)) else (hx,)
        extra = {"lstm": (None,), "gru": ()}.get(gates, (gates,))
        result = layer.call(input, *state, w_ih, w_hh, b_ih, b_hh, *extra,
                            (input._data.shape[0],), False)
        return (result[1], result[2]) if gates == "lstm" else result[1]

    cell.__name__ = cell.__qualname__ = name
    cell.__doc__ = f"One step of ``{layer.name}``: input B×I, state B×H -> the new state."
    return cell


lstm_cell = _cell("lstm_cell", lstm_layer, "lstm")
gru_cell = _cell("gru_cell", gru_layer, "gru")
rnn_tanh_cell = _cell("rnn_tanh_cell", rnn_layer, "tanh")
rnn_relu_cell = _cell("rnn_relu_cell", rnn_layer, "relu")
FUNCTIONS = {f.__name__: f for f in (lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell)}
