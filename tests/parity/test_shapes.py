"""Rearranging, picking, sorting and finding against PyTorch: values, dtypes, gradients, errors."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

# Expressions of t (either library) and x, y: 3×4 float64; v: 6; c: 2×3×4; i: int64 3×4; b: bool 3×4
CALLS = """
t.flip(x, (0,))
x.flip(0, 1)
x.flip([-1])
t.fliplr(x) + t.flipud(x)
t.roll(x, 2)
x.roll((1, -1), (0, 1))
t.rot90(x), t.rot90(x, 2), t.rot90(x, -1, (1, 0)), t.rot90(c, 3, [0, 2])
x.tril(-1) + x.triu(1), t.tril(c, 1)
t.diag(v), t.diag(v, 2), x.diag(), x.diag(-1)
t.diag_embed(x), t.diag_embed(x, 1, 0, 2), t.diagflat(x, -1)
t.diagonal(c, 1, 0, 2), c.diagonal(dim1=-1, dim2=-2), t.linalg.diagonal(c)
t.trace(x)
t.tile(v, (2, 2)), x.tile(2), x.tile((2, 1, 1)), x.tile(2, 1)
x.repeat(2, 1), x.repeat((2, 1, 2)), v.repeat(3)
x.repeat_interleave(2), t.repeat_interleave(x, 3, 1), x.repeat_interleave(t.tensor([1, 0, 2]), 0)
t.repeat_interleave(t.tensor([2, 0, 3]))
t.meshgrid(v, v[:2], indexing='ij')
t.meshgrid([v, v[:2], v[:3]], indexing='xy')
t.cartesian_prod(v[:2], v[:3])
t.combinations(v, 2), t.combinations(v[:3], 3, with_replacement=True)
t.block_diag(x, v[0], v)
t.vander(v.detach()), t.vander(v.detach(), 3, True), t.linalg.vander(x, N=3)
t.tril_indices(3, 4, 1), t.triu_indices(4, 3, -1)
t.broadcast_to(v, (2, 6)), v.expand(3, -1), x.expand_as(c), t.broadcast_tensors(x, v[:4])
t.hstack([x, x]), t.hstack([v, v]), t.vstack([v, v]), t.dstack([x, x]), t.column_stack([v, v])
t.row_stack([v, v]), t.atleast_1d(v[0]), t.atleast_2d(v), t.atleast_3d(v), t.atleast_3d(x)
t.atleast_2d(v[0], v), t.atleast_2d([v, v])
t.tensor_split(v, 4), t.tensor_split(x, (1, 3), 1), x.tensor_split(5, -1)
t.hsplit(x, 2), t.vsplit(x, [1]), t.dsplit(c, 2), t.hsplit(v, 3)
t.kron(x, v[:2]), t.kron(v, v)
t.cat([x, x], 1), t.concat((v, v)), t.concatenate([x, y]), t.stack([x, y], -1)
v.unfold(0, 3, 2), x.unfold(1, 2, 1), x.unfold(-1, 4, 1), c.unfold(1, 2, 1).unfold(2, 2, 2)
x.as_strided((2, 2), (1, 2)), x.as_strided((3, 3), (1, 1), 2), t.as_strided(c[1], (2,), (3,), 1)
x.t().as_strided((2, 3), (2, 1)), x[1:].as_strided((2, 2), (4, 1), 0)
c.unflatten(2, (2, 2)), c.unflatten(-1, (-1, 2)), c.flatten(1), c.flatten(0, 1), t.ravel(c)
c.movedim(0, 2), t.movedim(c, (0, 1), (2, 0)), c.moveaxis(-1, 0), c.swapaxes(0, 1)
c.swapdims(1, 2)
c.mT, x.T, x.H, c.mH, c.adjoint(), t.t(x), t.t(v)
x.narrow(1, 1, 2), t.narrow(x, 0, -2, 1), x.select(1, -1), c.squeeze(), x[:1].squeeze(0)
x.unsqueeze(-1)
x.split(2, 1), x.split([1, 3], dim=1), t.split(x, 2), x.chunk(3, 1), t.chunk(v, 4), c.unbind(1)
x.permute(1, 0), t.permute(c, (2, 0, 1)), x.reshape(-1), x.reshape((2, 6)), x.view(4, 3)
x.view(-1, 2)
x.view_as(x.t().contiguous()), x.reshape_as(x), c.transpose(0, -1)
t.scatter(x, 1, i[:, :2] % 4, 5.0), x.detach().scatter(0, i % 3, y.detach(), reduce='add')
x.scatter_add(1, i % 4, y), x.scatter(1, i[:, :1] % 4, y[:, :1])
x.scatter_reduce(0, i % 3, y, 'mean'), x.scatter_reduce(1, i % 4, y, 'amax', include_self=False)
x.index_add(0, i[0, :2] % 3, y[:2], alpha=2), x.index_copy(1, t.tensor([2, 0]), y[:, :2])
x.index_fill(0, t.tensor([1]), 3.0), x.index_fill(1, t.tensor(2), v[0])
x.index_reduce(0, t.tensor([0, 0]), y[:2], 'amin')
x.index_reduce(1, t.tensor([1, 3]), y[:, :2], 'mean')
x.take(i % 12), t.take(x, t.tensor([-1, 3])), t.take_along_dim(x, i[:1] % 3, 0)
t.take_along_dim(x, i % 12)
x.put(t.tensor([1, 5]), v[:2]), x.put(t.tensor([1, 1]), v[:2], accumulate=True)
x.masked_scatter(b, v.repeat(2)), x.masked_select(b), t.masked_select(x, b[0])
x.masked_fill(b, 9.0)
t.select_scatter(x, v[:4], 0, 1), t.slice_scatter(x, y[:, :2], 1, 0, 4, 2)
t.diagonal_scatter(x, v[:3]), t.as_strided_scatter(x.detach(), v[:2], (2,), (3,), 1)
t.gather(x, 1, i % 4), x.gather(0, i[:1] % 3), x.index_select(1, t.tensor([0, 0, 3]))
t.sort(x), x.sort(0, descending=True), t.sort(x, stable=True, dim=1), t.argsort(x, 0), t.msort(x)
t.topk(v, 3), x.topk(2, 0, largest=False), x.topk(1)
t.unique(i), t.unique(i, return_inverse=True, return_counts=True)
i.unique(dim=1, return_inverse=True)
t.unique_consecutive(i % 3, return_inverse=True, return_counts=True), i.unique_consecutive(dim=0)
t.searchsorted(t.sort(v)[0], x), t.searchsorted(t.sort(c)[0], c, right=True)
t.searchsorted(v.sort()[0], 0.5)
t.searchsorted(v, x, sorter=v.argsort())
t.searchsorted(t.sort(v)[0], v, side='right', out_int32=True)
t.bucketize(x, t.sort(v)[0]), t.bucketize(i, t.tensor([1, 4]), right=True)
t.isin(i, t.tensor([1, 4])), t.isin(i, 4, invert=True), t.isin(3, i)
t.nonzero(b), b.nonzero(as_tuple=True), t.argwhere(b), t.where(b)
t.unravel_index(t.tensor([1, 5]), (3, 4)), t.cdist(x, y), t.cdist(x, y, p=1.0)
t.cdist(c, c[:, :1], p=3.0)
t.nn.functional.pdist(x) if hasattr(t.nn.functional, 'pdist') else t.pdist(x), t.dist(x, y)
t.dist(x, y, 1)
t.norm(x), t.norm(x, 1, 1), x.norm(p=3, dim=0, keepdim=True), t.norm(x, float('inf'))
t.norm(x, 'nuc')
t.linalg.norm(x), t.linalg.norm(x, 2), t.linalg.norm(v, 1), t.linalg.norm(c, dim=(0, 2))
t.linalg.norm(x, ord=1, dim=1)
t.tensordot(x, y.t(), 1), t.tensordot(c, c, ([0, 1], [0, 1])), t.inner(x, y), t.vdot(v, v)
t.outer(v, v)
t.addbmm(x[:, :2], c[:, :, :3], c[:, :3, :2]), t.addmm(x, x[:, :3], y)
t.baddbmm(c, c[:, :, :3], c)
t.chain_matmul(x, y.t(), x), t.matmul(c, v[:4]), t.linalg.multi_dot([v[:3], x, v[:4]])
t.linspace(0, 1, 7), t.logspace(-1, 2, 5), t.logspace(0, 3, 4, base=2), t.arange(0, 1, 0.1)
t.eye(2, 3)
t.empty_strided((2, 3), (1, 2)).stride(), t.full((2,), 3), t.full((2,), True)
t.scalar_tensor(3.0)
""".strip().split("\n")


def inputs(t):
    rng = np.random.default_rng(4)
    shapes = {"x": (3, 4), "y": (3, 4), "v": 6, "c": (2, 3, 4)}
    a = {n: rng.normal(size=s) for n, s in shapes.items()}
    given = {n: t.tensor(v).requires_grad_() for n, v in a.items()}
    given["i"] = t.tensor(rng.integers(0, 9, (3, 4)))
    given["b"] = t.tensor(rng.integers(0, 2, (3, 4)).astype(bool))
    return given


def flat(result):
    if isinstance(result, (tuple, list)):
        return [r for part in result for r in flat(part)]
    return [result]


@pytest.mark.filterwarnings("ignore:.*chain_matmul", "ignore:The use of", "ignore:.*pdist")
@pytest.mark.filterwarnings("ignore:The reduce argument", "ignore:index_reduce")
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("call", CALLS)
def test_values_and_gradients(call):
    found = []
    for t in (dt, torch):
        given = inputs(t)
        outs = flat(eval(call, {"t": t, **given}))
        loss = 0
        for o in outs:
            if hasattr(o, "requires_grad") and o.requires_grad:
                w = np.cos(np.arange(o.numel()) + 0.5).reshape(tuple(o.shape))
                loss = loss + (o * t.tensor(w)).sum()
        if not isinstance(loss, int):
            loss.backward()
        found.append((outs, {n: g.grad for n, g in given.items()}))
    (ours, our_grads), (theirs, their_grads) = found
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        assert tuple(a.shape) == tuple(b.shape)
        assert str(a.dtype) == str(b.dtype)
        assert a.requires_grad == b.requires_grad
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(force=True), atol=1e-6)
    for name, grad in their_grads.items():
        assert (grad is None) == (our_grads[name] is None), name
        if grad is not None:
            np.testing.assert_allclose(our_grads[name].numpy(), grad.numpy(), atol=1e-6,
                                       err_msg=name)


VIEWS = """
x[0]
x[:, 1:3]
x.t()
x.view(4, 3)
x.reshape(12)
x.t().reshape(12)
x.unsqueeze(0)
x.expand(2, 3, 4)
x.unfold(1, 2, 1)
x.diagonal()
x.as_strided((2, 2), (1, 2), 1)
x.split(2, 1)[1]
x.chunk(2)[0]
x.unbind(1)[2]
x.movedim(0, 1)
x.narrow(0, 1, 2)
x.select(1, 0)
x.squeeze()
x.mT
x.flip(0)
x.contiguous()
x.T.contiguous()
x.view(t.int32)
x.view(t.int16)[:, ::2]
x.view(t.uint8)[0]
x.flatten()
x.tensor_split(2)[1]
x.hsplit(2)[1]
t.broadcast_to(x, (2, 3, 4))
t.atleast_3d(x)
x.swapaxes(0, 1)[1:]
x.detach()
x.permute(1, 0)[::2]
x.ravel()
x[..., None]
x.unflatten(1, (2, 2))
""".strip().split("\n")


@pytest.mark.parametrize("call", VIEWS)
def test_views_share_memory_as_in_pytorch(call):
    found = []
    for t in (dt, torch):
        x = t.arange(12.0).reshape(3, 4)
        y = eval(call, {"t": t, "x": x})
        shares = bool(np.may_share_memory(x.numpy(), y.numpy()))
        x += 1
        found.append((y.tolist(), shares, y.stride(), y.storage_offset(), y.is_contiguous()))
    assert found[0] == found[1]


IN_PLACE = """
x.t_()
x.unsqueeze_(1)
x.squeeze_()
x.transpose_(0, 1)
x.swapaxes_(0, 1)
x.resize_(2, 3)
x.resize_(5, 4)[:3]
x.as_strided_((2, 2), (1, 2))
x.tril_()
x.fill_diagonal_(7)
x.t().fill_diagonal_(5)
t.narrow_copy(x, 0, 1, 2).add_(x[1:])
x.view(6, 2).fill_diagonal_(3, wrap=True)
x.index_fill_(0, t.tensor([1]), 7)
x.index_copy_(1, t.tensor([2]), t.ones(3, 1))
x.index_add_(0, t.tensor([0, 0]), t.ones(2, 4))
x.scatter_(1, t.tensor([[0], [1], [2]]), 9.0)
x.scatter_(1, t.tensor([[0], [1], [2]]), t.ones(3, 1), reduce='multiply')
x.scatter_reduce_(0, t.tensor([[0, 0, 0, 0]]), t.full((1, 4), 50.0), 'amax')
x.scatter_add_(0, t.tensor([[0, 2, 0, 1]]), t.ones(1, 4))
x.masked_scatter_(x > 5, t.arange(12.0))
x.masked_fill_(x > 5, 0)
x.put_(t.tensor([1, -1]), t.tensor([5.0, 6.0]))
x.addmm_(t.ones(3, 2), t.ones(2, 4), beta=0.5)
x[0].copy_(x[1])
x.set_(t.ones(2, 2))
""".strip().split("\n")


@pytest.mark.parametrize("call", IN_PLACE)
def test_in_place(call):
    found = []
    for t in (dt, torch):
        x = t.arange(12.0).reshape(3, 4)
        out = eval(call, {"t": t, "x": x})
        seen = out if "5, 4" in call else x  # grown memory holds anything
        found.append((seen.tolist(), tuple(x.shape), x.stride()))
    assert found[0] == found[1]


NO_GRADIENT = ("resize", "set_", "reduce='multiply'")  # PyTorch has none for these


@pytest.mark.parametrize("call", [c for c in IN_PLACE if not any(w in c for w in NO_GRADIENT)])
def test_in_place_gradients(call):
    found = []
    for t in (dt, torch):
        leaf = t.arange(12.0).reshape(3, 4).requires_grad_()
        x = leaf * 2
        eval(call, {"t": t, "x": x})
        (x * x).sum().backward()
        found.append(leaf.grad.tolist())
    assert found[0] == found[1]


BAD = """
x.view(5)
x.view(-1, 5)
x.view(-1, -1)
x.t().view(12)
x.reshape(7)
x.reshape(-2, 6)
x.expand(2)
x.expand(3, 5)
x.expand(-1, 3, 4)
x.permute(0)
x.permute(0, 0)
x.transpose(0, 2)
x.unsqueeze(4)
x.squeeze(3)
x.narrow(0, 2, 5)
x.narrow(0, 0, -1)
x.select(0, 3)
x.split(-1)
x.split([1, 1])
x.chunk(0)
x.unfold(0, 4, 1)
x.unfold(0, 1, 0)
x.flip(0, 0)
x.flip(2)
x.roll((1, 2), 0)
t.rot90(v)
t.diag(c)
t.tril(v)
t.trace(v)
t.cat([x, v])
t.cat([x, x[:, :2]])
t.cat([])
t.stack([x, v])
t.hstack([])
t.meshgrid(x, v, indexing='ij')
t.meshgrid(v, indexing='zz')
t.cartesian_prod(x)
t.combinations(x)
t.tensor_split(x, 0)
t.hsplit(x, 3)
t.vsplit(v, 2)
t.broadcast_to(x, (3, 5))
t.broadcast_tensors(x, v)
t.broadcast_shapes((3,), (4,))
x.repeat(2)
x.repeat_interleave(t.tensor([1, 2]), 0)
x.repeat_interleave(-1)
x.as_strided((20,), (1,))
x.as_strided((2,), (1, 1))
x.as_strided((2,), (-1,))
x.gather(0, i)
x.gather(0, x)
x.gather(1, i[0])
x.scatter(1, i + 9, y)
x.scatter(1, i % 4, y.float())
x.scatter_reduce(0, i % 3, y, 'median')
x.scatter_add(0, i % 3, y[:1])
x.index_select(0, i)
x.index_select(0, t.tensor([3]))
x.index_select(0, t.tensor([0.5]))
x.index_add(0, t.tensor([5, 0, 1]), y)
x.index_copy(0, t.tensor([0]), y)
x.index_fill(0, t.tensor([4]), 1.0)
x.take(t.tensor([12]))
x.take(x)
t.take_along_dim(x, i[0], 0)
x.put(t.tensor([1]), v)
x.masked_scatter(b, v[:1])
x.masked_scatter(i, v)
x.masked_select(i)
x.masked_fill(i, 1.0)
t.select_scatter(x, v, 0, 1)
t.diagonal_scatter(x, v)
x.topk(9)
x.topk(2, 3)
x.sort(2)
t.searchsorted(x, v)
t.bucketize(v, x)
t.tensordot(x, y, 1)
t.mm(x, y)
t.mm(v, x)
t.bmm(x, y)
t.bmm(c, c)
t.mv(x, v)
t.dot(x, y)
t.dot(v, v[:3])
t.outer(x, v)
t.matmul(x, v)
t.matmul(x, y)
t.matmul(x, v[0])
t.addmm(x, x, y)
t.matmul(x, y.t().float())
t.kron(x)
c.t()
c.T.H
v.mT
v.mH
c.H
c.unflatten(2, (3, 2))
c.flatten(2, 1)
x.view(t.complex128)[:, 3]
v[:5].view(t.complex128)
x.movedim((0, 1), (0,))
t.movedim(x, (0, 0), (0, 1))
t.linspace(0, 1, -1)
t.arange(0, 1, 0)
t.arange(3, 0)
t.eye(-1)
t.zeros(-1)
t.tril_indices(-1, 2)
x.resize_(2, 2)
t.unique(x, dim=5)
t.vander(x)
t.logspace(0, 1, -2)
t.full((-1,), 2)
""".strip().split("\n")


@pytest.mark.parametrize("call", BAD)
@pytest.mark.filterwarnings("ignore:The use of")
def test_bad_calls_raise_the_same_error_type(call):
    raised = []
    for t in (dt, torch):
        with pytest.raises(Exception) as error:
            eval(call, {"t": t, **inputs(t)})
        raised.append(error)
    ours, theirs = raised
    assert ours.type is theirs.type, f"{ours.value!r} for {theirs.value!r}"
    assert not isinstance(ours.value, (AttributeError, NotImplementedError)), ours.value


def test_linspace_and_arange_give_pytorchs_bits():
    """PyTorch's vector loops round otherwise in the last bit: short ranges are equal exactly."""
    def same(x, y):
        assert str(x.dtype) == str(y.dtype)
        if len(y) <= 7:
            np.testing.assert_array_equal(x.numpy(), y.numpy())
        eps = np.finfo(y.numpy().dtype).eps if y.is_floating_point() else 0
        scale = max(abs(y.numpy()).max(initial=0), 1)
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=0, atol=2 * eps * scale)

    for a, b, n in ((0, 1, 7), (0, 1, 100), (-3.5, 2.25, 33), (1e-3, 1e3, 50), (5, -5, 64)):
        for dtype in ("float32", "float64", "int64"):
            same(*(t.linspace(a, b, n, dtype=getattr(t, dtype)) for t in (dt, torch)))
    for args in ((0, 1, 0.1), (0.0, 5.0), (3,), (1, 10, 3), (5, 0, -0.7), (0, 100, 0.37)):
        for dtype in (None, "float32", "float64"):
            kind = [{"dtype": getattr(t, dtype)} if dtype else {} for t in (dt, torch)]
            same(dt.arange(*args, **kind[0]), torch.arange(*args, **kind[1]))
