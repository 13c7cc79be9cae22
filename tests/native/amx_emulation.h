// The tile instructions that prefill_amx.cc uses, in plain C++: for processors with AVX-512 but without AMX, and for AddressSanitizer,
// which does not see what tile instructions read and write. CMake puts it before that file where ANYPREC_EMULATE_AMX is on.
#ifndef TESTS_NATIVE_AMX_EMULATION_H_
#define TESTS_NATIVE_AMX_EMULATION_H_

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulation {
namespace {

struct Tile {
  char row[16][64];
};

thread_local Tile tiles[8];
thread_local bool is_configured = false;

[[noreturn]] inline void fail(const char* what) {
  std::printf("FAILED amx_emulation: %s\n", what);
  std::abort();
}

// Only what prefill_amx.cc asks for: palette 1, eight tiles of sixteen rows of 64 bytes.
inline void load_configuration(const void* configuration) {
  std::uint8_t bytes[64];
  std::memcpy(bytes, configuration, sizeof bytes);
  std::uint8_t wanted[64] = {1};
  for (int tile = 0; tile < 8; ++tile) wanted[16 + 2 * tile] = 64, wanted[48 + tile] = 16;
  if (std::memcmp(bytes, wanted, sizeof bytes) != 0) fail("another configuration than eight full tiles");
  std::memset(tiles, 0, sizeof tiles);
  is_configured = true;
}

inline void release() { is_configured = false; }

inline void load(int tile, const void* base, std::int64_t stride) {
  if (!is_configured) fail("no configuration");
  for (int row = 0; row < 16; ++row) std::memcpy(tiles[tile].row[row], static_cast<const char*>(base) + row * stride, 64);
}

inline void store(int tile, void* base, std::int64_t stride) {
  if (!is_configured) fail("no configuration");
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(base) + row * stride, tiles[tile].row[row], 64);
}

inline float element(const Tile& tile, int row, int i) {  // bfloat16
  std::uint32_t bits = 0;
  std::memcpy(reinterpret_cast<char*>(&bits) + 2, tile.row[row] + 2 * i, 2);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Even and odd columns have a sum each, and the sum of both is added: Intel's manual, TDPBF16PS. Subnormal numbers, which the instruction
// takes for zero, are multiplied here.
inline void multiply_add(int sums, int a, int b) {
  if (!is_configured) fail("no configuration");
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) {
      float even = 0, odd = 0, sum;
      for (int pair = 0; pair < 16; ++pair) {
        even += element(tiles[a], row, 2 * pair) * element(tiles[b], pair, 2 * column);
        odd += element(tiles[a], row, 2 * pair + 1) * element(tiles[b], pair, 2 * column + 1);
      }
      std::memcpy(&sum, tiles[sums].row[row] + 4 * column, sizeof sum);
      sum += even + odd;
      std::memcpy(tiles[sums].row[row] + 4 * column, &sum, sizeof sum);
    }
}

}  // namespace
}  // namespace amx_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(configuration) amx_emulation::load_configuration(configuration)
#define _tile_release() amx_emulation::release()
#define _tile_loadd(tile, base, stride) amx_emulation::load(tile, base, stride)
#define _tile_stored(tile, base, stride) amx_emulation::store(tile, base, stride)
#define _tile_dpbf16ps(sums, a, b) amx_emulation::multiply_add(sums, a, b)

#endif  // TESTS_NATIVE_AMX_EMULATION_H_
