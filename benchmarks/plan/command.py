"""The command line of the plan: what runs, where it goes, and what has to be there."""

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .run import ROOT, Session, Step, run_plan
from .steps import BUDGETS, PLAN, SANITIZER_OPTIONS

# In a process of its own: one that has a GPU open shares what other processes do to it.
PROBE = """
import json, sys, torch
from dataclasses import asdict
from hyperkern.bench.machine import describe
device = sys.argv[1]
print(json.dumps(asdict(describe(device)) if device == "cpu" or torch.cuda.is_available() else None))
"""
ON_GPU = 'import torch; torch.ones(1, device="cuda").sum().item()'


def main(argv: Sequence[str] | None = None, plan: Sequence[Step] = PLAN) -> int:
    """Runs the plan, or the steps that are named.

    Returns:
        0; 1 if a step failed; 2 if there is no GPU, or for a wrong argument; 130 if interrupted.
    """
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_check.sh",
        allow_abbrev=False,
        description="Everything that a GPU machine has to show, in nine minutes. PYTHON names the interpreter "
        "(python3), OUT_DIR the folder of result.json, rows.jsonl and log.txt (benchmarks/results/<gpu>/<commit>). "
        "Status 1 if a step failed, 2 without a GPU. benchmarks/plan/steps.py lists the steps.",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--smoke", action="store_true", help="the first evidence, in one minute")
    modes.add_argument("--cpu", action="store_true", help="walk through on a CPU: tests the plan, figures mean nothing")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="these alone, by name or pattern (*-cuda)")
    args = parser.parse_args(argv)
    mode = "smoke" if args.smoke else "cpu" if args.cpu else "full"
    for pattern in args.steps:
        if not any(fnmatchcase(step.name, pattern) for step in plan):
            names = ", ".join(step.name for step in plan)
            parser.error(f"argument STEP: there is no step {pattern!r}; there are {names}")
    steps = [s for s in plan if not args.steps or any(fnmatchcase(s.name, p) for p in args.steps)]
    machine = probe("cpu" if mode == "cpu" else "cuda")
    if machine is None:
        print(
            "gpu_check.sh: no CUDA GPU found by PyTorch; without one, run `make test` (the kernels emulated), or walk "
            "through the plan with --cpu",
            file=sys.stderr,
        )
        return 2
    if os.environ.get("OUT_DIR"):
        out = Path(os.environ["OUT_DIR"])
    else:
        out = ROOT / "benchmarks/results" / machine["device"].replace(" ", "-").lower() / machine["commit"]
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` ends it with what it has, as Ctrl-C does
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        # Of this run alone, so that compilations can be counted.
        for variable, folder in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
            os.environ.setdefault(variable, str(Path(scratch, folder)))
        if mode == "cpu":
            os.environ["TRITON_INTERPRET"] = "1"
        session = Session(mode, BUDGETS[mode], out, Path(scratch), machine, missing_on(mode), started)
        return run_plan(session, steps)


def probe(device: str) -> dict[str, Any] | None:
    """The machine; ``None`` where there is no such device, or it does not answer."""
    command = [sys.executable, "-c", PROBE, device]
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90).stdout
        found: dict[str, Any] | None = json.loads(output.strip().split("\n")[-1])
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return found


def missing_on(mode: str) -> dict[str, Callable[[], str | None]]:
    """What steps need: why it is not there, or ``None``. Asked before each step, since one builds the extension."""
    folder = "hyperkern/backends/cuda"
    library = f"{folder}/{'emulator' if mode == 'cpu' else 'kernels'}.so"

    def extension() -> str | None:
        return None if (ROOT / library).exists() else f"{library} is not built"

    def to_be_built() -> str | None:
        if (ROOT / library).exists():
            return f"{library} is there already"
        return None if shutil.which("nvcc") else "there is no nvcc"

    def triton() -> str | None:
        return None if find_spec("triton") else "Triton is not installed"

    @functools.cache
    def sanitizer() -> str | None:
        if shutil.which("compute-sanitizer") is None:
            return "compute-sanitizer is not here"
        command = ["compute-sanitizer", "--tool", "memcheck", *SANITIZER_OPTIONS["memcheck"], "--error-exitcode", "9"]
        command += [sys.executable, "-c", ON_GPU]
        try:
            works = subprocess.run(command, capture_output=True, timeout=40).returncode == 0
        except subprocess.TimeoutExpired:
            works = False
        return None if works else "compute-sanitizer does not work on this machine"

    return {"extension": extension, "to be built": to_be_built, "triton": triton, "sanitizer": sanitizer}
