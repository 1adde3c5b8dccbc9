"""The step in chunks: gradients of one large batch, what is replayed, precision, structures, errors."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import hyperkern as hk
from hyperkern.cached.replay import RandomState, generating

ROWS, WIDTH, DIM = 22, 7, 5


def encoder(dtype: torch.dtype = torch.float64, seed: int = 0, *extra: nn.Module) -> nn.Sequential:
    """A small encoder; further layers go before the last one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), *extra, nn.Linear(16, DIM)).to(dtype)


def views(dtype: torch.dtype = torch.float64, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return x, y


def gradients(*modules: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, which are then cleared."""
    found = []
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            found.append(parameter.grad)
        module.zero_grad()
    return found


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(found) == len(expected) > 0
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1e-3)


def in_chunks(encode: Callable[[Any], Tensor], x: Tensor, size: int) -> Tensor:
    """The embeddings of an ordinary step whose encoder meets the same chunks."""
    return torch.cat([encode(part) for part in x.split(size)])


class Temperature(nn.Module):
    """A two-way contrastive loss whose temperature is learned."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return hk.clip_loss(x, y, logit_scale=self.log_scale.exp())


# Gradients


@pytest.mark.parametrize("size", [1, 4, 11, 21, 22, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradients_of_the_whole_batch(size: int, dtype: torch.dtype, tolerance: float) -> None:
    model, (x, y) = encoder(dtype), views(dtype)
    one_shot = hk.info_nce(model(x), model(y))
    one_shot.backward()
    expected = gradients(model)
    loss = hk.cached_step(model, [x, y], hk.info_nce, chunk_size=size)
    assert_same([loss], [one_shot.detach()], tolerance)
    assert_same(gradients(model), expected, tolerance)
    assert not loss.requires_grad


def test_gradients_are_added() -> None:
    model, (x, y) = encoder(), views()
    hk.info_nce(model(x), model(y)).backward()
    expected = [3 * gradient for gradient in gradients(model)]
    for _ in range(3):
        hk.cached_step(model, [x, y], hk.info_nce, chunk_size=5)
    assert_same(gradients(model), expected)


def test_two_encoders_two_sizes() -> None:
    image, text, (x, y) = encoder(), encoder(seed=1), views()
    hk.clip_loss(image(x), text(y), logit_scale=5.0).backward()
    expected = gradients(image, text)
    loss = functools.partial(hk.clip_loss, logit_scale=5.0)
    hk.cached_step([image, text], (x, y), loss, chunk_size=(3, 8))
    assert_same(gradients(image, text), expected)


def test_one_input_and_unequal_ones() -> None:
    model, (x, y) = encoder(), views()
    hk.uniformity(model(x)).backward()
    expected = gradients(model)
    hk.cached_step(model, x, hk.uniformity, chunk_size=5)
    assert_same(gradients(model), expected)
    hk.uniformity(model(x), model(y[:9]), intra=True).backward()
    expected = gradients(model)
    hk.cached_step(model, [x, y[:9]], functools.partial(hk.uniformity, intra=True), chunk_size=5)
    assert_same(gradients(model), expected)


def test_a_learned_temperature() -> None:
    model, loss, (x, y) = encoder(), Temperature(), views()
    loss(model(x), model(y)).backward()
    expected = gradients(model, loss)
    hk.cached_step(model, [x, y], loss, chunk_size=5)
    assert_same(gradients(model, loss), expected)


def test_a_temperature_that_the_encoder_returns() -> None:
    class WithScale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.log_scale = encoder(), nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, x: Tensor) -> dict[str, Any]:
            rows = self.encoder(x)
            return {"rows": rows, "scale": self.log_scale.exp(), "penalty": rows.square().mean(), "note": None}

    def loss(of_x: dict[str, Any], of_y: dict[str, Any]) -> Tensor:
        assert of_x["note"] is None
        value = hk.clip_loss(of_x["rows"], of_y["rows"], logit_scale=of_x["scale"])
        return value + of_x["penalty"] + 2 * of_y["penalty"]

    model, (x, y) = WithScale(), views()
    one_shot = loss(model(x), model(y))
    one_shot.backward()
    expected = gradients(model)
    assert_same([hk.cached_step(model, [x, y], loss, chunk_size=5)], [one_shot.detach()])
    assert_same(gradients(model), expected)


def test_align_uniform_is_returned_whole_and_detached() -> None:
    model, (x, y) = encoder(), views()
    expected = hk.align_uniform(model(x), model(y))
    expected.loss.backward()
    of_parameters = gradients(model)
    result = hk.cached_step(model, [x, y], hk.align_uniform, chunk_size=5)
    assert isinstance(result, hk.AlignUniform)
    assert not any(value.requires_grad for value in result)
    assert_same(list(result), [value.detach() for value in expected])
    assert_same(gradients(model), of_parameters)


def test_a_mapping_with_the_loss() -> None:
    model, (x, y) = encoder(), views()
    hk.info_nce(model(x), model(y)).backward()
    expected = gradients(model)
    result = hk.cached_step(
        model, [x, y], lambda a, b: {"loss": hk.info_nce(a, b), "rows": a, "epoch": 3}, chunk_size=5
    )
    assert result["epoch"] == 3
    assert not result["rows"].requires_grad
    assert_same([result["rows"]], [model(x).detach()])
    assert_same(gradients(model), expected)


class Pair(NamedTuple):
    rows: Tensor
    weights: Tensor


def test_structures_of_inputs_and_outputs() -> None:
    model, (x, y) = encoder(), views()
    weights, temperature = torch.rand(ROWS, dtype=torch.float64), torch.tensor(2.0)

    def encode(batch: dict[str, Any]) -> Pair:
        rows, mask = batch["tokens"]
        assert batch["name"] == "both"
        assert batch["temperature"] is temperature or batch["temperature"] == temperature
        batch["added"] = rows  # a dict of its own for every chunk
        return Pair(model(rows * mask), batch["weights"])

    def loss(of_x: Pair, of_y: Pair) -> Tensor:
        assert isinstance(of_x, Pair)
        assert not of_x.weights.requires_grad
        per_row = hk.info_nce(of_x.rows, of_y.rows, reduction="none")
        return (per_row * of_x.weights * of_y.weights).sum()

    mask = torch.rand(ROWS, WIDTH) > 0.3
    batches = [
        {"tokens": [rows, mask], "weights": weights, "temperature": temperature, "name": "both"} for rows in (x, y)
    ]
    keys = list(batches[0])
    loss(*(encode(dict(batch)) for batch in batches)).backward()
    expected = gradients(model)
    hk.cached_step(encode, batches, loss, chunk_size=5)
    assert_same(gradients(model), expected)
    assert list(batches[0]) == keys


def test_any_mapping_is_an_input() -> None:
    from collections import UserDict  # that of tokenizers derives from it

    model, (x, _) = encoder(), views()
    hk.uniformity(model(x)).backward()
    expected = gradients(model)
    hk.cached_step(lambda batch: model(**batch), UserDict(input=x), hk.uniformity, chunk_size=5)
    assert_same(gradients(model), expected)


def test_inputs_get_their_gradient() -> None:
    model, stem, (x, y) = encoder(), nn.Linear(WIDTH, WIDTH, dtype=torch.float64), views()
    x.requires_grad_()
    hk.info_nce(model(x), model(stem(y))).backward()
    expected = [*gradients(model, stem), x.grad]
    x.grad = None
    hk.cached_step(model, [x, stem(y)], hk.info_nce, chunk_size=5)
    assert_same([*gradients(model, stem), x.grad], expected)


def test_a_frozen_encoder_is_encoded_once() -> None:
    model, frozen, (x, y) = encoder(), encoder(seed=1).requires_grad_(False), views()
    calls = []
    frozen.register_forward_hook(lambda *_: calls.append(1))
    hk.info_nce(model(x), frozen(y)).backward()
    expected = gradients(model)
    calls.clear()
    hk.cached_step([model, frozen], [x, y], hk.info_nce, chunk_size=5)
    assert_same(gradients(model), expected)
    assert len(calls) == 5


def test_a_stopped_gradient() -> None:
    model, (x, y) = encoder(), views()
    hk.info_nce(model(x), model(y).detach()).backward()
    expected = gradients(model)
    hk.cached_step([model, lambda rows: model(rows).detach()], [x, y], hk.info_nce, chunk_size=5)
    assert_same(gradients(model), expected)


def test_frozen_encoders_and_a_learned_loss() -> None:
    model, loss, (x, y) = encoder().requires_grad_(False), Temperature(), views()
    loss(model(x), model(y)).backward()
    expected = gradients(loss)
    hk.cached_step(model, [x, y], loss, chunk_size=5)
    assert_same(gradients(loss), expected)


def test_integer_inputs_and_views_of_large_outputs() -> None:
    table = nn.EmbeddingBag(50, DIM, dtype=torch.float64)
    ids = torch.randint(0, 50, (ROWS, 3))

    def encode(part: Tensor) -> Tensor:
        return table(part)[:, None].expand(-1, 4, -1)[:, 0]

    hk.uniformity(encode(ids)).backward()
    expected = gradients(table)
    hk.cached_step(encode, ids, hk.uniformity, chunk_size=5)
    assert_same(gradients(table), expected)


# What is replayed


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


class Stop(RuntimeError):
    pass


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


# Mixed precision


@pytest.fixture
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.usefixtures("autocast")
def test_autocast() -> None:
    model, loss, (x, y) = encoder(torch.float32), Temperature(torch.float32), views(torch.float32)
    seen = []

    def checked(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a.dtype, torch.is_autocast_enabled("cpu")))
        return loss(a, b)

    value = checked(in_chunks(model, x, 5), in_chunks(model, y, 5))
    with torch.autocast("cpu", enabled=False):
        value.backward()
    expected = gradients(model, loss)
    with torch.no_grad():
        model(x)  # what autocast casts here has no graph, and is kept
    found = hk.cached_step(model, [x, y], checked, chunk_size=5)
    assert torch.equal(found, value.detach())
    # The ordinary step adds the gradients of all chunks in bfloat16, this one in float32.
    assert_same(gradients(model, loss), expected, 0.02)
    assert seen == [(torch.bfloat16, True)] * 2


@pytest.mark.usefixtures("autocast")
def test_backward_passes_are_outside_of_autocast() -> None:
    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            assert torch.is_autocast_enabled("cpu")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            assert not torch.is_autocast_enabled("cpu")
            return gradient

    model, (x, y) = encoder(torch.float32), views(torch.float32)
    hk.cached_step(
        lambda rows: Watched.apply(model(rows)), [x, y], lambda a, b: hk.info_nce(Watched.apply(a), b), chunk_size=5
    )
    assert torch.is_autocast_enabled("cpu")


def test_grad_scaler() -> None:
    models = [encoder(torch.float32), encoder(torch.float32)]
    x, y = views(torch.float32)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in models]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000) for _ in models]
    for step in range(4):
        factor = float("inf") if step == 1 else 1.0
        for optimizer in optimizers:
            optimizer.zero_grad()
        scalers[0].scale(hk.info_nce(models[0](x), models[0](y)) * factor).backward()
        value = hk.cached_step(
            models[1],
            [x, y],
            lambda a, b, factor=factor: hk.info_nce(a, b) * factor,
            chunk_size=5,
            scale=scalers[1].scale,
        )
        assert value.isfinite() == (step != 1)
        before = [p.detach().clone() for p in models[1].parameters()]
        for scaler, optimizer in zip(scalers, optimizers, strict=True):
            scaler.step(optimizer)
            scaler.update()
        skipped = all(torch.equal(a, b) for a, b in zip(before, models[1].parameters(), strict=True))
        assert skipped == (step == 1)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**9
    assert_same(*([p.detach() for p in model.parameters()] for model in reversed(models)), 1e-5)


def test_accumulation_with_a_scale() -> None:
    model, (x, y) = encoder(), views()
    value = hk.info_nce(model(x), model(y))
    value.backward()
    expected = gradients(model)
    for _ in range(4):
        found = hk.cached_step(model, [x, y], hk.info_nce, chunk_size=5, scale=lambda loss: loss / 4)
    assert_same([found], [value.detach()])
    assert_same(gradients(model), expected)


# Progress and memory


def test_progress() -> None:
    model, frozen, (x, y) = encoder(), encoder(seed=1).requires_grad_(False), views()
    seen: list[tuple[int, int]] = []
    hk.cached_step([model, frozen], [x, y], hk.info_nce, chunk_size=8, progress=lambda *of: seen.append(of))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 12]
    assert {total for _, total in seen} == {12}


def test_the_first_pass_has_one_graph_for_each_input() -> None:
    model, (x, y), modes = encoder(), views(), []

    def encode(rows: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return model(rows)

    hk.cached_step(encode, [x, y], hk.info_nce, chunk_size=8)
    assert modes == [True, False, False] * 2 + [True] * 6


def test_one_graph_at_a_time() -> None:
    """Counts the rows that are saved for a backward pass: those of a chunk, and the embeddings for the loss."""
    saved: dict[int, int] = {}
    most = 0

    class Saving(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.token = Token(len(x))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    class Token:
        def __init__(self, rows: int) -> None:
            nonlocal most
            saved[id(self)] = rows
            most = max(most, sum(saved.values()))

        def __del__(self) -> None:
            saved.pop(id(self), None)

    model, (x, y) = encoder(), views()
    hk.cached_step(lambda rows: Saving.apply(model(rows)), [x, y], hk.info_nce, chunk_size=4)
    assert most == 4
    assert not saved


# Errors


def encode_nothing(rows: Tensor) -> None:
    return None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"chunk_size": 0}, ValueError, "^chunk_size must be >= 1, got 0"),
        ({"chunk_size": [4, -1]}, ValueError, "^chunk_size must be >= 1, got -1"),
        ({"chunk_size": 4.0}, TypeError, "^chunk_size must be an integer, got 4.0"),
        ({"chunk_size": True}, TypeError, "^chunk_size must be an integer, got True"),
        ({"chunk_size": [4, 4, 4]}, ValueError, "^chunk_size must be one, or one for each of the 2 inputs, got 3"),
        ({"encoders": "encoder"}, TypeError, "^encoders must be callable, got str"),
        ({"encoders": [encoder()]}, ValueError, "^encoders must be one, or one for each of the 2 inputs, got 1"),
        ({"inputs": []}, ValueError, "^inputs must have at least one input, got none"),
        ({"inputs": [torch.ones(3, WIDTH), "y"]}, TypeError, r"^inputs\[1\] must be a tensor .* got str of str"),
        ({"inputs": [{"a": 3}]}, TypeError, r"^inputs\[0\] must be a tensor .* got dict of int"),
        ({"inputs": [{}]}, TypeError, r"^inputs\[0\] must be a tensor .* got dict of nothing"),
        ({"inputs": [torch.ones(0, WIDTH)]}, ValueError, r"^inputs\[0\] must not be empty, got shapes \[\(0, 7\)\]"),
        (
            {"inputs": [(torch.ones(3, 2), torch.ones(4))]},
            ValueError,
            r"^the tensors of inputs\[0\] must have the same leading dimension, got shapes \[\(3, 2\), \(4,\)\]",
        ),
        ({"loss": 3}, TypeError, "^loss must be callable, got int"),
        ({"scale": torch.amp.GradScaler("cpu")}, TypeError, "^scale must be callable, got GradScaler: give its method"),
        ({"progress": True}, TypeError, "^progress must be callable, got bool"),
        ({"loss": lambda x, y: x}, ValueError, r"^loss must give a scalar, got shape \(22, 5\)"),
        ({"loss": lambda x, y: 3.0}, TypeError, "^loss must return a scalar tensor, .* got float"),
        ({"loss": lambda x, y: (x.sum(), y)}, TypeError, "^loss must return a scalar tensor, .* got tuple"),
        ({"loss": lambda x, y: {"loss": 2.0}}, TypeError, "^loss must give a scalar tensor, got float"),
        ({"loss": lambda x, y: x.detach().sum()}, ValueError, "^loss must give a tensor that requires a gradient"),
        ({"scale": lambda value: value.detach()}, ValueError, "^scale must give a tensor that requires a gradient"),
        ({"scale": lambda value: 3.0}, TypeError, "^scale must give a scalar tensor, got float"),
        (
            {"encoders": encoder().requires_grad_(False), "loss": hk.info_nce},
            ValueError,
            "^loss must give a tensor that requires a gradient",
        ),
        (
            {"encoders": lambda rows: rows[1:]},
            ValueError,
            r"^the encoder of inputs\[0\] must return one row for each of 4 rows, got shape \(3, 7\)",
        ),
        ({"encoders": encode_nothing}, TypeError, r"^the encoder of inputs\[0\] must return a floating .* NoneType"),
        (
            {"encoders": lambda rows: rows.argmax(1)},
            TypeError,
            r"^the encoder .* must return a floating .* torch.int64",
        ),
        ({"encoders": lambda rows: rows.sum()}, TypeError, r"^the encoder .* must return a floating tensor of rows"),
        (
            {"encoders": lambda rows: rows[:, : len(rows)]},
            ValueError,
            r"^the encoder of inputs\[0\] must return rows of one shape.* got \(2,\), .* after \(4,\)",
        ),
        (
            {"encoders": lambda rows: rows if len(rows) > 2 else [rows]},
            ValueError,
            r"^the encoder of inputs\[0\] must return the same structure for every chunk",
        ),
        (
            {"encoders": lambda rows: rows.mul_(1)},
            ValueError,
            r"^the encoder of inputs\[0\] must not write into its input",
        ),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model, temperature = encoder(), Temperature()
    before = copy.deepcopy(model.state_dict())
    arguments = {"encoders": model, "inputs": list(views()), "loss": temperature, "chunk_size": 4} | change
    with pytest.raises(error, match=message):
        hk.cached_step(**arguments)
    assert all(p.grad is None for p in [*model.parameters(), *temperature.parameters()])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_disabled_gradients(mode: Callable[[], Any]) -> None:
    with mode(), pytest.raises(ValueError, match=r"^cached_step needs gradients enabled, got"):
        hk.cached_step(encoder(), list(views()), hk.info_nce, chunk_size=4)


def test_another_structure_the_second_time() -> None:
    model, (x, y), calls = encoder(), views(), []

    def encode(rows: Tensor) -> Any:
        calls.append(1)
        return model(rows) if len(calls) <= 12 else [model(rows)]

    with pytest.raises(ValueError, match=r"^the encoder of inputs\[0\] must return the same structure when a chunk is"):
        hk.cached_step(encode, [x, y], hk.info_nce, chunk_size=4)
