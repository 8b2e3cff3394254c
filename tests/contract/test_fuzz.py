"""Random small modules against the definition in float64; ``fuzzing.py`` as a script judges any number of them."""

import random
from contextlib import suppress

import pytest
import torch
from fuzzing import KINDS, STEPS, build
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from judge import report

pytestmark = pytest.mark.contract

CODES = st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=6)


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(list(KINDS)), CODES, st.integers(0, 10**4), st.sampled_from((0.1, 1e-3)))
def test_random_modules_are_right_or_refused(kind, codes, seed, gamma):
    """The same programs in every run; a failing one is shrunk, and printed as a call of ``build``."""
    torch.set_num_threads(1)
    model, x, names = build(kind, codes, seed)
    verdict = report(model, x, gammas=(gamma,), samples=4).verdict
    assert not verdict.startswith("WRONG"), f"build({kind!r}, {codes}, {seed}): {', '.join(names)}: {verdict}"


def test_every_step_can_be_taken():
    """None is skipped in silence because of an error of its own."""

    def can_be_taken(name):
        make, dims = STEPS[name]
        for shape in KINDS.values():
            if not dims or len(shape) + 1 in dims:
                with suppress(RuntimeError, IndexError, ValueError):
                    make(random.Random(0), torch.randn(3, *shape)).eval()(torch.randn(3, *shape))
                    return True
        return False

    assert [name for name in STEPS if not can_be_taken(name)] == []
