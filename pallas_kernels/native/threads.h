// Work shared among a few threads that stay awake between the operations of a step.

#pragma once

#include <cstdint>

namespace cvllm {

using Piece = void (*)(const void* job, int64_t index);

// Calls piece(job, i) for every i below count, on this thread and on others that are free; returns when all are done.
// A call from a second thread at the same time runs alone, on that thread.
void share_raw(int64_t count, Piece piece, const void* job);

// The same for a callable that takes the index.
template <typename F>
void share(int64_t count, const F& work) {
  share_raw(count, [](const void* job, int64_t index) { (*static_cast<const F*>(job))(index); }, &work);
}

// Threads that can take part, this one included.
int threads();

}  // namespace cvllm
