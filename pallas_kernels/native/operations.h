// The operations, as plain functions: their meaning is that of the XLA forms beside them in this package.

#pragma once

#include <cstdint>

#include "numbers.h"

namespace cvllm {

// y [T O] = x [T I] @ (values [O I] * scales [O]).T; I is a multiple of 4.
struct Int8Matmul {
  const void* x;
  Type x_type;
  const int8_t* values;
  const float* scales;
  void* y;
  Type y_type;
  int64_t T, O, I;
};
void int8_matmul(const Int8Matmul& op);

// Queries and keys of T tokens are rotated, keys and values go into pages [P K S H]; H and R are even.
struct KvWrite {
  const void* qkv;  // [T N+2K H]
  Type type;
  const float *cos, *sin;  // [T R/2]
  const int32_t *page, *offset;
  void* q;  // [T N H]
  void *k_pages, *v_pages;
  Type page_type;
  float *k_scales, *v_scales;  // [P K S], of int8 pages
  int64_t T, N, K, S, H, R;
};
void kv_write(const KvWrite& op);

// One query a sequence over its pages [P K S H]; S and H are multiples of 16.
struct Attention {
  const void* q;  // [B N H]
  Type type;
  const void *k_pages, *v_pages;
  Type page_type;
  const float *k_scales, *v_scales;  // [P K S], of int8 pages
  const float* sinks;                // [N], or null
  const int32_t *tables, *starts, *counts;
  void* y;  // [B N H]
  float scale, soft_cap;             // soft_cap 0: none
  int64_t window;                    // 0: none
  int64_t B, N, K, S, H, W;
};
void attention(const Attention& op);

}  // namespace cvllm
