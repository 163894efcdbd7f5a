_ranges: list[str] = []


def RangePush(message, id_color=-1):
    _ranges.append(message)


def RangePop():
    _ranges.pop()


def Mark(message, id_color=-1): ...
