"""disttorch/models against the same source files executed with PyTorch, from the same weights."""

from __future__ import annotations

import importlib
import inspect
import types
from pathlib import Path

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

FOLDER = Path(dt.__file__).parent / "models"
RNG = np.random.default_rng(7)


def array(*shape, low=-1.0, high=1.0):
    return RNG.uniform(low, high, shape)


def ids(high, *shape, low=0):
    return RNG.integers(low, high, shape)


def padded(high, *shape):
    """Ids whose second row ends in padding."""
    found = ids(high, *shape, low=1)
    found[1, -2:] = 0
    return found


# file: {case: (how to build it, given the file's module; what it is called with)}
CASES = {
    "resnet": {
        "resnet18": (lambda m: m.resnet18(width=4, num_classes=5), [array(2, 3, 64, 64)]),
        "resnet18_small_images": (
            lambda m: m.resnet18(width=4, num_classes=5, small_images=True),
            [array(3, 3, 32, 32)],
        ),
        "resnet34": (lambda m: m.resnet34(width=2, num_classes=3), [array(2, 3, 64, 64)]),
        "resnet50": (lambda m: m.resnet50(width=2, num_classes=3), [array(3, 3, 64, 64)]),
    },
    "vgg": {
        "layout": (
            lambda m: m.VGG([4, "M", 8, 8, "M"], 5, hidden=16, dropout=0.0),
            [array(2, 3, 28, 36)],
        ),
        "layout_batch_norm": (
            lambda m: m.VGG([4, "M", 8, "M"], 5, batch_norm=True, hidden=16, dropout=0.0),
            [array(2, 3, 32, 32)],
        ),
        "vgg11": (lambda m: m.vgg11(num_classes=5, hidden=8, dropout=0.0), [array(1, 3, 32, 32)]),
    },
    "unet": {
        "transposed": (lambda m: m.UNet(1, 3, width=4, depth=2), [array(2, 1, 18, 21)]),
        "bilinear": (lambda m: m.UNet(3, 2, 4, 3, bilinear=True), [array(2, 3, 24, 27)]),
    },
    "yolo": {"yolo": (lambda m: m.YOLO(3, width=4), [array(2, 3, 64, 96)])},
    "bert": {
        "encoder": (
            lambda m: m.BERT(40, 16, 4, 2, 32, 12, dropout=0.0),
            [padded(40, 2, 9), ids(2, 2, 9)],
        ),
        "pre_training": (
            lambda m: m.BERTForPreTraining(
                vocabulary_size=40, width=16, heads=2, layers=2, feed_forward=24, positions=12,
                dropout=0.0,
            ),
            [padded(40, 3, 8)],
        ),
    },
    "gpt": {"gpt": (lambda m: m.GPT(30, 16, 2, 4, 32), [ids(30, 2, 11)])},
    "lstm_lm": {
        "tied": (lambda m: m.LSTMLanguageModel(30, 12, 2), [ids(30, 3, 7)]),
        "untied": (lambda m: m.LSTMLanguageModel(30, 12, 1, tie=False), [ids(30, 3, 7)]),
    },
    "seq2seq": {
        "seq2seq": (lambda m: m.Seq2Seq(20, 25, 10), [padded(20, 3, 6), ids(25, 3, 5)]),
    },
    "vae": {"vae": (lambda m: m.VAE(20, 16, 4), [array(5, 20, low=0.0), array(5, 4)])},
    "gan": {
        "generator": (lambda m: m.Generator(6, 2, 4), [array(3, 6)]),
        "discriminator": (lambda m: m.Discriminator(2, 4), [array(3, 2, 32, 32)]),
    },
    "dqn": {
        "q": (lambda m: m.QNetwork(4, 3, 16), [array(6, 4)]),
        "dueling": (lambda m: m.QNetwork(4, 3, 16, dueling=True), [array(6, 4)]),
        "atari": (lambda m: m.AtariQNetwork(4, 2), [array(2, 2, 84, 84, low=0.0, high=255.0)]),
        "actor_critic": (lambda m: m.ActorCritic(4, 3, 16), [array(6, 4)]),
    },
    "dlrm": {
        "dlrm": (
            lambda m: m.DLRM(5, [7, 9, 4], 6, (8,), (8, 4)),
            [array(3, 5), ids(4, 3, 8), np.array([[0, 2, 5], [0, 0, 7], [0, 4, 6]])],
        ),
    },
    "dcn": {"dcn": (lambda m: m.DeepCross(5, [7, 9], 4, 3, (8, 6)), [array(4, 5), ids(7, 4, 2)])},
    "din": {"din": (lambda m: m.DIN(12, 4, (8, 6), 5), [padded(12, 4, 6), ids(12, 4, low=1)])},
}
CALLS = [(file, case) for file, cases in CASES.items() for case in cases]


def theirs_of(file: str) -> types.ModuleType:
    """The file's source run with PyTorch in the place of disttorch."""
    source = (FOLDER / f"{file}.py").read_text(encoding="utf-8").replace("disttorch", "torch")
    module = types.ModuleType(f"{file}_in_torch")
    exec(compile(source, f"{file}.py with torch", "exec"), module.__dict__)
    return module


def ours_of(file: str) -> types.ModuleType:
    return importlib.import_module(f"disttorch.models.{file}")


def both_models(file: str, case: str):
    """(ours, theirs, arguments), both float64 and with the same weights."""
    build, arguments = CASES[file][case]
    theirs, ours = build(theirs_of(file)).double(), build(ours_of(file)).double()
    state = {k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(state)
    assert str(ours.load_state_dict(state)) == "<All keys matched successfully>"
    return ours, theirs, arguments


def tensors_of(library, arguments):
    return [library.tensor(a, requires_grad=a.dtype == np.float64) for a in arguments]


def flat(result) -> list:
    if isinstance(result, (tuple, list)):
        return [t for part in result for t in flat(part)]
    return [result]


def close(a, b, what=""):
    a, b = a.detach().numpy(), b.detach().numpy()
    scale = max(1.0, float(np.abs(b).max(initial=0.0)))
    np.testing.assert_allclose(a, b, 1e-8, 1e-10 * scale, err_msg=what)


def compare_gradients(ours, theirs, my_inputs, other_inputs, my_loss, other_loss):
    my_loss.backward()
    other_loss.backward()
    checked = 0
    for mine, other in zip(my_inputs, other_inputs):
        assert (mine.grad is None) == (other.grad is None)
        if other.grad is not None:
            close(mine.grad, other.grad)
    mine = dict(ours.named_parameters())
    for name, other in theirs.named_parameters():
        assert (mine[name].grad is None) == (other.grad is None), name
        if other.grad is not None:
            close(mine[name].grad, other.grad, name)
            checked += bool(other.grad.abs().max() > 0)
    assert checked > len(mine) / 2  # a comparison of zeros would say nothing


def test_every_file_has_a_case():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert files == set(CASES)


@pytest.mark.parametrize("file", CASES)
def test_source_uses_the_public_api_only(file):
    imports = [
        line.split("#")[0].strip()
        for line in (FOLDER / f"{file}.py").read_text(encoding="utf-8").splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert set(imports) <= {
        "from __future__ import annotations", "import disttorch as torch",
        "import disttorch.nn.functional as F", "from disttorch import nn",
    }


@pytest.mark.parametrize(("file", "case"), CALLS)
def test_forward_gradients_and_buffers(file, case):
    ours, theirs, arguments = both_models(file, case)
    mine, other = tensors_of(dt, arguments), tensors_of(torch, arguments)
    results, expected = flat(ours(*mine)), flat(theirs(*other))
    assert len(results) == len(expected)
    my_loss = other_loss = 0.0
    for y, z in zip(results, expected):
        assert tuple(y.shape) == tuple(z.shape)
        close(y, z)
        weights = array(*z.shape)
        my_loss = my_loss + (y * dt.tensor(weights)).sum()
        other_loss = other_loss + (z * torch.tensor(weights)).sum()
    compare_gradients(ours, theirs, mine, other, my_loss, other_loss)
    for name, buffer in theirs.named_buffers():  # running statistics after this step
        close(dict(ours.named_buffers())[name], buffer, name)


@pytest.mark.parametrize(("file", "case"), CALLS)
def test_state_dict_and_repr(file, case):
    ours, theirs, _ = both_models(file, case)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert [(k, tuple(v.shape), str(v.dtype)) for k, v in mine.items()] == [
        (k, tuple(v.shape), str(v.dtype)) for k, v in other.items()
    ]
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(("file", "case"), [c for c in CALLS if c[0] in ("resnet", "yolo", "bert")])
def test_evaluation(file, case):
    ours, theirs, arguments = both_models(file, case)
    with dt.no_grad(), torch.no_grad():
        mine = flat(ours.eval()(*tensors_of(dt, arguments)))
        other = flat(theirs.eval()(*tensors_of(torch, arguments)))
    for y, z in zip(mine, other):
        close(y, z)


def test_yolo_loss_boxes_and_suppression():
    ours, theirs, (images,) = both_models("yolo", "yolo")
    targets = np.array([
        [0, 1, 20.0, 30.0, 18.0, 22.0], [0, 2, 60.0, 41.0, 50.0, 45.0],
        [1, 0, 90.0, 8.0, 20.0, 30.0],
    ])
    mine, other = dt.tensor(images), torch.tensor(images)
    my_maps, other_maps = ours(mine), theirs(other)
    close(ours.decode(my_maps), theirs.decode(other_maps))
    my_loss = ours.loss(my_maps, dt.tensor(targets))
    other_loss = theirs.loss(other_maps, torch.tensor(targets))
    close(my_loss, other_loss)
    assert float(my_loss) > 1
    compare_gradients(ours, theirs, [], [], my_loss, other_loss)

    boxes = np.concatenate([array(30, 2, low=0, high=60), array(30, 2, low=5, high=40)], axis=1)
    scores = array(30, low=0.0)
    kept = ours_of("yolo").non_maximum_suppression(dt.tensor(boxes), dt.tensor(scores), 0.3)
    expected = theirs_of("yolo").non_maximum_suppression(
        torch.tensor(boxes), torch.tensor(scores), 0.3
    )
    assert kept.tolist() == expected.tolist()
    assert 1 < len(kept) < 30


def losses_of(module, library, models, draws):
    """The loss functions of the files that have some, on the same inputs."""
    t = {name: library.tensor(value) for name, value in draws.items()}
    if module.__name__.endswith(("vae", "vae_in_torch")):
        (model,) = models
        return [module.vae_loss(*model(t["x"], t["noise"]), t["x"], beta=0.7)]
    if module.__name__.endswith(("gan", "gan_in_torch")):
        (model,) = models
        real, fake = model(t["real"]), model(t["fake"])
        return [module.discriminator_loss(real, fake), module.generator_loss(fake)]
    online, target = models
    batch = tuple(t[name] for name in ("observation", "action", "reward", "following", "done"))
    logits, old = online(t["observation"]), online(t["following"])
    return [
        module.dqn_loss(online, target, batch, double=True),
        module.dqn_loss(online, target, batch, double=False),
        module.policy_gradient_loss(logits, t["action"], t["reward"]),
        module.clipped_policy_loss(logits, old, t["action"], t["reward"]),
    ]


@pytest.mark.parametrize(("file", "case"), [("vae", "vae"), ("gan", "discriminator"), ("dqn", "q")])
def test_losses(file, case):
    ours, theirs, _ = both_models(file, case)
    draws = {
        "vae": {"x": array(5, 20, low=0.0), "noise": array(5, 4)},
        "gan": {"real": array(3, 2, 32, 32), "fake": array(3, 2, 32, 32)},
        "dqn": {
            "observation": array(6, 4), "action": ids(3, 6), "reward": array(6) * 3,
            "following": array(6, 4), "done": ids(2, 6).astype(float),
        },
    }[file]
    models = [ours], [theirs]
    if file == "dqn":  # the older copy: other weights
        old, other_old, _ = both_models(file, case)
        models = [ours, old], [theirs, other_old]
    mine = losses_of(ours_of(file), dt, models[0], draws)
    other = losses_of(theirs_of(file), torch, models[1], draws)
    for y, z in zip(mine, other):
        close(y, z)
    compare_gradients(ours, theirs, [], [], sum(mine), sum(other))


def test_public_names_are_the_models():
    from disttorch import models

    for name in models.__all__:
        thing = getattr(models, name)
        assert inspect.isclass(thing) or callable(thing), name


@pytest.mark.parametrize(("file", "case"), [("gpt", "gpt"), ("lstm_lm", "tied")])
def test_generation_continues_the_prompt(file, case):
    ours, _, (prompt,) = both_models(file, case)
    dt.manual_seed(0)
    longer = ours.generate(dt.tensor(prompt), 4)
    assert longer.shape == (prompt.shape[0], prompt.shape[1] + 4)
    assert longer[:, : prompt.shape[1]].tolist() == prompt.tolist()
    assert int(longer.max()) < 30


def test_generation_without_a_choice_is_the_argmax():
    ours, theirs, (prompt,) = both_models("gpt", "gpt")
    mine = ours.generate(dt.tensor(prompt), 5, top_k=1)
    assert mine.tolist() == theirs.generate(torch.tensor(prompt), 5, top_k=1).tolist()


def test_translation():
    ours, theirs, (source, _) = both_models("seq2seq", "seq2seq")
    mine = ours.translate(dt.tensor(source), 1, 2, limit=8)
    assert mine.tolist() == theirs.translate(torch.tensor(source), 1, 2, limit=8).tolist()
