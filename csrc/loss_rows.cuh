// Whole losses, but for the pairs: unit rows before them, numbers of each row between sums and products, gradients
// behind them. One form for the family: features x, their partners y where there are any, and further rows, a queue.
//
// The operand holds all rows of a problem in the dtype of the product: those of x, of y, of the queue, or, where all of
// them are one symmetric problem, x alone, or x and y in turn.
#pragma once

#include "rows.cuh"

namespace hyperkern {

// ---- numbers that nobody has read on the host ---------------------------------------------------------------------

enum class NumberType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

// A number of the host, or one in a tensor; of which the reciprocal may be meant.
struct Number {
  const void* data;
  NumberType type;
  float value;
  bool reciprocal;

  HYPERKERN_DEVICE double read() const {
    switch (type) {
      case NumberType::kFloat64: return *static_cast<const double*>(data);
      case NumberType::kBFloat16: return HalfElement<Bf16>::widen(*static_cast<const uint16_t*>(data));
      case NumberType::kFloat16: return HalfElement<Fp16>::widen(*static_cast<const uint16_t*>(data));
      default: return *static_cast<const float*>(data);
    }
  }

  HYPERKERN_DEVICE float get() const {
    if (data == nullptr) return value;
    return static_cast<float>(reciprocal ? 1.0 / read() : read());
  }

  // Of the accurate number: its rounding would be in every logit twice.
  HYPERKERN_DEVICE float root() const {
    const double given = read();
    return static_cast<float>(sqrt(reciprocal ? 1.0 / given : given));
  }
};

// The same number's place for its gradient.
HYPERKERN_DEVICE void write_number(void* to, NumberType type, double x) {
  switch (type) {
    case NumberType::kFloat64: *static_cast<double*>(to) = x; break;
    case NumberType::kBFloat16: *static_cast<uint16_t*>(to) = HalfElement<Bf16>::narrow(static_cast<float>(x)); break;
    case NumberType::kFloat16: *static_cast<uint16_t*>(to) = HalfElement<Fp16>::narrow(static_cast<float>(x)); break;
    default: *static_cast<float*>(to) = static_cast<float>(x);
  }
}

// ---- classes ------------------------------------------------------------------------------------------------------

enum class LabelType : int { kUInt8, kInt8, kInt16, kInt32, kInt64 };

struct Labels {
  const void* data;
  LabelType type;

  HYPERKERN_DEVICE int64_t read(int64_t i) const {
    switch (type) {
      case LabelType::kUInt8: return static_cast<const uint8_t*>(data)[i];
      case LabelType::kInt8: return static_cast<const int8_t*>(data)[i];
      case LabelType::kInt16: return static_cast<const int16_t*>(data)[i];
      case LabelType::kInt32: return static_cast<const int32_t*>(data)[i];
      default: return static_cast<const int64_t*>(data)[i];
    }
  }
};

// ---- the last block of threads ------------------------------------------------------------------------------------

// Whether this block of threads is the last of so many that come here; what the others' first threads have written can
// then be read. The count starts at 0, and does so again. Every block adds up the same numbers in the same order,
// whichever is the last.
HYPERKERN_DEVICE bool is_last_block(uint32_t* count, int blocks) {
  auto* shared = reinterpret_cast<uint32_t*>(ptx::shared_memory());
  ptx::syncthreads();
  if (ptx::thread() == 0) {
    const bool last = ptx::atom_add(count, 1) == static_cast<uint32_t>(blocks - 1);
    if (last) *count = 0;
    *shared = last ? 1 : 0;
  }
  ptx::syncthreads();
  const bool last = *shared != 0;
  ptx::syncthreads();
  return last;
}

// ---- features -----------------------------------------------------------------------------------------------------

// The features of a batch of problems, and how their rows lie in the operand.
struct LossRows {
  InputRows x, y, queue;  // y, queue: without data for none
  Access access;
  int batch;
  int n, k;       // rows of x, and of y where it is given; of the queue
  bool together;  // one symmetric problem: with y x_i and y_i are rows 2i and 2i + 1
  Number scale;

  HYPERKERN_HOST_DEVICE bool paired() const { return y.data != nullptr; }
  HYPERKERN_HOST_DEVICE int rows() const { return n + (paired() ? n : 0) + k; }  // of the operand

  // The row of the operand.
  HYPERKERN_HOST_DEVICE int place_of_x(int i) const { return together && paired() ? 2 * i : i; }
  HYPERKERN_HOST_DEVICE int place_of_y(int i) const { return together ? 2 * i + 1 : n + i; }
  HYPERKERN_HOST_DEVICE int place_in_queue(int i) const { return rows() - k + i; }

  // What the rows are multiplied by where the scale is a tensor: all of it on x, or half of its logarithm on all.
  HYPERKERN_DEVICE float factor(bool is_x) const {
    if (scale.data == nullptr) return 1.0f;
    return together ? scale.root() : (is_x ? scale.get() : 1.0f);
  }
};

// ---- before the pairs ---------------------------------------------------------------------------------------------

struct PrepareLossArgs {
  LossRows of;
  OutputRows operand;  // (batch, rows, width)
  int blocks;          // of threads, of a problem
  float eps;
  float* positives;  // (batch, n): <x_i, y_i>; null without y
  float* zeros;      // (2, batch, blocks): numbers of zero rows of x, and of the queue; null for none
  // What later kernels want to be 0.
  float *counts, *cleared;
  int64_t clear;  // of `cleared`; as many of `counts` as there are problems, and one
  float* terms;   // half of the bias in the units of the pairs, for each row and column; null for none
  int64_t term_count;
  Number bias;
  double unit;
  // float32 copies of what has no gradient and may change until that of others is made; without data, or null, for
  // none.
  OutputRows kept_x, kept_y;
  float* kept_scale;
  Labels labels, queue_labels;  // (batch, n), (batch, k)
  int64_t* classes;             // (batch, rows): the same of all rows; null for none
};

template <class P>
HYPERKERN_DEVICE void store_unit_row(
    const PrepareLossArgs& args, int i_b, int place, const UnitRow<P>& row, bool is_x) {
  const float factor = args.of.factor(is_x);
  Values<P> v;
#pragma unroll
  for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[chunk][e] = row.v[chunk][e] * factor;
  }
  store_piece<P>(args.operand, static_cast<int64_t>(i_b) * args.of.rows() + place, args.of.access, 0, v);
}

// A warp takes a pair, or a row of the queue. Rows fit in registers.
template <class P>
HYPERKERN_KERNEL void __launch_bounds__(kRowThreads) prepare_loss_kernel(const PrepareLossArgs args) {
  static_assert(!P::kLong);
  const LossRows& of = args.of;
  const int i_b = ptx::block() / args.blocks;
  const int item = ptx::block() % args.blocks * kRowWarps + ptx::thread() / kWarp;
  const int64_t first = static_cast<int64_t>(ptx::block()) * kRowThreads + ptx::thread();
  const int64_t step = static_cast<int64_t>(of.batch) * args.blocks * kRowThreads;
  for (int64_t i = first; i < of.batch + 1; i += step) args.counts[i] = 0.0f;
  if (first == 0 && args.kept_scale != nullptr) *args.kept_scale = static_cast<float>(of.scale.read());
  for (int64_t i = first; i < args.clear; i += step) args.cleared[i] = 0.0f;
  if (args.terms != nullptr) {
    const auto half = static_cast<float>(0.5 * args.unit * args.bias.get());
    for (int64_t i = first; i < args.term_count; i += step) args.terms[i] = half;
  }
  float zeros[2] = {};
  if (item < of.n) {
    const UnitRow<P> x(of.x, of.access, i_b, item);
    store_unit_row(args, i_b, of.place_of_x(item), x, true);
    const int64_t i_row = static_cast<int64_t>(i_b) * of.n + item;
    if (args.kept_x.data != nullptr) store_piece<P>(args.kept_x, i_row, of.access, 0, x.v);
    if (args.classes != nullptr && ptx::thread() % kWarp == 0) {
      args.classes[static_cast<int64_t>(i_b) * of.rows() + item] = args.labels.read(i_row);
    }
    zeros[0] = x.length.zero() ? 1.0f : 0.0f;
    if (of.paired()) {
      const UnitRow<P> y(of.y, of.access, i_b, item);
      store_unit_row(args, i_b, of.place_of_y(item), y, false);
      if (args.kept_y.data != nullptr) store_piece<P>(args.kept_y, i_row, of.access, 0, y.v);
      const float product = warp_sum(product_of(x.v, y.v));
      if (ptx::thread() % kWarp == 0) args.positives[i_row] = product;
    }
  } else if (item < of.n + of.k) {
    const UnitRow<P> row(of.queue, of.access, i_b, item - of.n);
    store_unit_row(args, i_b, of.place_in_queue(item - of.n), row, false);
    if (args.classes != nullptr && ptx::thread() % kWarp == 0) {
      args.classes[static_cast<int64_t>(i_b) * of.rows() + item] =
          args.queue_labels.read(static_cast<int64_t>(i_b) * of.k + item - of.n);
    }
    zeros[1] = row.length.zero() ? 1.0f : 0.0f;
  }
  if (args.zeros == nullptr) return;
  auto* shared = reinterpret_cast<float*>(ptx::shared_memory());
  if (ptx::thread() % kWarp == 0) {
    shared[ptx::thread() / kWarp] = zeros[0];
    shared[kRowWarps + ptx::thread() / kWarp] = zeros[1];
  }
  ptx::syncthreads();
  if (ptx::thread() < 2) {
    float sum = 0.0f;
    for (int i = 0; i < kRowWarps; ++i) sum += shared[ptx::thread() * kRowWarps + i];
    args.zeros[static_cast<int64_t>(ptx::thread()) * of.batch * args.blocks + ptx::block()] = sum;
  }
}

constexpr size_t kPrepareLossShared = 2 * kRowWarps * sizeof(float);

// ---- gradients ----------------------------------------------------------------------------------------------------

// Features whose gradient is made, and which weighted sums it consists of.
struct FinishRows {
  InputRows rows, partner;  // partner: without data for none
  OutputRows out;           // without data where only the scale's gradient is wanted
  int count, first_block;   // rows; of the blocks of threads of a problem
  bool is_x;
  // The weighted sums that contract has left, of up to two sides: the first of their results, and of how many ranges of
  // columns, 0 for none. A side has so many rows, of which row i is first + stride i.
  int64_t results[2];
  int cuts[2];
  int side_rows, first, stride;
};

constexpr int kMostFeatures = 3;

struct FinishLossArgs {
  LossRows of;
  FinishRows features[kMostFeatures];
  int feature_count, blocks;  // blocks of threads of a problem
  InputRows grad;             // (1, results, dim) of contract, float32
  const float* sum;           // (results): of weights, for the gradient of the bias
  const float* weights;       // (batch, n): of the positives; null for none
  const float* total;         // (batch): what the gradient is divided by; null for none
  const float* of_loss;       // (batch): the incoming gradient
  double share;               // of a row in the loss
  float of_pairs;             // what the weighted sums are multiplied by, beside a scale in a tensor
  float of_zero_row;          // what the pairs of a zero row have in place of 1
  float eps;
  // Gradients of numbers; null where nobody wants them.
  void* of_scale;
  NumberType scale_type;
  void* of_bias;
  NumberType bias_type;
  float* partials;  // (2, batch * blocks): scale, bias
  uint32_t* count_blocks;
};

// Where a row's results of one range of columns are.
HYPERKERN_DEVICE int64_t result_of(const FinishRows& feature, int batch, int side, int i_cut, int i_b, int i) {
  const int64_t problem = static_cast<int64_t>(i_cut) * batch + i_b;
  return feature.results[side] + problem * feature.side_rows + feature.first + static_cast<int64_t>(feature.stride) * i;
}

template <class P>
HYPERKERN_DEVICE void add_sums(const FinishLossArgs& args, const FinishRows& feature, int i_b, int i, Values<P>& grad) {
#pragma unroll
  for (int side = 0; side < 2; ++side) {
#pragma unroll 1
    for (int i_cut = 0; i_cut < feature.cuts[side]; ++i_cut) {
      Values<P> more;
      const int64_t at = result_of(feature, args.of.batch, side, i_cut, i_b, i);
      load_elements<P, Fp32Element>(args.grad, args.grad.offset(0, at), args.of.access, 0, more);
#pragma unroll
      for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
        for (int e = 0; e < 4; ++e) grad[chunk][e] += more[chunk][e];
      }
    }
  }
}

// The unit rows are made again, which reads less than keeping them.
template <class P>
HYPERKERN_KERNEL void __launch_bounds__(kRowThreads) finish_loss_kernel(const FinishLossArgs args) {
  static_assert(!P::kLong);
  const LossRows& of = args.of;
  const int i_b = ptx::block() / args.blocks, i_block = ptx::block() % args.blocks;
  FinishRows feature = args.features[0];
#pragma unroll
  for (int i = 1; i < kMostFeatures; ++i) {
    if (i < args.feature_count && i_block >= args.features[i].first_block) feature = args.features[i];
  }
  const int i = (i_block - feature.first_block) * kRowWarps + ptx::thread() / kWarp;
  // What all elements have in common is rounded once.
  double incoming = args.of_loss[i_b] * args.share;
  if (args.total != nullptr) incoming /= args.total[i_b];
  float of_scale = 0.0f, of_bias = 0.0f;
  if (i < feature.count) {
    const UnitRow<P> x(feature.rows, of.access, i_b, i);
    const float factor = of.factor(feature.is_x);
    double of_pairs = incoming * args.of_pairs * factor;
    if (x.length.zero()) of_pairs *= args.of_zero_row;
    Values<P> grad = {};
    add_sums<P>(args, feature, i_b, i, grad);
    float weight = 0.0f;
    Values<P> partner = {};
    if (feature.partner.data != nullptr) {
      const UnitRow<P> y(feature.partner, of.access, i_b, i);
      weight = args.weights[static_cast<int64_t>(i_b) * of.n + i];
#pragma unroll
      for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
        for (int e = 0; e < 4; ++e) partner[chunk][e] = y.v[chunk][e];
      }
    }
    if (args.of_scale != nullptr && (feature.is_x || of.together)) {
      // By the factor of the rows, not yet by that of the loss; of views each pair is met from either side.
      const float share = of.together ? 0.5f : 1.0f, per_factor = of.together ? 1.0f / factor : 1.0f;
      of_scale = share * (warp_sum(product_of(grad, x.v)) * args.of_pairs * per_factor +
                          warp_sum(product_of(partner, x.v)) * weight);
    }
    if (args.of_bias != nullptr && feature.is_x) {
      of_bias = weight;
      for (int i_cut = 0; i_cut < feature.cuts[0]; ++i_cut) {
        of_bias += args.sum[result_of(feature, of.batch, 0, i_cut, i_b, i)];
      }
    }
    const float pairs_factor = static_cast<float>(of_pairs);
    const float partner_factor = static_cast<float>(incoming * weight * of.scale.get());
#pragma unroll
    for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        grad[chunk][e] = grad[chunk][e] * pairs_factor + partner[chunk][e] * partner_factor;
      }
    }
    if (feature.out.data != nullptr) {
      const float radial = warp_sum(product_of(grad, x.v)), rstd = x.length.rstd(args.eps);
      project(grad, x.v, radial, rstd, gradient_limit(feature.out.type, rstd, args.eps));
      store_piece<P>(feature.out, static_cast<int64_t>(i_b) * feature.count + i, of.access, 0, grad);
    }
  }
  if (args.partials == nullptr) return;
  const int blocks = of.batch * args.blocks;
  const float lane = ptx::thread() % kWarp == 0 ? 1.0f : 0.0f;
  const float block_scale = block_sum<kRowThreads>(of_scale * lane),
              block_bias = block_sum<kRowThreads>(of_bias * lane);
  if (ptx::thread() == 0) {
    args.partials[ptx::block()] = static_cast<float>(block_scale * incoming);
    args.partials[blocks + ptx::block()] = static_cast<float>(block_bias * incoming);
  }
  if (!is_last_block(args.count_blocks, blocks)) return;
  const float scale_sum = block_sum<kRowThreads>(sum_of_range<kRowThreads>(args.partials, blocks));
  const float bias_sum = block_sum<kRowThreads>(sum_of_range<kRowThreads>(args.partials + blocks, blocks));
  if (ptx::thread() != 0) return;
  if (args.of_scale != nullptr) {
    const double given = of.scale.read();
    const double of_given = of.scale.reciprocal ? -1.0 / (given * given) : 1.0;
    write_number(args.of_scale, args.scale_type, scale_sum * of_given);
  }
  if (args.of_bias != nullptr) write_number(args.of_bias, args.bias_type, bias_sum);
}

}  // namespace hyperkern
