// Two kernels with the same products: of one the compiler waits for each of them, because their sums are read before
// the wait that the code asks for.
#include <cstdint>

struct Sums {
  float d[4] = {};
};

__device__ __forceinline__ void multiply(Sums& s, uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, 1, 1, 1, 0, 0;"
               : "+f"(s.d[0]), "+f"(s.d[1]), "+f"(s.d[2]), "+f"(s.d[3])
               : "l"(a), "l"(b));
}

template <bool kSerialised>
__device__ __forceinline__ void run(float* out, uint64_t a, uint64_t b, int n) {
  Sums s, seen;
  for (int i = 0; i < n; ++i) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int step = 0; step < 3; ++step) multiply(s, a + 2 * step, b + 2 * step);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (kSerialised) {
      for (int e = 0; e < 4; ++e) seen.d[e] += s.d[e];
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" : "+f"(s.d[0]), "+f"(s.d[1]), "+f"(s.d[2]), "+f"(s.d[3])::"memory");
    for (int e = 0; e < 4; ++e) seen.d[e] += exp2f(s.d[e]);
  }
  for (int e = 0; e < 4; ++e) out[threadIdx.x * 4 + e] = s.d[e] + seen.d[e];
}

extern "C" __global__ void asynchronous(float* out, uint64_t a, uint64_t b, int n) { run<false>(out, a, b, n); }
extern "C" __global__ void serialised(float* out, uint64_t a, uint64_t b, int n) { run<true>(out, a, b, n); }
