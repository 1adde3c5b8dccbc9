// Between the sums of the pairs and their weighted sums: what each row adds to a loss, and how its pairs weigh.
#pragma once

#include "loss_rows.cuh"
#include "pair_tile.cuh"

namespace hyperkern {

// kCoupled: -log p of the positive; kDecoupled: without the positive in the denominator; kSigmoid: a decision for each
// pair; kPotential: the logarithm of a mean, which is known behind the products only; kClasses: the mean of -log p over
// the positives of a row, those of its class.
enum class Head : int { kCoupled, kDecoupled, kSigmoid, kPotential, kClasses };

constexpr int kHeadThreads = 256;

// Partial sums of rows, one in each of `parts`: that of row i of problem b stands at b stride_b + i stride.
struct PartialSums {
  const float* sum;  // null for none
  const float* top;  // what it is relative to, in the units of `HeadArgs`; null where it is plain
  int parts;
  int64_t part_stride, stride_b;
  int stride;
};

// A pair has one row whose candidates are summed, or two, and each row sums of its own from two places.
constexpr int kMostWays = 2, kMostSources = 2;

struct HeadArgs {
  Head head;
  PartialSums sums[kMostWays][kMostSources];  // of classes the second way has the positives' logits, and their numbers
  int ways;
  int batch, n, blocks;    // rows of x; blocks of threads of a problem
  bool together;           // see LossRows
  const float* positives;  // (batch, n): <x_i, y_i>
  Number scale, bias;
  float unit;    // of a maximum in `top`
  double share;  // of a row in the loss
  float sigma;   // width of the weights of positives; 0 for none
  float gain;    // on all weights
  // Results; null where only the loss is wanted.
  float* terms;  // (batch, vectors, padded): see write_terms
  int vectors, padded;
  float* weights;    // (batch, n): those of the positives
  float* loss;       // (batch)
  float* partials;   // (batch, blocks), of classes twice
  uint32_t* counts;  // (batch): blocks that are done
  // Of a potential.
  const float* zeros;  // (2, batch, zero_blocks): numbers of zero rows
  int zero_blocks;
  float* total;               // (batch); of classes the anchors of a mean, null for a sum
  int k;                      // rows of the queue
  float of_source[2];         // how often the sums of a source count: pairs of x alone are met in both orders
  float pairs, offset;        // their number; what is added to the logarithm
  float of_sphere, of_zeros;  // what a pair with one zero row, or two, has in place of 1, less 1
};

struct RowSum {
  float sum = 0.0f;
  float top = 0.0f;  // 0 for plain sums
};

HYPERKERN_DEVICE float exp_in(float x, float unit) { return unit == 1.0f ? expf(x) : ptx::ex2(x); }

HYPERKERN_DEVICE RowSum row_sum(const PartialSums (&from)[kMostSources], int i_b, int i, float unit) {
  RowSum row;
  const bool relative = from[0].top != nullptr;
  if (relative) {
    row.top = -INFINITY;
    for (int part = 0; part < from[0].parts; ++part) {
      row.top = fmaxf(row.top, from[0].top[part * from[0].part_stride + i_b * from[0].stride_b + i * from[0].stride]);
    }
  }
  const float base = row.top == -INFINITY ? 0.0f : row.top;
  for (int source = 0; source < kMostSources; ++source) {
    const PartialSums& sums = from[source];
    if (sums.sum == nullptr) continue;
#pragma unroll 8  // loads in flight: there may be as many parts as stripes of row blocks
    for (int part = 0; part < sums.parts; ++part) {
      const int64_t at = part * sums.part_stride + i_b * sums.stride_b + static_cast<int64_t>(i) * sums.stride;
      row.sum += relative ? sums.sum[at] * exp_in(sums.top[at] - base, unit) : sums.sum[at];
    }
  }
  row.top = base;
  return row;
}

// log(1 + e^x) and its derivative.
HYPERKERN_DEVICE float soft_plus(float x, float& derivative) {
  const float e = expf(-fabsf(x));
  derivative = (x >= 0.0f ? 1.0f : e) / (1.0f + e);
  return x != x ? x : fmaxf(x, 0.0f) + log1pf(e);
}

// The exponent and the factor of a row, as the terms of its pairs: p, a and, where rows and columns have exponents of
// their own, once more the other way round. Read from the third vector on they are what it is as a column.
HYPERKERN_DEVICE void write_terms(const HeadArgs& args, int i_b, int row, float p, float a) {
  float* out = args.terms + static_cast<int64_t>(i_b) * args.vectors * args.padded + row;
  out[0] = p;
  out[args.padded] = a;
  if (args.vectors == 2) return;
  out[2 * args.padded] = 0.0f;
  out[3 * args.padded] = a;
  out[4 * args.padded] = p;
}

// Where the terms of a pair's row are: behind an odd number of rows one is left out, see Side.
HYPERKERN_DEVICE int term_of(const HeadArgs& args, int i, int way) {
  return args.together ? 2 * i + way : static_cast<int>(way * Side::first_term(args.n)) + i;
}

// Whether no pair has these terms: they are of other rows or beyond the end, which tiles reach.
HYPERKERN_DEVICE bool is_idle(const HeadArgs& args, int at) {
  if (args.together) return at >= 2 * args.n;
  const int second = at - static_cast<int>(Side::first_term(args.n));
  return at >= args.n && (args.ways == 1 || second < 0 || second >= args.n);
}

// The weights of positives that are alike are small: 2 - N softmax(c / sigma). Every block adds up the whole softmax.
struct PositiveWeights {
  float largest = 0.0f, per_sum = 0.0f;

  HYPERKERN_DEVICE PositiveWeights(const HeadArgs& args, const float* positives) {
    if (args.sigma == 0.0f) return;
    float top = -INFINITY;
    for (int i = ptx::thread(); i < args.n; i += kHeadThreads) top = fmaxf(top, positives[i]);
    top = warp_max(top);
    auto* shared = reinterpret_cast<float*>(ptx::shared_memory());
    if (ptx::thread() % kWarp == 0) shared[ptx::thread() / kWarp] = top;
    ptx::syncthreads();
    for (int i = 0; i < kHeadThreads / kWarp; ++i) top = fmaxf(top, shared[i]);
    largest = top;
    float sum = 0.0f;
    for (int i = ptx::thread(); i < args.n; i += kHeadThreads) sum += exponential(args, positives[i]);
    per_sum = static_cast<float>(args.n) / block_sum<kHeadThreads>(sum);
  }

  HYPERKERN_DEVICE float exponential(const HeadArgs& args, float positive) const {
    return expf((positive - largest) / args.sigma);
  }

  HYPERKERN_DEVICE float of(const HeadArgs& args, float positive) const {
    return args.sigma == 0.0f ? 1.0f : 2.0f - exponential(args, positive) * per_sum;
  }
};

// What a pair adds to the loss; its weights are written.
HYPERKERN_DEVICE float softmax_pair(
    const HeadArgs& args, const PositiveWeights& of_positives, int i_b, int i, float positive) {
  const float p = positive * args.scale.get();
  const float of_positive = of_positives.of(args, positive);
  float loss = 0.0f, weight = 0.0f;
#pragma unroll 1
  for (int way = 0; way < args.ways; ++way) {
    const RowSum row = row_sum(args.sums[way], i_b, i, args.unit);
    const float others = row.top / args.unit + logf(row.sum);
    float share = 1.0f;
    if (args.head == Head::kCoupled) {
      loss += soft_plus(others - p, share);
      weight -= share;
    } else {
      loss += others - of_positive * p;
      weight -= of_positive;
    }
    if (args.terms != nullptr) {
      // A row without others has a sum of 0, and no pairs to weigh.
      write_terms(args, i_b, term_of(args, i, way), -row.top, row.sum == 0.0f ? 0.0f : share / row.sum * args.gain);
    }
  }
  if (args.weights != nullptr) args.weights[static_cast<int64_t>(i_b) * args.n + i] = weight;
  return loss;
}

HYPERKERN_DEVICE float sigmoid_pair(const HeadArgs& args, int i_b, int i, float positive) {
  float missed;
  const float own = soft_plus(-(positive * args.scale.get() + args.bias.get()), missed);
  if (args.weights != nullptr) args.weights[static_cast<int64_t>(i_b) * args.n + i] = -missed;
  return row_sum(args.sums[0], i_b, i, 1.0f).sum + own;
}

HYPERKERN_DEVICE float plain_sum(const PartialSums& sums, int i_b, int i) {
  float sum = 0.0f;
  for (int part = 0; part < sums.parts; ++part) {
    sum += sums.sum[part * sums.part_stride + i_b * sums.stride_b + static_cast<int64_t>(i) * sums.stride];
  }
  return sum;
}

HYPERKERN_DEVICE float potential_row(const HeadArgs& args, int i_b, int i) {
  float sum = 0.0f;
  for (int source = 0; source < kMostSources; ++source) {
    const PartialSums& sums = args.sums[0][source];
    if (sums.sum != nullptr) sum += args.of_source[source] * plain_sum(sums, i_b, i);
  }
  return sum;
}

// A zero row is at distance 1 from the sphere and at 0 from another one.
HYPERKERN_DEVICE float with_zero_rows(const HeadArgs& args, int i_b, float total) {
  const int64_t of_second = static_cast<int64_t>(args.batch) * args.zero_blocks;
  const float* from = args.zeros + static_cast<int64_t>(i_b) * args.zero_blocks;
  const float zx = block_sum<kHeadThreads>(sum_of_range<kHeadThreads>(from, args.zero_blocks));
  const float zy = block_sum<kHeadThreads>(sum_of_range<kHeadThreads>(from + of_second, args.zero_blocks));
  const float m = static_cast<float>(args.n), k = static_cast<float>(args.k);
  if (args.of_source[0] != 0.0f) {
    total += args.of_source[0] * (2.0f * zx * (m - zx) * args.of_sphere + zx * (zx - 1.0f) * args.of_zeros);
  }
  if (args.of_source[1] != 0.0f) {
    total += args.of_source[1] * ((zx * (k - zy) + (m - zx) * zy) * args.of_sphere + zx * zy * args.of_zeros);
  }
  return total;
}

// A thread takes a pair, and terms that are nobody's.
HYPERKERN_KERNEL void __launch_bounds__(kHeadThreads) head_kernel(const HeadArgs args) {
  const int i_b = ptx::block() / args.blocks;
  const int i = ptx::block() % args.blocks * kHeadThreads + ptx::thread();
  const float* positives = args.positives + static_cast<int64_t>(i_b) * args.n;
  float loss = 0.0f;
  if (args.head == Head::kCoupled || args.head == Head::kDecoupled) {
    const PositiveWeights of_positives(args, positives);
    if (i < args.n) loss = softmax_pair(args, of_positives, i_b, i, positives[i]);
    if (args.terms != nullptr && i < args.padded && is_idle(args, i)) write_terms(args, i_b, i, 0.0f, 0.0f);
  } else if (i < args.n) {
    loss = args.head == Head::kSigmoid ? sigmoid_pair(args, i_b, i, positives[i]) : potential_row(args, i_b, i);
  }
  const float of_block = block_sum<kHeadThreads>(loss);
  if (ptx::thread() == 0) args.partials[ptx::block()] = of_block;
  if (!is_last_block(args.counts + i_b, args.blocks)) return;
  const float* partials = args.partials + static_cast<int64_t>(i_b) * args.blocks;
  float total = block_sum<kHeadThreads>(sum_of_range<kHeadThreads>(partials, args.blocks));
  if (args.head == Head::kPotential) {
    total = with_zero_rows(args, i_b, total);
    if (ptx::thread() == 0) {
      args.total[i_b] = total;
      args.loss[i_b] = logf(total / args.pairs) + args.offset;
    }
  } else if (ptx::thread() == 0) {
    args.loss[i_b] = static_cast<float>(total * args.share);
  }
}

// ---- classes ------------------------------------------------------------------------------------------------------

// The terms of a row, and behind them the share of each of its positives.
HYPERKERN_DEVICE void write_class_terms(const HeadArgs& args, int i_b, int row, float p, float a, float share) {
  write_terms(args, i_b, row, p, a);
  args.terms[(static_cast<int64_t>(i_b) * args.vectors + kRowShare) * args.padded + row] = share;
}

// What a row adds to the loss. Without a positive it is no anchor: of its own it has neither loss nor weights.
HYPERKERN_DEVICE float class_row(const HeadArgs& args, int i_b, int i, float& anchors) {
  const RowSum row = row_sum(args.sums[0], i_b, i, args.unit);
  const float number = plain_sum(args.sums[1][1], i_b, i);
  const float share = number > 0.0f ? 1.0f / number : 0.0f;
  if (args.terms != nullptr) {
    const float a = number > 0.0f ? args.gain / row.sum : 0.0f;
    write_class_terms(args, i_b, i, -row.top, a, share * args.gain);
  }
  if (number == 0.0f) return 0.0f;
  anchors = 1.0f;
  return (row.top - plain_sum(args.sums[1][0], i_b, i) * share) / args.unit + logf(row.sum);
}

// A kernel of its own: together with the other heads both would spill registers.
HYPERKERN_KERNEL void __launch_bounds__(kHeadThreads) class_head_kernel(const HeadArgs args) {
  const int i_b = ptx::block() / args.blocks;
  const int i = ptx::block() % args.blocks * kHeadThreads + ptx::thread();
  float loss = 0.0f, anchors = 0.0f;
  if (i < args.n) {
    loss = class_row(args, i_b, i, anchors);
  } else if (args.terms != nullptr && i < args.padded) {
    // Of candidates that are no anchors, and beyond the end: a weight is 0, and not 0 times infinity.
    write_class_terms(args, i_b, i, -INFINITY, 0.0f, 0.0f);
  }
  const float of_block = block_sum<kHeadThreads>(loss), anchors_of_block = block_sum<kHeadThreads>(anchors);
  float* of_anchors = args.partials + static_cast<int64_t>(args.batch) * args.blocks;
  if (ptx::thread() == 0) {
    args.partials[ptx::block()] = of_block;
    of_anchors[ptx::block()] = anchors_of_block;
  }
  if (!is_last_block(args.counts + i_b, args.blocks)) return;
  const int64_t first = static_cast<int64_t>(i_b) * args.blocks;
  const float total = block_sum<kHeadThreads>(sum_of_range<kHeadThreads>(args.partials + first, args.blocks));
  const float number = block_sum<kHeadThreads>(sum_of_range<kHeadThreads>(of_anchors + first, args.blocks));
  if (ptx::thread() != 0) return;
  const float mean_of = args.total == nullptr ? 1.0f : fmaxf(number, 1.0f);
  if (args.total != nullptr) args.total[i_b] = mean_of;
  args.loss[i_b] = static_cast<float>(total / mean_of * args.share);
}

}  // namespace hyperkern
