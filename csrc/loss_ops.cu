// The operators of whole losses but for the pairs: their arguments are checked and handed to a kernel.
#include <cmath>
#include <tuple>
#include <vector>

#include "loss_head.cuh"
#include "ops.h"
#include "row_checks.h"

namespace hyperkern {
namespace {

// The longest row that a warp holds, and several of, in registers.
constexpr int kMostLossDim = 1024;

template <class Function>
void with_short_piece(int dim, const Function& function) {
  if (dim <= Piece<1, false>::kElements) return function(Piece<1, false>{});
  if (dim <= Piece<2, false>::kElements) return function(Piece<2, false>{});
  if (dim <= Piece<4, false>::kElements) return function(Piece<4, false>{});
  function(Piece<8, false>{});
}

NumberType number_type(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return NumberType::kFloat32;
    case ScalarType::BFloat16: return NumberType::kBFloat16;
    case ScalarType::Half: return NumberType::kFloat16;
    case ScalarType::Double: return NumberType::kFloat64;
    default: fail(name, " must be of a floating dtype, got ", name_of(x.scalar_type()));
  }
}

LabelType label_type(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Byte: return LabelType::kUInt8;
    case ScalarType::Char: return LabelType::kInt8;
    case ScalarType::Short: return LabelType::kInt16;
    case ScalarType::Int: return LabelType::kInt32;
    case ScalarType::Long: return LabelType::kInt64;
    default: fail(name, " must be signed integers or uint8, got ", name_of(x.scalar_type()));
  }
}

Labels labels_of(const OptionalTensor& given, const char* name, const Tensor& as, int64_t batch, int64_t count) {
  if (count == 0) return {};
  HYPERKERN_REQUIRE(given.has_value(), name, " is missing");
  check_same_device(*given, name, as);
  check_shape(*given, name, batch, count);
  HYPERKERN_REQUIRE(given->is_contiguous(), name, " must be contiguous");
  return {given->const_data_ptr(), label_type(*given, name)};
}

void check_number(const Tensor& x, const char* name, const Tensor& as) {
  check_same_device(x, name, as);
  HYPERKERN_REQUIRE(x.numel() == 1, name, " must be one number, got ", shape_of(x));
}

Number number(const OptionalTensor& given, double value, bool reciprocal, const char* name, const Tensor& as) {
  if (!given.has_value()) return {nullptr, NumberType::kFloat32, static_cast<float>(value), false};
  check_number(*given, name, as);
  return {given->const_data_ptr(), number_type(*given, name), 0.0f, reciprocal};
}

// A tensor of float32 numbers with so many elements, whatever its shape.
float* numbers(const Tensor& x, const char* name, const Tensor& as, int64_t at_least) {
  check_same_device(x, name, as);
  check_type(x, name, ScalarType::Float);
  HYPERKERN_REQUIRE(
      x.is_contiguous() && x.numel() >= at_least, name, " must be contiguous and have at least ", at_least,
      " elements, got ", shape_of(x));
  return static_cast<float*>(x.mutable_data_ptr());
}

InputRows features(const OptionalTensor& rows, const char* name, const Tensor& x, int64_t count, Access& access) {
  if (!rows.has_value()) return {};
  check_features(*rows, name, x, count);
  const InputRows found = feature_rows(*rows, name);
  restrict_access(access, found);
  return found;
}

LossRows loss_rows(
    const Tensor& x, const OptionalTensor& y, const OptionalTensor& queue, bool together, const Number& scale) {
  check_device(x, "x");
  LossRows rows{feature_rows(x, "x")};
  HYPERKERN_REQUIRE(dim_of(x) <= kMostLossDim, "D must be at most ", kMostLossDim, ", got ", dim_of(x));
  HYPERKERN_REQUIRE(!together || !queue.has_value(), "one symmetric problem is of x, or of x and y, and no others");
  rows.access = {static_cast<int>(dim_of(x)), true};
  restrict_access(rows.access, rows.x);
  rows.batch = x.dim() == 2 ? 1 : to_int(x.size(0), "the batch size");
  rows.n = to_int(x.size(x.dim() - 2), "the number of rows");
  HYPERKERN_REQUIRE(
      !queue.has_value() || queue->dim() == x.dim(), "queue must have as many dimensions as x ", shape_of(x), ", got ",
      shape_of(*queue));
  rows.k = queue.has_value() ? to_int(queue->size(x.dim() - 2), "the rows of the queue") : 0;
  rows.y = features(y, "y", x, rows.n, rows.access);
  rows.queue = features(queue, "queue", x, rows.k, rows.access);
  rows.together = together;
  rows.scale = scale;
  HYPERKERN_REQUIRE(
      2 * static_cast<int64_t>(rows.n) + rows.k <= INT32_MAX - 1024, "there are too many rows: ", rows.n, " and ",
      rows.k);
  return rows;
}

uint32_t* counts(const Tensor& x, const char* name, const Tensor& as, int64_t at_least) {
  return reinterpret_cast<uint32_t*>(numbers(x, name, as, at_least));
}

// Three numbers for each place of partial sums: which tensor, 0 for none; the first row; from one row to the next.
void set_places(
    HeadArgs& args, const Tensor& row, const OptionalTensor& top, const OptionalTensor& second,
    const std::vector<int64_t>& places) {
  constexpr int kNumbers = 3;
  args.ways = static_cast<int>(places.size() / (kMostSources * kNumbers));
  HYPERKERN_REQUIRE(
      places.size() % (kMostSources * kNumbers) == 0 && args.ways >= 1 && args.ways <= kMostWays,
      "places has six numbers for each of one or two ways, got ", places.size());
  for (int i = 0; i < args.ways * kMostSources; ++i) {
    const int64_t which = places[i * kNumbers], first = places[i * kNumbers + 1], stride = places[i * kNumbers + 2];
    if (which == 0) continue;
    HYPERKERN_REQUIRE(which == 1 || (which == 2 && second.has_value()), "there are no sums ", which);
    const Tensor& from = which == 1 ? row : *second;
    HYPERKERN_REQUIRE(from.dim() == 3, "sums must have shape (parts, batch, rows), got ", shape_of(from));
    const float* data = contiguous_input(from, "sums", row);
    const int64_t size = from.size(1) * from.size(2);
    HYPERKERN_REQUIRE(
        first >= 0 && stride >= 1 && first + (args.batch - 1) * from.size(2) + (args.n - 1) * stride < size, "place ",
        i, " is not within sums ", shape_of(from));
    PartialSums& sums = args.sums[i / kMostSources][i % kMostSources];
    sums = {data + first, nullptr, to_int(from.size(0), "parts"), size, from.size(2), static_cast<int>(stride)};
    if (top.has_value() && which == 1) {
      check_shape(*top, "top", row.size(0), row.size(1), row.size(2));
      sums.top = contiguous_input(*top, "top", row) + first;
    }
  }
}

// How often sums count, and what a zero row has in place of its distance.
void set_potential(HeadArgs& args, double t) {
  const double n = args.n, k = args.k;
  const bool distinct = args.sums[0][0].sum != nullptr, queue = args.sums[0][1].sum != nullptr;
  args.of_source[0] = distinct ? 0.5f : 0.0f;
  args.of_source[1] = queue ? 1.0f : 0.0f;
  args.pairs = static_cast<float>((distinct ? 0.5 * n * (n - 1) : 0.0) + (queue ? n * k : 0.0));
  args.offset = static_cast<float>(-2.0 * t);
  args.of_sphere = static_cast<float>(std::expm1(t));
  args.of_zeros = static_cast<float>(std::expm1(2.0 * t));
}

}  // namespace

void prepare_loss(
    const Tensor& x, const OptionalTensor& y, const OptionalTensor& queue, double eps, bool together,
    const OptionalTensor& scale, bool reciprocal, const OptionalTensor& bias, double bias_value, double unit,
    const Tensor& operand, const OptionalTensor& positives, const OptionalTensor& zeros, const Tensor& counted,
    const OptionalTensor& cleared, const OptionalTensor& terms, const OptionalTensor& kept_x,
    const OptionalTensor& kept_y, const OptionalTensor& kept_scale, const OptionalTensor& labels,
    const OptionalTensor& queue_labels, const OptionalTensor& classes) {
  PrepareLossArgs args{loss_rows(x, y, queue, together, number(scale, 1.0, reciprocal, "scale", x))};
  LossRows& of = args.of;
  args.blocks = ceil_div(static_cast<int64_t>(of.n) + of.k, kRowWarps);
  args.eps = static_cast<float>(eps);
  check_same_device(operand, "operand", x);
  const int per_piece = 16 / bytes_of(element_of(operand, "operand"));
  check_shape(operand, "operand", of.batch, of.rows(), (dim_of(x) + per_piece - 1) / per_piece * per_piece);
  args.operand = output_rows(operand, "operand");
  restrict_access(of.access, args.operand);
  HYPERKERN_REQUIRE(positives.has_value() == y.has_value(), "positives are those of x and y");
  if (positives.has_value()) args.positives = result(*positives, "positives", x, of.batch, of.n);
  if (zeros.has_value()) args.zeros = result(*zeros, "zeros", x, 2, of.batch, args.blocks);
  args.counts = numbers(counted, "counts", x, static_cast<int64_t>(of.batch) + 1);
  if (cleared.has_value()) {
    args.cleared = numbers(*cleared, "cleared", x, 0);
    args.clear = cleared->numel();
  }
  if (terms.has_value()) {
    args.terms = numbers(*terms, "terms", x, 0);
    args.term_count = terms->numel();
  }
  args.bias = number(bias, bias_value, false, "bias", x);
  args.unit = unit;
  for (auto [kept, name, rows] :
       {std::tuple(&kept_x, "kept_x", &args.kept_x), std::tuple(&kept_y, "kept_y", &args.kept_y)}) {
    if (!kept->has_value()) continue;
    check_features(**kept, name, x, of.n);
    check_type(**kept, name, ScalarType::Float);
    *rows = output_rows(**kept, name);
    restrict_access(of.access, *rows);
  }
  if (kept_scale.has_value()) {
    HYPERKERN_REQUIRE(scale.has_value(), "kept_scale is that of a tensor");
    args.kept_scale = numbers(*kept_scale, "kept_scale", x, 1);
  }
  if (classes.has_value()) {
    HYPERKERN_REQUIRE(!y.has_value(), "partners have no classes");
    args.labels = labels_of(labels, "labels", x, of.batch, of.n);
    args.queue_labels = labels_of(queue_labels, "queue_labels", x, of.batch, of.k);
    check_same_device(*classes, "classes", x);
    check_type(*classes, "classes", ScalarType::Long);
    check_shape(*classes, "classes", of.batch, of.rows());
    HYPERKERN_REQUIRE(classes->is_contiguous(), "classes must be contiguous");
    args.classes = static_cast<int64_t*>(classes->mutable_data_ptr());
  }
  const int blocks = row_blocks(of.batch, static_cast<int64_t>(of.n) + of.k);
  if (blocks == 0) return;
  const DeviceGuard guard(x);
  with_short_piece(of.access.dim, [&](auto piece) {
    launch(prepare_loss_kernel<decltype(piece)>, blocks, kRowThreads, kPrepareLossShared, current_stream(x), args);
  });
}

void head(
    int64_t head_code, int64_t n, int64_t further, const Tensor& row, const OptionalTensor& top,
    const OptionalTensor& second, const std::vector<int64_t>& places, const OptionalTensor& positives, bool together,
    const OptionalTensor& scale, double scale_value, bool reciprocal, const OptionalTensor& bias, double bias_value,
    double unit, double share, double sigma, double gain, double t, const OptionalTensor& zeros,
    const OptionalTensor& terms, const OptionalTensor& weights, const OptionalTensor& total, const Tensor& loss,
    const Tensor& partials, const Tensor& counted) {
  check_device(row, "row");
  HYPERKERN_REQUIRE(head_code >= 0 && head_code <= 4, "head must be between 0 and 4, got ", head_code);
  HYPERKERN_REQUIRE(loss.dim() == 1, "loss must have shape (batch), got ", shape_of(loss));
  HeadArgs args{};
  args.head = static_cast<Head>(head_code);
  args.batch = to_int(loss.size(0), "the batch size");
  args.n = to_int(n, "n");
  args.k = to_int(further, "further");
  args.together = together;
  set_places(args, row, top, second, places);
  const bool potential = args.head == Head::kPotential, classes = args.head == Head::kClasses;
  HYPERKERN_REQUIRE(potential || classes || positives.has_value(), "head ", head_code, " needs positives");
  HYPERKERN_REQUIRE(
      !potential || (zeros.has_value() && total.has_value()), "head ", head_code, " needs zeros and total");
  if (positives.has_value()) {
    check_shape(*positives, "positives", args.batch, n);
    args.positives = contiguous_input(*positives, "positives", row);
  }
  args.scale = number(scale, scale_value, reciprocal, "scale", row);
  args.bias = number(bias, bias_value, false, "bias", row);
  args.unit = static_cast<float>(unit);
  args.share = share;
  args.sigma = static_cast<float>(sigma);
  args.gain = static_cast<float>(gain);
  if (potential) {
    HYPERKERN_REQUIRE(zeros->dim() == 3, "zeros must have shape (2, batch, blocks), got ", shape_of(*zeros));
    args.zero_blocks = to_int(zeros->size(2), "the number of blocks");
    check_shape(*zeros, "zeros", 2, args.batch, args.zero_blocks);
    args.zeros = contiguous_input(*zeros, "zeros", row);
    args.total = result(*total, "total", row, args.batch);
    set_potential(args, t);
  }
  if (classes) {
    HYPERKERN_REQUIRE(
        args.ways == 2 && top.has_value() && args.sums[1][0].sum != nullptr && args.sums[1][1].sum != nullptr, "head ",
        head_code, " needs top, and beside the sums those of positives and their numbers");
    args.ways = 1;
    if (total.has_value()) args.total = result(*total, "total", row, args.batch);
  }
  int64_t items = n;
  if (terms.has_value()) {
    HYPERKERN_REQUIRE(
        terms->dim() == 3 && (classes ? terms->size(1) == 6 : terms->size(1) == 2 || terms->size(1) == 5) &&
            terms->size(2) >= (args.ways == 2 ? 2 * n + (together ? 0 : n % 2) : n),
        "terms must have shape (batch, 2 or 5, of classes 6, as many as there are rows), got ", shape_of(*terms));
    args.vectors = static_cast<int>(terms->size(1));
    args.padded = to_int(terms->size(2), "terms");
    args.terms = result(*terms, "terms", row, args.batch, args.vectors, args.padded);
    items = items > args.padded ? items : args.padded;
  }
  if (weights.has_value()) args.weights = result(*weights, "weights", row, args.batch, n);
  args.loss = result(loss, "loss", row, args.batch);
  args.blocks = ceil_div(items, kHeadThreads);
  args.partials = numbers(partials, "partials", row, static_cast<int64_t>(classes ? 2 : 1) * args.batch * args.blocks);
  args.counts = counts(counted, "counts", row, args.batch);
  const int blocks = to_int(static_cast<int64_t>(args.batch) * args.blocks, "the number of blocks");
  if (blocks == 0) return;
  const DeviceGuard guard(row);
  launch(
      classes ? class_head_kernel : head_kernel, blocks, kHeadThreads, kBlockSumBytes<kHeadThreads>,
      current_stream(row), args);
}

void finish_loss(
    const Tensor& x, const OptionalTensor& y, const OptionalTensor& queue, bool together, const OptionalTensor& scale,
    double scale_value, bool reciprocal, const Tensor& grad, const OptionalTensor& sum,
    const std::vector<int64_t>& places, const OptionalTensor& weights, const OptionalTensor& total,
    const Tensor& of_loss, double share, double of_pairs, double of_zero_row, double eps, const OptionalTensor& dx,
    const OptionalTensor& dy, const OptionalTensor& dqueue, const OptionalTensor& of_scale,
    const OptionalTensor& of_bias, const OptionalTensor& partials, const Tensor& counted) {
  FinishLossArgs args{loss_rows(x, y, queue, together, number(scale, scale_value, reciprocal, "scale", x))};
  LossRows& of = args.of;
  check_same_device(grad, "grad", x);
  check_type(grad, "grad", ScalarType::Float);
  HYPERKERN_REQUIRE(
      grad.dim() == 2 && grad.size(1) >= dim_of(x) && grad.is_contiguous(), "grad must have shape (results, at least ",
      dim_of(x), "), got ", shape_of(grad));
  args.grad = {grad.const_data_ptr(), Element::kFloat32, 0, grad.stride(0), grad.stride(1)};
  if (sum.has_value()) {
    check_shape(*sum, "sum", grad.size(0));
    args.sum = contiguous_input(*sum, "sum", x);
  }
  if (weights.has_value()) {
    check_shape(*weights, "weights", of.batch, of.n);
    args.weights = contiguous_input(*weights, "weights", x);
  }
  if (total.has_value()) {
    check_shape(*total, "total", of.batch);
    args.total = contiguous_input(*total, "total", x);
  }
  check_shape(of_loss, "of_loss", of.batch);
  args.of_loss = contiguous_input(of_loss, "of_loss", x);
  args.share = share;
  args.of_pairs = static_cast<float>(of_pairs);
  args.of_zero_row = static_cast<float>(of_zero_row);
  args.eps = static_cast<float>(eps);
  if (of_scale.has_value()) {
    check_number(*of_scale, "of_scale", x);
    HYPERKERN_REQUIRE(scale.has_value(), "the gradient of a number is that of a tensor");
    args.of_scale = of_scale->mutable_data_ptr();
    args.scale_type = number_type(*of_scale, "of_scale");
  }
  if (of_bias.has_value()) {
    check_number(*of_bias, "of_bias", x);
    HYPERKERN_REQUIRE(sum.has_value(), "the gradient of a bias is made of sum");
    args.of_bias = of_bias->mutable_data_ptr();
    args.bias_type = number_type(*of_bias, "of_bias");
  }
  // Of each feature: first result and cuts, twice; rows of a side, the first row, from one row to the next.
  constexpr int kNumbers = 7;
  HYPERKERN_REQUIRE(
      places.size() == static_cast<size_t>(kMostFeatures * kNumbers),
      "places has seven numbers for each of three "
      "features, got ",
      places.size());
  const OptionalTensor* const outs[] = {&dx, &dy, &dqueue};
  const InputRows* const ins[] = {&of.x, &of.y, &of.queue};
  const bool wanted[] = {
      dx.has_value() || of_scale.has_value() || of_bias.has_value(),
      dy.has_value() || (of_scale.has_value() && together && y.has_value()), dqueue.has_value()};
  for (int i = 0; i < kMostFeatures; ++i) {
    if (!wanted[i]) continue;
    const int64_t* place = &places[static_cast<size_t>(i * kNumbers)];
    FinishRows& feature = args.features[args.feature_count++];
    feature.rows = *ins[i];
    HYPERKERN_REQUIRE(feature.rows.data != nullptr, "there is no feature ", i, " to have a gradient");
    feature.count = i == 2 ? of.k : of.n;
    feature.is_x = i == 0;
    if (i < 2 && weights.has_value()) feature.partner = *ins[1 - i];
    feature.side_rows = to_int(place[4], "the rows of a side");
    feature.first = to_int(place[5], "a first row");
    feature.stride = to_int(place[6], "a stride");
    for (int side = 0; side < 2; ++side) {
      const int64_t first = place[2 * side], cuts = place[2 * side + 1];
      HYPERKERN_REQUIRE(
          cuts == 0 || (first >= 0 && cuts > 0 && first + cuts * of.batch * place[4] <= grad.size(0) &&
                        place[5] + (feature.count - 1) * place[6] < place[4]),
          "feature ", i, " is not within the rows of grad ", shape_of(grad));
      feature.results[side] = first;
      feature.cuts[side] = to_int(cuts, "cuts");
    }
    feature.first_block = args.blocks;
    args.blocks += ceil_div(feature.count, kRowWarps);
    if (outs[i]->has_value()) {
      const Tensor& out = **outs[i];
      HYPERKERN_REQUIRE(
          element_of(out, "a gradient") == feature.rows.type, "a gradient must have the type of its feature, got ",
          name_of(out.scalar_type()));
      check_features(out, "a gradient", x, feature.count);
      feature.out = output_rows(out, "a gradient");
      restrict_access(of.access, feature.out);
    }
  }
  HYPERKERN_REQUIRE(!args.of_bias || args.features[0].cuts[0] > 0, "the gradient of a bias is made of the side of x");
  restrict_access(of.access, args.grad);
  const int blocks = to_int(static_cast<int64_t>(of.batch) * args.blocks, "the number of blocks");
  if (of_scale.has_value() || of_bias.has_value()) {
    HYPERKERN_REQUIRE(partials.has_value(), "the gradient of a number needs partials");
    args.partials = numbers(*partials, "partials", x, 2 * static_cast<int64_t>(blocks));
  }
  args.count_blocks = counts(counted, "counts", x, 1);
  if (blocks == 0) return;
  const DeviceGuard guard(x);
  with_short_piece(of.access.dim, [&](auto piece) {
    launch(
        finish_loss_kernel<decltype(piece)>, blocks, kRowThreads, kBlockSumBytes<kRowThreads>, current_stream(x), args);
  });
}

}  // namespace hyperkern
