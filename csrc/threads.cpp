#include "threads.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>

namespace fastmfr {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

/// What GCC makes of `#pragma omp parallel`. Every runtime that PyTorch comes with has it.
Parallel openmp() {
    static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

struct Pieces {
    const std::function<void(int64_t)>& piece;
    const int64_t count;
    std::atomic<int64_t> next{0};
};

void take_pieces(void* data) {
    auto& pieces = *static_cast<Pieces*>(data);
    for (int64_t number; (number = pieces.next.fetch_add(1, std::memory_order_relaxed)) < pieces.count;)
        pieces.piece(number);
}

}  // namespace

void in_parallel(int64_t count, int threads, const std::function<void(int64_t)>& piece) {
    Pieces pieces{piece, count};
    const auto wanted = static_cast<unsigned>(std::min<int64_t>(count, threads));
    if (wanted > 1 && openmp())
        openmp()(take_pieces, &pieces, wanted, 0);
    else
        take_pieces(&pieces);
}

}  // namespace fastmfr
