// Prints what wgmma is told about the tiles of both products: a line for each instruction, in the order of their issue.
#include "../../csrc/wgmma_tile.cuh"

#include <cinttypes>
#include <cstdio>
#include <utility>
#include <vector>

using namespace hyperkern;

std::vector<std::pair<uint64_t, uint64_t>> issued;

// Instead of an operand that multiplies.
struct Recorder {
  template <int kGroups>
  static void multiply_async(float (&)[kGroups][4], uint64_t a, uint64_t b, bool) {
    issued.emplace_back(a, b);
  }

  template <int kGroups>
  static void multiply_async(float (&)[kGroups][4], const uint32_t (&)[4], uint64_t b, bool) {
    issued.emplace_back(0, b);
  }
};

// 64 rows of x and kCols of y, of kDim elements of two bytes, both from an address on.
template <int kDim, int kCols>
std::vector<std::pair<uint64_t, uint64_t>> products(uint32_t address) {
  static float s[kCols / 8][4], g[kDim / 8][4];
  static const uint32_t packed[kCols / 16][4] = {};
  issued.clear();
  for (int byte = 0; byte < kDim * 2; byte += kPanelBytes) {
    multiply_rows_async<Recorder>(
        s, piece_at(address + swizzled(64, 0, byte)), piece_at(address + swizzled(kCols, 0, byte)), byte > 0);
  }
  multiply_weights_async<Recorder>(g, packed, piece_at(address), true);
  return issued;
}

template <int kDim, int kCols>
bool print() {
  const auto here = products<kDim, kCols>(0);
  for (const auto& [a, b] : here) std::printf("%d %d %" PRIu64 " %" PRIu64 "\n", kDim, kCols, a, b);
  // Wherever in a cluster the block of threads is.
  return here == products<kDim, kCols>(5u << 24);
}

int main() { return print<128, 64>() && print<128, 128>() && print<256, 64>() ? 0 : 1; }
