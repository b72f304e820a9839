// Products with int8 weights, by instructions that multiply 64 pairs of bytes and add them up in fours (AVX512-VNNI).
//
// An activation is the sum of two int8 numbers, a coarse one and what it leaves over in units 254 times finer: with
// 8 bits their outliers would cost more than the rounding of the weights does. The weights are read once for both.
//
// The instruction takes one unsigned factor, so one side has 128 added to it, and 128 times the sum of the other side
// is taken away at the end.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "operations.h"
#include "threads.h"

namespace cvllm {
namespace {

constexpr float kFiner = 254;  // half of 1 becomes 127
constexpr int64_t kUnit = 8;   // tokens whose 16 numbers fill a vector
constexpr int64_t kRows = 16;  // output channels that are written together
constexpr int64_t kMostUnits = 6;
constexpr int64_t kFew = 16;  // tokens up to which rows are multiplied as they lie

// Bytes that weights are asked for ahead of their use. Rows are read side by side, in which the processor's own
// prefetchers see no stream.
constexpr int64_t kAhead = 8192;

int64_t ahead(int64_t block) { return (kAhead + block - 1) / block * block; }

// Which of the next 64 bytes there are.
__mmask64 tail(int64_t count) { return count >= 64 ? ~0ULL : (1ULL << count) - 1; }

__m512i lanes() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// One token as bytes with `flip` in their highest bits; returns what one coarse unit is worth.
float split(const void* x, Type type, int64_t first, int64_t I, uint8_t flip, uint8_t* coarse, uint8_t* fine) {
  const __m512 no_sign = _mm512_castsi512_ps(_mm512_set1_epi32(0x7FFFFFFF));
  __m512 most = _mm512_setzero_ps();
  __mmask16 broken = 0;
  for (int64_t i = 0; i < I; i += 16) {
    const __m512 magnitude = _mm512_and_ps(load(x, type, first + i, I - i), no_sign);
    broken |= _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(FLT_MAX), _CMP_NLE_UQ);
    most = _mm512_max_ps(most, magnitude);
  }
  const float unit = std::max(_mm512_reduce_max_ps(most) / 127, FLT_MIN);
  const __m128i bias = _mm_set1_epi8(static_cast<char>(flip));
  for (int64_t i = 0; i < I; i += 16) {
    const __m512 scaled = _mm512_div_ps(load(x, type, first + i, I - i), _mm512_set1_ps(unit));
    const __m512 whole = _mm512_roundscale_ps(scaled, 0);
    const __m512 rest = _mm512_mul_ps(_mm512_sub_ps(scaled, whole), _mm512_set1_ps(kFiner));
    const __mmask16 mask = I - i >= 16 ? 0xFFFF : (1 << (I - i)) - 1;
    _mm_mask_storeu_epi8(coarse + i, mask, _mm_xor_si128(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(whole)), bias));
    _mm_mask_storeu_epi8(fine + i, mask, _mm_xor_si128(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(rest)), bias));
  }
  return broken ? std::numeric_limits<float>::quiet_NaN() : unit;
}

// What the sums of some tokens' bytes are taken off by, and what their products are worth, for each lane of a sum.
template <int V>
struct Group {
  static constexpr int R = 16 / V;  // rows of weights at a time
  const uint8_t* x;
  __m512i taken;
  __m512 worth;

  Group(const uint8_t* x, int64_t I, const float* units) : x(x) {
    alignas(64) int32_t sum_of[16];
    alignas(64) float worth_of[16];
    for (int v = 0; v < V; ++v) {
      __m512i sum = _mm512_setzero_si512();
      for (int64_t i = 0; i < I; i += 64) {
        const __m512i bytes = _mm512_maskz_loadu_epi8(tail(I - i), x + v * I + i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
      }
      for (int r = 0; r < R; ++r) {
        sum_of[r * V + v] = 128 * _mm512_reduce_add_epi32(sum);
        worth_of[r * V + v] = v % 2 ? units[v / 2] / kFiner : units[v / 2];
      }
    }
    taken = _mm512_load_si512(sum_of);
    worth = _mm512_load_ps(worth_of);
  }

  // R rows times V / 2 tokens, row by row.
  __m256 multiply(const int8_t* const* rows, int64_t I, int64_t later) const {
    __m512i products[16];
    for (auto& p : products) p = _mm512_setzero_si512();
    const auto add = [&](int64_t i, __mmask64 mask) {
      __m512i w[R];
      for (int r = 0; r < R; ++r) {
        _mm_prefetch(rows[r] + i + later, _MM_HINT_T0);
        w[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, rows[r] + i), _mm512_set1_epi8(static_cast<char>(0x80)));
      }
      for (int v = 0; v < V; ++v) {
        const __m512i bytes = _mm512_maskz_loadu_epi8(mask, x + v * I + i);
        for (int r = 0; r < R; ++r) products[r * V + v] = _mm512_dpbusd_epi32(products[r * V + v], w[r], bytes);
      }
    };
    int64_t i = 0;
    for (; i + 64 <= I; i += 64) add(i, ~0ULL);
    if (i < I) add(i, tail(I - i));
    const __m512 parts = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums(products), taken)), worth);
    const __m512 y = _mm512_add_ps(parts, _mm512_permute_ps(parts, 0xB1));
    return _mm512_castps512_ps256(_mm512_maskz_compress_ps(0x5555, y));
  }
};

// Rows of weights are multiplied with V = 2 * tokens rows of bytes as they lie, 64 bytes at a time: for few tokens.
template <int V>
void few(const Int8Matmul& op, const uint8_t* x, const float* units, int64_t begin, int64_t end) {
  constexpr int R = Group<V>::R, kTokens = V / 2;
  std::vector<Group<V>> groups;
  for (int64_t t = 0; t < op.T; t += kTokens) groups.emplace_back(x + 2 * t * op.I, op.I, units + t);
  const int64_t later = ahead(R * op.I), stride = groups.size() * kTokens;
  std::vector<float> block(kRows * stride);
  const __m512i strided = _mm512_mullo_epi32(lanes(), _mm512_set1_epi32(stride));
  for (int64_t o = begin; o < end; o += kRows) {
    const int8_t* rows[kRows];
    for (int64_t r = 0; r < kRows; ++r) rows[r] = op.values + std::min(o + r, op.O - 1) * op.I;
    for (int64_t r = 0; r < kRows; r += R) {
      for (size_t g = 0; g < groups.size(); ++g) {
        alignas(32) float y[8];
        _mm256_store_ps(y, groups[g].multiply(rows + r, op.I, later));
        for (int64_t i = 0; i < R; ++i) {
          std::memcpy(&block[(r + i) * stride + g * kTokens], y + i * kTokens, kTokens * sizeof(float));
        }
      }
    }
    const __m512 scales = load(op.scales, Type::kF32, o, end - o);
    for (int64_t t = 0; t < op.T; ++t) {
      const __m512 y = _mm512_i32gather_ps(strided, &block[t], 4);
      store(op.y, op.y_type, t * op.O + o, _mm512_mul_ps(y, scales), end - o);
    }
  }
}

// R rows of weights times U units of 8 tokens; x has 64 bytes for 4 input channels of a unit.
template <int R, int U>
void multiply(const int8_t* const* rows, const uint8_t* x, int64_t fours, __m512i* out) {
  const int64_t later = ahead(R * fours * 4);
  __m512i sum[R][U];
  for (auto& row : sum) {
    for (auto& s : row) s = _mm512_setzero_si512();
  }
  for (int64_t g = 0; g < fours; ++g) {
    if (g % 16 == 0) {
      for (int r = 0; r < R; ++r) _mm_prefetch(rows[r] + 4 * g + later, _MM_HINT_T0);
    }
    __m512i w[R];
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, rows[r] + 4 * g, 4);
      w[r] = _mm512_set1_epi32(four);
    }
    for (int u = 0; u < U; ++u) {
      const __m512i tokens = _mm512_load_si512(x + (u * fours + g) * 64);
      for (int r = 0; r < R; ++r) sum[r][u] = _mm512_dpbusd_epi32(sum[r][u], tokens, w[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int u = 0; u < U; ++u) out[r * kMostUnits + u] = sum[r][u];
  }
}

void multiply_units(int64_t units, const int8_t* const* rows, const uint8_t* x, int64_t fours, __m512i* out) {
  // as many sums as the registers hold, and no fewer than the instruction's latency wants
  switch (units) {
    case 1:
      multiply<8, 1>(rows, x, fours, out);
      return multiply<8, 1>(rows + 8, x, fours, out + 8 * kMostUnits);
    case 2:
      multiply<8, 2>(rows, x, fours, out);
      return multiply<8, 2>(rows + 8, x, fours, out + 8 * kMostUnits);
  }
  for (int64_t r = 0; r < kRows; r += 4) {
    const auto at = rows + r;
    const auto to = out + r * kMostUnits;
    switch (units) {
      case 3: multiply<4, 3>(at, x, fours, to); break;
      case 4: multiply<4, 4>(at, x, fours, to); break;
      case 5: multiply<4, 5>(at, x, fours, to); break;
      default: multiply<4, 6>(at, x, fours, to);
    }
  }
}

// Output channels from `begin` to `end` for all tokens, a tile of tokens after the other.
void many(const Int8Matmul& op, const uint8_t* x, const float* units, int64_t begin, int64_t end) {
  const int64_t fours = op.I / 4, all = (op.T + kUnit - 1) / kUnit;
  const int64_t tiles = (all + kMostUnits - 1) / kMostUnits, step = (all + tiles - 1) / tiles;
  const __m512i ones = _mm512_set1_epi8(1);
  std::vector<int32_t> of_rows(end - begin);
  for (int64_t o = begin; o < end; ++o) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < op.I; i += 64) {
      sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(tail(op.I - i), op.values + o * op.I + i));
    }
    of_rows[o - begin] = 128 * _mm512_reduce_add_epi32(sum);
  }
  const __m512i strided = _mm512_mullo_epi32(lanes(), _mm512_set1_epi32(kUnit));
  for (int64_t first = 0; first < all; first += step) {
    const int64_t count = std::min(step, all - first);
    for (int64_t o = begin; o < end; o += kRows) {
      const int8_t* rows[kRows];
      for (int64_t r = 0; r < kRows; ++r) rows[r] = op.values + std::min(o + r, op.O - 1) * op.I;
      __m512i products[kRows * kMostUnits];
      multiply_units(count, rows, x + first * fours * 64, fours, products);
      for (int64_t u = 0; u < count; ++u) {
        alignas(64) float block[kRows][kUnit];
        for (int64_t r = 0; r < kRows; ++r) {
          const int64_t row = std::min(o + r, end - 1);
          const __m512 both = _mm512_cvtepi32_ps(
              _mm512_sub_epi32(products[r * kMostUnits + u], _mm512_set1_epi32(of_rows[row - begin])));
          const __m256 fine = _mm512_extractf32x8_ps(both, 1);
          const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(both), _mm256_mul_ps(fine, _mm256_set1_ps(1 / kFiner)));
          _mm256_store_ps(block[r], _mm256_mul_ps(y, _mm256_set1_ps(op.scales[row])));
        }
        for (int64_t t = 0; t < kUnit; ++t) {
          const int64_t token = (first + u) * kUnit + t;
          if (token >= op.T) break;
          const __m512 y = _mm512_i32gather_ps(strided, &block[0][t], 4);
          store(op.y, op.y_type, token * op.O + o, _mm512_mul_ps(y, _mm512_set1_ps(units[token])), end - o);
        }
      }
    }
  }
}

// Bytes of tokens in the order in which `many` reads them.
void interleave(const Int8Matmul& op, int64_t unit, uint8_t* x, float* units) {
  const int64_t fours = op.I / 4;
  std::vector<uint8_t> bytes(2 * op.I);
  auto words = reinterpret_cast<uint32_t*>(x + unit * fours * 64);
  for (int64_t t = 0; t < kUnit; ++t) {
    const int64_t token = unit * kUnit + t;
    if (token < op.T) {
      units[token] = split(op.x, op.x_type, token * op.I, op.I, 0x80, bytes.data(), bytes.data() + op.I);
    } else {
      std::fill(bytes.begin(), bytes.end(), 0x80);
    }
    for (int64_t g = 0; g < fours; ++g) {
      std::memcpy(words + 16 * g + t, bytes.data() + 4 * g, 4);
      std::memcpy(words + 16 * g + kUnit + t, bytes.data() + op.I + 4 * g, 4);
    }
  }
}

// Memory that a thread keeps for its next product.
struct Scratch {
  void* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
  uint8_t* get(size_t wanted) {
    wanted = (wanted + 63) / 64 * 64;
    if (wanted > size) {
      std::free(data);
      data = std::aligned_alloc(64, wanted);
      size = wanted;
    }
    return static_cast<uint8_t*>(data);
  }
};

}  // namespace

void int8_matmul(const Int8Matmul& op) {
  thread_local Scratch scratch;
  const int64_t all = (op.T + kUnit - 1) / kUnit;
  uint8_t* x = scratch.get(all * kUnit * (2 * op.I + sizeof(float)));
  auto units = reinterpret_cast<float*>(x + all * kUnit * 2 * op.I);
  if (op.T <= kFew) {
    std::memset(x + 2 * op.T * op.I, 0, 2 * (all * kUnit - op.T) * op.I);
    std::fill(units + op.T, units + all * kUnit, 0.0f);
    for (int64_t t = 0; t < op.T; ++t) {
      units[t] = split(op.x, op.x_type, t * op.I, op.I, 0, x + 2 * t * op.I, x + (2 * t + 1) * op.I);
    }
  } else if (op.T < 64) {
    for (int64_t unit = 0; unit < all; ++unit) interleave(op, unit, x, units);
  } else {
    share(all, [&](int64_t unit) { interleave(op, unit, x, units); });
  }
  // pieces of some microseconds, and several for each thread
  const int64_t work = op.O * op.I * std::max<int64_t>(1, all / 2);
  const int64_t wanted = std::clamp<int64_t>(work / 65536, 1, 16 * threads());
  const int64_t rows = ((op.O + wanted - 1) / wanted + kRows - 1) / kRows * kRows;
  share((op.O + rows - 1) / rows, [&](int64_t piece) {
    const int64_t begin = piece * rows, end = std::min(op.O, begin + rows);
    const auto multiply = op.T == 1 ? few<2> : op.T == 2 ? few<4> : op.T <= kFew ? few<8> : many;
    multiply(op, x, units, begin, end);
  });
}

}  // namespace cvllm
