"""What the reports read from machine code, on listings whose answers are known."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.kernels import cubin
from tools.kernels.cubin import Instruction
from tools.kernels.hazards import serialised, touched, walk
from tools.kernels.rows import of_code
from tools.kernels.sass import Flow, Shape, main_loop

CSRC = Path(__file__).parents[1] / "csrc"


def listing(text: str) -> list[Instruction]:
    """Instructions, one a line, with names in front of lines that branches go to."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places: dict[str, int] = {}
    code: list[str] = []
    for line in lines:
        if line.endswith(":"):
            places[line[:-1]] = 16 * len(code)
        else:
            code.append(line)
    for name, place in places.items():
        code = [re.sub(rf"\b{name}$", f"{place:#x}", line) for line in code]
    found = cubin.parsed(f"        /*{16 * i:04x}*/                   {line} ;" for i, line in enumerate(code))
    assert len(found) == len(code)
    return found


# Both products of a tile of 64 x 32 pairs with D = 16, and a weight for each pair.
FIRST = "HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT, gsb0"
SECOND = """
    HGMMA.64x16x16.F32.BF16 R40, R56, gdesc[UR8], R40
    HGMMA.64x16x16.F32.BF16 R40, R60, gdesc[UR8], R40, gsb0
"""
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
EXPONENTIALS = "\n".join(f"MUFU.EX2 R{24 + i}, R{24 + i}" for i in range(16))
PACK = "\n".join(f"F2FP.BF16.F32.PACK_AB R{56 + i}, R{25 + 2 * i}, R{24 + 2 * i}" for i in range(8))
SHAPE = Shape(products=2 * 16, pairs=16)


def tile(mask: str = "") -> str:
    return f"{FIRST}\n{WAIT}\n{mask}\n{EXPONENTIALS}\n{PACK}\nWARPGROUP.ARRIVE\n{SECOND}\n{WAIT}"


TILE = len(listing(tile()))


def test_the_loop_that_masks_nothing_is_counted() -> None:
    masked = tile("\n".join(f"FSEL R{24 + i}, R{24 + i}, R2, P0" for i in range(16)))
    code = listing(f"first:\n{masked}\n@P0 BRA first\nsecond:\n{tile()}\n@P0 BRA second\nEXIT")
    loop = main_loop(Flow(code), SHAPE)
    assert loop.per_pair == (TILE + 1) / 16
    assert (loop.pairs, loop.round.matrix, loop.round.exponentials, loop.round.special) == (16, 3, 16, 0)
    assert loop.round.other == TILE + 1 - 3 - 16


def test_products_tell_the_pairs_of_a_round_that_makes_two_tiles() -> None:
    code = listing(f"first:\n{tile()}\n{tile()}\n@P0 BRA first\nEXIT")
    assert main_loop(Flow(code), Shape(products=2 * 16)).per_pair == (2 * TILE + 1) / 32


def test_the_branch_that_masks_is_not_counted() -> None:
    # With a loop inside, and another branch that is short because it leaves out the weights.
    mask = "MOV R5, R5\nbits:\nIADD3 R6, R6, R7, RZ\n@P2 BRA bits\nFSEL R24, R24, R2, P0"
    code = listing(f"""
        loop:
        {FIRST}
        {WAIT}
        @P3 BRA none
        @P1 BRA unmasked
        {mask}
        unmasked:
        {EXPONENTIALS}
        BRA weighed
        none:
        MOV R24, RZ
        weighed:
        {PACK}
        {SECOND}
        {WAIT}
        @P0 BRA loop
        EXIT
    """)
    loop = main_loop(Flow(code), SHAPE)
    assert loop.round.instructions == TILE - 1 + 4  # without the fence; four branches
    assert loop.round.exponentials == 16


def test_exponentials_by_polynomials_weigh_pairs_too() -> None:
    # With column sums, which take the time of half the polynomials, and without.
    few, many = ("\n".join(["MUFU.EX2 R24, R24"] * (8 - n) + ["FFMA R24, R25, R26, R27\nLEA R24, R25, R26, 0x17"] * n)
                 for n in (1, 2))  # fmt: skip
    code = listing(f"""
        loop:
        {FIRST}
        {WAIT}
        @P1 BRA alone
        {few}
        BRA weighed
        alone:
        {many}
        weighed:
        @P1 BRA next
        SHFL.BFLY PT, R2, R24, 0x2, 0x1f
        FADD R2, R2, R24
        next:
        @P0 BRA loop
        EXIT
    """)
    row = of_code(code, Shape(16, 16))
    assert (row["exponentials"], row["polynomials"], row["other"]) == (6, 2, 1 + 4 + 3)
    assert row["per_pair"] == round((2 + 6 + 4 + 3) / 16, 2)  # with three branches, and nothing of the column sums


@pytest.mark.parametrize("shape", [Shape(4 * 16, 16), Shape(4 * 16, 16, rounds=4)], ids=["products", "rounds"])
@pytest.mark.parametrize("peeled", [0, 1])
def test_inner_loops_count_as_often_as_they_go_round(shape: Shape, peeled: int) -> None:
    # A row of four steps: all in a loop, or the first one before it.
    step = f"{FIRST}\n{WAIT}\nMOV R5, R6\n"
    code = listing(f"tile:\nMOV R7, RZ\n{step * peeled}inner:\n{step}@P1 BRA inner\n{EXPONENTIALS}\n@P0 BRA tile\nEXIT")
    loop = main_loop(Flow(code), shape)
    assert loop.round.matrix == 4
    assert loop.round.instructions == 1 + 3 * 4 + (4 - peeled) + 16 + 1
    assert loop.pairs == 16


def test_a_kernel_of_one_tile_is_counted_whole() -> None:
    stores = "STG.E.128 desc[UR6][R2.64], R24\nSTG.E.U16 desc[UR6][R2.64], R24\nSTG.E desc[UR6][R2.64], R24"
    code = listing(f"S2R R2, SR_TID.X\n@P0 EXIT\n{FIRST}\n{WAIT}\n{EXPONENTIALS}\n{stores}\nEXIT")
    row = of_code(code, Shape(16, 16))
    assert (row["per_pair"], row["pairs"]) == (round(len(code) / 16, 2), 16)
    assert row["stores"] == {"16": 1, "32": 1, "128": 1}
    assert (row["instruction"], row["late"], row["hazards"]) == ("wgmma", 16, 0)


def test_warps_with_roles_are_found_behind_a_table() -> None:
    # Nothing but the table leads to either role.
    code = listing(f"BRX R2 -0x40\nUTMALDG.2D [UR8], [UR4]\nEXIT\nweigh:\n{tile()}\n@P0 BRA weigh\nEXIT")
    assert main_loop(Flow(code), Shape(2 * 16)).per_pair == (TILE + 1) / 16


# ---- registers of unfinished products -------------------------------------------------------------------------------

# As in the contract kernel: weights of a tile are made while the second product of the tile before runs.
PIPELINE = f"""
    {FIRST}
    {WAIT}
    {PACK}
    loop:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R2
    @!P0 BRA loop
    WARPGROUP.ARRIVE
    {FIRST}
    {SECOND}
    WARPGROUP.DEPBAR.LE gsb0, 0x1
    @P1 BRA unmasked
    FSEL R24, R24, R2, P0
    unmasked:
    {EXPONENTIALS}
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    {PACK}
    @P2 BRA loop
    {SECOND}
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    STG.E.64 desc[UR6][R2.64], R40
    EXIT
"""


def hazards(code: list[Instruction]) -> list[str]:
    return [code[i].opcode for i in sorted(walk(Flow(code)).hazards)]


def changed(old: str, new: str, which: int = 0) -> str:
    """The pipeline with one of its lines exchanged."""
    parts = PIPELINE.split(old)
    assert len(parts) > which + 1
    return old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :])


def test_right_code_has_no_hazards() -> None:
    code = listing(PIPELINE)
    found = walk(Flow(code))
    assert found.hazards == set()
    beside = {i for i, instruction in enumerate(code) if instruction.opcode == "MUFU.EX2"}
    assert len(beside) == 16
    assert beside.isdisjoint(found.idle)


FENCE, PARTLY, BRANCH = "WARPGROUP.ARRIVE\n", "WARPGROUP.DEPBAR.LE gsb0, 0x1", "@P1 BRA unmasked"


@pytest.mark.parametrize(
    ("text", "touching"),
    [
        (changed(PARTLY, f"MOV R3, R24\n{PARTLY}"), ["MOV"]),
        (changed(PARTLY, f"MOV R39, R3\n{PARTLY}"), ["MOV"]),
        (changed(PARTLY, f"MOV R63, R3\n{PARTLY}"), ["MOV"]),
        (changed(PARTLY, f"{PARTLY}\nFADD R3, R47, R3"), ["FADD"]),
        (changed(PARTLY, f"{PARTLY}\nLDG.E.128 R38, desc[UR6][R2.64]"), ["LDG.E.128"]),
        (changed(PARTLY, f"{PARTLY}\nSTG.E desc[UR6][R55.64], R2"), ["STG.E"]),
        (changed(BRANCH, f"{BRANCH}\nMOV R3, R56"), ["MOV"]),
        # A wait too few, under a condition, for too little, and one that another path goes around.
        (changed(PARTLY, ""), ["FSEL"] + ["MUFU.EX2"] * 16),
        (changed(PARTLY, f"@P3 {PARTLY}"), ["FSEL"] + ["MUFU.EX2"] * 16),
        (changed(PARTLY, "WARPGROUP.DEPBAR.LE gsb0, 0x2"), ["FSEL"] + ["MUFU.EX2"] * 16),
        (changed(WAIT, "", which=1), ["F2FP.BF16.F32.PACK_AB"] * 8),
        (changed(WAIT, "", which=2), ["STG.E.64"]),
        (changed(BRANCH, "@P1 BRA after").replace(f"{WAIT}\n    {PACK}\n    @P2", f"{WAIT}\n after:\n{PACK}\n @P2"),
         ["F2FP.BF16.F32.PACK_AB"] * 8),
        # A product on registers of another one.
        (changed("HGMMA.64x16x16.F32.BF16 R40, R56", "HGMMA.64x16x16.F32.BF16 R40, R24"),
         ["HGMMA.64x16x16.F32.BF16", "FSEL"] + ["MUFU.EX2"] * 4),
        (changed("R40, R60, gdesc[UR8], R40", "R44, R60, gdesc[UR8], R44"), ["HGMMA.64x16x16.F32.BF16"]),
    ],
)  # fmt: skip
def test_planted_hazards_are_found(text: str, touching: list[str]) -> None:
    assert hazards(listing(text)) == touching


def test_a_product_that_runs_into_the_next_round_is_met_there() -> None:
    text = f"loop:\nMOV R3, R24\nWARPGROUP.ARRIVE\n{FIRST}\n@P0 BRA loop\n{WAIT}\nEXIT"
    assert hazards(listing(text)) == ["MOV"]
    assert hazards(listing(text.replace(f"{FIRST}\n", f"{FIRST}\n{WAIT}\n"))) == []


@pytest.mark.parametrize(
    ("opcode", "operands", "registers"),
    [
        ("MOV", "R3, R24.reuse", {3, 24}),
        ("FADD", "R3, -R4, |R5|", {3, 4, 5}),
        ("FFMA", "R3, R4, UR5, RZ", {3, 4}),
        ("IMAD.WIDE.U32", "R2, R5, 0x4, R8", {2, 3, 5, 8, 9}),
        ("IMAD.WIDE.U32", "R90, R119, UR17, RZ", {90, 91, 119}),
        ("IMAD.WIDE.U32.X", "R90, P1, R119, R121, R2, P0", {90, 91, 119, 121, 2, 3}),
        ("LDG.E.128", "R4, desc[UR6][R2.64+0x10]", {2, 3, 4, 5, 6, 7}),
        ("STG.E.64", "desc[UR6][R2.64], R4", {2, 3, 4, 5}),
        ("STG.E.U16", "desc[UR6][R2.64], R4", {2, 3, 4}),
        ("LDGSTS.E.BYPASS.128", "[R9], desc[UR18][R28.64], P2", {9, 28, 29}),
        ("LDSM.16.M88.4", "R4, [R9+UR4]", {4, 5, 6, 7, 9}),
        ("CS2R", "R4, SRZ", {4, 5}),
        ("CS2R.32", "R4, SR_CLOCKLO", {4}),
        ("SHF.R.S64", "R22, R22, UR8, R23.reuse", {22, 23}),
        ("DFMA", "R2, R4, R6, R8", {2, 3, 4, 5, 6, 7, 8, 9}),
        ("F2F.F64.F32", "R2, R9", {2, 3, 9, 10}),
        ("HMMA.16816.F32.BF16", "R4, R8, R12, RZ", {4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "P0, [UR5+0x28000], R2", {2}),
        ("BRA", "0x10", set()),
    ],
)
def test_registers_of_an_instruction(opcode: str, operands: str, registers: set[int]) -> None:
    assert touched(opcode, operands) == sum(1 << register for register in registers)


# ---- products that the compiler waits for one by one ----------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is missing")
@pytest.mark.skipif(cubin.find_tool("cuobjdump") is None, reason="cuobjdump is missing")
def test_a_serialised_kernel_is_seen(tmp_path: Path) -> None:
    made = tmp_path / "serialised.cubin"
    subprocess.run(["nvcc", "-arch=sm_90a", "-cubin", CSRC / "serialised.cu", "-o", made], check=True)
    code = {name: instructions for (_, name), instructions in cubin.instructions(made)}
    assert set(code) == {"asynchronous", "serialised"}
    for name, instructions in code.items():
        products = sum(each.opcode.startswith("HGMMA") for each in instructions)
        assert products >= 3  # of each round, and the compiler unrolls rounds
        assert serialised(instructions) == (products * 2 // 3 if name == "serialised" else 0)
        assert hazards(instructions) == []
    # The compiler's own code with a fault: without the wait what reads the sums does so too early.
    wrong = [each for each in code["asynchronous"] if not each.opcode.startswith("WARPGROUP.DEPBAR")]
    assert len(wrong) < len(code["asynchronous"])
    assert hazards(wrong) != []


def test_a_wait_between_products_of_two_sums_serialises_nothing() -> None:
    assert serialised(listing(PIPELINE)) == 0
    between = changed("R56, gdesc[UR8], R40\n", f"R56, gdesc[UR8], R40, gsb0\n{WAIT}\n", which=0)
    assert serialised(listing(between)) == 1
