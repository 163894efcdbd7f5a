"""Gradients in one launch: where a namespace has kernels of its own (``xp.fused``), they take the place
of a rule in ordinary backward, on arrays of one float type, 16-bit floats included.

    tanh.fused_grad("input", "tanh_backward")    # xp.fused.tanh_backward(g, *what the rule names)
    mul.fused_grads(("input", "other"), "mul_backward", ("input", "other"))  # both at once

A function in the place of a name is called with the namespace: ``function(xp, g, *arguments)``.

The rule stays: it says what is saved, serves double backward, and computes what no kernel takes
(kernels then return NotImplemented).
"""

from __future__ import annotations

import inspect


def compile_fused(plan):
    """Backward over arrays of a namespace with kernels: ``f(F, g, saved)``, like ``plan.run_raw``."""
    op, names = plan.op, plan.names
    wanted = tuple([op.params[i] for i in plan.slots])
    if wanted in op.fused_joints:
        return _joint(plan, *op.fused_joints[wanted])
    if not all(n in op.rules for n in wanted) or not any(n in op.fused_rules for n in wanted):
        return plan.run_raw
    calls = []
    for n in wanted:
        rule = op.rules[n]
        places = [names.index(a) for a in list(inspect.signature(rule).parameters)[2:]]
        kernel = op.fused_rules.get(n)
        calls.append(_plain(rule, places) if kernel is None else _single(kernel, rule, places))
    if len(calls) == 1:
        only = calls[0]
        return lambda F, g, s: (only(F, g, s),)
    return lambda F, g, s: [call(F, g, s) for call in calls]


def _plain(rule, places):
    return lambda F, g, s: rule(F, g, *[s[i] for i in places])


def _single(kernel, rule, places):
    """A rule's kernel by name, or as a function of ``xp.fused`` and the rule's arguments."""
    if isinstance(kernel, str):
        name = kernel

        def kernel(fused, g, *args):
            return getattr(fused, name)(g, *args)

    def call(F, g, s):
        args = [s[i] for i in places]
        out = kernel(F.xp.fused, g, *args)
        return rule(F, g, *args) if out is NotImplemented else out

    return call


def _joint(plan, kernel, arguments):
    places, rules = [plan.names.index(a) for a in arguments], plan.run_raw

    def call(F, g, s):
        args = [s[i] for i in places]
        out = kernel(F.xp, g, *args) if callable(kernel) else getattr(F.xp.fused, kernel)(g, *args)
        return rules(F, g, s) if out is NotImplemented else out

    return call
