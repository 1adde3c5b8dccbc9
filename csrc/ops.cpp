// The operators as PyTorch sees them: every schema, once.
#include "ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(HYPERKERN_NAMESPACE, library)
{
  library.def("tile(Tensor x, int kernel, int dim, int weight) -> (int, int, int, int)");
  library.def("runs_on(int capability) -> bool");
  library.def("block(int kernel, int bytes, int dim, int kind, bool wgmma) -> (int, int, int)");
  library.def(
      "sums(Tensor x, Tensor y, Tensor? row_terms, Tensor? col_terms, Tensor? row_ids, Tensor? col_ids, int exclude, "
      "int row_shift, int views, int[] sides, float scale, float offset, bool rounded, int task, bool split, "
      "bool triangle, int stripes, int cuts, "
      "Tensor(a!) row, Tensor(b!)? row_second, Tensor(c!)? col, Tensor(d!)? weights) -> ()");
  library.def(
      "contract(Tensor x, Tensor y, Tensor? row_terms, Tensor? col_terms, Tensor? row_ids, Tensor? col_ids, "
      "int exclude, int row_shift, int views, int[] sides, float scale, float offset, bool rounded, int weight, "
      "bool split, float out_scale, "
      "Tensor(a!) grad, Tensor(b!) sum, Tensor(c!)? value) -> ()");
  library.def("normalize_rows(Tensor x, float eps, Tensor(a!) unit, Tensor(b!) rstd) -> ()");
  library.def("normalize_rows_backward(Tensor grad, Tensor unit, Tensor rstd, float eps, Tensor(a!) dx) -> ()");
  library.def(
      "prepare_views(Tensor x, Tensor y, float eps, float alpha, Tensor(a!) operand, Tensor(b!) align, "
      "Tensor(c!) zeros) -> ()");
  library.def(
      "combine(Tensor align, Tensor zeros, Tensor sums, float t, float align_weight, float uniform_weight, "
      "Tensor(a!) total, Tensor(b!) loss, Tensor(c!) alignment, Tensor(d!) uniformity) -> ()");
  library.def(
      "finish_views(Tensor x, Tensor y, Tensor grad, Tensor total, Tensor? of_loss, Tensor? of_alignment, "
      "Tensor? of_uniformity, float eps, float alpha, float t, float align_weight, float uniform_weight, "
      "Tensor(a!) dx, Tensor(b!) dy) -> ()");
  library.def(
      "prepare_loss(Tensor x, Tensor? y, Tensor? queue, float eps, bool together, Tensor? scale, bool reciprocal, "
      "Tensor? bias, float bias_value, float unit, Tensor(a!) operand, Tensor(b!)? positives, Tensor(c!)? zeros, "
      "Tensor(d!) counted, Tensor(e!)? cleared, Tensor(f!)? terms, Tensor(g!)? kept_x, Tensor(h!)? kept_y, "
      "Tensor(i!)? kept_scale, Tensor? labels, Tensor? queue_labels, Tensor(j!)? classes) -> ()");
  library.def(
      "head(int head, int n, int further, Tensor row, Tensor? top, Tensor? second, int[] places, Tensor? positives, "
      "bool together, Tensor? scale, float scale_value, bool reciprocal, Tensor? bias, float bias_value, float unit, "
      "float share, float sigma, float gain, float t, Tensor? zeros, Tensor(a!)? terms, Tensor(b!)? weights, "
      "Tensor(c!)? total, Tensor(d!) loss, Tensor(e!) partials, Tensor(f!) counted) -> ()");
  library.def(
      "finish_loss(Tensor x, Tensor? y, Tensor? queue, bool together, Tensor? scale, float scale_value, "
      "bool reciprocal, Tensor grad, Tensor? sum, int[] places, Tensor? weights, Tensor? total, Tensor of_loss, "
      "float share, float of_pairs, float of_zero_row, float eps, Tensor(a!)? dx, Tensor(b!)? dy, "
      "Tensor(c!)? dqueue, Tensor(d!)? of_scale, Tensor(e!)? of_bias, Tensor(f!)? partials, Tensor(g!) counted) "
      "-> ()");
#ifdef HYPERKERN_EMULATED
  library.def("emulate(int capability, bool products_first, bool launches) -> ()");
#endif
}

// CPU tensors come here too, so that the answer is a check's and not the dispatcher's.
STABLE_TORCH_LIBRARY_IMPL(HYPERKERN_NAMESPACE, CPU, library)
{
  library.impl("tile", TORCH_BOX(&hyperkern::tile));
  library.impl("sums", TORCH_BOX(&hyperkern::sums));
  library.impl("contract", TORCH_BOX(&hyperkern::contract));
  library.impl("normalize_rows", TORCH_BOX(&hyperkern::normalize_rows));
  library.impl("normalize_rows_backward", TORCH_BOX(&hyperkern::normalize_rows_backward));
  library.impl("prepare_views", TORCH_BOX(&hyperkern::prepare_views));
  library.impl("combine", TORCH_BOX(&hyperkern::combine));
  library.impl("finish_views", TORCH_BOX(&hyperkern::finish_views));
  library.impl("prepare_loss", TORCH_BOX(&hyperkern::prepare_loss));
  library.impl("head", TORCH_BOX(&hyperkern::head));
  library.impl("finish_loss", TORCH_BOX(&hyperkern::finish_loss));
}

STABLE_TORCH_LIBRARY_IMPL(HYPERKERN_NAMESPACE, CompositeExplicitAutograd, library)
{
  library.impl("runs_on", TORCH_BOX(&hyperkern::runs_on));
  library.impl("block", TORCH_BOX(&hyperkern::block));
#ifdef HYPERKERN_EMULATED
  library.impl("emulate", TORCH_BOX(&hyperkern::emulate));
#endif
}

#ifndef HYPERKERN_EMULATED
STABLE_TORCH_LIBRARY_IMPL(HYPERKERN_NAMESPACE, CUDA, library)
{
  library.impl("tile", TORCH_BOX(&hyperkern::tile));
  library.impl("sums", TORCH_BOX(&hyperkern::sums));
  library.impl("contract", TORCH_BOX(&hyperkern::contract));
  library.impl("normalize_rows", TORCH_BOX(&hyperkern::normalize_rows));
  library.impl("normalize_rows_backward", TORCH_BOX(&hyperkern::normalize_rows_backward));
  library.impl("prepare_views", TORCH_BOX(&hyperkern::prepare_views));
  library.impl("combine", TORCH_BOX(&hyperkern::combine));
  library.impl("finish_views", TORCH_BOX(&hyperkern::finish_views));
  library.impl("prepare_loss", TORCH_BOX(&hyperkern::prepare_loss));
  library.impl("head", TORCH_BOX(&hyperkern::head));
  library.impl("finish_loss", TORCH_BOX(&hyperkern::finish_loss));
}
#endif
