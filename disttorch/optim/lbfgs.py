"""L-BFGS: a quasi-Newton method over all parameters as one vector."""

from __future__ import annotations

from .. import ops
from ..autograd import enable_grad, no_grad
from ..tensor import Tensor
from .line_search import strong_wolfe
from .optimizer import Optimizer, check_lr

_MEMORY = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss")


class LBFGS(Optimizer):
    """Steps along an inverse Hessian estimated from past steps (Liu & Nocedal, 1989).

    ``step`` needs a closure that clears the gradients, computes the loss, runs backward and returns
    the loss; it is called several times.

    Args:
        params: what to optimize, on one device, in one group; see ``Optimizer``.
        lr: first step length; without a line search, the step length.
        max_iter: most iterations in one ``step``.
        max_eval: most calls of the closure in one ``step``; 1.25·max_iter if None.
        tolerance_grad: stop when no element of the gradient is larger.
        tolerance_change: stop when loss and parameters change less.
        history_size: how many past steps to keep.
        line_search_fn: "strong_wolfe" or None.

    Raises:
        ValueError: for options out of range or several groups.
    """

    def __init__(
        self, params, lr=1, max_iter: int = 20, max_eval: int | None = None,
        tolerance_grad: float = 1e-7, tolerance_change: float = 1e-9, history_size: int = 100,
        line_search_fn: str | None = None,
    ):
        check_lr(lr)
        super().__init__(params, {
            "lr": lr, "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change,
            "history_size": history_size, "line_search_fn": line_search_fn,
        })
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")

    # ---------------------------------------------------------------- parameters as one vector
    @property
    def _params(self) -> list[Tensor]:
        return self.param_groups[0]["params"]

    def _flat_grad(self) -> Tensor:
        parts = []
        for p in self._params:
            g = ops.zeros_like(p) if p.grad is None else p.grad
            parts.append((ops.view_as_real(g) if g.is_complex() else g).reshape(-1))
        return ops.cat(parts, 0)

    def _move(self, length, direction: Tensor) -> None:
        at = 0
        for p in self._params:
            real = ops.view_as_real(p) if p.is_complex() else p
            n = real.numel()
            real.add_(direction[at : at + n].view_as(real), alpha=float(length))
            at += n

    def _evaluate_at(self, closure, start, length, direction):
        """(loss, gradient) at start + length·direction; the parameters return to ``start``."""
        self._move(length, direction)
        loss, grad = float(closure()), self._flat_grad()
        for p, kept in zip(self._params, start):
            p.copy_(kept)
        return loss, grad

    # ---------------------------------------------------------------- the method
    @no_grad()
    def step(self, closure):
        """Run up to ``max_iter`` iterations.

        Args:
            closure: computes loss and gradients and returns the loss.

        Returns:
            the loss before the first iteration.
        """
        closure = enable_grad()(closure)
        group = self.param_groups[0]
        # one state for all, kept with the first parameter so that loading casts it
        state = self.state[self._params[0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        first_loss = closure()
        loss, evaluations = float(first_loss), 1
        state["func_evals"] += 1
        grad = self._flat_grad()
        if grad.abs().max() <= group["tolerance_grad"]:
            return first_loss
        memory = {name: state.get(name) for name in _MEMORY}
        for i in range(1, group["max_iter"] + 1):
            state["n_iter"] += 1
            _new_direction(state, memory, grad, group["history_size"])
            memory["prev_flat_grad"], memory["prev_loss"] = grad.clone(), loss
            lr, d = float(group["lr"]), memory["d"]
            memory["t"] = lr
            if state["n_iter"] == 1:
                memory["t"] = min(1.0, 1.0 / grad.abs().sum()) * lr
            slope = grad.dot(d)
            if slope > -group["tolerance_change"]:
                break
            loss, grad, calls, small = self._advance(
                closure, group, memory, loss, grad, slope, group["max_eval"] - evaluations,
                last=i == group["max_iter"],
            )
            evaluations += calls
            state["func_evals"] += calls
            if (
                evaluations >= group["max_eval"] or small
                or d.mul(memory["t"]).abs().max() <= group["tolerance_change"]
                or abs(loss - memory["prev_loss"]) < group["tolerance_change"]
            ):
                break
        state.update(memory)
        return first_loss

    def _advance(self, closure, group, memory, loss, grad, slope, budget, last):
        """Go one step; returns (loss, gradient, closure calls, whether the gradient is small)."""
        d, search, calls = memory["d"], group["line_search_fn"], 0
        if search is not None:
            if search != "strong_wolfe":
                raise RuntimeError("only 'strong_wolfe' is supported")
            start = [p.clone() for p in self._params]
            loss, grad, memory["t"], calls = strong_wolfe(
                lambda t: self._evaluate_at(closure, start, t, d),
                memory["t"], d, loss, grad, slope, max_calls=budget,
            )
            self._move(memory["t"], d)
        else:
            self._move(memory["t"], d)
            if last:  # nobody will look at the gradient there
                return loss, grad, 0, False
            loss, grad, calls = float(closure()), self._flat_grad(), 1
        return loss, grad, calls, bool(grad.abs().max() <= group["tolerance_grad"])


def _new_direction(state, memory, grad, history_size) -> None:
    """Take the last step into the history and set the direction by the two-loop recursion."""
    if state["n_iter"] == 1:
        memory.update(d=grad.neg(), old_dirs=[], old_stps=[], ro=[], H_diag=1)
        return
    changes, steps, inverses = memory["old_dirs"], memory["old_stps"], memory["ro"]
    y, s = grad - memory["prev_flat_grad"], memory["d"].mul(memory["t"])
    ys = y.dot(s)
    if ys > 1e-10:  # keeps the estimate positive definite
        if len(changes) == history_size:
            for kept in (changes, steps, inverses):
                kept.pop(0)
        changes.append(y)
        steps.append(s)
        inverses.append(1.0 / ys)
        memory["H_diag"] = ys / y.dot(y)
    al = state.setdefault("al", [None] * history_size)
    q = grad.neg()
    for i in reversed(range(len(changes))):
        al[i] = steps[i].dot(q) * inverses[i]
        q.add_(changes[i] * -al[i])
    d = q * memory["H_diag"]
    for i in range(len(changes)):
        d.add_(steps[i] * (al[i] - changes[i].dot(d) * inverses[i]))
    memory["d"] = d


__all__ = ["LBFGS"]
