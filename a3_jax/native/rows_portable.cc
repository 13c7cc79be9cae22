#include "rows_kernels.h"

namespace a3 {

const Kernels kPortableKernels = kernels("portable");

}  // namespace a3
