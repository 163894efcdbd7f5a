"""Module: a tree of layers that knows its parameters, buffers and children by name.

Assigning a Parameter, Buffer or Module to an attribute registers it, in three dicts beside the
ordinary attributes. What a module does with its state and with hooks is in ``state`` and ``hooks``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ...autograd import no_grad
from ...backend import devices, dtypes
from ...ops.memory_formats import suits
from ...tensor import Tensor
from ..parameter import Buffer, Parameter
from . import hooks
from .hooks import HookRegistration, call_with_hooks, run_registration_hooks
from .state import StateDict

_HOOK_DICTS = (
    "_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


# PyTorch's names of a tensor's type, by its dtype
TENSOR_TYPES = {
    "float32": "FloatTensor", "float64": "DoubleTensor", "float16": "HalfTensor",
    "bfloat16": "BFloat16Tensor", "uint8": "ByteTensor", "int8": "CharTensor",
    "int16": "ShortTensor", "int32": "IntTensor", "int64": "LongTensor", "bool": "BoolTensor",
    "complex64": "ComplexFloatTensor", "complex128": "ComplexDoubleTensor",
}


def typename(value) -> str:
    """A value's type as error messages show it: ``torch.FloatTensor``, ``str``, ``pkg.Class``."""
    if isinstance(value, Tensor):
        return ("torch.cuda." if value.is_cuda else "torch.") + TENSOR_TYPES[value.dtype.name]
    cls = value if isinstance(value, type) else type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else (
        f"{cls.__module__}.{cls.__qualname__}"
    )


def _addindent(text: str, spaces: int) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *(" " * spaces + line for line in rest)])


class Module(StateDict, HookRegistration):
    """Base of all layers and models: subclasses define ``__init__`` and ``forward``.

    ``super().__init__()`` must run before parameters, buffers or children are assigned. Calling
    the module runs ``forward`` between its hooks.
    """

    training: bool
    dump_patches: bool = False
    call_super_init: bool = False

    def __init__(self, *args, **kwargs):
        if not self.call_super_init and kwargs:
            raise TypeError(
                f"{type(self).__name__}.__init__() got an unexpected keyword argument "
                f"'{next(iter(kwargs))}'"
            )
        if not self.call_super_init and args:
            raise TypeError(
                f"{type(self).__name__}.__init__() takes 1 positional argument but "
                f"{len(args) + 1} were given"
            )
        d = self.__dict__  # __setattr__ needs these dicts to exist
        d["training"] = True
        d["_parameters"], d["_buffers"], d["_modules"] = {}, {}, {}
        d["_non_persistent_buffers_set"] = set()
        for name in _HOOK_DICTS:
            d[name] = OrderedDict()
        if self.call_super_init:
            super().__init__(*args, **kwargs)

    def forward(self, *input):
        """The computation; every subclass defines it."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        d = self.__dict__
        if (
            d["_forward_hooks"] or d["_forward_pre_hooks"] or d["_backward_hooks"]
            or d["_backward_pre_hooks"] or hooks.global_forward_pre or hooks.global_forward
            or hooks.global_backward or hooks.global_backward_pre
        ):
            return call_with_hooks(self, args, kwargs)
        return self.forward(*args, **kwargs)

    # ---------------------------------------------------------------- registration
    def _check_name(self, kind: str, name, taken: dict) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string. Got {typename(name)}")
        if hasattr(self, name) and name not in taken:
            raise KeyError(f"attribute '{name}' already exists")
        if "." in name:
            got = f", got: {name}" if kind == "module" else ""
            raise KeyError(f'{kind} name can\'t contain "."{got}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add state that is not trained, such as a running mean.

        Args:
            name: the attribute under which it is found.
            tensor: its value; None reserves the name.
            persistent: whether it is part of ``state_dict``.

        Raises:
            TypeError, KeyError: if name or value cannot be taken.
        """
        if "_buffers" not in self.__dict__:
            raise AttributeError("cannot assign buffer before Module.__init__() call")
        self._check_name("buffer", name, self._buffers)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"cannot assign '{typename(tensor)}' object to buffer '{name}' "
                "(torch Tensor or None required)"
            )
        self._buffers[name] = run_registration_hooks("buffer", self, name, tensor)
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter under ``name``; None reserves the name.

        Raises:
            TypeError, KeyError, ValueError: if name or value cannot be taken.
        """
        if "_parameters" not in self.__dict__:
            raise AttributeError("cannot assign parameter before Module.__init__() call")
        self._check_name("parameter", name, self._parameters)
        if param is not None:
            if not isinstance(param, Parameter):
                raise TypeError(
                    f"cannot assign '{typename(param)}' object to parameter '{name}' "
                    "(torch.nn.Parameter or None required)"
                )
            if param.grad_fn is not None:
                raise ValueError(
                    f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must "
                    f"be created explicitly. To express '{name}' as a function of another Tensor, "
                    "compute the value in the forward() method."
                )
            param = run_registration_hooks("parameter", self, name, param)
        self._parameters[name] = param

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a child under ``name``; None reserves the name.

        Raises:
            TypeError, KeyError: if name or value cannot be taken.
        """
        if not isinstance(module, Module) and module is not None:
            raise TypeError(f"{typename(module)} is not a Module subclass")
        self._check_name("module", name, self._modules)
        self._modules[name] = run_registration_hooks("module", self, name, module)

    register_module = add_module

    # ---------------------------------------------------------------- attributes
    def __getattr__(self, name):
        d = self.__dict__
        for kind in ("_parameters", "_buffers", "_modules"):
            if kind in d and name in d[kind]:
                return d[kind][name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name, value):
        d = self.__dict__
        if isinstance(value, Parameter):
            if "_parameters" not in d:
                raise AttributeError("cannot assign parameters before Module.__init__() call")
            self._forget(name, d, d["_buffers"], d["_modules"])
            self.register_parameter(name, value)
        elif "_parameters" in d and name in d["_parameters"]:
            if value is not None:
                raise TypeError(
                    f"cannot assign '{typename(value)}' as parameter '{name}' "
                    "(torch.nn.Parameter or None expected)"
                )
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            if "_modules" not in d:
                raise AttributeError("cannot assign module before Module.__init__() call")
            self._forget(name, d, d["_parameters"], d["_buffers"])
            d["_modules"][name] = run_registration_hooks("module", self, name, value)
        elif "_modules" in d and name in d["_modules"]:
            if value is not None:
                raise TypeError(
                    f"cannot assign '{typename(value)}' as child module '{name}' "
                    "(torch.nn.Module or None expected)"
                )
            d["_modules"][name] = run_registration_hooks("module", self, name, value)
        elif isinstance(value, Buffer) or ("_buffers" in d and name in d["_buffers"]):
            self._set_buffer(name, value, getattr(value, "persistent", True))
        else:
            super().__setattr__(name, value)

    def _set_buffer(self, name, value, persistent):
        d = self.__dict__
        if "_buffers" not in d:
            raise AttributeError("cannot assign buffer before Module.__init__() call")
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"cannot assign '{typename(value)}' as buffer '{name}' "
                "(torch.nn.Buffer, torch.Tensor or None expected)"
            )
        if name in d["_buffers"]:
            persistent = name not in d["_non_persistent_buffers_set"]
        else:
            self._forget(name, d, d["_parameters"], d["_modules"])
        self.register_buffer(name, value, persistent)

    def _forget(self, name, *dicts):
        for d in dicts:
            d.pop(name, None)
        self.__dict__["_non_persistent_buffers_set"].discard(name)

    def __delattr__(self, name):
        for kind in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__[kind]:
                del self.__dict__[kind][name]
                self._non_persistent_buffers_set.discard(name)
                return
        super().__delattr__(name)

    def __dir__(self):
        names = [*dir(type(self)), *self.__dict__]
        names += [*self._parameters, *self._modules, *self._buffers]
        return sorted(n for n in names if not n[:1].isdigit())

    def __setstate__(self, state):
        self.__dict__.update(state)
        for name in _HOOK_DICTS:
            self.__dict__.setdefault(name, OrderedDict())
        self.__dict__.setdefault("_non_persistent_buffers_set", set())

    # ---------------------------------------------------------------- by dotted name
    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; ``""`` is this module.

        Raises:
            AttributeError: if there is none.
        """
        module = self
        for name in target.split(".") if target else ():
            if not hasattr(module, name):
                raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
            module = getattr(module, name)
            if not isinstance(module, Module):
                raise AttributeError(f"`{name}` is not an nn.Module")
        return module

    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Put ``module`` at a dotted path.

        Args:
            strict: raise if nothing is there to be replaced.

        Raises:
            ValueError: if the path is empty or ``module`` is not a Module.
            AttributeError: if the path does not lead to a module.
        """
        if target == "":
            raise ValueError("Cannot set the submodule without a target name!")
        if not isinstance(module, Module):
            raise ValueError(f"`module` is not an nn.Module, found {type(module)}")
        path, _, name = target.rpartition(".")
        parent = self.get_submodule(path)
        if strict and not hasattr(parent, name):
            raise AttributeError(f"{type(parent).__name__} has no attribute `{name}`")
        if hasattr(parent, name) and not isinstance(getattr(parent, name), Module):
            raise AttributeError(f"`{name}` is not an nn.Module")
        setattr(parent, name, module)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path.

        Raises:
            AttributeError: if there is none.
        """
        return self._get_member(target, "_parameters", "an nn.Parameter")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a dotted path.

        Raises:
            AttributeError: if there is none.
        """
        return self._get_member(target, "_buffers", "a buffer")

    def _get_member(self, target, kind, what):
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if not hasattr(module, name):
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        if name not in getattr(module, kind):
            raise AttributeError(f"`{name}` is not {what}")
        return getattr(module, name)

    # ---------------------------------------------------------------- traversal
    def _named_members(self, members, prefix, recurse, remove_duplicate):
        seen: set = set()
        if recurse:
            modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        else:
            modules = [(prefix, self)]
        for path, module in modules:
            for name, value in members(module):
                if value is None or value in seen:
                    continue
                if remove_duplicate:
                    seen.add(value)
                yield (path + "." if path else "") + name, value

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate=True):
        """(dotted name, parameter) of this module and, with ``recurse``, of all below it.

        Args:
            prefix: put before each name.
            remove_duplicate: give a shared parameter once.
        """
        yield from self._named_members(
            lambda m: m._parameters.items(), prefix, recurse, remove_duplicate
        )

    def parameters(self, recurse: bool = True):
        """The parameters, in order of registration, shared ones once."""
        for _, param in self.named_parameters(recurse=recurse):
            yield param

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate=True):
        """(dotted name, buffer); arguments as of ``named_parameters``."""
        yield from self._named_members(
            lambda m: m._buffers.items(), prefix, recurse, remove_duplicate
        )

    def buffers(self, recurse: bool = True):
        """The buffers, in order of registration, shared ones once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def named_children(self):
        """(name, module) of the direct children, shared ones once."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self):
        """The direct children, shared ones once."""
        for _, module in self.named_children():
            yield module

    def named_modules(self, memo: set | None = None, prefix: str = "", remove_duplicate=True):
        """(dotted name, module) of this module and all below it, parents first.

        Args:
            memo: modules already given, to be left out.
            prefix: put before each name.
            remove_duplicate: give a shared module once.
        """
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                path = prefix + ("." if prefix else "") + name
                yield from module.named_modules(memo, path, remove_duplicate)

    def modules(self):
        """This module and all below it, shared ones once."""
        for _, module in self.named_modules():
            yield module

    # ---------------------------------------------------------------- changing all of it
    def _apply(self, fn, recurse=True):
        """Replace every parameter, gradient and buffer by ``fn`` of it, keeping their identity."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        for param in self._parameters.values():
            if param is None:
                continue
            mine = param if param._local_tensor is None else param._local_tensor
            with no_grad():
                mine.data = fn(mine.data)
                if mine.grad is not None:
                    mine.grad.data = fn(mine.grad.data)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
        return self

    def apply(self, fn):
        """Call ``fn(module)`` on all children, deepest first, then on this module."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def to(self, *args, **kwargs):
        """Move to a device and/or change the floating type, in place.

        Called as ``to(device)``, ``to(dtype)``, ``to(device, dtype)`` or ``to(tensor)``; integer
        parameters and buffers change device only. ``memory_format=torch.channels_last`` (or
        ``channels_last_3d``) lays out those of 4 (or 5) dims.

        Raises:
            TypeError: if the dtype is neither floating nor complex.
        """
        format = kwargs.pop("memory_format", None)
        device, dtype, non_blocking = _parse_to(*args, **kwargs)
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(
                "nn.Module.to only accepts floating point or complex dtypes, but got desired "
                f"dtype={dtype}"
            )

        def convert(t):
            new = dtype if t.is_floating_point() or t.is_complex() else None
            laid = format if suits(format, t.dim()) else None
            return t.to(device=device, dtype=new, non_blocking=non_blocking, memory_format=laid)

        return self._apply(convert)

    def share_memory(self):
        """Move parameters, gradients and buffers to memory that processes share, in place."""
        from ...multiprocessing import memory
        from ..parameter import is_lazy

        params = [p for p in self.parameters() if not is_lazy(p)]
        grads = [p.grad for p in params if p.grad is not None]
        memory.share(*params, *grads, *(b for b in self.buffers() if not is_lazy(b)))
        return self

    def compile(self, *args, **kwargs) -> None:
        """As ``disttorch.compile`` of this module, for its calls; takes the same arguments."""
        from ...compiler import compile

        compile(self, *args, **kwargs)

    def _absent(self, device=None):
        raise RuntimeError("disttorch runs on CPUs and CUDA devices; use cpu() or cuda()")

    ipu = xpu = mtia = _absent

    def to_empty(self, *, device, recurse: bool = True):
        """Move to a device without copying values."""
        from ...ops import empty

        return self._apply(lambda t: empty(t.shape, dtype=t.dtype, device=device), recurse)

    def cpu(self):
        """Move to the CPU, in place."""
        return self._apply(lambda t: t.cpu())

    def cuda(self, device=None):
        """Move to a GPU, in place; by default the current one."""
        return self._apply(lambda t: t.cuda(device))

    def type(self, dst_type):
        """Cast all parameters and buffers to a dtype (or "torch.cuda.FloatTensor" …), in place."""
        return self._apply(lambda t: t.type(dst_type))

    def _cast_floating(self, method):
        return self._apply(lambda t: getattr(t, method)() if t.is_floating_point() else t)

    def float(self):
        """Cast floating parameters and buffers to float32, in place."""
        return self._cast_floating("float")

    def double(self):
        """Cast floating parameters and buffers to float64, in place."""
        return self._cast_floating("double")

    def half(self):
        """Cast floating parameters and buffers to float16, in place."""
        return self._cast_floating("half")

    def bfloat16(self):
        """Cast floating parameters and buffers to bfloat16, in place."""
        return self._cast_floating("bfloat16")

    def train(self, mode: bool = True):
        """Set training mode (dropout and the like act) on this module and all below it.

        Raises:
            ValueError: if ``mode`` is not a bool.
        """
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self):
        """Set evaluation mode: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True):
        """Ask for gradients of all parameters, or stop asking."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        for param in self.parameters():
            if param.grad is not None:
                if set_to_none:
                    param.grad = None
                else:
                    if param.grad.grad_fn is not None:
                        param.grad = param.grad.detach()
                    param.grad.requires_grad_(False)
                    param.grad.zero_()

    # ---------------------------------------------------------------- text
    def _get_name(self):
        return type(self).__name__

    def extra_repr(self) -> str:
        """What to print between the brackets before the children; layers override it."""
        return ""

    def __repr__(self):
        extra = self.extra_repr()
        extra_lines = extra.split("\n") if extra else []
        children = [
            f"({name}): {_addindent(repr(module), 2)}" for name, module in self._modules.items()
        ]
        lines = extra_lines + children
        if len(extra_lines) == 1 and not children:
            return f"{self._get_name()}({extra_lines[0]})"
        body = "\n  " + "\n  ".join(lines) + "\n" if lines else ""
        return f"{self._get_name()}({body})"


def _parse_to(*args, device=None, dtype=None, non_blocking=False, copy=False, memory_format=None):
    """(device, dtype, non_blocking) of the call forms of ``to``."""
    rest = list(args)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
        device, dtype = other.device, other.dtype
    elif rest and isinstance(rest[0], dtypes.dtype):
        dtype = rest.pop(0)
    elif rest and (rest[0] is None or isinstance(rest[0], (str, int, devices.device))):
        device = rest.pop(0)
        if rest and (rest[0] is None or isinstance(rest[0], dtypes.dtype)):
            dtype = rest.pop(0)
    if rest and isinstance(rest[0], bool):
        non_blocking = rest.pop(0)
    if rest:
        raise TypeError(f"to() received an invalid combination of arguments - got {args}")
    return None if device is None else devices.device(device), dtype, non_blocking


__all__ = ["Module", "typename"]
