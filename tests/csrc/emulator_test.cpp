// That the emulator finds what it is for: kernels with one synchronisation left out must fail, whole ones must not.
#include "../../csrc/operands.cuh"
#include "../../csrc/wgmma_tile.cuh"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

using namespace hyperkern;
using emulator::Timing;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      std::exit(1);                                               \
    }                                                             \
  } while (false)

constexpr int kRows = 64, kTiles = 5, kStages = 2;
constexpr int kBytes = kRows * kPanelBytes;

// What is left out of the kernel below.
enum class Without {
  kNothing,
  kFullWait,
  kEmptyWait,
  kRelease,
  kProductBeforeRelease,
  kProductWait,
  kRowsWait,
  kFence
};

// Sums x y_t^T over kTiles tiles of y, 64 x 64 each, with a ring of two buffers, as the kernels do: each tile is
// multiplied twice, and the wait for the first product lets one warp run ahead of the others.
struct Kernel {
  Without without;
  TensorMap x_map, y_map;
  std::vector<float>* out;

  void operator()() const {
    const uint32_t x_tile = ptx::shared_address(ptx::shared_memory()), buffers = x_tile + kBytes;
    const uint32_t x_full = buffers + kStages * kBytes;
    const Ring ring{x_full + 8, kStages};
    if (ptx::thread() == 0) {
      ptx::mbarrier_init(x_full, 1);
      ring.init(4);
    }
    ptx::syncthreads();
    if (ptx::thread() < kWarpgroup) {
      if (ptx::thread() != 0) return;
      ptx::mbarrier_arrive_expect_tx(x_full, kBytes);
      ptx::cp_async_bulk_tensor(x_tile, &x_map, x_full, 0, 0, 0);
      RingPosition at;
      for (int tile = 0; tile < kTiles; ++tile) {
        if (without == Without::kEmptyWait) {
          ptx::mbarrier_arrive_expect_tx(ring.full(at.stage), kBytes);
        } else {
          ring.acquire(at, kBytes);
        }
        ptx::cp_async_bulk_tensor(buffers + at.stage * kBytes, &y_map, ring.full(at.stage), 0, tile * kRows, 0);
        at.advance(kStages);
      }
      return;
    }
    const int lane = ptx::thread() % kWarp, warp = ptx::thread() % kWarpgroup / kWarp;
    float first[8][4], s[8][4];
    if (without != Without::kRowsWait) ptx::mbarrier_wait(x_full, 0);
    RingPosition at;
    for (int tile = 0; tile < kTiles; ++tile) {
      if (without != Without::kFullWait) ring.wait(at);
      if (without != Without::kFence) ptx::wgmma_fence();
      multiply_rows_async<Bf16>(first, piece_at(x_tile), piece_at(buffers + at.stage * kBytes), false);
      ptx::wgmma_commit_group();
      ptx::wgmma_wait_group<0>();
      ptx::wgmma_fence();
      multiply_rows_async<Bf16>(s, piece_at(x_tile), piece_at(buffers + at.stage * kBytes), tile > 0);
      ptx::wgmma_commit_group();
      ptx::syncwarp();  // else the buffer is overwritten before the slowest lanes have issued the product
      if (without == Without::kProductBeforeRelease) ring.release(at, lane);
      if (without != Without::kProductWait) ptx::wgmma_wait_group<0>();
      if (without != Without::kRelease && without != Without::kProductBeforeRelease) ring.release(at, lane);
      at.advance(kStages);
    }
    for (int group = 0; group < 8; ++group) {
      for (int e = 0; e < 4; ++e) {
        (*out)[(warp * 16 + fragment_row(lane, e)) * 64 + group * 8 + fragment_col(lane, e)] = s[group][e];
      }
    }
    ptx::wgmma_wait_group<0>();
  }
};

// What is wrong in the kernel below.
enum class Fault {
  kNone,
  kNoBarrierAtStart,
  kNoBarrierAtEnd,
  kExpectedHereAlone,
  kTooLittleExpected,
  kFreedHereAlone,
  kOwnConsumersAsked,
  kOwnMask,
  kMaskTooWide,
  kOtherBarrierTaken,
  kParity,
  kRankInDescriptor
};

// x y_r^T for each of the two blocks r of a cluster, 64 x 64 each and in kTiles panels, with rings of two buffers: the
// first block fetches x for both.
struct Cluster {
  Fault fault;
  TensorMap x_map, y_map;
  std::vector<float>* out;

  void operator()() const {
    const uint32_t y_buffers = ptx::shared_address(ptx::shared_memory()), x_buffers = y_buffers + kStages * kBytes;
    const int rank = ptx::cluster_ctarank();
    const Ring columns{x_buffers + kStages * kBytes, kStages}, rows{columns.empty(kStages - 1) + 8, kStages, 2, 0};
    const Ring own_rows{rows.barriers, kStages};  // as if the other block had nothing to do with them
    const bool freed_here = fault == Fault::kFreedHereAlone || fault == Fault::kOwnConsumersAsked;
    if (ptx::thread() == 0) {
      columns.init(4);
      (fault == Fault::kOwnConsumersAsked ? own_rows : rows).init(4);
    }
    if (fault == Fault::kNoBarrierAtStart) {
      ptx::syncthreads();
    } else {
      ptx::cluster_sync();
    }
    if (ptx::thread() < kWarpgroup) {
      if (ptx::thread() != 0) return;
      RingPosition at;
      for (int panel = 0; panel < kTiles; ++panel) {
        const uint32_t full = columns.full(at.stage);
        columns.acquire(at, kBytes);
        ptx::cp_async_bulk_tensor(
            y_buffers + at.stage * kBytes, &y_map,
            fault == Fault::kOtherBarrierTaken ? ptx::mapa(full, 1 - rank) : full, panel * 64, rank * kRows, 0);
        if (rank == 0) {
          const RingPosition asked{at.stage, fault == Fault::kParity ? at.parity ^ 1 : at.parity};
          const uint32_t bytes = fault == Fault::kTooLittleExpected ? kBytes / 2 : kBytes;
          (fault == Fault::kExpectedHereAlone ? own_rows : rows).acquire(asked, bytes);
          const uint16_t ranks = fault == Fault::kOwnMask ? 1 : fault == Fault::kMaskTooWide ? 7 : 3;
          ptx::cp_async_bulk_tensor_multicast(
              x_buffers + at.stage * kBytes, &x_map, rows.full(at.stage), panel * 64, 0, 0, ranks);
        }
        at.advance(kStages);
      }
      return;
    }
    const int lane = ptx::thread() % kWarp, warp = ptx::thread() % kWarpgroup / kWarp;
    float s[8][4];
    RingPosition at;
    for (int panel = 0; panel < kTiles; ++panel) {
      const uint32_t x_panel = x_buffers + at.stage * kBytes, y_panel = y_buffers + at.stage * kBytes;
      columns.wait(at);
      rows.wait(at);
      ptx::wgmma_fence();
      const uint32_t x_piece = fault == Fault::kRankInDescriptor ? x_panel / kPieceBytes : piece_at(x_panel);
      multiply_rows_async<Bf16>(s, x_piece, piece_at(y_panel), panel > 0);
      ptx::wgmma_commit_group();
      ptx::wgmma_wait_group<0>();
      columns.release(at, lane);
      (freed_here ? own_rows : rows).release(at, lane);
      at.advance(kStages);
    }
    for (int group = 0; group < 8; ++group) {
      for (int e = 0; e < 4; ++e) {
        (*out)[(warp * 16 + fragment_row(lane, e)) * 128 + rank * 64 + group * 8 + fragment_col(lane, e)] = s[group][e];
      }
    }
    if (fault != Fault::kNoBarrierAtEnd) ptx::cluster_sync();
  }
};

float value(size_t i, int seed) { return static_cast<float>((i * 7 + seed) % 31) / 16 - 1; }

std::vector<uint16_t> numbers(int count, int seed) {
  std::vector<uint16_t> found(count);
  for (int i = 0; i < count; ++i) found[i] = emulator::narrow(value(i, seed), emulator::Half::kBf16);
  return found;
}

TensorMap map(const std::vector<uint16_t>& data, int columns, int box_rows) {
  const int rows = static_cast<int>(data.size()) / columns;
  return {
      reinterpret_cast<const unsigned char*>(data.data()),
      {columns, rows, 1},
      {2LL * columns, 2LL * columns * rows},
      {64, box_rows},
      2};
}

// Whether the emulator ran a kernel, and if not, what it refused.
bool runs(int cluster, size_t bytes, const std::function<void()>& kernel, Timing timing, std::string& refusal) {
  emulator::set_timing(timing);
  refusal.clear();
  try {
    emulator::run(cluster, 2 * kWarpgroup, bytes, kernel, cluster);
  } catch (const std::runtime_error& error) {
    refusal = error.what();
    return false;
  }
  return true;
}

// The largest error of the kernel, or nan; the message of what the emulator refused.
float run(Without without, Timing timing, std::string& refusal) {
  const auto x = numbers(kRows * 64, 3), y = numbers(kTiles * kRows * 64, 11);
  std::vector<float> out(64 * 64, NAN);
  const Kernel kernel{without, map(x, 64, kRows), map(y, 64, kRows), &out};
  if (!runs(1, kBytes * (1 + kStages) + 64, kernel, timing, refusal)) return NAN;
  float worst = 0;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < 64; ++j) {
      double sum = 0;
      for (int tile = 0; tile < kTiles; ++tile) {
        for (int k = 0; k < 64; ++k) {
          sum += static_cast<double>(value(i * 64 + k, 3)) * value((tile * kRows + j) * 64 + k, 11);
        }
      }
      const float error = std::fabs(out[i * 64 + j] - static_cast<float>(sum));
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

// The same of the cluster.
float run(Fault fault, Timing timing, std::string& refusal) {
  constexpr int kColumns = kTiles * 64;
  const auto x = numbers(kRows * kColumns, 3), y = numbers(2 * kRows * kColumns, 11);
  std::vector<float> out(64 * 128, NAN);
  const Cluster kernel{fault, map(x, kColumns, kRows), map(y, kColumns, kRows), &out};
  if (!runs(2, 2 * kBytes * kStages + 128, kernel, timing, refusal)) return NAN;
  float worst = 0;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < 128; ++j) {
      double sum = 0;
      for (int k = 0; k < kColumns; ++k) {
        sum += static_cast<double>(value(i * kColumns + k, 3)) * value(j * kColumns + k, 11);
      }
      const float error = std::fabs(out[i * 128 + j] - static_cast<float>(sum));
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

void check_clusters() {
  std::string refusal;
  const auto finds = [&](Fault fault, Timing timing, const char* message) {
    const float error = run(fault, timing, refusal);
    if (message == nullptr) {
      CHECK(!(error < 1e-3f), "fault %d of a cluster: error %g", static_cast<int>(fault), error);
    } else {
      CHECK(refusal.find(message) == 0, "fault %d of a cluster: '%s'", static_cast<int>(fault), refusal.c_str());
    }
  };
  for (const Timing timing : {Timing::kCopiesFirst, Timing::kProductsFirst}) {
    const float error = run(Fault::kNone, timing, refusal);
    CHECK(error < 1e-3f, "the whole cluster: error %g %s", error, refusal.c_str());
    finds(Fault::kExpectedHereAlone, timing, "deadlock");
    finds(Fault::kTooLittleExpected, timing, "more bytes arrive at an mbarrier than it expects");
    finds(Fault::kFreedHereAlone, timing, "deadlock");
    finds(Fault::kOwnMask, timing, "deadlock");
    finds(Fault::kMaskTooWide, timing, "a cluster has no block of that rank");
    finds(Fault::kParity, timing, nullptr);
    finds(Fault::kRankInDescriptor, timing, "a matrix descriptor has no room for the rank of a block");
  }
  finds(Fault::kNoBarrierAtStart, Timing::kCopiesFirst, "an mbarrier is used that was not initialised");
  finds(Fault::kNoBarrierAtEnd, Timing::kCopiesFirst, "a block is reached that has ended");
  finds(Fault::kOwnConsumersAsked, Timing::kCopiesFirst, nullptr);
  finds(Fault::kOtherBarrierTaken, Timing::kProductsFirst, nullptr);
}

int main() {
  check_clusters();
  std::string refusal;
  for (const Timing timing : {Timing::kCopiesFirst, Timing::kProductsFirst}) {
    const float error = run(Without::kNothing, timing, refusal);
    CHECK(error < 1e-3f, "the whole kernel: error %g %s", error, refusal.c_str());
    run(Without::kRelease, timing, refusal);
    CHECK(refusal.find("deadlock") == 0, "without a release: '%s'", refusal.c_str());
    CHECK(refusal.find("an mbarrier") != std::string::npos, "without a release: '%s'", refusal.c_str());
  }
  float error = run(Without::kFullWait, Timing::kProductsFirst, refusal);
  CHECK(!(error < 1e-3f), "without waiting for the copy: error %g %s", error, refusal.c_str());
  // Unless the rows happen to arrive before the columns: each run draws another order.
  for (int i = 0; i < 8; ++i) {
    error = run(Without::kRowsWait, Timing::kProductsFirst, refusal);
    if (!(error < 1e-3f)) break;
  }
  CHECK(!(error < 1e-3f), "without waiting for the rows: error %g %s", error, refusal.c_str());
  run(Without::kFence, Timing::kCopiesFirst, refusal);
  CHECK(refusal.find("wgmma without a fence") == 0, "without a fence: '%s'", refusal.c_str());
  error = run(Without::kEmptyWait, Timing::kCopiesFirst, refusal);
  CHECK(!(error < 1e-3f), "without waiting for an empty buffer: error %g %s", error, refusal.c_str());
  error = run(Without::kProductBeforeRelease, Timing::kCopiesFirst, refusal);
  CHECK(!(error < 1e-3f), "releasing a buffer before its product: error %g %s", error, refusal.c_str());
  error = run(Without::kProductWait, Timing::kCopiesFirst, refusal);
  CHECK(!(error < 1e-3f), "without waiting for the product: error %g %s", error, refusal.c_str());
  std::puts("ok");
}
