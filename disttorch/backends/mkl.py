"""Intel's MKL: NumPy's BLAS is used, whichever it is."""


def is_available() -> bool:
    """Whether it is used: never."""
    return False
