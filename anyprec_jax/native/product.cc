#include "product.h"

#include "prefill.h"

namespace anyprec {

extern const Kernel kPortableKernel;  // product_portable.cc
#if defined(ANYPREC_X86)
extern const Kernel kAvx512Kernel;  // product_avx512.cc
extern const Kernel kAvx2Kernel;    // product_avx2.cc
#endif
#if defined(ANYPREC_AMX)
extern const MatrixUnit kAmxUnit;  // prefill_amx.cc
#endif

const Kernel* find_kernel(std::string_view isa) {
  static const Kernel* const kernels[] = {
#if defined(ANYPREC_X86)
      &kAvx512Kernel, &kAvx2Kernel,
#endif
      &kPortableKernel};
  for (const Kernel* kernel : kernels)
    if ((isa.empty() || isa == kernel->isa) && kernel->runs_here()) return kernel;
  return nullptr;
}

const MatrixUnit* find_matrix_unit() {
#if defined(ANYPREC_AMX)
  static const bool is_here = kAvx512Kernel.runs_here() && kAmxUnit.runs_here();  // weights are decoded with AVX-512
  if (is_here) return &kAmxUnit;
#endif
  return nullptr;
}

}  // namespace anyprec
