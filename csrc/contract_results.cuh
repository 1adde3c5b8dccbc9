// What the contract kernels are asked and what they leave behind.
#pragma once

#include "pair_tile.cuh"

namespace hyperkern {

struct ContractArgs {
  Pairs pairs;  // m, n: the most of any side
  Sides sides;
  int blocks, cuts;  // row blocks; into how many ranges the column tiles are cut
  float* grad;       // (cuts, batch, m, dim): sum_j w_ij y_j; dim is even
  float* sum;        // (cuts, batch, m): sum_j w_ij
  float* value;      // (cuts, batch, m): the potential, for kSoftplus
  float out_scale;   // on all results but the potential
};

// What a block of threads computes. Divided anew wherever it is asked for, so that no register keeps it around the
// loop.
struct ContractPart {
  int i_block, i_cut, i_b;

  HYPERKERN_DEVICE explicit ContractPart(const ContractArgs& args) {
    const int block = ptx::opaque(ptx::block());
    i_block = block % args.blocks;
    i_cut = block / args.blocks % args.cuts;
    i_b = block / args.blocks / args.cuts;
  }

  // Of tiles with so many columns.
  HYPERKERN_DEVICE Range range(const ContractArgs& args, const Side& side, int cols) const {
    return cut_range(ceil_div(side.n, cols), args.cuts, i_cut);
  }
};

// Each block of threads owns its results, and a lane owns pairs of columns of its rows.
template <Weight kWeight, int kBlocks, int kOutGroups>
HYPERKERN_DEVICE void store_results(
    const ContractArgs& args, const Rows<kBlocks>& rows, const float (&g)[kBlocks][kOutGroups][4],
    const float (&sum)[kBlocks][2], const float (&value)[kBlocks][2], int lane) {
  const ContractPart part(args);
  const Pairs pairs = find_problem(args.sides, part.i_b).of<kWeight>(args.pairs);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float row_sum = sum_of_row(sum[block][half]);
      float row_value = 0.0f;
      if constexpr (kWeight == Weight::kSoftplus) row_value = sum_of_row(value[block][half]);
      const int row = rows.index[block][half];
      if (row >= pairs.m) continue;
      // The weights of the other kinds have their factors already.
      const float factor = kWeight == Weight::kExp ? Rows<kBlocks>::term(pairs, row, kA, 1.0f) : 1.0f;
      const float scale = args.out_scale * factor;
      const int64_t at = (static_cast<int64_t>(part.i_cut) * pairs.batch + part.i_b) * args.pairs.m + row;
      if (lane % 4 == 0) {
        args.sum[at] = row_sum * scale;
        if constexpr (kWeight == Weight::kSoftplus) args.value[at] = row_value;
      }
      float* out = args.grad + at * pairs.dim;
#pragma unroll
      for (int group = 0; group < kOutGroups; ++group) {
        const int col = group * 8 + fragment_col(lane, 0);
        if (col < pairs.dim) {
          *reinterpret_cast<float2*>(out + col) = {
              g[block][group][2 * half] * scale, g[block][group][2 * half + 1] * scale};
        }
      }
    }
  }
}

}  // namespace hyperkern
