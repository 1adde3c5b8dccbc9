// What every operator asks of its arguments, and where it runs. Stable ABI of PyTorch 2.10.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "launch.h"

#ifndef HYPERKERN_EMULATED
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#endif

namespace hyperkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- architectures ------------------------------------------------------------------------------------------------

#ifndef HYPERKERN_ARCHITECTURES  // the emulator is both
#define HYPERKERN_ARCHITECTURES _801_902
#endif

#define HYPERKERN_TEXT_OF(name) #name
#define HYPERKERN_TEXT(name) HYPERKERN_TEXT_OF(name)

// What the library was built for: numbers after underscores, ten times that of an architecture, + 1 for its PTX, + 2
// for its features.
constexpr const char* kArchitectures = HYPERKERN_TEXT(HYPERKERN_ARCHITECTURES);

// Whether one of them satisfies `serves(number of an architecture, what is added)`.
template <class Predicate>
constexpr bool any_architecture(const Predicate& serves) {
  for (const char* at = kArchitectures; *at != 0;) {
    int code = 0;
    for (++at; *at != 0 && *at != '_'; ++at) code = 10 * code + (*at - '0');
    if (serves(code / 10, code % 10)) return true;
  }
  return false;
}

// Whether there is code for a compute capability, 90 for 9.0.
constexpr bool has_code_for(int capability) {
  return any_architecture([=](int number, int kind) {
    if (kind == 2) return number == capability;
    return number <= capability && (kind == 1 || number / 10 == capability / 10);
  });
}

constexpr bool kBuiltForSm90a = any_architecture([](int number, int kind) { return number == 90 && kind == 2; });

// ---- device -------------------------------------------------------------------------------------------------------

#ifdef HYPERKERN_EMULATED

constexpr bool kOnCuda = false;

// What the emulator is to be: the portable kernels (80) or those of sm_90a (90).
inline int emulated_capability = 90;

struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
};

inline Stream current_stream(const Tensor&) { return nullptr; }

inline bool has_wgmma(const Tensor&) { return emulated_capability == 90; }

#else

constexpr bool kOnCuda = true;

struct DeviceGuard {
  torch::stable::accelerator::DeviceGuard guard;
  explicit DeviceGuard(const Tensor& x) : guard(x.get_device_index()) {}
};

inline Stream current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}

// Whether the kernels for sm_90a are compiled in and run on the device.
inline bool has_wgmma(const Tensor& x) {
  if (!kBuiltForSm90a) return false;
  constexpr int kMostDevices = 64;
  static int major[kMostDevices] = {};
  const int device = x.get_device_index();
  if (device >= kMostDevices) throw std::runtime_error("more than 64 devices are not served");
  if (major[device] == 0) {
    check_cuda(
        cudaDeviceGetAttribute(&major[device], cudaDevAttrComputeCapabilityMajor, device),
        "asking for the compute capability failed");
  }
  return major[device] == 9;
}

#endif

// ---- checks -------------------------------------------------------------------------------------------------------

// Throws with the parts in one message, which PyTorch raises as a RuntimeError.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// A macro, so that a message is only made where it is needed.
#define HYPERKERN_REQUIRE(condition, ...) \
  do {                                    \
    if (!(condition)) fail(__VA_ARGS__);  \
  } while (false)

inline const char* name_of(ScalarType type) { return torch::headeronly::toString(type); }

inline std::string shape_of(const Tensor& x) {
  std::string text = "(";
  for (int64_t i = 0; i < x.dim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(x.size(i));
  return text + ")";
}

inline void check_device(const Tensor& x, const char* name) {
  if (kOnCuda) {
    HYPERKERN_REQUIRE(x.is_cuda(), name, " must be on a CUDA device, but it is on the CPU");
  } else {
    HYPERKERN_REQUIRE(x.is_cpu(), name, " must be on the CPU: this is the emulator");
  }
}

inline void check_same_device(const Tensor& x, const char* name, const Tensor& as) {
  check_device(x, name);
  HYPERKERN_REQUIRE(
      x.get_device_index() == as.get_device_index(), name, " is on device ", x.get_device_index(), ", x on device ",
      as.get_device_index());
}

inline void check_type(const Tensor& x, const char* name, ScalarType type) {
  HYPERKERN_REQUIRE(x.scalar_type() == type, name, " must be ", name_of(type), ", got ", name_of(x.scalar_type()));
}

template <class... Sizes>
inline void check_shape(const Tensor& x, const char* name, Sizes... sizes) {
  const int64_t wanted[] = {static_cast<int64_t>(sizes)...};
  bool same = x.dim() == static_cast<int64_t>(sizeof...(sizes));
  for (size_t i = 0; i < sizeof...(sizes) && same; ++i) same = x.size(static_cast<int64_t>(i)) == wanted[i];
  if (same) return;
  std::string text;
  for (size_t i = 0; i < sizeof...(sizes); ++i) text += (i == 0 ? "" : ", ") + std::to_string(wanted[i]);
  fail(name, " must have shape (", text, "), got ", shape_of(x));
}

// A result: float32, contiguous, and as long as the kernel will write.
template <class... Sizes>
float* result(const Tensor& x, const char* name, const Tensor& as, Sizes... sizes) {
  check_same_device(x, name, as);
  check_type(x, name, ScalarType::Float);
  check_shape(x, name, sizes...);
  HYPERKERN_REQUIRE(x.is_contiguous(), name, " must be contiguous");
  return static_cast<float*>(x.mutable_data_ptr());
}

inline int to_int(int64_t value, const char* name) {
  HYPERKERN_REQUIRE(value >= 0 && value <= INT32_MAX, name, " must be between 0 and 2^31 - 1, got ", value);
  return static_cast<int>(value);
}

}  // namespace hyperkern
