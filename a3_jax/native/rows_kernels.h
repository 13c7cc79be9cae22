// The kernels of rows.h in vectors as wide as the including file's instruction set has them. Included once by each of these files.
#ifndef A3_JAX_NATIVE_ROWS_KERNELS_H_
#define A3_JAX_NATIVE_ROWS_KERNELS_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "rows.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace a3 {
namespace {

// ---- vectors -----------------------------------------------------------------------------------------------------------------------

#if defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* source) {
  Floats vector;
  std::memcpy(&vector, source, sizeof vector);
  return vector;
}

inline Floats load(const BFloat16* source) {
#if defined(__AVX2__)
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
#else
  return Floats{widen(source[0]), widen(source[1]), widen(source[2]), widen(source[3])};
#endif
}

inline void store(float* target, Floats vector) { std::memcpy(target, &vector, sizeof vector); }

inline float sum_lanes(Floats vector) {
#if defined(__AVX2__)
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps(vector, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
  return (vector[0] + vector[2]) + (vector[1] + vector[3]);
#endif
}

inline void store_sums(const Floats (&vectors)[4], float* sums) {
#if defined(__AVX2__)
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(vectors[0], vectors[1]), _mm256_hadd_ps(vectors[2], vectors[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  for (int i = 0; i < 4; ++i) sums[i] = sum_lanes(vectors[i]);
#endif
}

// The largest of some numbers and `largest`; what is not a number is passed over.
inline float max_of(const float* numbers, std::int64_t count, float largest) {
  Floats lanes = {};
  lanes += largest;
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats next = load(numbers + i);
    lanes = next > lanes ? next : lanes;
  }
  for (int lane = 0; lane < kLanes; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
  for (; i < count; ++i) largest = numbers[i] > largest ? numbers[i] : largest;
  return largest;
}

// ---- dot products ------------------------------------------------------------------------------------------------------------------

constexpr std::int64_t kRowsAtOnce = 4;
constexpr std::int64_t kLineBytes = 64;

// Asks for a row, a line at a time.
template <class Element>
inline void prefetch(const Element* row, std::int64_t columns) {
  const char* const bytes = reinterpret_cast<const char*>(row);
  const std::int64_t size = columns * static_cast<std::int64_t>(sizeof(Element));
  for (std::int64_t i = 0; i < size; i += kLineBytes) __builtin_prefetch(bytes + i);
}

template <class Element>
inline float dot(const float* query, const Element* row, std::int64_t d) {
  Floats sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= d; i += 4 * kLanes)
    for (int part = 0; part < 4; ++part) sums[part] += load(query + i + part * kLanes) * load(row + i + part * kLanes);
  for (; i + kLanes <= d; i += kLanes) sums[0] += load(query + i) * load(row + i);
  float sum = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < d; ++i) sum += query[i] * widen(row[i]);
  return sum;
}

// Four rows together: each vector of the query is loaded once for them.
template <class Element>
inline void dot_rows(const float* query, const Element* const (&rows)[kRowsAtOnce], std::int64_t d, float* scores) {
  Floats sums[kRowsAtOnce] = {}, more[kRowsAtOnce] = {};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= d; i += 2 * kLanes) {
    const Floats low = load(query + i), high = load(query + i + kLanes);
    for (int r = 0; r < kRowsAtOnce; ++r) sums[r] += low * load(rows[r] + i), more[r] += high * load(rows[r] + i + kLanes);
  }
  for (int r = 0; r < kRowsAtOnce; ++r) sums[r] += more[r];
  store_sums(sums, scores);
  for (; i < d; ++i)
    for (int r = 0; r < kRowsAtOnce; ++r) scores[r] += query[i] * widen(rows[r][i]);
}

// ---- weighted sums -----------------------------------------------------------------------------------------------------------------

template <class Element>
inline void add_row(float weight, const Element* row, std::int64_t columns, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) store(out + i, load(out + i) + weight * load(row + i));
  for (; i < columns; ++i) out[i] += weight * widen(row[i]);
}

// ---- chosen rows -------------------------------------------------------------------------------------------------------------------

// Rows that lie anywhere come from memory one by one: so many are on their way at a time, in whole cache lines.
constexpr std::int64_t kRowsAhead = 24;

template <class Element>
void score(const float* query, const Element* key, std::int64_t d, const std::int32_t* rows, std::int64_t count, float* scores) {
  for (std::int64_t i = 0; i < count && i < kRowsAhead; ++i) prefetch(key + rows[i] * d, d);
  for (std::int64_t i = 0; i < count; ++i) {
    if (i + kRowsAhead < count) prefetch(key + rows[i + kRowsAhead] * d, d);
    scores[i] = dot(query, key + rows[i] * d, d);
  }
}

template <class Element>
void mix(const float* weights, const Element* value, std::int64_t dv, const std::int32_t* rows, std::int64_t count, float* out) {
  std::memset(out, 0, dv * sizeof(float));
  for (std::int64_t i = 0; i < count && i < kRowsAhead; ++i) prefetch(value + rows[i] * dv, dv);
  for (std::int64_t i = 0; i < count; ++i) {
    if (i + kRowsAhead < count) prefetch(value + rows[i + kRowsAhead] * dv, dv);
    add_row(weights[i], value + rows[i] * dv, dv, out);
  }
}

// ---- softmax -----------------------------------------------------------------------------------------------------------------------

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87. In the manner of Cephes: 2^n times a polynomial, without branches, so
// that loops over it vectorize.
inline float exp_of_negative(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + 0x1.8p23f;  // the integer is in the low bits
  const float n = shifted - 0x1.8p23f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = float_of((bits_of(shifted) << 23) + (127u << 23));
  return x < -87.0f ? 0.0f : p * power;
}

float exponentiate(float* scores, std::int64_t count, float largest) {
  for (std::int64_t i = 0; i < count; ++i) scores[i] = exp_of_negative(scores[i] - largest);
  Floats lanes = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) lanes += load(scores + i);
  float sum = sum_lanes(lanes);
  for (; i < count; ++i) sum += scores[i];
  return sum;
}

// ---- exact attention ---------------------------------------------------------------------------------------------------------------

// Memory gives more to several streams than to one: rows are read from so many places in turn.
constexpr std::int64_t kStreams = kRowsAtOnce;
// Rows of a block: its scores are in the first-level cache, its keys and values in the second for all queries.
constexpr std::int64_t kBlockRows = 128;

// `count` rows from `first` on, the streams' in turn, `apart` rows from each other.
struct Block {
  std::int64_t first, apart, count;

  std::int64_t row(std::int64_t i) const { return first + i % kStreams * apart + i / kStreams; }
};

template <class Element>
inline void score_block(const float* query, const Element* key, std::int64_t d, Block block, float* scores) {
  std::int64_t i = 0;
  for (; i + kStreams <= block.count; i += kStreams) {
    const Element *const row = key + block.row(i) * d, *const second = row + block.apart * d, *const third = second + block.apart * d;
    dot_rows(query, {row, second, third, third + block.apart * d}, d, scores + i);
  }
  for (; i < block.count; ++i) scores[i] = dot(query, key + block.row(i) * d, d);
}

// out += weights times rows, kVectors vectors of every row: the sums stay in registers.
template <int kVectors, class Element>
inline void mix_columns(const float* weights, const Element* value, std::int64_t dv, Block block, float* out) {
  Floats sums[kVectors];
  for (int i = 0; i < kVectors; ++i) sums[i] = load(out + i * kLanes);
  for (std::int64_t r = 0; r < block.count; ++r) {
    const Element* const row = value + block.row(r) * dv;
    const float weight = weights[r];
    for (int i = 0; i < kVectors; ++i) sums[i] += weight * load(row + i * kLanes);
  }
  for (int i = 0; i < kVectors; ++i) store(out + i * kLanes, sums[i]);
}

template <class Element>
inline void mix_block(const float* weights, const Element* value, std::int64_t dv, Block block, float* out) {
  constexpr int kVectors = 8;
  std::int64_t i = 0;
  for (; i + kVectors * kLanes <= dv; i += kVectors * kLanes) mix_columns<kVectors>(weights, value + i, dv, block, out + i);
  for (; i + kLanes <= dv; i += kLanes) mix_columns<1>(weights, value + i, dv, block, out + i);
  for (; i < dv; ++i)
    for (std::int64_t r = 0; r < block.count; ++r) out[i] += weights[r] * widen(value[block.row(r) * dv + i]);
}

// Online softmax (Milakov and Gimelshein 2018): `largest` and `sum` are of the blocks so far.
template <class Element>
void attend(const Attention<Element>& a) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  constexpr std::int64_t kQueriesAtOnce = 16;
  for (std::int64_t start = 0; start < a.queries; start += kQueriesAtOnce) {
    const std::int64_t queries = a.queries - start < kQueriesAtOnce ? a.queries - start : kQueriesAtOnce;
    const float* const query = a.query + start * a.d;
    float* const out = a.out + start * a.dv;
    float largest[kQueriesAtOnce], sum[kQueriesAtOnce] = {}, scores[kBlockRows];
    for (float& one : largest) one = kNothing;
    std::memset(out, 0, queries * a.dv * sizeof(float));
    const auto add_block = [&](Block block) {
      for (std::int64_t q = 0; q < queries; ++q) {
        score_block(query + q * a.d, a.key, a.d, block, scores);
        const float top = max_of(scores, block.count, largest[q]);
        if (top > largest[q]) {
          const float shrink = std::exp(largest[q] - top);
          for (std::int64_t i = 0; i < a.dv; ++i) out[q * a.dv + i] *= shrink;
          sum[q] *= shrink, largest[q] = top;
        }
        sum[q] += exponentiate(scores, block.count, top);
        mix_block(scores, a.value, a.dv, block, out + q * a.dv);
      }
    };
    const std::int64_t length = (a.last - a.first) / kStreams, streamed = a.first + kStreams * length;
    for (std::int64_t row = 0; row < length; row += kBlockRows / kStreams)
      add_block({a.first + row, length, kStreams * (length - row < kBlockRows / kStreams ? length - row : kBlockRows / kStreams)});
    if (streamed < a.last) add_block({streamed, 1, a.last - streamed});
    for (std::int64_t q = 0; q < queries; ++q) {
      const float scale = sum[q] == 0 ? 0.0f : 1.0f / sum[q];
      for (std::int64_t i = 0; i < a.dv; ++i) out[q * a.dv + i] *= scale;
      a.lse[start + q] = a.first < a.last ? std::log(sum[q]) + largest[q] : kNothing;
    }
  }
}

// ---- candidates --------------------------------------------------------------------------------------------------------------------

std::int64_t take_positive(float* gained, float* lost, std::int64_t count, std::int32_t* rows) {
  std::int64_t found = 0, row = 0;
  for (; row + kLanes <= count; row += kLanes) {
    const Floats difference = load(gained + row) - load(lost + row);
    const Floats zeros = {};
    store(gained + row, zeros), store(lost + row, zeros);
#if defined(__AVX2__)
    for (unsigned mask = _mm256_movemask_ps(_mm256_cmp_ps(difference, zeros, _CMP_GT_OQ)); mask != 0; mask &= mask - 1)
      rows[found++] = static_cast<std::int32_t>(row + __builtin_ctz(mask));
#else
    for (int lane = 0; lane < kLanes; ++lane) {
      rows[found] = static_cast<std::int32_t>(row + lane);  // `found` is at most `row`
      found += difference[lane] > 0;
    }
#endif
  }
  for (; row < count; ++row) {
    if (gained[row] - lost[row] > 0) rows[found++] = static_cast<std::int32_t>(row);
    gained[row] = lost[row] = 0;
  }
  return found;
}

template <class Element>
constexpr RowKernels<Element> row_kernels() {
  return {attend<Element>, score<Element>, mix<Element>};
}

constexpr Kernels kernels(const char* isa) {
  return {isa, row_kernels<float>(), row_kernels<BFloat16>(), exponentiate, take_positive};
}

}  // namespace
}  // namespace a3

#endif  // A3_JAX_NATIVE_ROWS_KERNELS_H_
