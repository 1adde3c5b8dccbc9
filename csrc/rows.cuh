// Rows of length 1 and the gradient behind them. A warp takes a row; what fits in its registers is read once and
// written once, longer rows are read again piece by piece.
#pragma once

#include "operands.cuh"

namespace hyperkern {

constexpr int kRowWarps = 8;
constexpr int kRowThreads = kRowWarps * kWarp;

// ---- tensors of rows ----------------------------------------------------------------------------------------------

enum class Element : int { kFloat32, kBFloat16, kFloat16 };

// (batch, rows, D), strides in elements.
struct InputRows {
  const void* data;
  Element type;
  int64_t stride_b, stride_m, stride_d;

  HYPERKERN_HOST_DEVICE int64_t offset(int64_t i_b, int64_t i_m) const { return i_b * stride_b + i_m * stride_m; }
};

// One stride through batch and rows; elements from D up to `width` become 0.
struct OutputRows {
  void* data;
  Element type;
  int width;
};

// What a lane holds of a row at a time: four elements of each 128. `kLong`: a row is more than one such piece.
template <int kChunks_, bool kLong_>
struct Piece {
  static constexpr int kChunks = kChunks_;
  static constexpr bool kLong = kLong_;
  static constexpr int kElements = kChunks * 128;
};

template <class P>
using Values = float[P::kChunks][4];

// How rows are read and written. `vector`: a lane's four elements are neighbours and move at once, which all tensors of
// a kernel must allow; else neighbouring lanes have neighbouring elements.
struct Access {
  int dim;
  bool vector;
};

HYPERKERN_DEVICE int column(const Access& access, int first, int chunk, int element) {
  const int lane = ptx::thread() % kWarp;
  return first + chunk * 128 + (access.vector ? lane * 4 + element : element * kWarp + lane);
}

struct Fp32Element {
  using Bits = uint32_t;
  static HYPERKERN_DEVICE float widen(uint32_t bits) { return ptx::as_float(bits); }
  static HYPERKERN_DEVICE uint32_t narrow(float x) { return ptx::as_bits(x); }
  static HYPERKERN_DEVICE void load_four(const uint32_t* from, float (&v)[4]) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    v[0] = ptx::as_float(bits.x), v[1] = ptx::as_float(bits.y);
    v[2] = ptx::as_float(bits.z), v[3] = ptx::as_float(bits.w);
  }
  static HYPERKERN_DEVICE void store_four(uint32_t* to, const float (&v)[4]) {
    *reinterpret_cast<uint4*>(to) = {ptx::as_bits(v[0]), ptx::as_bits(v[1]), ptx::as_bits(v[2]), ptx::as_bits(v[3])};
  }
};

template <class Operand>
struct HalfElement {
  using Bits = uint16_t;
  static HYPERKERN_DEVICE float widen(uint32_t bits);
  static HYPERKERN_DEVICE uint16_t narrow(float x) { return static_cast<uint16_t>(Operand::pack(x, 0.0f)); }
  static HYPERKERN_DEVICE void load_four(const uint16_t* from, float (&v)[4]) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    v[0] = widen(bits.x & 0xffff), v[1] = widen(bits.x >> 16);
    v[2] = widen(bits.y & 0xffff), v[3] = widen(bits.y >> 16);
  }
  static HYPERKERN_DEVICE void store_four(uint16_t* to, const float (&v)[4]) {
    *reinterpret_cast<uint2*>(to) = {Operand::pack(v[0], v[1]), Operand::pack(v[2], v[3])};
  }
};

template <>
HYPERKERN_DEVICE float HalfElement<Bf16>::widen(uint32_t bits) {
  return ptx::as_float(bits << 16);
}

template <>
HYPERKERN_DEVICE float HalfElement<Fp16>::widen(uint32_t bits) {
  return ptx::cvt_f32_f16(bits);
}

// One branch for a whole piece of a row, the same one in all lanes.
template <class Function>
HYPERKERN_DEVICE void with_element(Element type, const Function& function) {
  switch (type) {
    case Element::kFloat32: return function(Fp32Element{});
    case Element::kBFloat16: return function(HalfElement<Bf16>{});
    case Element::kFloat16: return function(HalfElement<Fp16>{});
  }
}

// The piece from column `first` on of the row at `offset`; 0 beyond D.
template <class P, class T>
HYPERKERN_DEVICE void load_elements(
    const InputRows& rows, int64_t offset, const Access& access, int first, float (&v)[P::kChunks][4]) {
  const auto* row = static_cast<const typename T::Bits*>(rows.data) + offset;
  if (access.vector) {
#pragma unroll
    for (int chunk = 0; chunk < P::kChunks; ++chunk) {
      v[chunk][0] = v[chunk][1] = v[chunk][2] = v[chunk][3] = 0.0f;
      const int col = column(access, first, chunk, 0);
      if (col < access.dim) T::load_four(row + col, v[chunk]);
    }
  } else {
#pragma unroll
    for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int col = column(access, first, chunk, e);
        v[chunk][e] = col < access.dim ? T::widen(row[col * rows.stride_d]) : 0.0f;
      }
    }
  }
}

template <class P>
HYPERKERN_DEVICE void load_piece(
    const InputRows& rows, int64_t offset, const Access& access, int first, float (&v)[P::kChunks][4]) {
  with_element(rows.type, [&](auto element) { load_elements<P, decltype(element)>(rows, offset, access, first, v); });
}

template <class P>
HYPERKERN_DEVICE void store_piece(
    const OutputRows& rows, int64_t i_row, const Access& access, int first, const float (&v)[P::kChunks][4]) {
  with_element(rows.type, [&](auto element) {
    using T = decltype(element);
    auto* row = static_cast<typename T::Bits*>(rows.data) + i_row * rows.width;
#pragma unroll
    for (int chunk = 0; chunk < P::kChunks; ++chunk) {
      if (access.vector && column(access, first, chunk, 0) < access.dim) {
        T::store_four(row + column(access, first, chunk, 0), v[chunk]);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          // The padding too, also in a row of nan.
          const int col = column(access, first, chunk, e);
          if (col < rows.width) row[col] = T::narrow(col < access.dim ? v[chunk][e] : 0.0f);
        }
      }
    }
  });
}

template <class P, class Function>
HYPERKERN_DEVICE void for_pieces(int width, const Function& function) {
  if constexpr (P::kLong) {
#pragma unroll 1
    for (int first = 0; first < width; first += P::kElements) function(first);
  } else {
    function(0);
  }
}

// ---- sums over a row ----------------------------------------------------------------------------------------------

HYPERKERN_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += ptx::shfl_xor(x, mask);
  return x;
}

HYPERKERN_DEVICE float warp_max(float x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = fmaxf(x, ptx::shfl_xor(x, mask));
  return x;
}

template <int kChunks>
HYPERKERN_DEVICE float largest_of(const float (&v)[kChunks][4]) {
  float largest = 0.0f;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
    for (int e = 0; e < 4; ++e) largest = fmaxf(largest, fabsf(v[chunk][e]));
  }
  return largest;
}

// The lane's part of the squares of a row, times a power of two.
template <int kChunks>
HYPERKERN_DEVICE float squares_of(const float (&v)[kChunks][4], float scale) {
  float sum[4] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += v[chunk][e] * scale * (v[chunk][e] * scale);
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <int kChunks>
HYPERKERN_DEVICE float product_of(const float (&v)[kChunks][4], const float (&w)[kChunks][4]) {
  float sum[4] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += v[chunk][e] * w[chunk][e];
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The thread's part of a sum over many numbers.
template <int kThreads>
HYPERKERN_DEVICE float sum_of_range(const float* values, int count) {
  float sum[4] = {};
  for (int64_t first = ptx::thread(); first < count; first += 4 * kThreads) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + i * kThreads < count) sum[i] += values[first + i * kThreads];
    }
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// What a sum over all threads needs of shared memory.
template <int kThreads>
constexpr size_t kBlockSumBytes = kThreads / kWarp * sizeof(float);

// The sum over all threads, for all of them.
template <int kThreads>
HYPERKERN_DEVICE float block_sum(float x) {
  auto* shared = reinterpret_cast<float*>(ptx::shared_memory());
  x = warp_sum(x);
  ptx::syncthreads();
  if (ptx::thread() % kWarp == 0) shared[ptx::thread() / kWarp] = x;
  ptx::syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < kThreads / kWarp; ++i) sum += shared[i];
  return sum;
}

// A length as a power of two, in whose units no square over- or underflows, and a number of ordinary size.
struct Length {
  float scale = 1.0f;       // makes the elements ordinary; exact
  float scaled = 0.0f;      // the length of the scaled row: 0 only of a zero row, nan of one with inf or nan
  float reciprocal = 1.0f;  // of `scaled`, 1 of a zero row

  // From the largest element; then the squares of the scaled elements.
  HYPERKERN_DEVICE void set_largest(float largest) {
    scale = largest > 0x1p40f ? 0x1p-88f : largest < 0x1p-40f ? 0x1p90f : 1.0f;
  }
  HYPERKERN_DEVICE void set_squares(float squares) {
    scaled = sqrtf(squares);
    scaled += 0.0f * scaled;
    reciprocal = 1.0f / (scaled == 0.0f ? 1.0f : scaled);
  }

  HYPERKERN_DEVICE bool zero() const { return scaled == 0.0f; }

  // x / length, rounded once.
  HYPERKERN_DEVICE float divide(float x) const {
    x *= scale;
    const float quotient = x * reciprocal;
    return zero() ? 0.0f : fmaf(fmaf(-quotient, scaled, x), reciprocal, quotient);
  }

  // 1 / max(length, eps)
  HYPERKERN_DEVICE float rstd(float eps) const {
    const float length = scaled / scale;
    return 1.0f / (length < eps ? eps : length);
  }
};

// A row that is read as one of length 1.
template <class P>
struct UnitRow {
  InputRows rows;
  Access access;
  int64_t offset;
  Values<P> v;  // the piece that was read last
  Length length;

  HYPERKERN_DEVICE UnitRow(const InputRows& rows, const Access& access, int64_t i_b, int64_t i_m)
      : rows(rows), access(access), offset(rows.offset(i_b, i_m)) {
    float largest = 0.0f, squares = 0.0f;
    for_pieces<P>(access.dim, [&](int first) {
      load_piece<P>(rows, offset, access, first, v);
      largest = fmaxf(largest, largest_of(v));
    });
    length.set_largest(warp_max(largest));
    for_pieces<P>(access.dim, [&](int first) {
      if constexpr (P::kLong) load_piece<P>(rows, offset, access, first, v);
      squares += squares_of(v, length.scale);
    });
    length.set_squares(warp_sum(squares));
    if constexpr (!P::kLong) divide();
  }

  // Elements of the unit row.
  HYPERKERN_DEVICE void read(int first) {
    if constexpr (P::kLong) {
      load_piece<P>(rows, offset, access, first, v);
      divide();
    }
  }

 private:
  HYPERKERN_DEVICE void divide() {
#pragma unroll
    for (int chunk = 0; chunk < P::kChunks; ++chunk) {
#pragma unroll
      for (int e = 0; e < 4; ++e) v[chunk][e] = length.divide(v[chunk][e]);
    }
  }
};

// What the elements of a row's gradient saturate at: the largest finite number of its type where rstd = 1 / eps, which
// says nothing about the row. Any other row overflows to inf.
HYPERKERN_DEVICE float gradient_limit(Element type, float rstd, float eps) {
  if (rstd * eps < 1.0f) return INFINITY;
  return type == Element::kFloat16 ? 65504.0f : type == Element::kBFloat16 ? 0x1.fep127f : 0x1.fffffep127f;
}

// grad := rstd (grad - radial unit), nan stays nan.
template <int kChunks>
HYPERKERN_DEVICE void project(
    float (&grad)[kChunks][4], const float (&unit)[kChunks][4], float radial, float rstd, float limit) {
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float of_input = (grad[chunk][e] - radial * unit[chunk][e]) * rstd;
      grad[chunk][e] = fabsf(of_input) > limit ? copysignf(limit, of_input) : of_input;
    }
  }
}

// ---- kernels ------------------------------------------------------------------------------------------------------

struct PrepareArgs {
  InputRows x;
  OutputRows unit;
  float* rstd;
  int64_t rows, rows_per_batch;
  Access access;
  float eps;
};

template <class P>
HYPERKERN_KERNEL void __launch_bounds__(kRowThreads) prepare_kernel(const PrepareArgs args) {
  const int64_t i_row = static_cast<int64_t>(ptx::block()) * kRowWarps + ptx::thread() / kWarp;
  if (i_row >= args.rows) return;
  UnitRow<P> x(args.x, args.access, i_row / args.rows_per_batch, i_row % args.rows_per_batch);
  for_pieces<P>(args.access.dim, [&](int first) {
    x.read(first);
    store_piece<P>(args.unit, i_row, args.access, first, x.v);
  });
  if (ptx::thread() % kWarp == 0) args.rstd[i_row] = x.length.rstd(args.eps);
}

struct NormalizeBackwardArgs {
  InputRows grad, unit;  // of float32
  const float* rstd;
  OutputRows dx;
  int64_t rows, rows_per_batch;
  Access access;
  float eps;
};

template <class P>
HYPERKERN_KERNEL void __launch_bounds__(kRowThreads) normalize_backward_kernel(const NormalizeBackwardArgs args) {
  const int64_t i_row = static_cast<int64_t>(ptx::block()) * kRowWarps + ptx::thread() / kWarp;
  if (i_row >= args.rows) return;
  const int64_t i_b = i_row / args.rows_per_batch, i_m = i_row % args.rows_per_batch;
  const int64_t grad_offset = args.grad.offset(i_b, i_m), unit_offset = args.unit.offset(i_b, i_m);
  const float rstd = args.rstd[i_row], limit = gradient_limit(args.dx.type, rstd, args.eps);
  Values<P> grad, unit;
  const auto read = [&](int first) {
    load_elements<P, Fp32Element>(args.grad, grad_offset, args.access, first, grad);
    load_elements<P, Fp32Element>(args.unit, unit_offset, args.access, first, unit);
  };
  float radial = 0.0f;
  for_pieces<P>(args.access.dim, [&](int first) {
    read(first);
    radial += product_of(grad, unit);
  });
  radial = warp_sum(radial);
  for_pieces<P>(args.access.dim, [&](int first) {
    if constexpr (P::kLong) read(first);
    project(grad, unit, radial, rstd, limit);
    store_piece<P>(args.dx, i_row, args.access, first, grad);
  });
}

}  // namespace hyperkern
