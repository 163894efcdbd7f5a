"""Training steps of convolutional networks, and their parts, beside PyTorch's.

    python benchmarks/convolution.py [--threads 1] [--parts]

PyTorch is the yardstick and need not be installed; both use the same number of threads.
"""

from __future__ import annotations

import argparse
import os
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--parts", action="store_true", help="also single layers")
    parser.add_argument("--repeat", type=int, default=5)
    options, _ = parser.parse_known_args()
    return options


def resnet18(n, functional, classes=10):
    """ResNet-18 for 32×32 images (He et al., arXiv:1512.03385): 3×3 stem, no first pooling."""

    class Block(n.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = n.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = n.BatchNorm2d(outputs)
            self.conv2 = n.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = n.BatchNorm2d(outputs)
            self.short = n.Sequential()
            if stride != 1 or inputs != outputs:
                self.short = n.Sequential(
                    n.Conv2d(inputs, outputs, 1, stride, bias=False), n.BatchNorm2d(outputs)
                )

        def forward(self, x):
            y = functional.relu(self.bn1(self.conv1(x)))
            return functional.relu(self.bn2(self.conv2(y)) + self.short(x))

    layers = [n.Conv2d(3, 64, 3, 1, 1, bias=False), n.BatchNorm2d(64), n.ReLU()]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return n.Sequential(*layers, n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(512, classes))


def lenet(n, functional, classes=10):
    """A small classic for 32×32 images."""
    return n.Sequential(
        n.Conv2d(3, 16, 5), n.ReLU(), n.MaxPool2d(2), n.Conv2d(16, 32, 5), n.ReLU(),
        n.MaxPool2d(2), n.Flatten(), n.Linear(800, 120), n.ReLU(), n.Linear(120, classes),
    )


def mobile(n, functional, classes=10):
    """Depthwise-separable blocks (arXiv:1704.04861)."""
    layers, inputs = [n.Conv2d(3, 32, 3, 1, 1, bias=False), n.BatchNorm2d(32), n.ReLU()], 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        layers += [
            n.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            n.BatchNorm2d(inputs), n.ReLU(), n.Conv2d(inputs, outputs, 1, bias=False),
            n.BatchNorm2d(outputs), n.ReLU(),
        ]
        inputs = outputs
    return n.Sequential(*layers, n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(inputs, classes))


def training_step(p, build, batch):
    """A function that does one step of SGD on fixed data."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = p.from_numpy(rng.standard_normal((batch, 3, 32, 32)).astype("float32"))
    t = p.from_numpy(rng.integers(0, 10, batch))
    model = build(p.nn, p.nn.functional)
    optimizer = p.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        p.nn.functional.cross_entropy(model(x), t).backward()
        optimizer.step()

    return step


def layer_step(p, build, shape):
    """A function that runs a layer forward and backward."""
    import numpy as np

    array = np.random.default_rng(0).standard_normal(shape).astype("float32")
    x = p.from_numpy(array).requires_grad_()
    layer = build(p.nn)
    g = p.ones_like(layer(x).detach())

    def step():
        layer(x).backward(g)

    return step


LAYERS = {
    "conv 3x3 64 @32": (lambda n: n.Conv2d(64, 64, 3, padding=1), 64, 32),
    "conv 3x3 128 @16": (lambda n: n.Conv2d(128, 128, 3, padding=1), 128, 16),
    "conv 3x3 256 @8": (lambda n: n.Conv2d(256, 256, 3, padding=1), 256, 8),
    "conv 3x3 512 @4": (lambda n: n.Conv2d(512, 512, 3, padding=1), 512, 4),
    "conv 3x3/2 64-128 @32": (lambda n: n.Conv2d(64, 128, 3, 2, 1), 64, 32),
    "conv 1x1 64-256 @32": (lambda n: n.Conv2d(64, 256, 1), 64, 32),
    "conv 5x5 3-16 @32": (lambda n: n.Conv2d(3, 16, 5), 3, 32),
    "depthwise 3x3 64 @32": (lambda n: n.Conv2d(64, 64, 3, padding=1, groups=64), 64, 32),
    "grouped(4) 3x3 64 @32": (lambda n: n.Conv2d(64, 64, 3, padding=1, groups=4), 64, 32),
    "transposed 4x4/2 64 @16": (lambda n: n.ConvTranspose2d(64, 64, 4, 2, 1), 64, 16),
    "batch norm 64 @32": (lambda n: n.BatchNorm2d(64), 64, 32),
    "group norm 64 @32": (lambda n: n.GroupNorm(8, 64), 64, 32),
    "max pool 2x2 64 @32": (lambda n: n.MaxPool2d(2), 64, 32),
    "max pool 3x3/2 64 @32": (lambda n: n.MaxPool2d(3, 2, 1), 64, 32),
    "avg pool 2x2 64 @32": (lambda n: n.AvgPool2d(2), 64, 32),
    "upsample x2 bilinear 64 @16": (
        lambda n: n.Upsample(scale_factor=2, mode="bilinear"), 64, 16),
}
NETWORKS = {"LeNet-like": lenet, "ResNet-18": resnet18, "MobileNet-like": mobile}


def best(step, repeat):
    """The shortest of ``repeat`` runs, in ms, after one to warm up."""
    step()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def main():
    options = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before NumPy loads its BLAS
    import disttorch

    packages = [disttorch]
    try:
        import torch

        torch.set_num_threads(options.threads)
        packages.append(torch)
    except ImportError:
        print("PyTorch is not installed: no comparison")
    rows = {f"{name}, batch {options.batch}": (training_step, (build, options.batch))
            for name, build in NETWORKS.items()}
    if options.parts:
        rows |= {f"{name}, batch {options.batch}": (layer_step, (build, (options.batch, c, s, s)))
                 for name, (build, c, s) in LAYERS.items()}
    print(f"{'forward + backward, ms':42}" + "".join(f"{p.__name__:>11}" for p in packages) + "   ratio")
    for name, (make, args) in rows.items():
        times = [best(make(p, *args), options.repeat) for p in packages]
        ratio = f"{times[0] / times[1]:8.2f}" if len(times) > 1 else ""
        print(f"{name:42}" + "".join(f"{t:11.2f}" for t in times) + ratio, flush=True)


if __name__ == "__main__":
    main()
