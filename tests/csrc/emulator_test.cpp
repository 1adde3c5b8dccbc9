// That the emulator finds what it is for: kernels with one synchronisation left out must fail, whole ones must not.
#include "../../csrc/operands.cuh"
#include "../../csrc/wgmma_tile.cuh"

#include <cmath>
#include <cstdio>
#include <cstdlib>
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

// The largest error of the kernel, or nan; the message of what the emulator refused.
float run(Without without, Timing timing, std::string& refusal) {
  std::vector<uint16_t> x(kRows * 64), y(kTiles * kRows * 64);
  const auto value = [](size_t i, int seed) { return static_cast<float>((i * 7 + seed) % 31) / 16 - 1; };
  for (size_t i = 0; i < x.size(); ++i) x[i] = emulator::narrow(value(i, 3), emulator::Half::kBf16);
  for (size_t i = 0; i < y.size(); ++i) y[i] = emulator::narrow(value(i, 11), emulator::Half::kBf16);
  const auto map = [](const std::vector<uint16_t>& data, int rows) {
    return TensorMap{
        reinterpret_cast<const unsigned char*>(data.data()), {64, rows, 1}, {128, 128LL * rows}, {64, kRows}, 2};
  };
  std::vector<float> out(64 * 64, NAN);
  emulator::set_timing(timing);
  refusal.clear();
  try {
    emulator::run(
        1, 2 * kWarpgroup, kBytes * (1 + kStages) + 64, Kernel{without, map(x, kRows), map(y, kTiles * kRows), &out});
  } catch (const std::runtime_error& error) {
    refusal = error.what();
    return NAN;
  }
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

int main() {
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
