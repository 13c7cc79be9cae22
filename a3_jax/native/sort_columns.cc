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

// How many of the ascending values are not above `order`: most are. From the end in steps that double, then by halves.
template <class Element>
std::int64_t count_up_to(const Element* values, std::int64_t length, std::uint32_t order) {
  const auto is_above = [&](std::int64_t place) { return order_of(widen(values[place])) > order; };
  std::int64_t low = 0, high = length;
  for (std::int64_t step = 1; low < high; step *= 2) {
    const std::int64_t probe = std::max(high - step, low);
    if (!is_above(probe)) {
      low = probe + 1;
      break;
    }
    high = probe;
  }
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (is_above(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

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
void insert_entries(const Element* new_values, const std::int32_t* new_rows, std::int64_t count, Element* values, std::int32_t* rows,
                    std::int64_t length) {
  std::int64_t end = length;  // old entries that have not been moved
  for (std::int64_t j = count - 1; j >= 0; --j) {
    const std::uint32_t order = order_of(widen(new_values[j]));
    const std::int64_t start = count_up_to(values, end, order);
    // New entries are few: the old ones between two of them are moved in one go.
    std::memmove(values + start + j + 1, values + start, (end - start) * sizeof(Element));
    std::memmove(rows + start + j + 1, rows + start, (end - start) * sizeof(std::int32_t));
    values[start + j] = new_values[j], rows[start + j] = static_cast<std::int32_t>(new_rows[j] + length);
    end = start;
  }
}

template void sort_columns(const float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*, std::int32_t*,
                           std::vector<std::uint64_t>&);
template void sort_columns(const BFloat16*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, BFloat16*, std::int32_t*,
                           std::vector<std::uint64_t>&);
template void insert_entries(const float*, const std::int32_t*, std::int64_t, float*, std::int32_t*, std::int64_t);
template void insert_entries(const BFloat16*, const std::int32_t*, std::int64_t, BFloat16*, std::int32_t*, std::int64_t);

}  // namespace a3
