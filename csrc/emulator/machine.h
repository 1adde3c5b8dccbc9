// A block of threads on the CPU, or a cluster of them: every thread is a fiber, run until it waits. What the hardware
// leaves open, the machine decides in the worst way: see `Timing`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace hyperkern {

// What the TMA unit is told about a tensor: (batch, row, element), the box it copies, 128-byte swizzle.
struct TensorMap {
  const unsigned char* base;
  int64_t sizes[3];    // elements, rows, batches
  int64_t strides[2];  // bytes between rows, between batches
  int box[2];          // elements, rows
  int element_bytes;
};

namespace emulator {

// When asynchronous operations take effect.
enum class Timing {
  kCopiesFirst,    // copies at once, products as late as their wait: finds buffers that are overwritten while in use
  kProductsFirst,  // products at once, copies as late as possible and in any order, as are warps: finds reads of what
                   // has not arrived
};

void set_timing(Timing timing);

// Runs `blocks` blocks of `threads` threads, one cluster of `cluster` blocks after the other. Throws std::runtime_error
// for a deadlock and for what the hardware forbids. Shared memory starts as NaN.
void run(int blocks, int threads, size_t shared_bytes, const std::function<void()>& body, int cluster = 1);

int thread();
int block();
unsigned char* shared_memory();
uint32_t shared_address(const void* pointer);
const unsigned char* shared_at(uint32_t address);

// Of a cluster: which of its blocks this one is; the same place in the shared memory of another one; a barrier for all
// threads that have not exited.
int cluster_rank();
uint32_t mapa(uint32_t address, int rank);
void cluster_sync();

// Lanes of a warp hand in `size` bytes each and get those of all 32, in the order of lanes; `combine` may change them
// first.
const void* exchange(const void* value, size_t size, void (*combine)(void* all) = nullptr);

void bar_sync(int id, int threads);
void bar_arrive(int id, int threads);

void mbarrier_init(uint32_t barrier, int arrivals);
void mbarrier_arrive(uint32_t barrier, uint32_t bytes);
void mbarrier_arrive_cluster(uint32_t barrier, uint32_t bytes);  // in any block of the cluster
void mbarrier_wait(uint32_t barrier, uint32_t parity);

// The other warps run as far as they can before this one goes on. Behind an arrival, which may be what they wait for: a
// warp that gives a buffer away too early then finds in it what comes next.
void let_others_run();

void cp_async(uint32_t to, const void* from, bool valid);
void cp_async_commit_group();
void cp_async_wait_group(int pending);
void cp_async_bulk_tensor(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch);
// To the same place of every block whose bit is set, and on the barrier at the same place there.
void cp_async_bulk_tensor_multicast(
    uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch, uint16_t ranks);

enum class Half { kBf16, kF16 };

// One thread's part of d (64 x n) (+)= a b with k = 16: `registers` holds its part of the left operand, else `a`
// describes it. Descriptors as the hardware reads them; with registers the right operand is transposed.
void wgmma(float* d, int n, Half type, const uint32_t* registers, uint64_t a, uint64_t b, bool add);
void wgmma_fence();
void wgmma_commit_group();
void wgmma_wait_group(int pending);

// d (16 x 8) += a b for the lanes of a warp; k = 16 for halves, 8 for tf32 (`type` null).
void mma_m16n8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Half* type);

float widen(uint16_t bits, Half type);
uint16_t narrow(float x, Half type);

}  // namespace emulator
}  // namespace hyperkern
