"""How Triton multiplies float32 operands: what the kernels are asked for, and what the compiler makes of it.

The interpreter computes every product in float32. So neither can be seen in a value here.
"""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import DEVICE, needs_triton, on_device

pytest.importorskip("triton")

import hyperkern as hk
from hyperkern.backends.triton import primitives
from hyperkern.backends.triton.launch import Launch, launch


@needs_triton
@on_device
@pytest.mark.parametrize("dim", [8, 100], ids=["one-pass", "panels"])
@pytest.mark.parametrize(
    ("setting", "precision", "dtype"),
    [
        ("highest", "tf32x3", torch.float32),
        ("high", "tf32", torch.float32),
        ("medium", None, torch.bfloat16),  # of which there is one product only
    ],
)
def test_the_setting_of_pytorch_is_what_kernels_are_asked_for(
    setting: str, precision: str | None, dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set()

    def noted(planned: Launch, device: torch.device, *pointers: Any) -> None:
        asked.add((planned.constants["PRECISION"] if precision else None, pointers[0].dtype))
        launch(planned, device, *pointers)

    monkeypatch.setattr(primitives, "launch", noted)
    x, y = (torch.randn(5, dim, device=DEVICE, requires_grad=True) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        for loss in (
            hk.align_uniform(x, y, backend="triton").loss,  # bounded
            hk.info_nce(x, y, temperature=0.001, backend="triton"),  # relative to a maximum
            hk.siglip(x, y, logit_scale=3.0, logit_bias=-1.0, backend="triton"),
        ):
            loss.backward()
    finally:
        torch.set_float32_matmul_precision(before)
    assert asked == {(precision, dtype)}


PRODUCTS = """
from hyperkern.backends.triton import config
from tools.kernels import triton as report
for operand in ("float32", "tf32"):
    cases = report.cases(config.of_name("sm_90"))
    case = next(case for case in cases if (case.kernel, case.operand) == ("contract", operand))
    print(report.compiled(case).asm["ttgir"].count("warp_group_dot "))
"""


def test_three_products_of_the_tensor_cores_for_one_of_float32() -> None:
    # The kernel with both products, similarities and weighted rows.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", PRODUCTS], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    of_float32, of_tf32 = map(int, result.stdout.split())
    assert of_float32 == 3 * of_tf32 > 0


SUMS_AND_WEIGHTS = """
from hyperkern.backends.triton import config
from tools.kernels import triton as report
for case in report.cases(config.of_name("sm_90")):
    if (case.operand, case.dim) == ("bfloat16", 64) and "MODE" in case.constants:
        ptx = report.compiled(case).asm["ptx"]
        print(case.kernel, case.constants["MODE"], "mul.rn.f32" in ptx, "fma.rn.f32" in ptx)
"""


def test_a_logit_is_rounded_before_a_log_sum_exp_is_off_it() -> None:
    # In the sums as in the weights, whether or not a mask stands between them: the same number is subtracted from.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", SUMS_AND_WEIGHTS], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    found = [line.split() for line in result.stdout.splitlines()]
    running = [line for line in found if line[1] in ("running", "single")]
    assert {line[0] for line in running} == {"sums", "contract", "contract_sides"}
    assert all(line[2:] == ["True", "False"] for line in running)
    assert any(line[3] == "True" for line in found)  # elsewhere it costs nothing
