#include "../pair_kernels.cuh"

template void hyperkern::launch_contract<hyperkern::Fp16>(
    const ContractArgs&, Weight, const Matrix&, const Matrix&, bool, Stream);
