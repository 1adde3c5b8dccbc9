// The contract kernel for sm_90a: one warp feeds a ring of column tiles by TMA; warpgroups of 64 rows each multiply
// with wgmma. While the second product of a tile runs, the next tile's weights are made of its first product.
#pragma once

#include "contract_results.cuh"
#include "launch.h"
#include "wgmma_tile.cuh"

namespace hyperkern {

// Tile sizes by the padded dimension. Registers of a lane, at least: kCols / 2 for the products, kCols / 4 for packed
// weights, kDim / 2 for the gradient; the terms of columns and a second exponent take their own.
template <int kDim, Weight kWeight>
struct ContractWgmma {
  static constexpr int kConsumers = kDim <= 64 ? 3 : 2;  // warpgroups
  static constexpr bool kTwo = is_two(kWeight);
  static constexpr int kCols = kDim <= 64    ? (kTwo ? 64 : (kWeight == Weight::kFactor ? 80 : 96))
                               : kDim <= 128 ? (kTwo ? 96 : 128)
                               : kDim <= 192 ? (kWeight == Weight::kClasses ? 80 : (kTwo ? 96 : 112))
                                             : (kTwo ? 64 : 80);
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  static constexpr int kPanels = kDim * 2 / kPanelBytes;
  static constexpr int kRowBytes = kPanels * kRows * kPanelBytes;
  static constexpr int kStageBytes = kPanels * kCols * kPanelBytes;
  static constexpr int kStages = 4;
  static constexpr int kBarrierBytes = (2 * kStages + 1) * 8;
  static constexpr int kSharedBytes = kRowBytes + kStages * kStageBytes + kBarrierBytes;
  // 64 Ki registers, shared out again by role.
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 240;
  static_assert(kSharedBytes <= kSharedBytesSm90);
};

template <class Operand, int kDim, Weight kWeight>
HYPERKERN_KERNEL void __launch_bounds__((ContractWgmma<kDim, kWeight>::kThreads), 1) contract_wgmma_kernel(
    const ContractArgs args, const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap y_map) {
#if HYPERKERN_SM90A
  using T = ContractWgmma<kDim, kWeight>;
  constexpr int kPanelColumns = kPanelBytes / Operand::kBytes;
  unsigned char* memory = ptx::shared_memory();
  const uint32_t x_tile = ptx::shared_address(memory);
  const uint32_t buffers = x_tile + T::kRowBytes;
  const uint32_t x_full = buffers + T::kStages * T::kStageBytes;
  const Ring ring{x_full + 8, T::kStages};
  if (ptx::thread() == 0) {
    ptx::mbarrier_init(x_full, 1);
    ring.init(T::kConsumers * 4);
    ptx::fence_mbarrier_init();
  }
  ptx::syncthreads();

  if (ptx::thread() < kWarpgroup) {
    ptx::setmaxnreg_dec<T::kProducerRegisters>();
    if (ptx::thread() != 0) return;
    const ContractPart part(args);
    const auto [side, i_b] = part.problem;
    const Range range = part.range(T::kCols);
    ptx::prefetch_tensormap(&x_map);
    ptx::prefetch_tensormap(&y_map);
    ptx::mbarrier_arrive_expect_tx(x_full, T::kRowBytes);
#pragma unroll
    for (int panel = 0; panel < T::kPanels; ++panel) {
      ptx::cp_async_bulk_tensor(
          x_tile + panel * T::kRows * kPanelBytes, &x_map, x_full, panel * kPanelColumns,
          side.first_row + part.i_block * T::kRows, i_b);
    }
    RingPosition at;
    for (int tile = range.begin; tile < range.end; ++tile) {
      ring.acquire(at, T::kStageBytes);
#pragma unroll
      for (int panel = 0; panel < T::kPanels; ++panel) {
        ptx::cp_async_bulk_tensor(
            buffers + at.stage * T::kStageBytes + panel * T::kCols * kPanelBytes, &y_map, ring.full(at.stage),
            panel * kPanelColumns, side.first_col + tile * T::kCols, i_b);
      }
      at.advance(T::kStages);
    }
    return;
  }

  ptx::setmaxnreg_inc<T::kConsumerRegisters>();
  const ContractPart part(args);
  const Range range = part.range(T::kCols);
  const int lane = ptx::thread() % kWarp;
  const int warpgroup = ptx::uniform(ptx::thread() / kWarpgroup) - 1;
  const int warp = ptx::uniform(ptx::thread() % kWarpgroup / kWarp);
  const Pairs pairs = part.problem.of<kWeight>(args.pairs);
  const int first_row = part.i_block * T::kRows + warpgroup * 64;
  const Rows<1> rows(pairs, first_row + warp * 16, 16, lane);
  const RowFactors<1, kWeight> factors(pairs, rows);
  const int x_pieces = static_cast<int>(piece_at(x_tile)) + warpgroup * 64 * kPanelBytes / kPieceBytes;
  const uint32_t y_pieces = piece_at(buffers);
  const Turns<T::kConsumers> turns(warpgroup);

  float g[1][kDim / 8][4] = {};
  float s[1][T::kCols / 8][4];
  float sum[1][2] = {}, value[1][2] = {};
  uint32_t packed[T::kCols / 16][4];

  const auto first_product = [&](const RingPosition& at) {
    // Of the longest rows the compiler would keep all descriptors around the loop.
    const int x_first = kDim > 128 ? ptx::opaque(x_pieces) : x_pieces;
#pragma unroll
    for (int panel = 0; panel < T::kPanels; ++panel) {
      multiply_rows_async<Operand>(
          s[0], x_first + panel * T::kRows * kPanelBytes / kPieceBytes,
          y_pieces + at.stage * (T::kStageBytes / kPieceBytes) + panel * T::kCols * kPanelBytes / kPieceBytes,
          panel > 0);
    }
    ptx::wgmma_commit_group();
  };
  const auto second_product = [&](const RingPosition& at) {
    multiply_weights_async<Operand>(g[0], packed, y_pieces + at.stage * (T::kStageBytes / kPieceBytes), true);
    ptx::wgmma_commit_group();
  };
  const auto weigh_tile = [&](int tile) {
    const int first_col = tile * T::kCols;
    // Two calls, so that the exponentials lie between the branch and the wait for the second product that follows: the
    // compiler would move that wait up to where the branches of one call meet.
    if (needs_mask(pairs, first_row, 64, first_col, T::kCols)) {
      weigh<kWeight, Operand::kLog2Units, false>(s, sum, value, rows, factors, pairs, first_col, true, lane);
    } else {
      weigh<kWeight, Operand::kLog2Units, false>(s, sum, value, rows, factors, pairs, first_col, false, lane);
    }
  };

  ptx::mbarrier_wait(x_full, 0);
  RingPosition at;
  if (range.begin < range.end) {
    ring.wait(at);
    turns.take();
    ptx::wgmma_fence();
    first_product(at);
    turns.pass();
    ptx::wgmma_wait_group<0>();
    ptx::pin(s[0]);
    weigh_tile(range.begin);
    pack_weights<Operand>(packed, s[0]);
    for (int tile = range.begin + 1; tile < range.end; ++tile) {
      const RingPosition before = at;
      at.advance(T::kStages);
      ring.wait(at);
      turns.take();
      ptx::pin(s[0]);
      ptx::pin(g[0]);
      ptx::pin(packed);
      ptx::wgmma_fence();
      first_product(at);
      second_product(before);
      turns.pass();
      ptx::wgmma_wait_group<1>();  // the first product
      ptx::pin(s[0]);
      weigh_tile(tile);
      ptx::wgmma_wait_group<0>();
      ptx::pin(g[0]);
      ring.release(before, lane);
      pack_weights<Operand>(packed, s[0]);
    }
    ptx::pin(packed);
    ptx::wgmma_fence();
    second_product(at);
    ptx::wgmma_wait_group<0>();
    ptx::pin(g[0]);
  }
  turns.end();
  store_results<kWeight, Operand::kLog2Units>(args, rows, g, sum, value, lane);
#endif
}

}  // namespace hyperkern
