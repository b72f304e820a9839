// One query a sequence over its pages, with a running softmax (Milakov and Gimelshein, arXiv 1805.02867). A sequence is
// cut into pieces, so that few long ones occupy all threads, and what the pieces give is merged.

#include <algorithm>
#include <cmath>
#include <vector>

#include "operations.h"
#include "threads.h"

namespace cvllm {
namespace {

constexpr float kMasked = -1e30f;
constexpr int64_t kBlock = 16;            // tokens whose logits fill a vector
constexpr int64_t kAhead = 32;            // tokens that are asked for before they are used
constexpr int64_t kPiece = 256;           // tokens
constexpr int64_t kHeads = 4, kDims = 4;  // query heads and vectors of values whose sums fill the registers

// What one piece has found for one query head.
struct Part {
  float top, total;
};

template <Type kPages>
struct Heads {
  const Attention& op;
  int64_t b, k, G;
  std::vector<float> q;        // [G H], scaled
  std::vector<float> weights;  // [G kBlock]

  Heads(const Attention& op, int64_t b, int64_t k)
      : op(op), b(b), k(k), G(op.N / op.K), q(G * op.H), weights(G * kBlock) {
    for (int64_t i = 0; i < G * op.H; i += 16) {
      const __m512 x = load(op.q, op.type, (b * op.N + k * G) * op.H + i);
      _mm512_storeu_ps(&q[i], _mm512_mul_ps(x, _mm512_set1_ps(op.scale)));
    }
  }

  // Place of the first of 16 tokens in an array [P K S].
  int64_t place(int64_t token) const {
    return (static_cast<int64_t>(op.tables[b * op.W + token / op.S]) * op.K + k) * op.S + token % op.S;
  }

  // Pages lie apart: the processor's own prefetchers do not find the next one.
  void ask_for(const void* pages, int64_t token) const {
    const char* from = static_cast<const char*>(pages) + token * op.H * size_of(kPages);
    for (int64_t i = 0; i < op.H * size_of(kPages); i += 64) _mm_prefetch(from + i, _MM_HINT_T0);
  }

  // Of 16 tokens for up to four heads; a key is read once for all.
  template <int Count>
  void logits_of(int64_t at, int64_t next, int64_t g, __m512* out) const {
    __m512 products[Count][kBlock];
    for (int64_t t = 0; t < kBlock; ++t) {
      if (g == 0) ask_for(op.k_pages, next + t);
      __m512 sum[Count];
      for (auto& s : sum) s = _mm512_setzero_ps();
      for (int64_t i = 0; i < op.H; i += 16) {
        const __m512 key = load<kPages>(op.k_pages, (at + t) * op.H + i);
        for (int h = 0; h < Count; ++h) sum[h] = _mm512_fmadd_ps(key, _mm512_loadu_ps(&q[(g + h) * op.H + i]), sum[h]);
      }
      for (int h = 0; h < Count; ++h) products[h][t] = sum[h];
    }
    for (int h = 0; h < Count; ++h) out[h] = sums(products[h]);
  }

  template <int Count>
  void add_values(int64_t at, int64_t next, int64_t from, int64_t to, int64_t g, float* acc) const {
    for (int64_t i = 0; i < op.H; i += 16 * kDims) {
      const int64_t dims = std::min<int64_t>(kDims, (op.H - i) / 16);
      __m512 sum[Count][kDims];
      for (int h = 0; h < Count; ++h) {
        for (int64_t d = 0; d < kDims; ++d) {
          sum[h][d] = d < dims ? _mm512_loadu_ps(acc + (g + h) * op.H + i + 16 * d) : _mm512_setzero_ps();
        }
      }
      for (int64_t t = from; t < to; ++t) {
        if (g == 0 && i == 0) ask_for(op.v_pages, next + t);
        __m512 value[kDims];
        for (int64_t d = 0; d < kDims; ++d) {
          value[d] = d < dims ? load<kPages>(op.v_pages, (at + t) * op.H + i + 16 * d) : _mm512_setzero_ps();
        }
        for (int h = 0; h < Count; ++h) {
          const __m512 weight = _mm512_set1_ps(weights[(g + h) * kBlock + t]);
          for (int64_t d = 0; d < kDims; ++d) sum[h][d] = _mm512_fmadd_ps(weight, value[d], sum[h][d]);
        }
      }
      for (int h = 0; h < Count; ++h) {
        for (int64_t d = 0; d < dims; ++d) _mm512_storeu_ps(acc + (g + h) * op.H + i + 16 * d, sum[h][d]);
      }
    }
  }

  // Tokens begin to end, of which the first and the last block may have others beside them.
  void attend(int64_t begin, int64_t end, Part* parts, float* acc) {
    for (int64_t g = 0; g < G; ++g) parts[g] = {kMasked, 0};
    std::fill(acc, acc + G * op.H, 0.0f);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t token = begin / kBlock * kBlock; token < end; token += kBlock) {
      const int64_t at = place(token), next = place(std::min(token + kAhead, (end - 1) / kBlock * kBlock));
      const int64_t from = std::max<int64_t>(0, begin - token), to = std::min(kBlock, end - token);
      const __mmask16 seen = _mm512_cmp_epi32_mask(lanes, _mm512_set1_epi32(from), _MM_CMPINT_NLT) &
                             _mm512_cmp_epi32_mask(lanes, _mm512_set1_epi32(to), _MM_CMPINT_LT);
      for (int64_t g = 0; g < G; g += kHeads) {
        __m512 found[kHeads];
        const int64_t count = std::min(kHeads, G - g);
        switch (count) {
          case 1: logits_of<1>(at, next, g, found); break;
          case 2: logits_of<2>(at, next, g, found); break;
          case 3: logits_of<3>(at, next, g, found); break;
          default: logits_of<4>(at, next, g, found);
        }
        for (int64_t h = 0; h < count; ++h) weigh(found[h], at, seen, g + h, parts[g + h], acc + (g + h) * op.H);
        switch (count) {
          case 1: add_values<1>(at, next, from, to, g, acc); break;
          case 2: add_values<2>(at, next, from, to, g, acc); break;
          case 3: add_values<3>(at, next, from, to, g, acc); break;
          default: add_values<4>(at, next, from, to, g, acc);
        }
      }
    }
  }

  // Logits to weights, in units of the softmax's running maximum.
  void weigh(__m512 x, int64_t at, __mmask16 seen, int64_t g, Part& part, float* acc) {
    if (op.k_scales != nullptr) x = _mm512_mul_ps(x, _mm512_loadu_ps(op.k_scales + at));
    if (op.soft_cap > 0) {
      alignas(64) float each[16];
      _mm512_store_ps(each, x);
      for (float& logit : each) logit = std::tanh(logit / op.soft_cap) * op.soft_cap;
      x = _mm512_load_ps(each);
    }
    x = _mm512_mask_mov_ps(_mm512_set1_ps(kMasked), seen, x);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const float top = nan ? NAN : std::max(part.top, _mm512_reduce_max_ps(x));
    const float shrink = top == part.top ? 1.0f : std::exp(part.top - top);
    const __m512 weight = _mm512_maskz_mov_ps(seen, exp_of_negative(_mm512_sub_ps(x, _mm512_set1_ps(top))));
    if (shrink != 1) {
      for (int64_t i = 0; i < op.H; i += 16) {
        _mm512_storeu_ps(acc + i, _mm512_mul_ps(_mm512_loadu_ps(acc + i), _mm512_set1_ps(shrink)));
      }
    }
    part = {top, part.total * shrink + _mm512_reduce_add_ps(weight)};
    const __m512 scaled = op.v_scales == nullptr
                              ? weight
                              : _mm512_maskz_mul_ps(seen, weight, _mm512_loadu_ps(op.v_scales + at));
    _mm512_storeu_ps(&weights[g * kBlock], scaled);
  }
};

}  // namespace

void attention(const Attention& op) {
  struct Span {
    int64_t b, k, begin, end, part;
  };
  std::vector<Span> spans;
  std::vector<int64_t> first(op.B + 1, 0);  // pieces of all sequences before one
  const int64_t G = op.N / op.K;
  for (int64_t b = 0; b < op.B; ++b) {
    const int64_t end = op.counts[b] > 0 ? op.starts[b] + 1 : 0;
    const int64_t begin = op.window > 0 ? std::max<int64_t>(0, end - op.window) : 0;
    const int64_t pieces = (end - begin + kPiece - 1) / kPiece;
    const int64_t step = pieces > 0 ? ((end - begin + pieces - 1) / pieces + kBlock - 1) / kBlock * kBlock : 0;
    int64_t made = 0;
    for (int64_t from = begin; from < end; from += step, ++made) {
      for (int64_t k = 0; k < op.K; ++k) {
        spans.push_back({b, k, from, std::min(end, from + step), (first[b] + made) * op.K + k});
      }
    }
    first[b + 1] = first[b] + made;
  }
  std::vector<Part> parts(first[op.B] * op.N);
  std::vector<float> acc(first[op.B] * op.N * op.H);
  share(spans.size(), [&](int64_t index) {
    const Span& s = spans[index];
    const auto run = [&](auto heads) { heads.attend(s.begin, s.end, &parts[s.part * G], &acc[s.part * G * op.H]); };
    switch (op.page_type) {
      case Type::kF32: return run(Heads<Type::kF32>(op, s.b, s.k));
      case Type::kBF16: return run(Heads<Type::kBF16>(op, s.b, s.k));
      case Type::kInt8: return run(Heads<Type::kInt8>(op, s.b, s.k));
    }
  });
  std::vector<float> y(op.H);
  for (int64_t b = 0; b < op.B; ++b) {
    for (int64_t n = 0; n < op.N; ++n) {
      const float sink = op.sinks == nullptr ? kMasked : op.sinks[n];
      float top = sink;
      for (int64_t p = first[b]; p < first[b + 1]; ++p) {
        const float other = parts[p * op.N + n].top;
        top = std::isnan(other) ? other : std::max(top, other);
      }
      float total = op.sinks == nullptr ? 0 : std::exp(sink - top);
      std::fill(y.begin(), y.end(), 0.0f);
      for (int64_t p = first[b]; p < first[b + 1]; ++p) {
        const Part& part = parts[p * op.N + n];
        const float share_of = std::exp(part.top - top);
        total += part.total * share_of;
        const float* from = &acc[(p * op.N + n) * op.H];
        for (int64_t i = 0; i < op.H; ++i) y[i] += from[i] * share_of;
      }
      const float inverse = 1 / std::max(total, 1e-30f);
      for (int64_t i = 0; i < op.H; i += 16) {
        store(op.y, op.type, (b * op.N + n) * op.H + i, _mm512_mul_ps(_mm512_loadu_ps(&y[i]), _mm512_set1_ps(inverse)));
      }
    }
  }
}

}  // namespace cvllm
