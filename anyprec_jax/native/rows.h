// The loops that every vector kernel shares: rows of the matrix, chunks of columns, rows of x.
//
// A kernel's arithmetic is a class template over the precision, `A<precision>`, with
//
//   kColumns                     columns of a chunk: what one set of vector registers holds of a plane
//   kTailColumns                 columns of a tail, a cheaper way for few columns at the end of a row; 0 where there is none
//   Planes, load, load_tail      that part of each plane, the least significant first
//   prepare(matrix, row)         look-up tables for a row
//   for_each_weights(planes, f)  calls f(part, weights) for part = 0, 1, ..., kParts - 1, in this order
//   kLoadsAhead                  whether there is also for_each_weights(planes, source, next, f), which does the same and returns
//                                source.load(next)
//   Partial, add(...), fold(...) sums of products of one chunk, and into the Sum over chunks of one row of x
//   tail_weights, fold_tail      the same for a tail
//   finish(sum)                  the sum as a number
//   Activations                  a Block per chunk and a TailBlock per tail, in the order in which the weights come
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
  const auto extent = A::Activations::extent(matrix.k);
  A unit;
  for (std::int64_t row = first; row < last; ++row) {
    unit.prepare(matrix, row);
    typename A::Sum sum{};
    const auto add_chunk = [&](std::int64_t chunk, const typename A::Planes& planes) __attribute__((always_inline)) {
      const auto& block = x.blocks()[chunk];
      typename A::Partial partial{};
      unit.for_each_weights(planes, [&](int i, const typename A::Weights& weights) __attribute__((always_inline)) {
        A::add(partial, i, weights, block);
      });
      A::fold(sum, partial, block);
    };
    for (std::int64_t chunk = 0; chunk < extent.full; ++chunk) add_chunk(chunk, unit.load(chunk));
    if (extent.blocks != extent.full) add_chunk(extent.full, unit.load_tail(extent.full));
    if constexpr (A::kTailColumns > 0)
      for (std::int64_t tail = 0; tail < extent.tails; ++tail)
        A::fold_tail(sum, unit.tail_weights(extent.full, tail), x.tails(extent)[tail]);
    y[row] = unit.finish(sum);
  }
}

// The same for a processor that finds too little to do at once within a chunk: the next chunk is loaded among the look-ups of this one,
// whether it is of this row or the next, whose tables are prepared before this row begins.
template <class A>
void multiply_one_ahead(const Matrix& matrix, const typename A::Activations& x, std::int64_t first, std::int64_t last, float* y) {
  const auto extent = A::Activations::extent(matrix.k);
  A units[2];
  typename A::Planes planes;
  if (first < last) {
    units[first % 2].prepare(matrix, first);
    if (extent.full > 0) planes = units[first % 2].load(0);
  }
  for (std::int64_t row = first; row < last; ++row) {
    const A& unit = units[row % 2];
    A& following = units[(row + 1) % 2];
    if (row + 1 < last) following.prepare(matrix, row + 1);
    typename A::Sum sum{};
    const auto add_chunk = [&](std::int64_t chunk, auto for_each_weights) __attribute__((always_inline)) {
      const auto& block = x.blocks()[chunk];
      typename A::Partial partial{};
      for_each_weights([&](int i, const typename A::Weights& weights)
                           __attribute__((always_inline)) { A::add(partial, i, weights, block); });
      A::fold(sum, partial, block);
    };
    for (std::int64_t chunk = 0; chunk < extent.full; ++chunk) {
      const bool ends_row = chunk + 1 == extent.full;
      const A& source = ends_row && row + 1 < last ? following : unit;  // the very last chunk is followed by one that nobody looks at
      add_chunk(chunk, [&](auto f) __attribute__((always_inline)) {
        planes = unit.for_each_weights(planes, source, ends_row ? 0 : chunk + 1, f);
      });
    }
    if (extent.blocks != extent.full)
      add_chunk(extent.full, [&](auto f) __attribute__((always_inline)) {
        unit.for_each_weights(unit.load_tail(extent.full), f);
      });
    y[row] = unit.finish(sum);
  }
}

// Up to kMaxRows rows of x: each chunk is decoded once, into the L1 cache.
template <class A>
void multiply_several(const Matrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                      float* const* y) {
  const auto extent = A::Activations::extent(matrix.k);
  const auto activations = [&](std::int64_t b) -> const typename A::Activations& {
    return *static_cast<const typename A::Activations*>(x[b]);
  };
  A unit;
  typename A::Weights decoded[A::kParts];
  for (std::int64_t row = first; row < last; ++row) {
    unit.prepare(matrix, row);
    typename A::Sum sums[kMaxRows] = {};
    for (std::int64_t chunk = 0; chunk < extent.blocks; ++chunk) {
      unit.for_each_weights(chunk < extent.full ? unit.load(chunk) : unit.load_tail(chunk),
                            [&](int i, const typename A::Weights& weights)
                                __attribute__((always_inline)) { decoded[i] = weights; });
      for (std::int64_t b = 0; b < m; ++b) {
        const auto& block = activations(b).blocks()[chunk];
        typename A::Partial partial{};
        for (int i = 0; i < A::kParts; ++i) A::add(partial, i, decoded[i], block);
        A::fold(sums[b], partial, block);
      }
    }
    if constexpr (A::kTailColumns > 0)
      for (std::int64_t tail = 0; tail < extent.tails; ++tail) {
        const typename A::Weights weights = unit.tail_weights(extent.full, tail);
        for (std::int64_t b = 0; b < m; ++b) A::fold_tail(sums[b], weights, activations(b).tails(extent)[tail]);
      }
    for (std::int64_t b = 0; b < m; ++b) y[b][row] = unit.finish(sums[b]);
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

// Calls multiply<A, matrix.precision>.
template <template <int> class A>
void multiply_rows(const Matrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                   float* const* y) {
  using Multiply = decltype(&multiply<A, 1>);
  constexpr Multiply by_precision[] = {multiply<A, 1>, multiply<A, 2>, multiply<A, 3>, multiply<A, 4>,
                                       multiply<A, 5>, multiply<A, 6>, multiply<A, 7>, multiply<A, 8>};
  by_precision[matrix.precision - 1](matrix, x, m, first, last, y);
}

template <template <int> class A>
constexpr Product<Matrix> product() {
  return {A<1>::Activations::bytes, A<1>::Activations::arrange, multiply_rows<A>};
}

// Affine rows: `dot(codes, blocks, k)` is the sum of codes times activations; the sum of the activations carries the offset. Blocks have
// the integer `sum` of their quantized activations and the `scale` of them.
template <class Activations, class Dot>
void multiply_affine(const AffineMatrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                     float* const* y, Dot dot) {
  const auto blocks = [&](std::int64_t b) { return static_cast<const Activations*>(x[b])->blocks(); };
  const std::int64_t num_blocks = Activations::extent(matrix.k).blocks;
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
