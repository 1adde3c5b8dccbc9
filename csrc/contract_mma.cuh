// The contract kernel for compute capability 8.0 and newer: weighted sums of rows in one pass. The weights of a tile
// stay in registers between two products that share one tile of columns in shared memory.
#pragma once

#include "contract_results.cuh"
#include "mma_tile.cuh"

namespace hyperkern {

// Tile sizes by the bytes of a padded row, so that rows and two tiles of columns fit in 99 KB. Weights of float32 stay
// in registers, twice as many where they are split: fewer columns.
template <int kDim, int kBytes>
struct ContractMma {
  static constexpr int kRowBytes = kDim * kBytes;
  static constexpr int kWarps = kRowBytes <= 512 ? 8 : 4;
  static constexpr int kCols = kRowBytes <= 512 / kBytes ? 64 : (kRowBytes <= 512 ? 32 : 16);
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kStages = 2;
  static constexpr int kSharedBytes = (kRows + kStages * kCols) * kRowBytes;
};

template <class Operand, int kDim, Weight kWeight>
HYPERKERN_KERNEL void __launch_bounds__(ContractMma<kDim, Operand::kBytes>::kThreads, 1)
    contract_mma_kernel(const ContractArgs args, const Matrix x, const Matrix y) {
  if constexpr (!kHasPortable<Operand>) return;
  using T = ContractMma<kDim, Operand::kBytes>;
  constexpr int kPanels = kDim * Operand::kBytes / kPanelBytes;
  // The longest rows leave few registers for addresses.
  [[maybe_unused]] constexpr int kUnrolledPanels = kPanels > 4 ? 1 : kPanels;
  const int lane = ptx::thread() % kWarp, warp = ptx::uniform(ptx::thread() / kWarp);
  const ContractPart part(args);
  const Problem& problem = part.problem;
  const Pairs pairs = problem.of<kWeight>(args.pairs);
  const int first_row = part.i_block * T::kRows;
  const unsigned char* x_data = x.rows_of(problem.i_b, problem.side.first_row);
  const unsigned char* y_data = y.rows_of(problem.i_b, problem.side.first_col);
  const int bytes = pairs.dim * Operand::kBytes;
  const Range range = part.range(T::kCols);

  const uint32_t x_tile = ptx::shared_address(ptx::shared_memory());
  const uint32_t ring = x_tile + T::kRows * kDim * Operand::kBytes;
  const auto load_tile = [&](int tile) {
    const uint32_t to = ring + tile % T::kStages * (T::kCols * kDim * Operand::kBytes);
    if (tile < range.end) {
#pragma unroll(kUnrolledPanels)
      for (int panel = 0; panel < kPanels; ++panel) {
        load_panel<T::kCols, T::kThreads>(
            to + panel * T::kCols * kPanelBytes, y_data, y.stride_m, tile * T::kCols, pairs.n, panel * kPanelBytes,
            bytes);
      }
    }
    ptx::cp_async_commit_group();
  };
#pragma unroll(kUnrolledPanels)
  for (int panel = 0; panel < kPanels; ++panel) {
    load_panel<T::kRows, T::kThreads>(
        x_tile + panel * T::kRows * kPanelBytes, x_data, x.stride_m, first_row, pairs.m, panel * kPanelBytes, bytes);
  }
  load_tile(range.begin);

  const Rows<1> rows(pairs, first_row + warp * 16, 16, lane);
  const RowFactors<1, kWeight> factors(pairs, rows);
  float g[1][kDim / 8][4] = {};
  float sum[1][2] = {}, value[1][2] = {};
  for (int tile = range.begin; tile < range.end; ++tile) {
    ptx::cp_async_wait_group<0>();
    ptx::syncthreads();  // everybody's copies are there, and nobody reads the buffer that is filled next
    load_tile(tile + 1);
    const uint32_t y_tile = ring + tile % T::kStages * (T::kCols * kDim * Operand::kBytes);
    float s[1][T::kCols / 8][4] = {};
#pragma unroll(kUnrolledPanels)
    for (int panel = 0; panel < kPanels; ++panel) {
      multiply_rows<Operand>(
          s, x_tile + panel * T::kRows * kPanelBytes, warp * 16, y_tile + panel * T::kCols * kPanelBytes, lane);
    }
    const int first_col = tile * T::kCols;
    weigh<kWeight, Operand::kLog2Units, true>(
        s, sum, value, rows, factors, pairs, first_col, needs_mask(pairs, first_row, T::kRows, first_col, T::kCols),
        lane);
    multiply_weights<Operand>(g[0], s[0], y_tile, lane);
  }
  store_results<kWeight, Operand::kLog2Units>(args, rows, g, sum, value, lane);
}

}  // namespace hyperkern
