"""Calls that PyTorch refuses: the same type of exception, with the offending numbers in its words.

Each case is a line of code that names the library ``T``; it runs once with PyTorch and once with
disttorch. The numbers that PyTorch's message gives (sizes, dims, indices) must be in ours too.
"""

from __future__ import annotations

import re
import warnings

import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SETUP = """
F = T.nn.functional
a23, a34, a5, s = T.ones(2, 3), T.ones(3, 4), T.ones(5), T.tensor(2.0)
ints, flags = T.arange(6), T.tensor([True, False])
leaf = T.ones(3, requires_grad=True)
wide = T.arange(12.0).reshape(3, 4)
"""

CASES = {
    "shapes": """
        a23 + a5
        a23 * T.ones(2, 4)
        T.add(a23, T.ones(4, 3))
        a23 - T.ones(3, 3)
        a23.add_(T.ones(4, 2, 3))
        a23.copy_(T.ones(5))
        T.maximum(a23, a5)
        T.where(flags, a5, a5)
        a23 == a5
        T.ones(2, 3) @ T.ones(2, 3)
        T.mm(a23, a5)
        T.mm(a23, a23)
        T.mv(a23, a5)
        T.dot(a5, T.ones(4))
        T.dot(a23, a23)
        T.bmm(T.ones(2, 3, 4), T.ones(3, 4, 5))
        T.bmm(a23, a34)
        T.ones(2, 3, 4) @ T.ones(3, 4, 5)
        a5 @ T.ones(4)
        T.matmul(s, a5)
        T.outer(a23, a5)
        T.addmm(T.ones(7), a23, a34)
        F.linear(a23, T.ones(4, 5))
        F.linear(a23, T.ones(4, 3), T.ones(5))
        T.einsum('ij,jk->ik', a23, a23)
        T.cdist(a23, T.ones(2, 5))
        a23.reshape(4, 2)
        a23.view(-1, 4)
        a23.view(-1, -1)
        a23.reshape(-2, 3)
        a34.t().view(12)
        wide[:, 1:3].view(6)
        a23.expand(4, 3)
        a23.expand(3)
        a23.expand(2, -1, -1, 3)
        T.broadcast_to(a23, (3, 2))
        a23.unflatten(1, (2, 2))
        a23.repeat(2)
        a5.split([2, 2])
        a5.unfold(0, 7, 1)
        T.eye(-1)
        T.ones(2, -1)
        T.full((-2,), 1.0)
        a5.diff(n=-1)
        T.cat([a23, a34])
        T.cat([a23, a5])
        T.cat([])
        T.cat([s, s])
        T.stack([a23, a34])
        T.stack([])
        T.hstack([a23, T.ones(3, 3)])
        T.tensordot(a23, a34, dims=2)
        T.cross(a23, T.ones(2, 4), dim=1)
        T.ones(2, 3).t_().add_(T.ones(2, 3))
        T.ones(2, 3, 4).t()
        a23.masked_fill(T.ones(3, 3, dtype=T.bool), 0.0)
        T.masked_select(a23, T.ones(3, dtype=T.int64))
        F.pad(a5, (1,))
        T.bincount(T.ones(2, 2, dtype=T.int64))
        T.bincount(T.tensor([1, -1]))
        T.diag(T.ones(2, 2, 2))
        T.searchsorted(T.ones(2, 3), T.ones(3, 2))
        T.normal(T.ones(2), T.ones(3))
    """,
    "dims": """
        a23.sum(2)
        a23.mean(dim=-3)
        a23.sum((0, 0))
        a23.transpose(0, 2)
        a23.permute(0, 0)
        a23.permute(0)
        a23.permute(0, 3)
        a23.squeeze(4)
        a23.unsqueeze(4)
        a23.flatten(1, 0)
        a23.argmax(3)
        a23.max(dim=2)
        a23.softmax(5)
        F.log_softmax(a23, 2)
        a23.cumsum(2)
        a23.size(2)
        a23.stride(3)
        a23.unbind(2)
        a23.chunk(0)
        a23.chunk(2, 2)
        a23.split(-1)
        a23.select(2, 0)
        a23.narrow(0, 1, 2)
        a23.flip(2)
        a23.roll(1, 2)
        a23.sort(dim=2)
        a23.topk(4)
        a23.topk(1, dim=2)
        a23.kthvalue(5)
        T.cat([a23, a23], 2)
        T.stack([a23, a23], 4)
        a23.gather(2, T.zeros(2, 3, dtype=T.int64))
        a23.diagonal(0, 1, 1)
        a23.movedim(0, 2)
        a23.logsumexp(2)
        a23.norm(dim=2)
        a23.prod(2)
        a23.any(2)
        a23.amax((0, 2))
        a23.std(2)
        T.cumprod(a23, 2)
        T.fft.fft(a23, dim=2)
        T.tril(a5)
    """,
    "indices": """
        a5[5]
        a5[-6]
        a23[0, 3]
        a23[0, 0, 0]
        a23[2, :]
        s[0]
        a5['x']
        a5[1.5]
        a5[T.tensor([5])]
        a5[T.tensor([-6])]
        a23[:, T.tensor([3])]
        a5[T.tensor([1.0])]
        a5[T.tensor([True, False])]
        a23[T.ones(3, 3, dtype=T.bool)]
        a23[T.tensor([0, 1]), T.tensor([0, 1, 2])]
        a5[::-1]
        a5.__setitem__(7, 1.0)
        a5.__setitem__(slice(0, 2), T.ones(3))
        a23.__setitem__((0, slice(None)), T.ones(4))
        a5.__setitem__(T.tensor([0, 9]), 1.0)
        a5.index_select(0, T.tensor([5]))
        a5.index_select(0, T.tensor([-1]))
        T.zeros(5, 2).index_add(0, T.tensor([-1]), T.ones(1, 2))
        T.zeros(5, 2).index_add(0, T.tensor([5]), T.ones(1, 2))
        T.zeros(5, 2).index_copy(0, T.tensor([-1]), T.ones(1, 2))
        a5.index_select(0, T.ones(2, 2, dtype=T.int64))
        a5.index_select(0, T.tensor([1.0]))
        a23.gather(1, T.tensor([[3]]))
        a23.gather(1, T.tensor([0]))
        a23.gather(1, T.tensor([[0.0]]))
        T.zeros(5).scatter_(0, T.tensor([7]), 1.0)
        T.zeros(5).scatter_add(0, T.tensor([0]), T.ones(1, dtype=T.float64))
        T.zeros(5).scatter(0, T.tensor([0, 1]), T.ones(1))
        T.zeros(5).index_add(0, T.tensor([6]), T.ones(1))
        T.zeros(5).index_add(0, T.tensor([1, 2]), T.ones(3))
        T.zeros(5).index_fill(0, T.tensor([9]), 1.0)
        T.zeros(5).index_copy(0, T.tensor([1]), T.ones(2))
        T.take(a5, T.tensor([8]))
        F.embedding(T.tensor([4]), a34)
        F.embedding(T.tensor([-1]), a34)
        F.embedding(T.tensor([0.5]), a34)
        F.one_hot(T.tensor([4]), 3)
        F.one_hot(T.tensor([-1]), 3)
        F.one_hot(T.tensor([1.0]), 3)
        F.nll_loss(a23, T.tensor([0, 3]))
        F.cross_entropy(a23, T.tensor([0, 5]))
        F.cross_entropy(a23, T.tensor([0, 1, 2]))
        T.multinomial(T.ones(3), 4)
        T.multinomial(T.tensor([-1.0, 2.0]), 1)
        T.randint(3, 3, (2,))
        next(iter(s))
        len(s)
    """,
    "dtypes": """
        a23 @ T.ones(3, 2, dtype=T.float64)
        T.mm(a23, T.ones(3, 2, dtype=T.int64))
        T.dot(a5, T.ones(5, dtype=T.float64))
        F.linear(a23, T.ones(4, 3, dtype=T.float64))
        ints.add_(1.5)
        ints.div_(2)
        ints.mul_(T.ones(6))
        flags.add_(1)
        flags - flags
        1 - flags
        -flags
        flags & 1.5
        a5 & a5
        a5 | 1
        ~a5
        a5 << T.tensor([1.0])
        ints.mean()
        flags.mean()
        ints.std()
        ints.softmax(0)
        F.log_softmax(ints, 0)
        T.ones(2, dtype=T.complex64).max()
        T.ones(2, dtype=T.complex64) < 1
        T.ones(2, dtype=T.complex64).sort()
        T.ones(2, dtype=T.complex64).round()
        T.tensor(1j).item() < 1
        float(T.tensor(1j + 1))
        T.where(s, a5, a5)
        T.where(T.tensor(1), s, s)
        T.arange(3, requires_grad=True)
        T.tensor([1, 2], requires_grad=True)
        T.tensor([1, 2]).requires_grad_()
        T.bitwise_and(a5, a5)
        T.gcd(a5, a5)
        T.linalg.inv(T.ones(2, 2, dtype=T.int64))
        T.linalg.norm(ints)
        T.add(ints, ints, alpha=1.5)
        T.lerp(a5, a5.double(), 0.5)
        T.add(a5, 1, out=T.zeros(5, dtype=T.int64))
        T.rand(2, dtype=T.int64)
        T.randn(2, dtype=T.int32)
        T.empty(3, dtype=T.int64).normal_()
        T.complex(a5, ints)
        T.set_default_dtype(T.int64)
        T.finfo(T.int32)
        T.iinfo(T.float32)
        T.polar(ints, ints)
        T.promote_types(T.float32, 'float64')
        T.view_as_real(a5)
        T.bincount(a5)
        F.binary_cross_entropy(T.tensor([1.5]), T.tensor([1.0]))
        F.binary_cross_entropy(T.ones(2), T.ones(3))
    """,
    "arguments": """
        T.add(a5)
        T.add(a5, 'x')
        T.add(a5, None)
        a5 + 'x'
        a5 + None
        a5 + [1, 2]
        T.sin(3.0)
        T.sin('x')
        T.sin(a5, 3)
        T.sin()
        T.sum([1, 2])
        T.exp(a5, foo=1)
        a5.sum(foo=1)
        a5.sum('x')
        a5.sum(1.5)
        a5.reshape('x')
        a5.view(2.5, 2)
        a5.reshape()
        T.cat(a5)
        T.cat([a5, 3])
        T.cat([1, 2])
        T.stack(a5, foo=2)
        T.matmul(a5, 3)
        a5 @ 3
        T.zeros('x')
        T.zeros(2.5)
        T.zeros(2, dtype='float32')
        T.zeros(2, dtype=float, device='nowhere')
        T.ones(2, foo=1)
        T.tensor()
        T.tensor('x')
        T.tensor([[1, 2], [3]])
        T.tensor([1, 'x'])
        T.tensor([1, None])
        T.tensor({1: 2})
        T.from_numpy([1, 2])
        T.arange()
        T.arange(0, 5, 0)
        T.arange(5, 0, 1)
        T.linspace(0, 1)
        T.linspace(0, 1, -1)
        T.eye('x')
        T.full((2,), 'x')
        T.randperm(-1)
        T.randint(5)
        T.device('nowhere')
        T.device('cuda:x')
        T.device(-1)
        T.Generator(device=3)
        T.manual_seed('x')
        a5.to('nowhere')
        a5.type_as(3)
        T.softmax(a5)
        T.clamp(a5)
        T.clamp(a5, min='x')
        a5.transpose(0)
        a5.permute('x')
        a5.unsqueeze()
        a5.norm(p='x')
        T.where(flags)(1)
        T.div(a5, 2, rounding_mode='up')
        T.scatter_reduce(a5, 0, T.tensor([0]), T.ones(1), reduce='median')
        T.einsum('ij->ij->i', a23)
        T.einsum('ij', a23, a23)
        T.einsum('ijk', a23)
        T.einsum('i1', a23)
        T.meshgrid(a5, a23, indexing='ij')
        T.meshgrid(a5, a5, indexing='yx')
        T.nn.Parameter(3)
        F.dropout(a5, p=2.0)
        F.mse_loss(a5, a5, reduction='x')
        F.cross_entropy(a23, T.tensor([0, 1]), reduction='x')
        F.gelu(a5, approximate='x')
        T.bernoulli(T.tensor([1.5]))
        T.empty(3).bernoulli_(2.0)
        T.empty(3).uniform_(1, 0)
        T.empty(3).normal_(0, -1)
        T.quantile(a5, 1.5)
        T.histc(a5, bins=0)
        T.unique(a5, foo=1)
        T.nonexistent_function(a5)
        a5.nonexistent_method()
        setattr(a5, 'shape', (5,))
        T.equal(a5, 5)
        T.isin(1, 2)
        T.broadcast_shapes((2, 3), (4,))
        T.allclose(a5, a5.double())
        T.triu(a5, 'x')
        T.max(a5, 0, 1, 2)
        hash(a5) < 'x'
    """,
    "values": """
        bool(T.ones(2))
        bool(T.ones(0))
        if a5: pass
        a5.item()
        T.ones(0).item()
        float(T.ones(2))
        int(T.ones(2))
        range(T.tensor(2.0))
        [1, 2][T.tensor([0, 1])]
        T.ones(0).max()
        T.ones(0).min()
        T.ones(0).argmax()
        T.ones(2, 0).max(1)
        T.ones(2, 0).argmin(dim=1)
        T.ones(0).amax()
        T.ones(2, 0).amax(1)
        T.ones(0).quantile(0.5)
        T.ones(0).kthvalue(1)
        T.linalg.inv(T.zeros(2, 2))
        T.linalg.solve(T.zeros(2, 2), T.ones(2))
        T.linalg.cholesky(-T.eye(2))
        T.linalg.inv(T.ones(2, 3))
        T.linalg.det(T.ones(2, 3))
        T.linalg.eigh(T.ones(3))
        T.linalg.svd(T.ones(3))
        T.linalg.solve(T.eye(2), T.ones(3))
        T.linalg.norm(a23, ord='x')
        T.cholesky_solve(T.ones(2, 1), T.ones(3, 3))
        T.matrix_power(T.ones(2, 3), 2)
        T.trace(a5)
        ints // 0
        ints % 0
        T.arange(3) ** -1
        T.tensor(2**70)
        T.tensor([300], dtype=T.uint8)
        T.full((2,), 1000, dtype=T.int8)
        T.as_strided(a5, (3, 3), (3, 1))
        leaf.numpy()
        (leaf * 2).numpy()
        T.conj(T.ones(2, dtype=T.complex64)).numpy(foo=1)
        iter(s)
        T.ones(2, 2).tolist(3)
        T.tensor(1.0).new_zeros(-1)
    """,
    "autograd": """
        a5.sum().backward()
        leaf.backward()
        (leaf * 2).backward()
        (leaf * 2).backward(T.ones(2))
        (leaf * 2).backward(3.0)
        y = leaf.exp().sum(); y.backward(); y.backward()
        y = (leaf * leaf).sum(); T.autograd.grad(y, leaf); T.autograd.grad(y, leaf)
        leaf.add_(1)
        leaf.mul_(2.0)
        leaf[0] = 1
        leaf.zero_()
        leaf.copy_(T.zeros(3))
        leaf.view(3).add_(1)
        y = leaf.exp(); y.add_(1); y.sum().backward()
        y = leaf * 1; z = y * y; y.mul_(2); z.sum().backward()
        y = leaf * 1; z = y.sin(); y[0] = 1; z.sum().backward()
        w = T.ones(3); z = leaf * w; w.add_(1); z.sum().backward()
        y = leaf * 2; a, b, c = y.unbind(); a.add_(1)
        y = leaf.expand(2, 3); y.add_(1)
        y = T.ones(1).expand(3); y.add_(1)
        T.autograd.grad(leaf.sum(), T.ones(3, requires_grad=True))
        T.autograd.grad(leaf.sum(), a5)
        T.autograd.grad(a5.sum(), leaf)
        T.autograd.grad(leaf * 2, leaf)
        T.autograd.grad(leaf.sum(), leaf, T.ones(2))
        T.autograd.grad(leaf.sum(), 'x')
        T.autograd.grad(leaf.sum(), [])
        T.autograd.backward([leaf.sum(), leaf.sum()], [T.ones(())])
        leaf.grad = T.ones(2)
        leaf.grad = T.ones(3, dtype=T.float64)
        leaf.grad = 3
        leaf.data = 3
        (leaf * 2).requires_grad = False
        (leaf * 2).requires_grad_(False)
        a5.register_hook(lambda g: g)
        leaf.register_hook(3).x
        a5.retain_grad()
        h = leaf.register_hook(lambda g: 3); leaf.sum().backward()
        leaf.register_hook(lambda g: T.ones(7)); leaf.sum().backward()
        (leaf * 2).register_post_accumulate_grad_hook(lambda p: None)
        T.add(leaf, 1, out=T.empty(3))
        z = T.inference_mode()(lambda: T.ones(3) * 1)(); z.requires_grad_()
        z = T.inference_mode()(lambda: T.ones(3) * 1)(); (leaf * z).sum().backward()
        import copy; copy.deepcopy(leaf * 2)
        T.nn.Parameter(T.tensor([1, 2]))
        (leaf * 2).detach_().backward()
        leaf.sum().backward(T.ones(3))
        y = leaf * 2; y.sum().backward(inputs=[])
        T.autograd.functional.jacobian(lambda x: 3, leaf)
        T.autograd.functional.hessian(lambda x: x * 2, leaf)
        T.set_grad_enabled('x')(3)
    """,
    "functions": """
        Twice()(leaf)
        TwoGrads.apply(leaf).sum().backward()
        WrongShape.apply(leaf).sum().backward()
        NotTensor.apply(leaf).sum().backward()
        Raises.apply(leaf).sum().backward()
        SavesNumber.apply(leaf)
        NoBackward.apply(leaf).sum().backward()
        Missing.apply(leaf)
        g, = T.autograd.grad(Once.apply(leaf).sum(), leaf, create_graph=True); g.sum().backward()
        T.nn.Linear(2, 3)(T.ones(2, 5))
        T.nn.Linear(2, 3)('x')
        T.nn.Linear(2)
        T.nn.Module()(1)
        T.nn.Linear(2, 3).load_state_dict({})
        T.nn.Linear(2, 3).load_state_dict({'weight': T.ones(1, 1), 'bias': T.ones(3)})
        T.nn.Linear(2, 3).nope
        T.nn.Sequential(3)
        T.nn.Module().register_buffer('a.b', T.ones(1))
        T.nn.Module().register_parameter('w', T.ones(1))
        m = T.nn.Module(); m.register_parameter('w', leaf * 2)
        T.nn.LayerNorm(4)(T.ones(2, 3))
        T.nn.Embedding(3, 2, padding_idx=5)
        T.nn.Dropout(1.5)
        T.optim.SGD([], lr=0.1)
        T.optim.SGD([leaf], lr=-1.0)
        T.optim.SGD([leaf * 2], lr=0.1)
        T.optim.SGD([3], lr=0.1)
        T.optim.SGD(leaf, lr=0.1)
        T.optim.Adam([leaf], betas=(1.5, 0.9))
        T.nn.utils.clip_grad_norm_([leaf], 'x')
        F.scaled_dot_product_attention(T.ones(2, 3, 4), T.ones(2, 3, 5), T.ones(2, 3, 4))
        F.layer_norm(a23, (4,))
        F.layer_norm(a23, (3,), T.ones(4))
        F.nll_loss(T.ones(2, 3), T.tensor([0, 1]), weight=T.ones(2))
        F.cosine_similarity(a23, T.ones(2, 5))
    """,
}

FUNCTIONS = """
class Base(T.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, g): return g
class Twice(Base): pass
class TwoGrads(Base):
    @staticmethod
    def backward(ctx, g): return g, g
class WrongShape(Base):
    @staticmethod
    def backward(ctx, g): return T.ones(2, 7)
class NotTensor(Base):
    @staticmethod
    def backward(ctx, g): return 3
class Raises(Base):
    @staticmethod
    def backward(ctx, g): raise KeyError('mine')
class SavesNumber(Base):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(3)
        return x * 2
class NoBackward(T.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
class Missing(T.autograd.Function): pass
class Once(Base):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()
    @staticmethod
    @T.autograd.function.once_differentiable
    def backward(ctx, g): return g * ctx.saved_tensors[0].exp()
"""

# Where PyTorch's numbers are about its own inner steps, ours are about the call
OTHER_NUMBERS = {
    "a23[:, T.tensor([3])]",  # PyTorch moves the indexed dim to the front first
    "T.addmm(T.ones(7), a23, a34)",
    "T.einsum('ij->ij->i', a23)",
    "T.cholesky_solve(T.ones(2, 1), T.ones(3, 3))",
    "T.broadcast_shapes((2, 3), (4,))",
}


def cases():
    for group, text in CASES.items():
        for line in text.strip().splitlines():
            yield pytest.param(group, line.strip(), id=line.strip())


def run(library, group, code):
    """The exception that ``code`` raises, or None."""
    scope = {"T": library}
    exec(SETUP + (FUNCTIONS if group == "functions" else ""), scope)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, scope)
    except Exception as error:
        return error
    return None


def builtin_type(error):
    """The exception's type, or of PyTorch's own ones the built-in that it extends."""
    return next(c for c in type(error).__mro__ if c.__module__ == "builtins")


def numbers(error) -> set:
    """The numbers in the first sentence, without positions and C++ source lines."""
    text = re.split(r"\n|Exception raised|Hint:|https?:", str(error))[0]
    text = re.sub(r"position \d+|argument #\d|[Ff]loat\d*|[Ii]nt\d+|complex\d+|0x\w+", "", text)
    return set(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text))


@pytest.mark.parametrize("group, code", list(cases()))
def test_refused(group, code):
    theirs, ours = run(torch, group, code), run(dt, group, code)
    assert theirs is not None, "PyTorch accepts this"
    assert ours is not None, f"PyTorch refuses: {theirs!r}"
    assert builtin_type(ours) is builtin_type(theirs), f"{ours!r}\nPyTorch: {theirs!r}"
    assert str(ours).strip()
    if code in OTHER_NUMBERS:
        return
    missing = numbers(theirs) - set(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", str(ours)))
    assert not missing, f"{missing} not in: {ours}\nPyTorch: {theirs}"
