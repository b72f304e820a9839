// What XLA calls: checks of types, and the arrays as the operations want them.

#include "operations.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using cvllm::Type;

namespace {

bool type_of(const ffi::AnyBuffer& buffer, Type* type) {
  switch (buffer.element_type()) {
    case ffi::F32: *type = Type::kF32; return true;
    case ffi::BF16: *type = Type::kBF16; return true;
    case ffi::S8: *type = Type::kInt8; return true;
    default: return false;
  }
}

ffi::Error refuse(const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); }

using Any = ffi::AnyBuffer;
using AnyResult = ffi::Result<ffi::AnyBuffer>;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

ffi::Error Int8Matmul(Any x, ffi::Buffer<ffi::S8> values, Floats scales, AnyResult y) {
  cvllm::Int8Matmul op{};
  if (!type_of(x, &op.x_type) || !type_of(*y, &op.y_type)) return refuse("int8_matmul: types of x and y");
  op.x = x.untyped_data(), op.y = y->untyped_data();
  op.values = values.typed_data(), op.scales = scales.typed_data();
  op.T = x.dimensions()[0], op.O = values.dimensions()[0], op.I = values.dimensions()[1];
  cvllm::int8_matmul(op);
  return ffi::Error::Success();
}

ffi::Error KvWrite(Any qkv, Floats cos, Floats sin, Ints page, Ints offset, Any k, Any v, Floats k_scales,
                   Floats v_scales, AnyResult q, AnyResult k_out, AnyResult v_out,
                   ffi::ResultBuffer<ffi::F32> k_scales_out, ffi::ResultBuffer<ffi::F32> v_scales_out) {
  cvllm::KvWrite op{};
  if (!type_of(qkv, &op.type) || !type_of(k, &op.page_type)) return refuse("kv_write: types of qkv and pages");
  if (k_out->untyped_data() != k.untyped_data() || v_out->untyped_data() != v.untyped_data()) {
    return refuse("kv_write: the pages are not written in place");
  }
  const auto pages = k.dimensions(), heads = qkv.dimensions();
  op.qkv = qkv.untyped_data(), op.q = q->untyped_data();
  op.cos = cos.typed_data(), op.sin = sin.typed_data();
  op.page = page.typed_data(), op.offset = offset.typed_data();
  op.k_pages = k.untyped_data(), op.v_pages = v.untyped_data();
  op.k_scales = k_scales_out->typed_data(), op.v_scales = v_scales_out->typed_data();
  op.K = pages[1], op.S = pages[2], op.H = pages[3];
  op.T = heads[0], op.N = heads[1] - 2 * op.K, op.R = 2 * cos.dimensions().back();
  cvllm::kv_write(op);
  return ffi::Error::Success();
}

ffi::Error Attention(Any q, Any k, Any v, Ints tables, Ints starts, Ints counts, Floats k_scales, Floats v_scales,
                     Floats sinks, AnyResult y, float scale, float soft_cap, int64_t window) {
  cvllm::Attention op{};
  if (!type_of(q, &op.type) || !type_of(k, &op.page_type)) return refuse("attention: types of q and pages");
  const auto or_null = [](const Floats& array) { return array.element_count() > 0 ? array.typed_data() : nullptr; };
  const auto queries = q.dimensions(), pages = k.dimensions();
  op.q = q.untyped_data(), op.y = y->untyped_data();
  op.k_pages = k.untyped_data(), op.v_pages = v.untyped_data();
  op.k_scales = or_null(k_scales), op.v_scales = or_null(v_scales), op.sinks = or_null(sinks);
  op.tables = tables.typed_data(), op.starts = starts.typed_data(), op.counts = counts.typed_data();
  op.scale = scale, op.soft_cap = soft_cap, op.window = window;
  op.B = queries[0], op.N = queries[queries.size() - 2], op.W = tables.dimensions()[1];
  op.K = pages[1], op.S = pages[2], op.H = pages[3];
  cvllm::attention(op);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(cvllm_int8_matmul, Int8Matmul,
                              ffi::Ffi::Bind().Arg<Any>().Arg<ffi::Buffer<ffi::S8>>().Arg<Floats>().Ret<Any>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cvllm_kv_write, KvWrite,
                              ffi::Ffi::Bind()
                                  .Arg<Any>().Arg<Floats>().Arg<Floats>().Arg<Ints>().Arg<Ints>()
                                  .Arg<Any>().Arg<Any>().Arg<Floats>().Arg<Floats>()
                                  .Ret<Any>().Ret<Any>().Ret<Any>().Ret<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cvllm_attention, Attention,
                              ffi::Ffi::Bind()
                                  .Arg<Any>().Arg<Any>().Arg<Any>().Arg<Ints>().Arg<Ints>().Arg<Ints>()
                                  .Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Any>()
                                  .Attr<float>("scale").Attr<float>("soft_cap").Attr<int64_t>("window"));
