"""Everything that a training run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ... import ops
from ...backend import dtypes
from ...backend.devices import device
from ...nn import Module
from ...ops.random import Generator, default_generator
from ...optim import Optimizer
from .state_dict import StateDictOptions, get_state_dict, set_state_dict
from .stateful import RankLocal


class RunState:
    """A run as one `Stateful` entry of a state dict.

        state = {"run": RunState(model, optimizer, scheduler, loader), "step": step}

    Model and optimizer are saved by parameter names and can be loaded by another number of ranks
    and in another layout (DDP, FSDP, one process). A loader's state is the same on all ranks and
    counts what all of them have used, so that with a `DistributedSampler` the rest of the epoch is
    dealt anew. States of random numbers belong to ranks: a rank that did not exist when they were
    saved gets a stream of its own, made of the run's seed and its number.

    Args:
        model: a module, wrapped or sharded or neither.
        optimizers: one or several.
        schedulers, loaders: objects with `state_dict` and `load_state_dict`; one, several, or None.
            Loaders are DataLoaders or samplers.
        random_state: keep the states of random numbers: the default generators, Python's, NumPy's.
        generators: name -> Generator whose states are kept, too.
        options: as for `get_state_dict`.
        **others: more objects with `state_dict` and `load_state_dict` that are the same on all
            ranks: a GradScaler, an average of weights.
    """

    def __init__(
        self,
        model: Module,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        schedulers: Any = None,
        loaders: Any = None,
        *,
        random_state: bool = True,
        generators: Mapping[str, Generator] | None = None,
        options: StateDictOptions | None = None,
        **others: Any,
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self.schedulers, self.loaders = _listed(schedulers), _listed(loaders)
        self.random_state, self.generators = random_state, dict(generators or {})
        self.options, self.others = options, others

    def state_dict(self) -> dict[str, Any]:
        """The state; values of one piece are in tuples of one, which are not entered."""
        model, optimizer = get_state_dict(self.model, self.optimizers, options=self.options)
        state: dict[str, Any] = {"model": model}
        if self._has_optimizers():
            state["optimizer"] = optimizer
        state["schedulers"] = tuple(one.state_dict() for one in self.schedulers)
        state["loaders"] = tuple(one.state_dict() for one in self.loaders)
        for name, other in self.others.items():
            state[name] = other.state_dict()
        if self.random_state or self.generators:
            state["random"] = RankLocal(self._random_states())
            state["seed"] = (default_generator(device("cpu")).initial_seed(),)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: saved with another number of schedulers or loaders.
        """
        set_state_dict(
            self.model, self.optimizers, model_state_dict=state_dict["model"],
            optim_state_dict=state_dict.get("optimizer", {"state": {}, "param_groups": []}),
            options=self.options,
        )  # fmt: skip
        for kind, objects in (("schedulers", self.schedulers), ("loaders", self.loaders)):
            saved = state_dict[kind]
            if len(saved) != len(objects):
                raise ValueError(
                    f"the run was saved with {len(saved)} {kind}, this one has {len(objects)}"
                )
            for one, its in zip(objects, saved):
                one.load_state_dict(its)
        for name, other in self.others.items():
            other.load_state_dict(state_dict[name])
        if "random" in state_dict:
            mine = state_dict["random"]
            if mine.found:
                self._set_random_states(mine.value)
            else:
                self._seed_anew(state_dict["seed"][0], mine.rank)

    def _has_optimizers(self) -> bool:
        return isinstance(self.optimizers, Optimizer) or bool(self.optimizers)

    # ---- random numbers ------------------------------------------------------------------------

    def _streams(self) -> dict[str, Generator]:
        found = {f"generator {name}": one for name, one in self.generators.items()}
        if self.random_state:
            found["default cpu"] = default_generator(device("cpu"))
            from ... import cuda

            if cuda.is_available():
                found["default cuda"] = default_generator(device("cuda", cuda.current_device()))
        return found

    def _random_states(self) -> dict[str, Any]:
        states: dict[str, Any] = {
            name: bytes(stream.get_state().tolist()) for name, stream in self._streams().items()
        }
        if self.random_state:
            states["python"] = random.getstate()
            numpy = sys.modules.get("numpy")
            if numpy is not None:
                kind, keys, *rest = numpy.random.get_state()
                states["numpy"] = (kind, keys.tolist(), *rest)
        return states

    def _set_random_states(self, states: dict[str, Any]) -> None:
        for name, stream in self._streams().items():
            if name in states:
                stream.set_state(ops.tensor(list(states[name]), dtype=dtypes.uint8))
        if self.random_state:
            if "python" in states:
                random.setstate(states["python"])
            if "numpy" in states and "numpy" in sys.modules:
                sys.modules["numpy"].random.set_state(states["numpy"])

    def _seed_anew(self, seed: int, rank: int) -> None:
        for name, stream in self._streams().items():
            stream.manual_seed(_derived(seed, rank, name))
        if self.random_state:
            random.seed(_derived(seed, rank, "python"))
            if "numpy" in sys.modules:
                sys.modules["numpy"].random.seed(_derived(seed, rank, "numpy") % 2**32)


def _derived(seed: int, rank: int, name: str) -> int:
    text = f"{seed} {rank} {name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _listed(objects: Any) -> list[Any]:
    if objects is None:
        return []
    return list(objects) if isinstance(objects, (list, tuple)) else [objects]


__all__ = ["RunState"]
