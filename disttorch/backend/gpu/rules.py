"""The optimizers' update rules as ``csrc/multi.cu`` and ``csrc/multi_more.cu`` take them.

A kernel's arguments: the table, the numbers that depend on the step and the rate (factors), an array of
these where they are computed on the device, the constants, the gradients' scale, found_inf. The factors
are the formulas of ``optim_kernels``, in double; those on the device (``csrc/counts.cu``) are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
    """One update rule.

    family: the file of its kernel, which has the rule's name.
    factors: (options of the tensors, shared options, learning rate) -> the factors.
    constants: (shared options, options of the tensors) -> the other numbers.
    counting: the kernel of counts.cu that counts a step and computes the factors.
    numbers: shared options -> what that takes after the rate.
    pointer: what the kernel takes after the factors: "factors", an array of them for each tensor;
        "rate", the learning rate on the device, where that is the only factor; "", nothing.
    unknown: zeros in place of factors that are computed on the device.
    """

    family: str
    factors: Callable[[dict, dict, float], tuple]
    constants: Callable[[dict, dict], tuple]
    counting: str = "count_only"
    numbers: Callable[[dict], tuple] = lambda shared: ()
    pointer: str = "factors"
    unknown: tuple = (0.0,)


def _sign(shared) -> float:
    return -1.0 if shared["maximize"] else 1.0


def _keep(shared, lr) -> float:
    """What decoupled decay leaves of a parameter."""
    return 1 - lr * shared["wd"] if shared["decoupled"] else 1.0


def _decay(shared) -> float:
    return float(shared["wd"]) if shared["decoupled"] else 0.0


def _added(shared) -> float:
    """Decay that is added to the gradient."""
    return 0.0 if shared["decoupled"] else float(shared["wd"])


def _adam(own, shared, lr):
    step = own["step"]
    return (_keep(shared, lr), lr / (1 - shared["beta1"] ** step), (1 - shared["beta2"] ** step) ** 0.5)


def _means(shared, own):
    """Constants of the rules with running means of gradient and squared gradient."""
    return (1 - shared["beta1"], shared["beta2"], 1 - shared["beta2"], float(shared["eps"]),
            _added(shared), _sign(shared))


def _adam_constants(shared, own):
    rest1, *others = _means(shared, own)
    return others[0], rest1, *others[1:]


def _nadam(own, shared, lr):
    mu, ahead, product = own["mu"], own["mu_next"], own["mu_product"]
    return (_keep(shared, lr), 1 - shared["beta2"] ** own["step"], lr * (1 - mu) / (1 - product),
            lr * ahead / (1 - product * ahead))


def _radam(own, shared, lr):
    step = own["step"]
    return (_keep(shared, lr), lr, 1 - shared["beta1"] ** step, (1 - shared["beta2"] ** step) ** 0.5,
            own["rectification"] or 0.0)


def _rate(own, shared, lr):
    return (lr,)


RULES = {
    "adam": Rule("multi", _adam, _adam_constants, "count_adam",
                 lambda s: (s["beta1"], s["beta2"], _decay(s)), unknown=(0.0,) * 3),
    "sgd": Rule(
        "multi", _rate,
        lambda s, own: (float(s["momentum"]), 1.0 - s["dampening"], float(s["wd"]), _sign(s),
                        int(s["nesterov"]), int(own.get("first", False))), pointer="rate"),
    "rmsprop": Rule(
        "multi_more", _rate,
        lambda s, own: (float(s["alpha"]), 1.0 - s["alpha"], float(s["eps"]), float(s["wd"]),
                        float(s["momentum"]), _sign(s)), pointer="rate"),
    "adagrad": Rule(
        "multi_more", lambda own, s, lr: (own["lr"],),
        lambda s, own: (float(s["eps"]), float(s["wd"]), _sign(s)), pointer="rate"),
    "adadelta": Rule(
        "multi_more", _rate,
        lambda s, own: (float(s["rho"]), 1.0 - s["rho"], float(s["eps"]), float(s["wd"]), _sign(s)),
        pointer="rate"),
    "adamax": Rule(
        "multi_more", lambda own, s, lr: (lr / (1 - s["beta1"] ** own["step"]),),
        lambda s, own: (1 - s["beta1"], s["beta2"], float(s["eps"]), float(s["wd"]), _sign(s)),
        "count_adamax", lambda s: (s["beta1"],)),
    "nadam": Rule("multi_more", _nadam, _means, "count_nadam",
                  lambda s: (s["beta1"], s["beta2"], float(s["momentum_decay"]), _decay(s)),
                  unknown=(0.0,) * 4),
    "radam": Rule("multi_more", _radam, _means, "count_radam",
                  lambda s: (s["beta1"], s["beta2"], _decay(s)), unknown=(0.0,) * 5),
    "rprop": Rule(
        "multi_more", lambda own, s, lr: (),
        lambda s, own: (*map(float, s["etas"]), *map(float, s["limits"]), _sign(s)), pointer=""),
    "asgd": Rule(
        "multi_more", lambda own, s, lr: (1 - s["lambd"] * own["eta"], own["eta"], own["mu"]),
        lambda s, own: (float(s["wd"]), _sign(s)), "count_asgd",
        lambda s: (float(s["lambd"]), float(s["alpha"]), float(s["t0"])), unknown=(0.0,) * 3),
}  # fmt: skip
