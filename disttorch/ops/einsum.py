"""Sums of products by index letters: einsum, tensordot.

Every contraction of two operands becomes one batched matrix product: its letters are sorted into
batch (in both and kept), left, right, and summed (in both and dropped).
"""

from __future__ import annotations

import math

from ..backend import CPU
from ..tensor import Tensor
from .core import REGISTRY, wrap_dim, write_out
from .matmul import matmul

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def einsum(*args) -> Tensor:
    """Einstein summation: ``einsum("bij,bjk->bik", a, b)``.

    Args:
        equation: letters for the dims of each operand, separated by commas; ``...`` stands for
            dims that broadcast. Without ``->`` the output has the letters that appear once, in
            alphabetical order, after the dims of the ellipsis.
        operands: tensors, separate or as one list. The other form takes operands and lists of
            numbers in turn: ``einsum(a, [0, 1], b, [1, 2], [0, 2])``.

    Raises:
        ValueError, RuntimeError: if the equation does not fit the operands.
    """
    if len(args) < 2:
        raise ValueError(
            "einsum(): must specify the equation string and at least one operand, or at least one "
            "operand and its subscripts list"
        )
    if isinstance(args[0], Tensor):
        equation, operands = _from_lists(args)
    else:
        equation, operands = args[0], args[1:]
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = operands[0]
    terms, output = _parse(equation, list(operands))
    operands, terms = zip(*(_own_diagonals(t, s) for t, s in zip(operands, terms)))
    return _contract_all(list(operands), list(terms), output)


def _from_lists(args):
    """The sublist form as an equation: number n is letter n."""
    def text(numbers):
        out = []
        for n in numbers:
            if n is Ellipsis:
                out.append("...")
            elif not 0 <= n < 52:
                raise ValueError(
                    f"not in interval [0, 52): subscript {n} of an einsum operand"
                )
            else:
                out.append(_LETTERS[n])
        return "".join(out)

    operands, rest = list(args[0::2]), args[1::2]
    equation = ",".join(text(s) for s in rest)
    if len(args) % 2:
        equation += "->" + text(operands.pop())
    return equation, operands


# ---------------------------------------------------------------- the equation
def _parse(equation, operands):
    """(letters of each operand, letters of the output), with the ellipsis's dims as digits."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise RuntimeError(
            f"einsum(): {'fewer' if len(operands) < len(terms) else 'more'} operands were provided "
            "than specified in the equation"
        )
    split = [_split_term(s, i, t.ndim) for i, (s, t) in enumerate(zip(terms, operands))]
    width = max((n for _, n in split), default=0)
    # Dims of an ellipsis align at the right, as in broadcasting
    terms = [[x for c in s for x in (range(width - n, width) if c == "." else (c,))]
             for s, n in split]
    _check_sizes(terms, operands)
    if arrow:
        output = _output_term(right, width, {c for t in terms for c in t})
    else:
        counts: dict = {}
        for c in (c for t in terms for c in t):
            counts[c] = counts.get(c, 0) + 1
        once = sorted(c for c, n in counts.items() if isinstance(c, str) and n == 1)
        output = [*range(width), *once]
    return terms, output


def _split_term(term, i, ndim):
    """("ij.k", how many dims the ellipsis "." stands for)."""
    if "..." in term:
        head, _, tail = term.partition("...")
        letters = head + tail
        if "." in letters:
            raise RuntimeError(
                f"einsum(): found '.' for operand {i} for which an ellipsis was already found"
            )
        if ndim < len(letters):
            raise RuntimeError(
                f"einsum(): the number of subscripts in the equation ({len(letters)}) is more than "
                f"the number of dimensions ({ndim}) for operand {i}"
            )
        _check_letters(letters, f"operand {i}")
        return head + "." + tail, ndim - len(letters)
    _check_letters(term, f"operand {i}")
    if len(term) != ndim:
        raise RuntimeError(
            f"einsum(): the number of subscripts in the equation ({len(term)}) does not match the "
            f"number of dimensions ({ndim}) for operand {i} and no ellipsis was given"
        )
    return term, 0


def _check_letters(letters, where):
    for c in letters:
        if c not in _LETTERS:
            if c == ".":
                raise RuntimeError(
                    f"einsum(): found '.' for {where} that is not part of any ellipsis"
                )
            raise RuntimeError(
                f"einsum(): invalid subscript given at index for {where}: '{c}'. Subscripts must "
                "be in [a-zA-Z]"
            )


def _check_sizes(terms, operands):
    sizes: dict = {}
    for i, (term, t) in enumerate(zip(terms, operands)):
        for c, n in zip(term, t._data.shape):
            first = t._data.shape[term.index(c)]
            if n != first:
                raise RuntimeError(
                    f"einsum(): subscript {c} is repeated for operand {i} but the sizes don't "
                    f"match, {n} != {first}"
                )
            have = sizes.setdefault(c, n)
            if have == 1:
                sizes[c] = n
            elif n not in (1, have):
                name = c if isinstance(c, str) else "..."
                raise RuntimeError(
                    f"einsum(): subscript {name} has size {n} for operand {i} which does not "
                    f"broadcast with previously seen size {have}"
                )


def _output_term(text, width, known):
    head, dots, tail = text.partition("...")
    _check_letters(head + tail, "the output")
    output = [*head, *(range(width) if dots else ()), *tail]
    for c in head + tail:
        if output.count(c) > 1:
            raise RuntimeError(
                f"einsum(): output subscript {c} appears more than once in the output"
            )
        if c not in known:
            raise RuntimeError(
                f"einsum(): output subscript {c} does not appear in the equation for any input "
                "operand"
            )
    return output


def _own_diagonals(t, term):
    """A letter that an operand has twice: the diagonal over its dims."""
    term = list(term)
    while True:
        twice = next((c for c in term if term.count(c) > 1), None)
        if twice is None:
            return t, term
        i = term.index(twice)
        j = term.index(twice, i + 1)
        t = REGISTRY["diagonal"].call(t, 0, i, j)
        term = [c for k, c in enumerate(term) if k not in (i, j)] + [twice]


# ---------------------------------------------------------------- contraction
def _contract_all(operands, terms, output):
    for at in _order(operands, terms, output):
        at = sorted(at, reverse=True)
        parts = [(operands.pop(i), terms.pop(i)) for i in at]
        needed = {c for t in terms for c in t} | set(output)
        result, letters = parts.pop()
        result, letters = _sum_unneeded(
            result, letters, needed | {c for _, t in parts for c in t})
        while parts:
            other, more = parts.pop()
            keep = needed | {c for _, t in parts for c in t}
            other, more = _sum_unneeded(other, more, keep | set(letters))
            result, letters = _contract(result, letters, other, more, keep)
        operands.append(result)
        terms.append(letters)
    (result,), (letters,) = operands, terms
    result, letters = _sum_unneeded(result, letters, set(output))
    return REGISTRY["permute"].call(result, tuple(letters.index(c) for c in output))


def _order(operands, terms, output):
    """Which operands to contract, step by step: the greedy plan of NumPy's ``einsum_path``."""
    if len(operands) <= 2:
        return [tuple(range(len(operands)))]
    names = {c: _LETTERS[i] for i, c in enumerate(dict.fromkeys(c for t in terms for c in t))}
    text = ",".join("".join(names[c] for c in t) for t in terms)
    text += "->" + "".join(names[c] for c in output)
    sizes = {c: n for t, o in zip(terms, operands) for c, n in zip(t, o._data.shape) if n != 1}
    shapes = (CPU.broadcast_to(CPU.float32(0), tuple(sizes.get(c, 1) for c in t)) for t in terms)
    return CPU.einsum_path(text, *shapes, optimize="greedy")[0][1:]


def _sum_unneeded(t, letters, needed):
    drop = tuple(i for i, c in enumerate(letters) if c not in needed)
    if not drop:
        return t, letters
    return REGISTRY["sum"].call(t, drop), [c for c in letters if c in needed]


def _contract(a, in_a, b, in_b, needed):
    """Two operands to one: (result, its letters)."""
    both = [c for c in in_a if c in in_b]
    summed = [c for c in both if c not in needed]
    # a summed letter of size 1 on one side only has nothing to multiply with: sum the other side
    for c in [c for c in summed if a._data.shape[in_a.index(c)] != b._data.shape[in_b.index(c)]]:
        a, in_a = _without(a, in_a, c)
        b, in_b = _without(b, in_b, c)
        summed.remove(c)
        both.remove(c)
    batch = [c for c in both if c in needed]
    left = [c for c in in_a if c not in both]
    right = [c for c in in_b if c not in both]
    if not summed:
        return _multiply(a, in_a, b, in_b, batch + left + right), batch + left + right
    shape_a = dict(zip(in_a, a._data.shape))
    shape_b = dict(zip(in_b, b._data.shape))
    lead_a, lead_b = [shape_a[c] for c in batch], [shape_b[c] for c in batch]
    n, k, m = (math.prod(s[c] for c in group) for s, group in
               ((shape_a, left), (shape_a, summed), (shape_b, right)))
    x = _arranged(a, in_a, batch + left + summed, (*lead_a, n, k))
    y = _arranged(b, in_b, batch + summed + right, (*lead_b, k, m))
    if lead_a == lead_b and len(batch) > 1:  # one batch dim is all that a product needs
        size = math.prod(lead_a)
        x = REGISTRY["reshape"].call(x, (size, n, k))
        y = REGISTRY["reshape"].call(y, (size, k, m))
    out = matmul.call(x, y)
    lead = [max(p, q) if 0 not in (p, q) else 0 for p, q in zip(lead_a, lead_b)]
    shape = (*lead, *(shape_a[c] for c in left), *(shape_b[c] for c in right))
    return REGISTRY["reshape"].call(out, shape), batch + left + right


def _without(t, letters, c):
    i = letters.index(c)
    return REGISTRY["sum"].call(t, i), [x for x in letters if x != c]


def _arranged(t, letters, order, shape):
    t = REGISTRY["permute"].call(t, tuple(letters.index(c) for c in order))
    return REGISTRY["reshape"].call(t, shape)


def _multiply(a, in_a, b, in_b, order):
    """Nothing is summed: broadcast and multiply."""
    def spread(t, letters):
        have = [c for c in order if c in letters]
        sizes = dict(zip(letters, t._data.shape))
        return _arranged(t, letters, have, tuple(sizes.get(c, 1) for c in order))

    return spread(a, in_a) * spread(b, in_b)


# ---------------------------------------------------------------- tensordot
def tensordot(a: Tensor, b: Tensor, dims=2, out=None) -> Tensor:
    """Sum over pairs of dims: the last ``dims`` of a with the first of b, or two lists of dims.

    Raises:
        RuntimeError: if sizes of paired dims differ.
    """
    if isinstance(dims, Tensor):
        dims = dims.tolist() if dims.ndim else dims.item()
    if isinstance(dims, int):
        if dims < 0:
            raise RuntimeError(f"tensordot expects dims >= 0, but got dims={dims}")
        if dims > min(a.ndim, b.ndim):
            raise RuntimeError(
                f"tensordot expects dims < ndim_a or ndim_b, but got dims={dims}"
            )
        dims_a, dims_b = list(range(-dims, 0)), list(range(dims))
    else:
        dims_a, dims_b = ([d] if isinstance(d, int) else list(d) for d in dims)
    if len(dims_a) != len(dims_b):
        raise RuntimeError(
            f"both dimension lists should have same length, got {dims_a} and {dims_b}"
        )
    for p, q in zip(dims_a, dims_b):
        n, m = a._data.shape[wrap_dim(p, a.ndim)], b._data.shape[wrap_dim(q, b.ndim)]
        if n != m and 1 not in (n, m):
            raise RuntimeError(
                f"contracted dimensions need to match, but first has size {n} in dim {p} and "
                f"second has size {m} in dim {q}"
            )
    left, right = list(range(a.ndim)), list(range(a.ndim, a.ndim + b.ndim))
    for p, q in zip(dims_a, dims_b):
        right[wrap_dim(q, b.ndim)] = left[wrap_dim(p, a.ndim)]
    shared = {right[wrap_dim(q, b.ndim)] for q in dims_b}
    output = [c for c in (*left, *right) if c not in shared]
    result = _contract_all([a, b], [left, right], output)
    return result if out is None else write_out(result, out, "tensordot")


FUNCTIONS = {"einsum": einsum, "tensordot": tensordot}
