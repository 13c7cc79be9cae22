// Attention over what A3 selects, for one query. Knows nothing of XLA.
#ifndef A3_JAX_NATIVE_SELECTED_H_
#define A3_JAX_NATIVE_SELECTED_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "rows.h"
#include "search.h"

namespace a3 {

template <class Element>
struct Selected {
  const float* query;    // [d], scaled
  const Element* key;    // [.., d]
  const Element* value;  // [.., dv]
  std::int64_t dv;
  float gap;  // how far below the largest score a row may be; infinite for no post-scoring
};

// Writes the output [dv], zeros without rows, and its log of the sum of exponentials. Takes the candidates that `search` left in `scratch`
// and changes them. Returns how many rows were kept.
template <class Element>
std::int64_t attend_selected(const Selected<Element>& selected, std::int64_t d, std::int64_t num_candidates, const Kernels& kernels,
                             Scratch& scratch, float* out, float* lse) {
  std::int32_t* const rows = scratch.candidates.data();
  float* const scores = scratch.scores.data();
  kernels.of<Element>().score(selected.query, selected.key, d, rows, num_candidates, scores);
  float largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < num_candidates; ++i) largest = std::max(largest, scores[i]);
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < num_candidates; ++i) {
    const float score = scores[i];
    rows[kept] = rows[i], scores[kept] = score;
    kept += (score == largest) | (largest - score <= selected.gap);
  }
  const float sum = kernels.exponentiate(scores, kept, largest);
  kernels.of<Element>().mix(scores, selected.value, selected.dv, rows, kept, out);
  for (std::int64_t i = 0; i < selected.dv; ++i) out[i] = kept > 0 ? out[i] / sum : 0.0f;
  *lse = kept > 0 ? std::log(sum) + largest : -std::numeric_limits<float>::infinity();
  return kept;
}

}  // namespace a3

#endif  // A3_JAX_NATIVE_SELECTED_H_
