// What becomes of a tile of inner products without a second product in the kernel: sums of its rows and columns, and in
// panels its weights for the library's product.
#pragma once

#include "pair_tile.cuh"

namespace hyperkern {

// The first three add up exponentials, potentials, or a log-sum-exp with a running maximum; four store weights. With
// classes: the third, which beside it counts the pairs of one class and adds up their logits; and stored weights.
enum class Task : int {
  kSumExp,
  kSumSoftplus,
  kSumRunning,
  kStoreExp,
  kStoreFactor,
  kStoreTwo,
  kStoreSoftplus,
  kSumClasses,
  kStoreClasses
};

HYPERKERN_HOST_DEVICE constexpr bool stores(Task task) {
  return (task >= Task::kStoreExp && task <= Task::kStoreSoftplus) || task == Task::kStoreClasses;
}

HYPERKERN_HOST_DEVICE constexpr bool is_running(Task task) {
  return task == Task::kSumRunning || task == Task::kSumClasses;
}

// The numbers of a row: its sum; with classes the sum of its positives' logits, and how many they are.
HYPERKERN_HOST_DEVICE constexpr int row_results(Task task) { return task == Task::kSumClasses ? 3 : 1; }

HYPERKERN_HOST_DEVICE constexpr Weight weight_of(Task task) {
  if (task == Task::kStoreClasses) return Weight::kClasses;
  return stores(task) ? static_cast<Weight>(static_cast<int>(task) - static_cast<int>(Task::kStoreExp))
                      : (task == Task::kSumSoftplus ? Weight::kSoftplus : Weight::kExp);
}

// Whether rows have a second result: the maximum that their sum is relative to, or the sum of the potential.
HYPERKERN_HOST_DEVICE constexpr bool has_second(Task task) { return is_running(task) || task == Task::kStoreSoftplus; }

struct SumsArgs {
  Pairs pairs;
  Sides sides;  // of one size
  Schedule schedule;
  float* row;         // (cuts, row_results * batch, m)
  float* row_second;  // likewise; the first ones only
  float* col;         // (stripes and groups of warps, batch, n), zero before; null where nobody asks
  void* weights;      // (batch, m, n) in the dtype of the operands, rows at multiples of 16 bytes
  int64_t weights_stride_b, weights_stride_m;  // elements
};

// Weights are stored of all rows and columns, whose numbers need no registers.
template <Task kTask>
HYPERKERN_DEVICE Problem problem_of(const SumsArgs& args, int i_b) {
  if constexpr (stores(kTask)) return Problem{{0, 0, args.pairs.m, args.pairs.n, true}, i_b};
  return find_problem(args.sides, i_b);
}

constexpr int kSumsCols = 128;  // columns of a tile
constexpr int kSumsGroups = kSumsCols / 8;
constexpr int kSumsWarps = 4;  // that add up their column sums
constexpr int kSumsColFloats = 2 * kSumsWarps * kSumsCols;

// The results of one row block for a group of four warps, each with kBlocks 16-row blocks. `kUnitBinds`: whether rows
// are so short that the exponential unit has more to do than the tensor cores; the multiply-add pipe then takes a
// share.
template <class Operand, Task kTask, int kBlocks, bool kUnitBinds = false>
struct SumsEpilogue {
  static constexpr Weight kWeight = weight_of(kTask);
  static constexpr bool kLog2Units = Operand::kLog2Units;

  const SumsArgs& args;
  const Pairs pairs;  // of the batch element
  const int i_b, i_cut, lane;
  const Rows<kBlocks> rows;
  const RowFactors<kBlocks, kWeight> factors;
  float sum[kBlocks][2] = {};
  float second[kBlocks][2];
  float of_positives[kBlocks][2] = {};  // of classes
  int positives[kBlocks][2] = {};

  HYPERKERN_DEVICE SumsEpilogue(
      const SumsArgs& args, const Pairs& pairs, int i_b, int i_cut, int first_row, int between, int lane)
      : args(args),
        pairs(pairs),
        i_b(i_b),
        i_cut(i_cut),
        lane(lane),
        rows(pairs, first_row, between, lane),
        factors(pairs, rows) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      second[block][0] = second[block][1] = is_running(kTask) ? -INFINITY : 0.0f;
    }
  }

  // Leaves in `s` what column sums are made of.
  HYPERKERN_DEVICE void add_tile(float (&s)[kBlocks][kSumsGroups][4], int first_col, bool mask, bool twice) {
    if constexpr (stores(kTask)) {
      weigh<kWeight, kLog2Units, true>(s, sum, second, rows, factors, pairs, first_col, mask, lane);
      store(s, first_col);
      return;
    }
    constexpr bool kRunning = is_running(kTask);  // without row terms: the host adds them to the maximum
    if constexpr (kRunning) scale_products(s, pairs.scale);
    if constexpr (kTask == Task::kSumClasses) add_positives(s, first_col);
    const float scale = kRunning ? 1.0f : pairs.scale;
    if (pairs.col_terms != nullptr) {
      add_terms<!kRunning>(s, rows, scale, pairs, first_col, lane);
    } else if constexpr (!kRunning) {
      add_row_terms(s, rows, scale);
    }
    if (mask) mask_pairs(s, rows, pairs, first_col, lane);
    if constexpr (kRunning) {
      add_relative_to_maximum(s);
    } else {
      const float times = twice ? 2.0f : 1.0f;
      // Beside column sums there are no instructions to spare.
      if (kUnitBinds && args.col == nullptr) {
        add_potential<kUnitBinds>(s, times);
      } else {
        add_potential<false>(s, times);
      }
    }
  }

  // Adds the column sums of a tile to this block of threads' own partial sums: no other one writes them, and one thread
  // always writes the same ones, so that the order is fixed. It does not wait for what is there. `shared` holds
  // kSumsColFloats, `barrier` is for these four warps.
  HYPERKERN_DEVICE void add_cols(
      const float (&s)[kBlocks][kSumsGroups][4], float* shared, float* col, int first_col, int warp, int barrier,
      int& turn) {
    float of_warp[kSumsGroups / 8][2];
    sum_of_cols(s, of_warp, lane);
    // Two buffers in turn: a thread that writes one has passed the barrier behind the last reads of it.
    float* buffer = shared + turn * kSumsWarps * kSumsCols;
    turn ^= 1;
#pragma unroll
    for (int k = 0; k < kSumsGroups / 8; ++k) {
      float* to = buffer + warp * kSumsCols + k * 64 + lane / 4 * 8 + fragment_col(lane, 0);
      to[0] = of_warp[k][0];
      to[1] = of_warp[k][1];
    }
    ptx::bar_sync(barrier, kWarpgroup);
    const int own = warp * kWarp + lane;
    if (first_col + own < pairs.n) {
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < kSumsWarps; ++i) total += buffer[i * kSumsCols + own];
      ptx::red_add(col + first_col + own, kTask == Task::kSumSoftplus ? total * kUnit<kLog2Units> : total);
    }
  }

  HYPERKERN_DEVICE void finish() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = sum[block][half], other = second[block][half];
        if constexpr (is_running(kTask)) {
          merge(total, other, 1);
          merge(total, other, 2);
        } else {
          total = sum_of_row(total);
          if constexpr (has_second(kTask)) other = sum_of_row(other);
          if constexpr (kTask == Task::kSumSoftplus) total *= kUnit<kLog2Units>;
          if constexpr (kTask == Task::kStoreSoftplus) other *= kUnit<kLog2Units>;
        }
        const int row = rows.index[block][half];
        float logits = 0.0f, number = 0.0f;
        if constexpr (kTask == Task::kSumClasses) {
          logits = sum_of_row(of_positives[block][half]);
          number = sum_of_row(static_cast<float>(positives[block][half]));
        }
        if (lane % 4 == 0 && row < pairs.m) {
          const int64_t at = (static_cast<int64_t>(i_cut) * row_results(kTask) * pairs.batch + i_b) * pairs.m + row;
          args.row[at] = total;
          if constexpr (has_second(kTask)) args.row_second[at] = other;
          if constexpr (kTask == Task::kSumClasses) {
            const int64_t step = static_cast<int64_t>(pairs.batch) * pairs.m;
            args.row[at + step] = logits;
            args.row[at + 2 * step] = number;
          }
        }
      }
    }
  }

 private:
  // `kShared`: a fifth of the exponentials is made on the multiply-add pipe. That many take about as long there as the
  // others in the exponential unit, and no row or column has only such.
  template <bool kShared>
  HYPERKERN_DEVICE void add_potential(float (&s)[kBlocks][kSumsGroups][4], float times) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float tile[2] = {};
#pragma unroll
      for (int group = 0; group < kSumsGroups; ++group) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& x = s[block][group][e];
          if constexpr (kTask == Task::kSumSoftplus) {
            float derivative;
            x = softplus<kLog2Units>(x, derivative);
          } else if (kShared && (4 * group + e) % 5 == 0) {
            x = exp2_by_polynomial(x);
          } else {
            x = exp_of<kLog2Units>(x);
          }
          tile[e / 2] += x;
        }
      }
      sum[block][0] += times * tile[0];
      sum[block][1] += times * tile[1];
    }
  }

  // Of a tile first, for the same reason as in weigh.
  HYPERKERN_DEVICE void add_positives(const float (&s)[kBlocks][kSumsGroups][4], int first_col) {
    const Positives<kBlocks, kSumsGroups> found(rows, pairs, first_col, lane);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float tile[2] = {};
#pragma unroll
      for (int group = 0; group < kSumsGroups; ++group) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (found.has(block, group, e)) tile[e / 2] += s[block][group][e];
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        of_positives[block][half] += tile[half];
        positives[block][half] += found.count(block, half);
      }
    }
  }

  static HYPERKERN_DEVICE float finite(float top) { return top == -INFINITY ? 0.0f : top; }

  HYPERKERN_DEVICE void add_relative_to_maximum(float (&s)[kBlocks][kSumsGroups][4]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = second[block][half];
#pragma unroll
        for (int group = 0; group < kSumsGroups; ++group) {
          top = fmaxf(top, fmaxf(s[block][group][2 * half], s[block][group][2 * half + 1]));
        }
        const float base = finite(top);
        float tile = 0.0f;
#pragma unroll
        for (int group = 0; group < kSumsGroups; ++group) {
          tile += exp_of<kLog2Units>(s[block][group][2 * half] - base);
          tile += exp_of<kLog2Units>(s[block][group][2 * half + 1] - base);
        }
        sum[block][half] = sum[block][half] * exp_of<kLog2Units>(second[block][half] - base) + tile;
        second[block][half] = top;
      }
    }
  }

  // With the partial sum of another lane of the same row.
  static HYPERKERN_DEVICE void merge(float& total, float& top, int mask) {
    const float other_total = ptx::shfl_xor(total, mask), other_top = ptx::shfl_xor(top, mask);
    const float higher = fmaxf(top, other_top), base = finite(higher);
    total = total * exp_of<kLog2Units>(top - base) + other_total * exp_of<kLog2Units>(other_top - base);
    top = higher;
  }

  // The weights of a tile, 16 bytes at once: the four lanes of a row exchange their pairs of columns, so that each has
  // the eight columns of one group in every four.
  HYPERKERN_DEVICE void store(const float (&s)[kBlocks][kSumsGroups][4], int first_col) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = rows.index[block][half];
        const bool inside = row < pairs.m;
        const int64_t at = i_b * args.weights_stride_b + row * args.weights_stride_m;
        if constexpr (Operand::kBytes == 2) {
          auto* out = static_cast<uint16_t*>(args.weights) + at;
#pragma unroll
          for (int group = 0; group < kSumsGroups; group += 4) {
            uint32_t pair[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              pair[i] = Operand::pack(s[block][group + i][2 * half], s[block][group + i][2 * half + 1]);
            }
#pragma unroll
            for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                if ((i & bit) != 0) continue;
                const bool upper = (lane & bit) != 0;
                const uint32_t got = ptx::shfl_xor(upper ? pair[i] : pair[i | bit], bit);
                (upper ? pair[i] : pair[i | bit]) = got;
              }
            }
            const int col = first_col + (group + lane % 4) * 8;
            if (inside && col < pairs.n) *reinterpret_cast<uint4*>(out + col) = {pair[0], pair[1], pair[2], pair[3]};
          }
        } else {
          auto* out = static_cast<float*>(args.weights) + at;
#pragma unroll
          for (int group = 0; group < kSumsGroups; ++group) {
            const int col = first_col + group * 8 + fragment_col(lane, 0);
            if (inside && col < pairs.n) {
              *reinterpret_cast<float2*>(out + col) = {s[block][group][2 * half], s[block][group][2 * half + 1]};
            }
          }
        }
      }
    }
  }
};

}  // namespace hyperkern
