// The row-wise operators: their arguments are checked and handed to a kernel.
#include <cmath>
#include <tuple>

#include "align_uniform.cuh"
#include "ops.h"
#include "row_checks.h"

namespace hyperkern {
namespace {

Views make_views(const Tensor& x, const Tensor& y, double eps, double alpha) {
  check_device(x, "x");
  check_same_device(y, "y", x);
  Views views{input_rows(x, "x"), input_rows(y, "y"), access_of(x), x.size(0), to_int(x.size(1), "the number of rows")};
  check_type(y, "y", x.scalar_type());
  check_shape(y, "y", x.size(0), x.size(1), x.size(2));
  HYPERKERN_REQUIRE(views.m <= INT32_MAX - kRowWarps, "there are too many rows: ", views.m);
  views.blocks = ceil_div(views.m, kRowWarps);
  views.eps = static_cast<float>(eps);
  views.alpha = static_cast<float>(alpha);
  restrict_access(views.access, views.x);
  restrict_access(views.access, views.y);
  return views;
}

const float* cotangent_input(const OptionalTensor& of, const char* name, const Tensor& x) {
  if (!of.has_value()) return nullptr;
  check_shape(*of, name, x.size(0));
  return contiguous_input(*of, name, x);
}

}  // namespace

void normalize_rows(const Tensor& x, double eps, const Tensor& unit, const Tensor& rstd) {
  check_device(x, "x");
  PrepareArgs args{input_rows(x, "x")};
  args.rstd = result(rstd, "rstd", x, x.size(0), x.size(1));
  result(unit, "unit", x, x.size(0), x.size(1), x.size(2));
  args.unit = output_rows(unit, "unit");
  args.rows_per_batch = x.size(1);
  args.rows = x.size(0) * x.size(1);
  args.eps = static_cast<float>(eps);
  args.access = access_of(x);
  restrict_access(args.access, args.x);
  restrict_access(args.access, args.unit);
  const int blocks = row_blocks(1, args.rows);
  if (blocks == 0) return;
  const DeviceGuard guard(x);
  with_piece(args.access.dim, [&](auto piece) {
    launch(prepare_kernel<decltype(piece)>, blocks, kRowThreads, 0, current_stream(x), args);
  });
}

void normalize_rows_backward(const Tensor& grad, const Tensor& unit, const Tensor& rstd, double eps, const Tensor& dx) {
  check_device(unit, "unit");
  check_same_device(grad, "grad", unit);
  check_same_device(dx, "dx", unit);
  NormalizeBackwardArgs args{input_rows(grad, "grad"), input_rows(unit, "unit")};
  check_type(grad, "grad", ScalarType::Float);
  check_type(unit, "unit", ScalarType::Float);
  check_shape(grad, "grad", unit.size(0), unit.size(1), unit.size(2));
  check_shape(dx, "dx", unit.size(0), unit.size(1), unit.size(2));
  check_shape(rstd, "rstd", unit.size(0), unit.size(1));
  args.rstd = contiguous_input(rstd, "rstd", unit);
  args.eps = static_cast<float>(eps);
  args.dx = output_rows(dx, "dx");
  args.rows_per_batch = unit.size(1);
  args.rows = unit.size(0) * unit.size(1);
  args.access = access_of(unit);
  restrict_access(args.access, args.grad);
  restrict_access(args.access, args.unit);
  restrict_access(args.access, args.dx);
  const int blocks = row_blocks(1, args.rows);
  if (blocks == 0) return;
  const DeviceGuard guard(unit);
  with_piece(args.access.dim, [&](auto piece) {
    launch(normalize_backward_kernel<decltype(piece)>, blocks, kRowThreads, 0, current_stream(unit), args);
  });
}

void prepare_views(
    const Tensor& x, const Tensor& y, double eps, double alpha, const Tensor& operand, const Tensor& align,
    const Tensor& zeros) {
  PrepareViewsArgs args{make_views(x, y, eps, alpha)};
  Views& views = args.views;
  args.align = result(align, "align", x, views.batch, views.blocks);
  args.zeros = result(zeros, "zeros", x, 2, views.batch, views.blocks);
  check_same_device(operand, "operand", x);
  const int per_piece = 16 / bytes_of(element_of(operand, "operand"));
  check_shape(operand, "operand", 2, views.batch, views.m, (x.size(2) + per_piece - 1) / per_piece * per_piece);
  args.operand = output_rows(operand, "operand");
  restrict_access(views.access, args.operand);
  const int blocks = row_blocks(views.batch, views.m);
  if (blocks == 0) return;
  const DeviceGuard guard(x);
  with_piece(views.access.dim, [&](auto piece) {
    launch(prepare_views_kernel<decltype(piece)>, blocks, kRowThreads, kPrepareViewsShared, current_stream(x), args);
  });
}

void combine(
    const Tensor& align, const Tensor& zeros, const Tensor& sums, double t, double align_weight, double uniform_weight,
    const Tensor& total, const Tensor& loss, const Tensor& alignment, const Tensor& uniformity) {
  check_device(align, "align");
  HYPERKERN_REQUIRE(align.dim() == 2, "align must have shape (batch, blocks), got ", shape_of(align));
  const int64_t batch = align.size(0);
  HYPERKERN_REQUIRE(
      sums.dim() == 3 && sums.size(1) == 2 * batch, "sums must have shape (cuts, ", 2 * batch, ", rows), got ",
      shape_of(sums));
  CombineArgs args{};
  args.batch = batch;
  args.cuts = to_int(sums.size(0), "the number of cuts");
  args.m = to_int(sums.size(2), "the number of rows");
  args.blocks = to_int(align.size(1), "the number of blocks");
  check_shape(zeros, "zeros", 2, batch, args.blocks);
  args.align = contiguous_input(align, "align", align);
  args.zeros = contiguous_input(zeros, "zeros", align);
  args.sums = contiguous_input(sums, "sums", align);
  args.total = result(total, "total", align, 2 * batch);
  args.loss = result(loss, "loss", align, batch);
  args.alignment = result(alignment, "alignment", align, batch);
  args.uniformity = result(uniformity, "uniformity", align, batch);
  args.t = static_cast<float>(t);
  args.align_weight = static_cast<float>(align_weight);
  args.uniform_weight = static_cast<float>(uniform_weight);
  args.pairs = static_cast<float>(static_cast<double>(args.m) * (args.m - 1.0));
  args.of_sphere = static_cast<float>(std::expm1(t));
  args.of_zeros = static_cast<float>(std::expm1(2.0 * t));
  if (batch == 0) return;
  const DeviceGuard guard(align);
  launch(
      combine_kernel, to_int(batch, "the batch size"), kCombineThreads, kBlockSumBytes<kCombineThreads>,
      current_stream(align), args);
}

void finish_views(
    const Tensor& x, const Tensor& y, const Tensor& grad, const Tensor& total, const OptionalTensor& of_loss,
    const OptionalTensor& of_alignment, const OptionalTensor& of_uniformity, double eps, double alpha, double t,
    double align_weight, double uniform_weight, const Tensor& dx, const Tensor& dy) {
  FinishViewsArgs args{make_views(x, y, eps, alpha)};
  Views& views = args.views;
  check_same_device(grad, "grad", x);
  check_type(grad, "grad", ScalarType::Float);
  HYPERKERN_REQUIRE(
      grad.dim() == 4 && grad.size(1) == 2 * views.batch && grad.size(2) == views.m && grad.size(3) >= x.size(2),
      "grad must have shape (cuts, ", 2 * views.batch, ", ", views.m, ", at least ", x.size(2), "), got ",
      shape_of(grad));
  args.grad = {grad.const_data_ptr(), Element::kFloat32, grad.stride(1), grad.stride(2), grad.stride(3)};
  args.grad_cut = grad.stride(0);
  args.cuts = to_int(grad.size(0), "the number of cuts");
  HYPERKERN_REQUIRE(args.cuts >= 1, "grad must have at least one cut, got shape ", shape_of(grad));
  check_shape(total, "total", 2 * views.batch);
  args.total = contiguous_input(total, "total", x);
  args.of_loss = cotangent_input(of_loss, "of_loss", x);
  args.of_alignment = cotangent_input(of_alignment, "of_alignment", x);
  args.of_uniformity = cotangent_input(of_uniformity, "of_uniformity", x);
  args.t = static_cast<float>(t);
  args.align_weight = static_cast<float>(align_weight);
  args.uniform_weight = static_cast<float>(uniform_weight);
  args.of_sphere = static_cast<float>(std::exp(t));
  for (auto [out, name, rows] : {std::tuple(&dx, "dx", &args.dx), std::tuple(&dy, "dy", &args.dy)}) {
    check_same_device(*out, name, x);
    check_type(*out, name, x.scalar_type());
    check_shape(*out, name, views.batch, views.m, x.size(2));
    *rows = output_rows(*out, name);
    restrict_access(views.access, *rows);
  }
  restrict_access(views.access, args.grad);
  // The step from cut to cut is one more stride.
  views.access.vector = views.access.vector && args.grad_cut % 4 == 0;
  const int blocks = row_blocks(views.batch, views.m);
  if (blocks == 0) return;
  const DeviceGuard guard(x);
  // Three rows at once: eight chunks of each would be all registers there are.
  with_piece<4>(views.access.dim, [&](auto piece) {
    launch(finish_views_kernel<decltype(piece)>, blocks, kRowThreads, 0, current_stream(x), args);
  });
}

}  // namespace hyperkern
