// The pairwise kernels as the bindings see them. Each operand type is a translation unit of its own.
#pragma once

#include "contract_mma.cuh"
#include "contract_wgmma.cuh"
#include "launch.h"
#include "sums_mma.cuh"
#include "sums_wgmma.cuh"

namespace hyperkern {

// Rows and columns of a kernel's tile, and the groups of warps that keep column sums of their own; threads and dynamic
// shared memory of a block; buffers of its ring, for a tile each (contract) or for a panel of one (sums); blocks of a
// cluster.
struct TileSize {
  int rows, cols, groups;
  int threads, shared_bytes;
  int stages;
  int cluster = 1;
};

// `wgmma` chooses the kernels for sm_90a, for operands of two bytes. Rows have dim elements, a multiple of 16 bytes.
template <class Operand>
void launch_sums(const SumsArgs& args, Task task, const Matrix& x, const Matrix& y, bool wgmma, Stream stream);

// Rows of at most 256 elements.
template <class Operand>
void launch_contract(
    const ContractArgs& args, Weight weight, const Matrix& x, const Matrix& y, bool wgmma, Stream stream);

constexpr int kMostContractDim = 256;

// Only wgmma has a size between 128 and 256. It has whole panels: 160 would end with half of one, and that a right
// operand whose rows are contracted may do so is nothing that a test here could show.
constexpr int portable_dim(int dim) { return dim == 192 ? 256 : dim; }

// What pair_kernels.cuh launches with. Of the sums kernels the shared memory, the ring and the cluster depend on the
// rows and the task.
inline TileSize sums_tile(int row_bytes, Task task, bool wgmma) {
  if (wgmma) {
    using T = SumsWgmma;
    const int resident = resident_panels(row_bytes, task);
    return {T::kRows,
            kSumsCols,
            T::kConsumers,
            T::kThreads,
            T::shared_bytes(resident),
            T::stages(resident),
            T::cluster(resident)};
  }
  return {SumsMma::kRows, kSumsCols, SumsMma::kGroups, SumsMma::kThreads, SumsMma::kSharedBytes, SumsMma::kStages};
}

namespace detail {

template <class T>
TileSize contract_tile() {
  return {T::kRows, T::kCols, 1, T::kThreads, T::kSharedBytes, T::kStages};
}

template <int kDim>
TileSize contract_tile(int operand_bytes, Weight weight, bool wgmma) {
  if (wgmma) {
    switch (weight) {
      case Weight::kExp: return contract_tile<ContractWgmma<kDim, Weight::kExp>>();
      case Weight::kFactor: return contract_tile<ContractWgmma<kDim, Weight::kFactor>>();
      case Weight::kTwo: return contract_tile<ContractWgmma<kDim, Weight::kTwo>>();
      case Weight::kSoftplus: return contract_tile<ContractWgmma<kDim, Weight::kSoftplus>>();
      case Weight::kClasses: return contract_tile<ContractWgmma<kDim, Weight::kClasses>>();
    }
  }
  constexpr int kPortable = portable_dim(kDim);
  return operand_bytes == 2 ? contract_tile<ContractMma<kPortable, 2>>() : contract_tile<ContractMma<kPortable, 4>>();
}

}  // namespace detail

inline TileSize contract_tile(int operand_bytes, int dim, Weight weight, bool wgmma) {
  if (dim <= 64) return detail::contract_tile<64>(operand_bytes, weight, wgmma);
  if (dim <= 128) return detail::contract_tile<128>(operand_bytes, weight, wgmma);
  if (dim <= 192) return detail::contract_tile<192>(operand_bytes, weight, wgmma);
  return detail::contract_tile<256>(operand_bytes, weight, wgmma);
}

}  // namespace hyperkern
