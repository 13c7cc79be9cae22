// Attention of one new position to a cache of keys and values, for the query heads that share a key head. Knows nothing of XLA.
#ifndef ANYPREC_JAX_NATIVE_ATTENTION_H_
#define ANYPREC_JAX_NATIVE_ATTENTION_H_

#include <cstdint>

namespace anyprec {

struct AttentionHead {
  const float* query;  // [queries, head_dim], scaled
  std::int64_t queries;
  const float* keys;        // [head_dim, room]: positions last
  const float* values;      // [room, head_dim]
  std::int64_t room;        // positions that the cache can hold
  std::int64_t length;      // positions to attend to: 1..room
  std::int64_t head_dim;
  float* out;      // [queries, head_dim]
  float* scratch;  // [queries, length]
};

// out = softmax(query . key) value over the first `length` positions, in float32. Keys and values are read once.
void attend(const AttentionHead& head);

}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_ATTENTION_H_
