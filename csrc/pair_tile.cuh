// One tile of pairs, from inner products to weights. Everything here works on the accumulators of one warp,
// `s[m_block][group][element]`, which mma.sync and wgmma lay out alike: see fragment_row and fragment_col.
#pragma once

#include <cmath>

#include "operands.cuh"

namespace hyperkern {

enum class Exclude : int { kNone, kSelf, kSameId };

// What the weight of a pair is made of. Every form of the log-sum-exp losses is one of the first three: the host folds
// log-sum-exps into the terms p and q, in the units of the logit.
//   kExp:      exp(l + p_i)                                          and a_i on the results of row i
//   kFactor:   exp(l + p_i + q_j) (a_i + b_j)
//   kTwo:      a_i exp(l + p_i + q_j) + b_j exp(l + p'_i + q'_j)
//   kSoftplus: sigmoid(l + p_i + q_j)
//   kClasses:  that of kTwo, less c_i + d_j for a pair of one class
// with l = scale <x_i, y_j>. All of an exponent is in the units of the operand, kLog2Units.
enum class Weight : int { kExp, kFactor, kTwo, kSoftplus, kClasses };

// Whether rows and columns have exponents of their own.
HYPERKERN_HOST_DEVICE constexpr bool is_two(Weight weight) {
  return weight == Weight::kTwo || weight == Weight::kClasses;
}

// The order of the vectors in row_terms and col_terms. Those of columns start at the third of rows, and c is d.
enum Term : int { kP = 0, kA = 1, kSecondP = 2, kTerms = 3, kColShare = 3, kRowShare = 5 };

// A pairwise problem but for its operands.
struct Pairs {
  const float* row_terms;  // (batch, terms, m), null for none: p = 0, a = 1
  const float* col_terms;  // (batch, terms, n and what a last tile has beyond), null for none
  const int64_t* row_ids;  // (batch, m), for kSameId; or the classes of rows
  const int64_t* col_ids;  // (batch, n)
  int64_t row_terms_stride_b, row_terms_stride_t;
  int64_t col_terms_stride_b, col_terms_stride_t;
  int64_t row_ids_stride_b, col_ids_stride_b;
  int64_t row_shift;  // row i excludes column i + row_shift
  int m, n, dim, batch;
  int last_id;  // of a row: m - 1, the same for all sides
  Exclude exclude;
  int group_bits;  // kSelf: rows and columns in the same group of 2^group_bits consecutive ones are left out
  float scale;
  float offset;  // added to every p_i, but not to p'_i
  bool rounded;  // whether products are rounded before anything is added to them, for kExp and kFactor
};

// A grid may hold several problems over the same operands, one after the other: in each batch element some rows against
// some columns. Both sides of a loss are two, each the mirror image of the other.
struct Side {
  int first_row, first_col;
  int m, n;
  bool excludes;  // what `Pairs` says; row and column indices count from the first ones

  // Where the terms of rows or columns start: pairs of them are read at once.
  static HYPERKERN_HOST_DEVICE constexpr int64_t first_term(int first) { return first + first % 2; }
};

constexpr int kMostSides = 3;

struct Sides {
  Side side[kMostSides];
  int problems;  // batch elements of the operands; `Pairs` counts those of all sides
};

// One of the problems.
struct Problem {
  Side side;
  int i_b;  // of the operands

  // Other sides than those of exponentials exclude alike: it is a register. Only classes have ids of sides.
  template <Weight kWeight, bool kOfClasses = kWeight == Weight::kClasses>
  HYPERKERN_DEVICE Pairs of(Pairs pairs) const {
    pairs.m = side.m;
    pairs.n = side.n;
    if (kWeight == Weight::kExp && !side.excludes) pairs.exclude = Exclude::kNone;
    if (pairs.row_terms != nullptr)
      pairs.row_terms += i_b * pairs.row_terms_stride_b + Side::first_term(side.first_row);
    if (pairs.col_terms != nullptr)
      pairs.col_terms += i_b * pairs.col_terms_stride_b + Side::first_term(side.first_col);
    if (pairs.row_ids != nullptr) pairs.row_ids += i_b * pairs.row_ids_stride_b;
    if (pairs.col_ids != nullptr) pairs.col_ids += i_b * pairs.col_ids_stride_b;
    if constexpr (kOfClasses) {
      pairs.row_ids += side.first_row;
      pairs.col_ids += side.first_col;
    }
    return pairs;
  }
};

// Sides are compared: what is indexed would be copied to local memory.
HYPERKERN_DEVICE Problem find_problem(const Sides& sides, int i) {
  const int i_side = i / sides.problems;
  Problem problem{sides.side[0], i % sides.problems};
#pragma unroll
  for (int other = 1; other < kMostSides; ++other) {
    if (i_side == other) problem.side = sides.side[other];
  }
  return problem;
}

constexpr float kLog2E = 1.4426950408889634f;

// e^l of a logit in its units.
template <bool kLog2Units>
HYPERKERN_DEVICE float exp_of(float l) {
  return ptx::ex2(kLog2Units ? l : l * kLog2E);
}

template <int kCount>
HYPERKERN_DEVICE float polynomial(const float (&c)[kCount], float x) {
  float sum = c[kCount - 1];
#pragma unroll
  for (int i = kCount - 2; i >= 0; --i) sum = fmaf(sum, x, c[i]);
  return sum;
}

// 2^x on the multiply-add pipe, of numbers below 127: eleven instructions in place of one that takes eight clocks. Of
// the nearest integer n to x, which is added to the exponent, is left |f| <= 1/2. The polynomial of 2^f has the least
// largest relative error (as that of softplus) and is off by 2.1e-7, on average by 5e-8. Exactly 0 below 2^-126; nan
// stays.
HYPERKERN_DEVICE float exp2_by_polynomial(float x) {
  constexpr float kIntegers = 0x1.8p23f;  // a sum with it ends in the bits of n
  constexpr float kPower[] = {1.00000012f, 0.693146944f, 0.240221202f, 0.0555071346f, 0.00967554096f, 0.0013276469f};
  x = ptx::max_nan(x, -127.0f);
  const float n = x + kIntegers;
  return polynomial(kPower, x - (n - kIntegers)) * ptx::as_float((ptx::as_bits(n) << 23) + ptx::as_bits(1.0f));
}

// ---- rows ---------------------------------------------------------------------------------------------------------

// The rows that a lane holds: two of each block of 16.
template <int kBlocks>
struct Rows {
  int index[kBlocks][2];
  float p[kBlocks][2];

  // `first[block]` is the first row of a block of 16. Rows beyond the end count for nothing: their exponent is -inf.
  HYPERKERN_DEVICE Rows(const Pairs& pairs, int first, int between, int lane) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first + block * between + fragment_row(lane, 2 * half);
        index[block][half] = row;
        p[block][half] = row < pairs.m ? term(pairs, row, kP, 0.0f) + pairs.offset : -INFINITY;
      }
    }
  }

  static HYPERKERN_DEVICE float term(const Pairs& pairs, int row, Term which, float none) {
    if (pairs.row_terms == nullptr || row >= pairs.m) return none;
    return pairs.row_terms[which * pairs.row_terms_stride_t + row];
  }
};

// ---- logits -------------------------------------------------------------------------------------------------------

// Beside a log-sum-exp a logit has to be the number that is in the sum, or in its maximum: they may be so large that
// their last bit is a factor of e^100. So there products with the scale are rounded before anything is added.

// s = scale s
template <int kBlocks, int kGroups>
HYPERKERN_DEVICE void scale_products(float (&s)[kBlocks][kGroups][4], float scale) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[block][group][e] = ptx::mul(s[block][group][e], scale);
    }
  }
}

// The same if products are to be rounded, and what is left to multiply them by.
template <int kBlocks, int kGroups>
HYPERKERN_DEVICE float scale_if_rounded(float (&s)[kBlocks][kGroups][4], const Pairs& pairs) {
  if (!pairs.rounded) return pairs.scale;
  scale_products(s, pairs.scale);
  return 1.0f;
}

// s = scale s + p_i
template <int kBlocks, int kGroups>
HYPERKERN_DEVICE void add_row_terms(float (&s)[kBlocks][kGroups][4], const Rows<kBlocks>& rows, float scale) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[block][group][e] = fmaf(s[block][group][e], scale, rows.p[block][e / 2]);
    }
  }
}

// The two columns of a term that a lane meets in a group of eight.
HYPERKERN_DEVICE float2 col_term(const Pairs& pairs, Term which, int col) {
  return *reinterpret_cast<const float2*>(pairs.col_terms + which * pairs.col_terms_stride_t + col);
}

// s = scale s + p_i + q_j, with p = 0 unless kRows
template <bool kRows, int kBlocks, int kGroups>
HYPERKERN_DEVICE void add_terms(
    float (&s)[kBlocks][kGroups][4], const Rows<kBlocks>& rows, float scale, const Pairs& pairs, int first_col,
    int lane) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const float2 q = col_term(pairs, kP, first_col + group * 8 + fragment_col(lane, 0));
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float of_col = e % 2 == 0 ? q.x : q.y;
        s[block][group][e] = fmaf(s[block][group][e], scale, kRows ? rows.p[block][e / 2] + of_col : of_col);
      }
    }
  }
}

// Whether a tile may hold pairs that are left out, or columns beyond the end.
HYPERKERN_DEVICE bool needs_mask(const Pairs& pairs, int first_row, int rows, int first_col, int cols) {
  return pairs.exclude == Exclude::kSameId || first_col + cols > pairs.n ||
         (pairs.exclude == Exclude::kSelf && touches_diagonal(first_row, rows, pairs.row_shift, first_col, cols));
}

// -inf for the pairs left out and the columns beyond the end. What rows beyond the end get makes no difference. A
// lane's columns are bits, which a short loop fills: unrolled, it would take many registers from the products.
template <int kBlocks, int kGroups>
HYPERKERN_DEVICE void mask_pairs(
    float (&s)[kBlocks][kGroups][4], const Rows<kBlocks>& rows, const Pairs& pairs, int first_col, int lane) {
  static_assert(kGroups <= 16, "a lane has at most 32 columns");
  const bool by_id = pairs.exclude == Exclude::kSameId;
  int64_t out[kBlocks][2];  // the id, the column or the group of columns that a row excludes
  uint32_t bits[kBlocks][2] = {};
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = ptx::opaque(rows.index[block][half]);
      out[block][half] = by_id ? pairs.row_ids[row < pairs.last_id ? row : pairs.last_id]
                               : (pairs.exclude == Exclude::kSelf ? (row + pairs.row_shift) >> pairs.group_bits : -1);
    }
  }
#pragma unroll 2
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int col = first_col + group * 8 + fragment_col(lane, odd);
      const bool inside = col < pairs.n;
      const int64_t candidate = by_id ? pairs.col_ids[inside ? col : pairs.n - 1] : col >> pairs.group_bits;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (!inside || candidate == out[block][half]) bits[block][half] |= 1u << (2 * group + odd);
        }
      }
    }
  }
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if ((bits[block][e / 2] >> (2 * group + e % 2) & 1) != 0) s[block][group][e] = -INFINITY;
      }
    }
  }
}

// ---- classes ------------------------------------------------------------------------------------------------------

// The pairs of a tile that are of one class and not left out: a bit for each of a lane's columns, as in mask_pairs.
// Without groups nobody asks.
template <int kBlocks, int kGroups>
struct Positives {
  uint32_t bits[kBlocks][2] = {};

  HYPERKERN_DEVICE Positives(const Rows<kBlocks>& rows, const Pairs& pairs, int first_col, int lane) {
    static_assert(kGroups <= 16, "a lane has at most 32 columns");
    if constexpr (kGroups > 0) find(rows, pairs, first_col, lane);
    if (kGroups > 0 && pairs.exclude == Exclude::kSelf) leave_out_self(rows, pairs, first_col, lane);
  }

  HYPERKERN_DEVICE bool has(int block, int group, int element) const {
    return (bits[block][element / 2] >> (2 * group + element % 2) & 1) != 0;
  }

  HYPERKERN_DEVICE int count(int block, int half) const { return ptx::popc(bits[block][half]); }

 private:
  HYPERKERN_DEVICE void find(const Rows<kBlocks>& rows, const Pairs& pairs, int first_col, int lane) {
    int64_t classes[kBlocks][2];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = ptx::opaque(rows.index[block][half]);
        classes[block][half] = pairs.row_ids[row < pairs.m ? row : pairs.m - 1];
      }
    }
#pragma unroll 2
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int col = first_col + group * 8 + fragment_col(lane, odd);
        if (col >= pairs.n) continue;
        const int64_t candidate = pairs.col_ids[col];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if (candidate == classes[block][half]) bits[block][half] |= 1u << (2 * group + odd);
          }
        }
      }
    }
  }

  HYPERKERN_DEVICE void leave_out_self(const Rows<kBlocks>& rows, const Pairs& pairs, int first_col, int lane) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t at = rows.index[block][half] + pairs.row_shift - first_col;
        if (at < 0 || at >= 8 * kGroups || at % 8 / 2 != lane % 4) continue;
        bits[block][half] &= ~(1u << (at / 8 * 2 + at % 2));
      }
    }
  }
};

// ---- weights ------------------------------------------------------------------------------------------------------

// log(1 + e^l) in the units of l, and its derivative, to full relative accuracy on both sides. With e = e^-|l| the
// value is max(l, 0) + log(1 + e), and its derivative 1 or e over 1 + e. A maximum drops nan, which e still has. The
// polynomials are log(1 + e) / e on [0, 1], of which the largest relative error is least (Remez exchange in 50 digits,
// then rounded): in float32 they are off by 3.0e-7 and 1.4e-7.
template <bool kLog2Units>
HYPERKERN_DEVICE float softplus(float l, float& derivative) {
  const float e = exp_of<kLog2Units>(-fabsf(l));
  if constexpr (kLog2Units) {
    constexpr float kPerE[] = {1.44269478f,  -0.721310079f, 0.480063707f,  -0.353394836f,
                               0.256009698f, -0.155351862f, 0.0636078864f, -0.0123194735f};
    const float per_e = polynomial(kPerE, e);
    derivative = ptx::ex2(fmaf(-e, per_e, fminf(l, 0.0f)));
    return fmaf(e, per_e, fmaxf(l, 0.0f));
  } else {
    // The power would lose the last digit of large logits once more, and an approximate quotient that of all.
    constexpr float kPerE[] = {0.99999994f,   -0.499994934f, 0.333190978f,   -0.24842982f,  0.191060066f,
                               -0.136632457f, 0.0782259554f, -0.0295052417f, 0.00523269456f};
    derivative = (l >= 0.0f ? 1.0f : e) / (1.0f + e);
    return fmaf(e, polynomial(kPerE, e), fmaxf(l, 0.0f));
  }
}

// What sums of the potential are multiplied by to be in natural units.
template <bool kLog2Units>
constexpr float kUnit = kLog2Units ? 0.6931471805599453f : 1.0f;

// What rows have besides p while their tiles are weighed: a but for kExp, the second exponent for kTwo, c for kClasses.
template <int kBlocks, Weight kWeight>
struct RowFactors {
  float a[kBlocks][2];
  float second_p[kBlocks][2];
  float c[kBlocks][2];

  HYPERKERN_DEVICE RowFactors(const Pairs& pairs, const Rows<kBlocks>& rows) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = rows.index[block][half];
        a[block][half] = second_p[block][half] = c[block][half] = 0.0f;
        if constexpr (kWeight == Weight::kFactor || is_two(kWeight)) {
          a[block][half] = Rows<kBlocks>::term(pairs, row, kA, 1.0f);
        }
        if constexpr (is_two(kWeight)) {
          second_p[block][half] = Rows<kBlocks>::term(pairs, row, kSecondP, 0.0f);
          if (row >= pairs.m) second_p[block][half] = -INFINITY;
        }
        if constexpr (kWeight == Weight::kClasses) {
          c[block][half] = Rows<kBlocks>::term(pairs, row, kRowShare, 0.0f);
        }
      }
    }
  }
};

// Turns a tile of inner products into weights and adds their row sums, and for softplus those of the potential.
// `kInParts`: whether registers are scarcer than instructions.
template <Weight kWeight, bool kLog2Units, bool kInParts, int kBlocks, int kGroups>
HYPERKERN_DEVICE void weigh(
    float (&s)[kBlocks][kGroups][4], float (&row_sum)[kBlocks][2], float (&row_value)[kBlocks][2],
    const Rows<kBlocks>& rows, const RowFactors<kBlocks, kWeight>& factors, const Pairs& pairs, int first_col,
    bool mask, int lane) {
  // In full float32 of a tile first: a sum of as many terms as there are columns would round more.
  constexpr bool kOfTile = !kLog2Units && kWeight != Weight::kSoftplus;
  float of_tile[kBlocks][2] = {};
  float (&tile_sum)[kBlocks][2] = kOfTile ? of_tile : row_sum;
  if constexpr (is_two(kWeight)) {
    // Two exponents of one product: it is scaled and masked before the terms are added.
    scale_products(s, pairs.scale);
    if (mask) mask_pairs(s, rows, pairs, first_col, lane);
    // In parts, each under a branch: the compiler fetches the terms of what it may reorder at once, into registers.
    constexpr int kPart = 2;
    // Where a term starts is computed for every tile: three addresses would take six registers around the loop.
    const float* terms = pairs.col_terms + first_col + fragment_col(lane, 0);
    const float* factor_terms = terms + ptx::opaque(kA) * pairs.col_terms_stride_t;
    const float* second_terms = terms + ptx::opaque(kSecondP) * pairs.col_terms_stride_t;
    constexpr bool kClasses = kWeight == Weight::kClasses;
    const float* share_terms = kClasses ? terms + ptx::opaque(kColShare) * pairs.col_terms_stride_t : nullptr;
    const Positives<kBlocks, kClasses ? kGroups : 0> positives(rows, pairs, first_col, lane);
    static_assert(kGroups % kPart == 0, "a tile has whole parts");
#pragma unroll
    for (int part = 0; part < kGroups; part += kPart) {
      if (first_col + part * 8 < pairs.n) {
#pragma unroll
        for (int group = part; group < part + kPart; ++group) {
          const float2 q = *reinterpret_cast<const float2*>(terms + group * 8);
          const float2 b = *reinterpret_cast<const float2*>(factor_terms + group * 8);
          const float2 second = *reinterpret_cast<const float2*>(second_terms + group * 8);
          float2 d = {};
          if constexpr (kClasses) d = *reinterpret_cast<const float2*>(share_terms + group * 8);
#pragma unroll
          for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float l = s[block][group][e];
              const float p = rows.p[block][e / 2] + (e % 2 == 0 ? q.x : q.y);
              const float second_p = factors.second_p[block][e / 2] + (e % 2 == 0 ? second.x : second.y);
              const float of_row = exp_of<kLog2Units>(l + p);
              const float of_col = exp_of<kLog2Units>(l + second_p);
              float w = factors.a[block][e / 2] * of_row + (e % 2 == 0 ? b.x : b.y) * of_col;
              if (kClasses && positives.has(block, group, e)) {
                w -= factors.c[block][e / 2] + (e % 2 == 0 ? d.x : d.y);
              }
              tile_sum[block][e / 2] += w;
              s[block][group][e] = w;
            }
          }
        }
      } else {
#pragma unroll
        for (int group = part; group < part + kPart; ++group) {
#pragma unroll
          for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
            for (int e = 0; e < 4; ++e) s[block][group][e] = 0.0f;
          }
        }
      }
    }
  } else {
    // The polynomials of a whole tile at once take many registers, and so do its terms: each group adds its own, under
    // a branch as above.
    constexpr bool kApart = kInParts && kWeight == Weight::kSoftplus;
    if constexpr (kApart) {
      scale_products(s, pairs.scale);
    } else if constexpr (kWeight == Weight::kExp) {
      add_row_terms(s, rows, scale_if_rounded(s, pairs));
    } else {
      add_terms<true>(
          s, rows, kWeight == Weight::kSoftplus ? pairs.scale : scale_if_rounded(s, pairs), pairs, first_col, lane);
    }
    if (mask) mask_pairs(s, rows, pairs, first_col, lane);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (kApart && first_col + group * 8 >= pairs.n) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
          for (int e = 0; e < 4; ++e) s[block][group][e] = 0.0f;
        }
        continue;
      }
      float2 q = {};
      if constexpr (kApart) q = col_term(pairs, kP, first_col + group * 8 + fragment_col(lane, 0));
      float2 b = {};
      if constexpr (kWeight == Weight::kFactor) {
        b = col_term(pairs, kA, first_col + group * 8 + fragment_col(lane, 0));
      }
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float w;
          if constexpr (kWeight == Weight::kSoftplus) {
            float l = s[block][group][e];
            if constexpr (kApart) l += rows.p[block][e / 2] + (e % 2 == 0 ? q.x : q.y);
            row_value[block][e / 2] += softplus<kLog2Units>(l, w);
          } else {
            w = exp_of<kLog2Units>(s[block][group][e]);
          }
          if constexpr (kWeight == Weight::kFactor) w *= factors.a[block][e / 2] + (e % 2 == 0 ? b.x : b.y);
          tile_sum[block][e / 2] += w;
          s[block][group][e] = w;
        }
      }
    }
  }
  if constexpr (kOfTile) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      row_sum[block][0] += of_tile[block][0];
      row_sum[block][1] += of_tile[block][1];
    }
  }
}

// ---- reductions ---------------------------------------------------------------------------------------------------

// The sum over the four lanes that share a row.
HYPERKERN_DEVICE float sum_of_row(float x) {
  x += ptx::shfl_xor(x, 1);
  return x + ptx::shfl_xor(x, 2);
}

// Column sums of a warp's rows. Lanes 4 g + t, g = 0 ... 7, hold the columns 8 group + 2 t + {0, 1} of every group;
// after three exchanges of half of what is left, lane 4 g + t has those of groups k * 8 + g.
template <int kBlocks, int kGroups>
HYPERKERN_DEVICE void sum_of_cols(const float (&s)[kBlocks][kGroups][4], float (&col_sum)[kGroups / 8][2], int lane) {
  static_assert(kGroups % 8 == 0, "groups are shared out among the eight lanes of a column");
#pragma unroll
  for (int k = 0; k < kGroups / 8; ++k) {
    float part[8][2];
#pragma unroll
    for (int group = 0; group < 8; ++group) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        float sum = 0.0f;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          sum += s[block][k * 8 + group][odd] + s[block][k * 8 + group][2 + odd];
        }
        part[group][odd] = sum;
      }
    }
#pragma unroll
    for (int bit = 4; bit >= 1; bit /= 2) {
      const bool upper = (lane / 4 & bit) != 0;
#pragma unroll
      for (int group = 0; group < bit; ++group) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const float keep = upper ? part[group + bit][odd] : part[group][odd];
          const float give = upper ? part[group][odd] : part[group + bit][odd];
          part[group][odd] = keep + ptx::shfl_xor(give, bit * 4);
        }
      }
    }
    col_sum[k][0] = part[0][0];
    col_sum[k][1] = part[0][1];
  }
}

}  // namespace hyperkern
