// Work cut into pieces, shared among the threads that PyTorch has
#pragma once

#include <cstdint>
#include <functional>

namespace fastmfr {

/// Calls piece(0) to piece(pieces - 1), shared among at most `threads` threads, and returns when all are done. No piece
/// may throw. The threads are those of the OpenMP runtime that PyTorch has loaded: a second pool would have to wait for
/// a core until the threads of the first one stop spinning. Where there is no such runtime, one thread does all.
void in_parallel(int64_t pieces, int threads, const std::function<void(int64_t)>& piece);

}  // namespace fastmfr
