// The launchers of pair_kernels.h: from run-time choices to one instance of a kernel.
#pragma once

#include "pair_kernels.h"

namespace hyperkern {

template <class Operand, Task kTask>
void launch_sums_task(const SumsArgs& args, const Matrix& x, const Matrix& y, bool wgmma, Stream stream) {
  const Pairs& pairs = args.pairs;
  const int blocks = pairs.batch * args.schedule.stripes * args.schedule.cuts;
  if constexpr (Operand::kBytes == 2) {
    if (wgmma) {
      using T = SumsWgmma;
      const int resident = resident_panels(pairs.dim * Operand::kBytes, kTask);
      const int cluster = T::cluster(resident);
      const TensorMap x_map =
          make_tensor_map<Operand>(x.data, x.batch, x.rows, pairs.dim, x.stride_b, x.stride_m, T::kRows / cluster);
      const TensorMap y_map =
          make_tensor_map<Operand>(y.data, y.batch, y.rows, pairs.dim, y.stride_b, y.stride_m, kSumsCols);
      const int stages = T::stages(resident), shared_bytes = T::shared_bytes(resident);
      if constexpr (!stores(kTask)) {
        if (resident > 0) {
          launch(
              sums_wgmma_kernel<Operand, kTask, true>, blocks, T::kThreads, shared_bytes, stream, args, x_map, y_map,
              stages);
          return;
        }
      }
      launch(
          sums_wgmma_kernel<Operand, kTask, false>, Grid(blocks, cluster), T::kThreads, shared_bytes, stream, args,
          x_map, y_map, stages);
      return;
    }
  }
  launch(sums_mma_kernel<Operand, kTask>, blocks, SumsMma::kThreads, SumsMma::kSharedBytes, stream, args, x, y);
}

template <class Operand>
void launch_sums(const SumsArgs& args, Task task, const Matrix& x, const Matrix& y, bool wgmma, Stream stream) {
  switch (task) {
    case Task::kSumExp: return launch_sums_task<Operand, Task::kSumExp>(args, x, y, wgmma, stream);
    case Task::kSumSoftplus: return launch_sums_task<Operand, Task::kSumSoftplus>(args, x, y, wgmma, stream);
    case Task::kSumRunning: return launch_sums_task<Operand, Task::kSumRunning>(args, x, y, wgmma, stream);
    case Task::kStoreExp: return launch_sums_task<Operand, Task::kStoreExp>(args, x, y, wgmma, stream);
    case Task::kStoreFactor: return launch_sums_task<Operand, Task::kStoreFactor>(args, x, y, wgmma, stream);
    case Task::kStoreTwo: return launch_sums_task<Operand, Task::kStoreTwo>(args, x, y, wgmma, stream);
    case Task::kStoreSoftplus: return launch_sums_task<Operand, Task::kStoreSoftplus>(args, x, y, wgmma, stream);
    case Task::kSumClasses: return launch_sums_task<Operand, Task::kSumClasses>(args, x, y, wgmma, stream);
    case Task::kStoreClasses: return launch_sums_task<Operand, Task::kStoreClasses>(args, x, y, wgmma, stream);
  }
}

template <class Operand, int kDim, Weight kWeight>
void launch_contract_case(const ContractArgs& args, const Matrix& x, const Matrix& y, bool wgmma, Stream stream) {
  const Pairs& pairs = args.pairs;
  const int blocks = args.grid;
  if constexpr (Operand::kBytes == 2) {
    if (wgmma) {
      using T = ContractWgmma<kDim, kWeight>;
      const TensorMap x_map =
          make_tensor_map<Operand>(x.data, x.batch, x.rows, pairs.dim, x.stride_b, x.stride_m, T::kRows);
      const TensorMap y_map =
          make_tensor_map<Operand>(y.data, y.batch, y.rows, pairs.dim, y.stride_b, y.stride_m, T::kCols);
      launch(
          contract_wgmma_kernel<Operand, kDim, kWeight>, blocks, T::kThreads, T::kSharedBytes, stream, args, x_map,
          y_map);
      return;
    }
  }
  constexpr int kPortable = portable_dim(kDim);
  using T = ContractMma<kPortable, Operand::kBytes>;
  launch(contract_mma_kernel<Operand, kPortable, kWeight>, blocks, T::kThreads, T::kSharedBytes, stream, args, x, y);
}

template <class Operand, Weight kWeight>
void launch_contract_weight(const ContractArgs& args, const Matrix& x, const Matrix& y, bool wgmma, Stream stream) {
  if (args.pairs.dim <= 64) return launch_contract_case<Operand, 64, kWeight>(args, x, y, wgmma, stream);
  if (args.pairs.dim <= 128) return launch_contract_case<Operand, 128, kWeight>(args, x, y, wgmma, stream);
  if (args.pairs.dim <= 192) return launch_contract_case<Operand, 192, kWeight>(args, x, y, wgmma, stream);
  return launch_contract_case<Operand, 256, kWeight>(args, x, y, wgmma, stream);
}

template <class Operand>
void launch_contract(
    const ContractArgs& args, Weight weight, const Matrix& x, const Matrix& y, bool wgmma, Stream stream) {
  switch (weight) {
    case Weight::kExp: return launch_contract_weight<Operand, Weight::kExp>(args, x, y, wgmma, stream);
    case Weight::kFactor: return launch_contract_weight<Operand, Weight::kFactor>(args, x, y, wgmma, stream);
    case Weight::kTwo: return launch_contract_weight<Operand, Weight::kTwo>(args, x, y, wgmma, stream);
    case Weight::kSoftplus: return launch_contract_weight<Operand, Weight::kSoftplus>(args, x, y, wgmma, stream);
    case Weight::kClasses: return launch_contract_weight<Operand, Weight::kClasses>(args, x, y, wgmma, stream);
  }
}

}  // namespace hyperkern
