// The loops that every vector kernel shares: rows of the matrix, chunks of columns, rows of x.
//
// A kernel's arithmetic is a class template over the precision, `A<precision>`, with
//
//   kRows, kColumns                 rows and columns of a chunk: what one set of vector registers holds of a plane
//   Planes, load, load_tail         that part of each plane, the least significant first
//   prepare(matrix, row, last)      look-up tables for rows row..row+kRows-1 (a row from `last` on repeats the one before)
//   for_each_weights(planes, f)     calls f(part, weights) for part = 0, 1, ..., kParts - 1, in this order
//   kLoadsAhead                     whether there is also for_each_weights(planes, next, f), which does the same and returns load(next)
//   Partial, add(...), fold(...)    sums of products of one chunk, and into the Sum over chunks of one row of x
//   store(sum, activations, y)      the finished sums of kRows rows
//   Activations                     blocks: one Block per chunk, in the order in which the weights come
//
// Everything is in an unnamed namespace, so that no function compiled for one instruction set is linked into the code for another.
#ifndef ANYPREC_JAX_NATIVE_ROWS_H_
#define ANYPREC_JAX_NATIVE_ROWS_H_

#include <cstdint>

#include "product.h"

namespace anyprec {
namespace {

// One row of x: the weights are used as they are decoded.
template <class A>
void multiply_one(const Matrix& matrix, const typename A::Activations& x, std::int64_t first, std::int64_t last, float* y) {
  const std::int64_t full_chunks = matrix.k / A::kColumns, chunks = (matrix.k + A::kColumns - 1) / A::kColumns;
  A unit;
  for (std::int64_t row = first; row < last; row += A::kRows) {
    unit.prepare(matrix, row, last);
    typename A::Sum sum{};
    const auto add_chunk = [&](std::int64_t chunk, const typename A::Planes& planes) __attribute__((always_inline)) {
      const auto& block = x.blocks()[chunk];
      typename A::Partial partial{};
      unit.for_each_weights(planes, [&](int i, const typename A::Weights& weights) __attribute__((always_inline)) {
        A::add(partial, i, weights, block);
      });
      A::fold(sum, partial, block);
    };
    for (std::int64_t chunk = 0; chunk < full_chunks; ++chunk) add_chunk(chunk, unit.load(chunk));
    if (chunks != full_chunks) add_chunk(full_chunks, unit.load_tail(full_chunks));
    unit.store(sum, x, row, last, y);
  }
}

// The same for a processor that finds too little to do at once within a chunk: the next chunk is loaded among the look-ups of this one,
// and the next tables are prepared before this row begins.
template <class A>
void multiply_one_ahead(const Matrix& matrix, const typename A::Activations& x, std::int64_t first, std::int64_t last, float* y) {
  const std::int64_t full_chunks = matrix.k / A::kColumns, chunks = (matrix.k + A::kColumns - 1) / A::kColumns;
  A units[2];
  if (first < last) units[0].prepare(matrix, first, last);
  for (std::int64_t row = first; row < last; row += A::kRows) {
    const std::int64_t index = (row - first) / A::kRows;
    const A& unit = units[index % 2];
    if (row + A::kRows < last) units[(index + 1) % 2].prepare(matrix, row + A::kRows, last);
    typename A::Sum sum{};
    const auto add_chunk = [&](std::int64_t chunk, auto for_each_weights) __attribute__((always_inline)) {
      const auto& block = x.blocks()[chunk];
      typename A::Partial partial{};
      for_each_weights([&](int i, const typename A::Weights& weights)
                           __attribute__((always_inline)) { A::add(partial, i, weights, block); });
      A::fold(sum, partial, block);
    };
    if (full_chunks > 0) {
      typename A::Planes planes = unit.load(0);
      for (std::int64_t chunk = 0; chunk < full_chunks; ++chunk)
        add_chunk(chunk, [&](auto f) __attribute__((always_inline)) {
          const std::int64_t next = chunk + 1 < full_chunks ? chunk + 1 : chunk;  // the last one loads itself again
          planes = unit.for_each_weights(planes, next, f);
        });
    }
    if (chunks != full_chunks)
      add_chunk(full_chunks, [&](auto f) __attribute__((always_inline)) {
        unit.for_each_weights(unit.load_tail(full_chunks), f);
      });
    unit.store(sum, x, row, last, y);
  }
}

// Up to kMaxRows rows of x: each chunk is decoded once, into the L1 cache.
template <class A>
void multiply_several(const Matrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                      float* const* y) {
  const std::int64_t full_chunks = matrix.k / A::kColumns, chunks = (matrix.k + A::kColumns - 1) / A::kColumns;
  const auto activations = [&](std::int64_t b) -> const typename A::Activations& {
    return *static_cast<const typename A::Activations*>(x[b]);
  };
  A unit;
  typename A::Weights decoded[A::kParts];
  for (std::int64_t row = first; row < last; row += A::kRows) {
    unit.prepare(matrix, row, last);
    typename A::Sum sums[kMaxRows] = {};
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      unit.for_each_weights(chunk < full_chunks ? unit.load(chunk) : unit.load_tail(chunk),
                            [&](int i, const typename A::Weights& weights)
                                __attribute__((always_inline)) { decoded[i] = weights; });
      for (std::int64_t b = 0; b < m; ++b) {
        const auto& block = activations(b).blocks()[chunk];
        typename A::Partial partial{};
        for (int i = 0; i < A::kParts; ++i) A::add(partial, i, decoded[i], block);
        A::fold(sums[b], partial, block);
      }
    }
    for (std::int64_t b = 0; b < m; ++b) unit.store(sums[b], activations(b), row, last, y[b]);
  }
}

template <template <int> class A, int precision>
void multiply(const Matrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last, float* const* y) {
  using Activations = typename A<precision>::Activations;
  for (; m > kMaxRows; m -= kMaxRows, x += kMaxRows, y += kMaxRows)
    multiply_several<A<precision>>(matrix, x, kMaxRows, first, last, y);
  if (m > 1) return multiply_several<A<precision>>(matrix, x, m, first, last, y);
  if (m < 1) return;
  const auto& alone = *static_cast<const Activations*>(x[0]);
  if constexpr (A<precision>::kLoadsAhead) {
    multiply_one_ahead<A<precision>>(matrix, alone, first, last, y[0]);
  } else {
    multiply_one<A<precision>>(matrix, alone, first, last, y[0]);
  }
}

template <template <int> class A>
void multiply_rows(const Matrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                   float* const* y) {
  switch (matrix.precision) {
    case 1: return multiply<A, 1>(matrix, x, m, first, last, y);
    case 2: return multiply<A, 2>(matrix, x, m, first, last, y);
    case 3: return multiply<A, 3>(matrix, x, m, first, last, y);
    case 4: return multiply<A, 4>(matrix, x, m, first, last, y);
    case 5: return multiply<A, 5>(matrix, x, m, first, last, y);
    case 6: return multiply<A, 6>(matrix, x, m, first, last, y);
    case 7: return multiply<A, 7>(matrix, x, m, first, last, y);
    case 8: return multiply<A, 8>(matrix, x, m, first, last, y);
  }
}

// Affine rows: `dot(codes, blocks, k)` is the sum of codes times activations; the sum of the activations carries the offset. Blocks have
// the integer `sum` of their quantized activations and the `scale` of them.
template <class Activations, class Dot>
void multiply_affine(const AffineMatrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                     float* const* y, Dot dot) {
  const auto blocks = [&](std::int64_t b) { return static_cast<const Activations*>(x[b])->blocks(); };
  const std::int64_t num_blocks = Activations::count(matrix.k);
  for (; m > 0; x += kMaxRows, y += kMaxRows, m -= kMaxRows) {
    const std::int64_t rows = m < kMaxRows ? m : kMaxRows;
    float x_sums[kMaxRows] = {};
    for (std::int64_t b = 0; b < rows; ++b)
      for (std::int64_t i = 0; i < num_blocks; ++i) x_sums[b] += blocks(b)[i].scale * static_cast<float>(blocks(b)[i].sum);
    for (std::int64_t row = first; row < last; ++row)
      for (std::int64_t b = 0; b < rows; ++b)
        y[b][row] = matrix.scale[row] * dot(matrix.codes + row * matrix.k, blocks(b), matrix.k) + matrix.offset[row] * x_sums[b];
  }
}

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_ROWS_H_
