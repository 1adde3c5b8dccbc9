"""``python -m examples.paper``: the paper's theory and experiments in small, and its recipes on the real data."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

COMMAND = "python -m examples.paper"
REQUIRED = ("gensim", "h5py", "matplotlib", "mnist1d", "rich", "scipy", "skimage", "sklearn", "torchvision")
# The recipes on the data sets of the paper: a module of `recipes` each, with `main(arguments)`.
RECIPES = {
    "stl10": "the paper's encoder on STL-10",
    "imagenet100": "its variant of MoCo on ImageNet-100, or on all of ImageNet",
    "nyu-depth": "depth of NYU-Depth V2 from frozen features",
    "bookcorpus": "sentences of BookCorpus, evaluated on MR and CR",
}


def parser() -> argparse.ArgumentParser:
    """The command line, but for the recipes' own options."""
    recipes = "\n".join(f"  {name:12} {what}" for name, what in RECIPES.items())
    command = argparse.ArgumentParser(
        prog=COMMAND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Reproduces Wang & Isola (2020), arXiv:2005.10242.\n\n"
        "Without a word, or by 'run': theory and experiments in small, offline, about 20 minutes on two cores.\n"
        "'page' draws docs/paper.md and its figures from results.\n"
        "Where each data set comes from, and where its files belong: docs/paper.md.",
        epilog=f"on the paper's data sets, if you have them ('{COMMAND} stl10 --help'):\n{recipes}",
    )
    words = command.add_subparsers(dest="word", metavar="{run,page," + ",".join(RECIPES) + "}")
    run = words.add_parser("run", help="all that needs no download")
    run.add_argument("--out", type=Path, default=Path("paper-out"), help="folder of the results (%(default)s)")
    run.add_argument("--only", nargs="+", metavar="PART", help="some parts: asymptotics, encoders, depth, sentences")
    cores = min(8, os.cpu_count() or 1)  # each process takes a gigabyte
    run.add_argument("--processes", type=int, default=cores, help="at a time (%(default)s)")
    run.add_argument("--quick", action="store_true", help="the least that runs every line; its figures mean nothing")
    page = words.add_parser("page", help="draw docs/paper.md and its figures")
    page.add_argument("results", type=Path, nargs="?", help="a run's results.json, kept as the committed one")
    for name, what in RECIPES.items():
        words.add_parser(name, help=what)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Returns:
        0; 1 if something it needs is not installed or a job failed; 2 for an option that cannot work; 130 if
        interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a sign that the encoding lacks is a question mark
    words = list(sys.argv[1:] if argv is None else argv)
    missing = [module for module in REQUIRED if find_spec(module) is None]
    if missing:
        print(f"{COMMAND}: needs {', '.join(missing)}; install with: pip install '.[paper]'", file=sys.stderr)
        return 1
    if words and words[0] in RECIPES:
        recipe: Callable[[list[str]], int] = import_module(f".recipes.{words[0].replace('-', '_')}", __package__).main
        return recipe(words[1:])
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "run")
    options = parser().parse_args(words)
    try:
        return draw(options) if options.word == "page" else run(options)
    except KeyboardInterrupt:
        print(f"\n{COMMAND}: interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Run the jobs and write results, page and figures."""
    from rich.console import Console

    from hyperkern.files import OutputError, as_json, obstacle, write_files

    from . import page, results
    from .parts import PARTS
    from .runner import JobError, processes, run_jobs

    names = [part.name for part in PARTS]
    wanted = options.only or names
    if unknown := [name for name in wanted if name not in names]:
        return refuse(f"argument --only: must be among {', '.join(names)}, got {unknown[0]!r}")
    if options.processes < 1:
        return refuse(f"argument --processes: must be at least 1, got {options.processes}")
    out: Path = options.out
    try:
        (out / "images" / "paper").mkdir(parents=True, exist_ok=True)
        for path in (out / "results.json", out / "paper.md"):  # now, not when all has run
            if (reason := obstacle(path)) is not None:
                return refuse(f"argument --out: {path} {reason}")
        jobs = {part.name: part.jobs(options.quick) for part in PARTS if part.name in wanted}
        with processes(options.processes) as executor:
            cells = run_jobs(jobs, out, executor, Console(stderr=True))
        found = results.assemble(cells, quick=options.quick)
        made = page.files(found, out)
        write_files({out / "results.json": as_json(found), **made})
    except OSError as error:
        return refuse(f"argument --out: {error.filename} cannot be written to ({error.strerror})")
    except OutputError as error:
        return refuse(f"argument --out: {error}")
    except JobError as error:
        print(f"{COMMAND}: {error}; what is done is kept", file=sys.stderr)
        return 1
    for part, claims in found["claims"].items():
        for claim in claims:
            print(f"{claim['verdict']:>13}  {part}: {claim['statement']}")
    print(f"{out / 'paper.md'} has the figures behind the verdicts, {out / 'results.json'} all of them")
    return 0


def draw(options: argparse.Namespace) -> int:
    """Draw the page from the results given, which then are the committed ones, or from those that are."""
    from hyperkern.files import OutputError, as_json, write_files

    from . import page, results

    try:
        source: Path = options.results or results.COMMITTED
        docs = page.PAGE.parent
        found = results.read(source)
        if options.results is not None:
            results.check_whole(found, source)
        try:
            made = page.files(found, docs)
            content = as_json(found | {"claims": results.claims(found["parts"])})  # as they are worded by now
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            return refuse(f"{source} is of another version of the reproduction ({type(error).__name__}: {error})")
        for folder in {path.parent for path in made}:
            folder.mkdir(parents=True, exist_ok=True)
        for old in set((docs / "images" / "paper").glob("*.svg")) - made.keys():
            old.unlink()
        write_files({**made, results.COMMITTED: content})
    except (results.ResultsError, OutputError) as error:
        return refuse(str(error))
    return 0


def refuse(message: str) -> int:
    """Say what cannot work."""
    print(f"{COMMAND}: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
