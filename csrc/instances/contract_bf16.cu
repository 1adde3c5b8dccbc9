#include "../pair_kernels.cuh"

template void hyperkern::launch_contract<hyperkern::Bf16>(
    const ContractArgs&, Weight, const Matrix&, const Matrix&, bool, Stream);
