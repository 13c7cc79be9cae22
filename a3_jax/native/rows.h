// What is done with rows of keys and values: dot products, weighted sums, exact attention. Knows nothing of XLA.
#ifndef A3_JAX_NATIVE_ROWS_H_
#define A3_JAX_NATIVE_ROWS_H_

#include <cstdint>
#include <string_view>

#include "element.h"

namespace a3 {

// Rows [first, last) and the queries that attend to all of them.
template <class Element>
struct Attention {
  const float* query;  // [queries, d], scaled
  std::int64_t queries;
  const Element* key;    // [.., d]
  const Element* value;  // [.., dv]
  std::int64_t first, last, d, dv;
  float* out;  // [queries, dv]
  float* lse;  // [queries]: log of the sum of exponentials, -inf without rows
};

template <class Element>
struct RowKernels {
  // Exact attention; keys and values are read once for all queries.
  void (*attend)(const Attention<Element>& attention);
  // scores[i] = query . key[rows[i]]
  void (*score)(const float* query, const Element* key, std::int64_t d, const std::int32_t* rows, std::int64_t count, float* scores);
  // out = sum of weights[i] value[rows[i]]
  void (*mix)(const float* weights, const Element* value, std::int64_t dv, const std::int32_t* rows, std::int64_t count, float* out);
};

// The same work in several instruction sets.
struct Kernels {
  const char* isa;
  RowKernels<float> float32;
  RowKernels<BFloat16> bfloat16;
  // scores[i] becomes exp(scores[i] - largest), for scores up to `largest`. Returns their sum.
  float (*exponentiate)(float* scores, std::int64_t count, float largest);
  // Writes the rows with gained - lost > 0 in ascending order, and zeros over both. Returns how many there are.
  std::int64_t (*take_positive)(float* gained, float* lost, std::int64_t count, std::int32_t* rows);

  template <class Element>
  const RowKernels<Element>& of() const {
    if constexpr (sizeof(Element) == sizeof(float)) {
      return float32;
    } else {
      return bfloat16;
    }
  }
};

extern const Kernels kPortableKernels;
#if defined(A3_X86)
extern const Kernels kAvx2Kernels;
#endif

// Those of that name, or the best for "". Null if unknown, or if this processor lacks what they need.
const Kernels* find_kernels(std::string_view isa);

}  // namespace a3

#endif  // A3_JAX_NATIVE_ROWS_H_
