"""The names that autocast and GradScaler had for each device; using them warns."""

from __future__ import annotations

import warnings


def deprecated(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn as PyTorch does that a name has a successor."""
    warnings.warn(f"`{old}` is deprecated. Please use `{new}` instead.", FutureWarning, stacklevel)


def legacy_autocast(device: str, default_dtype, base):
    """``torch.<device>.amp.autocast``: the region with its device fixed."""

    class autocast(base):
        __doc__ = base.__doc__

        def __init__(self, enabled: bool = True, dtype=default_dtype, cache_enabled: bool = True):
            deprecated(f"torch.{device}.amp.autocast(args...)",
                       f"torch.amp.autocast('{device}', args...)")
            super().__init__(device, enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)

    return autocast


def legacy_scaler(device: str, base):
    """``torch.<device>.amp.GradScaler``: the scaler with its device fixed."""

    class GradScaler(base):
        __doc__ = base.__doc__

        def __init__(
            self, init_scale: float = 2.0**16, growth_factor: float = 2.0,
            backoff_factor: float = 0.5, growth_interval: int = 2000, enabled: bool = True,
        ):
            deprecated(f"torch.{device}.amp.GradScaler(args...)",
                       f"torch.amp.GradScaler('{device}', args...)")
            super().__init__(
                device, init_scale, growth_factor, backoff_factor, growth_interval, enabled
            )

    return GradScaler
