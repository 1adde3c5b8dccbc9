#include "../pair_kernels.cuh"

template void hyperkern::launch_sums<hyperkern::Bf16>(
    const SumsArgs&, Task, const Matrix&, const Matrix&, bool, Stream);
