// Keys sorted by column: all at once, or new ones put in. Knows nothing of XLA.
#ifndef A3_JAX_NATIVE_SORT_COLUMNS_H_
#define A3_JAX_NATIVE_SORT_COLUMNS_H_

#include <cstdint>
#include <vector>

#include "element.h"

namespace a3 {

// Columns are read so many at a time, one cache line of floats of every row.
constexpr std::int64_t kColumnsAtOnce = 16;

// Columns [first, first + count) of key [n, d] into values and rows [count, n], as `sort_keys` of a3_jax gives them: ascending, equal
// values in the order of their rows. n < 2^32. Throws std::bad_alloc.
template <class Element>
void sort_columns(const Element* key, std::int64_t n, std::int64_t d, std::int64_t first, std::int64_t count, Element* values,
                  std::int32_t* rows, std::vector<std::uint64_t>& scratch);

// Puts `count` sorted entries into a sorted column of `length`, in place. Of equal values the old ones stand first, and the new rows are
// counted from `length`: theirs are higher.
template <class Element>
void insert_entries(const Element* new_values, const std::int32_t* new_rows, std::int64_t count, Element* values, std::int32_t* rows,
                    std::int64_t length);

extern template void sort_columns(const float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*, std::int32_t*,
                                  std::vector<std::uint64_t>&);
extern template void sort_columns(const BFloat16*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, BFloat16*, std::int32_t*,
                                  std::vector<std::uint64_t>&);
extern template void insert_entries(const float*, const std::int32_t*, std::int64_t, float*, std::int32_t*, std::int64_t);
extern template void insert_entries(const BFloat16*, const std::int32_t*, std::int64_t, BFloat16*, std::int32_t*, std::int64_t);

}  // namespace a3

#endif  // A3_JAX_NATIVE_SORT_COLUMNS_H_
