"""The CPU."""


def get_cpu_capability() -> str:
    """What kernels are compiled for: NumPy chooses by itself."""
    return "DEFAULT"
