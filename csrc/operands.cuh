// The kinds of operands: how they lie in memory and how two of them are multiplied. `kRoundedSums`: whether sums of
// products are to be as accurate as rounding to nearest makes them, which tensor cores do not do.
#pragma once

#include "ptx.cuh"

namespace hyperkern {

// One product step covers 32 bytes of every row: 16 halves or 8 floats.
constexpr int kStepBytes = 32;

// Whether the portable kernels are compiled for this architecture: on sm_90a those of two bytes have others.
#if HYPERKERN_SM90A && !defined(HYPERKERN_EMULATED)
template <class Operand>
constexpr bool kHasPortable = Operand::kBytes > 2;
#else
template <class Operand>
constexpr bool kHasPortable = true;
#endif

// A left operand of mma.sync.
struct LeftBits {
  uint32_t bits[4];
};

// Both halves in one register: elements 2 t and 2 t + 1 of a row.
struct Bf16 {
  static constexpr int kBytes = 2;
  static constexpr bool kRoundedSums = false;
  static constexpr int kUnrolledSteps = 4;
  static constexpr bool kLog2Units = true;
  static HYPERKERN_DEVICE uint32_t pack(float low, float high) { return ptx::cvt_bf16x2(low, high); }
  using Left = LeftBits;
  static HYPERKERN_DEVICE Left left(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3) { return {{a0, a1, a2, a3}}; }
  static HYPERKERN_DEVICE void multiply(float (&d)[4], const Left& a, uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k16_bf16(d, a.bits, b0, b1);
  }
#if HYPERKERN_SM90A
  template <class... Args>
  static HYPERKERN_DEVICE void multiply_async(Args&&... args) {
    ptx::wgmma_m64k16_bf16(args...);
  }
#endif
};

struct Fp16 {
  static constexpr int kBytes = 2;
  static constexpr bool kRoundedSums = false;
  static constexpr int kUnrolledSteps = 4;
  static constexpr bool kLog2Units = true;
  static HYPERKERN_DEVICE uint32_t pack(float low, float high) { return ptx::cvt_f16x2(low, high); }
  using Left = LeftBits;
  static HYPERKERN_DEVICE Left left(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3) { return {{a0, a1, a2, a3}}; }
  static HYPERKERN_DEVICE void multiply(float (&d)[4], const Left& a, uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k16_f16(d, a.bits, b0, b1);
  }
#if HYPERKERN_SM90A
  template <class... Args>
  static HYPERKERN_DEVICE void multiply_async(Args&&... args) {
    ptx::wgmma_m64k16_f16(args...);
  }
#endif
};

// float32 in memory, rounded to tf32 on the way to the product.
struct Tf32 {
  static constexpr int kBytes = 4;
  static constexpr bool kRoundedSums = false;
  static constexpr int kUnrolledSteps = 4;
  static constexpr bool kLog2Units = true;
  using Left = LeftBits;
  static HYPERKERN_DEVICE Left left(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3) {
    return {{round(a0), round(a1), round(a2), round(a3)}};
  }
  static HYPERKERN_DEVICE void multiply(float (&d)[4], const Left& a, uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k8_tf32(d, a.bits, round(b0), round(b1));
  }

 private:
  static HYPERKERN_DEVICE uint32_t round(uint32_t bits) { return ptx::cvt_tf32(ptx::as_float(bits)); }
};

// float32 with nearly all of its digits: each operand is a tf32 number and a rest, and of the four products only that
// of the rests is left out. The small ones are added first.
struct Fp32 {
  static constexpr int kBytes = 4;
  static constexpr bool kRoundedSums = true;
  static constexpr int kUnrolledSteps = 1;  // three products a step: more in flight than there are registers
  static constexpr bool kLog2Units = false;
  struct Left {
    uint32_t high[4], rest[4];
  };
  static HYPERKERN_DEVICE Left left(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3) {
    Left a;
    split(a0, a.high[0], a.rest[0]);
    split(a1, a.high[1], a.rest[1]);
    split(a2, a.high[2], a.rest[2]);
    split(a3, a.high[3], a.rest[3]);
    return a;
  }
  static HYPERKERN_DEVICE void multiply(float (&d)[4], const Left& a, uint32_t b0, uint32_t b1) {
    uint32_t b_high[2], b_rest[2];
    split(b0, b_high[0], b_rest[0]);
    split(b1, b_high[1], b_rest[1]);
    ptx::mma_m16n8k8_tf32(d, a.rest, b_high[0], b_high[1]);
    ptx::mma_m16n8k8_tf32(d, a.high, b_rest[0], b_rest[1]);
    ptx::mma_m16n8k8_tf32(d, a.high, b_high[0], b_high[1]);
  }
  // The same from zero, to the last bit the transpose of what it is with a and b exchanged: neither of the small
  // products is rounded with the other one in it, and one sum joins them.
  static HYPERKERN_DEVICE void multiply_alike(float (&d)[4], const Left& a, uint32_t b0, uint32_t b1) {
    uint32_t b_high[2], b_rest[2];
    split(b0, b_high[0], b_rest[0]);
    split(b1, b_high[1], b_rest[1]);
    float other[4] = {};
    for (float& e : d) e = 0.0f;
    ptx::mma_m16n8k8_tf32(d, a.rest, b_high[0], b_high[1]);
    ptx::mma_m16n8k8_tf32(other, a.high, b_rest[0], b_rest[1]);
#pragma unroll
    for (int e = 0; e < 4; ++e) d[e] += other[e];
    ptx::mma_m16n8k8_tf32(d, a.high, b_high[0], b_high[1]);
  }

 private:
  static HYPERKERN_DEVICE void split(uint32_t bits, uint32_t& high, uint32_t& rest) {
    high = ptx::cvt_tf32(ptx::as_float(bits));
    rest = ptx::cvt_tf32(ptx::as_float(bits) - ptx::as_float(high));
  }
};

}  // namespace hyperkern
