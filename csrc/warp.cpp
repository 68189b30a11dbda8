#include "warp.hpp"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fastmfr {
namespace {

/// The whole part of a coordinate, and what is left of it.
struct Split {
    int64_t whole;
    float part;
};

inline Split split(double at) {
    const double whole = std::floor(at);
    return {int64_t(whole), float(at - whole)};
}

/// The weights of the four pixels around a place: top left, top right, bottom left, bottom right.
struct Weights {
    float w[4];
    Weights(float x, float y) : w{(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y} {}
};

/// The columns x of [0, width) at which `from` + `by` x lies within [low, high]; the range may be empty.
void within(double from, double by, double low, double high, int64_t& first, int64_t& end) {
    if (by == 0) {
        if (from < low || from > high) end = first;
        return;
    }
    const double a = (low - from) / by, b = (high - from) / by;
    const double least = std::ceil(std::min(a, b)), most = std::floor(std::max(a, b));
    first = std::max(first, int64_t(std::clamp(least, -1e9, 1e9)));
    end = std::max(first, std::min(end, int64_t(std::clamp(most, -1e9, 1e9)) + 1));
}

/// A pixel of which some neighbours may lie outside of the image, where there is black.
void at_border(const Picture& picture, double x, double y, uint8_t* out) {
    float sum[3] = {0, 0, 0};
    if (x > -1 && y > -1 && x < double(picture.width) && y < double(picture.height)) {
        const Split column = split(x), row = split(y);
        const Weights weights(column.part, row.part);
        for (int k = 0; k < 4; ++k) {
            const int64_t from_x = column.whole + (k & 1), from_y = row.whole + (k >> 1);
            if (from_x < 0 || from_y < 0 || from_x >= picture.width || from_y >= picture.height) continue;
            const uint8_t* const pixel = picture.data + 3 * (from_y * picture.width + from_x);
            for (int c = 0; c < 3; ++c) sum[c] += weights.w[k] * float(pixel[c]);
        }
    }
    for (int c = 0; c < 3; ++c) out[c] = uint8_t(sum[c] + 0.5f);
}

/// Where a row of the crop lies in the image: column x at (from_x + by_x x, from_y + by_y x).
struct Line {
    double from_x, by_x, from_y, by_y;
};

/// The pixels `first` .. `end` - 1 of a row, whose neighbours all lie in the image.
void inside(const Picture& picture, const Line& line, int64_t first, int64_t end, uint8_t* out) {
    for (int64_t x = first; x < end; ++x) {
        const Split column = split(line.from_x + line.by_x * double(x)), row = split(line.from_y + line.by_y * double(x));
        const Weights weights(column.part, row.part);
        const uint8_t* const top = picture.data + 3 * (row.whole * picture.width + column.whole);
        const uint8_t* const bottom = top + 3 * picture.width;
        for (int c = 0; c < 3; ++c)
            out[3 * x + c] = uint8_t((weights.w[0] * float(top[c]) + weights.w[2] * float(bottom[c])) +
                                     (weights.w[1] * float(top[c + 3]) + weights.w[3] * float(bottom[c + 3])) + 0.5f);
    }
}

/// Two neighbouring pixels as numbers: red, green, blue and nothing of the left one, then of the right one. Reads eight
/// bytes.
__attribute__((target("avx2"))) inline __m256 two_pixels(const uint8_t* data) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(data));
    const __m128i apart = _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(apart));
}

/// What `inside` does, to the same bit, all colours of two neighbours at once.
__attribute__((target("avx2"))) void inside_avx2(const Picture& picture, const Line& line, int64_t first, int64_t end,
                                                 uint8_t* out) {
    constexpr int64_t together = 64;  // places are found a few at a time, which the compiler does side by side
    int32_t columns[together], rows[together];
    float part_x[together], part_y[together];
    const __m128 half = _mm_set1_ps(0.5f);
    for (int64_t start = first; start < end; start += together) {
        const int64_t count = std::min(together, end - start);
        for (int64_t i = 0; i < count; ++i) {
            const double x = line.from_x + line.by_x * double(int32_t(start + i));
            const double y = line.from_y + line.by_y * double(int32_t(start + i));
            columns[i] = int32_t(x), rows[i] = int32_t(y);  // neither is below 0
            part_x[i] = float(x - double(columns[i])), part_y[i] = float(y - double(rows[i]));
        }
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t* const top = picture.data + 3 * (rows[i] * picture.width + columns[i]);
            const __m128 right = _mm_set1_ps(part_x[i]), left = _mm_sub_ps(_mm_set1_ps(1.0f), right);
            const __m256 across = _mm256_set_m128(right, left);
            const __m256 low = _mm256_set1_ps(part_y[i]), high = _mm256_sub_ps(_mm256_set1_ps(1.0f), low);
            const __m256 both = _mm256_add_ps(_mm256_mul_ps(_mm256_mul_ps(across, high), two_pixels(top)),
                                              _mm256_mul_ps(_mm256_mul_ps(across, low), two_pixels(top + 3 * picture.width)));
            const __m128 grey = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
            const __m128i levels = _mm_cvttps_epi32(_mm_add_ps(grey, half));
            const __m128i bytes = _mm_packus_epi16(_mm_packus_epi32(levels, levels), levels);
            const int32_t colours = _mm_cvtsi128_si32(bytes);
            uint8_t* const to = out + 3 * (start + i);
            std::memcpy(to, &colours, start + i + 1 < end ? 4 : 3);  // the next pixel overwrites the fourth byte
        }
    }
}

}  // namespace

void warp(const Picture& picture, const double* m, int64_t height, int64_t width, uint8_t* out) {
    static const bool avx2 = __builtin_cpu_supports("avx2");
    const double hair = 1e-6;  // what rounding may move a place by
    for (int64_t y = 0; y < height; ++y, out += 3 * width) {
        const Line line{m[1] * double(y) + m[2], m[0], m[4] * double(y) + m[5], m[3]};
        int64_t first = 0, end = width;
        // One column less than has all neighbours in the image, so that eight bytes can be read at once.
        within(line.from_x, line.by_x, hair, double(picture.width - 2) - hair, first, end);
        within(line.from_y, line.by_y, hair, double(picture.height - 1) - hair, first, end);
        end = std::max(first, end);
        const auto border = [&](int64_t from, int64_t to) {
            for (int64_t x = from; x < to; ++x)
                at_border(picture, line.from_x + line.by_x * double(x), line.from_y + line.by_y * double(x), out + 3 * x);
        };
        border(0, std::min(first, width));
        (avx2 ? inside_avx2 : inside)(picture, line, first, end, out);
        border(std::max(end, int64_t(0)), width);
    }
}

}  // namespace fastmfr
