#include "sort_columns.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "radix_sort.h"

namespace a3 {
namespace {

constexpr std::uint32_t kSign = 0x80000000u, kZero = kSign;

// Unsigned integers in the order of floats. 0, -0 and what is not normal are one number, as for XLA, which flushes.
inline std::uint32_t order_of(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & ~kSign) < bits_of(std::numeric_limits<float>::min())) return kZero;
  return bits & kSign ? ~bits : bits | kSign;
}

inline float value_of(std::uint32_t order) { return float_of(order & kSign ? order & ~kSign : ~order); }

inline std::uint64_t number_of(float value, std::int64_t row) {
  return static_cast<std::uint64_t>(order_of(value)) << 32 | static_cast<std::uint32_t>(row);
}

inline void narrow(float value, float& target) { target = value; }
inline void narrow(float value, BFloat16& target) { target.bits = static_cast<std::uint16_t>(bits_of(value) >> 16); }

}  // namespace

template <class Element>
void sort_columns(const Element* key, std::int64_t n, std::int64_t d, std::int64_t first, std::int64_t count, Element* values,
                  std::int32_t* rows, std::vector<std::uint64_t>& scratch) {
  if (static_cast<std::int64_t>(scratch.size()) < (count + 1) * n) scratch.resize((count + 1) * n);
  std::uint64_t* const spare = scratch.data() + count * n;
  for (std::int64_t row = 0; row < n; ++row)
    for (std::int64_t column = 0; column < count; ++column)
      scratch[column * n + row] = number_of(widen(key[row * d + first + column]), row);
  for (std::int64_t column = 0; column < count; ++column, values += n, rows += n) {
    std::uint64_t* const numbers = scratch.data() + column * n;
    std::uint64_t least = ~std::uint64_t{0}, largest = 0;
    for (std::int64_t row = 0; row < n; ++row) least = std::min(least, numbers[row]), largest = std::max(largest, numbers[row]);
    const auto base = static_cast<std::uint32_t>(least >> 32), range = static_cast<std::uint32_t>(largest >> 32) - base;
    for (std::int64_t row = 0; row < n; ++row) numbers[row] -= static_cast<std::uint64_t>(base) << 32;
    if (n > 0) sort_by_high_half(numbers, spare, n, range);
    for (std::int64_t place = 0; place < n; ++place) {
      const auto row = static_cast<std::uint32_t>(numbers[place]), order = static_cast<std::uint32_t>(numbers[place] >> 32) + base;
      rows[place] = static_cast<std::int32_t>(row);
      // From its place in the order, without another look at the key; but what counts as 0 may be something else.
      if (order == kZero) {
        values[place] = key[row * d + first + column];
      } else {
        narrow(value_of(order), values[place]);
      }
    }
  }
}

template <class Element>
void merge_column(const Element* first_values, const std::int32_t* first_rows, std::int64_t first, const Element* second_values,
                  const std::int32_t* second_rows, std::int64_t second, std::int32_t second_start, Element* values, std::int32_t* rows) {
  std::int64_t i = 0, j = 0;
  // The second is short: what lies between two of its values is copied in one go.
  for (; j < second; ++j) {
    const std::uint32_t number = order_of(widen(second_values[j]));
    std::int64_t low = i, high = first;
    for (std::int64_t step = 1; low < high; step *= 2) {  // outwards, then by halves
      const std::int64_t probe = std::min(low + step, high) - 1;
      if (order_of(widen(first_values[probe])) > number) {
        high = probe;
        break;
      }
      low = probe + 1;
    }
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (order_of(widen(first_values[middle])) > number) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    std::memcpy(values + i + j, first_values + i, (low - i) * sizeof(Element));
    std::memcpy(rows + i + j, first_rows + i, (low - i) * sizeof(std::int32_t));
    i = low;
    values[i + j] = second_values[j], rows[i + j] = second_rows[j] + second_start;
  }
  std::memcpy(values + i + j, first_values + i, (first - i) * sizeof(Element));
  std::memcpy(rows + i + j, first_rows + i, (first - i) * sizeof(std::int32_t));
}

template void sort_columns(const float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*, std::int32_t*,
                           std::vector<std::uint64_t>&);
template void sort_columns(const BFloat16*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, BFloat16*, std::int32_t*,
                           std::vector<std::uint64_t>&);
template void merge_column(const float*, const std::int32_t*, std::int64_t, const float*, const std::int32_t*, std::int64_t, std::int32_t,
                           float*, std::int32_t*);
template void merge_column(const BFloat16*, const std::int32_t*, std::int64_t, const BFloat16*, const std::int32_t*, std::int64_t,
                           std::int32_t, BFloat16*, std::int32_t*);

}  // namespace a3
