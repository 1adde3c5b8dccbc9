// The sums kernel for compute capability 8.0 and newer: eight warps multiply 128 x 128 tiles, panel by panel along D.
#pragma once

#include "mma_tile.cuh"
#include "sums_epilogue.cuh"

namespace hyperkern {

struct SumsMma {
  static constexpr int kRows = 128;
  static constexpr int kThreads = 256;
  static constexpr int kGroups = kThreads / kWarpgroup;
  static constexpr int kStages = 2;
  static constexpr int kBlocks = 1;  // of 16 rows, for each warp
  static constexpr int kStageBytes = (kRows + kSumsCols) * kPanelBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + kGroups * kSumsColFloats * 4;
};

template <class Operand, Task kTask>
HYPERKERN_KERNEL void __launch_bounds__(SumsMma::kThreads, 1)
    sums_mma_kernel(const SumsArgs args, const Matrix x, const Matrix y) {
  if constexpr (!kHasPortable<Operand>) return;
  using T = SumsMma;
  const Schedule& schedule = args.schedule;
  const int lane = ptx::thread() % kWarp, warp = ptx::uniform(ptx::thread() / kWarp);
  const auto [i_stripe, i_cut, i_b] = schedule.place(ptx::block());
  const Problem problem = problem_of<kTask>(args, i_b);
  const Pairs pairs = problem.of<weight_of(kTask), kTask == Task::kSumClasses>(args.pairs);
  const unsigned char* x_data = x.rows_of(problem.i_b, problem.side.first_row);
  const unsigned char* y_data = y.rows_of(problem.i_b, problem.side.first_col);
  const int bytes = pairs.dim * Operand::kBytes;
  const int panels = ceil_div(bytes, kPanelBytes);

  const uint32_t ring = ptx::shared_address(ptx::shared_memory());
  const int group = warp / kSumsWarps;
  auto* col_shared =
      reinterpret_cast<float*>(ptx::shared_memory() + T::kStages * T::kStageBytes) + group * kSumsColFloats;
  float* col = args.col;
  if (col != nullptr) {
    const int part = i_stripe * T::kGroups + group;
    col += (static_cast<int64_t>(part) * pairs.batch + i_b) * pairs.n;
  }
  int col_turn = 0;

  TileCursor ahead(schedule, i_stripe, i_cut);
  int ahead_panel = 0, ahead_stage = 0;
  const auto load_next = [&] {
    if (ahead.valid()) {
      const uint32_t to = ring + ahead_stage * T::kStageBytes;
      const int byte = ahead_panel * kPanelBytes;
      load_panel<T::kRows, T::kThreads>(to, x_data, x.stride_m, ahead.i_block * T::kRows, pairs.m, byte, bytes);
      load_panel<kSumsCols, T::kThreads>(
          to + T::kRows * kPanelBytes, y_data, y.stride_m, ahead.tile() * kSumsCols, pairs.n, byte, bytes);
      if (++ahead_panel == panels) {
        ahead_panel = 0;
        ahead.advance();
      }
    }
    ahead_stage = (ahead_stage + 1) % T::kStages;
    ptx::cp_async_commit_group();
  };
#pragma unroll
  for (int i = 0; i < T::kStages - 1; ++i) load_next();

  int stage = 0;
  for (int round = 0; round < schedule.rounds(); ++round) {
    const int i_block = schedule.block(i_stripe, round);
    if (i_block >= schedule.blocks) continue;
    const int first_row = i_block * T::kRows;
    SumsEpilogue<Operand, kTask, T::kBlocks> epilogue(
        args, pairs, i_b, i_cut, first_row + warp * 16 * T::kBlocks, 16, lane);
    const Range range = schedule.range(i_block, i_cut);
    for (int tile = range.begin; tile < range.end; tile += schedule.cuts) {
      float s[T::kBlocks][kSumsGroups][4] = {};
      for (int panel = 0; panel < panels; ++panel) {
        ptx::cp_async_wait_group<T::kStages - 2>();
        ptx::syncthreads();  // everybody's copies are there, and nobody reads the buffer that is filled next
        load_next();
        const uint32_t x_panel = ring + stage * T::kStageBytes;
        multiply_rows<Operand>(s, x_panel, warp * 16 * T::kBlocks, x_panel + T::kRows * kPanelBytes, lane);
        stage = (stage + 1) % T::kStages;
      }
      const int first_col = tile * kSumsCols;
      const bool mirrored = schedule.mirrored(i_block, tile);
      epilogue.add_tile(
          s, first_col, needs_mask(pairs, first_row, T::kRows, first_col, kSumsCols), mirrored && col == nullptr);
      if (col != nullptr && (mirrored || !schedule.triangle)) {
        epilogue.add_cols(s, col_shared, col, first_col, warp % kSumsWarps, 1 + group, col_turn);
      }
    }
    epilogue.finish();
  }
}

}  // namespace hyperkern
