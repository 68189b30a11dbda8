// Compiled without fused multiply-adds (CMakeLists.txt), so that both sweeps of a pass round alike.
#include "batchnorm_prelu.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "threads.hpp"

#define INLINE __attribute__((always_inline)) inline

namespace fastmfr {
namespace {

constexpr int64_t WIDTH = 256;       // elements of a row that a loop runs over; narrower rows are taken together
constexpr int64_t PIECE = 1 << 15;   // elements of a piece, at least
constexpr int64_t PIECES = 64;       // at most
constexpr int64_t IN_T = 128;        // rows whose sum is kept in T, before it goes into a double

/// How the matrix is cut: into rows of whole pixels, at least WIDTH wide where that goes, and those into pieces.
struct Cut {
    int64_t together, width, rows, rest, share, pieces;

    explicit Cut(const Sizes& sizes) {
        together = std::max<int64_t>(1, WIDTH / sizes.channels);
        width = together * sizes.channels;
        rows = sizes.pixels / together;
        rest = sizes.pixels % together * sizes.channels;
        share = std::max({(rows + PIECES - 1) / PIECES, (PIECE + width - 1) / width, int64_t(1)});
        pieces = std::max<int64_t>(1, (rows + share - 1) / share);
    }
};

template <class F>
__attribute__((target("avx512f,avx512vl,avx512dq"))) void with_avx512(const F& function) { function(); }
template <class F>
__attribute__((target("avx2"))) void with_avx2(const F& function) { function(); }

/// Runs a function whose code is inlined, compiled for the widest vectors of this machine.
template <class F>
void vectorised(const F& function) {
    static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                               __builtin_cpu_supports("avx512dq");
    static const bool avx2 = __builtin_cpu_supports("avx2");
    if (avx512)
        with_avx512(function);
    else if (avx2)
        with_avx2(function);
    else
        function();
}

/// Values per channel, repeated for all pixels of a row.
template <class T>
std::vector<T> repeated(const Cut& cut, const Sizes& sizes, const T* values, int64_t step = 1) {
    std::vector<T> wide(cut.width);
    auto at = wide.begin();
    for (int64_t pixel = 0; pixel < cut.together; ++pixel)
        for (int64_t c = 0; c < sizes.channels; ++c) *at++ = values[c * step];
    return wide;
}

/// Calls row(begin, width) for each row of a piece; the last piece has the pixels that are left over.
template <class Row>
INLINE void each_row(const Cut& cut, int64_t piece, const Row& row) {
    const int64_t first = piece * cut.share, last = std::min(first + cut.share, cut.rows);
    for (int64_t at = first; at < last; ++at) row(at * cut.width, cut.width);
    if (piece == cut.pieces - 1 && cut.rest) row(cut.rows * cut.width, cut.rest);
}

/// Calls element(at, column) for each element of the matrix.
template <class Element>
void for_each(const Sizes& sizes, const Cut& cut, const Element& element) {
    in_parallel(cut.pieces, sizes.threads, [&](int64_t piece) {
        vectorised([&]() __attribute__((always_inline)) {
            each_row(cut, piece, [&](int64_t begin, int64_t width) __attribute__((always_inline)) {
#pragma GCC ivdep
                for (int64_t column = 0; column < width; ++column) element(begin + column, column);
            });
        });
    });
}

/// Sums per channel (K, C) of what terms(at, column) returns of each element: an array of K values.
template <int K, class T, class Terms>  // K is 2 or 3
std::vector<double> sums(const Sizes& sizes, const Cut& cut, const Terms& terms) {
    const int64_t C = sizes.channels;
    std::vector<double> of_pieces(cut.pieces * K * C);
    in_parallel(cut.pieces, sizes.threads, [&](int64_t piece) {
        std::vector<T> in_T(K * cut.width);
        std::vector<double> whole(K * cut.width);
        vectorised([&]() __attribute__((always_inline)) {
            T* const kept = in_T.data();
            double* const out = whole.data();
            const int64_t wide = cut.width;
            int64_t rows = 0;
            const auto let_out = [&]() __attribute__((always_inline)) {
                for (int64_t at = 0; at < K * wide; ++at) out[at] += kept[at];
                for (int64_t at = 0; at < K * wide; ++at) kept[at] = 0;
                rows = 0;
            };
            each_row(cut, piece, [&](int64_t begin, int64_t width) __attribute__((always_inline)) {
#pragma GCC ivdep
                for (int64_t column = 0; column < width; ++column) {
                    const std::array<T, K> value = terms(begin + column, column);
                    kept[column] += value[0];
                    kept[wide + column] += value[1];
                    if constexpr (K == 3) kept[2 * wide + column] += value[2];
                }
                if (++rows == IN_T) let_out();
            });
            let_out();
        });
        double* const own = of_pieces.data() + piece * K * C;
        for (int64_t k = 0; k < K; ++k)
            for (int64_t pixel = 0; pixel < cut.together; ++pixel)
                for (int64_t c = 0; c < C; ++c) own[k * C + c] += whole[k * cut.width + pixel * C + c];
    });
    std::vector<double> joined(of_pieces.begin(), of_pieces.begin() + K * C);
    for (int64_t piece = 1; piece < cut.pieces; ++piece)
        for (int64_t at = 0; at < K * C; ++at) joined[at] += of_pieces[piece * K * C + at];
    return joined;
}

template <class T>
void store(const std::vector<double>& values, T* out) {
    std::transform(values.begin(), values.end(), out, [](double value) { return static_cast<T>(value); });
}

/// Means per channel of row `k` of sums (K, C), repeated; 0 if the statistics are not the batch's.
template <class T>
std::vector<T> means(const Cut& cut, const Sizes& sizes, bool batch, const T* sum, int64_t k) {
    std::vector<T> mean(sizes.channels);
    if (batch)
        for (int64_t c = 0; c < sizes.channels; ++c) mean[c] = sum[k * sizes.channels + c] / T(sizes.pixels);
    return repeated(cut, sizes, mean.data());
}

/// The value where z <= 0, else 0.
template <class T>
INLINE T where_below(T z, T value) {
    return z > 0 ? T(0) : value;
}

/// The layer as the loops read it. `m` is 1 without a PReLU.
template <class T>
struct Wide {
    std::vector<T> mean_, r_, weight_, bias_, slope_;
    const T *mean, *r, *weight, *bias, *slope;

    Wide(const Cut& cut, const Sizes& sizes, const Layer<T>& layer)
        : mean_(repeated(cut, sizes, layer.mean)),
          r_(repeated(cut, sizes, layer.r)),
          weight_(repeated(cut, sizes, layer.weight)),
          bias_(repeated(cut, sizes, layer.bias)),
          slope_(layer.slope ? repeated(cut, sizes, layer.slope, layer.slopes > 1) : std::vector<T>(cut.width, T(1))),
          mean(mean_.data()),
          r(r_.data()),
          weight(weight_.data()),
          bias(bias_.data()),
          slope(slope_.data()) {}

    INLINE T xh(T x, int64_t column) const { return (x - mean[column]) * r[column]; }
    INLINE T z(T xh, int64_t column) const { return weight[column] * xh + bias[column]; }
    INLINE T times_m(T value, T z, int64_t column) const {
        const T below = slope[column];  // read for every element, so that the loop has no branch
        return value * (z > 0 ? T(1) : below);
    }
};

/// The direction of a tangent as the loops read it, with the means of x' and of xh x'.
template <class T>
struct WideMoving {
    std::vector<T> weight_, bias_, slope_, plain_, along_;
    const T *weight, *bias, *slope, *plain, *along;

    WideMoving(const Cut& cut, const Sizes& sizes, const Layer<T>& layer, const Moving<T>& moving, bool batch,
               const T* moved)
        : weight_(repeated(cut, sizes, moving.weight)),
          bias_(repeated(cut, sizes, moving.bias)),
          slope_(layer.slope ? repeated(cut, sizes, moving.slope, layer.slopes > 1) : std::vector<T>(cut.width)),
          plain_(means(cut, sizes, batch, moved, 0)),
          along_(means(cut, sizes, batch, moved, 1)),
          weight(weight_.data()),
          bias(bias_.data()),
          slope(slope_.data()),
          plain(plain_.data()),
          along(along_.data()) {}

    INLINE T xhd(const Wide<T>& layer, T xd, T xh, int64_t column) const {
        return layer.r[column] * (xd - plain[column] - xh * along[column]);
    }
    INLINE T zd(const Wide<T>& layer, T xhd, T xh, int64_t column) const {
        return layer.weight[column] * xhd + weight[column] * xh + bias[column];
    }
    /// slope' times a value where z <= 0, else 0.
    INLINE T below(T value, T z, int64_t column) const { return slope[column] * where_below(z, value); }
};

}  // namespace

template <class T>
void batch_statistics(const Sizes& sizes, const Running<T>& running, T eps, const T* x, T* mean, T* r) {
    const Cut cut(sizes);
    const std::vector<T> origin_ = repeated(cut, sizes, x);  // the first pixel: about 0, the variance would cancel
    const T* const origin = origin_.data();
    const std::vector<double> sum = sums<2, T>(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
        const T shifted = x[at] - origin[column];
        return std::array<T, 2>{shifted, shifted * shifted};
    });
    const auto n = static_cast<double>(sizes.pixels);
    for (int64_t c = 0; c < sizes.channels; ++c) {
        const double shifted = sum[c] / n;
        const double variance = std::max(sum[sizes.channels + c] / n - shifted * shifted, 0.0);
        mean[c] = static_cast<T>(static_cast<double>(origin[c]) + shifted);
        r[c] = static_cast<T>(1 / std::sqrt(variance + static_cast<double>(eps)));
        if (!running.mean) continue;
        const T unbiased = static_cast<T>(variance * (n / std::max(n - 1, 1.0)));
        running.mean[c] += running.momentum * (mean[c] - running.mean[c]);
        running.variance[c] += running.momentum * (unbiased - running.variance[c]);
    }
}

template <class T>
void forward(const Sizes& sizes, const Layer<T>& narrow, const T* x, T* y) {
    const Cut cut(sizes);
    const Wide<T> layer(cut, sizes, narrow);
    for_each(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
        const T z = layer.z(layer.xh(x[at], column), column);
        y[at] = layer.times_m(z, z, column);
    });
}

template <class T>
void backward(const Sizes& sizes, const Layer<T>& narrow, bool batch, const T* x, const T* dy, T* dx, T* sum) {
    const Cut cut(sizes);
    const Wide<T> layer(cut, sizes, narrow);
    store(sums<3, T>(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
              const T xh = layer.xh(x[at], column), z = layer.z(xh, column), dz = layer.times_m(dy[at], z, column);
              return std::array<T, 3>{dz, xh * dz, where_below(z, z * dy[at])};
          }), sum);
    const std::vector<T> plain_ = means(cut, sizes, batch, sum, 0), along_ = means(cut, sizes, batch, sum, 1);
    const T *const plain = plain_.data(), *const along = along_.data();
    for_each(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
        const T xh = layer.xh(x[at], column), dz = layer.times_m(dy[at], layer.z(xh, column), column);
        dx[at] = layer.weight[column] * layer.r[column] * (dz - plain[column] - xh * along[column]);
    });
}

template <class T>
void tangent(const Sizes& sizes, const Layer<T>& narrow, const Moving<T>& narrow_moving, bool batch, const T* x,
             const T* xd, T* yd, T* moved) {
    const Cut cut(sizes);
    const Wide<T> layer(cut, sizes, narrow);
    if (batch)
        store(sums<2, T>(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
                  return std::array<T, 2>{xd[at], layer.xh(x[at], column) * xd[at]};
              }), moved);
    else
        std::fill_n(moved, 2 * sizes.channels, T(0));
    const WideMoving<T> moving(cut, sizes, narrow, narrow_moving, batch, moved);
    for_each(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
        const T xh = layer.xh(x[at], column), z = layer.z(xh, column);
        const T zd = moving.zd(layer, moving.xhd(layer, xd[at], xh, column), xh, column);
        yd[at] = layer.times_m(zd, z, column) + moving.below(z, z, column);
    });
}

template <class T>
void second_backward(const Sizes& sizes, const Layer<T>& narrow, const Moving<T>& narrow_moving, bool batch, const T* x,
                     const T* dy, const T* xd, const T* dyd, const T* sum, const T* moved, T* dxd, T* sum_d) {
    const Cut cut(sizes);
    const Wide<T> layer(cut, sizes, narrow);
    const WideMoving<T> moving(cut, sizes, narrow, narrow_moving, batch, moved);
    store(sums<3, T>(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
              const T xh = layer.xh(x[at], column), z = layer.z(xh, column), dz = layer.times_m(dy[at], z, column);
              const T xhd = moving.xhd(layer, xd[at], xh, column), zd = moving.zd(layer, xhd, xh, column);
              const T dzd = layer.times_m(dyd[at], z, column) + moving.below(dy[at], z, column);
              return std::array<T, 3>{dzd, xh * dzd + xhd * dz, where_below(z, z * dyd[at] + zd * dy[at])};
          }), sum_d);
    const std::vector<T> plain_ = means(cut, sizes, batch, sum, 0), along_ = means(cut, sizes, batch, sum, 1);
    const std::vector<T> plain_d_ = means(cut, sizes, batch, sum_d, 0), along_d_ = means(cut, sizes, batch, sum_d, 1);
    std::vector<T> gain_d_(cut.width);
    for (int64_t at = 0; at < cut.width; ++at) {
        const T r = layer.r[at];
        gain_d_[at] = moving.weight[at] * r - layer.weight[at] * r * r * moving.along[at];
    }
    const T *const plain = plain_.data(), *const along = along_.data(), *const gain_d = gain_d_.data();
    const T *const plain_d = plain_d_.data(), *const along_d = along_d_.data();
    for_each(sizes, cut, [&](int64_t at, int64_t column) __attribute__((always_inline)) {
        const T xh = layer.xh(x[at], column), z = layer.z(xh, column), dz = layer.times_m(dy[at], z, column);
        const T xhd = moving.xhd(layer, xd[at], xh, column);
        const T dzd = layer.times_m(dyd[at], z, column) + moving.below(dy[at], z, column);
        const T turned = dzd - plain_d[column] - xh * along_d[column] - xhd * along[column];
        const T u = dz - plain[column] - xh * along[column];
        dxd[at] = layer.weight[column] * layer.r[column] * turned + gain_d[column] * u;
    });
}

#define FOR(T)                                                                                                        \
    template void batch_statistics(const Sizes&, const Running<T>&, T, const T*, T*, T*);                             \
    template void forward(const Sizes&, const Layer<T>&, const T*, T*);                                               \
    template void backward(const Sizes&, const Layer<T>&, bool, const T*, const T*, T*, T*);                          \
    template void tangent(const Sizes&, const Layer<T>&, const Moving<T>&, bool, const T*, const T*, T*, T*);         \
    template void second_backward(const Sizes&, const Layer<T>&, const Moving<T>&, bool, const T*, const T*, const T*, \
                                  const T*, const T*, const T*, T*, T*);
FOR(float)
FOR(double)
#undef FOR

}  // namespace fastmfr
