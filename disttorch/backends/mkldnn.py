"""oneDNN: not used."""


def is_available() -> bool:
    """Whether it is used: never."""
    return False
