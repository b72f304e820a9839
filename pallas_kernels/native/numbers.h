// Vectors of 16 numbers, and the types that arrays come in.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <initializer_list>

namespace cvllm {

enum class Type { kF32, kBF16, kInt8 };

inline int64_t size_of(Type type) { return type == Type::kF32 ? 4 : type == Type::kBF16 ? 2 : 1; }

// The first `count` numbers at p + index, the others 0.
inline __m512 load(const void* p, Type type, int64_t index, int64_t count = 16) {
  const __mmask16 mask = count >= 16 ? 0xFFFF : (1 << count) - 1;
  switch (type) {
    case Type::kF32:
      return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(p) + index);
    case Type::kBF16: {
      const __m256i bits = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(p) + index);
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    default: {
      const __m128i bits = _mm_maskz_loadu_epi8(mask, static_cast<const int8_t*>(p) + index);
      return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bits));
    }
  }
}

// The same for 16 numbers of a type that is known when this is compiled.
template <Type type>
inline __m512 load(const void* p, int64_t index) {
  if constexpr (type == Type::kF32) {
    return _mm512_loadu_ps(static_cast<const float*>(p) + index);
  } else if constexpr (type == Type::kBF16) {
    const auto from = reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(p) + index);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16));
  } else {
    const auto from = reinterpret_cast<const __m128i*>(static_cast<const int8_t*>(p) + index);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
  }
}

// To the nearest bfloat16, ties to even; a NaN stays one.
inline __m256i to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

inline void store(void* p, Type type, int64_t index, __m512 x, int64_t count = 16) {
  const __mmask16 mask = count >= 16 ? 0xFFFF : (1 << count) - 1;
  if (type == Type::kF32) {
    _mm512_mask_storeu_ps(static_cast<float*>(p) + index, mask, x);
  } else {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p) + index, mask, to_bf16(x));
  }
}

inline float value_at(const void* p, Type type, int64_t index) {
  return _mm512_cvtss_f32(load(p, type, index, 1));
}

// Lane i is the sum of the lanes of x[i]: 15 additions in all instead of 4 for each vector.
inline __m512i sums(const __m512i x[16]) {
  __m512i pairs[8], fours[4], halves[2];
  for (int i = 0; i < 8; ++i) {
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  }
  for (int i = 0; i < 4; ++i) {
    fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  }
  for (int i = 0; i < 2; ++i) {
    halves[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                 _mm512_shuffle_i32x4(fours[2 * i], fours[2 * i + 1], 0xDD));
  }
  return _mm512_add_epi32(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                          _mm512_shuffle_i32x4(halves[0], halves[1], 0xDD));
}

inline __m512 sums(const __m512 x[16]) {
  __m512 pairs[8], fours[4], halves[2];
  const auto wide = [](__m512 v) { return _mm512_castps_pd(v); };
  const auto back = [](__m512d v) { return _mm512_castpd_ps(v); };
  for (int i = 0; i < 8; ++i) {
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = wide(pairs[2 * i]), b = wide(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(back(_mm512_unpacklo_pd(a, b)), back(_mm512_unpackhi_pd(a, b)));
  }
  for (int i = 0; i < 2; ++i) {
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                              _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xDD));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                       _mm512_shuffle_f32x4(halves[0], halves[1], 0xDD));
}

// e^x for x up to 0, within 2 units in the last place; 0 below -87. A NaN stays one.
inline __m512 exp_of_negative(__m512 x) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  }
  return _mm512_mask_mov_ps(_mm512_scalef_ps(y, n), tiny, _mm512_setzero_ps());
}

}  // namespace cvllm
