"""The table of mutants does not rot: every patch still applies, and the tests that it names are there."""

import os
import subprocess
import sys

import pytest
from mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies(mutant: Mutant) -> None:
    path = ROOT / mutant.file
    text = path.read_text()
    broken = mutant.applied(text)
    assert broken != text
    if path.suffix == ".py":
        compile(broken, path, "exec")


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_text_that_is_not_there_once_is_refused() -> None:
    mutant = MUTANTS[0]._replace(old="a b")
    for text, count in (("a c", 0), ("a b a b", 2)):
        with pytest.raises(ValueError, match=f"'a b' stands {count} times in {mutant.file}, expected once"):
            mutant.applied(text)


def test_the_named_tests_exist() -> None:
    pytest.importorskip("triton")
    tests = sorted({test for mutant in MUTANTS for test in mutant.tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # as the mutants are tried
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
