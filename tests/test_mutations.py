"""The tests notice when the mathematics is broken (tests/tools/mutations.py)."""

import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "tools"))
import mutations

SAMPLERS = ["ancestral", "ddim", "euler", "heun", "ab2", "dpmpp_2m", "dpmpp_2m_sde"]
SCHEDULES = ["linear", "scaled_linear", "quadratic", "cosine", "sigmoid", "edm", "zero_terminal_snr"]


@pytest.mark.parametrize("file", mutations.TESTS)
def test_every_mutation_finds_its_place_and_is_python(file):
    source = (ROOT / file).read_text()
    for mutation in mutations.MUTATIONS:
        if mutation.file == file:
            changed = mutation.apply(source)
            assert changed != source
            compile(changed, file, "exec")


def test_there_are_at_least_ten_for_each_sampler_and_schedule():
    counts = Counter(mutation.target for mutation in mutations.MUTATIONS)
    assert all(counts[name] >= 10 for name in SAMPLERS + SCHEDULES), counts


def test_a_place_that_is_gone_is_an_error():
    with pytest.raises(ValueError, match=r"'nothing like it' stands 0 times in linear"):
        mutations.Mutation("linear", "x.py", "linear", "nothing like it", "").apply("def linear():\n    return 1\n")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(mutations.os, "fork"), reason="the tool forks")
def test_the_tests_notice_every_mutation():
    done = subprocess.run([sys.executable, "tests/tools/mutations.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, [line for line in done.stdout.splitlines() if "SURVIVED" in line] or done.stderr
