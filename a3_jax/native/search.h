// A3's candidate selection over sorted keys, for one query: the rows that `select_candidates` of a3_jax gives. Knows nothing of XLA.
#ifndef A3_JAX_NATIVE_SEARCH_H_
#define A3_JAX_NATIVE_SEARCH_H_

#include <cstdint>
#include <vector>

#include "element.h"
#include "rows.h"

namespace a3 {

// Every column of the keys in ascending order, with the rows. Entries from `length` on are of rows that are not there yet.
template <class Element>
struct SortedColumns {
  const Element* values;     // [d, stride]
  const std::int32_t* rows;  // [d, stride]
  std::int64_t d, stride, length;
};

// A product that may be popped: how far it is below the largest, in the order of floats, and its row.
using Entry = std::uint64_t;

// What a thread keeps between queries, so that nothing is allocated for each. The sums are zeros in between.
struct Scratch {
  std::vector<Entry> entries[2], sorted;  // by side: the largest products, the smallest ones negated
  std::vector<float> sums[2];             // [n], by side
  std::vector<std::int32_t> candidates;   // [n]
  std::vector<float> scores;              // [n]

  // Makes room for keys of so many rows. Throws std::bad_alloc.
  void reserve(std::int64_t num_rows);
};

// The candidates of `query` after `iterations` iterations, ascending, in scratch.candidates; where no greedy score is above 0, the row of
// the largest product. Returns how many, 0 where there are no rows, or -1 if a row number is out of [0, length).
//
// O(M + d log d + n) but for the sort of 2 M products, which takes a pass or two. Throws std::bad_alloc.
template <class Element>
std::int64_t search(const float* query, const SortedColumns<Element>& columns, std::int64_t iterations, bool skip_heuristic,
                    const Kernels& kernels, Scratch& scratch);

extern template std::int64_t search(const float*, const SortedColumns<float>&, std::int64_t, bool, const Kernels&, Scratch&);
extern template std::int64_t search(const float*, const SortedColumns<BFloat16>&, std::int64_t, bool, const Kernels&, Scratch&);

}  // namespace a3

#endif  // A3_JAX_NATIVE_SEARCH_H_
