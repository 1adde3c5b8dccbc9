"""The table of mutants: faults put into the code by `make mutants`, and for each the tests that have to notice."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        name: what is wrong.
        file: where, from the root of the repository.
        old: what stands there, exactly once.
        new: what the mutant has in its place.
        tests: node ids of pytest, of which one must fail: the cheapest ones, which all pass without the mutant.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The content of the file with the fault.

        Raises:
            ValueError: the old text does not stand there exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {count} times in {self.file}, expected once")
        return text.replace(self.old, self.new)


def _mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """A row of the table, with the folder of the package and that of the tests left out."""
    file = file if "/" in file and file.startswith(("csrc", "tests")) else f"hyperkern/{file}"
    return Mutant(name, file, old, new, tuple(f"tests/{test}" for test in tests))


ALL_OPTIONS = "losses/test_combinations.py::test_all_options_at_once"
BLOCKS = "losses/test_values.py::test_many_blocks"
TEXTBOOK = "losses/test_values.py::test_matches_textbook"
OF_REFERENCE = "backends/test_reference_losses.py"
PRIMITIVES = "backends/test_primitives.py"
WHOLE = "backends/test_whole_losses.py"
CLASSES = "backends/test_whole_classes.py"
PANELS = "backends/test_whole_panels.py"
LAUNCH = "backends/test_triton_launch.py"
EMULATED = "backends/test_cuda_index_math.py::test_in_the_emulator"

MUTANTS = [
    # Rows and sums that are left out.
    _mutant(
        "a row of log-weight -inf has a rounding of nan",
        "backends/common/partials.py",
        "masked_fill_(lse == -torch.inf, 1)",
        "masked_fill_(empty, 1)",
        "reliability/test_rows.py::test_case_08_a_log_weight_leaves_a_row_out[cuda-cpu-x-torch.float32]",
    ),
    _mutant(
        "the log-sum-exp over rows is PyTorch's, where none has a weight",
        "losses/_logits.py",
        "    empty = total == 0\n    return (total.masked_fill(empty, 1).log() + top.squeeze(-1))",
        "    return logits.logsumexp(-1)  #",
        "reliability/test_rows.py::test_case_08_weights_of_zero_leave_a_sum_without_pairs",
    ),
    _mutant(
        "the log-sum-exp over rows is PyTorch's, of large logits",
        "losses/_logits.py",
        "    return (total.masked_fill(empty, 1).log() + top.squeeze(-1)).masked_fill(empty, -torch.inf)",
        "    return logits.masked_fill(empty.unsqueeze(-1), 0).logsumexp(-1).masked_fill(empty, -torch.inf)",
        "losses/test_long_rows.py::test_uniformity_of_long_rows",
    ),
    _mutant(
        "a queue reads its own rows while it writes them",
        "queue.py",
        "return rows.clone() if shared else rows",
        "return rows",
        "test_queue.py::test_its_own_rows",
    ),
    # The regimes of the numbers.
    _mutant(
        "no headroom for a gradient in float32",
        "spec.py",
        "else 100.0",
        "else 127.9",
        "losses/test_properties.py::test_headroom_beside_many_negatives",
    ),
    _mutant(
        "no headroom for a gradient in float64",
        "spec.py",
        "{dtype: 990.0",
        "{dtype: 1023.9",
        "losses/test_properties.py::test_headroom_of_the_sum_of_all_pairs",
    ),
    _mutant(
        "info_nce counts one candidate for its bound",
        "losses/info_nce.py",
        "max(ranks.total, 0 if negatives is None else negatives.shape[-2])",
        "1",
        "losses/test_properties.py::test_headroom_beside_many_negatives",
    ),
    _mutant(
        "a quarter of the bound of Euclidean exponents",
        "losses/uniformity.py",
        "4 * t * longest",
        "t * longest",
        "reliability/test_numbers.py::test_case_10_antipodal_points_at_a_large_t",
    ),
    _mutant(
        "log-weights count as bounded",
        "losses/_logits.py",
        "unit and not weighted and is_bounded",
        "unit and is_bounded",
        "losses/test_contrastive.py::test_log_weights_of_any_size",
    ),
    _mutant(
        "log-sum-exps joined by the larger one",
        "losses/_logits.py",
        "both = high + nll_from_excess(",
        "both = high + 0 * nll_from_excess(",
        f"{ALL_OPTIONS}[info_nce-mean-()-True]",
    ),
    # Logits of any size.
    _mutant(
        "a logit on the diagonal for its mirror image",
        "backends/reference/primitives.py",
        "on_diagonal = symmetric and not mirrored",
        "on_diagonal = False",
        "losses/test_long_rows.py::test_long_rows[nt_xent]",
        "losses/test_long_rows.py::test_many_long_rows",
    ),
    _mutant(
        "weights without the rounding of their log-sum-exp",
        "autograd/pairs.py",
        "grad_row * row_rounding, col_side[1]",
        "grad_row, col_side[1]",
        "losses/test_long_rows.py::test_long_rows[sup_con]",
        "losses/test_long_rows.py::test_a_learned_temperature_of_collapsed_features",
    ),
    _mutant(
        "no rounding in kernels' log-sum-exps",
        "backends/common/partials.py",
        "relative.div_(self.total).masked_fill_(lse == -torch.inf, 1)",
        "torch.ones_like(relative)",
        f"{PRIMITIVES}::test_weights_of_a_row_sum_to_one",
    ),
    _mutant(
        "shards of large logits in company",
        "autograd/remote.py",
        "not spec.bounded and spec.scale != 1.0",
        "False",
        "distributed/test_distributed_long_rows.py",
    ),
    _mutant(
        "two ranks compute a pair in different orders",
        "autograd/remote.py",
        "turned = y is None and apart and owners[0] < remote.ranks.rank",
        "turned = False",
        "distributed/test_distributed_long_rows.py",
    ),
    _mutant(
        "weights of dclw from a rounded log-sum-exp",
        "losses/nt_xent.py",
        "ranks.total * exponentials / ranks.sum(exponentials.sum(-1, keepdim=True))",
        "ranks.total * (logits - (ranks.max(top) + exponentials.sum(-1, keepdim=True).log())).exp()",
        "losses/test_long_rows.py::test_the_weights_of_dclw_on_raw_rows",
    ),
    # Rows.
    _mutant(
        "rstd has a slope for rows shorter than eps",
        "autograd/rows.py",
        "-grad_rstd * rstd.square(), 0)",
        "-grad_rstd * rstd.square(), -grad_rstd * rstd.square())",
        "reliability/test_rows.py::test_case_01_the_second_derivative_of_rows_shorter_than_eps",
    ),
    _mutant(
        "no projection behind the normalisation",
        "backends/reference/primitives.py",
        "unit, radial, value=-1, out=out",
        "unit, radial, value=0, out=out",
        f"{PRIMITIVES}::test_prepare_and_finish[reference-cpu-torch.float64]",
    ),
    _mutant(
        "a pair at distance 0 keeps its power",
        "losses/alignment.py",
        ".masked_fill(same, 0)",
        "",
        "reliability/test_rows.py::test_case_03_identical_positive_pairs",
    ),
    # The whole losses of the reference.
    _mutant(
        "one tensor on both sides is a symmetric problem",
        "backends/reference/softmax.py",
        "self.shift, False, left_out",
        "self.shift, x is y, left_out",
        f"{OF_REFERENCE}::test_one_tensor_on_both_sides_is_no_symmetric_problem[(8, 16)-clip_loss]",
    ),
    _mutant(
        "of a long queue the last columns count",
        "backends/reference/pairs.py",
        "        sums[tile.rows].add_(found.sum(1))",
        "        sums[tile.rows] = found.sum(1)",
        f"{OF_REFERENCE}::test_a_queue_without_a_gradient[(8, 16)-(True, False)-True]",
    ),
    _mutant(
        "what is right of the diagonal counts once",
        "backends/reference/pairs.py",
        "total += 2 * accurate_sum(weights)",
        "total += accurate_sum(weights)",
        f"{OF_REFERENCE}::test_tiles_of_any_size[(8, 16)-0-uniformity-default]",
    ),
    _mutant(
        "a mirrored tile is not added to the sums",
        "backends/reference/pairs.py",
        "found[:, tile.mirrored - tile.cols.start :].sum(0)",
        "0 * found[:, tile.mirrored - tile.cols.start :].sum(0)",
        f"{OF_REFERENCE}::test_tiles_of_any_size[(8, 16)-0-nt_xent-default]",
    ),
    _mutant(
        "the workspace has no end",
        "backends/reference/pairs.py",
        "if end + tile.size > most:",
        "if False:",
        f"{OF_REFERENCE}::test_no_tensor_is_larger_than_the_workspace_and_the_features[clip_loss-10-0]",
    ),
    _mutant(
        "rows of zeros are ordinary",
        "backends/reference/rows.py",
        "if not ((_SHORTEST[given] if normalize else -1.0) < low.item() and longest < _LONGEST):",
        "if not longest < _LONGEST:",
        f"{OF_REFERENCE}::test_rows_that_are_not_ordinary_are_left_to_the_composition[zero-clip_loss-10]",
    ),
    _mutant(
        "rows with gaps between them are read as one piece",
        "backends/reference/rows.py",
        "rows = x.to(dtype).contiguous()",
        "rows = x.to(dtype)",
        f"{OF_REFERENCE}::test_rows_with_gaps",
    ),
    _mutant(
        "a gradient is projected piece by piece, and the last is left out",
        "backends/reference/rows.py",
        "for start in range(0, number, step):",
        "for start in range(0, number - step, step):",
        f"{OF_REFERENCE}::test_tiles_of_any_size[(8, 16)-0-clip_loss-10]",
    ),
    _mutant(
        "sums that a shift has emptied are not looked for",
        "backends/reference/softmax.py",
        "if not sums.min().item() > self.least:",
        "if False:",
        f"{OF_REFERENCE}::test_a_row_without_any_large_logit_beside_large_ones_is_declined",
    ),
    _mutant(
        "the gradient of a temperature for that of a scale",
        "backends/reference/losses.py",
        "by_scale * (-scale * scale if spec.temperature else 1)",
        "by_scale",
        f"{OF_REFERENCE}::test_tiles_of_any_size[(8, 16)-0-dcl-learnable]",
    ),
    _mutant(
        "a queue that has changed is differentiated twice",
        "autograd/step.py",
        "ctx.others = others | rows",
        "ctx.others = others",
        "test_queue.py::test_enqueue_between_loss_and_backward[info_nce-dtype0]",
    ),
    _mutant(
        "a queue that is taken as it is is not copied",
        "backends/reference/losses.py",
        "of.clone() if of is given else of",
        "of",
        "test_queue.py::test_enqueue_between_loss_and_backward[info_nce, normalize=False-dtype1]",
    ),
    _mutant(
        "a compiled loss takes odd inputs for ordinary ones",
        "autograd/compiled.py",
        "if found is not None:",
        "if True:",
        "test_compile.py::test_inputs_that_are_not_ordinary_when_the_graph_runs[clip_loss-10]",
    ),
    # The reference, which the others are held against.
    _mutant(
        "a mirrored block counts once",
        "backends/reference/primitives.py",
        "2 * row_sum if mirrored else row_sum",
        "row_sum",
        f"{BLOCKS}[composition-cpu-7-23-5-None-uniformity-default]",
    ),
    _mutant(
        "the excluded diagonal is off by twice an offset",
        "backends/reference/primitives.py",
        "+ rows.start - spec.col_offset",
        "+ rows.start + spec.col_offset",
        f"{PRIMITIVES}::test_row_lse[reference-cpu-False-offsets-(0, 7)]",
    ),
    _mutant(
        "the columns' weights are left out",
        "backends/reference/primitives.py",
        "a[batch, rows] if b is None or on_diagonal else a[batch, rows] + b[batch, :, cols]",
        "a[batch, rows]",
        f"{BLOCKS}[composition-cpu-7-23-5-None-clip_loss-10]",
    ),
    _mutant(
        "a row without candidates is not looked for",
        "backends/reference/primitives.py",
        "row_lse = row_lse.masked_fill(row_lse == -torch.inf, torch.inf)",
        "row_lse = row_lse + 0",
        f"{PRIMITIVES}::test_rows_without_a_candidate[reference-cpu-False-False]",
    ),
    _mutant(
        "gradients without the scale",
        "autograd/pairs.py",
        "return grad_x.mul_(spec.scale), sum_x, grad_y",
        "return grad_x, sum_x, grad_y",
        f"{BLOCKS}[composition-cpu-7-23-5-None-info_nce-default]",
    ),
    _mutant(
        "the second derivative of softplus is its first",
        "second_order.py",
        "weights * (1 - weights)",
        "weights",
        "test_autograd.py::test_gradgradcheck[siglip-default]",
    ),
    # The losses.
    _mutant(
        "uniformity counts each row with itself",
        "losses/uniformity.py",
        "m * (m - 1) // 2 if distinct",
        "m * (m + 1) // 2 if distinct",
        f"{BLOCKS}[composition-cpu-7-23-5-None-uniformity-default]",
    ),
    _mutant(
        "clip_loss in one direction",
        "losses/clip.py",
        "(by_row + by_col) / 2",
        "by_row",
        f"{ALL_OPTIONS}[clip_loss-none-()-True]",
    ),
    _mutant(
        "the sign of SigLIP's bias",
        "losses/clip.py",
        "terms = PairTerms(u=u)",
        "terms = PairTerms(u=-u)",
        f"{ALL_OPTIONS}[siglip-mean-(3,)-True]",
    ),
    _mutant(
        "sup_con has a row as its own positive",
        "losses/sup_con.py",
        "sums = sums - x",
        "sums = sums - 0 * x",
        "losses/test_sup_con.py::test_all_labels_equal",
    ),
    _mutant(
        "labels are compared in the dtype of the first",
        "classes.py",
        "together = torch.cat(labels, -1)",
        "together = torch.cat([part.to(labels[0].dtype) for part in labels], -1)",
        "losses/test_sup_con.py::test_any_integer_dtype",
    ),
    _mutant(
        "the weights of dclw are differentiated",
        "losses/nt_xent.py",
        "autograd.prepare(side.detach(), ",
        "autograd.prepare(side, ",
        f"{ALL_OPTIONS}[dclw-mean-(3,)-True]",
    ),
    _mutant(
        "a learned temperature without a gradient",
        "losses/_logits.py",
        "return x * scale.to(x.dtype)",
        "return x * scale.detach().to(x.dtype)",
        "test_nn.py::test_every_learned_scale_has_a_gradient",
    ),
    _mutant(
        "a learned temperature is taken for its reciprocal",
        "nn/base.py",
        "if scale is None else 1 / scale",
        "if scale is None else scale",
        "test_nn.py::test_learnable_temperature",
    ),
    _mutant(
        "a module keeps an option to itself",
        "nn/contrastive.py",
        "            in_batch=self.in_batch,\n",
        "",
        "test_nn.py::test_same_as_the_function[info_nce-candidates]",
    ),
    _mutant(
        "the limit of uniformity in an odd dimension is that of the even one below",
        "metrics.py",
        "half = dim / 2",
        "half = dim // 2",
        "test_metrics.py::test_closed_forms_of_one_two_and_three_dimensions",
    ),
    _mutant(
        "a full queue writes over its newest rows",
        "queue.py",
        "= rows[before_end:]",
        "= rows[: rows.shape[0] - before_end]",
        "test_queue.py::test_it_holds_the_newest_rows",
    ),
    # Over ranks.
    _mutant(
        "what a failed loss has sent is never taken in",
        "distributed/remote.py",
        "        if of is handle:\n",
        "        if False:\n",
        "distributed/test_distributed_promises.py::test_the_next_loss_takes_in_what_a_failed_one_has_sent",
    ),
    _mutant(
        "a mean over the rows of one view",
        "losses/_inputs.py",
        "total / (per_row * ranks.total)",
        "total / ranks.total",
        "distributed/test_distributed_losses.py::test_every_loss[nt_xent-default-2]",
    ),
    _mutant(
        "the padding of a shorter shard counts",
        "distributed/remote.py",
        "everywhere[r][:, : ranks.counts[r]]",
        "everywhere[r]",
        "distributed/test_distributed_losses.py::test_every_loss[nt_xent-default-2]",
    ),
    _mutant(
        "gradients are not scaled for DDP",
        "distributed/ranks.py",
        "self.grad_factor = len(counts) if",
        "self.grad_factor = 1 if",
        "distributed/test_distributed_losses.py::test_every_loss[nt_xent-default-2]",
    ),
    _mutant(
        "the ranks' description is put into words at every step",
        "distributed/checks.py",
        "@functools.lru_cache(maxsize=256)\n",
        "",
        "distributed/test_distributed_frames.py::test_a_step_runs_few_frames",
    ),
    # The variants of an autograd function.
    _mutant(
        "arguments are bound to a signature at every call",
        "autograd/functions.py",
        "return function.eager.apply(*args)",
        "return function.apply(*args)",
        "distributed/test_distributed_frames.py::test_a_step_runs_few_frames",
    ),
    _mutant(
        "a gradient that cannot be differentiated",
        "autograd/functions.py",
        "if not torch.is_grad_enabled():",
        "if True:",
        "test_autograd.py::test_gradgradcheck[siglip-default]",
    ),
    _mutant(
        "the frozen one of two views is computed",
        "autograd/rows.py",
        "if not together or view.requires_grad != first.requires_grad:",
        "if not together:",
        "test_autograd.py::test_case_15_the_frozen_side_is_not_computed",
    ),
    # The choice of a backend.
    _mutant(
        "a forced backend falls back",
        "backends/__init__.py",
        "for candidate in PRIORITY if name is None else (name,):",
        "for candidate in (() if name is None else (name,)) + PRIORITY:",
        "backends/test_select.py::test_forced_backend_never_falls_back",
    ),
    _mutant(
        "an unverified backend is chosen",
        "backends/__init__.py",
        "([] if forced else backend.unverified(problem))",
        "[]",
        "backends/test_select.py::test_a_backend_that_is_not_verified_here_is_taken_by_name_alone",
    ),
    # Checks of the kernels.
    _mutant(
        "kernels that failed their check are used",
        "check/first_use.py",
        'if record.status == "passed":',
        "if record.status:",
        "check/test_first_use.py::test_how_a_first_use_ends[wrong in one element]",
    ),
    _mutant(
        "a check begins while a graph is captured",
        "check/first_use.py",
        'if device.type == "cuda" and torch.cuda.is_current_stream_capturing():',
        "if False:",
        "check/test_first_use.py::test_not_while_a_graph_is_captured",
    ),
    _mutant(
        "two processes check at once",
        "check/first_use.py",
        "lock.acquire(timeout=WAIT)",
        "lock = None",
        "check/test_check_process.py::test_processes_wait_for_one_check",
    ),
    _mutant(
        "a record counts whatever it is of",
        "check/records.py",
        'or content["machine"] != key._asdict()',
        "",
        "check/test_check_records.py::test_a_damaged_record_does_not_count",
    ),
    _mutant(
        "what is no number is right",
        "correctness/cases.py",
        "if not error <= allowed:",
        "if error > allowed:",
        "check/test_first_use.py::test_how_a_first_use_ends[nan in the last row]",
    ),
    _mutant(
        "a primitive may be off by a thousandth",
        "correctness/cases.py",
        "_EXACT = 2.0**-18",
        "_EXACT = 2.0**-9",
        "check/test_first_use.py::test_how_a_first_use_ends[wrong in one element]",
    ),
    _mutant(
        "a gradient of one number is held to what PyTorch is off by, by chance",
        "correctness/rounding.py",
        "found[i] = max(found[i], off.abs().max().item())",
        "found[i] = 0.0",
        "check/test_check_command.py::test_the_kernels_without_a_gpu[cuda]",
    ),
    _mutant(
        "gradients of float16 have as many digits as any",
        "correctness/cases.py",
        "allowed += torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps",
        "allowed += 0.0",
        "check/test_check_cases.py::test_gradients_of_thousands_of_rows_have_few_digits_in_float16",
    ),
    _mutant(
        "a wrong name goes unseen where nothing is computed",
        "autograd/rows.py",
        "if backend not in PRIORITY:",
        "if not normalize:",
        "check/test_check_cases.py::test_a_wrong_name_is_seen_where_nothing_is_computed",
    ),
    _mutant(
        "a gradient of one number may be anything",
        "correctness/rounding.py",
        "found = [(6 if",
        "found = [(60 if",
        "check/test_first_use.py::test_how_a_first_use_ends[three percent off]",
    ),
    _mutant(
        "memory comes as it is in a check",
        "correctness/child.py",
        'torch.set_deterministic_debug_mode("warn")',
        'torch.set_deterministic_debug_mode("default")',
        "check/test_first_use.py::test_how_a_first_use_ends[never writes a row]",
    ),
    _mutant(
        "repeats are not compared",
        "correctness/cases.py",
        "if not all(torch.equal(a, b) for a, b in pairs):",
        "if not pairs:",
        "check/test_first_use.py::test_how_a_first_use_ends[not deterministic]",
    ),
    _mutant(
        "a check that is interrupted runs on",
        "check/process.py",
        """            if child.poll() is None:  # the caller was interrupted
                _kill(child)
                child.wait()
""",
        "",
        "check/test_check_process.py::test_an_interrupt_ends_the_check_and_records_nothing",
    ),
    _mutant(
        "a choice that is not settled is kept",
        "backends/__init__.py",
        "return backend if settled else None",
        "return backend",
        "check/test_first_use.py::test_not_while_a_graph_is_captured",
    ),
    _mutant(
        "right of one D is right of its class",
        "correctness/everything.py",
        'if outcome.status == "passed" and not {*job.scope.samples()} <= {*job.dims}:',
        "if False:",
        "check/test_check_command.py::test_what_is_kept_of_it",
    ),
    # Triton's kernels.
    _mutant(
        "the series of softplus is two terms shorter",
        "backends/triton/tile.py",
        "(1.0 / 9 + b_q * (1.0 / 11 + b_q * (1.0 / 13)))",
        "(1.0 / 9)",
        f"{PRIMITIVES}::test_softplus_to_the_last_digits[triton-cpu]",
    ),
    _mutant(
        "one tf32 product is asked for instead of three",
        "backends/common/precision.py",
        '"tf32" if precision == "tf32" else "tf32x3"',
        '"tf32"',
        "backends/test_triton_precision.py::test_the_setting_of_pytorch_is_what_kernels_are_asked_for",
    ),
    _mutant(
        "one of the three products of similarities is left out",
        "backends/triton/tile.py",
        '        b_small += dot(b_x_high, tl.trans(b_y - b_y_high), b_zero, "tf32")\n',
        "",
        "backends/test_triton_precision.py::test_three_products_of_the_tensor_cores_for_one_of_float32",
    ),
    _mutant(
        "one tf32 product is made of three",
        "backends/triton/tile.py",
        "input_precision=PRECISION",
        'input_precision="tf32"',
        "backends/test_triton_precision.py::test_three_products_of_the_tensor_cores_for_one_of_float32",
    ),
    _mutant(
        "a kernel for aligned addresses is launched with any",
        "backends/triton/launch.py",
        "arg.data_ptr() & 15 == 0",
        "arg.data_ptr() & 7 == 0",
        f"{LAUNCH}::test_a_kernel_is_looked_for_where_triton_specialises_anew",
    ),
    _mutant(
        "alignment counts nowhere",
        "backends/triton/launch.py",
        "if not counts or arg.data_ptr()",
        "if counts or arg.data_ptr()",
        f"{LAUNCH}::test_a_kernel_is_looked_for_where_triton_specialises_anew",
    ),
    _mutant(
        "a kernel for 32-bit integers is launched with wider ones",
        "backends/triton/launch.py",
        "-_INT32 <= arg < _INT32",
        "-_INT64 <= arg < _INT64",
        f"{LAUNCH}::test_a_kernel_is_looked_for_where_triton_specialises_anew",
    ),
    _mutant(
        "constants of a kept kernel come in the order of the call",
        "backends/triton/launch.py",
        "constants[name] for name in known.constants",
        "constants[name] for name in constants",
        f"{LAUNCH}::test_the_second_launch_is_the_first_without_triton",
    ),
    _mutant(
        "a panel is compiled anew for numbers of rows",
        "backends/triton/panel.py",
        ', "stride_row_b", "stride_col_b"',
        "",
        f"{LAUNCH}::test_batches_of_any_size_have_the_same_kernels",
    ),
    _mutant(
        "one column too many",
        "backends/triton/tile.py",
        "b_keep = (o_n < n)[None, :]",
        "b_keep = (o_n <= n)[None, :]",
        f"{TEXTBOOK}[triton-cpu-uniformity-default]",
    ),
    _mutant(
        "the last range of columns is dropped",
        "backends/common/partials.py",
        "else parts.sum(0)",
        "else parts[:-1].sum(0)",
        f"{PRIMITIVES}::test_low_precision_operands[triton-cpu-torch.float32-False-False]",
    ),
    _mutant(
        "gradients are off by three in a hundred thousand",
        "backends/triton/rows.py",
        "(b_grad - b_radial[:, None] * b_unit) * b_rstd[:, None]",
        "(b_grad - b_radial[:, None] * b_unit) * (1.00003 * b_rstd[:, None])",
        "losses/test_tolerance.py::test_no_worse_than_torch[triton-cpu-uniformity-t0.3-torch.float32]",
    ),
    _mutant(
        "zero rows are at distance 1 from one another",
        "backends/triton/align_uniform.py",
        "+ zeros * (zeros - 1.0) * (exp(2.0 * t, False) - 1.0)",
        "+ zeros * (zeros - 1.0) * (exp(t, False) - 1.0)",
        "backends/test_step.py::test_zero_rows_and_identical_pairs_are_as_in_the_composition[triton-cpu]",
    ),
    # Whole losses on kernels.
    _mutant(
        "the partner of a view is among its candidates",
        "backends/triton/tile.py",
        "(o_m // 2)[:, None] != (o_n // 2)[None, :]",
        "o_m[:, None] != o_n[None, :]",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-nt_xent]",
    ),
    _mutant(
        "the second side starts where the first does",
        "backends/triton/contract.py",
        "out = tl.where(second, splits_0.to(tl.int64) * batch * m_0, 0) + ",
        "out = ",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-clip_loss]",
    ),
    _mutant(
        "partial column sums are not at 0 before they are added to",
        "backends/triton/sums.py",
        "            tl.store(p_col + o_n, tl.zeros((BLOCK_N,), tl.float32), mask=o_n < n)\n",
        "",
        f"{WHOLE}::test_nothing_is_read_before_it_is_written[triton-cpu-clip_loss]",
    ),
    _mutant(
        "candidates that are no anchors have any weight",
        "backends/triton/step_rows.py",
        "            _store_row_constants(p_u, p_factor, p_lse, p_share, o_rows, m_rows, bias)\n",
        "",
        f"{WHOLE}::test_nothing_is_read_before_it_is_written[triton-cpu-info_nce-queue]",
    ),
    _mutant(
        "an anchor without others has weights",
        "backends/triton/heads.py",
        "tl.where(b_sum == 0, 0.0, 1.0 / (b_sum + exp(b_positive - b_unit, False)))",
        "1.0 / (b_sum + exp(b_positive - b_unit, False))",
        f"{WHOLE}::test_one_pair_alone[triton-cpu]",
    ),
    _mutant(
        "the counter stays where the last program found it",
        "backends/triton/rows.py",
        "    if last:\n        tl.store(p_count, 0)\n",
        "",
        f"{WHOLE}::test_a_second_backward_pass_gives_the_same[triton-cpu-clip_loss-learnable]",
    ),
    _mutant(
        "the gradient of a temperature has the sign of that of a scale",
        "backends/triton/step_grads.py",
        "b_dscale *= -b_factor * b_factor",
        "b_dscale *= b_factor * b_factor",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-info_nce-learnable]",
    ),
    _mutant(
        "a zero row of the queue is on the sphere",
        "backends/triton/heads.py",
        "of_one = zeros * (further - zeros_queue) + (n - zeros) * zeros_queue",
        "of_one = zeros * (further - zeros_queue)",
        f"{WHOLE}::test_zero_and_extreme_rows[triton-cpu-uniformity-queue]",
    ),
    _mutant(
        "weights of float16 are as small as they come",
        "backends/common/scheme.py",
        "FLOAT16_WEIGHTS = 4096.0",
        "FLOAT16_WEIGHTS = 1.0",
        f"{WHOLE}::test_a_confident_model_in_half_precision[triton-cpu-clip_loss]",
    ),
    _mutant(
        "partners without a gradient are not kept",
        "backends/triton/step_rows.py",
        "                tl.store(p_unit_y + o_unit, b_y, mask=mask)",
        "                tl.store(p_unit_y + o_unit, b_x, mask=mask)",
        f"{WHOLE}::test_frozen_sides[triton-cpu-clip_loss-learnable]",
    ),
    _mutant(
        "the operand is taken for what the setting of products is now",
        "backends/common/step.py",
        "bool(learnable), KINDS[kind])",
        "bool(learnable), float32_setting())",
        f"{WHOLE}::test_the_setting_of_products_may_change_before_the_gradient[triton-cpu-clip_loss]",
    ),
    _mutant(
        "the gradient of a mean over anchors is that of their sum",
        "backends/cuda/step.py",
        'factors if scheme.head == "energy" or (scheme.head == "classes" and scheme.spec.mean) else None',
        'factors if scheme.head == "energy" else None',
        f"{WHOLE}::test_values_and_gradients[cuda-cpu-33-5-7-None-sup_con]",
    ),
    # Rows too long for one pass.
    _mutant(
        "the mirror image of a panel takes the other rows",
        "backends/triton/step.py",
        ".mT, x) if turned",
        ".mT, y) if turned",
        f"{PANELS}::test_values_and_gradients[triton-cpu-33-5-None-clip_loss]",
    ),
    _mutant(
        "the mirror image of a stored panel takes the other rows",
        "backends/cuda/step.py",
        ".mT, x) if turned",
        ".mT, y) if turned",
        f"{PANELS}::test_values_and_gradients[cuda-cpu-33-5-None-clip_loss]",
    ),
    _mutant(
        "positives of a panel take off what their row alone says",
        "backends/triton/panel.py",
        "b_shares += load_log_weights(p_col_share",
        "b_shares += 0 * load_log_weights(p_col_share",
        f"{PANELS}::test_values_and_gradients[triton-cpu-33-5-None-sup_con]",
    ),
    _mutant(
        "terms of columns start where the columns do",
        "backends/cuda/step.py",
        "job.col + job.col % 2",
        "job.col - job.col % 2",
        f"{PANELS}::test_values_and_gradients[cuda-cpu-33-5-None-clip_loss]",
    ),
    _mutant(
        "weights of a panel are left in the range of float16",
        "backends/triton/step.py",
        "schedule.panel_scale != 1",
        "schedule.panel_scale < 0",
        f"{PANELS}::test_half_precision[triton-cpu-torch.float16-uniformity]",
    ),
    _mutant(
        "weights of a stored panel are left in the range of float16",
        "backends/cuda/step.py",
        "schedule.panel_scale != 1",
        "schedule.panel_scale < 0",
        f"{PANELS}::test_half_precision[cuda-cpu-torch.float16-uniformity]",
    ),
    _mutant(
        "the gradient of a bias is that of the partners alone",
        "backends/cuda/step.py",
        'if "bias" in scheme.need:',
        'if "bias" not in scheme.need:',
        f"{PANELS}::test_nothing_is_read_before_it_is_written[cuda-cpu-siglip-learnable]",
    ),
    _mutant(
        "a panel larger than its room is stored",
        "backends/common/panels.py",
        "batch * m * _padded(n) * size <= _WORKSPACE",
        "batch * m * size <= _WORKSPACE",
        f"{PANELS}::test_what_has_no_room_in_one_panel_takes_the_composition[triton-cpu]",
    ),
    # Labels.
    _mutant(
        "positives take nothing off the weights of their anchors",
        "backends/triton/contract.py",
        "        b_w -= tl.where(positives",
        "        b_w -= 0 * tl.where(positives",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-sup_con]",
    ),
    _mutant(
        "a candidate is no positive of its anchor in the gradient of the candidate",
        "backends/triton/contract.py",
        "b_shares = b_share[:, None] + tl.load(p_col_share + o_n, mask=o_n < n, other=0.0)[None, :]",
        "b_shares = b_share[:, None]",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-sup_con-queue]",
    ),
    _mutant(
        "a row is a positive of itself in the sums",
        "backends/triton/tile.py",
        "b_same = b_same & (b_l != -INF)",
        "b_same = b_same",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-sup_con]",
    ),
    _mutant(
        "labels are compared by their low words",
        "backends/triton/step.py",
        "others.itemsize) == 8",
        "others.itemsize) == 9",
        f"{CLASSES}::test_integers_are_compared_as_numbers[triton-cpu-torch.int32]",
    ),
    _mutant(
        "a row without a positive counts in the mean",
        "backends/triton/classes.py",
        "tl.sum(tl.where(b_counts, 1.0, 0.0), 0)",
        "tl.sum(tl.where(m_rows, 1.0, 0.0), 0)",
        f"{CLASSES}::test_rows_without_a_positive[triton-cpu-torch.float32]",
    ),
    _mutant(
        "a row without a positive has weights",
        "backends/triton/classes.py",
        "tl.where(b_counts, range_of_weights / b_sum, 0.0)",
        "range_of_weights / b_sum",
        f"{CLASSES}::test_rows_without_a_positive[triton-cpu-torch.float32]",
    ),
    _mutant(
        "the gradient of a mean is that of a sum",
        "backends/triton/step_grads.py",
        "        c /= tl.load(p_anchors + i_b)",
        "        c /= 1.0",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-sup_con]",
    ),
    _mutant(
        "the scale is in the rows of x twice where they are the candidates too",
        "backends/triton/step_rows.py",
        "b_x *= b_root if SYMMETRIC else b_factor",
        "b_x *= b_root if VIEWS == 2 else b_factor",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-sup_con-learnable]",
    ),
    _mutant(
        "each pair counts twice in the gradient of a scale",
        "backends/triton/step_grads.py",
        "b_part *= 0.5",
        "b_part *= 1.0",
        f"{WHOLE}::test_values_and_gradients[triton-cpu-33-5-7-None-sup_con-learnable]",
    ),
    # The kernels in CUDA C++, as far as no library has to be compiled anew.
    _mutant(
        "two rows of a tile meet in one bank",
        "csrc/layout.h",
        "^ (row % 8)",
        "^ (row % 4)",
        "backends/test_cuda_index_math.py::test_index_math",
    ),
    _mutant(
        "the square of a diagonal block is mirrored",
        "csrc/layout.h",
        "i_tile >= (i_block + 1) * square",
        "i_tile >= i_block * square",
        "backends/test_cuda_index_math.py::test_index_math",
    ),
    _mutant(
        "the emulator lets a product start without a fence",
        "csrc/emulator/tensor_cores.cpp",
        "require(thread.fenced, ",
        "require(true, ",
        f"{EMULATED}[emulator_test.cpp]",
    ),
    _mutant(
        "the emulator lets a block end while others reach it",
        "csrc/emulator/machine.cpp",
        "machine.blocks[address >> kRankShift].running > 0",
        "machine.blocks[address >> kRankShift].running >= 0",
        f"{EMULATED}[emulator_test.cpp]",
    ),
    _mutant(
        "the emulator forgets that a multicast fills the others",
        "csrc/emulator/copies.cpp",
        "cp_async_bulk_tensor(mapa(to, rank), map,",
        "cp_async_bulk_tensor(to, map,",
        f"{EMULATED}[emulator_test.cpp]",
    ),
    _mutant(
        "the emulator takes a rank for a part of an offset",
        "csrc/emulator/tensor_cores.cpp",
        "(descriptor & 0xc000) == 0",
        "(descriptor & 0xc000) <= 0xc000",
        f"{EMULATED}[emulator_test.cpp]",
    ),
    _mutant(
        "the blocks of a cluster have the same columns",
        "csrc/layout.h",
        "* cluster + i % cluster,",
        "* cluster,",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "a cluster ends before the last tile of its second block",
        "csrc/layout.h",
        "ceil_div(tiles, cluster) * cluster}",
        "tiles}",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "the emulator lets bytes come that nobody expects",
        "csrc/emulator/machine.cpp",
        "require(barrier.bytes >= 0 || barrier.pending > 0, ",
        "require(true, ",
        f"{EMULATED}[emulator_test.cpp]",
    ),
    _mutant(
        "a barrier of an emulated cluster waits for no other block",
        "csrc/emulator/machine.cpp",
        "barrier.count < running) return",
        "barrier.count < machine.count) return",
        f"{EMULATED}[emulator_test.cpp]",
    ),
    _mutant(
        "the blocks of a cluster start without one another",
        "csrc/sums_wgmma.cuh",
        "ptx::cluster_sync();  // the other",
        "ptx::syncthreads();  // the other",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "a block of a cluster ends while others still reach it",
        "csrc/sums_wgmma.cuh",
        "if constexpr (kCluster > 1) ptx::cluster_sync();",
        "",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "rows are fetched for the own block alone",
        "csrc/sums_wgmma.cuh",
        "(1 << kCluster) - 1",
        "1 << rank",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "both blocks of a cluster fetch the same rows",
        "csrc/sums_wgmma.cuh",
        "rank * (T::kRows / kCluster)",
        "0 * (T::kRows / kCluster)",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "rows of a warpgroup come into the buffers of the other",
        "csrc/sums_wgmma.cuh",
        "(rank * kRowStages + x_at.stage)",
        "((1 - rank) * kRowStages + x_at.stage)",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "a warpgroup multiplies rows that are not there yet",
        "csrc/sums_wgmma.cuh",
        "if constexpr (!kResident) rows.wait(x_at);",
        "",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "a warpgroup frees a buffer before its products have read it",
        "csrc/sums_wgmma.cuh",
        "          ptx::wgmma_wait_group<1>();\n          release();",
        "          release();\n          ptx::wgmma_wait_group<1>();",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "rows are expected where they are fetched alone",
        "csrc/wgmma_tile.cuh",
        "rank < cluster; ++rank",
        "rank < 1; ++rank",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "the other block is not asked whether it has left a buffer",
        "csrc/wgmma_tile.cuh",
        "warps * cluster",
        "warps",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "a block is told of a free buffer that it does not fill",
        "csrc/wgmma_tile.cuh",
        "ptx::mapa(empty(stage), filler)",
        "ptx::mapa(empty(stage), ptx::cluster_ctarank())",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "an address of a cluster is taken whole for a descriptor",
        "csrc/wgmma_tile.cuh",
        "(address & 0x3ffff) / kPieceBytes",
        "address / kPieceBytes",
        f"{EMULATED}[clusters_test.cpp]",
    ),
    _mutant(
        "a cluster has one cut for all of its blocks",
        "backends/cuda/primitives.py",
        "return stripes_beside(cuts), cuts * cluster",
        "return stripes_beside(cuts), cuts",
        "backends/test_cuda_schedule.py::test_odd_problems_fill_the_gpu",
    ),
    _mutant(
        "what runs at one time is a row block for each cluster",
        "backends/cuda/primitives.py",
        "min(range(1, most + 1), key=cost)",
        "1",
        "backends/test_cuda_schedule.py::test_rows_that_stream_are_found_in_l2",
    ),
    # What is built upon the losses.
    _mutant(
        "the second encoding draws other numbers",
        "cached/step.py",
        "                    state.restore()\n",
        "",
        "cached/test_cached_replay.py::test_dropout_is_the_same_both_times[4]",
    ),
    _mutant(
        "control variates of another mean than 0",
        "evaluation/estimate.py",
        "relative = relative - base @ relative",
        "relative = relative - 0 * base @ relative",
        "evaluation/test_evaluation_estimate.py::test_design_draws_what_stands_out",
    ),
    _mutant(
        "the error bar is ten times as long",
        "evaluation/plot.py",
        "row, xerr=",
        "row, xerr=10 * ",
        "evaluation/test_evaluation_plot.py::test_the_error_bar_is_the_interval",
    ),
]
