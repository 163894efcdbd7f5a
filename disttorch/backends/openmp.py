"""OpenMP: not used by disttorch itself."""


def is_available() -> bool:
    """Whether it is used: never."""
    return False
