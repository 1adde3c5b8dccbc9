"""What the step in chunks replays: random numbers, buffers, checkpoints, and what an exception leaves behind."""

import copy
import functools

import pytest
import torch
from cached_models import WIDTH, Stop, assert_same, encoder, gradients, in_chunks, views
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import hyperkern as hk
from hyperkern.cached.replay import RandomState, generating


@pytest.mark.parametrize("size", [4, 22])
def test_dropout_is_the_same_both_times(size: int) -> None:
    model, (x, y) = encoder(torch.float64, 0, nn.Dropout(0.4)), views()
    torch.manual_seed(3)
    hk.info_nce(in_chunks(model, x, size), in_chunks(model, y, size)).backward()
    expected, state = gradients(model), torch.get_rng_state()
    torch.manual_seed(3)
    hk.cached_step(model, [x, y], hk.info_nce, chunk_size=size)
    assert_same(gradients(model), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_draws_numbers() -> None:
    model, (x, y) = encoder(torch.float64, 0, nn.Dropout(0.4)), views()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return hk.info_nce(a + torch.rand_like(a), b)

    torch.manual_seed(3)
    loss(in_chunks(model, x, 4), in_chunks(model, y, 4)).backward()
    expected, state = gradients(model), torch.get_rng_state()
    torch.manual_seed(3)
    hk.cached_step(model, [x, y], loss, chunk_size=4)
    assert_same(gradients(model), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_dropout_on_a_gpu() -> None:
    model, (x, y) = encoder(torch.float64, 0, nn.Dropout(0.4)).cuda(), (view.cuda() for view in views())
    torch.manual_seed(3)
    hk.info_nce(in_chunks(model, x, 4), in_chunks(model, y, 4)).backward()
    expected, state = gradients(model), torch.cuda.get_rng_state()
    torch.manual_seed(3)
    hk.cached_step(model, [x, y], hk.info_nce, chunk_size=4)
    assert_same(gradients(model), expected)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_generators_of_devices(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without such a device: which generator is asked, and set."""
    found = {torch.device(kind, i): i for i in range(3)} if kind == "cuda" else {(): 0}

    class Module:
        @staticmethod
        def get_rng_state(*device: torch.device) -> int:
            return found[device[0] if device else ()]

        @staticmethod
        def set_rng_state(state: int, *device: torch.device) -> None:
            found[device[0] if device else ()] = state

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    places = [torch.device("cpu"), torch.device("meta"), torch.device(kind, 0), torch.device(kind, 0)]
    devices = generating([*places, torch.device(kind, 1)] if kind == "cuda" else places)
    assert devices == [torch.device(kind, i) for i in range(2 if kind == "cuda" else 1)]
    state = RandomState(devices)
    for key in found:
        found[key] += 10
    state.restore()
    assert list(found.values()) == ([0, 1, 12] if kind == "cuda" else [0])


def stateful(kind: str) -> nn.Sequential:
    layer = {
        "batch norm": lambda: nn.BatchNorm1d(16),
        "cumulative batch norm": lambda: nn.BatchNorm1d(16, momentum=None),
        "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(16, 16)),
    }[kind]()
    return encoder(torch.float64, 0, layer)


@pytest.mark.parametrize("how", ["module", "function", "inner function", "object", "partial", "method", "compiled"])
@pytest.mark.parametrize("kind", ["batch norm", "cumulative batch norm", "spectral norm"])
def test_buffers_are_updated_once(kind: str, how: str) -> None:
    (x, y), model = views(), stateful(kind)
    ordinary = copy.deepcopy(model)
    ordinary_loss = hk.info_nce(in_chunks(ordinary, x, 8), in_chunks(ordinary, y, 8))
    ordinary_loss.backward()

    class Owner:
        def __init__(self) -> None:
            self.model = model

        def encode(self, rows: Tensor) -> Tensor:
            return self.model(rows)

        __call__ = encode

    names = {"of_many": model}  # what a script has at its top
    exec("encode = lambda rows: [(lambda: of_many(rows))() for _ in range(1)][0]", names)
    encode = {
        "module": model,
        "function": lambda rows: model(rows),
        "inner function": names["encode"],
        "object": Owner(),
        "compiled": torch.compile(model, backend="eager"),
        "partial": functools.partial(lambda of, rows: of(rows), model),
        "method": Owner().encode,
    }[how]
    loss = hk.cached_step(encode, [x, y], hk.info_nce, chunk_size=8)
    assert_same([loss], [ordinary_loss.detach()])
    for (name, found), (_, expected) in zip(model.named_buffers(), ordinary.named_buffers(), strict=True):
        assert torch.equal(found, expected), name
    assert_same(gradients(model), gradients(ordinary))


def test_buffers_of_evaluation_mode_stay() -> None:
    model, (x, y) = stateful("batch norm").eval(), views()
    before = copy.deepcopy(model.state_dict())
    hk.info_nce(model(x), model(y)).backward()
    expected = gradients(model)
    hk.cached_step(model, [x, y], hk.info_nce, chunk_size=8)
    assert_same(gradients(model), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_buffer_that_is_replaced() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.steps = self.steps + 1
            return x * self.steps

    model, (x, y) = encoder(torch.float64, 0, Counter()), views()
    ordinary = copy.deepcopy(model)
    hk.info_nce(in_chunks(ordinary, x, 8), in_chunks(ordinary, y, 8)).backward()
    hk.cached_step(model, [x, y], hk.info_nce, chunk_size=8)
    assert model[2].steps == 6
    assert_same(gradients(model), gradients(ordinary))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the reentrant kind, without gradients
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, 16).double(), encoder(torch.float64, 0, nn.Dropout(0.4))[1:]

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.second, self.first(x), use_reentrant=reentrant)

    model, (x, y) = Checkpointed(), views()
    torch.manual_seed(3)
    hk.info_nce(in_chunks(model, x, 4), in_chunks(model, y, 4)).backward()
    expected = gradients(model)
    torch.manual_seed(3)
    hk.cached_step(model, [x, y], hk.info_nce, chunk_size=4)
    assert_same(gradients(model), expected)


def test_an_exception_in_the_second_pass_leaves_the_state_of_the_first() -> None:
    model, (x, y) = encoder(torch.float64, 0, nn.Dropout(0.4), nn.BatchNorm1d(16)), views()
    ordinary = copy.deepcopy(model)
    torch.manual_seed(3)
    in_chunks(ordinary, x, 4), in_chunks(ordinary, y, 4)
    state = torch.get_rng_state()

    def stop(done: int, _: int) -> None:
        if done == 14:
            raise Stop

    torch.manual_seed(3)
    with pytest.raises(Stop):
        hk.cached_step(model, [x, y], hk.info_nce, chunk_size=4, progress=stop)
    assert torch.equal(torch.get_rng_state(), state)
    for found, expected in zip(model.buffers(), ordinary.buffers(), strict=True):
        assert torch.equal(found, expected)
    assert not torch.is_autocast_enabled("cpu")
