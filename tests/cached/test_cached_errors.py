"""What the step in chunks refuses, and that nothing has changed then."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cached_models import WIDTH, Temperature, encoder, views
from torch import Tensor

import hyperkern as hk


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
