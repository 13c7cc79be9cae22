// Search, attention and sorting of a3_jax against plain loops, without Python, for sanitizers: `make test-native`.
//
// Every buffer is a heap block of exactly the size that the interface asks for, so that AddressSanitizer sees one byte too many.
#include "flush.h"
#include "rows.h"
#include "search.h"
#include "selected.h"
#include "sort_columns.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

using a3::BFloat16;
using a3::Kernels;
using a3::Scratch;
using a3::SortedColumns;

int failures = 0;

void check(bool holds, const char* what, std::int64_t n, std::int64_t d, const char* isa) {
  if (holds) return;
  std::printf("failed: %s, n = %d, d = %d, %s\n", what, static_cast<int>(n), static_cast<int>(d), isa);
  ++failures;
}

void assign(float number, float& target) { target = number; }
void assign(float number, BFloat16& target) { target.bits = static_cast<std::uint16_t>(a3::bits_of(number) >> 16); }

template <class Element>
std::vector<Element> random_rows(std::int64_t count, bool integers, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<Element> numbers(count);
  for (auto& number : numbers) assign(integers ? static_cast<float>(static_cast<int>(random() % 5) - 2) : normal(random), number);
  return numbers;
}

template <class Element>
struct Sorted {
  std::vector<Element> values;
  std::vector<std::int32_t> rows;
};

template <class Element>
Sorted<Element> sort_plainly(const std::vector<Element>& key, std::int64_t n, std::int64_t d) {
  Sorted<Element> sorted{std::vector<Element>(n * d), std::vector<std::int32_t>(n * d)};
  for (std::int64_t column = 0; column < d; ++column) {
    std::int32_t* const rows = sorted.rows.data() + column * n;
    for (std::int64_t row = 0; row < n; ++row) rows[row] = static_cast<std::int32_t>(row);
    std::stable_sort(rows, rows + n, [&](int one, int two) { return a3::widen(key[one * d + column]) < a3::widen(key[two * d + column]); });
    for (std::int64_t place = 0; place < n; ++place) sorted.values[column * n + place] = key[rows[place] * d + column];
  }
  return sorted;
}

struct Product {
  float amount;
  std::int32_t row;
};

// All products of a side, the largest first; of equal ones the lowest column, then the one that the pointer meets first.
template <class Element>
std::vector<Product> all_products(const std::vector<float>& query, const Sorted<Element>& sorted, std::int64_t n, bool second_side) {
  std::vector<Product> products;
  for (std::size_t column = 0; column < query.size(); ++column)
    for (std::int64_t position = 0; position < n; ++position) {
      const bool from_top = (query[column] > 0) != second_side;
      const std::int64_t place = column * n + (from_top ? n - 1 - position : position);
      products.push_back({a3::widen(sorted.values[place]) * (second_side ? -query[column] : query[column]), sorted.rows[place]});
    }
  std::stable_sort(products.begin(), products.end(), [](Product one, Product two) { return one.amount > two.amount; });
  return products;
}

// One iteration after the other.
template <class Element>
std::vector<std::int32_t> select_plainly(const std::vector<float>& query, const Sorted<Element>& sorted, std::int64_t n,
                                         std::int64_t iterations, bool skip_heuristic) {
  const auto most = all_products(query, sorted, n, false), least = all_products(query, sorted, n, true);
  std::vector<float> gained(n), lost(n);
  float gained_so_far = 0, lost_so_far = 0;
  std::size_t min_pops = 0;
  for (std::int64_t k = 0; k < iterations; ++k) {
    const float gain = std::max(most[k].amount, 0.0f);
    gained[most[k].row] += gain, gained_so_far += gain;
    if (skip_heuristic && gained_so_far < lost_so_far) continue;
    const float loss = std::max(least[min_pops].amount, 0.0f);
    lost[least[min_pops].row] += loss, lost_so_far += loss, ++min_pops;
  }
  std::vector<std::int32_t> rows;
  for (std::int64_t row = 0; row < n; ++row)
    if (gained[row] - lost[row] > 0) rows.push_back(static_cast<std::int32_t>(row));
  if (rows.empty()) rows.push_back(most[0].row);
  return rows;
}

template <class Element>
void test_search(const Kernels& kernels, std::int64_t n, std::int64_t d, bool integers, std::mt19937& random) {
  const auto key = random_rows<Element>(n * d, integers, random), value = random_rows<Element>(n * 5, false, random);
  const auto query = random_rows<float>(d, integers, random);
  const auto sorted = sort_plainly(key, n, d);
  const SortedColumns<Element> columns = {sorted.values.data(), sorted.rows.data(), d, n, n};
  for (const bool skip : {true, false})
    for (const std::int64_t iterations : {std::int64_t{1}, n / 8 + 1, n, std::min(3 * n, n * d), n * d}) {
      Scratch scratch;
      const std::int64_t count = a3::search(query.data(), columns, iterations, skip, kernels, scratch);
      const auto wanted = select_plainly(query, sorted, n, iterations, skip);
      const bool same = count == static_cast<std::int64_t>(wanted.size()) && std::equal(wanted.begin(), wanted.end(), scratch.candidates.begin());
      check(same, "candidates", n, d, kernels.isa);
      std::vector<float> out(5);
      float lse = 0;
      const std::int64_t kept =
          a3::attend_selected(a3::Selected<Element>{query.data(), key.data(), value.data(), 5, 3.0f}, d, count, kernels, scratch, out.data(), &lse);
      check(kept >= 1 && kept <= count && std::isfinite(lse), "attention over candidates", n, d, kernels.isa);
    }
}

// Whatever the columns hold, nothing is read or written elsewhere.
void test_hostile(const Kernels& kernels, std::int64_t n, std::int64_t d, bool rows_in_range, std::mt19937& random) {
  std::vector<float> values(n * d), query(d);
  std::vector<std::int32_t> rows(n * d);
  for (auto& value : values) value = a3::float_of(random());
  for (auto& one : query) one = a3::float_of(random());
  for (auto& row : rows) row = static_cast<std::int32_t>(rows_in_range ? random() % n : random());
  for (const std::int64_t iterations : {std::int64_t{-3}, std::int64_t{0}, n, n * d, 2 * n * d}) {
    Scratch scratch;
    const std::int64_t count = a3::search(query.data(), SortedColumns<float>{values.data(), rows.data(), d, n, n}, iterations, true, kernels, scratch);
    check(count <= n && (count >= 1 || !rows_in_range), "hostile columns", n, d, kernels.isa);
    for (std::int64_t i = 0; i < count; ++i) check(scratch.candidates[i] >= 0 && scratch.candidates[i] < n, "rows in range", n, d, kernels.isa);
  }
}

template <class Element>
void test_exact(const Kernels& kernels, std::int64_t n, std::int64_t d, std::int64_t dv, std::mt19937& random) {
  constexpr std::int64_t kQueries = 18;
  const auto key = random_rows<Element>(n * d, false, random), value = random_rows<Element>(n * dv, false, random);
  const auto query = random_rows<float>(kQueries * d, false, random);
  std::vector<float> out(kQueries * dv), lse(kQueries);
  const std::int64_t first = n / 5;
  kernels.of<Element>().attend({query.data(), kQueries, key.data(), value.data(), first, n, d, dv, out.data(), lse.data()});
  for (std::int64_t q = 0; q < kQueries; ++q) {
    std::vector<double> sums(dv);
    double total = 0;
    for (std::int64_t row = first; row < n; ++row) {
      double score = 0;
      for (std::int64_t i = 0; i < d; ++i) score += static_cast<double>(query[q * d + i]) * a3::widen(key[row * d + i]);
      total += std::exp(score);
      for (std::int64_t i = 0; i < dv; ++i) sums[i] += std::exp(score) * a3::widen(value[row * dv + i]);
    }
    for (std::int64_t i = 0; i < dv; ++i)
      check(std::abs(out[q * dv + i] - sums[i] / total) < 1e-4, "exact attention", n, d, kernels.isa);
    check(std::abs(lse[q] - std::log(total)) < 1e-4, "its log of the sum of exponentials", n, d, kernels.isa);
  }
}

template <class Element>
void test_sort(std::int64_t n, std::int64_t d, bool integers, std::mt19937& random) {
  const auto key = random_rows<Element>(n * d, integers, random);
  const auto wanted = sort_plainly(key, n, d);
  Sorted<Element> found{std::vector<Element>(n * d), std::vector<std::int32_t>(n * d)};
  std::vector<std::uint64_t> scratch;
  for (std::int64_t first = 0; first < d; first += a3::kColumnsAtOnce)
    a3::sort_columns(key.data(), n, d, first, std::min(a3::kColumnsAtOnce, d - first), found.values.data() + first * n,
                     found.rows.data() + first * n, scratch);
  check(found.rows == wanted.rows, "sorted rows", n, d, "");
  // The first column again, of a part of the rows and then the others.
  const std::int64_t old = n / 3, added = n - old;
  const std::vector<Element> first_rows(key.begin(), key.begin() + old * d), other_rows(key.begin() + old * d, key.end());
  const auto before = sort_plainly(first_rows, old, d), more = sort_plainly(other_rows, added, d);
  std::vector<Element> values(n);
  std::vector<std::int32_t> rows(n);
  std::copy_n(before.values.begin(), old, values.begin()), std::copy_n(before.rows.begin(), old, rows.begin());
  a3::insert_entries(more.values.data(), more.rows.data(), added, values.data(), rows.data(), old);
  check(std::equal(rows.begin(), rows.end(), wanted.rows.begin()), "inserted rows", n, d, "");
  for (std::int64_t place = 0; place < n; ++place)
    check(a3::widen(values[place]) == a3::widen(wanted.values[place]), "inserted values", n, d, "");
}

template <class Element>
void test_all(const Kernels& kernels, std::mt19937& random) {
  for (const std::int64_t n : {1, 3, 40, 700})
    for (const std::int64_t d : {1, 7, 64})
      for (const bool integers : {true, false}) {
        test_search<Element>(kernels, n, d, integers, random);
        test_sort<Element>(n, d, integers, random);
      }
  for (const std::int64_t n : {1, 6, 515})
    for (const std::int64_t d : {1, 20, 72}) test_exact<Element>(kernels, n, d, d + 61, random);
}

}  // namespace

int main() {
  const a3::Flush flush;
  std::mt19937 random(1);
  for (const char* isa : {"portable", "avx2"}) {
    const Kernels* const kernels = a3::find_kernels(isa);
    if (kernels == nullptr) {
      std::printf("%s: not on this processor\n", isa);
      continue;
    }
    test_all<float>(*kernels, random);
    test_all<BFloat16>(*kernels, random);
    for (const std::int64_t n : {1, 50, 600})
      for (const bool in_range : {true, false}) test_hostile(*kernels, n, 24, in_range, random);
    std::printf("a3 %s: done\n", isa);
  }
  return failures != 0;
}
