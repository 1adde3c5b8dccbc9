"""Bad input of every public name: TypeError or ValueError that names the argument and shows what was wrong."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import module_of
from torch import Tensor

import hyperkern as hk
from hyperkern.arguments import check_positive
from hyperkern.catalog import LOSSES, TABLE, Loss, Use
from hyperkern.integrations import align_uniform as drop_in

X, Y, LABELS = torch.randn(5, 3), torch.randn(5, 3), torch.arange(5)
GIVEN = {
    **{"x": X, "y": Y, "view": Y, "negatives": torch.randn(5, 3), "hard_negatives": torch.randn(5, 2, 3)},
    **dict.fromkeys(("ids", "labels", "negative_ids", "y_labels", "x_ids", "y_ids"), LABELS),
}
DROP_INS = {"drop-in uniform_loss": drop_in.uniform_loss, "drop-in align_loss": drop_in.align_loss}


class Call:
    """A use of a loss, by its function or by its module, with some of the inputs in place of the good ones."""

    def __init__(self, loss: Loss, use: Use, of_module: bool = False) -> None:
        self.use = use._replace(learned={}, options={**use.options, **use.learned})
        self.function = module_of(loss, use)[1] if of_module else self.use.of(loss.function)
        self.queue = loss.own_columns

    def __call__(self, **bad: Any) -> Any:
        given = [bad.get(name, GIVEN.get(name, X[:, 0].abs())) for name in self.use.inputs]
        return self.function(*given)


# One of each loss and each module, and one of each for every further input.
CALLS: dict[str, Call] = {}
INPUTS: dict[tuple[str, str], Call] = {}
for _loss in LOSSES:
    for _use in _loss.uses:
        for _name, _of_module in ((_loss.name, False), *([(_loss.module.__name__, True)] if _loss.module else [])):
            call = Call(_loss, _use, _of_module)
            CALLS.setdefault(_name, call)
            for _input in _use.inputs:
                INPUTS.setdefault((_input, _name), call)
PAIRED = [name for name, call in CALLS.items() if "y" in call.use.inputs and not call.queue]
# The second argument has rows of its own.
COLUMNS = [(given, name) for given, name in INPUTS if given == "negatives" or (given == "y" and name not in PAIRED)]


def first(name: str, x: Any) -> Any:
    if name in DROP_INS:
        return DROP_INS[name](x, *([Y] if "align" in name else []))
    return CALLS[name](x=x)


def second(given: str, name: str, value: Any) -> Any:
    return DROP_INS[name](X, value) if name in DROP_INS else INPUTS[given, name](**{given: value})


FIRST = [*CALLS, *DROP_INS]
SECOND = [*(("y", name) for name in (*PAIRED, "drop-in align_loss")), *COLUMNS]

WRONG_TYPES = [([[1.0, 2.0]], "list"), (None, "NoneType"), (3.0, "float"), (X.numpy(), "ndarray")]
WRONG_DTYPES = [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
WRONG_SHAPES = [(3,), (2, 2, 5, 3), (), (0, 3), (5, 0), (0, 5, 3)]


@pytest.mark.parametrize("name", FIRST)
def test_x(name: str) -> None:
    for bad, shown in WRONG_TYPES:
        with pytest.raises(TypeError, match=f"^x must be a torch.Tensor.*got {shown}"):
            first(name, bad)
    for dtype in WRONG_DTYPES:
        with pytest.raises(TypeError, match=f"^x must be float64.*got {dtype}"):
            first(name, torch.ones(5, 3).to(dtype))
    for shape in WRONG_SHAPES:
        shown = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"^x must .*got .*{shown}"):
            first(name, torch.ones(shape))


@pytest.mark.parametrize(("argument", "name"), SECOND)
def test_the_other_side(argument: str, name: str) -> None:
    for bad, shown in WRONG_TYPES:
        if bad is not None or (argument, name) not in COLUMNS:  # None is the default of a queue
            with pytest.raises(TypeError, match=f"^{argument} must be a torch.Tensor.*got {shown}"):
                second(argument, name, bad)
    for dtype in WRONG_DTYPES:
        with pytest.raises(TypeError, match=f"^{argument} must be float64.*got {dtype}"):
            second(argument, name, torch.ones(5, 3).to(dtype))
    with pytest.raises(TypeError, match=rf"^{argument} must have the dtype of x, torch.float32, got torch.float64"):
        second(argument, name, Y.double())
    with pytest.raises(ValueError, match=rf"^{argument} must be on the device of x, cpu, got meta"):
        second(argument, name, Y.to("meta"))
    for shape in [*WRONG_SHAPES, (5, 4), (1, 5, 3)]:
        if shape == (0, 3) and argument == "negatives":
            continue  # an empty queue
        shown = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"^{argument} must .*got .*{shown}"):
            second(argument, name, torch.ones(shape))


@pytest.mark.parametrize("name", PAIRED)
def test_paired_rows_and_batches_must_agree(name: str) -> None:
    for x, y in ((X, Y[:4]), (X[None], Y.expand(2, 5, 3)), (X[None], Y)):
        shapes = rf"{tuple(x.shape)}, got {tuple(y.shape)}".replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"^y must have the shape of x, {shapes}"):
            CALLS[name](x=x, y=y)


def test_batches_of_columns_must_agree() -> None:
    for x, y in ((X.expand(3, 5, 3), Y.expand(2, 5, 3)), (X.expand(3, 5, 3), Y)):
        shown = str(tuple(y.shape)).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"^y must have shape \(3, N, 3\).*got {shown}"):
            hk.uniformity(x, y)


@pytest.mark.parametrize("loss", [hk.uniformity, lambda x: hk.align_uniform(x, x), drop_in.uniform_loss])
def test_fewer_than_two_rows(loss: Callable) -> None:
    for shape in ((1, 3), (4, 1, 3)):
        with pytest.raises(ValueError, match=rf"^x must have at least 2 rows.*\({str(shape)[1:-1]}\)"):
            loss(torch.randn(shape))


def _options() -> Iterator[tuple[str, str, Callable[[Any], Any], Callable]]:
    """Every option of every function and module that a module declares: its name, whose it is, the call, the check."""
    for loss in LOSSES:
        plain = loss.uses[0]
        for name, option in loss.module.declared.items() if loss.module else ():
            yield name, loss.module.__name__, lambda v, loss=loss, name=name: loss.module(**{name: v}), option.check
            if option.of_function:

                def function(v: Any, loss: Loss = loss, plain: Use = plain, name: str = name) -> Any:
                    return Call(loss, plain._replace(options={**plain.options, name: v}))()

                yield name, loss.name, function, option.check


ELSEWHERE = ("group", "backend")  # objects and names, which have tests of their own
NUMBERS: dict[str, Callable[[Any], Any]] = {
    **{f"{name} {of}": call for name, of, call, check in _options() if check is check_positive},
    "alpha align_loss": lambda v: drop_in.align_loss(X, Y, alpha=v),
    "t queue": lambda v: hk.uniformity(X, Y, t=v),
    "t uniform_loss": lambda v: drop_in.uniform_loss(X, t=v),
    "t uniformity_limit": lambda v: hk.metrics.uniformity_limit(3, v),
    "logit_scale pairwise_logsumexp": lambda v: hk.pairwise_logsumexp(X, logit_scale=v),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    argument = name.split()[0]
    for bad in (0, 0.0, -1, -1.0, float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=rf"^{argument} must be a finite number > 0, got {bad}"):
            NUMBERS[name](bad)
    for bad in ("1", True, None, [2.0], 2 + 0j):
        with pytest.raises(TypeError, match=rf"^{argument} must be a number.*got .*{type(bad).__name__}"):
            NUMBERS[name](bad)


@pytest.mark.parametrize(
    "name", [n for n in NUMBERS if n.startswith(("temp", "logit")) and n.islower() and "pairwise" not in n]
)
def test_scale_tensors(name: str) -> None:
    argument = name.split()[0]
    for bad in (torch.ones(2), torch.ones(0), torch.tensor(3), torch.tensor(True), torch.tensor(1 + 0j)):
        with pytest.raises((TypeError, ValueError), match=rf"^{argument} must be .*{bad.dtype}"):
            NUMBERS[name](bad)


LEARNED = {f"{loss.name}-{each.name}": (loss, each) for loss in LOSSES for each in loss.uses if each.learned}


@pytest.mark.parametrize("name", LEARNED)
def test_a_scale_of_one_element_does_not_change_the_shape_of_the_loss(name: str) -> None:
    loss, each = LEARNED[name]
    batch = {"x": X.expand(2, 5, 3), "y": Y.expand(2, 5, 3)}
    for bad in ({}, *([batch] if {*each.inputs} <= {*batch} else [])):
        expected = Call(loss, each)(**bad)
        for dims in (1, 2, 3, 4):
            learned = {name: torch.full((1,) * dims, value) for name, value in each.learned.items()}
            found = Call(loss, each._replace(learned=learned))(**bad)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected)


CHECKED = {
    f"{name} {of}": (call, check) for name, of, call, check in _options() if of in TABLE and name not in ELSEWHERE
}


@pytest.mark.parametrize("name", CHECKED)
def test_a_function_refuses_what_its_module_refuses(name: str) -> None:
    call, check = CHECKED[name]
    for bad in (0, -1.0, float("nan"), float("inf"), "1", True, None, [1.0]):
        try:
            check(name.split()[0], bad)
        except (TypeError, ValueError) as refusal:
            with pytest.raises(type(refusal), match=f"^{re.escape(str(refusal))}"):
                call(bad)


CHOICES: dict[str, Callable[[Any], Any]] = {
    **{f"{name} {of}": call for name, of, call, _ in _options() if name == "reduction"},
    "exclude pairwise_logsumexp": lambda v: hk.pairwise_logsumexp(X, logit_scale=1.0, exclude=v),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("bad", ["batchmean", "", None, 1])
def test_choices(name: str, bad: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name.split()[0]} must be one of .*got {bad!r}"):
        CHOICES[name](bad)


VECTORS = [(given, name) for given, name in INPUTS if given.endswith("weights")]
INTEGERS = [(given, name) for given, name in INPUTS if given in GIVEN and GIVEN[given] is LABELS]


@pytest.mark.parametrize(("argument", "name"), [*VECTORS, *INTEGERS])
def test_numbers_of_rows(argument: str, name: str) -> None:
    function, good = INPUTS[argument, name], GIVEN.get(argument, torch.ones(5))
    for bad in (good.tolist(), 1.0):
        with pytest.raises(TypeError, match=f"^{argument} must be a torch.Tensor, got {type(bad).__name__}"):
            function(**{argument: bad})
    for shape in ((), (6,), (5, 1), (1, 5)):
        shown = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"^{argument} must have shape \(5,\).*got {shown}"):
            function(**{argument: torch.ones(shape, dtype=good.dtype)})
    with pytest.raises(ValueError, match=f"^{argument} must be on the device.*meta"):
        function(**{argument: good.to("meta")})
    kind = "an integer" if good is LABELS else "a floating"
    for dtype in (torch.float32 if good is LABELS else torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"^{argument} must have {kind} dtype, got {dtype}"):
            function(**{argument: good.to(dtype)})


REFUSED = [(loss.name, message) for loss in LOSSES for message in loss.refused]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_inputs_that_do_not_go_together(name: str, message: str) -> None:
    loss = TABLE[name]
    for of_module in (False, *([True] if loss.module else [])):
        with pytest.raises(ValueError, match=f"^{message}"):
            Call(loss, loss.refused[message], of_module)()


def test_any_integers_are_ids() -> None:
    ids = torch.arange(5)

    def lse(x_ids: Tensor, y_ids: Tensor) -> Any:
        return hk.pairwise_logsumexp(X, Y, logit_scale=1.0, exclude="same_id", x_ids=x_ids, y_ids=y_ids)

    # Also of two kinds.
    expected = lse(x_ids=ids, y_ids=ids)[0]
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        with pytest.raises(TypeError, match=rf"y_ids must be signed integers or uint8, got {dtype}.*to\(torch.int64\)"):
            lse(x_ids=ids, y_ids=ids.to(dtype))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(lse(x_ids=ids.to(dtype), y_ids=ids)[0], expected)


def test_sparse_features() -> None:
    for name in FIRST:
        with pytest.raises((TypeError, ValueError), match=r"^x must .*sparse"):
            first(name, X.to_sparse())


def test_options_are_keyword_only() -> None:
    for call in (
        lambda: hk.alignment(X, Y, 2.0),
        lambda: hk.uniformity(X, Y, 2.0),
        lambda: hk.info_nce(X, Y, 0.1),
        lambda: hk.clip_loss(X, Y, 5.0),
        lambda: hk.pairwise_logsumexp(X, Y, 1.0),
        lambda: hk.AlignmentLoss(2.0),
        lambda: hk.CLIPLoss(5.0),
    ):
        with pytest.raises(TypeError, match="positional argument"):
            call()


@pytest.mark.parametrize("bad", [3.0, "3", True, None])
def test_dimension_of_the_limit(bad: object) -> None:
    with pytest.raises(TypeError, match=f"^dim must be an integer, got {type(bad).__name__}"):
        hk.metrics.uniformity_limit(bad)
    for number in (0, -2):
        with pytest.raises(ValueError, match=f"^dim must be at least 1, got {number}"):
            hk.metrics.uniformity_limit(number)
