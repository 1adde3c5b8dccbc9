// PTX instructions as functions of the same name, and nothing else. In the emulator they have host bodies.
#pragma once

#ifdef HYPERKERN_EMULATED
#include "emulator/ptx.h"
#else

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "layout.h"

#define HYPERKERN_DEVICE __device__ __forceinline__
#define HYPERKERN_KERNEL __global__

// wgmma, TMA and setmaxnreg are features of one architecture, which only its own name (sm_90a) unlocks.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HYPERKERN_SM90A 1
#else
#define HYPERKERN_SM90A 0
#endif

namespace hyperkern {

using TensorMap = CUtensorMap;

namespace ptx {

HYPERKERN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
HYPERKERN_DEVICE int block() { return static_cast<int>(blockIdx.x); }

// The whole dynamic shared memory of the block of threads.
HYPERKERN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

HYPERKERN_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- clusters of blocks of threads ---------------------------------------------------------------------------------

// Which block of its cluster this is.
HYPERKERN_DEVICE int cluster_ctarank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// The same place in the shared memory of a block of the cluster.
HYPERKERN_DEVICE uint32_t mapa(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Waits for all threads of the cluster that have not exited. What they did before is done.
HYPERKERN_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- arithmetic ---------------------------------------------------------------------------------------------------

// A product that is rounded before anything is added to it.
HYPERKERN_DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }

HYPERKERN_DEVICE int popc(uint32_t x) { return __popc(x); }

HYPERKERN_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

HYPERKERN_DEVICE float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger number, or nan where one is.
HYPERKERN_DEVICE float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

HYPERKERN_DEVICE uint32_t cvt_bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

HYPERKERN_DEVICE uint32_t cvt_f16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The low half of a register.
HYPERKERN_DEVICE float cvt_f32_f16(uint32_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<uint16_t>(half)));
  return x;
}

HYPERKERN_DEVICE uint32_t cvt_tf32(float x) {
  uint32_t y;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

HYPERKERN_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
HYPERKERN_DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }

// ---- lanes of a warp ----------------------------------------------------------------------------------------------

HYPERKERN_DEVICE float shfl_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
HYPERKERN_DEVICE uint32_t shfl_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
HYPERKERN_DEVICE void syncwarp() { __syncwarp(); }

// A number that all lanes agree on, told to the compiler, which then keeps what follows from it in uniform registers.
HYPERKERN_DEVICE int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// A number that the compiler knows nothing of: what follows from it is computed where it is needed, instead of once and
// kept in registers around a loop.
HYPERKERN_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

HYPERKERN_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

HYPERKERN_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

HYPERKERN_DEVICE float ld_shared(uint32_t address) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
  return x;
}

HYPERKERN_DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

HYPERKERN_DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

HYPERKERN_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- barriers -----------------------------------------------------------------------------------------------------

HYPERKERN_DEVICE void syncthreads() { __syncthreads(); }

// Named barriers: `threads` counts those that wait and those that only arrive.
HYPERKERN_DEVICE void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

HYPERKERN_DEVICE void bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

HYPERKERN_DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the TMA unit.
HYPERKERN_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

HYPERKERN_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

HYPERKERN_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// At a barrier of any block of the cluster, whose address is one of mapa. It hands over what asynchronous operations
// have read, of which their own wait is the proof: nothing that this thread wrote, for which all of its memory accesses
// would have to reach the other block first (release.cluster, four barriers of memory in SASS).
HYPERKERN_DEVICE void mbarrier_arrive_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

HYPERKERN_DEVICE void mbarrier_arrive_expect_tx_cluster(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of that parity.
HYPERKERN_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "waiting:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra waiting;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- global memory ------------------------------------------------------------------------------------------------

// Adds, and returns what was there before. What this thread has written is there for whoever reads behind a later one.
HYPERKERN_DEVICE uint32_t atom_add(uint32_t* to, uint32_t x) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(x) : "memory");
  return before;
}

HYPERKERN_DEVICE void red_add(float* to, float x) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(to), "f"(x) : "memory");
}

// ---- copies -------------------------------------------------------------------------------------------------------

// 16 bytes; zeros where not `valid`.
HYPERKERN_DEVICE void cp_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

HYPERKERN_DEVICE void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
HYPERKERN_DEVICE void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#if HYPERKERN_SM90A

// A box of a (batch, row, byte) tensor; zeros outside of it. Completes on the barrier.
HYPERKERN_DEVICE void cp_async_bulk_tensor(
    uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(batch)
      : "memory");
}

// The same for every block of the cluster whose bit is set in `ranks`: to the same place there, and completing on the
// barrier at the same place there.
HYPERKERN_DEVICE void cp_async_bulk_tensor_multicast(
    uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch, uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(batch), "h"(ranks)
      : "memory");
}

HYPERKERN_DEVICE void prefetch_tensormap(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

template <int kRegisters>
HYPERKERN_DEVICE void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
HYPERKERN_DEVICE void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- wgmma --------------------------------------------------------------------------------------------------------

HYPERKERN_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
HYPERKERN_DEVICE void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
HYPERKERN_DEVICE void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of registers across the issue or the wait of what reads or writes them.
template <int kGroups>
HYPERKERN_DEVICE void pin(float (&d)[kGroups][4]) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[group][e])::"memory");
  }
}

template <int kGroups>
HYPERKERN_DEVICE void pin(uint32_t (&a)[kGroups][4]) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(a[group][e])::"memory");
  }
}

#define HYPERKERN_REGISTERS_64                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HYPERKERN_REGISTERS_80                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39"
#define HYPERKERN_REGISTERS_96                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define HYPERKERN_REGISTERS_112                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55"
#define HYPERKERN_REGISTERS_128                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HYPERKERN_REGISTERS_192                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define HYPERKERN_REGISTERS_256                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define HYPERKERN_GROUP(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define HYPERKERN_GROUPS(i) HYPERKERN_GROUP(i), HYPERKERN_GROUP(i + 1), HYPERKERN_GROUP(i + 2), HYPERKERN_GROUP(i + 3)
#define HYPERKERN_GROUPS_64 HYPERKERN_GROUPS(0), HYPERKERN_GROUPS(4)
#define HYPERKERN_GROUPS_80 HYPERKERN_GROUPS_64, HYPERKERN_GROUP(8), HYPERKERN_GROUP(9)
#define HYPERKERN_GROUPS_96 HYPERKERN_GROUPS_64, HYPERKERN_GROUPS(8)
#define HYPERKERN_GROUPS_112 HYPERKERN_GROUPS_96, HYPERKERN_GROUP(12), HYPERKERN_GROUP(13)
#define HYPERKERN_GROUPS_128 HYPERKERN_GROUPS_96, HYPERKERN_GROUPS(12)
#define HYPERKERN_GROUPS_192 HYPERKERN_GROUPS_128, HYPERKERN_GROUPS(16), HYPERKERN_GROUPS(20)
#define HYPERKERN_GROUPS_256 HYPERKERN_GROUPS_192, HYPERKERN_GROUPS(24), HYPERKERN_GROUPS(28)

// d (64 x N) (+)= a b: both operands in shared memory with the contracted index running along a row.
// %P is the predicate that keeps d.
#define HYPERKERN_WGMMA_SS(N, TYPE, A, B, P)                                                                    \
  HYPERKERN_DEVICE void wgmma_m64k16_##TYPE(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add) {           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                                          \
                 ", 0;\n"                                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" HYPERKERN_REGISTERS_##N \
                 "}, " A ", " B ", p, 1, 1, 0, 0;\n}"                                                           \
                 : HYPERKERN_GROUPS_##N                                                                         \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add))                                                   \
                 : "memory");                                                                                   \
  }

// The left operand from registers, the right one in shared memory with the contracted index running over rows.
#define HYPERKERN_WGMMA_RS(N, TYPE, A, B, P)                                                                      \
  HYPERKERN_DEVICE void wgmma_m64k16_##TYPE(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                                            \
                 ", 0;\n"                                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" HYPERKERN_REGISTERS_##N   \
                 "}, {" A "}, " B ", p, 1, 1, 1;\n}"                                                              \
                 : HYPERKERN_GROUPS_##N                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add))                 \
                 : "memory");                                                                                     \
  }

HYPERKERN_WGMMA_SS(64, bf16, "%32", "%33", "%34")
HYPERKERN_WGMMA_SS(64, f16, "%32", "%33", "%34")
HYPERKERN_WGMMA_SS(80, bf16, "%40", "%41", "%42")
HYPERKERN_WGMMA_SS(96, bf16, "%48", "%49", "%50")
HYPERKERN_WGMMA_SS(80, f16, "%40", "%41", "%42")
HYPERKERN_WGMMA_SS(96, f16, "%48", "%49", "%50")
HYPERKERN_WGMMA_SS(112, bf16, "%56", "%57", "%58")
HYPERKERN_WGMMA_SS(112, f16, "%56", "%57", "%58")
HYPERKERN_WGMMA_SS(128, bf16, "%64", "%65", "%66")
HYPERKERN_WGMMA_SS(128, f16, "%64", "%65", "%66")
HYPERKERN_WGMMA_SS(256, bf16, "%128", "%129", "%130")
HYPERKERN_WGMMA_SS(256, f16, "%128", "%129", "%130")
HYPERKERN_WGMMA_RS(64, bf16, "%32, %33, %34, %35", "%36", "%37")
HYPERKERN_WGMMA_RS(64, f16, "%32, %33, %34, %35", "%36", "%37")
HYPERKERN_WGMMA_RS(128, bf16, "%64, %65, %66, %67", "%68", "%69")
HYPERKERN_WGMMA_RS(128, f16, "%64, %65, %66, %67", "%68", "%69")
HYPERKERN_WGMMA_RS(192, bf16, "%96, %97, %98, %99", "%100", "%101")
HYPERKERN_WGMMA_RS(192, f16, "%96, %97, %98, %99", "%100", "%101")
HYPERKERN_WGMMA_RS(256, bf16, "%128, %129, %130, %131", "%132", "%133")
HYPERKERN_WGMMA_RS(256, f16, "%128, %129, %130, %131", "%132", "%133")

#undef HYPERKERN_WGMMA_SS
#undef HYPERKERN_WGMMA_RS

#endif  // HYPERKERN_SM90A

}  // namespace ptx
}  // namespace hyperkern

#endif  // HYPERKERN_EMULATED
