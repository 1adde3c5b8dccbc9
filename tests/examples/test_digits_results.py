import pytest

from examples.digits.evaluate import Evaluation
from examples.digits.results import Run, Spread, judge, summarize

HELD_OUT = 600


def runs(**accuracies: tuple[float, ...]) -> list[Run]:
    return [
        Run(name, seed, 64, Evaluation(0.1, -2.0, accuracy, accuracy, accuracy), 1.0)
        for name, by_seed in accuracies.items()
        for seed, accuracy in enumerate(by_seed)
    ]


def verdict(**accuracies: tuple[float, ...]):
    return judge(summarize(runs(**accuracies)), HELD_OUT)


CLEAR = {
    "alignment": (0.40, 0.50),
    "uniformity": (0.91, 0.92),
    "contrastive": (0.985, 0.987),
    "align_uniform": (0.99, 0.99),
}


def test_summary_is_mean_and_sample_standard_deviation() -> None:
    summary = summarize(runs(alignment=(0.4, 0.5, 0.9)))
    assert summary["alignment"]["knn"].mean == pytest.approx(0.6)
    assert summary["alignment"]["knn"].std == pytest.approx(0.07**0.5)
    assert summarize(runs(alignment=(0.4,)))["alignment"]["knn"] == Spread(0.4, None)


def test_finding_holds() -> None:
    finding = verdict(**CLEAR)
    assert finding.holds
    assert finding.lines[-1].startswith("The paper's finding holds")
    assert not any("NOT" in line for line in finding.lines)


def test_finding_holds_slightly_below_contrastive_within_the_margin() -> None:
    assert verdict(**{**CLEAR, "align_uniform": (0.980, 0.985)}).holds


@pytest.mark.parametrize(
    ("change", "rival"),
    [
        ({"align_uniform": (0.960, 0.962)}, "contrastive"),
        ({"uniformity": (0.985, 0.985)}, "uniformity only"),
        ({"alignment": (0.993, 0.995)}, "alignment only"),
    ],
)
def test_finding_that_fails_says_so_and_where(change: dict[str, tuple[float, ...]], rival: str) -> None:
    finding = verdict(**{**CLEAR, **change})
    assert not finding.holds
    assert "does NOT hold" in finding.lines[-1]
    failed = (f"{label} against {rival}" for label in ("linear probe", "standardised probe", "5-NN"))
    assert f"{'; '.join(failed)}." in finding.lines[-1]


def test_twice_the_margin_is_not_far_above_without_half_the_errors() -> None:
    assert not verdict(**{**CLEAR, "align_uniform": (0.95, 0.95), "contrastive": (0.95, 0.95)}).holds


def test_single_seed_is_judged_by_the_size_of_the_held_out_set() -> None:
    one_seed = {name: by_seed[:1] for name, by_seed in CLEAR.items()}
    assert verdict(**one_seed).holds
    assert not verdict(**{**one_seed, "align_uniform": (0.97,)}).holds
