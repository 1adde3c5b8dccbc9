"""The plan: what runs on a GPU machine, in the order of evidence per second.

Seconds on one H200 with 16 cores, as predicted; none has been measured yet. The limits of a whole run add up to 530,
and with the look at the machine before them, about 5, and the grace of the last step, 5, they are 540. The first
tile comes before everything, since figures of a wrong kernel are worth nothing; then large batches, for which the
kernels were made. What steps leave of their limits others may take, up to twice their own; at the end tests and
sanitizers take more, of which there always are more than there is time for.

| step | predicted | why so much |
| --- | ---: | --- |
| build | 0 or 75 | the extension travels with the tree, or is built by nvcc from twelve files |
| info | 5 | an import |
| tile-cuda, tile-triton | 15, 30 | 12 processes, a context of the GPU each; 20 compilations in each, 12 at a time |
| warm-triton | 52 | 570 kernels for bfloat16, in 4 processes of 8 compilers |
| large | 15 each | 18 points of N = 65,536, 0.5 s each, of calls of 3 to 30 ms |
| candidates | 22 | 19 configurations compiled at once, 0.1 s each measured |
| specialised | 12 | 12 configurations likewise; more than its limit, out of what others leave |
| small | 25 each | 39 points, 0.6 s each: a graph is captured with hundreds of calls |
| warm-compiled, compiled | 20, 12 each | 26 formulas, 12 at a time; then from the compiler's cache |
| panels | 10, 12 | 6 points |
| gate | 25, 85 | every loss and dtype; Triton's other dtypes are compiled, 1,420 kernels, on 16 cores |
| tests | 60 each | a thousand tests, in 12 processes |
| million | 20 each | 11 calls of a second or more |
| memcheck … | 60 each | tests that start and end in odd places, fifty times as slow |

That is 450 without a build, and tests and sanitizers take what is left.
"""

from .run import PYTHON, ROWS, Run, Step

BUDGETS = {"full": 540.0, "smoke": 60.0, "cpu": 3600.0}
# Of a step on a CPU, where other work may be going on.
PATIENCE = 300.0
BACKENDS = ("cuda", "triton")
NEEDS = {"cuda": ("extension",), "triton": ("triton",)}
BFLOAT16 = ("--dtypes", "bfloat16")
FIRST_LOSSES = ("uniformity", "align_uniform", "info_nce", "nt_xent", "clip", "siglip")
OTHER_LOSSES = ("sup_con", "clip_learned", "uniformity_queue", "info_nce_queue", "info_nce_moco", "dcl", "dclw")
ALL_LOSSES = (*FIRST_LOSSES, *OTHER_LOSSES)
TEST_FILES = ("tests/backends", "tests/losses")
# In the names of tests the device is called as the backend is.
OF_BACKEND = {"cuda": "cuda-cuda or test_cuda", "triton": "triton"}
# Ragged tiles and dimensions of the primitives and of whole losses, and rings that start again.
IN_ODD_PLACES = "shape-1-7 or (end_in_zeros and bfloat16) or wraps"
# A test that fails is told of at once: its step may be ended before pytest's own account.
AT_ONCE = {"HYPERKERN_FAILURES": "at once"}
# A call that fails and is looked after, as libraries make some, is no fault of a kernel.
SANITIZER_OPTIONS = {"memcheck": ("--report-api-errors", "no")}
# Each tensor is an allocation of its own, behind which nothing may be touched.
ALLOCATIONS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def python(*words: str, limit: float, most: float | None = None) -> Run:
    """A module of this tree; predictions may be wrong by a factor of two where there is time."""
    return Run((PYTHON, "-m", *words), limit, 2 * limit if most is None else most)


def on_cpu(*words: str) -> Run:
    """The same in small, in the interpreter or the emulator."""
    return python(*words, limit=PATIENCE)


def bench(cases: str, sizes: str, dims: str, *words: str) -> tuple[str, ...]:
    """Rows of ``hyperkern bench`` in bfloat16."""
    points = ("--cases", cases, "--sizes", sizes, "--dims", dims, *BFLOAT16)
    return ("hyperkern", "bench", "--device", "cuda", *points, *words, "--jsonl", ROWS)


def tiny(cases: str, *words: str) -> tuple[str, ...]:
    """A few rows on a CPU."""
    # Half precision is no faster there, and its product, which is measured with each case, takes long.
    points = ("--cases", cases, "--sizes", "20", "--dims", "16", "--dtypes", "float32", "--rounds", "1", "--no-memory")
    return ("hyperkern", "bench", "--device", "cpu", *points, "--implementations", "hyperkern", *words, "--jsonl", ROWS)


def check(backend: str, *words: str) -> tuple[str, ...]:
    """The gate of every primitive and loss, in processes of their own, which compile at the same time."""
    return ("hyperkern", "check", "--backend", backend, *words, "--jsonl", ROWS)


def forced(backend: str) -> dict[str, str]:
    """The backend of the losses in a benchmark."""
    return {"HYPERKERN_BACKEND": backend}


CPU_CHECK = ("--device", "cpu", "--quick")


def first_tile(backend: str) -> Step:
    """One tile of every kernel."""
    words = ("tools.first_tile", "--backend", backend, "--jsonl", ROWS)
    limit, smoke = {"cuda": (25.0, 8.0), "triton": (35.0, 14.0)}[backend]
    return Step(
        f"tile-{backend}",
        "one tile of every kernel, element by element; two losses bit for bit, and at N = 20,011 against float64",
        python(*words, limit=limit),
        # One class is computed where it is asked for: PyTorch is imported once.
        python(*words, "--dtypes", "bfloat16", "--dims", "128", limit=smoke),
        on_cpu(*words, "--device", "cpu", "--sizes", "small", "--dtypes", "bfloat16", "--dims", "20,72", "--jobs", "2"),
        needs=NEEDS[backend],
    )


def large(backend: str) -> Step:
    """Where the arithmetic decides."""
    names = ("--implementations", "hyperkern,attention", "--no-memory")
    return Step(
        f"large-{backend}",
        "uniformity and clip at N = 65,536 beside the library's product and attention",
        python(*bench("uniformity,clip,yardstick", "65536", "64,128,256", "--modes", "forward,both", *names), limit=20),
        python(*bench("uniformity,clip", "8192", "128", *names, "--rounds", "1"), limit=7),
        on_cpu(*tiny("uniformity", "--modes", "forward,both")),
        forced(backend),
        NEEDS[backend],
    )


def small(backend: str) -> Step:
    """Ordinary batches."""
    names = ("--executions", "eager,cudagraph", "--implementations", "hyperkern,dense", "--no-memory", "--rounds", "1")
    return Step(
        f"small-{backend}",
        "all losses at N = 256, 1,024 and 4,096, eager and as a graph, beside the dense formula",
        python(*bench(",".join(ALL_LOSSES), "256,1024,4096", "128", *names), limit=25),
        None,
        on_cpu(*tiny("siglip", "--executions", "eager,cudagraph")),
        forced(backend),
        NEEDS[backend],
    )


COMPILED = ("--executions", "compile", "--implementations", "hyperkern", "--no-memory", "--rounds", "1")
# In both steps, since it might be part of the key of a compiled graph.
COMPILER = {**forced("triton"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def compiled() -> tuple[Step, ...]:
    """All losses through the compiler, for which a backend is one operator: one backend stands for both.

    At a size at which the gate and the clock have one shape. In two parts, since a command has no rows before all its
    gates are through, and has compiled everything by then.
    """
    return (
        Step(
            "warm-compiled",
            "nothing: the compiler's cache is filled, many losses at a time",
            python(
                *("tools.beside", "--jobs", "13", "--each", ",".join(ALL_LOSSES), PYTHON, "-m"),
                *bench("EACH", "256", "128", *COMPILED)[:-2],
                limit=20,
            ),
            None,
            on_cpu(
                *("tools.beside", "--jobs", "2", "--each", "uniformity,siglip", PYTHON, "-m"),
                *tiny("EACH", "--executions", "eager")[:-2],
            ),
            COMPILER,
            ("triton",),
        ),
        *(
            Step(
                f"compiled-{part}",
                f"losses at N = 256 through torch.compile, beside the compiled dense formula: {', '.join(losses)}",
                python(*bench(",".join(losses), "256", "128", *COMPILED), limit=12, most=40),
                None,
                on_cpu(*tiny(losses[-1], "--executions", "eager")),  # no C++ compiler has to be there
                COMPILER,
                ("triton",),
            )
            for part, losses in (("first", FIRST_LOSSES), ("others", OTHER_LOSSES))
        ),
    )


def panels(backend: str) -> tuple[Step, Step]:
    """Rows too long for a tile."""
    names = ("--implementations", "hyperkern", "--no-memory")
    first, second = {"cuda": (12.0, 10.0), "triton": (14.0, 12.0)}[backend]
    return (
        Step(
            f"panels-{backend}",
            "rows of 512 and 768: uniformity and clip at N = 32,768",
            python(*bench("uniformity,clip", "32768", "512,768", *names), limit=first),
            None,
            on_cpu(*tiny("uniformity", "--dims", "80")),
            forced(backend),
            NEEDS[backend],
        ),
        Step(
            f"moco-{backend}",
            "rows of 1,024 and 2,048 against a queue: info_nce of 4,096 x 131,072",
            python(*bench("info_nce_moco", "4096", "1024,2048", *names, "--rounds", "1"), limit=second),
            None,
            None,  # a queue of this size is too much, and another is what the others walk through
            forced(backend),
            NEEDS[backend],
        ),
    )


def gate(backend: str) -> Step:
    """Everything against float64; of Triton, whose kernels are compiled for it, what a first use checks."""
    quick, few = ("--quick", "--jobs", "12"), ("--products", "bfloat16", "--dims", "128")
    full = {"cuda": ("--jobs", "8"), "triton": ("--products", "float16,tf32,float32", *quick)}[backend]
    return Step(
        f"gate-{backend}",
        "every primitive and loss in every dtype against float64",
        python(*check(backend, *full), limit={"cuda": 24.0, "triton": 40.0}[backend]),
        python(*check(backend, *quick, *few), limit=10) if backend == "cuda" else None,
        on_cpu(*check(backend, *CPU_CHECK)),
        needs=NEEDS[backend],
    )


def tests(backend: str) -> Step:
    """The suite on the device."""
    words, parallel = ("pytest", "-q", "-p", "no:cacheprovider"), ("-n", "12", "--dist", "worksteal")
    few = ("tests/backends/test_primitives.py", "-k", f"{backend}-cpu and shape-1-1-1")
    return Step(
        f"tests-{backend}",
        "the tests of backends and losses on the device",
        python(*words, *parallel, "-m", "gpu", "-k", OF_BACKEND[backend], *TEST_FILES, limit=8, most=80),
        None,
        on_cpu(*words, *few),
        AT_ONCE,
        NEEDS[backend],
    )


def million(backend: str) -> Step:
    """What no dense code can do."""
    words = ("--implementations", "hyperkern", "--rounds", "1", "--longest", "60")
    return Step(
        f"million-{backend}",
        "uniformity and its gradient at N = 1,048,576 in O(N D) memory",
        python(*bench("uniformity", "1048576", "128", *words), limit=20),
        None,
        on_cpu(*tiny("uniformity", "--longest", "60")),
        forced(backend),
        NEEDS[backend],
    )


def sanitizer(tool: str, backend: str) -> Step:
    """The kernels under a tool that watches every access."""
    keyword = f"({OF_BACKEND[backend]}) and ({IN_ODD_PLACES})"
    words = ("--tool", tool, "--error-exitcode", "9", "--print-limit", "5", *SANITIZER_OPTIONS.get(tool, ()))
    words += (PYTHON, "-m", "pytest", "-q", "-m", "gpu")
    return Step(
        f"{tool}-{backend}",
        f"{tool} on small problems that start and end in odd places",
        Run(("compute-sanitizer", *words, "-k", keyword, "-p", "no:cacheprovider", "tests/backends"), 2, most=90),
        None,
        None,
        {**AT_ONCE, **ALLOCATIONS, **({"HYPERKERN_POISON": "off"} if tool == "initcheck" else {})},
        needs=(*NEEDS[backend], "sanitizer"),
    )


PLAN: tuple[Step, ...] = (
    Step(
        "build",
        "nothing: the CUDA extension is built where it has not come along",
        Run((PYTHON, "setup.py", "--quiet", "build_ext", "--inplace"), 75),
        None,
        None,
        {"HYPERKERN_BUILD_CUDA": "1", "HYPERKERN_BUILD_EMULATOR": "0"},
        ("to be built",),
    ),
    Step(
        "info",
        "what is installed, and which backends are usable",
        python("hyperkern", "info", limit=8),
        python("hyperkern", "info", limit=5),
        on_cpu("hyperkern", "info"),
    ),
    first_tile("cuda"),
    first_tile("triton"),
    Step(
        "warm-triton",
        "the kernels of bfloat16 against float64; they are compiled for the steps behind it",
        python(*check("triton", "--quick", "--jobs", "4", "--products", "bfloat16"), limit=45),
        None,
        on_cpu(*check("triton", *CPU_CHECK)),
        needs=NEEDS["triton"],
    ),
    *map(large, BACKENDS),
    Step(
        "candidates",
        "configurations that may be faster than the shipped ones of Triton's kernels",
        python("tools.candidates", "--jobs", "16", "--jsonl", ROWS, limit=22),
        None,
        on_cpu("tools.candidates", "--device", "cpu", "--rows", "128", "--first", "1", "--jsonl", ROWS),
        needs=("triton",),
    ),
    Step(
        "specialised",
        "the same of kernels in which some warps only load, beside the shipped ones",
        python("tools.candidates", "--list", "specialised", "--jobs", "16", "--jsonl", ROWS, limit=6, most=40),
        None,
        on_cpu(
            *("tools.candidates", "--list", "specialised"),
            *("--device", "cpu", "--rows", "128", "--first", "1", "--jsonl", ROWS),
        ),
        needs=("triton",),
    ),
    *map(small, BACKENDS),
    *compiled(),
    *panels("cuda"),
    *panels("triton"),
    *map(gate, BACKENDS),
    *map(tests, BACKENDS),
    *map(million, BACKENDS),
    *(sanitizer(tool, backend) for tool in ("memcheck", "initcheck", "synccheck") for backend in BACKENDS),
)
