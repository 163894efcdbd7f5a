"""The collectives as methods of a process group, as code written against PyTorch's C++ class uses them.

Each starts its call and returns a `Work`. They take what the functions of `torch.distributed` take,
or lists of one tensor and an options object; roots and peers are ranks of the group.
"""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Sequence
from typing import Any

from collectives import ReduceOp

from ..backend.devices import device as Device
from ..tensor import Tensor
from .options import UNSET
from .work import Work, all_of

Timeout = datetime.timedelta | None


class GroupMethods:
    """Mixed into `ProcessGroup`, whose attributes it uses."""

    limit: Any
    ranks: Any
    name: Any
    timeout: float | None

    def _as_one(self) -> Any:
        """What is called inside is carried out as one call, without waiting for it."""
        return _calls("coalescing")._coalescing_manager(self, async_ops=True)

    # ---- reductions --------------------------------------------------------------------------

    def allreduce(
        self, tensors: Any, opts: Any = None, op: Any = None, timeout: Timeout = None
    ) -> Work:
        """`all_reduce` of a tensor or a list of tensors."""
        op, timeout = _reduction(opts, op, timeout)
        with self.limit(timeout):
            return _all([_calls("reductions").all_reduce(t, op, self, True) for t in _list(tensors)])

    def allreduce_coalesced(self, tensors: Sequence[Tensor], opts: Any = None) -> Work:
        """`all_reduce` of several tensors of one dtype, as one call."""
        op, timeout = _reduction(opts, None, None)
        with self.limit(timeout), self._as_one() as manager:
            for tensor in tensors:
                _calls("reductions").all_reduce(tensor, op, self)
        return all_of(manager.works)

    def reduce(
        self,
        tensors: Any,
        opts: Any = None,
        op: Any = None,
        timeout: Timeout = None,
        root: int | None = None,
    ) -> Work:
        """`reduce` to the options' `rootRank`, or to `root` (also as the second argument)."""
        root = _root(opts, root)
        op, timeout = _reduction(None if isinstance(opts, int) else opts, op, timeout)
        with self.limit(timeout):
            return _calls("reductions").reduce(
                _one(tensors), op=op, group=self, async_op=True, group_dst=root
            )

    def reduce_scatter(
        self, output: Any, input: Any, opts: Any = None, op: Any = None, timeout: Timeout = None
    ) -> Work:
        """`reduce_scatter` of a list of tensors, one per rank."""
        op, timeout = _reduction(opts, op, timeout)
        with self.limit(timeout):
            return _calls("reductions").reduce_scatter(_one(output), _inner(input), op, self, True)

    def _reduce_scatter_base(self, output: Tensor, input: Tensor, opts: Any = None) -> Work:
        op, timeout = _reduction(opts, None, None)
        with self.limit(timeout):
            return _calls("reductions").reduce_scatter_single(output, input, op, self, True)

    reduce_scatter_single = _reduce_scatter_base

    def reduce_scatter_tensor_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> Work:
        """`reduce_scatter_tensor` of several tensors, as one call."""
        op, timeout = _reduction(opts, None, None)
        with self.limit(timeout), self._as_one() as manager:
            for output, tensor in zip(outputs, inputs, strict=True):
                _calls("reductions").reduce_scatter_single(output, tensor, op, self)
        return all_of(manager.works)

    # ---- moves -------------------------------------------------------------------------------

    def broadcast(
        self, tensors: Any, opts: Any = None, timeout: Timeout = None, root: int | None = None
    ) -> Work:
        """`broadcast` from the options' `rootRank`, or from `root` (also as the second argument)."""
        with self.limit(_limit(opts, timeout)):
            return _calls("moves").broadcast(
                _one(tensors), group=self, async_op=True, group_src=_root(opts, root)
            )

    def allgather(
        self, output_tensors: Any, input_tensors: Any, opts: Any = None, timeout: Timeout = None
    ) -> Work:
        """`all_gather` into a list of tensors, one per rank."""
        with self.limit(_limit(opts, timeout)):
            return _calls("moves").all_gather(_inner(output_tensors), _one(input_tensors), self, True)

    def _allgather_base(self, output: Tensor, input: Tensor, opts: Any = None) -> Work:
        with self.limit(_limit(opts, None)):
            return _calls("moves").all_gather_single(output, input, self, True)

    all_gather_single = _allgather_base

    def allgather_into_tensor_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> Work:
        """`all_gather_into_tensor` of several tensors, as one call."""
        with self.limit(_limit(opts, None)), self._as_one() as manager:
            for output, tensor in zip(outputs, inputs, strict=True):
                _calls("moves").all_gather_single(output, tensor, self)
        return all_of(manager.works)

    def allgather_coalesced(
        self, output_lists: Sequence[Sequence[Tensor]], input_list: Sequence[Tensor], opts: Any = None
    ) -> Work:
        """`all_gather` of several tensors: list r is filled with rank r's."""
        with self.limit(_limit(opts, None)):
            return _all([
                _calls("moves").all_gather([each[i] for each in output_lists], tensor, self, True)
                for i, tensor in enumerate(input_list)
            ])

    def gather(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = None,
        timeout: Timeout = None,
        root: int | None = None,
    ) -> Work:
        """`gather` to the options' `rootRank`, or to `root` (also as the third argument)."""
        outs = _inner(output_tensors) if output_tensors else None
        with self.limit(_limit(opts, timeout)):
            return _calls("moves").gather(
                _one(input_tensors), outs, group=self, async_op=True, group_dst=_root(opts, root)
            )

    def scatter(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = None,
        timeout: Timeout = None,
        root: int | None = None,
    ) -> Work:
        """`scatter` from the options' `rootRank`, or from `root` (also as the third argument)."""
        parts = _inner(input_tensors) if input_tensors else None
        with self.limit(_limit(opts, timeout)):
            return _calls("moves").scatter(
                _one(output_tensors), parts, group=self, async_op=True,
                group_src=_root(opts, root),
            )  # fmt: skip

    def alltoall(
        self, output_tensors: Sequence[Tensor], input_tensors: Sequence[Tensor], opts: Any = None
    ) -> Work:
        """`all_to_all` of lists of tensors, one per rank."""
        with self.limit(_limit(opts, None)):
            return _calls("moves").all_to_all(list(output_tensors), list(input_tensors), self, True)

    def alltoall_base(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        opts: Any = None,
        timeout: Timeout = None,
    ) -> Work:
        """`all_to_all_single`."""
        with self.limit(_limit(opts, timeout)):
            return _calls("moves").all_to_all_single(
                output, input, output_split_sizes, input_split_sizes, self, True
            )

    all_to_all_single = alltoall_base

    # ---- messages ----------------------------------------------------------------------------

    def send(self, tensors: Any, dstRank: int, tag: int = 0) -> Work:
        """Start sending a tensor to a rank of the group."""
        return _calls("p2p").isend(_one(tensors), group=self, tag=tag, group_dst=dstRank)

    def recv(self, tensors: Any, srcRank: int, tag: int = 0) -> Work:
        """Start receiving into a tensor from a rank of the group."""
        return _calls("p2p").irecv(_one(tensors), group=self, tag=tag, group_src=srcRank)

    def recv_anysource(self, tensors: Any, tag: int = 0) -> Work:
        """Start receiving into a tensor from any rank of the group."""
        return _calls("p2p").irecv(_one(tensors), group=self, tag=tag)

    # ---- meeting, and the rest ---------------------------------------------------------------

    def barrier(self, opts: Any = None, timeout: Timeout = None) -> Work:
        """Start a barrier."""
        return _calls("moves").barrier(self, True, timeout=_limit(opts, timeout))

    def monitored_barrier(self, timeout: Timeout = None, wait_all_ranks: bool = False) -> None:
        """A barrier that names the ranks that do not come."""
        _calls("moves").monitored_barrier(self, timeout, wait_all_ranks)

    def set_timeout(self, timeout: datetime.timedelta) -> None:
        """Set what the group's calls may take from now on."""
        self.timeout = timeout.total_seconds()

    def get_group_store(self) -> Any:
        """The store that the ranks of this job met in; RuntimeError where there was none."""
        return _calls("begin").default_store()

    _set_default_timeout = set_timeout

    def _get_backend(self, device: Any) -> Any:
        """What carries calls on tensors of a device: this group, for every device."""
        return self

    def _get_backend_name(self) -> str:
        """The backend's name."""
        return self.name()

    @property
    def _device_types(self) -> list[Any]:
        """The devices whose tensors the group's calls take."""
        return [Device("cpu"), Device("cuda")]

    def shutdown(self) -> None:
        """Wait for everything under way in this group."""
        self.ranks.close()


def _calls(module: str) -> Any:
    """The module of some functions, which import ProcessGroup and so this one."""
    return importlib.import_module(f".{module}", __package__)


def _list(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _one(tensors: Any) -> Tensor:
    """PyTorch's methods take lists with a tensor for each device of this process: here, one."""
    found = _list(tensors)
    if len(found) != 1:
        raise ValueError(f"expected one tensor (a process has one device), got a list of {len(found)}")
    return found[0]


def _inner(tensors: Any) -> list[Tensor]:
    """A list of tensors, also where it stands in a list of one."""
    if len(tensors) == 1 and not isinstance(tensors[0], Tensor):
        return list(tensors[0])
    return list(tensors)


def _all(works: list[Any]) -> Work:
    return works[0] if len(works) == 1 else all_of(works)


def _limit(opts: Any, timeout: Timeout) -> Timeout:
    if timeout is None and isinstance(opts, datetime.timedelta):
        return opts
    return timeout if timeout is not None else getattr(opts, "timeout", UNSET)


def _reduction(opts: Any, op: Any, timeout: Timeout) -> tuple[Any, Timeout]:
    """The operation and the limit that the arguments name, in either of PyTorch's two forms."""
    if op is None:
        op = getattr(opts, "reduceOp", opts)
    return (ReduceOp.SUM if op is None else op), _limit(opts, timeout)


def _root(opts: Any, root: int | None) -> int:
    if root is not None:
        return root
    return opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
