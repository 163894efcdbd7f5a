available = False


def get_version() -> int:
    return 22809
