#include "../pair_kernels.cuh"

template void hyperkern::launch_contract<hyperkern::Tf32>(
    const ContractArgs&, Weight, const Matrix&, const Matrix&, bool, Stream);
