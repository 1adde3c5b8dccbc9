// Starting a kernel, and what the TMA unit is told about a tensor: on the GPU or in the emulator.
#pragma once

#include <stdexcept>
#include <string>

#include "operands.cuh"

#ifndef HYPERKERN_EMULATED
#include <cudaTypedefs.h>
#endif

namespace hyperkern {

// Blocks of threads, so many in each cluster.
struct Grid {
  int blocks, cluster;

  Grid(int blocks, int cluster = 1) : blocks(blocks), cluster(cluster) {}
};

#ifdef HYPERKERN_EMULATED

using Stream = void*;

// Whether anything is launched; if not, what is left is the host's part.
inline bool emulated_launches = true;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), Grid grid, int threads, size_t shared_bytes, Stream, const Args&... args) {
  if (!emulated_launches) return;
  emulator::run(grid.blocks, threads, shared_bytes, [&] { kernel(args...); }, grid.cluster);
}

// (batch, rows, columns) with strides in bytes; boxes of `box_rows` rows and 128 bytes.
template <class Operand>
TensorMap make_tensor_map(
    const void* data, int batch, int rows, int columns, int64_t stride_b, int64_t stride_m, int box_rows) {
  return {
      static_cast<const unsigned char*>(data),
      {columns, rows, batch},
      {stride_m, stride_b},
      {kPanelBytes / Operand::kBytes, box_rows},
      Operand::kBytes};
}

#else

using Stream = cudaStream_t;

// Throws what is not success. The runtime remembers it too, and would tell whoever asks it next: that is taken back.
inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), Grid grid, int threads, size_t shared_bytes, Stream stream, Args... args) {
  if (shared_bytes > (48 << 10)) {
    check_cuda(
        cudaFuncSetAttribute(
            reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
            static_cast<int>(shared_bytes)),
        "setting a kernel's shared memory failed");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;  // no other architecture than sm_90 knows them
  // It returns its error: cudaGetLastError would also return one that somebody else has left.
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "launching a kernel failed");
}

namespace detail {

// The driver is not linked to: it is found through the runtime, and only where a TMA kernel is launched.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check_cuda(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "looking for cuTensorMapEncodeTiled failed");
    if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

template <class Operand>
constexpr CUtensorMapDataType kDataType = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
template <>
inline constexpr CUtensorMapDataType kDataType<Bf16> = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
template <>
inline constexpr CUtensorMapDataType kDataType<Fp16> = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;

}  // namespace detail

// (batch, rows, columns) with strides in bytes; boxes of `box_rows` rows and 128 bytes.
template <class Operand>
TensorMap make_tensor_map(
    const void* data, int batch, int rows, int columns, int64_t stride_b, int64_t stride_m, int box_rows) {
  TensorMap map;
  const cuuint64_t sizes[3] = {
      static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride_m), static_cast<cuuint64_t>(stride_b)};
  const cuuint32_t box[3] = {kPanelBytes / Operand::kBytes, static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult status = detail::tensor_map_encoder()(
      &map, detail::kDataType<Operand>, 3, const_cast<void*>(data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled failed with error " + std::to_string(static_cast<int>(status)));
  }
  return map;
}

#endif

// The most dynamic shared memory of a block of threads: 99 KB on the smallest architecture that is served (8.6), 227 KB
// on sm_90.
constexpr int kSharedBytesPortable = 99 << 10;
constexpr int kSharedBytesSm90 = 227 << 10;

}  // namespace hyperkern
