"""Parameters and buffers: tensors that a Module knows by their class when they are assigned."""

from __future__ import annotations

from ..tensor import Tensor


def _rebuild_parameter(data: Tensor, requires_grad: bool) -> Parameter:
    return Parameter(data, requires_grad)


class Parameter(Tensor):
    """A tensor to be trained: assigned to a Module's attribute it joins ``parameters()``.

    Args:
        data: its initial values, shared with the parameter; None for an empty one.
        requires_grad: whether backward computes its gradient.

    Raises:
        RuntimeError: if ``data`` is of an integer or boolean type and ``requires_grad`` is true.
    """

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True):
        if data is None:
            from ..ops import empty

            data = empty(0)
        self._data = data._data
        if requires_grad:
            self.requires_grad = True

    def __repr__(self, **kwargs):
        return "Parameter containing:\n" + Tensor.__repr__(self, **kwargs)

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        result = type(self)(self.data.clone(), self.requires_grad)
        memo[id(self)] = result
        return result

    def __reduce_ex__(self, protocol):
        return (_rebuild_parameter, (self.data, self.requires_grad))


class Buffer(Tensor):
    """A tensor that is part of a Module's state but not trained, such as a running mean.

    Args:
        data: its values, shared with the buffer; None for an empty one.
        persistent: whether it is part of ``state_dict()``.
    """

    def __init__(self, data: Tensor | None = None, *, persistent: bool = True):
        if data is None:
            from ..ops import empty

            data = empty(0)
        self._data = data._data
        self.persistent = persistent
        if data.requires_grad:
            self.requires_grad = True

    def __repr__(self, **kwargs):
        return "Buffer containing:\n" + Tensor.__repr__(self, **kwargs)

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        result = type(self)(self.data.clone(), persistent=self.persistent)
        memo[id(self)] = result
        return result

    def __reduce_ex__(self, protocol):
        return (_rebuild_buffer, (self.data, self.persistent))


def _rebuild_buffer(data: Tensor, persistent: bool) -> Buffer:
    return Buffer(data, persistent=persistent)


__all__ = ["Buffer", "Parameter"]
