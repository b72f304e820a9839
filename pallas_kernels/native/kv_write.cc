// Rotary positions and the write into the paged cache, in place.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "operations.h"
#include "threads.h"

namespace cvllm {
namespace {

constexpr float kSmallestPeak = 0x1p-100f, kLargest = 127;

// The pairs (i, i + R/2) of a head, rotated; what is behind R stays.
void rotate(const KvWrite& op, int64_t token, int64_t head, float* out) {
  const int64_t half = op.R / 2, first = (token * (op.N + 2 * op.K) + head) * op.H;
  const float *cos = op.cos + token * half, *sin = op.sin + token * half;
  for (int64_t i = 0; i < half; i += 16) {
    const int64_t count = half - i;
    const __m512 left = load(op.qkv, op.type, first + i, count), right = load(op.qkv, op.type, first + half + i, count);
    const __m512 c = load(cos, Type::kF32, i, count), s = load(sin, Type::kF32, i, count);
    store(out, Type::kF32, i, _mm512_sub_ps(_mm512_mul_ps(left, c), _mm512_mul_ps(right, s)), count);
    store(out, Type::kF32, half + i, _mm512_add_ps(_mm512_mul_ps(right, c), _mm512_mul_ps(left, s)), count);
  }
  for (int64_t i = op.R; i < op.H; i += 16) {
    store(out, Type::kF32, i, load(op.qkv, op.type, first + i, op.H - i), op.H - i);
  }
}

// One head of a token as int8 in units of its largest value; a NaN makes the scale NaN.
void write_int8(const float* head, int64_t H, int8_t* to, float* scale) {
  float peak = 0;
  bool nan = false;
  for (int64_t i = 0; i < H; ++i) {
    nan |= std::isnan(head[i]);
    peak = std::max(peak, std::fabs(head[i]));
  }
  peak = std::clamp(peak, kSmallestPeak, FLT_MAX);
  const float inverse = kLargest / peak;
  for (int64_t i = 0; i < H; ++i) {
    const float scaled = std::clamp(head[i] * inverse, -kLargest, kLargest);
    to[i] = nan ? 0 : static_cast<int8_t>(std::nearbyint(scaled));
  }
  *scale = nan ? NAN : peak * (1 / kLargest);
}

void write(const KvWrite& op, const float* head, int64_t place, void* pages, float* scales) {
  if (op.page_type == Type::kInt8) {
    return write_int8(head, op.H, static_cast<int8_t*>(pages) + place * op.H, scales + place);
  }
  for (int64_t i = 0; i < op.H; i += 16) {
    store(pages, op.page_type, place * op.H + i, load(head, Type::kF32, i, op.H - i), op.H - i);
  }
}

void take(const KvWrite& op, int64_t token, float* head) {
  for (int64_t n = 0; n < op.N; ++n) {
    rotate(op, token, n, head);
    for (int64_t i = 0; i < op.H; i += 16) {
      store(op.q, op.type, (token * op.N + n) * op.H + i, load(head, Type::kF32, i, op.H - i), op.H - i);
    }
  }
  for (int64_t k = 0; k < op.K; ++k) {
    const int64_t place = (static_cast<int64_t>(op.page[token]) * op.K + k) * op.S + op.offset[token];
    rotate(op, token, op.N + k, head);
    write(op, head, place, op.k_pages, op.k_scales);
    const int64_t value = (token * (op.N + 2 * op.K) + op.N + op.K + k) * op.H;
    for (int64_t i = 0; i < op.H; i += 16) {
      store(head, Type::kF32, i, load(op.qkv, op.type, value + i, op.H - i), op.H - i);
    }
    write(op, head, place, op.v_pages, op.v_scales);
  }
}

}  // namespace

void kv_write(const KvWrite& op) {
  constexpr int64_t kTokens = 16;
  share((op.T + kTokens - 1) / kTokens, [&](int64_t piece) {
    std::vector<float> head(op.H);
    for (int64_t t = piece * kTokens; t < std::min(op.T, (piece + 1) * kTokens); ++t) take(op, t, head.data());
  });
}

}  // namespace cvllm
