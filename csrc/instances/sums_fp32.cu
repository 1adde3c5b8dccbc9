#include "../pair_kernels.cuh"

template void hyperkern::launch_sums<hyperkern::Fp32>(
    const SumsArgs&, Task, const Matrix&, const Matrix&, bool, Stream);
