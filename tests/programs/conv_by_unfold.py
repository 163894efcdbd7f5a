"""A small convolutional network by hand: im2col through Tensor.unfold, pooling by reshape."""

import numpy as np
import torch


def conv(x, weight, bias):
    k = weight.shape[-1]
    patches = x.unfold(2, k, 1).unfold(3, k, 1)  # N, C, H', W', k, k
    return torch.einsum("nchwij,ocij->nohw", patches, weight) + bias.view(1, -1, 1, 1)


def conv_matmul(x, weight, bias):
    k, (n, c, h, w) = weight.shape[-1], x.shape
    columns = x.unfold(2, k, 1).unfold(3, k, 1).permute(0, 2, 3, 1, 4, 5)
    columns = columns.reshape(n * (h - k + 1) * (w - k + 1), c * k * k)
    out = columns @ weight.flatten(1).T + bias
    return out.view(n, h - k + 1, w - k + 1, -1).permute(0, 3, 1, 2)


def max_pool(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).amax(dim=(3, 5))


def main():
    rng = np.random.default_rng(26)
    dtype = torch.get_default_dtype()

    def p(*shape):
        return torch.tensor(rng.standard_normal(shape) * 0.3, dtype=dtype, requires_grad=True)

    params = w1, b1, w2, b2, w3 = p(4, 1, 3, 3), p(4), p(6, 4, 2, 2), p(6), p(24, 2)
    images = rng.standard_normal((12, 1, 8, 8))
    images[:6, :, 2:5] += 1.5  # bars that lie or stand
    images[6:, :, :, 2:5] += 1.5
    x = torch.tensor(images, dtype=dtype)
    y = torch.arange(12) // 6
    losses = []
    for step in range(15):
        layer = conv if step % 2 else conv_matmul
        h = max_pool(torch.relu(layer(x, w1, b1)))
        h = torch.relu(layer(h, w2, b2))
        loss = torch.nn.functional.cross_entropy(h.reshape(12, -1) @ w3, y)
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for q, g in zip(params, grads):
                q.sub_(0.1 * g)
        losses.append(loss.item())
    return [*losses, grads[0].numpy(), h.shape[-1]]


if __name__ == "__main__":
    print(main())
