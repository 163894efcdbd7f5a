"""Recurrent layers and their single steps.

Shape legend: T steps, B batch, I inputs, H hidden, P outputs (H, or ``proj_size``), L layers, D
directions (1 or 2).
"""

from __future__ import annotations

import math
import warnings

from ... import ops
from ...autograd.autocast import switch
from .. import functional as F
from .. import init
from ..parameter import Parameter
from ..utils.rnn import PackedSequence
from .module import Module

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def apply_permutation(tensor, permutation, dim: int = 1):
    """The slices of ``tensor`` along ``dim`` in another order."""
    return tensor if permutation is None else tensor.index_select(dim, permutation)


class RNNBase(Module):
    """What RNN, LSTM and GRU share: parameters, layers, directions, packed sequences.

    Args:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        input_size, hidden_size: I and H.
        num_layers: each further layer takes the outputs of the one before.
        bias: whether there are biases.
        batch_first: inputs and outputs are [B, T, …] instead of [T, B, …].
        dropout: probability of dropping outputs between layers in training.
        bidirectional: a second set of weights runs backward; outputs are concatenated.
        proj_size: an LSTM's outputs are projected to this width (arXiv:1402.1128); 0 is off.

    Raises:
        TypeError, ValueError: if an argument is out of range.
    """

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        proj_size: int = 0, device=None, dtype=None,
    ):
        super().__init__()
        if mode not in _GATES:
            raise ValueError("Unrecognized RNN mode: " + mode)
        _check_options(input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size)
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional = float(dropout), bidirectional
        self.proj_size = proj_size
        self._all_weights: list[list[str]] = []
        gates, out = _GATES[mode] * hidden_size, proj_size or hidden_size
        for layer in range(num_layers):
            wide = input_size if layer == 0 else out * (1 + bidirectional)
            shapes: dict[str, tuple] = {"weight_ih": (gates, wide), "weight_hh": (gates, out)}
            if bias:
                shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
            if proj_size:
                shapes["weight_hr"] = (proj_size, hidden_size)
            for suffix in ("", "_reverse")[: 1 + bidirectional]:
                names = []
                for name, shape in shapes.items():
                    names.append(f"{name}_l{layer}{suffix}")
                    empty = ops.empty(shape, device=device, dtype=dtype)
                    setattr(self, names[-1], Parameter(empty))
                self._all_weights.append(names)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly from ±1/√H."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Parameter]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Nothing to do: the parameters need not lie in one piece of memory here."""

    # ---------------------------------------------------------------- checks
    def check_input(self, input, batch_sizes) -> None:
        """Raise ValueError or RuntimeError if dtype or shape do not fit the parameters."""
        dtype = self._flat_weights[0].dtype
        if input.dtype is not dtype and not switch.on:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). Convert "
                f"input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        expected = 2 if batch_sizes is not None else 3
        if input.ndim != expected:
            raise RuntimeError(f"input must have {expected} dimensions, got {input.ndim}")
        if self.input_size != input.shape[-1]:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. Expected "
                f"{self.input_size}, got {input.shape[-1]}"
            )

    def _state_size(self, input, batch_sizes, width) -> tuple[int, int, int]:
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        else:
            batch = input.shape[0] if self.batch_first else input.shape[1]
        return (len(self._all_weights), batch, width)

    def get_expected_hidden_size(self, input, batch_sizes) -> tuple[int, int, int]:
        """(L·D, B, P)."""
        return self._state_size(input, batch_sizes, self.proj_size or self.hidden_size)

    def check_hidden_size(self, hx, expected_hidden_size, msg="Expected hidden size {}, got {}"):
        """Raise RuntimeError if a state has another size."""
        if tuple(hx.shape) != tuple(expected_hidden_size):
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.shape)))

    def check_forward_args(self, input, hidden, batch_sizes) -> None:
        """Raise if input or state do not fit."""
        self.check_input(input, batch_sizes)
        self.check_hidden_size(hidden, self.get_expected_hidden_size(input, batch_sizes))

    def permute_hidden(self, hx, permutation):
        """A state with its sequences in another order."""
        return apply_permutation(hx, permutation)

    # ---------------------------------------------------------------- running
    def _check_ndim(self, input, states):
        got = "tensor instead" if self.mode.startswith("RNN") else "instead"
        if input.ndim not in (2, 3):
            raise ValueError(
                f"{self._get_name()}: Expected input to be 2D or 3D, got {input.ndim}D {got}"
            )
        if states is None or all(s.ndim == input.ndim for s in states):
            return
        kind = f"{'un' * (input.ndim == 2)}batched {input.ndim}-D input"
        if len(states) == 2:
            what = f"hx and cx should also be {input.ndim}-D but got"
            raise RuntimeError(
                f"For {kind}, {what} ({states[0].ndim}-D, {states[1].ndim}-D) tensors"
            )
        raise RuntimeError(
            f"For {kind}, hx should also be {input.ndim}-D but got {states[0].ndim}-D tensor"
        )

    def _new_states(self, input, batch_sizes):
        size = self.get_expected_hidden_size(input, batch_sizes)
        return [ops.zeros(size, dtype=input.dtype, device=input.device)]

    def _run(self, input, states):
        """The layers over a padded, packed or unbatched input: (output, final states)."""
        packed = isinstance(input, PackedSequence)
        if packed:
            input, batch_sizes, order, back = input
            alone = False
            sizes = tuple(batch_sizes.tolist())
        else:
            batch_sizes = order = back = None
            self._check_ndim(input, states)
            alone = input.ndim == 2
            if alone:
                input = input.unsqueeze(0 if self.batch_first else 1)
                states = states and [s.unsqueeze(1) for s in states]
            steps, batch = (input.shape[1], input.shape[0]) if self.batch_first else input.shape[:2]
            sizes = (batch,) * steps
        if states is None:
            states = self._new_states(input, batch_sizes)
        else:
            states = [self.permute_hidden(s, order) for s in states]
        self.check_forward_args(input, states[0] if len(states) == 1 else states, batch_sizes)
        if packed:
            rows = input
        else:
            rows = (input.transpose(0, 1) if self.batch_first else input).reshape(-1, self.input_size)
        rows, finals = self._layers(rows, states, sizes)
        if packed:
            out = PackedSequence(rows, batch_sizes, order, back)
            return out, [self.permute_hidden(s, back) for s in finals]
        out = rows.reshape(steps, batch, -1)
        out = out.transpose(0, 1) if self.batch_first else out
        if alone:
            return out.squeeze(0 if self.batch_first else 1), [s.squeeze(1) for s in finals]
        return out, finals

    def _layers(self, rows, states, sizes):
        directions, finals = 1 + self.bidirectional, []
        dtype = self._flat_weights[0].dtype
        if rows.dtype is not dtype:  # what autocast made of it: the steps run in the weights' type
            rows, states = rows.to(dtype), [s.to(dtype) for s in states]
        for layer in range(self.num_layers):
            outs = []
            for d in range(directions):
                k = layer * directions + d
                out, *final = self._layer(rows, [s[k] for s in states], k, sizes, bool(d))
                outs.append(out)
                finals.append(final)
            rows = outs[0] if directions == 1 else ops.cat(outs, 1)
            if self.dropout and layer < self.num_layers - 1:
                rows = F.dropout(rows, self.dropout, self.training)
        return rows, [ops.stack(list(each)) for each in zip(*finals)]

    def _weights(self, k):
        """weight_ih, weight_hh, bias_ih, bias_hh of a layer and direction, and what follows."""
        own = [getattr(self, name) for name in self._all_weights[k]]
        return own if self.bias else [*own[:2], None, None, *own[2:]]

    def _layer(self, rows, states, k, sizes, reverse):
        """One direction of one layer: (rows, final states …)."""
        raise NotImplementedError("RNNBase has no layer of its own: use RNN, LSTM or GRU")

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.proj_size != 0:
            text += f", proj_size={self.proj_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if self.batch_first is not False:
            text += f", batch_first={self.batch_first}"
        if self.dropout != 0:
            text += f", dropout={self.dropout}"
        if self.bidirectional is not False:
            text += f", bidirectional={self.bidirectional}"
        return text


def _check_options(input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size):
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            "element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and "
            f"num_layers={num_layers}",
            stacklevel=4,
        )
    for name, value in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
        if not isinstance(value, int):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    if proj_size < 0:
        raise ValueError(
            "proj_size should be a positive integer or zero to disable projections"
        )
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")


class RNN(RNNBase):
    """h ← tanh(W·x + b + U·h + c), or relu: Elman, Cognitive Science 14 (1990).

    Arguments as of ``RNNBase`` without mode and proj_size, and ``nonlinearity``, "tanh" or
    "relu". Takes the input [T, B, I], [T, I] or a PackedSequence and the state [L·D, B, H] (zeros
    by default); returns the outputs [T, B, D·H] and the final state.
    """

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__("RNN_" + nonlinearity.upper(), *args, **kwargs)
        self.nonlinearity = nonlinearity

    def forward(self, input, hx=None):
        out, (final,) = self._run(input, None if hx is None else [hx])
        return out, final

    def _layer(self, rows, states, k, sizes, reverse):
        return ops.recurrent.rnn_layer.call(
            rows, *states, *self._weights(k), self.nonlinearity, sizes, reverse
        )


class LSTM(RNNBase):
    """Long short-term memory: Hochreiter & Schmidhuber, Neural Computation 9 (1997).

    Arguments as of ``RNNBase`` without mode. Takes the input [T, B, I], [T, I] or a
    PackedSequence and the states ([L·D, B, P], [L·D, B, H]) (zeros by default); returns the
    outputs [T, B, D·P] and the final states.
    """

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    def get_expected_cell_size(self, input, batch_sizes) -> tuple[int, int, int]:
        """(L·D, B, H)."""
        return self._state_size(input, batch_sizes, self.hidden_size)

    def check_forward_args(self, input, hidden, batch_sizes) -> None:
        self.check_input(input, batch_sizes)
        sizes = (self.get_expected_hidden_size(input, batch_sizes),
                 self.get_expected_cell_size(input, batch_sizes))
        for i, (state, size) in enumerate(zip(hidden, sizes)):
            self.check_hidden_size(state, size, f"Expected hidden[{i}] size {{}}, got {{}}")

    def _new_states(self, input, batch_sizes):
        size = self.get_expected_cell_size(input, batch_sizes)
        cells = ops.zeros(size, dtype=input.dtype, device=input.device)
        return [*super()._new_states(input, batch_sizes), cells]

    def forward(self, input, hx=None):
        out, finals = self._run(input, None if hx is None else list(hx))
        return out, tuple(finals)

    def _layer(self, rows, states, k, sizes, reverse):
        weights = self._weights(k) if self.proj_size else [*self._weights(k), None]
        return ops.recurrent.lstm_layer.call(rows, *states, *weights, sizes, reverse)


class GRU(RNNBase):
    """Gated recurrent unit: Cho et al., arXiv:1406.1078.

    Arguments as of ``RNNBase`` without mode and proj_size; called as ``RNN`` is.
    """

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def forward(self, input, hx=None):
        out, (final,) = self._run(input, None if hx is None else [hx])
        return out, final

    def _layer(self, rows, states, k, sizes, reverse):
        return ops.recurrent.gru_layer.call(rows, *states, *self._weights(k), sizes, reverse)


# ---------------------------------------------------------------- single steps
class RNNCellBase(Module):
    """What the cells share.

    Args:
        input_size, hidden_size: I and H.
        bias: whether there are biases.
        num_chunks: the number of gates.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device=None,
        dtype=None,
    ):
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        where, rows = {"device": device, "dtype": dtype}, num_chunks * hidden_size
        self.weight_ih = Parameter(ops.empty((rows, input_size), **where))
        self.weight_hh = Parameter(ops.empty((rows, hidden_size), **where))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, Parameter(ops.empty(rows, **where)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly from ±1/√H."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if getattr(self, "nonlinearity", "tanh") != "tanh":
            text += f", nonlinearity={self.nonlinearity}"
        return text

    def _batched(self, input, states, names):
        """(input [B, I], states [B, H], whether they came without a batch)."""
        kind = self._get_name()
        if input.ndim not in (1, 2):
            raise ValueError(f"{kind}: Expected input to be 1D or 2D, got {input.ndim}D instead")
        for name, state in zip(names, states or ()):
            if state.ndim not in (1, 2):
                raise ValueError(
                    f"{kind}: Expected {name} to be 1D or 2D, got {state.ndim}D instead"
                )
        alone = input.ndim == 1
        if alone:
            input = input.unsqueeze(0)
            states = states and [s.unsqueeze(0) for s in states]
        if states is None:
            size = (input.shape[0], self.hidden_size)
            states = [ops.zeros(size, dtype=input.dtype, device=input.device)] * len(names)
        for state in states:
            if state.shape[0] != input.shape[0]:
                raise RuntimeError(
                    f"Input batch size {input.shape[0]} doesn't match hidden0 batch size "
                    f"{state.shape[0]}"
                )
        return input, states, alone

    def _step(self, function, input, hx):
        input, (state,), alone = self._batched(input, None if hx is None else [hx], ["hidden"])
        out = function(
            input, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        )
        return out.squeeze(0) if alone else out


class RNNCell(RNNCellBase):
    """One step of ``RNN``: input [B, I] or [I] and state [B, H] or [H] -> the new state."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device=None, dtype=None,
    ):
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input, hx=None):
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(getattr(ops, f"rnn_{self.nonlinearity}_cell"), input, hx)


class GRUCell(RNNCellBase):
    """One step of ``GRU``: input [B, I] or [I] and state [B, H] or [H] -> the new state."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None
    ):
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input, hx=None):
        return self._step(ops.gru_cell, input, hx)


class LSTMCell(RNNCellBase):
    """One step of ``LSTM``: input [B, I] or [I] and two states [B, H] or [H] -> the new two."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None
    ):
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input, hx=None):
        states = None if hx is None else list(hx)
        input, states, alone = self._batched(input, states, ["hx[0]", "hx[1]"])
        out = ops.lstm_cell(
            input, states, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        )
        return tuple(s.squeeze(0) for s in out) if alone else out


__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNBase", "RNNCell", "RNNCellBase"]
