#include "rows_kernels.h"

namespace a3 {

const Kernels kAvx2Kernels = kernels("avx2");

}  // namespace a3
