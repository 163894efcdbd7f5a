"""A line search for the strong Wolfe conditions (Nocedal & Wright, Numerical Optimization, 3.5).

Step lengths and slopes are numbers or 0-dim tensors; a *point* is (length, loss, gradient, slope).
"""

from __future__ import annotations


def cubic_minimum(x1, f1, g1, x2, f2, g2, bounds=None):
    """Where the cubic through two points with slopes has its minimum, within the bounds.

    Without a minimum it is the middle of the bounds.
    """
    low, high = bounds if bounds is not None else ((x1, x2) if x1 <= x2 else (x2, x1))
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    square = d1**2 - g1 * g2
    if square < 0:
        return (low + high) / 2.0
    d2 = square**0.5
    if x1 <= x2:
        at = x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2))
    else:
        at = x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2))
    return min(max(at, low), high)


def strong_wolfe(
    evaluate, t, direction, loss, grad, slope, *, c1=1e-4, c2=0.9, tolerance=1e-9, max_calls=25
):
    """Find a step length of sufficient decrease and flat enough slope.

    Args:
        evaluate: length -> (loss, gradient) there.
        t: the length to try first.
        direction, loss, grad, slope: of the search, and at length 0.
        c1, c2: of the decrease and of the slope.
        tolerance: stop when the bracket moves no element further.
        max_calls: most refinements.

    Returns:
        (loss, gradient, length, calls of ``evaluate``).
    """
    start = (0, loss, grad.clone(), slope)

    def point(length):
        value, g = evaluate(length)
        return (length, value, g.clone(), g.dot(direction))

    def too_high(p):
        return p[1] > loss + c1 * p[0] * slope

    def flat(p):
        return abs(p[3]) <= -c2 * slope

    bracket, calls, done = _bracket(point, t, start, too_high, flat, max_calls)
    width = direction.abs().max()
    rounds, stuck = calls - 1, False
    low, high = (0, 1) if bracket[0][1] <= bracket[-1][1] else (1, 0)
    while not done and rounds < max_calls:
        if abs(bracket[1][0] - bracket[0][0]) * width < tolerance:
            break
        (x1, f1, _, g1), (x2, f2, _, g2) = bracket
        t, stuck = _away_from_ends(cubic_minimum(x1, f1, g1, x2, f2, g2), x1, x2, stuck)
        new = point(t)
        calls, rounds = calls + 1, rounds + 1
        if too_high(new) or new[1] >= bracket[low][1]:
            bracket[high] = new
            low, high = (0, 1) if bracket[0][1] <= bracket[1][1] else (1, 0)
        else:
            if flat(new):
                done = True
            elif new[3] * (bracket[high][0] - bracket[low][0]) >= 0:
                bracket[high] = bracket[low]
            bracket[low] = new
    t, loss, grad, _ = bracket[low]
    return loss, grad, t, calls


def _bracket(point, t, start, too_high, flat, max_calls):
    """(one good point, or two around one; calls; whether it is good)."""
    previous, new, calls = start, point(t), 1
    while calls - 1 < max_calls:
        if too_high(new) or (calls > 2 and new[1] >= previous[1]):
            return [previous, new], calls, False
        if flat(new):
            return [new], calls, True
        if new[3] >= 0:
            return [previous, new], calls, False
        x, f, _, g = new
        bounds = (x + 0.01 * (x - previous[0]), x * 10)
        t = cubic_minimum(previous[0], previous[1], previous[3], x, f, g, bounds)
        previous, new = new, point(t)
        calls += 1
    return [start, new], calls, False


def _away_from_ends(t, x1, x2, stuck):
    """Move a length close to an end of the bracket inside, if the last one was close too.

    Returns:
        (the length, whether it was close and left there).
    """
    low, high = (x1, x2) if x1 <= x2 else (x2, x1)
    margin = 0.1 * (high - low)
    if min(high - t, t - low) >= margin:
        return t, False
    if stuck or t >= high or t <= low:
        return (high - margin if abs(t - high) < abs(t - low) else low + margin), False
    return t, True


__all__ = ["cubic_minimum", "strong_wolfe"]
