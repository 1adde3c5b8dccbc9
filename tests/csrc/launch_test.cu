// That what fails in csrc/launch.h leaves nothing in the CUDA runtime, for the next good launch to raise. The functions
// of the runtime are those below, so that anything can fail, on any machine.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <functional>

// What each function answers. An error is kept until somebody asks for it, as in the real runtime.
namespace fake {

cudaError_t of_attribute = cudaSuccess, of_launch = cudaSuccess, of_lookup = cudaSuccess, kept = cudaSuccess;
int launches = 0;
unsigned cluster = 0;  // of the last one; 0 where none was asked for

cudaError_t answer(cudaError_t status) {
  if (status != cudaSuccess) kept = status;
  return status;
}

cudaError_t set_attribute(const void*, cudaFuncAttribute, int) { return answer(of_attribute); }

template <class... Args>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, Args...) {
  ++launches;
  cluster = config->numAttrs == 1 && config->attrs[0].id == cudaLaunchAttributeClusterDimension
                ? config->attrs[0].val.clusterDim.x
                : 0;
  return answer(of_launch);
}

cudaError_t entry_point(const char*, void**, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* found) {
  *found = cudaDriverEntryPointSymbolNotFound;
  return answer(of_lookup);
}

cudaError_t last_error() {
  const cudaError_t last = kept;
  kept = cudaSuccess;
  return last;
}

}  // namespace fake

#define cudaFuncSetAttribute fake::set_attribute
#define cudaLaunchKernelEx fake::launch_kernel
#define cudaGetDriverEntryPointByVersion fake::entry_point
#define cudaGetLastError fake::last_error

#include "../../csrc/launch.h"

using namespace hyperkern;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      std::exit(1);                                               \
    }                                                             \
  } while (false)

void kernel(int) {}

void start(size_t shared_bytes) { launch(kernel, 1, 32, shared_bytes, nullptr, 1); }

// That a call throws what starts so, and that no error outlives it.
void check_throws(const std::function<void()>& call, const std::string& start_of_message) {
  std::string message;
  try {
    call();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message.find(start_of_message) == 0, "'%s'", message.c_str());
  CHECK(fake::kept == cudaSuccess, "'%s' leaves error %d", message.c_str(), static_cast<int>(fake::kept));
}

int main() {
  fake::of_launch = cudaErrorInvalidConfiguration;
  check_throws([] { start(0); }, "launching a kernel failed: ");
  fake::of_launch = cudaSuccess;
  fake::of_attribute = cudaErrorInvalidValue;
  check_throws([] { start(100 << 10); }, "setting a kernel's shared memory failed: ");
  fake::of_attribute = cudaSuccess;
  fake::of_lookup = cudaErrorInsufficientDriver;
  check_throws(
      [] { make_tensor_map<Bf16>(nullptr, 1, 64, 64, 8192, 128, 64); }, "looking for cuTensorMapEncodeTiled failed: ");
  CHECK(fake::launches == 1, "%d launches", fake::launches);
  launch(kernel, Grid(4, 2), 32, 0, nullptr, 1);
  CHECK(fake::launches == 2 && fake::cluster == 2, "a cluster of %u", fake::cluster);
  start(100 << 10);
  CHECK(fake::cluster == 0, "a cluster of %u", fake::cluster);
  // An error that somebody else left is not this launch's to raise, nor to take.
  fake::kept = cudaErrorInvalidDevice;
  start(0);
  CHECK(fake::launches == 4 && fake::kept == cudaErrorInvalidDevice, "%d launches", fake::launches);
  std::puts("ok");
}
