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

    def __new__(cls, data: Tensor | None = None, *args, **kwargs):
        # a distributed tensor becomes a parameter of its own kind
        kind = getattr(data, "_parameter_class", None)
        return object.__new__(cls if kind is None or issubclass(cls, kind) else kind)

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True):
        if data is None:
            from ..ops import empty

            data = empty(0)
        self._data = data._data
        if requires_grad:
            self.requires_grad = True

    def __repr__(self, **kwargs):
        return "Parameter containing:\n" + Tensor.__repr__(self, **kwargs)

    __str__ = __repr__  # type: ignore[assignment]

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


class _Uninitialized:
    """A parameter or buffer whose shape is not known yet: it has a dtype and a device, no values."""

    _becomes: type

    def __init__(self, requires_grad: bool = True, device=None, dtype=None):
        from ..ops import empty

        self._memory = empty(0, device=device, dtype=dtype)
        self._rg = requires_grad

    @property
    def _data(self):
        raise ValueError(
            "Attempted to use an uninitialized parameter. This happens with lazy modules: call "
            "forward with a dummy batch to initialize the parameters first"
        )

    @property
    def shape(self):
        raise RuntimeError(
            "Can't access the shape of an uninitialized parameter or buffer. This error usually "
            "happens in `load_state_dict` when trying to load an uninitialized parameter into an "
            "initialized one. Call `forward` to initialize the parameters before accessing their "
            "attributes."
        )

    ndim = shape

    @property
    def dtype(self):
        return self._memory.dtype

    @property
    def device(self):
        return self._memory.device

    @property
    def data(self) -> Tensor:
        """An empty tensor of its dtype and device."""
        return self._memory

    @data.setter
    def data(self, value: Tensor):
        self._memory = value

    def materialize(self, shape, device=None, dtype=None) -> None:
        """Become a parameter or buffer of this shape, its values not yet set.

        Args:
            device, dtype: this one's by default.
        """
        from ..ops import empty

        memory = self.__dict__.pop("_memory")
        self.__class__ = self._becomes
        made = empty(tuple(shape), device=device or memory.device, dtype=dtype or memory.dtype)
        self._data = made._data  # type: ignore[misc]

    def __repr__(self, **kwargs):
        return f"<{type(self).__name__}>"

    __str__ = __repr__

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = type(self)(self._rg, self.device, self.dtype)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return (type(self), (self._rg, self.device, self.dtype))


class UninitializedParameter(_Uninitialized, Parameter):  # type: ignore[misc]
    """A parameter that a lazy module gives a shape at its first call.

    Args:
        requires_grad, device, dtype: of the parameter it becomes.
    """

    _becomes = Parameter


class UninitializedBuffer(_Uninitialized, Tensor):  # type: ignore[misc]
    """A buffer that a lazy module gives a shape at its first call."""

    _becomes = Tensor
    persistent = True

    def __init__(self, requires_grad: bool = False, device=None, dtype=None):
        super().__init__(requires_grad, device, dtype)


def is_lazy(tensor) -> bool:
    """Whether a parameter or buffer has no shape yet."""
    return isinstance(tensor, _Uninitialized)


__all__ = ["Buffer", "Parameter", "UninitializedBuffer", "UninitializedParameter", "is_lazy"]
