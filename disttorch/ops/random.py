"""Random numbers: generators per device, the factories and in-place fills that draw from them."""

from __future__ import annotations

import contextlib
import math
import secrets

from ..autograd.graph import share_version
from ..autograd.modes import state
from ..backend import devices, dtypes, namespace_for, namespace_of
from ..tensor import Tensor, wrap
from .core import write_out
from .creation import _finish, _place
from .elementwise_core import broadcast_error
from .views import sizes


class Generator:
    """A stream of random numbers on one device.

    Args:
        device: where it makes numbers; default the CPU.
    """

    def __init__(self, device="cpu"):
        self.device = devices.device(device)
        self._source = namespace_for(self.device).make_generator(67280421310721)

    @property
    def source(self):
        """The backend's stream, for drawing.

        Raises:
            RuntimeError: inside a vmap that forbids random numbers.
        """
        if state.randomness == "error":
            raise RuntimeError(
                "vmap: called random operation while in randomness error mode. Please either use "
                "the 'same' or 'different' randomness flags on vmap or perform the randomness "
                "operation out of vmap"
            )
        return self._source

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream that belongs to ``seed``; returns self."""
        self._source.manual_seed(_checked_seed(seed))
        return self

    def seed(self) -> int:
        """Start a stream from the system's entropy; returns its seed."""
        return self._source.seed()

    def initial_seed(self) -> int:
        """The seed the stream started from."""
        return self._source.initial_seed

    def get_state(self) -> Tensor:
        """The state as a uint8 tensor on the CPU."""
        return wrap(self._source.get_state())

    def set_state(self, state: Tensor) -> None:
        """Continue from a state; raises RuntimeError if it is none."""
        if not isinstance(state, Tensor):
            raise TypeError(f"expected a torch.ByteTensor, but got {type(state).__name__}")
        self._source.set_state(namespace_of(state._data).to_host(state._data))

    def __reduce__(self):
        return _rebuild_generator, (str(self.device), self.get_state())

    def clone_state(self) -> Generator:
        """Another generator in the same state."""
        other = Generator(self.device)
        other.set_state(self.get_state())
        return other


def _rebuild_generator(device, rng_state):
    made = Generator(device)
    made.set_state(rng_state)
    return made


def _checked_seed(seed) -> int:
    seed = int(seed)
    if not -(1 << 63) <= seed < 1 << 64:
        raise RuntimeError(f"Overflow when unpacking long: seed {seed} needs more than 64 bits")
    return seed


_defaults: dict = {}
_seed: list = []


def default_generator(device: devices.device) -> Generator:
    """The generator that random functions on a device use when none is given.

    Inside ``own_stream`` it is one of the thread's own.
    """
    generators, seeds = state.generators or (_defaults, _seed)
    key = (device.type, device.index or 0)
    made = generators.get(key)
    if made is None:
        made = generators[key] = Generator(device)
        made.manual_seed(seeds[0] if seeds else secrets.randbits(63))
    return made


@contextlib.contextmanager
def own_stream(seed: int):
    """Inside, this thread has default generators of its own, which start from ``seed``."""
    before = state.generators
    state.generators = ({}, [_checked_seed(seed)])
    try:
        yield
    finally:
        state.generators = before


def manual_seed(seed: int) -> Generator:
    """Seed the default generators of all devices; returns the CPU's."""
    seed = _checked_seed(seed)
    generators, seeds = state.generators or (_defaults, _seed)
    seeds[:] = [seed]
    for made in generators.values():
        made.manual_seed(seed)
    return default_generator(devices.cpu)


def seed() -> int:
    """Seed all default generators from the system's entropy; returns the seed."""
    fresh = secrets.randbits(63)
    manual_seed(fresh)
    return fresh


def initial_seed() -> int:
    """The seed of the CPU's default generator."""
    return default_generator(devices.cpu).initial_seed()


def get_rng_state() -> Tensor:
    """The state of the CPU's default generator, a uint8 tensor."""
    return default_generator(devices.cpu).get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Restore what ``get_rng_state`` returned."""
    default_generator(devices.cpu).set_state(new_state)


# ---------------------------------------------------------------- drawing arrays
def _source(generator, device):
    if generator is None:
        return default_generator(device).source
    if generator.device.type != device.type:
        raise RuntimeError(
            f"Expected a '{device.type}' device type for generator but found "
            f"'{generator.device.type}'"
        )
    return generator.source


def _draw(kind, source, shape, dtype):
    """Standard uniform or normal numbers of any float or complex type."""
    if dtype.kind == "c":
        part = dtypes.FROM_NP[dtype].to_real().np
        scale = math.sqrt(0.5) if kind == "standard_normal" else 1.0
        draw = getattr(source, kind)
        return ((draw(shape, part) + 1j * draw(shape, part)) * scale).astype(dtype)
    return getattr(source, kind)(shape, dtype)


def _factory(name, kind):
    def make(*size, generator=None, out=None, dtype=None, layout=None, device=None,
             requires_grad=False, pin_memory=False, names=None, **options) -> Tensor:
        if "size" in options:
            size = (options.pop("size"),)
        if options:
            raise TypeError(f"{name}() got an unexpected keyword argument '{next(iter(options))}'")
        if dtype is None:
            dtype = dtypes.get_default_dtype() if out is None else out.dtype
        if dtype.category < dtypes.FLOAT:
            raise NotImplementedError(f'"{name}" not implemented for {dtype!r}')
        if device is None and generator is not None:
            device = generator.device
        place = _place(device)
        array = _draw(kind, _source(generator, place), sizes(size), dtype.np)
        if out is not None:
            return write_out(wrap(array), out, name)
        return _finish(wrap(array), requires_grad)

    make.__name__ = make.__qualname__ = name
    return make


rand = _factory("rand", "random")
rand.__doc__ = "Uniform numbers on [0, 1)."
randn = _factory("randn", "standard_normal")
randn.__doc__ = "Normal numbers of mean 0 and variance 1."


def _like(name, maker):
    def make(input, *, dtype=None, layout=None, device=None, requires_grad=False,
             memory_format=None, generator=None) -> Tensor:
        return maker(input._data.shape, dtype=dtype or input.dtype,
                     device=input.device if device is None else device,
                     requires_grad=requires_grad, generator=generator)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"Like ``{name[:-5]}``, in the input's shape, dtype and device."
    return make


rand_like, randn_like = _like("rand_like", rand), _like("randn_like", randn)


def randint(low=None, high=None, size=None, *, generator=None, out=None, dtype=None, layout=None,
            device=None, requires_grad=False, pin_memory=False) -> Tensor:
    """Integers uniform on [low, high); ``randint(high, size)`` starts at 0."""
    if size is None:
        low, high, size = 0, low, high
    low = 0 if low is None else low
    if high is None or size is None:
        raise TypeError("randint() needs `high` and `size`: randint(high, size) or "
                        "randint(low, high, size)")
    low, high = (v.item() if isinstance(v, Tensor) else v for v in (low, high))
    if dtype is None:
        dtype = dtypes.int64 if out is None else out.dtype
    _check_range(low, high, dtype)
    if device is None and generator is not None:
        device = generator.device
    place = _place(device)
    array = _source(generator, place).integers(int(low), int(high), sizes((size,)))
    array = array.astype(dtype.np, copy=False)
    if out is not None:
        return write_out(wrap(array), out, "randint")
    return _finish(wrap(array), requires_grad)


_C_NAMES = {"uint8": "unsigned char", "int8": "signed char", "int16": "short", "int32": "int",
            "int64": "int64_t", "bool": "bool"}


def _check_range(low, high, dtype) -> None:
    """RuntimeErrors for a range that is empty or that the dtype cannot hold."""
    if low >= high:
        raise RuntimeError(
            f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    if dtype.category > dtypes.INT:
        return
    least, most = (0, 1) if dtype is dtypes.bool else (
        dtypes.iinfo(dtype).min, dtypes.iinfo(dtype).max)
    for what, value in (("from", low), ("to - 1", high - 1)):
        if not least <= value <= most:
            kind = _C_NAMES[dtype.name]
            raise RuntimeError(f"{what} is out of bounds for {kind} (it is {value})")


def randint_like(input, low=None, high=None, *, dtype=None, layout=None, device=None,
                 requires_grad=False, memory_format=None) -> Tensor:
    """Integers in the input's shape and dtype."""
    if low is None:
        low = 0
    if high is None:
        low, high = 0, low
    return randint(low, high, tuple(input._data.shape), dtype=dtype or input.dtype,
                   device=input.device if device is None else device,
                   requires_grad=requires_grad)


def randperm(n, *, generator=None, out=None, dtype=None, layout=None, device=None,
             requires_grad=False) -> Tensor:
    """A random order of 0..n−1."""
    if n < 0:
        raise RuntimeError(f"n must be non-negative, got {n}")
    place = _place(device)
    array = _source(generator, place).permutation(int(n))
    array = array.astype((dtype or dtypes.int64).np, copy=False)
    if out is not None:
        return write_out(wrap(array), out, "randperm")
    return _finish(wrap(array), requires_grad)


def bernoulli(input, p=None, *, generator=None, out=None) -> Tensor:
    """1 with the probability that each element gives (or with ``p``), else 0."""
    source = _source(generator, input.device)
    prob = input._data if p is None else p
    if p is None:
        xp = namespace_of(prob)
        if prob.size and not bool(xp.all((prob >= 0) & (prob <= 1))):
            raise RuntimeError("Expected p_in >= 0 && p_in <= 1 to be true, but got false.")
    draw = source.random(input._data.shape, dtypes.float32.np)
    result = wrap((draw < prob).astype(input._data.dtype))
    return result if out is None else write_out(result, out, "bernoulli")


def multinomial(input, num_samples, replacement=False, *, generator=None, out=None) -> Tensor:
    """Indices drawn with the (unnormalised) weights of each row.

    Args:
        input: weights, C or N×C, not negative, with a positive sum.
        num_samples: how many per row; without replacement at most the number of positive weights.
    """
    if input.ndim not in (1, 2):
        raise RuntimeError(f"prob_dist must be 1 or 2 dim, got {input.ndim}")
    if num_samples <= 0:
        raise RuntimeError("cannot sample n_sample <= 0 samples")
    xp, source = namespace_of(input._data), _source(generator, input.device)
    weights = input._data.astype(dtypes.float64.np).reshape(-1, input._data.shape[-1])
    if not bool(xp.all(xp.isfinite(weights))) or bool((weights < 0).any()):
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
    totals = weights.sum(axis=1, keepdims=True)
    if bool((totals <= 0).any()):
        raise RuntimeError("invalid multinomial distribution (sum of probabilities <= 0)")
    if replacement:
        edges = xp.cumsum(weights, axis=1)
        at = source.random((weights.shape[0], num_samples), dtypes.float64.np) * edges[:, -1:]
        rows = [xp.searchsorted(e, a, side="right") for e, a in zip(edges, at)]
        picked = xp.minimum(xp.stack(rows), weights.shape[1] - 1)
    else:
        if num_samples > weights.shape[1]:
            raise RuntimeError(
                "cannot sample n_sample > prob_dist.size(-1) samples without replacement"
            )
        if int((weights > 0).sum(axis=1).min()) < num_samples:
            raise RuntimeError("invalid multinomial distribution (with replacement=False, not "
                               "enough non-negative category to sample)")
        # the smallest of exponential variables with these rates come in the right order
        race = source.standard_exponential(weights.shape, dtypes.float64.np) / weights
        picked = xp.argsort(race, axis=1)[:, :num_samples]
    shape = (num_samples,) if input.ndim == 1 else (weights.shape[0], num_samples)
    result = wrap(picked.astype(dtypes.int64.np).reshape(shape))
    return result if out is None else write_out(result, out, "multinomial")


def _check_std(std) -> None:
    if isinstance(std, Tensor):
        if bool((std._data < 0).any()):
            raise RuntimeError("normal expects all elements of std >= 0.0")
    elif std < 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}")


def poisson(input, generator=None) -> Tensor:
    """Poisson numbers with the rates in ``input``, in its dtype."""
    rate = input._data.astype(dtypes.float64.np)
    if bool((rate < 0).any()):
        raise RuntimeError("invalid Poisson rate, expected rate to be non-negative")
    draw = _source(generator, input.device).poisson(rate)
    return wrap(namespace_of(input._data).asarray(draw, dtype=input._data.dtype))


def binomial(count, prob, generator=None) -> Tensor:
    """How many of ``count`` trials (a tensor of whole floats) succeed, each with ``prob``."""
    xp = namespace_of(count._data)
    n, p = xp.broadcast_arrays(count._data.astype(dtypes.float64.np),
                               prob._data.astype(dtypes.float64.np))
    if bool((n < 0).any()):
        raise RuntimeError("binomial expects counts >= 0")
    if bool(((p < 0) | (p > 1)).any()):
        raise RuntimeError("binomial expects probabilities between 0 and 1")
    draw = _source(generator, count.device).binomial(n.astype(dtypes.int64.np), p)
    return wrap(xp.asarray(draw, dtype=count._data.dtype))


def normal(mean=0.0, std=1.0, size=None, *, generator=None, out=None, dtype=None, layout=None,
           device=None, requires_grad=False, pin_memory=False) -> Tensor:
    """Normal numbers with the given means and standard deviations (numbers or tensors)."""
    _check_std(std)
    if size is None and out is not None and not any(isinstance(t, Tensor) for t in (mean, std)):
        size = tuple(out._data.shape)
    if size is None:
        like = next((t for t in (mean, std) if isinstance(t, Tensor)), None)
        if like is None:
            raise TypeError("normal() needs `size` when mean and std are numbers")
        given = [t._data for t in (mean, std) if isinstance(t, Tensor)]
        try:
            shape = namespace_of(like._data).broadcast_shapes(*(a.shape for a in given))
        except ValueError as error:
            raise broadcast_error(given, error) from None
        device, dtype = like.device, dtype or like.dtype
    else:
        shape = sizes((size,))
    draw = randn(shape, generator=generator, dtype=dtype, device=device)
    raw = [t._data if isinstance(t, Tensor) else t for t in (mean, std)]
    result = wrap((draw._data * raw[1] + raw[0]).astype(draw._data.dtype))
    return _finish(result, requires_grad) if out is None else write_out(result, out, "normal")


# ---------------------------------------------------------------- in-place fills
def _fill(t: Tensor, array) -> Tensor:
    from .inplace import apply_inplace, check_inplace, copy

    if state.enabled and t.requires_grad:  # the old values get no gradient: recorded as a copy
        return apply_inplace(copy, (t, wrap(array.astype(t._data.dtype, copy=False))))
    check_inplace(t, "fill_")
    t._data[...] = array.astype(t._data.dtype, copy=False)
    share_version(t)[0] += 1
    return t


def uniform_(input: Tensor, a=0.0, b=1.0, *, generator=None, **named) -> Tensor:
    """Fill with uniform numbers on [a, b), which PyTorch calls ``from`` and ``to``."""
    a, b = _named_range(named, a, b, "uniform_")
    _check_float(input, "uniform_")
    if a > b:
        raise RuntimeError(
            f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}"
        )
    draw = _draw("random", _source(generator, input.device), input._data.shape, input._data.dtype)
    return _fill(input, draw * (b - a) + a)


def normal_(input: Tensor, mean=0.0, std=1.0, *, generator=None) -> Tensor:
    """Fill with normal numbers."""
    _check_std(std)
    _check_float(input, "normal_")
    draw = _draw("standard_normal", _source(generator, input.device), input._data.shape,
                 input._data.dtype)
    return _fill(input, draw * std + mean)


def exponential_(input: Tensor, lambd=1.0, *, generator=None) -> Tensor:
    """Fill with exponential numbers of rate ``lambd``."""
    if lambd <= 0:
        raise RuntimeError(f"exponential_ expects lambda > 0.0, but found lambda={lambd}")
    _check_float(input, "exponential_")
    source = _source(generator, input.device)
    draw = source.standard_exponential(input._data.shape, input._data.dtype)
    return _fill(input, draw / lambd)


def bernoulli_(input: Tensor, p=0.5, *, generator=None) -> Tensor:
    """Fill with 1 with probability ``p`` (a number or a tensor), else 0."""
    prob = p._data if isinstance(p, Tensor) else p
    if not isinstance(p, Tensor) and not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p:g}")
    draw = _source(generator, input.device).random(input._data.shape, dtypes.float32.np)
    return _fill(input, draw < prob)


def cauchy_(input: Tensor, median=0.0, sigma=1.0, *, generator=None) -> Tensor:
    """Fill with Cauchy numbers around ``median``."""
    if sigma <= 0:
        raise RuntimeError(f"cauchy_ expects sigma > 0.0, but found sigma={sigma}")
    _check_float(input, "cauchy_")
    u = _uniform(input, generator)
    return _fill(input, median + sigma * namespace_of(u).tan(math.pi * (u - 0.5)))


def log_normal_(input: Tensor, mean=1.0, std=2.0, *, generator=None) -> Tensor:
    """Fill with numbers whose logarithm is normal with this mean and deviation."""
    if std <= 0:
        raise RuntimeError(f"log_normal_ expects std > 0.0, but found std={std}")
    _check_float(input, "log_normal_")
    draw = _source(generator, input.device).standard_normal(input._data.shape, dtypes.float64.np)
    return _fill(input, namespace_of(draw).exp(draw * std + mean))


def geometric_(input: Tensor, p, *, generator=None) -> Tensor:
    """Fill with the number of trials up to the first success (1, 2, ...)."""
    if not 0 < p < 1:
        raise RuntimeError(f"geometric_ expects p to be in (0, 1), but got p={p}")
    u = 1 - _uniform(input, generator)  # on (0, 1]
    xp = namespace_of(u)
    return _fill(input, xp.maximum(xp.ceil(xp.log(u) / math.log1p(-p)), 1))


def _uniform(input, generator):
    return _source(generator, input.device).random(input._data.shape, dtypes.float64.np)


def _check_float(input, name) -> None:
    if input.dtype.category < dtypes.FLOAT:
        raise NotImplementedError(f'"{name}" not implemented for {input.dtype!r}')


def _named_range(named, low, high, name):
    """The range under PyTorch's names: ``from`` is a word of Python, no parameter's name."""
    low, high = named.pop("from", low), named.pop("to", high)
    if named:
        raise TypeError(f"{name}() got an unexpected keyword argument '{next(iter(named))}'")
    return low, high


def random_(input: Tensor, low=None, high=None, *, generator=None, **named) -> Tensor:
    """Fill with integers on [low, high); ``random_(high)`` starts at 0.

    Without a range: all that an integer dtype holds from 0 on, or up to where a float dtype still
    counts in ones.
    """
    low, high = _named_range(named, low, high, "random_")
    if high is None and low is not None:
        low, high = 0, low
    d, low = input.dtype, 0 if low is None else low
    if high is None:
        if d.category <= dtypes.INT:
            high = 2 if d is dtypes.bool else dtypes.iinfo(d).max
        else:
            high = 1 << int(1 - math.log2(dtypes.finfo(d).eps))
    _check_range(low, high, d)
    draw = _source(generator, input.device).integers(int(low), int(high), input._data.shape)
    return _fill(input, draw)


FUNCTIONS = {
    f.__name__: f
    for f in (rand, randn, rand_like, randn_like, randint, randint_like, randperm, bernoulli,
              multinomial, normal, poisson, binomial, manual_seed, seed, initial_seed,
              get_rng_state, set_rng_state)
}
METHODS: dict = {f.__name__: f for f in (uniform_, normal_, exponential_, bernoulli_, random_, cauchy_,
                                   log_normal_, geometric_)}
METHODS |= {"bernoulli": bernoulli, "multinomial": multinomial}
