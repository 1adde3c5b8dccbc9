"""Prints what Triton makes of the two products of a one-pass kernel for sm_90: ``attention_ptx.py DIM COLUMNS``."""

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def attention(p_x, p_y, p_out, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr):
    o_m, o_n, o_d = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DIM)
    b_x = tl.load(p_x + o_m[:, None] * DIM + o_d[None, :])
    b_out = tl.zeros((ROWS, DIM), tl.float32)
    for first in range(0, n, COLUMNS):
        b_y = tl.load(p_y + (first + o_n)[:, None] * DIM + o_d[None, :])
        b_weights = tl.exp2(tl.dot(b_x, tl.trans(b_y)))
        b_out = tl.dot(b_weights.to(tl.bfloat16), b_y, b_out)
    tl.store(p_out + o_m[:, None] * DIM + o_d[None, :], b_out)


if __name__ == "__main__":
    constants = {"ROWS": 64, "COLUMNS": int(sys.argv[2]), "DIM": int(sys.argv[1])}
    signature = {"p_x": "*bf16", "p_y": "*bf16", "p_out": "*fp32", "n": "i32", **dict.fromkeys(constants, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
    source = ASTSource(attention, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
