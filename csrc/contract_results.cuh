// What the contract kernels are asked and what they leave behind.
#pragma once

#include "pair_tile.cuh"

namespace hyperkern {

// How a side is shared out: row blocks, ranges that its column tiles are cut into, and what of the grid and of the
// results is before it.
struct SideGrid {
  int blocks, cuts;
  int first_block;
  int64_t first_result;  // rows
};

// The results of a side are (cuts, problems, m).
struct ContractArgs {
  Pairs pairs;
  Sides sides;
  SideGrid grids[kMostSides];
  int grid;         // blocks of threads
  float* grad;      // (results, dim): sum_j w_ij y_j; dim is even
  float* sum;       // (results): sum_j w_ij
  float* value;     // (results): the potential, for kSoftplus
  float out_scale;  // on all results but the potential
};

// What a block of threads computes. Divided anew wherever it is asked for, so that no register keeps it around the
// loop.
struct ContractPart {
  int i_block, i_cut;
  Problem problem;
  SideGrid grid;

  HYPERKERN_DEVICE explicit ContractPart(const ContractArgs& args)
      : problem{args.sides.side[0], 0}, grid(args.grids[0]) {
    const int block = ptx::opaque(ptx::block());
#pragma unroll
    for (int other = 1; other < kMostSides; ++other) {
      if (block >= args.grids[other].first_block) {
        problem.side = args.sides.side[other];
        grid = args.grids[other];
      }
    }
    const int local = block - grid.first_block;
    i_block = local % grid.blocks;
    i_cut = local / grid.blocks % grid.cuts;
    problem.i_b = local / grid.blocks / grid.cuts;
  }

  // Of tiles with so many columns.
  HYPERKERN_DEVICE Range range(int cols) const { return cut_range(ceil_div(problem.side.n, cols), grid.cuts, i_cut); }

  HYPERKERN_DEVICE int64_t first_result(const ContractArgs& args) const {
    return grid.first_result + (static_cast<int64_t>(i_cut) * args.sides.problems + problem.i_b) * problem.side.m;
  }
};

// Each block of threads owns its results, and a lane owns pairs of columns of its rows.
template <Weight kWeight, bool kLog2Units, int kBlocks, int kOutGroups>
HYPERKERN_DEVICE void store_results(
    const ContractArgs& args, const Rows<kBlocks>& rows, const float (&g)[kBlocks][kOutGroups][4],
    const float (&sum)[kBlocks][2], const float (&value)[kBlocks][2], int lane) {
  const ContractPart part(args);
  const Pairs pairs = part.problem.of<kWeight>(args.pairs);
  const int64_t first = part.first_result(args);
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
      const int64_t at = first + row;
      if (lane % 4 == 0) {
        args.sum[at] = row_sum * scale;
        if constexpr (kWeight == Weight::kSoftplus) args.value[at] = row_value * kUnit<kLog2Units>;
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
