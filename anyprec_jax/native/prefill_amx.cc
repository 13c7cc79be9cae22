// Intel AMX: tiles of sixteen rows of 64 bytes, and products of bfloat16 tiles added to float32 ones. Compiled with AMX and the AVX-512 of
// product_avx512.cc switched on: nothing here may run before `find_matrix_unit` has asked the processor.
//
// One tile holds 32 columns of sixteen rows of W. Its partner holds the same columns of sixteen rows of x, in pairs of columns, and the
// third their products' sums: [row of W][row of x]. Columns come in the order in which they are decoded, 512 at a time; sums wait in memory
// while the next columns are decoded.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "bfloat16.h"
#include "codebook_x86.h"
#include "half.h"
#include "prefill.h"
#include "product.h"
#include "tables_avx512.h"

namespace anyprec {
namespace {

constexpr int kTileRows = 16, kTileColumns = 32, kTileBytes = 64;  // a row of every tile has 64 bytes
constexpr int kBlockColumns = 512, kTailColumns = 64;              // what PlaneReader gives at a time, and at the end of a row
constexpr int kBlockTiles = kBlockColumns / kTileColumns;
constexpr int kMaxX = 512;  // rows of x between two decodings of the same weights: their sums stay in the L2 cache

struct alignas(64) WeightTile {
  std::uint16_t weights[kTileRows][kTileColumns];  // bfloat16
};

struct alignas(64) XTile {
  std::uint32_t pairs[kTileColumns / 2][kTileRows];  // [pair of columns][row of x], the first column in the lower half
};

struct alignas(64) SumTile {
  float sums[kTileRows][kTileRows];  // [row of W][row of x]
};

static_assert(sizeof(WeightTile) == 1024 && sizeof(XTile) == 1024 && sizeof(SumTile) == 1024, "a tile is sixteen rows of 64 bytes");

// ---- the order of the columns -------------------------------------------------------------------------------------------------------

// Whole blocks of 512 columns, and one that is made of tails of 64.
struct Blocks {
  std::int64_t full, tails, count;

  explicit Blocks(std::int64_t k)
      : full(k / kBlockColumns), tails((k % kBlockColumns + kTailColumns - 1) / kTailColumns), count(full + (tails > 0)) {}

  int tiles_of(std::int64_t block) const {
    return block < full ? kBlockTiles : static_cast<int>(tails) * (kTailColumns / kTileColumns);
  }
  std::int64_t tiles() const { return full * kBlockTiles + tails * (kTailColumns / kTileColumns); }
};

// Weights come 64 at a time, low bytes and high bytes apart. Interleaving them works on quarters of a register: the first tile gets bytes
// 0-7 of each, the second bytes 8-15.
constexpr int place_of(int half, int i) { return 16 * (i / 8) + 8 * half + i % 8; }

// Which column of a block is the first of a pair of a tile, and how far the second is from it. In a whole block, tiles 2 j and 2 j + 1 have
// bit j of every byte of a plane; in tails, 64 neighbours.
struct ColumnPair {
  int first, step;
};

constexpr ColumnPair columns_of(bool is_full, int tile, int pair) {
  const int place = place_of(tile % 2, 2 * pair);
  return is_full ? ColumnPair{8 * place + tile / 2, 8} : ColumnPair{kTailColumns * (tile / 2) + place, 1};
}

// ---- x ------------------------------------------------------------------------------------------------------------------------------

std::int64_t packed_bytes(std::int64_t k) { return Blocks(k).tiles() * static_cast<std::int64_t>(sizeof(XTile)); }

inline std::uint16_t rounded(float value) { return to_bfloat16(value); }
inline std::uint16_t rounded(std::uint16_t bits) { return bits; }

template <class Element>
void pack(const Element* x, std::int64_t rows, std::int64_t k, void* packed) {
  const Blocks blocks(k);
  XTile* tile = static_cast<XTile*>(packed);
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    const std::int64_t first = block * kBlockColumns, columns = k - first < kBlockColumns ? k - first : kBlockColumns;
    std::uint16_t transposed[kBlockColumns][kTileRows] = {};  // rows and columns that do not exist are zero
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t i = 0; i < columns; ++i) transposed[i][row] = rounded(x[row * k + first + i]);
    for (int i = 0; i < blocks.tiles_of(block); ++i, ++tile)
      for (int pair = 0; pair < kTileColumns / 2; ++pair) {
        const ColumnPair of = columns_of(block < blocks.full, i, pair);
        const std::uint16_t *low = transposed[of.first], *high = transposed[of.first + of.step];
        for (int row = 0; row < kTileRows; ++row)
          tile->pairs[pair][row] = low[row] | static_cast<std::uint32_t>(high[row]) << 16;
      }
  }
}

// ---- weights ------------------------------------------------------------------------------------------------------------------------

template <int precision>
struct BFloat16Row : Decoder<precision, WordTable<precision>> {
  void prepare(const Matrix& matrix, std::int64_t row) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    std::uint16_t centroids[1 << precision];
    for (int i = 0; i < 1 << precision; ++i) centroids[i] = to_bfloat16(half_to_float(codebook[i]));
    this->table.fill([&](int first) { return _mm512_cvtepu16_epi32(sixteen_entries<precision>(centroids, first)); });
  }

  // One block of this row, into that row of its tiles.
  void decode(const Blocks& blocks, std::int64_t block, WeightTile* tiles, int row) const {
    const auto store = [&](int part, const Words& weights) __attribute__((always_inline)) {
      _mm512_store_si512(tiles[2 * part].weights[row], _mm512_unpacklo_epi8(weights.low, weights.high));
      _mm512_store_si512(tiles[2 * part + 1].weights[row], _mm512_unpackhi_epi8(weights.low, weights.high));
    };
    if (block < blocks.full) return this->for_each_weights(this->load(block), store);
    for (int tail = 0; tail < blocks.tails; ++tail) store(tail, this->tail_weights(blocks.full, tail));
  }
};

// ---- tiles --------------------------------------------------------------------------------------------------------------------------

// All eight tiles are as large as they can be. A constant: nothing is stored that a compiler could think nobody reads.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64, "as the processor reads it");
constexpr TileConfiguration kTileConfiguration;

// Adds the products of up to two by two tiles, over the columns of a block: weights[i * kBlockTiles + t] times x[j][t] to sums[i][j]. Tiles
// 0 to 3 are the sums, 4 and 5 weights, 6 and 7 x.
template <int weight_tiles, int x_tiles>
void multiply_tiles(const WeightTile* weights, const XTile* const* x, int tiles, SumTile* const (*sums)[2]) {
  // GCC 12 does not know that loading a tile reads memory.
  asm volatile("" ::: "memory");
  _tile_loadd(0, sums[0][0], kTileBytes);
  if constexpr (x_tiles == 2) _tile_loadd(1, sums[0][1], kTileBytes);
  if constexpr (weight_tiles == 2) _tile_loadd(2, sums[1][0], kTileBytes);
  if constexpr (weight_tiles == 2 && x_tiles == 2) _tile_loadd(3, sums[1][1], kTileBytes);
  for (int t = 0; t < tiles; ++t) {
    _tile_loadd(4, weights + t, kTileBytes);
    _tile_loadd(6, x[0] + t, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (x_tiles == 2) {
      _tile_loadd(7, x[1] + t, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (weight_tiles == 2) {
      _tile_loadd(5, weights + kBlockTiles + t, kTileBytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (weight_tiles == 2 && x_tiles == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums[0][0], kTileBytes);
  if constexpr (x_tiles == 2) _tile_stored(1, sums[0][1], kTileBytes);
  if constexpr (weight_tiles == 2) _tile_stored(2, sums[1][0], kTileBytes);
  if constexpr (weight_tiles == 2 && x_tiles == 2) _tile_stored(3, sums[1][1], kTileBytes);
}

// ---- sums ---------------------------------------------------------------------------------------------------------------------------

// Rows become columns: blocks of 1, 2, 4 and 8 change places with those across the diagonal.
inline void transpose(__m512* rows) {
  const V column = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int size = 1; size < kTileRows; size *= 2) {
    // Indices from 16 on are of the second row.
    const __mmask16 is_right = _mm512_test_epi32_mask(column, _mm512_set1_epi32(size));
    const V next = _mm512_add_epi32(column, _mm512_set1_epi32(size));
    const V upper = _mm512_mask_add_epi32(column, is_right, column, _mm512_set1_epi32(kTileRows - size));
    const V lower = _mm512_mask_add_epi32(next, is_right, column, _mm512_set1_epi32(kTileRows));
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i)
      if ((i & size) == 0) {
        const __m512 first = rows[i], second = rows[i + size];
        rows[i] = _mm512_permutex2var_ps(first, upper, second);
        rows[i + size] = _mm512_permutex2var_ps(first, lower, second);
      }
  }
}

// The first `rows` rows of W and `count` rows of x of a tile.
void write_sums(const SumTile& tile, std::int64_t rows, std::int64_t count, float* const* y, std::int64_t first) {
  __m512 sums[kTileRows];
  for (int i = 0; i < kTileRows; ++i) sums[i] = _mm512_load_ps(tile.sums[i]);
  transpose(sums);
  const __mmask16 mask = static_cast<__mmask16>(rows < kTileRows ? ~(~0u << rows) : 0xffffu);
  for (std::int64_t b = 0; b < count; ++b) _mm512_mask_storeu_ps(y[b] + first, mask, sums[b]);
}

// ---- the product --------------------------------------------------------------------------------------------------------------------

inline std::int64_t at_most(std::int64_t limit, std::int64_t value) { return value < limit ? value : limit; }
constexpr std::int64_t tiles_for(std::int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// Up to kPanelRows rows of W, decoded a block at a time, by up to kMaxX rows of x: 230 KiB at most, on the stack.
template <int precision>
class Panel {
 public:
  Panel(const Matrix& matrix, const XTile* packed) : blocks_(matrix.k), packed_(packed) {}

  // Rows that fill up the last tile are those of the last row again.
  void prepare(const Matrix& matrix, std::int64_t first, std::int64_t last) {
    first_ = first, rows_ = last - first;
    for (std::int64_t i = 0; i < tiles_for(rows_) * kTileRows; ++i) decoders_[i].prepare(matrix, first + at_most(rows_ - 1, i));
  }

  void multiply(std::int64_t first_x, std::int64_t count, float* const* y) {
    for (std::int64_t i = 0; i < tiles_for(rows_); ++i)
      for (std::int64_t j = 0; j < tiles_for(count); ++j) sums_[i][j] = {};
    for (std::int64_t block = 0; block < blocks_.count; ++block) {
      for (std::int64_t i = 0; i < tiles_for(rows_) * kTileRows; ++i)
        decoders_[i].decode(blocks_, block, weights_[i / kTileRows], static_cast<int>(i % kTileRows));
      for (std::int64_t j = 0; j < tiles_for(count); j += 2)  // while two tiles of x are in the L1 cache
        for (std::int64_t i = 0; i < tiles_for(rows_); i += 2)
          add(block, first_x / kTileRows, i, tiles_for(rows_) - i, j, tiles_for(count) - j);
    }
    for (std::int64_t i = 0; i < tiles_for(rows_); ++i)
      for (std::int64_t j = 0; j < tiles_for(count); ++j)
        write_sums(sums_[i][j], rows_ - i * kTileRows, at_most(kTileRows, count - j * kTileRows), y + first_x + j * kTileRows,
                   first_ + i * kTileRows);
  }

 private:
  // Tiles i and i + 1 of the rows of W, j and j + 1 of those of x, where there are as many.
  void add(std::int64_t block, std::int64_t first_x_tile, std::int64_t i, std::int64_t rows_left, std::int64_t j, std::int64_t x_left) {
    const XTile* first = packed_ + (first_x_tile + j) * blocks_.tiles() + block * kBlockTiles;
    const XTile* const x[2] = {first, x_left > 1 ? first + blocks_.tiles() : nullptr};
    SumTile* const sums[2][2] = {{&sums_[i][j], &sums_[i][j + 1]}, {&sums_[i + 1][j], &sums_[i + 1][j + 1]}};
    const auto multiply_tiles_of = rows_left > 1 ? (x_left > 1 ? multiply_tiles<2, 2> : multiply_tiles<2, 1>)
                                                 : (x_left > 1 ? multiply_tiles<1, 2> : multiply_tiles<1, 1>);
    multiply_tiles_of(weights_[i], x, blocks_.tiles_of(block), sums);
  }

  Blocks blocks_;
  const XTile* packed_;
  std::int64_t first_ = 0, rows_ = 0;
  BFloat16Row<precision> decoders_[kPanelRows];
  WeightTile weights_[tiles_for(kPanelRows)][kBlockTiles];
  SumTile sums_[tiles_for(kPanelRows)][tiles_for(kMaxX)];
};
static_assert(sizeof(Panel<kMaxPrecision>) <= 230 << 10, "more stack than some threads can spare");

template <int precision>
void multiply(const Matrix& matrix, const void* packed, std::int64_t m, std::int64_t first, std::int64_t last, float* const* y) {
  Panel<precision> panel(matrix, static_cast<const XTile*>(packed));
  _tile_loadconfig(&kTileConfiguration);
  for (std::int64_t row = first; row < last; row += kPanelRows) {
    panel.prepare(matrix, row, at_most(last, row + kPanelRows));
    for (std::int64_t b = 0; b < m; b += kMaxX) panel.multiply(b, at_most(kMaxX, m - b), y);
  }
  _tile_release();
}

void multiply_rows(const Matrix& matrix, const void* packed, std::int64_t m, std::int64_t first, std::int64_t last, float* const* y) {
  using Multiply = decltype(&multiply<1>);
  constexpr Multiply by_precision[] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                                       multiply<5>, multiply<6>, multiply<7>, multiply<8>};
  by_precision[matrix.precision - 1](matrix, packed, m, first, last, y);
}

// Linux lets a process use the tiles after it has asked, because their contents make its saved state larger. Whoever is refused, or finds
// a kernel that does not know them, has none.
bool runs_here() {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned bfloat16 = 1u << 22, tiles = 1u << 24;
  if ((edx & bfloat16) == 0 || (edx & tiles) == 0) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

extern const MatrixUnit kAmxUnit;
const MatrixUnit kAmxUnit = {runs_here, packed_bytes, pack<float>, pack<std::uint16_t>, multiply_rows};

}  // namespace anyprec
