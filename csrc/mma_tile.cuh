// Products of tiles in shared memory with ldmatrix and mma.sync, for compute capability 8.0 and newer.
#pragma once

#include "operands.cuh"

namespace hyperkern {

// Matrices of rows in global memory, in bytes.
struct Matrix {
  const unsigned char* data;
  int64_t stride_b, stride_m;  // multiples of 16
  int batch, rows;

  HYPERKERN_DEVICE const unsigned char* rows_of(int i_b, int first) const {
    return data + i_b * stride_b + first * stride_m;
  }
};

// Starts the copy of one panel, `kRows` rows of 128 bytes, to shared memory; zeros beyond the end of rows and columns.
template <int kRows, int kThreads>
HYPERKERN_DEVICE void load_panel(
    uint32_t to, const unsigned char* from, int64_t stride, int first_row, int rows, int first_byte, int bytes) {
  constexpr int kPieces = kPanelBytes / 16;
  static_assert(kRows * kPieces % kThreads == 0, "every thread copies the same number of pieces");
#pragma unroll
  for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
    const int piece = i * kThreads + ptx::thread();
    const int row = piece / kPieces, byte = piece % kPieces * 16;
    const bool valid = first_row + row < rows && first_byte + byte < bytes;
    const unsigned char* source = valid ? from + (first_row + row) * stride + first_byte + byte : from;
    ptx::cp_async(to + swizzled(kRows, row, byte), source, valid);
  }
}

HYPERKERN_DEVICE void add_to(float (&d)[4], const float (&s)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) d[e] += s[e];
}

// d += a b. Tensor cores round their sums towards zero: over many steps that adds up to a bias, which float32 must not
// have. There each step starts from zero, and the sum is taken outside.
template <class Operand>
HYPERKERN_DEVICE void accumulate(float (&d)[4], const typename Operand::Left& a, uint32_t b0, uint32_t b1) {
  if constexpr (Operand::kRoundedSums) {
    float step[4] = {};
    Operand::multiply(step, a, b0, b1);
    add_to(d, step);
  } else {
    Operand::multiply(d, a, b0, b1);
  }
}

// d += a b, where b a must give the transpose: a row's sum holds the logits of one side, its weights are made on the
// other. Of one product the tensor cores add up the same numbers either way.
template <class Operand>
HYPERKERN_DEVICE void accumulate_alike(float (&d)[4], const typename Operand::Left& a, uint32_t b0, uint32_t b1) {
  if constexpr (Operand::kRoundedSums) {
    float step[4];
    Operand::multiply_alike(step, a, b0, b1);
    add_to(d, step);
  } else {
    Operand::multiply(d, a, b0, b1);
  }
}

// s += x y^T over one panel: a warp's 16-row blocks of x from row `first` on, and all 8-row groups of y.
template <class Operand, int kBlocks, int kGroups>
HYPERKERN_DEVICE void multiply_rows(
    float (&s)[kBlocks][kGroups][4], uint32_t x_panel, int first, uint32_t y_panel, int lane) {
  static_assert(kGroups % 2 == 0, "ldmatrix fetches two groups at once");
  const uint32_t x_lane = x_panel + swizzled(0, first + left_row(lane), left_byte(lane));
  const uint32_t y_lane = y_panel + swizzled(0, right_row(lane), right_byte(lane));
#pragma unroll(Operand::kUnrolledSteps)
  for (int step = 0; step < kPanelBytes / kStepBytes; ++step) {
    typename Operand::Left a[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      uint32_t r[4];
      ptx::ldmatrix_x4(r, further_along(x_lane, step * kStepBytes) + block * 16 * kPanelBytes);
      a[block] = Operand::left(r[0], r[1], r[2], r[3]);
    }
#pragma unroll
    for (int group = 0; group < kGroups; group += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, further_along(y_lane, step * kStepBytes) + group * 8 * kPanelBytes);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        accumulate_alike<Operand>(s[block][group], a[block], b[0], b[1]);
        accumulate_alike<Operand>(s[block][group + 1], a[block], b[2], b[3]);
      }
    }
  }
}

// g += w y for a warp's 16 rows of weights, which are the accumulators of the first product as they are, and a tile of
// `kRows` = 8 kGroups rows of y.
template <class Operand, int kGroups, int kOutGroups>
HYPERKERN_DEVICE void multiply_weights(
    float (&g)[kOutGroups][4], const float (&w)[kGroups][4], uint32_t y_tile, int lane) {
  constexpr int kRows = kGroups * 8;
  constexpr int kTilePanelBytes = kRows * kPanelBytes;
  if constexpr (Operand::kBytes == 2) {
    const uint32_t y_lane = y_tile + swizzled(kRows, left_row(lane), left_byte(lane));
#pragma unroll
    for (int group = 0; group < kGroups; group += 2) {
      const auto a = Operand::left(
          Operand::pack(w[group][0], w[group][1]), Operand::pack(w[group][2], w[group][3]),
          Operand::pack(w[group + 1][0], w[group + 1][1]), Operand::pack(w[group + 1][2], w[group + 1][3]));
#pragma unroll
      for (int out = 0; out < kOutGroups; out += 2) {
        uint32_t b[4];
        ptx::ldmatrix_x4_trans(
            b, further_along(y_lane, out * 16 % kPanelBytes) + out * 16 / kPanelBytes * kTilePanelBytes +
                   group * 8 * kPanelBytes);
        Operand::multiply(g[out], a, b[0], b[1]);
        Operand::multiply(g[out + 1], a, b[2], b[3]);
      }
    }
  } else {
    // A lane has weights 2 t and 2 t + 1 where the product takes t and t + 4: the order of a sum's terms is free, so
    // the rows of y are taken in the order of the weights.
    const int row = fragment_col(lane, 0);
    const uint32_t first = y_tile + swizzled(kRows, row, lane / 4 * 4);
    const uint32_t second = y_tile + swizzled(kRows, row + 1, lane / 4 * 4);
    typename Operand::Left a[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      a[group] = Operand::left(
          ptx::as_bits(w[group][0]), ptx::as_bits(w[group][2]), ptx::as_bits(w[group][1]), ptx::as_bits(w[group][3]));
    }
#pragma unroll
    for (int out = 0; out < kOutGroups; ++out) {
      // A sum that runs over all columns inside the tensor cores would be off by their rounding towards zero.
      float tile[4] = {};
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const int offset = out * 32 / kPanelBytes * kTilePanelBytes + group * 8 * kPanelBytes;
        const uint32_t b0 = ptx::as_bits(ptx::ld_shared(further_along(first, out * 32 % kPanelBytes) + offset));
        const uint32_t b1 = ptx::as_bits(ptx::ld_shared(further_along(second, out * 32 % kPanelBytes) + offset));
        accumulate<Operand>(tile, a[group], b0, b1);
      }
      add_to(g[out], tile);
      // The compiler would fetch rows of y far ahead, into registers that there are not.
      if (Operand::kRoundedSums && out % 4 == 3) ptx::syncwarp();
    }
  }
}

}  // namespace hyperkern
