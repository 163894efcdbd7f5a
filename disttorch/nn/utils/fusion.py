"""A batch norm in evaluation mode folded into the layer before it."""

from __future__ import annotations

import copy

from ... import ops
from ..parameter import Parameter


def _check(layer, bn):
    if layer.training or bn.training:
        raise AssertionError("Fusion only for eval!")
    if bn.running_mean is None or bn.running_var is None:
        raise AssertionError("bn.running_mean and bn.running_var must not be None")


def _fused(weight, bias, mean, var, eps, gain, shift, shape):
    scale = ops.rsqrt(var + eps) if gain is None else gain * ops.rsqrt(var + eps)
    old = ops.zeros_like(mean) if bias is None else bias
    new = (old - mean) * scale
    if shift is not None:
        new = new + shift
    weight_dtype, bias_dtype = weight.dtype, (weight if bias is None else bias).dtype
    fused = (weight * scale.reshape(shape)).to(weight_dtype)
    return (
        Parameter(fused.detach(), weight.requires_grad),
        Parameter(new.to(bias_dtype).detach(), False if bias is None else bias.requires_grad),
    )


def fuse_conv_bn_weights(
    conv_w, conv_b, bn_rm, bn_rv, bn_eps: float, bn_w, bn_b, transpose: bool = False
) -> tuple[Parameter, Parameter]:
    """Weight and bias of a convolution that does a batch norm's work too.

    Args:
        conv_w, conv_b: of the convolution; conv_b may be None.
        bn_rm, bn_rv, bn_eps, bn_w, bn_b: of the batch norm; bn_w and bn_b may be None.
        transpose: the convolution is a transposed one.
    """
    shape = ([1, -1] if transpose else [-1, 1]) + [1] * (conv_w.ndim - 2)
    return _fused(conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, shape)


def fuse_linear_bn_weights(
    linear_w, linear_b, bn_rm, bn_rv, bn_eps: float, bn_w, bn_b
) -> tuple[Parameter, Parameter]:
    """Weight and bias of a Linear that does a batch norm's work too."""
    return _fused(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, [-1, 1])


def fuse_conv_bn_eval(conv, bn, transpose: bool = False):
    """A copy of ``conv`` that gives what ``bn(conv(x))`` gave.

    Raises:
        AssertionError: if one is in training mode, or the norm has no running statistics.
    """
    _check(conv, bn)
    fused = copy.deepcopy(conv)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        fused.weight, fused.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias,
        transpose,
    )
    return fused


def fuse_linear_bn_eval(linear, bn):
    """A copy of ``linear`` that gives what ``bn(linear(x))`` gave.

    Raises:
        AssertionError: if one is in training mode, the norm has no running statistics, or its
            number of features differs.
    """
    _check(linear, bn)
    if linear.out_features != bn.num_features and bn.num_features != 1:
        raise AssertionError(
            "To fuse, linear.out_features == bn.num_features or bn.num_features == 1"
        )
    fused = copy.deepcopy(linear)
    fused.weight, fused.bias = fuse_linear_bn_weights(
        fused.weight, fused.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    return fused


__all__ = [
    "fuse_conv_bn_eval", "fuse_conv_bn_weights", "fuse_linear_bn_eval", "fuse_linear_bn_weights",
]
