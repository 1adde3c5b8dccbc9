// Alignment + uniformity of two views, but for the pairs: unit rows and distances before them, three numbers of each
// problem after them, and both gradients.
#pragma once

#include "rows.cuh"

namespace hyperkern {

// ---- the distance of a row of x from its row of y -----------------------------------------------------------------

// |x - y|^alpha and its derivative; both 0 where x = y.
struct DistancePower {
  Length length;
  float alpha;

  HYPERKERN_DEVICE bool square() const { return alpha == 2.0f; }

  // Through the logarithm of the distance, which may be smaller than its units allow to be written out.
  HYPERKERN_DEVICE float power(float exponent) const {
    return ptx::ex2(exponent * (ptx::lg2(length.scaled) - ptx::lg2(length.scale)));
  }

  HYPERKERN_DEVICE float value() const {
    if (square()) return length.scaled * length.scaled;
    return length.zero() ? 0.0f : power(alpha);
  }

  // The gradient is this times `direction` of the differences.
  HYPERKERN_DEVICE float slope() const {
    if (square()) return 2.0f;
    return length.zero() ? 0.0f : alpha * power(alpha - 1.0f);
  }
  HYPERKERN_DEVICE float direction(float difference) const {
    return square() ? difference : difference * length.scale * length.reciprocal;
  }
};

template <int kChunks>
HYPERKERN_DEVICE void subtract(const float (&x)[kChunks][4], const float (&y)[kChunks][4], float (&d)[kChunks][4]) {
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
    for (int e = 0; e < 4; ++e) d[chunk][e] = x[chunk][e] - y[chunk][e];
  }
}

template <class P>
HYPERKERN_DEVICE DistancePower distance_power(UnitRow<P>& x, UnitRow<P>& y, float alpha) {
  DistancePower result{{}, alpha};
  Values<P> difference;
  float largest = 0.0f, squares = 0.0f;
  if (!result.square()) {
    for_pieces<P>(x.access.dim, [&](int first) {
      x.read(first);
      y.read(first);
      subtract(x.v, y.v, difference);
      largest = fmaxf(largest, largest_of(difference));
    });
    result.length.set_largest(warp_max(largest));
  }
  for_pieces<P>(x.access.dim, [&](int first) {
    x.read(first);
    y.read(first);
    subtract(x.v, y.v, difference);
    squares += squares_of(difference, result.length.scale);
  });
  result.length.set_squares(warp_sum(squares));
  return result;
}

// ---- both views ---------------------------------------------------------------------------------------------------

// A block of threads takes rows of one problem.
struct Views {
  InputRows x, y;
  Access access;
  int64_t batch;
  int m, blocks;  // rows of a problem, and blocks of threads that take them
  float eps, alpha;
};

struct ViewRow {
  int64_t i_b;
  int i_m;

  HYPERKERN_DEVICE explicit ViewRow(int blocks)
      : i_b(ptx::block() / blocks), i_m(ptx::block() % blocks * kRowWarps + ptx::thread() / kWarp) {}
};

struct PrepareViewsArgs {
  Views views;
  OutputRows operand;  // (2, batch, m, width): the unit rows in the dtype of the product
  float* align;        // (batch, blocks): sums of |x - y|^alpha
  float* zeros;        // (2, batch, blocks): numbers of zero rows
};

template <class P>
HYPERKERN_KERNEL void __launch_bounds__(kRowThreads) prepare_views_kernel(const PrepareViewsArgs args) {
  const Views& views = args.views;
  const ViewRow at(views.blocks);
  float parts[3] = {};  // distance, zero row of x, of y
  if (at.i_m < views.m) {
    UnitRow<P> x(views.x, views.access, at.i_b, at.i_m), y(views.y, views.access, at.i_b, at.i_m);
    const int64_t i_row = at.i_b * views.m + at.i_m;
    for_pieces<P>(args.operand.width, [&](int first) {
      x.read(first);
      store_piece<P>(args.operand, i_row, views.access, first, x.v);
      y.read(first);
      store_piece<P>(args.operand, views.batch * views.m + i_row, views.access, first, y.v);
    });
    parts[0] = distance_power(x, y, views.alpha).value();
    parts[1] = x.length.zero() ? 1.0f : 0.0f;
    parts[2] = y.length.zero() ? 1.0f : 0.0f;
  }
  auto* shared = reinterpret_cast<float*>(ptx::shared_memory());
  if (ptx::thread() % kWarp == 0) {
    for (int i = 0; i < 3; ++i) shared[i * kRowWarps + ptx::thread() / kWarp] = parts[i];
  }
  ptx::syncthreads();
  if (ptx::thread() < 3) {
    float sum = 0.0f;
    for (int i = 0; i < kRowWarps; ++i) sum += shared[ptx::thread() * kRowWarps + i];
    float* out = ptx::thread() == 0 ? args.align : args.zeros + (ptx::thread() - 1) * views.batch * views.blocks;
    out[ptx::block()] = sum;
  }
}

constexpr size_t kPrepareViewsShared = 3 * kRowWarps * sizeof(float);

// ---- the three numbers --------------------------------------------------------------------------------------------

constexpr int kCombineThreads = 512;

struct CombineArgs {
  const float* align;  // (batch, blocks)
  const float* zeros;  // (2, batch, blocks)
  const float* sums;   // (cuts, 2, batch, m): of exp(2 t <x_i, x_j>)
  float* total;        // (2, batch): of exp(2 t - t |x_i - x_j|^2) over all ordered pairs
  float* loss;         // (batch)
  float* alignment;
  float* uniformity;
  int64_t batch;
  int m, blocks, cuts;
  float t, align_weight, uniform_weight, pairs;
  float of_sphere, of_zeros;  // what a pair with one zero row, or two, has in place of 1: e^t and e^2t, less 1
};

// The logarithm of the mean of exp(-t |x_i - x_j|^2) of one view; the sum is kept for the gradient.
HYPERKERN_DEVICE float uniformity(const CombineArgs& args, int64_t i_view) {
  float part = 0.0f;
  for (int i_cut = 0; i_cut < args.cuts; ++i_cut) {
    part += sum_of_range<kCombineThreads>(args.sums + (i_cut * 2 * args.batch + i_view) * args.m, args.m);
  }
  float total = block_sum<kCombineThreads>(part);
  // A zero row is at distance 1 from the sphere and at 0 from another one.
  const float zeros =
      block_sum<kCombineThreads>(sum_of_range<kCombineThreads>(args.zeros + i_view * args.blocks, args.blocks));
  total += 2.0f * zeros * (static_cast<float>(args.m) - zeros) * args.of_sphere;
  total += zeros * (zeros - 1.0f) * args.of_zeros;
  if (ptx::thread() == 0) args.total[i_view] = total;
  return logf(total / args.pairs) - 2.0f * args.t;
}

// A block of threads for each problem.
HYPERKERN_KERNEL void __launch_bounds__(kCombineThreads, 1) combine_kernel(const CombineArgs args) {
  const int64_t i_b = ptx::block();
  const float distances =
      block_sum<kCombineThreads>(sum_of_range<kCombineThreads>(args.align + i_b * args.blocks, args.blocks));
  const float align = distances / static_cast<float>(args.m);
  const float uniform = 0.5f * (uniformity(args, i_b) + uniformity(args, args.batch + i_b));
  if (ptx::thread() == 0) {
    args.loss[i_b] = args.align_weight * align + args.uniform_weight * uniform;
    args.alignment[i_b] = align;
    args.uniformity[i_b] = uniform;
  }
}

// ---- gradients ----------------------------------------------------------------------------------------------------

struct FinishViewsArgs {
  Views views;
  InputRows grad;        // (2 batch, m, dim), float32: of one cut, sum_j exp(2 t <x_i, x_j>) x_j
  int64_t grad_cut;      // from one cut to the next
  const float* total;    // (2, batch)
  const float* of_loss;  // (batch): the cotangents, each may be absent
  const float* of_alignment;
  const float* of_uniformity;
  OutputRows dx, dy;
  int cuts;
  float t, align_weight, uniform_weight;
  float of_sphere;  // e^t: what a zero row's pairs have in place of 1
};

// What a term receives: directly, and through the weighted sum.
HYPERKERN_DEVICE float cotangent(const float* of_loss, const float* of_term, float weight, int64_t i_b) {
  float c = 0.0f;
  if (of_loss != nullptr) c += weight * of_loss[i_b];
  if (of_term != nullptr) c += of_term[i_b];
  return c;
}

// The gradient of one view: `x` is its row, `y` the other view's.
template <class P>
HYPERKERN_DEVICE void finish_view(
    const FinishViewsArgs& args, const ViewRow& at, int view, UnitRow<P>& x, UnitRow<P>& y,
    const DistancePower& distance, float of_direction, float of_pairs, const OutputRows& out) {
  const Views& views = args.views;
  const int64_t i_view = view * views.batch + at.i_b;
  of_pairs *= 2.0f * args.t / args.total[i_view];
  if (x.length.zero()) of_pairs *= args.of_sphere;
  const int64_t offset = args.grad.offset(i_view, at.i_m);
  Values<P> grad;
  const auto read = [&](int first) {
    load_elements<P, Fp32Element>(args.grad, offset, views.access, first, grad);
#pragma unroll 1
    for (int i_cut = 1; i_cut < args.cuts; ++i_cut) {
      Values<P> more;
      load_elements<P, Fp32Element>(args.grad, offset + i_cut * args.grad_cut, views.access, first, more);
#pragma unroll
      for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
        for (int e = 0; e < 4; ++e) grad[chunk][e] += more[chunk][e];
      }
    }
    x.read(first);
    y.read(first);
#pragma unroll
    for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float of_align = distance.direction(x.v[chunk][e] - y.v[chunk][e]) * of_direction;
        grad[chunk][e] = grad[chunk][e] * of_pairs + of_align;
      }
    }
  };
  float radial = 0.0f;
  for_pieces<P>(views.access.dim, [&](int first) {
    read(first);
    radial += product_of(grad, x.v);
  });
  radial = warp_sum(radial);
  const float rstd = x.length.rstd(views.eps), limit = gradient_limit(out.type, rstd, views.eps);
  for_pieces<P>(views.access.dim, [&](int first) {
    if constexpr (P::kLong) read(first);
    project(grad, x.v, radial, rstd, limit);
    store_piece<P>(out, at.i_b * views.m + at.i_m, views.access, first, grad);
  });
}

// The unit rows are made again, which reads less than keeping them.
template <class P>
HYPERKERN_KERNEL void __launch_bounds__(kRowThreads, 1) finish_views_kernel(const FinishViewsArgs args) {
  const Views& views = args.views;
  const ViewRow at(views.blocks);
  if (at.i_m >= views.m) return;
  UnitRow<P> x(views.x, views.access, at.i_b, at.i_m), y(views.y, views.access, at.i_b, at.i_m);
  const DistancePower distance = distance_power(x, y, views.alpha);
  const float of_align = cotangent(args.of_loss, args.of_alignment, args.align_weight, at.i_b);
  const float of_pairs = cotangent(args.of_loss, args.of_uniformity, args.uniform_weight, at.i_b);
  const float of_direction = distance.slope() * of_align / static_cast<float>(views.m);
#pragma unroll 1  // the code for any type, stride and length is long enough once
  for (int view = 0; view < 2; ++view) {
    finish_view(args, at, view, x, y, distance, of_direction, of_pairs, view == 0 ? args.dx : args.dy);
    const UnitRow<P> other = x;
    x = y;
    y = other;
  }
}

}  // namespace hyperkern
