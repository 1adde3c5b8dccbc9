// The sums kernel for sm_90a: one warp feeds a ring by TMA, two warpgroups multiply 128 x 128 tiles each with wgmma.
// Where rows are short (kResident) the rows of a block stay in shared memory and only columns stream. Where they stream
// too, two blocks of a cluster work on the same rows and on neighbouring columns: each fetches the rows of one
// warpgroup, for both.
#pragma once

#include "launch.h"
#include "sums_epilogue.cuh"
#include "wgmma_tile.cuh"

namespace hyperkern {

struct SumsWgmma {
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kBlocks = 2;     // of 64 rows, for each of them
  static constexpr int kRows = kConsumers * kBlocks * 64;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kRowPanelBytes = kRows * kPanelBytes;
  static constexpr int kColPanelBytes = kSumsCols * kPanelBytes;
  static constexpr int kCluster = 2;       // blocks of threads, where rows stream
  static constexpr int kMostResident = 4;  // panels
  static constexpr int kMostStages = 8;
  static constexpr int kBarrierBytes = 256;  // of the rings, full and empty, and two of resident rows
  static constexpr int kColBytes = kConsumers * kSumsColFloats * 4;

  static HYPERKERN_HOST_DEVICE constexpr int cluster(int resident_panels) { return resident_panels > 0 ? 1 : kCluster; }

  // Shared memory of a block of threads: a ring of as many buffers for columns as fit; rows, of all panels where they
  // are resident, else in a ring for each warpgroup, one buffer shorter; column sums; barriers. A warpgroup that weighs
  // its tile holds the buffers of the columns that it has not seen, and must not hold the rows of the other one.
  static constexpr int kStreamedStages =
      (kSharedBytesSm90 - kColBytes - kBarrierBytes + kRowPanelBytes) / (kColPanelBytes + kRowPanelBytes);
  static HYPERKERN_HOST_DEVICE constexpr int row_bytes(int resident_panels) {
    return (resident_panels > 0 ? resident_panels : kStreamedStages - 1) * kRowPanelBytes;
  }
  static HYPERKERN_HOST_DEVICE constexpr int stages(int resident_panels) {
    if (resident_panels == 0) return kStreamedStages;
    const int fitting = (kSharedBytesSm90 - kColBytes - kBarrierBytes - row_bytes(resident_panels)) / kColPanelBytes;
    return fitting < kMostStages ? fitting : kMostStages;
  }
  static HYPERKERN_HOST_DEVICE constexpr int shared_bytes(int resident_panels) {
    return row_bytes(resident_panels) + stages(resident_panels) * kColPanelBytes + kColBytes + kBarrierBytes;
  }
};
static_assert(SumsWgmma::kCluster == SumsWgmma::kConsumers);
static_assert(
    (1 + SumsWgmma::kStreamedStages + SumsWgmma::kConsumers * (SumsWgmma::kStreamedStages - 1)) * 16 <=
        SumsWgmma::kBarrierBytes &&
    (1 + SumsWgmma::kMostStages) * 16 <= SumsWgmma::kBarrierBytes);

// How many panels of rows stay in shared memory. Panels of weights are for long rows, and their rows always stream.
HYPERKERN_HOST_DEVICE constexpr int resident_panels(int row_bytes, Task task) {
  const int panels = ceil_div(row_bytes, kPanelBytes);
  return !stores(task) && panels <= SumsWgmma::kMostResident ? panels : 0;
}

// What a block fetches of L2 for a panel of a tile, against the clocks that its products take: 8 for an element of rows
// in a tile of 128 x 128. L2 gives every multiprocessor 32 bytes a clock and not more.
static_assert(
    SumsWgmma::kColPanelBytes + SumsWgmma::kRowPanelBytes / SumsWgmma::kCluster <=
    32 * (SumsWgmma::kRows / 128 * 8 * (kPanelBytes / 2)));

template <class Operand, Task kTask, bool kResident>
HYPERKERN_KERNEL void __launch_bounds__(SumsWgmma::kThreads, 1) sums_wgmma_kernel(
    const SumsArgs args, const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap y_map,
    const int col_stages) {
#if HYPERKERN_SM90A
  using T = SumsWgmma;
  constexpr int kCluster = kResident ? 1 : T::kCluster;
  Schedule schedule = args.schedule;
  if constexpr (stores(kTask)) schedule.triangle = false;  // it never is one: that spares registers
  const int lane = ptx::thread() % kWarp;
  const auto [i_stripe, i_cut, i_b] = schedule.place(ptx::block());
  const int panels = ceil_div(args.pairs.dim * Operand::kBytes, kPanelBytes);

  constexpr int kRowStages = T::kStreamedStages - 1, kRowBufferBytes = T::kRowPanelBytes / T::kConsumers;
  const int stages = kResident ? col_stages : T::kStreamedStages;
  const int row_bytes = T::row_bytes(kResident ? panels : 0);
  unsigned char* memory = ptx::shared_memory();
  const uint32_t x_buffers = ptx::shared_address(memory);
  const uint32_t y_buffers = x_buffers + row_bytes;
  unsigned char* behind = memory + row_bytes + stages * T::kColPanelBytes;
  const uint32_t x_full = ptx::shared_address(behind + T::kColBytes), x_empty = x_full + 8;
  const Ring ring{x_empty + 8, stages};
  // Where rows stream: those of a warpgroup come from the block of that rank.
  const auto rows_of = [&](int warpgroup) {
    return Ring{ring.empty(stages - 1) + 8 + warpgroup * kRowStages * 16, kRowStages, kCluster, warpgroup};
  };
  if (ptx::thread() == 0) {
    ring.init(T::kConsumers * 4);
    if constexpr (kResident) {
      ptx::mbarrier_init(x_full, 1);
      ptx::mbarrier_init(x_empty, T::kConsumers * 4);
    } else {
      for (int warpgroup = 0; warpgroup < T::kConsumers; ++warpgroup) rows_of(warpgroup).init(4);
    }
    ptx::fence_mbarrier_init();
  }
  if constexpr (kCluster > 1) {
    ptx::cluster_sync();  // the other block fills buffers and barriers here
  } else {
    ptx::syncthreads();
  }

  if (ptx::thread() < kWarpgroup) {
    ptx::setmaxnreg_dec<24>();
    if (ptx::thread() != 0) return;
    ptx::prefetch_tensormap(&x_map);
    ptx::prefetch_tensormap(&y_map);
    const Problem problem = problem_of<kTask>(args, i_b);
    const int first_row = problem.side.first_row, first_col = problem.side.first_col;
    const int rank = ptx::cluster_ctarank();
    const Ring rows = rows_of(rank);
    RingPosition at, x_at;
    uint32_t x_parity = 1;
    for (int round = 0; round < schedule.rounds(); ++round) {
      const int i_block = schedule.block(i_stripe, round);
      if (i_block >= schedule.blocks) continue;
      const Range range = schedule.range(i_block, i_cut);
      if (kResident && range.begin < range.end) {
        ptx::mbarrier_wait(x_empty, x_parity);
        x_parity ^= 1;
        ptx::mbarrier_arrive_expect_tx(x_full, panels * T::kRowPanelBytes);
        for (int panel = 0; panel < panels; ++panel) {
          ptx::cp_async_bulk_tensor(
              x_buffers + panel * T::kRowPanelBytes, &x_map, x_full, panel * (kPanelBytes / Operand::kBytes),
              first_row + i_block * T::kRows, problem.i_b);
        }
      }
      for (int tile = range.begin; tile < range.end; tile += schedule.cuts) {
        for (int panel = 0; panel < panels; ++panel) {
          const int column = panel * (kPanelBytes / Operand::kBytes);
          ring.acquire(at, T::kColPanelBytes);
          ptx::cp_async_bulk_tensor(
              y_buffers + at.stage * T::kColPanelBytes, &y_map, ring.full(at.stage), column,
              first_col + tile * kSumsCols, problem.i_b);
          at.advance(stages);
          if constexpr (!kResident) {
            rows.acquire(x_at, kRowBufferBytes);
            ptx::cp_async_bulk_tensor_multicast(
                x_buffers + (rank * kRowStages + x_at.stage) * kRowBufferBytes, &x_map, rows.full(x_at.stage), column,
                first_row + i_block * T::kRows + rank * (T::kRows / kCluster), problem.i_b, (1 << kCluster) - 1);
            x_at.advance(kRowStages);
          }
        }
      }
    }
    return;
  }

  ptx::setmaxnreg_inc<240>();
  const int warpgroup = ptx::uniform(ptx::thread() / kWarpgroup) - 1;
  const int warp = ptx::uniform(ptx::thread() % kWarpgroup / kWarp);
  const Problem problem = problem_of<kTask>(args, i_b);
  const Pairs pairs = problem.of<weight_of(kTask), kTask == Task::kSumClasses>(args.pairs);
  auto* col_shared = reinterpret_cast<float*>(behind) + warpgroup * kSumsColFloats;
  float* col = args.col;
  if (col != nullptr) {
    const int part = i_stripe * T::kConsumers + warpgroup;
    col += (static_cast<int64_t>(part) * pairs.batch + i_b) * pairs.n;
  }
  int col_turn = 0;
  // Long rows outlast the ring: there a warpgroup that waits for its turn would keep the buffers that the other needs.
  const Turns<kResident ? T::kConsumers : 1> turns(warpgroup);
  const Ring rows = rows_of(warpgroup);
  const uint32_t x_own = x_buffers + warpgroup * (kResident ? 1 : kRowStages) * kRowBufferBytes;
  RingPosition at, x_at;
  uint32_t x_parity = 0;
  for (int round = 0; round < schedule.rounds(); ++round) {
    const int i_block = schedule.block(i_stripe, round);
    if (i_block >= schedule.blocks) continue;
    const int first_row = i_block * T::kRows + warpgroup * T::kBlocks * 64;
    SumsEpilogue<Operand, kTask, T::kBlocks, kResident && kTask == Task::kSumExp> epilogue(
        args, pairs, i_b, i_cut, first_row + warp * 16, 64, lane);
    const Range range = schedule.range(i_block, i_cut);
    if (kResident && range.begin < range.end) {
      ptx::mbarrier_wait(x_full, x_parity);
      x_parity ^= 1;
    }
    for (int tile = range.begin; tile < range.end; tile += schedule.cuts) {
      float s[T::kBlocks][kSumsGroups][4];
      // The products of the panel before have read its buffers.
      const auto release = [&] {
        ring.release(at.before(stages), lane);
        if constexpr (!kResident) rows.release(x_at.before(kRowStages), lane);
      };
      turns.take();
      for (int panel = 0; panel < panels; ++panel) {
        const uint32_t y_panel = y_buffers + at.stage * T::kColPanelBytes;
        const uint32_t x_panel = x_own + (kResident ? panel * T::kRowPanelBytes : x_at.stage * kRowBufferBytes);
        ring.wait(at);
        if constexpr (!kResident) rows.wait(x_at);
#pragma unroll
        for (int block = 0; block < T::kBlocks; ++block) ptx::pin(s[block]);
        ptx::wgmma_fence();
#pragma unroll
        for (int block = 0; block < T::kBlocks; ++block) {
          multiply_rows_async<Operand>(
              s[block], piece_at(x_panel) + block * 64 * kPanelBytes / kPieceBytes, piece_at(y_panel), panel > 0);
        }
        ptx::wgmma_commit_group();
        if (panel > 0) {
          ptx::wgmma_wait_group<1>();
          release();
        }
        at.advance(stages);
        if constexpr (!kResident) x_at.advance(kRowStages);
      }
      turns.pass();
      ptx::wgmma_wait_group<0>();
#pragma unroll
      for (int block = 0; block < T::kBlocks; ++block) ptx::pin(s[block]);
      release();
      if (kResident && tile + schedule.cuts >= range.end && lane == 0) ptx::mbarrier_arrive(x_empty);
      if (kCluster > 1 && !schedule.has(tile)) continue;
      const int first_col = tile * kSumsCols;
      const bool mirrored = schedule.mirrored(i_block, tile);
      epilogue.add_tile(
          s, first_col, needs_mask(pairs, first_row, T::kBlocks * 64, first_col, kSumsCols),
          mirrored && col == nullptr);
      if (col != nullptr && (mirrored || !schedule.triangle)) {
        epilogue.add_cols(s, col_shared, col, first_col, warp, 1 + warpgroup, col_turn);
      }
    }
    epilogue.finish();
  }
  turns.end();
  // The other block may still free buffers of both.
  if constexpr (kCluster > 1) ptx::cluster_sync();
#endif
}

}  // namespace hyperkern
