"""Apple's GPUs: not supported."""


def is_available() -> bool:
    """Whether Apple's GPU can be used: never."""
    return False


def is_built() -> bool:
    """Whether support is built in: no."""
    return False


def is_macos_or_newer(major: int, minor: int) -> bool:
    """Whether this is such a macOS, as far as Apple's GPU is concerned: no."""
    return False
