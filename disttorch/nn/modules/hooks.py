"""Hooks of modules: their registration, and the one that watches gradients enter and leave.

Gradients that enter and leave a module have no node of their own, so an identity operation is
laid around the module's inputs and another around its outputs: their gradients are the module's.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections import OrderedDict

from ... import ops
from ...autograd import Function, is_grad_enabled
from ...tensor import Tensor


class RemovableHandle:
    """Takes a hook out again: by ``remove()`` or at the end of a ``with`` block.

    Args:
        hooks: the ordered dict the hook is (to be) in, under this handle's ``id``.
        extra: further dicts that mention the id.
    """

    _ids = itertools.count()

    def __init__(self, hooks: OrderedDict, *extra: OrderedDict):
        self.id = next(self._ids)
        self._dicts = [weakref.ref(d) for d in (hooks, *extra)]

    def remove(self) -> None:
        for ref in self._dicts:
            hooks = ref()
            if hooks is not None:
                hooks.pop(self.id, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


def add_hook(hooks: OrderedDict, hook, *flags: OrderedDict, prepend=False, also=()):
    """Put ``hook`` into ``hooks`` and its id into each dict of ``flags``; returns the handle.

    ``also`` are dicts that must forget the id with the handle but do not get it now.
    """
    handle = RemovableHandle(hooks, *flags, *also)
    hooks[handle.id] = hook
    for flag in flags:
        flag[handle.id] = True
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle


# Hooks on every module of the process
global_forward_pre: OrderedDict = OrderedDict()
global_forward: OrderedDict = OrderedDict()
global_forward_with_kwargs: OrderedDict = OrderedDict()
global_forward_always: OrderedDict = OrderedDict()
global_backward_pre: OrderedDict = OrderedDict()
global_backward: OrderedDict = OrderedDict()
global_registration: dict[str, OrderedDict] = {
    kind: OrderedDict() for kind in ("parameter", "buffer", "module")
}


def register_module_forward_pre_hook(hook):
    """Call ``hook(module, args)`` before the forward of every module; it may return new args."""
    return add_hook(global_forward_pre, hook)


def register_module_forward_hook(hook, *, with_kwargs=False, always_call=False):
    """Call ``hook(module, args, output)`` after the forward of every module.

    Args:
        with_kwargs: call ``hook(module, args, kwargs, output)`` instead.
        always_call: call it also when the forward raised (``output`` is then None).
    """
    flags = [global_forward_with_kwargs] * with_kwargs + [global_forward_always] * always_call
    return add_hook(global_forward, hook, *flags)


def register_module_full_backward_pre_hook(hook):
    """Call ``hook(module, grad_output)`` before the backward of every module."""
    return add_hook(global_backward_pre, hook)


def register_module_full_backward_hook(hook):
    """Call ``hook(module, grad_input, grad_output)`` after the backward of every module."""
    return add_hook(global_backward, hook)


def register_module_parameter_registration_hook(hook):
    """Call ``hook(module, name, param)`` whenever a parameter is registered; it may replace it."""
    return add_hook(global_registration["parameter"], hook)


def register_module_buffer_registration_hook(hook):
    """Call ``hook(module, name, buffer)`` whenever a buffer is registered; it may replace it."""
    return add_hook(global_registration["buffer"], hook)


def register_module_module_registration_hook(hook):
    """Call ``hook(module, name, submodule)`` whenever a submodule is registered."""
    return add_hook(global_registration["module"], hook)


def run_registration_hooks(kind: str, module, name: str, value):
    for hook in global_registration[kind].values():
        replacement = hook(module, name, value)
        if replacement is not None:
            value = replacement
    return value


class HookRegistration:
    """The ``register_…_hook`` methods of Module."""

    def register_forward_pre_hook(self, hook, *, prepend=False, with_kwargs=False):
        """Call ``hook(module, args)`` before each forward.

        Args:
            hook: may return new positional arguments (a tuple, or one value).
            prepend: run it before the hooks that are there.
            with_kwargs: call ``hook(module, args, kwargs)``; may return ``(args, kwargs)``.
        """
        flags = [self._forward_pre_hooks_with_kwargs] * with_kwargs
        return add_hook(self._forward_pre_hooks, hook, *flags, prepend=prepend)

    def register_forward_hook(self, hook, *, prepend=False, with_kwargs=False, always_call=False):
        """Call ``hook(module, args, output)`` after each forward; it may return a new output.

        Args:
            prepend: run it before the hooks that are there.
            with_kwargs: call ``hook(module, args, kwargs, output)``.
            always_call: call it also when the forward raised (``output`` is then None).
        """
        flags = [self._forward_hooks_with_kwargs] * with_kwargs
        flags += [self._forward_hooks_always_called] * always_call
        return add_hook(self._forward_hooks, hook, *flags, prepend=prepend)

    def register_full_backward_pre_hook(self, hook, prepend=False):
        """Call ``hook(module, grad_output)`` before the module's backward.

        ``grad_output`` is a tuple with a gradient or None for each output; the hook may return
        another one.
        """
        return add_hook(self._backward_pre_hooks, hook, prepend=prepend)

    def register_full_backward_hook(self, hook, prepend=False):
        """Call ``hook(module, grad_input, grad_output)`` after the module's backward.

        Both are tuples with a gradient or None for each positional input and each output; the
        hook may return another ``grad_input``.
        """
        return add_hook(self._backward_hooks, hook, prepend=prepend)

    def register_backward_hook(self, hook):
        """The older name of ``register_full_backward_hook``, which is what it does here."""
        return self.register_full_backward_hook(hook)

    def register_state_dict_pre_hook(self, hook):
        """Call ``hook(module, prefix, keep_vars)`` before ``state_dict()`` collects."""
        return add_hook(self._state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook):
        """Call ``hook(module, state_dict, prefix, local_metadata)``; it changes it in place."""
        hook._from_public_api = True
        return add_hook(self._state_dict_hooks, hook)

    def _register_state_dict_hook(self, hook):
        if getattr(hook, "_from_public_api", False):
            raise RuntimeError(
                "Cannot register the same function as the state dict post hook that was "
                "previously registered via register_state_dict_post_hook"
            )
        return add_hook(self._state_dict_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook):
        """Call ``hook(module, state_dict, prefix, local_metadata, strict, missing_keys,
        unexpected_keys, error_msgs)`` before this module loads its own entries."""
        return self._register_load_state_dict_pre_hook(hook, with_module=True)

    def _register_load_state_dict_pre_hook(self, hook, with_module=False):
        if with_module:
            hook = _BoundHook(hook, self)
        return add_hook(self._load_state_dict_pre_hooks, hook)

    def register_load_state_dict_post_hook(self, hook):
        """Call ``hook(module, incompatible_keys)`` after loading; it may change the lists."""
        return add_hook(self._load_state_dict_post_hooks, hook)


class _BoundHook:
    """A hook that gets its module first, held weakly: the module holds the hook."""

    def __init__(self, hook, module):
        self.hook, self.module = hook, weakref.ref(module)

    def __call__(self, *args):
        return self.hook(self.module(), *args)

    def __deepcopy__(self, memo):
        module = self.module()
        return _BoundHook(self.hook, memo.get(id(module), module))

    def __reduce__(self):
        return (_BoundHook, (self.hook, self.module()))


# ---------------------------------------------------------------- running them
def call_with_hooks(module, args, kwargs):
    """Run a module's forward between its hooks and the global ones.

    Returns the output. A forward that raises still runs the hooks that asked for it.
    """
    called: set = set()
    try:
        return _call(module, args, kwargs, called)
    except Exception:
        _run_skipped(module, args, kwargs, called)
        raise


def _call(module, args, kwargs, called):
    for hook in list(global_forward_pre.values()):
        args = _replaced_args(hook(module, args), args)
    for key, hook in list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            result = hook(module, args, kwargs)
            if result is not None:
                if not (isinstance(result, tuple) and len(result) == 2):
                    raise RuntimeError(
                        "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                        f"but got {result}."
                    )
                args, kwargs = result
        else:
            args = _replaced_args(hook(module, args), args)
    watch = None
    if global_backward or global_backward_pre or module._backward_hooks or (
        module._backward_pre_hooks
    ):
        watch = _GradientWatch(
            module,
            [*global_backward.values(), *module._backward_hooks.values()],
            [*global_backward_pre.values(), *module._backward_pre_hooks.values()],
        )
        args = watch.around_inputs(args)
    output = module.forward(*args, **kwargs)
    for key, hook, with_kwargs, _ in _forward_hooks_of(module):
        called.add(key)
        result = hook(module, args, kwargs, output) if with_kwargs else hook(module, args, output)
        if result is not None:
            output = result
    return output if watch is None else watch.around_outputs(output)


def _replaced_args(result, args):
    if result is None:
        return args
    return result if isinstance(result, tuple) else (result,)


def _forward_hooks_of(module):
    """(key, hook, wants kwargs, runs after an error too) of all forward hooks, in order."""
    found = [
        (k, h, k in global_forward_with_kwargs, k in global_forward_always)
        for k, h in global_forward.items()
    ]
    return found + [
        (k, h, k in module._forward_hooks_with_kwargs, k in module._forward_hooks_always_called)
        for k, h in module._forward_hooks.items()
    ]


def _run_skipped(module, args, kwargs, called):
    for key, hook, with_kwargs, always in _forward_hooks_of(module):
        if not always or key in called:
            continue
        try:
            result = hook(module, args, kwargs, None) if with_kwargs else hook(module, args, None)
        except Exception as error:
            warnings.warn(
                "module forward hook with ``always_call=True`` raised an exception "
                f"that was silenced as another error was raised in forward: {error}"
            )
        else:
            del result  # there is no output to replace


class _GradientWatch:
    """Calls backward hooks once the gradients of a module's outputs and inputs are known."""

    def __init__(self, module, hooks, pre_hooks):
        self.module, self.hooks, self.pre_hooks = module, hooks, pre_hooks
        self.grad_outputs = None
        self.inputs_watched: list[int] = []
        self.n_inputs = 0
        self.plain_inputs: dict[int, Tensor] = {}

    def around_inputs(self, args):
        self.n_inputs = len(args)
        # tensors that need no gradient are reported with zeros, other arguments with None
        self.plain_inputs = {
            i: a.detach() for i, a in enumerate(args) if isinstance(a, Tensor) and not (
                a.requires_grad)
        }
        args, self.inputs_watched, node = _identity(args)
        if node is not None:
            node.register_hook(self._inputs_done)
        return args

    def around_outputs(self, output):
        outputs = output if isinstance(output, tuple) else (output,)
        outputs, positions, node = _identity(outputs)
        if node is None:
            return output
        n = len(outputs)
        node.register_hook(lambda grads, _: self._outputs_done(grads, positions, n))
        return outputs if isinstance(output, tuple) else outputs[0]

    def _outputs_done(self, grads, positions, n):
        grad_outputs = _spread(grads, positions, n)
        for hook in self.pre_hooks:
            result = hook(self.module, grad_outputs)
            if result is not None:
                result = result if isinstance(result, tuple) else (result,)
                _check_count("Backward pre hook", "grad_output", result, n)
                grad_outputs = result
        if self.inputs_watched:
            self.grad_outputs = grad_outputs
        else:
            self._call_without_inputs(grad_outputs)
        return tuple(grad_outputs[i] for i in positions)

    def _call_without_inputs(self, grad_outputs):
        nothing = (None,) * self.n_inputs
        for hook in self.hooks:
            result = hook(self.module, nothing, grad_outputs)
            if result is not None and not (
                isinstance(result, tuple) and all(x is None for x in result)
            ):
                raise RuntimeError(
                    "Backward hook for Modules where no input requires gradient should always "
                    "return None or None for all gradients."
                )

    def _inputs_done(self, grads, _):
        if self.grad_outputs is None:  # the gradient came past the outputs, as in double backward
            return None
        positions = [*self.inputs_watched, *self.plain_inputs]
        zeros = map(ops.zeros_like, self.plain_inputs.values())
        result = _spread([*grads, *zeros], positions, self.n_inputs)
        for hook in self.hooks:
            new = hook(self.module, result, self.grad_outputs)
            if new is not None:
                new = new if isinstance(new, tuple) else (new,)
                _check_count("Backward hook", "grad_input", new, self.n_inputs)
                result = new
        self.grad_outputs = None
        return tuple(result[i] for i in self.inputs_watched)


def _check_count(what, name, got, expected):
    if len(got) != expected:
        raise RuntimeError(
            f"{what} returned an invalid number of {name}, got {len(got)}, but expected {expected}"
        )


def _spread(grads, positions, n):
    out = [None] * n
    for i, g in zip(positions, grads):
        out[i] = g
    return tuple(out)


def _identity(values: tuple):
    """(values with those that require grad passed through one node, their positions, the node)."""
    positions = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
    if not positions or not is_grad_enabled():
        return values, [], None
    passed = BackwardHookFunction.apply(*(values[i] for i in positions))
    passed = passed if isinstance(passed, tuple) else (passed,)
    node = passed[0].grad_fn
    result = list(values)
    for i, p in zip(positions, passed):
        result[i] = p
    return tuple(result), positions, node


class BackwardHookFunction(Function):
    """Hands tensors through; the graph gets one node for all of them."""

    @staticmethod
    def forward(ctx, *tensors):
        out = tuple(t.view_as(t) for t in tensors)
        return out if len(out) > 1 else out[0]

    @staticmethod
    def backward(ctx, *grads):
        return grads if len(grads) > 1 else grads[0]


__all__ = [
    "RemovableHandle",
    "register_module_buffer_registration_hook",
    "register_module_forward_hook",
    "register_module_forward_pre_hook",
    "register_module_full_backward_hook",
    "register_module_full_backward_pre_hook",
    "register_module_module_registration_hook",
    "register_module_parameter_registration_hook",
]
