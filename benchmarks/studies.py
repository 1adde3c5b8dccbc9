"""Questions with a matrix of their own, by the names that ``python -m benchmarks`` knows."""

from pathlib import Path
from typing import NamedTuple

from hyperkern.bench.load import load_all
from hyperkern.bench.registry import CASES

FOLDER = Path(__file__).parent
PEERS = FOLDER / "peers.py"
# In two views of a batch, each beside the loss that it replaces.
DROP_INS = (
    *("lightly NTXentLoss", "lightly DCLLoss", "lightly DCLWLoss", "lightly HypersphereLoss"),
    *("PML NTXentLoss (two views)", "PML SupConLoss (100 classes)", "OpenCLIP ClipLoss", "OpenCLIP SigLipLoss"),
)
# Those whose memory is that of several tensors, or of a further gradient.
PAIRED = ("info_nce", "info_nce_queue", "clip", "clip_learned", "nt_xent", "dcl", "dclw", "sup_con", "siglip")
VARIANTS = (
    *("uniformity + queue with a gradient", "info_nce + a hard negative per row", "info_nce + ids and log-weights"),
    *("nt_xent + third view", "nt_xent + learned temperature", "sup_con + queue with a gradient"),
    "siglip + learned scale and bias",
)
STEPS = ("step of alignment", "step of align_uniform")


class Study(NamedTuple):
    """A question.

    Attributes:
        asks: it, in words.
        options: of ``hyperkern bench``; what the command is told besides comes behind them, and counts more.
        cases: their names; none: all losses that have a textbook formula.
        file: with the cases and implementations that the package does not have.
        threads: of PyTorch, where a study needs so many.
    """

    asks: str
    options: str
    cases: tuple[str, ...] = ()
    file: Path | None = None
    threads: int | None = None

    def arguments(self) -> list[str]:
        """All options, as words."""
        load_all()
        cases = self.cases or tuple(name for name, case in CASES.items() if case.truth is not None)
        load = [] if self.file is None else ["--load", str(self.file)]
        return ["--device", "cpu", "--dtypes", "float32", *self.options.split(), *load, "--cases", ",".join(cases)]


BESIDE = "--implementations hyperkern,dense,compiled --rounds 31 --seconds 2"
STUDIES = {
    "ordinary": Study(
        "is every loss faster than the usual code, eager and compiled, at ordinary batch sizes?",
        f"--sizes 128,256,512,1024,2048,4096 --dims 128,512 {BESIDE}",
    ),
    "large": Study(
        "and some at large ones?",
        f"--sizes 8192,16384 --dims 128 {BESIDE}",
        ("uniformity", "info_nce", "nt_xent", "clip", "siglip"),
    ),
    "drop-ins": Study(
        "are the drop-ins faster and smaller than what they replace?",
        "--sizes 256,4096 --dims 128 --rounds 15 --seconds 20 --longest 60",
        DROP_INS,
        PEERS,
    ),
    "peaks": Study(
        "how much memory does a loss take, in whatever way it is called?",
        "--sizes 32768 --dims 256 --implementations hyperkern --rounds 1 --seconds 0.01 --longest 3600",
        (*PAIRED, *VARIANTS),
        FOLDER / "variants.py",
        threads=1,
    ),
    "steps": Study(
        "what does cached_step take beside the ordinary step?",
        "--sizes 1024,2048,4096,8192,16384,32768,65536 --dims 64 --longest 600 "
        "--implementations cached_step,by-hand,hyperkern",
        (*STEPS, "align_uniform"),
        FOLDER / "steps.py",
        threads=1,
    ),
}
