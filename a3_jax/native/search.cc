#include "search.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "radix_sort.h"

namespace a3 {
namespace {

// Products below this are 0, as they are where XLA computes: it flushes numbers that are not normal.
constexpr float kLeastProduct = std::numeric_limits<float>::min();
// Samples of each column, on average, among those that find the threshold. More of them find it closer, and take longer.
constexpr std::int64_t kSamplesPerColumn = 8;

// One column as a side meets it: from its top or from its bottom, by a factor that makes leading products the largest.
template <class Element>
struct Queue {
  const Element* values;
  const std::int32_t* rows;
  std::int64_t step;  // from one entry to the next: 1 or -1
  float factor;
  std::int64_t popped;  // entries that certainly are among the first
  float head;           // product of the sample that follows

  float product(std::int64_t position) const { return widen(values[position * step]) * factor; }
};

template <class Element>
Queue<Element> queue_of(const SortedColumns<Element>& columns, std::int64_t column, float component, bool second_side) {
  const bool from_top = (component > 0) != second_side;
  const std::int64_t start = column * columns.stride + (from_top ? columns.length - 1 : 0);
  return {columns.values + start, columns.rows + start, from_top ? -1 : 1, second_side ? -component : component, 0, 0.0f};
}

// The row of the largest product: of equal ones that of the lowest column.
template <class Element>
std::int32_t first_row(const float* query, const SortedColumns<Element>& columns) {
  float largest = -std::numeric_limits<float>::infinity();
  std::int32_t row = 0;
  for (std::int64_t column = 0; column < columns.d; ++column) {
    const auto queue = queue_of(columns, column, query[column], false);
    const float product = queue.product(0);
    if (column == 0 || product > largest) largest = product, row = queue.rows[0];
  }
  return row;
}

// A tournament of queues by their heads. Of equal heads the lower queue wins.
class Tournament {
 public:
  template <class Queues>
  explicit Tournament(const Queues& queues) {
    while (leaves_ < static_cast<std::int64_t>(queues.size())) leaves_ *= 2;
    heads_.assign(leaves_, -std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < queues.size(); ++i) heads_[i] = queues[i].head;
    winners_.resize(2 * leaves_);
    for (std::int64_t leaf = 0; leaf < leaves_; ++leaf) winners_[leaves_ + leaf] = static_cast<std::int32_t>(leaf);
    for (std::int64_t node = leaves_ - 1; node > 0; --node) play(node);
  }

  std::int32_t winner() const { return winners_[1]; }

  void change(std::int32_t queue, float head) {
    heads_[queue] = head;
    for (std::int64_t node = (leaves_ + queue) / 2; node > 0; node /= 2) play(node);
  }

 private:
  void play(std::int64_t node) {
    const std::int32_t left = winners_[2 * node], right = winners_[2 * node + 1];
    winners_[node] = heads_[left] >= heads_[right] ? left : right;
  }

  std::int64_t leaves_ = 1;
  std::vector<float> heads_;
  std::vector<std::int32_t> winners_;
};

// Finds a product that at least `wanted` others reach, or all that are above 0, and not many more: every `stride`-th entry of a column is
// a sample, and samples are popped like entries. What precedes a popped sample in its column is counted in `popped`, and all else that
// reaches the threshold lies before that column's next sample.
template <class Element>
float find_threshold(std::vector<Queue<Element>>& queues, std::int64_t length, std::int64_t stride, std::int64_t wanted) {
  const auto sample = [&](std::int64_t popped) { return std::min(popped + stride, length) - 1; };
  for (auto& queue : queues) __builtin_prefetch(queue.values + sample(0) * queue.step);
  for (auto& queue : queues) queue.head = queue.product(sample(0));
  Tournament tournament(queues);
  float threshold = std::numeric_limits<float>::infinity();
  while (wanted > 0) {
    auto& queue = queues[tournament.winner()];
    if (!(queue.head >= kLeastProduct)) return kLeastProduct;
    const std::int64_t next = sample(queue.popped) + 1;
    threshold = queue.head, wanted -= next - queue.popped, queue.popped = next;
    queue.head = next < length ? queue.product(sample(next)) : -std::numeric_limits<float>::infinity();
    if (next + stride < length) __builtin_prefetch(queue.values + sample(next + stride) * queue.step);
    tournament.change(static_cast<std::int32_t>(&queue - queues.data()), queue.head);
  }
  return threshold;
}

// The side's `wanted` largest products above 0 or more, in the order of the pops. Returns how many of them `entries` holds; `largest` is
// what an entry's distance counts from.
template <class Element>
std::int64_t collect(const float* query, const SortedColumns<Element>& columns, bool second_side, std::int64_t wanted, Scratch& scratch,
                     std::uint32_t& largest) {
  std::vector<Queue<Element>> queues;
  queues.reserve(columns.d);
  float top = 0;
  for (std::int64_t column = 0; column < columns.d; ++column) {
    const auto queue = queue_of(columns, column, query[column], second_side);
    const float product = queue.product(0);
    if (product >= kLeastProduct) queues.push_back(queue), top = std::max(top, product);
  }
  if (queues.empty()) return 0;
  const std::int64_t num_queues = static_cast<std::int64_t>(queues.size());
  const std::int64_t stride = std::max<std::int64_t>(1, wanted / (kSamplesPerColumn * num_queues));
  const float threshold = find_threshold(queues, columns.length, stride, wanted);
  // Positions are bounds whatever the values are, even where these are not sorted.
  std::int64_t most = 0;
  for (const auto& queue : queues) most += std::min(queue.popped + stride, columns.length);
  auto& entries = scratch.entries[second_side];
  if (static_cast<std::int64_t>(entries.size()) < most) entries.resize(most);
  if (scratch.sorted.size() < entries.size()) scratch.sorted.resize(entries.size());
  largest = bits_of(top);
  std::int64_t count = 0;
  for (const auto& queue : queues) {
    const std::int64_t end = std::min(queue.popped + stride, columns.length);
    const auto* values = queue.values;
    const auto* rows = queue.rows;
    for (std::int64_t position = 0; position < end; ++position, values += queue.step, rows += queue.step) {
      const float product = widen(*values) * queue.factor;
      if (position >= queue.popped && !(product >= threshold)) break;
      entries[count++] = static_cast<Entry>(largest - bits_of(product)) << 32 | static_cast<std::uint32_t>(*rows);
    }
  }
  sort_by_high_half(entries.data(), scratch.sorted.data(), count, largest - bits_of(threshold));
  return std::min(count, wanted);
}

float amount(Entry entry, std::uint32_t largest) { return float_of(largest - static_cast<std::uint32_t>(entry >> 32)); }

// How many min pops happen. Those that add nothing may be missing.
std::int64_t count_min_pops(const Entry* gains, std::int64_t num_gains, std::uint32_t largest_gain, const Entry* losses,
                            std::int64_t num_losses, std::uint32_t largest_loss, std::int64_t iterations) {
  float gained = 0, lost = 0;
  std::int64_t happened = 0;
  for (std::int64_t k = 0; k < iterations && happened < num_losses; ++k) {
    if (k < num_gains) gained += amount(gains[k], largest_gain);
    const bool pops = gained >= lost;
    if (!pops && k >= num_gains) break;  // nothing will be gained any more
    lost += pops ? amount(losses[happened], largest_loss) : 0.0f;
    happened += pops;
  }
  return happened;
}

// Returns whether all rows are in range.
bool add_up(const Entry* entries, std::int64_t count, std::uint32_t largest, float* sums, std::int64_t num_rows) {
  bool in_range = true;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t row = static_cast<std::uint32_t>(entries[i]);
    const bool fits = row < num_rows;
    in_range &= fits;
    sums[fits ? row : 0] += amount(entries[i], largest);
  }
  return in_range;
}

}  // namespace

void Scratch::reserve(std::int64_t num_rows) {
  if (static_cast<std::int64_t>(candidates.size()) >= num_rows) return;
  for (auto& side : sums) side.assign(num_rows, 0.0f);
  scores.resize(num_rows);
  candidates.resize(num_rows);
}

template <class Element>
std::int64_t search(const float* query, const SortedColumns<Element>& columns, std::int64_t iterations, bool skip_heuristic,
                    const Kernels& kernels, Scratch& scratch) {
  scratch.reserve(columns.length);
  if (columns.length == 0) return 0;
  iterations = std::clamp<std::int64_t>(iterations, 0, columns.length * columns.d);
  std::uint32_t largest[2] = {};
  std::int64_t count[2];
  for (int side = 0; side < 2; ++side) count[side] = collect(query, columns, side == 1, iterations, scratch, largest[side]);
  if (skip_heuristic)
    count[1] = count_min_pops(scratch.entries[0].data(), count[0], largest[0], scratch.entries[1].data(), count[1], largest[1], iterations);
  bool in_range = true;
  for (int side = 0; side < 2; ++side)
    in_range &= add_up(scratch.entries[side].data(), count[side], largest[side], scratch.sums[side].data(), columns.length);
  const std::int64_t found =
      kernels.take_positive(scratch.sums[0].data(), scratch.sums[1].data(), columns.length, scratch.candidates.data());
  if (!in_range) return -1;
  if (found > 0) return found;
  const std::int32_t row = first_row(query, columns);
  if (row < 0 || row >= columns.length) return -1;
  scratch.candidates[0] = row;
  return 1;
}

template std::int64_t search(const float*, const SortedColumns<float>&, std::int64_t, bool, const Kernels&, Scratch&);
template std::int64_t search(const float*, const SortedColumns<BFloat16>&, std::int64_t, bool, const Kernels&, Scratch&);

}  // namespace a3
