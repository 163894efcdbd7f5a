"""Weights of convolutions in another memory format."""

from __future__ import annotations


def _convert(module, memory_format, ndim):
    for layer in module.modules():
        if type(layer).__name__ in (f"Conv{ndim}d", f"ConvTranspose{ndim}d"):
            weight = layer.weight.detach()
            layer.weight.data = weight.clone().contiguous(memory_format=memory_format)
    return module


def convert_conv2d_weight_memory_format(module, memory_format):
    """Lay out the weights of all Conv2d and ConvTranspose2d below in ``memory_format``."""
    return _convert(module, memory_format, 2)


def convert_conv3d_weight_memory_format(module, memory_format):
    """Lay out the weights of all Conv3d and ConvTranspose3d below in ``memory_format``."""
    return _convert(module, memory_format, 3)


__all__ = ["convert_conv2d_weight_memory_format", "convert_conv3d_weight_memory_format"]
