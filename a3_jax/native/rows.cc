#include "rows.h"

namespace a3 {

const Kernels* find_kernels(std::string_view isa) {
#if defined(A3_X86)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && (isa.empty() || isa == "avx2")) return &kAvx2Kernels;
#endif
  return isa.empty() || isa == "portable" ? &kPortableKernels : nullptr;
}

}  // namespace a3
