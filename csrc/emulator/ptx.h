// The functions of ptx.cuh with host bodies.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../layout.h"
#include "machine.h"

#define HYPERKERN_DEVICE inline
#define HYPERKERN_KERNEL
#define HYPERKERN_SM90A 1
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) float2 {
  float x, y;
};

struct alignas(8) uint2 {
  uint32_t x, y;
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace hyperkern::ptx {

inline int thread() { return emulator::thread(); }
inline int block() { return emulator::block(); }
inline unsigned char* shared_memory() { return emulator::shared_memory(); }
inline uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }

inline int cluster_ctarank() { return emulator::cluster_rank(); }
inline uint32_t mapa(uint32_t address, int rank) { return emulator::mapa(address, rank); }
inline void cluster_sync() { emulator::cluster_sync(); }

inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}

// The hardware flushes subnormal numbers.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float mul(float a, float b) { return a * b; }
inline int popc(uint32_t x) { return __builtin_popcount(x); }
inline float ex2(float x) { return flush(std::exp2(x)); }
inline float lg2(float x) { return std::log2(flush(x)); }
inline float max_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b); }

inline uint32_t cvt_bf16x2(float low, float high) {
  return emulator::narrow(low, emulator::Half::kBf16) |
         static_cast<uint32_t>(emulator::narrow(high, emulator::Half::kBf16)) << 16;
}

inline uint32_t cvt_f16x2(float low, float high) {
  return emulator::narrow(low, emulator::Half::kF16) |
         static_cast<uint32_t>(emulator::narrow(high, emulator::Half::kF16)) << 16;
}

inline float cvt_f32_f16(uint32_t half) { return emulator::widen(static_cast<uint16_t>(half), emulator::Half::kF16); }

inline uint32_t cvt_tf32(float x) { return std::isfinite(x) ? (as_bits(x) + 0x1000) & 0xffffe000 : as_bits(x); }

template <class T>
inline T shfl_xor(T x, int mask) {
  return static_cast<const T*>(emulator::exchange(&x, sizeof x))[(emulator::thread() % 32) ^ mask];
}

inline int uniform(int x) { return static_cast<const int*>(emulator::exchange(&x, sizeof x))[0]; }
inline int opaque(int x) { return x; }

inline void syncwarp() {
  const int nothing = 0;
  emulator::exchange(&nothing, sizeof nothing);
}

// Lane i gets two elements of row i / 4 of each of four 8 x 8 matrices; lanes 8 m ... 8 m + 7 name the rows of matrix
// m.
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  uint32_t rows[32];
  std::memcpy(rows, emulator::exchange(&address, sizeof address), sizeof rows);
  const int lane = emulator::thread() % 32;
  for (int m = 0; m < 4; ++m) std::memcpy(&r[m], emulator::shared_at(rows[8 * m + lane / 4]) + lane % 4 * 4, 4);
}

// The same of the transposed matrices.
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
  uint32_t rows[32];
  std::memcpy(rows, emulator::exchange(&address, sizeof address), sizeof rows);
  const int lane = emulator::thread() % 32;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      std::memcpy(&pair[i], emulator::shared_at(rows[8 * m + lane % 4 * 2 + i]) + lane / 4 * 2, 2);
    }
    std::memcpy(&r[m], pair, 4);
  }
}

inline float ld_shared(uint32_t address) {
  float x;
  std::memcpy(&x, emulator::shared_at(address), sizeof x);
  return x;
}

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto type = emulator::Half::kBf16;
  emulator::mma_m16n8(d, a, b0, b1, &type);
}

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto type = emulator::Half::kF16;
  emulator::mma_m16n8(d, a, b0, b1, &type);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma_m16n8(d, a, b0, b1, nullptr);
}

constexpr int kAllThreads = -1;
inline void syncthreads() { emulator::bar_sync(0, kAllThreads); }
inline void bar_sync(int id, int threads) { emulator::bar_sync(id, threads); }
inline void bar_arrive(int id, int threads) { emulator::bar_arrive(id, threads); }

inline void mbarrier_init(uint32_t barrier, int arrivals) { emulator::mbarrier_init(barrier, arrivals); }
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(uint32_t barrier) {
  emulator::mbarrier_arrive(barrier, 0);
  emulator::let_others_run();
}
inline void mbarrier_arrive_cluster(uint32_t barrier) {
  emulator::mbarrier_arrive_cluster(barrier, 0);
  emulator::let_others_run();
}
inline void mbarrier_arrive_expect_tx_cluster(uint32_t barrier, uint32_t bytes) {
  emulator::mbarrier_arrive_cluster(barrier, bytes);
}
inline void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) { emulator::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) { emulator::mbarrier_wait(barrier, parity); }

inline void red_add(float* to, float x) { *to += x; }
inline uint32_t atom_add(uint32_t* to, uint32_t x) {
  const uint32_t before = *to;
  *to += x;
  return before;
}

inline void cp_async(uint32_t to, const void* from, bool valid) { emulator::cp_async(to, from, valid); }
inline void cp_async_commit_group() { emulator::cp_async_commit_group(); }

template <int kPending>
inline void cp_async_wait_group() {
  emulator::cp_async_wait_group(kPending);
}

inline void cp_async_bulk_tensor(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch) {
  emulator::cp_async_bulk_tensor(to, map, barrier, column, row, batch);
}

inline void cp_async_bulk_tensor_multicast(
    uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch, uint16_t ranks) {
  emulator::cp_async_bulk_tensor_multicast(to, map, barrier, column, row, batch, ranks);
}

inline void prefetch_tensormap(const TensorMap*) {}

template <int>
inline void setmaxnreg_inc() {}

template <int>
inline void setmaxnreg_dec() {}

inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit_group() { emulator::wgmma_commit_group(); }

template <int kPending>
inline void wgmma_wait_group() {
  emulator::wgmma_wait_group(kPending);
}

template <class T, int kGroups>
inline void pin(T (&)[kGroups][4]) {}

template <int kGroups>
inline void wgmma_m64k16_bf16(float (&d)[kGroups][4], uint64_t a, uint64_t b, bool add) {
  emulator::wgmma(d[0], kGroups * 8, emulator::Half::kBf16, nullptr, a, b, add);
}

template <int kGroups>
inline void wgmma_m64k16_f16(float (&d)[kGroups][4], uint64_t a, uint64_t b, bool add) {
  emulator::wgmma(d[0], kGroups * 8, emulator::Half::kF16, nullptr, a, b, add);
}

template <int kGroups>
inline void wgmma_m64k16_bf16(float (&d)[kGroups][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  emulator::wgmma(d[0], kGroups * 8, emulator::Half::kBf16, a, 0, b, add);
}

template <int kGroups>
inline void wgmma_m64k16_f16(float (&d)[kGroups][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  emulator::wgmma(d[0], kGroups * 8, emulator::Half::kF16, a, 0, b, add);
}

}  // namespace hyperkern::ptx
