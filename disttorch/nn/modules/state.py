"""The state of a module tree as one flat dict, and back: ``state_dict`` and ``load_state_dict``.

Keys are the dotted paths of parameters and persistent buffers. The dict carries a ``_metadata``
attribute with each module's version, so that a module can read what older code wrote.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, namedtuple
from collections.abc import Mapping

from ...autograd import no_grad
from ...tensor import Tensor
from ..parameter import Parameter

EXTRA_STATE_KEY = "_extra_state"


class _IncompatibleKeys(namedtuple("IncompatibleKeys", ["missing_keys", "unexpected_keys"])):
    """What ``load_state_dict`` found no use or no value for."""

    __slots__ = ()

    def __repr__(self):
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return super().__repr__()

    __str__ = __repr__


class StateDict:
    """The part of Module that saves and loads its state."""

    _version: int = 1

    # ---------------------------------------------------------------- saving
    def get_extra_state(self):
        """What else to put into ``state_dict``; a module that overrides it sets it again in
        ``set_extra_state``."""
        raise RuntimeError(
            "Reached a code path in Module.get_extra_state() that should never be called."
        )

    def set_extra_state(self, state):
        """Take back what ``get_extra_state`` gave."""
        raise RuntimeError(
            "Reached a code path in Module.set_extra_state() that should never be called."
        )

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Write this module's own entries; children write theirs."""
        for name, param in self._parameters.items():
            if param is not None:
                destination[prefix + name] = param if keep_vars else param.detach()
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in self._non_persistent_buffers_set:
                destination[prefix + name] = buffer if keep_vars else buffer.detach()
        if _overrides(self, "get_extra_state"):
            destination[prefix + EXTRA_STATE_KEY] = self.get_extra_state()

    def state_dict(self, *, destination=None, prefix="", keep_vars=False):
        """All parameters and persistent buffers by their dotted names.

        Args:
            destination: a dict to write into; a new OrderedDict by default.
            prefix: put before each name.
            keep_vars: give the parameters themselves instead of detached tensors that share
                their memory.
        """
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        local_metadata = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = local_metadata
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(
                    destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars
                )
        for hook in self._state_dict_hooks.values():
            result = hook(self, destination, prefix, local_metadata)
            if not getattr(hook, "_from_public_api", False):
                if result is not None:
                    destination = result
            elif result is not None:
                raise RuntimeError("state_dict post-hook must return None")
        return destination

    # ---------------------------------------------------------------- loading
    def load_state_dict(
        self, state_dict: Mapping, strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Copy values into parameters and buffers by their dotted names.

        Args:
            state_dict: name to tensor, as ``state_dict()`` returns it.
            strict: raise if a name is missing or unknown, instead of reporting it.
            assign: take the given tensors themselves instead of copying their values, so that
                dtype and device become those of the dict; ``requires_grad`` stays the module's.

        Returns:
            ``(missing_keys, unexpected_keys)``.

        Raises:
            TypeError: if ``state_dict`` is not a mapping.
            RuntimeError: naming every entry that does not fit.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        metadata = getattr(state_dict, "_metadata", None)
        state_dict = OrderedDict(state_dict)
        if metadata is not None:
            state_dict._metadata = metadata  # type: ignore[attr-defined]
        self._load_tree(state_dict, "", metadata, assign, strict, missing, unexpected, errors)
        if strict:
            for keys, what in ((unexpected, "Unexpected"), (missing, "Missing")):
                if keys:
                    listed = ", ".join(f'"{k}"' for k in keys)
                    errors.insert(0, f"{what} key(s) in state_dict: {listed}. ")
        if errors:
            raise RuntimeError(
                "Error(s) in loading state_dict for {}:\n\t{}".format(
                    type(self).__name__, "\n\t".join(errors)
                )
            )
        return _IncompatibleKeys(missing, unexpected)

    def _load_tree(
        self, state_dict, prefix, metadata, assign, strict, missing, unexpected, errors
    ):
        local = {} if metadata is None else metadata.get(prefix[:-1], {})
        if assign:
            local["assign_to_params_buffers"] = True
        self._load_from_state_dict(state_dict, prefix, local, True, missing, unexpected, errors)
        for name, child in self._modules.items():
            if child is not None:
                at = f"{prefix}{name}."
                part = {k: v for k, v in state_dict.items() if k.startswith(at)}
                child._load_tree(part, at, metadata, assign, strict, missing, unexpected, errors)
        keys = _IncompatibleKeys(missing, unexpected)
        for hook in self._load_state_dict_post_hooks.values():
            if hook(self, keys) is not None:
                raise AssertionError(
                    "Hooks registered with ``register_load_state_dict_post_hook`` are not "
                    "expected to return new values, if incompatible_keys need to be modified, "
                    "it should be done inplace."
                )

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        """Read this module's own entries. Layers whose format changed override this.

        ``local_metadata`` holds the version that wrote them; found problems are added to the
        three lists.
        """
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                 error_msgs)
        assign = local_metadata.get("assign_to_params_buffers", False)
        buffers = (
            (n, b) for n, b in self._buffers.items() if n not in self._non_persistent_buffers_set
        )
        for name, param in itertools.chain(self._parameters.items(), buffers):
            key = prefix + name
            if param is None:
                continue
            if key not in state_dict:
                if strict:
                    missing_keys.append(key)
                continue
            problem = self._load_one(name, key, param, state_dict[key], assign)
            if problem:
                error_msgs.append(problem)
        extra = prefix + EXTRA_STATE_KEY
        if _overrides(self, "set_extra_state"):
            if extra in state_dict:
                self.set_extra_state(state_dict[extra])
            elif strict:
                missing_keys.append(extra)
        elif strict and extra in state_dict:
            unexpected_keys.append(extra)
        if strict:
            self._note_unexpected(state_dict, prefix, extra, unexpected_keys)

    def _load_one(self, name, key, param, value, assign) -> str | None:
        """Load one tensor; the sentence that says why not, or None."""
        if not isinstance(value, Tensor):
            return (
                f'While copying the parameter named "{key}", expected torch.Tensor or Tensor-like '
                f"object from checkpoint but received {type(value)}"
            )
        if param.ndim == 0 and value.ndim == 1 and value.shape[0] == 1:
            value = value[0]  # scalars were once saved as one-element vectors
        if value.shape != param.shape:
            return (
                f"size mismatch for {key}: copying a param with shape {value.shape} from "
                f"checkpoint, the shape in current model is {param.shape}."
            )
        try:
            with no_grad():
                if not assign:
                    param.copy_(value)
                else:
                    if isinstance(param, Parameter):
                        if not isinstance(value, Parameter):
                            value = Parameter(value, requires_grad=param.requires_grad)
                        else:
                            value.requires_grad_(param.requires_grad)
                    setattr(self, name, value)
        except Exception as error:
            return (
                f'While copying the parameter named "{key}", whose dimensions in the model are '
                f"{param.shape} and whose dimensions in the checkpoint are {value.shape}, an "
                f"exception occurred : {error.args}."
            )
        return None

    def _note_unexpected(self, state_dict, prefix, extra, unexpected_keys):
        own = {
            n
            for n in (*self._parameters, *self._buffers)
            if n not in self._non_persistent_buffers_set
            and (self._parameters.get(n) is not None or self._buffers.get(n) is not None)
        }
        for key in state_dict:
            if key.startswith(prefix) and key != extra:
                name, dot, _ = key[len(prefix) :].partition(".")
                known = name in self._modules if dot else name in own
                if not known:
                    unexpected_keys.append(key)


def _overrides(module, method: str) -> bool:
    return getattr(type(module), method) is not getattr(StateDict, method)
