// What Python imports. The operators register themselves, in ../csrc/ops.cpp.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
