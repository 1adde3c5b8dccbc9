// The pairwise kernels as the bindings see them. Each operand type is a translation unit of its own.
#pragma once

#include "contract_mma.cuh"
#include "contract_wgmma.cuh"
#include "launch.h"
#include "sums_mma.cuh"
#include "sums_wgmma.cuh"

namespace hyperkern {

// Rows and columns of a kernel's tile, and the groups of warps that keep column sums of their own.
struct TileSize {
  int rows, cols, groups;
};

// `wgmma` chooses the kernels for sm_90a, for operands of two bytes. Rows have dim elements, a multiple of 16 bytes.
template <class Operand>
void launch_sums(const SumsArgs& args, Task task, const Matrix& x, const Matrix& y, bool wgmma, Stream stream);

// Rows of at most 256 elements.
template <class Operand>
void launch_contract(const ContractArgs& args, Weight weight, const Matrix& x, const Matrix& y, bool wgmma, Stream stream);

constexpr int kMostContractDim = 256;

// The pairs of tile sizes that pair_kernels.cuh launches with.
inline TileSize sums_tile(bool wgmma) {
  if (wgmma) return {SumsWgmma::kRows, kSumsCols, SumsWgmma::kConsumers};
  return {SumsMma::kRows, kSumsCols, SumsMma::kGroups};
}

namespace detail {

template <int kDim>
TileSize contract_tile(int operand_bytes, Weight weight, bool wgmma) {
  if (wgmma) {
    switch (weight) {
      case Weight::kExp: return {ContractWgmma<kDim, Weight::kExp>::kRows, ContractWgmma<kDim, Weight::kExp>::kCols, 1};
      case Weight::kTwo: return {ContractWgmma<kDim, Weight::kTwo>::kRows, ContractWgmma<kDim, Weight::kTwo>::kCols, 1};
      default:
        return {ContractWgmma<kDim, Weight::kFactor>::kRows, ContractWgmma<kDim, Weight::kFactor>::kCols, 1};
    }
  }
  if (operand_bytes == 2) return {ContractMma<kDim * 2>::kRows, ContractMma<kDim * 2>::kCols, 1};
  return {ContractMma<kDim * 4>::kRows, ContractMma<kDim * 4>::kCols, 1};
}

}  // namespace detail

inline TileSize contract_tile(int operand_bytes, int dim, Weight weight, bool wgmma) {
  if (dim <= 64) return detail::contract_tile<64>(operand_bytes, weight, wgmma);
  if (dim <= 128) return detail::contract_tile<128>(operand_bytes, weight, wgmma);
  return detail::contract_tile<256>(operand_bytes, weight, wgmma);
}

}  // namespace hyperkern
