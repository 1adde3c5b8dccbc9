// Products of tiles in shared memory with wgmma, tiles fetched by the TMA unit into a ring: for sm_90a.
#pragma once

#include "operands.cuh"

#if HYPERKERN_SM90A

namespace hyperkern {

// wgmma counts shared memory in pieces of 16 bytes.
constexpr int kPieceBytes = 16;

// The piece at an address. In a cluster the bits above the 18 that a descriptor has room for name a block of threads.
HYPERKERN_DEVICE uint32_t piece_at(uint32_t address) { return (address & 0x3ffff) / kPieceBytes; }

// What wgmma is told about a tile with 128-byte swizzle that starts at a piece. `kLeading` is used by a transposed
// operand only: from one panel to the next. Eight rows lie behind the eight before. All but the start is constant, and
// steps from one product to the next are constants that add to it.
template <int kLeading>
HYPERKERN_DEVICE uint64_t matrix_descriptor(uint32_t piece) {
  constexpr uint32_t kSwizzle128B = 1u << 30, kStride = 8 * kPanelBytes / kPieceBytes;
  return static_cast<uint64_t>(kSwizzle128B | kStride) << 32 | (piece + (kLeading / kPieceBytes << 16));
}

// s = x y^T, or with `add` s += x y^T, over one panel: 64 rows of x and 8 kGroups rows of y, each from a
// piece of shared memory on.
template <class Operand, int kGroups>
HYPERKERN_DEVICE void multiply_rows_async(float (&s)[kGroups][4], uint32_t x_panel, uint32_t y_panel, bool add) {
#pragma unroll
  for (int step = 0; step < kPanelBytes / kStepBytes; ++step) {
    Operand::multiply_async(
        s, matrix_descriptor<kStepBytes>(x_panel + step * kStepBytes / kPieceBytes),
        matrix_descriptor<kStepBytes>(y_panel + step * kStepBytes / kPieceBytes), add || step > 0);
  }
}

// The weights of a tile as a left operand in registers: 16 columns in four registers.
template <class Operand, int kGroups>
HYPERKERN_DEVICE void pack_weights(uint32_t (&packed)[kGroups / 2][4], const float (&w)[kGroups][4]) {
#pragma unroll
  for (int step = 0; step < kGroups / 2; ++step) {
    packed[step][0] = Operand::pack(w[2 * step][0], w[2 * step][1]);
    packed[step][1] = Operand::pack(w[2 * step][2], w[2 * step][3]);
    packed[step][2] = Operand::pack(w[2 * step + 1][0], w[2 * step + 1][1]);
    packed[step][3] = Operand::pack(w[2 * step + 1][2], w[2 * step + 1][3]);
  }
}

// g += w y: packed weights and a tile of y, whose rows are contracted, from a piece of shared memory on.
template <class Operand, int kSteps, int kOutGroups>
HYPERKERN_DEVICE void multiply_weights_async(
    float (&g)[kOutGroups][4], const uint32_t (&packed)[kSteps][4], uint32_t y_tile, bool add) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    Operand::multiply_async(
        g, packed[step], matrix_descriptor<kSteps * 16 * kPanelBytes>(y_tile + step * 16 * kPanelBytes / kPieceBytes),
        add || step > 0);
  }
}

// A position in a ring of buffers: which one, and in which round.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  HYPERKERN_DEVICE void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }

  // The buffer before this one.
  HYPERKERN_DEVICE int before(int stages) const { return stage == 0 ? stages - 1 : stage - 1; }
};

// A ring of buffers between the TMA unit and the warpgroups: for each a barrier that it is full and one that it is
// empty. One block of a cluster may fill the ring of every block at the same time: a buffer is then empty when it is so
// in all of them.
struct Ring {
  uint32_t barriers;  // full and empty, in turn
  int stages;
  int cluster = 1;  // blocks whose ring is filled
  int filler = 0;   // the rank of the one that fills them

  HYPERKERN_DEVICE uint32_t full(int stage) const { return barriers + 16 * stage; }
  HYPERKERN_DEVICE uint32_t empty(int stage) const { return barriers + 16 * stage + 8; }

  // By one thread, before all others use it.
  HYPERKERN_DEVICE void init(int warps) const {
    for (int stage = 0; stage < stages; ++stage) {
      ptx::mbarrier_init(full(stage), 1);
      ptx::mbarrier_init(empty(stage), warps * cluster);
    }
  }

  // The producer waits until a buffer is empty and announces what it will receive.
  HYPERKERN_DEVICE void acquire(const RingPosition& at, uint32_t bytes) const {
    ptx::mbarrier_wait(empty(at.stage), at.parity ^ 1);
    if (cluster > 1) {
      for (int rank = 0; rank < cluster; ++rank) {
        ptx::mbarrier_arrive_expect_tx_cluster(ptx::mapa(full(at.stage), rank), bytes);
      }
    } else {
      ptx::mbarrier_arrive_expect_tx(full(at.stage), bytes);
    }
  }

  HYPERKERN_DEVICE void wait(const RingPosition& at) const { ptx::mbarrier_wait(full(at.stage), at.parity); }

  // By every consumer warp, once its products have read the buffer.
  HYPERKERN_DEVICE void release(int stage, int lane) const {
    if (lane != 0) return;
    if (cluster > 1) {
      ptx::mbarrier_arrive_cluster(ptx::mapa(empty(stage), filler));
    } else {
      ptx::mbarrier_arrive(empty(stage));
    }
  }

  HYPERKERN_DEVICE void release(const RingPosition& at, int lane) const { release(at.stage, lane); }
};

// Warpgroups issue their products in turn, so that one multiplies while another one weighs.
template <int kWarpgroups>
struct Turns {
  int warpgroup;
  static constexpr int kFirstBarrier = 8;

  HYPERKERN_DEVICE explicit Turns(int warpgroup) : warpgroup(warpgroup) {
    // The first turn is the first warpgroup's.
    if (kWarpgroups > 1 && warpgroup == kWarpgroups - 1) ptx::bar_arrive(kFirstBarrier, 2 * kWarpgroup);
  }

  HYPERKERN_DEVICE void take() const {
    if constexpr (kWarpgroups > 1) ptx::bar_sync(kFirstBarrier + warpgroup, 2 * kWarpgroup);
  }

  HYPERKERN_DEVICE void pass() const {
    if constexpr (kWarpgroups > 1) ptx::bar_arrive(kFirstBarrier + (warpgroup + 1) % kWarpgroups, 2 * kWarpgroup);
  }

  // Takes back the turn that is left in the end.
  HYPERKERN_DEVICE void end() const {
    if (warpgroup == 0) take();
  }
};

}  // namespace hyperkern

#endif  // HYPERKERN_SM90A
