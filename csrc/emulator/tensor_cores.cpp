// Products: wgmma, mma.sync, and the numbers that they take.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "state.h"

namespace hyperkern::emulator {
namespace {

Warpgroup& warpgroup() { return machine.warpgroups[machine.current / kGroupThreads]; }

// Tensor cores round what they accumulate towards zero: see Fasi et al., "Numerical behavior of NVIDIA tensor cores",
// PeerJ Computer Science, 2021. The products of one instruction are taken as exact.
float toward_zero(double x) {
  auto rounded = static_cast<float>(x);
  if (std::fabs(static_cast<double>(rounded)) > std::fabs(x)) {
    uint32_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    --bits;
    std::memcpy(&rounded, &bits, sizeof bits);
  }
  return rounded;
}

// Where a matrix descriptor puts an element: `line` counts along the 8-row groups' rows, `k` is the contracted index.
float element(uint64_t descriptor, int line, int k, bool transposed, Half type) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  uint32_t offset;
  if (transposed) {
    offset = line / 64 * leading + line % 64 * 2 + k / 8 * stride + k % 8 * 128;
  } else {
    offset = line / 8 * stride + line % 8 * 128 + k * 2;
  }
  uint16_t bits;
  std::memcpy(&bits, own_at(swizzle_128b(start + offset), 2), 2);
  return widen(bits, type);
}

// A start has 14 bits, and the two behind them stay empty: an address of a cluster has its rank there.
void check_descriptor(uint64_t descriptor) {
  require(descriptor >> 62 == 1, "only the 128-byte swizzle is known");
  require((descriptor & 0xc000) == 0, "a matrix descriptor has no room for the rank of a block");
}

// The 16 rows of a warp.
void perform(Product& product, int warp) {
  constexpr int kM = 16, kK = 16, kN = 8;  // columns at a time: a number that the compiler knows makes vectors of them
  const int n = product.n;
  static double a[kM][kK];
  Product::Part* parts = product.parts + warp * kLanes;
  check_descriptor(product.b);
  if (!product.transposed) check_descriptor(product.a);
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      if (product.transposed) {
        // Lane 4 g + t holds rows g and g + 8, and of each the columns 2 t, 2 t + 1 and those + 8.
        const int lane = m % 8 * 4 + k % 8 / 2, reg = m / 8 + k / 8 * 2;
        const uint32_t pair = parts[lane].registers[reg];
        a[m][k] = widen(static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16), product.type);
      } else {
        a[m][k] = element(product.a, warp * kM + m, k, false, product.type);
      }
    }
  }
  if (product.columns.empty() || product.copies != machine.copied) {
    product.columns.resize(n * kK);
    product.copies = machine.copied;
    for (int j = 0; j < n; ++j) {
      double* column = product.columns.data() + j / kN * (kK * kN) + j % kN;
      for (int k = 0; k < kK; ++k) column[k * kN] = element(product.b, j, k, product.transposed, product.type);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::vector<float>& initial = parts[lane].initial;
    if (!initial.empty()) std::memcpy(parts[lane].d, initial.data(), initial.size() * sizeof(float));
  }
  for (int m = 0; m < kM; ++m) {
    for (int group = 0; group < n / kN; ++group) {
      const double* b = product.columns.data() + group * (kK * kN);
      double sum[kN] = {};
      for (int k = 0; k < kK; ++k) {
        for (int j = 0; j < kN; ++j) sum[j] += a[m][k] * b[k * kN + j];
      }
      for (int j = 0; j < kN; ++j) {
        float& d = parts[m % 8 * 4 + j / 2].d[group * 4 + m / 8 * 2 + j % 2];
        d = toward_zero(product.add ? d + sum[j] : sum[j]);
      }
    }
  }
}

struct Tf32 {
  static constexpr int kPerWord = 1;
  // The hardware ignores the last 13 bits.
  static float element(uint32_t word, int) {
    word &= 0xffffe000;
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
  }
};

template <Half kType>
struct Halves {
  static constexpr int kPerWord = 2;
  static float element(uint32_t word, int i) { return widen(static_cast<uint16_t>(word >> 16 * i), kType); }
};
using Bf16 = Halves<Half::kBf16>;
using F16 = Halves<Half::kF16>;

// What a lane holds of d (16 x 8), a (16 x k) and b (k x 8).
struct Fragment {
  float d[4];
  uint32_t a[4], b[2];
};

// d += a b for a warp. Lane 4 g + t holds, of rows g and g + 8 of a and of column g of b, words t and t + 4; of d the
// columns 2 t and 2 t + 1 of the rows g and g + 8.
template <class Type>
void multiply(void* fragments) {
  constexpr int kM = 16, kN = 8, kK = 8 * Type::kPerWord;
  auto* lanes = static_cast<Fragment*>(fragments);
  double a[kM][kK], b[kK][kN], sum[kM][kN];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < Type::kPerWord; ++i) {
        const int k = (half * 4 + t) * Type::kPerWord + i;
        b[k][g] = Type::element(lanes[lane].b[half], i);
        for (int high = 0; high < 2; ++high) a[high * 8 + g][k] = Type::element(lanes[lane].a[half * 2 + high], i);
      }
    }
    for (int e = 0; e < 4; ++e) sum[e / 2 * 8 + g][2 * t + e % 2] = lanes[lane].d[e];
  }
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < kN; ++n) sum[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int e = 0; e < 4; ++e) lanes[lane].d[e] = toward_zero(sum[e / 2 * 8 + lane / 4][2 * (lane % 4) + e % 2]);
  }
}

// What a warp has not done yet of the products before number `upto`.
void perform_products(Warpgroup& group, uint64_t upto, int warp) {
  for (uint64_t i = group.first; i < upto; ++i) {
    Product& product = group.products[i - group.first];
    if (product.done[warp]) continue;
    perform(product, warp);
    product.done[warp] = true;
  }
  const auto everywhere = [](const Product& product) {
    return std::all_of(std::begin(product.done), std::end(product.done), [](bool done) { return done; });
  };
  while (!group.products.empty() && everywhere(group.products.front())) {
    group.products.pop_front();
    ++group.first;
  }
}

}  // namespace

void wgmma(float* d, int n, Half type, const uint32_t* registers, uint64_t a, uint64_t b, bool add) {
  Warpgroup& group = warpgroup();
  Thread& thread = machine.threads[machine.current];
  require(thread.fenced, "wgmma without a fence behind what its registers held");
  const uint64_t index = thread.issued++ - group.first;
  if (index == group.products.size()) group.products.emplace_back();
  Product& product = group.products[index];
  if (product.issued == 0) {
    product.n = n;
    product.type = type;
    product.a = a;
    product.b = b;
    product.add = add;
    product.transposed = registers != nullptr;
  }
  require(
      product.n == n && product.a == a && product.b == b && product.add == add,
      "threads of a warpgroup disagree about a product");
  const int lane = machine.current % kGroupThreads;
  Product::Part& part = product.parts[lane];
  part.d = d;
  part.registers = registers;
  bool pending = false;
  for (uint64_t i = 0; i < index; ++i) {
    const Product& earlier = group.products[i];
    pending = pending || (!earlier.done[lane / kLanes] && earlier.parts[lane].d == d);
  }
  if (!pending) {
    part.initial.assign(d, d + n / 2);
    // Until the wait nobody may look at them.
    for (int i = 0; i < n / 2; ++i) d[i] = std::numeric_limits<float>::quiet_NaN();
  }
  if (++product.issued == kGroupThreads) {
    ++group.complete;
    for (int warp = 0; timing == Timing::kProductsFirst && warp < kGroupThreads / kLanes; ++warp) {
      perform_products(group, group.complete, warp);
    }
  }
}

void wgmma_fence() { machine.threads[machine.current].fenced = true; }

void wgmma_commit_group() {
  Thread& thread = machine.threads[machine.current];
  thread.committed.push_back(thread.issued);
}

void wgmma_wait_group(int pending) {
  Thread& thread = machine.threads[machine.current];
  if (pending == 0) thread.fenced = false;
  const int done = static_cast<int>(thread.committed.size()) - pending;
  if (done <= 0) return;
  Warpgroup& group = warpgroup();
  const uint64_t upto = thread.committed[done - 1];
  while (group.complete < upto) wait_while(&group.complete, group.complete, "the other warps of its warpgroup");
  perform_products(group, upto, machine.current % kGroupThreads / kLanes);
}

void mma_m16n8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Half* type) {
  const Fragment mine{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto combine = type == nullptr ? multiply<Tf32> : *type == Half::kBf16 ? multiply<Bf16> : multiply<F16>;
  const auto* all = static_cast<const Fragment*>(exchange(&mine, sizeof mine, combine));
  std::memcpy(d, all[machine.current % kLanes].d, sizeof d);
}

float widen(uint16_t bits, Half type) {
  if (type == Half::kF16) {
    _Float16 x;
    std::memcpy(&x, &bits, sizeof x);
    return static_cast<float>(x);
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

uint16_t narrow(float x, Half type) {
  uint16_t bits;
  if (type == Half::kF16) {
    const auto half = static_cast<_Float16>(x);
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
  }
  if (std::isnan(x)) return 0x7fff;
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  return static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

}  // namespace hyperkern::emulator
