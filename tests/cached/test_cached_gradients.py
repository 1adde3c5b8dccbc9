"""The step in chunks has the gradients of one large batch: losses, structures of inputs and outputs, frozen parts."""

import functools
from typing import Any, NamedTuple

import pytest
import torch
from cached_models import DIM, ROWS, WIDTH, Temperature, assert_same, encoder, gradients, views
from torch import Tensor, nn

import hyperkern as hk


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
