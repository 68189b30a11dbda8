#include "gather.hpp"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastmfr {
namespace {

/// The arithmetic on a grey level, each operation rounded to float as the reference rounds it. Gain 1 and offset 0
/// change no bit.
struct Tone {
    float gain, offset, mean, scale;

    float operator()(float grey) const {
        return (std::min(std::max(gain * grey + offset, 0.0f), 255.0f) - mean) * scale;
    }
};

/// What is done to one image; `down`, `right` and `block` are pixels.
struct Change {
    bool mirror;
    int64_t down, right, block;
    Tone tone;
};

Change change_of(const Changes& all, int64_t b, float mean, float scale) {
    return {all.mirror && all.mirror[b],
            all.shift ? all.shift[2 * b] : 0,
            all.shift ? all.shift[2 * b + 1] : 0,
            all.block ? all.block[b] : 1,
            {all.gain ? all.gain[b] : 1.0f, all.offset ? all.offset[b] : 0.0f, mean, scale}};
}

const uint8_t* image_at(const Pixels& pixels, const int64_t* index, int64_t b) {
    const int64_t number = index ? index[b] : b;
    if (number < 0 || number >= pixels.images)
        throw std::out_of_range("image " + std::to_string(number) + " was asked for; there are " +
                                std::to_string(pixels.images));
    return pixels.data + number * pixels.height * pixels.width * 3;
}

int64_t clamped(int64_t at, int64_t size) { return std::min(std::max<int64_t>(at, 0), size - 1); }

/// Where each column of the changed image comes from: bytes from the start of a row.
void columns(const Pixels& pixels, bool mirror, int64_t right, std::vector<int64_t>& from) {
    for (int64_t x = 0; x < pixels.width; ++x) {
        const int64_t column = clamped(x - right, pixels.width);
        from[x] = 3 * (mirror ? pixels.width - 1 - column : column);
    }
}

/// Whether `streamed` can write to `out`.
bool streams(const Pixels& pixels, const float* out) {
    static const bool avx2 = __builtin_cpu_supports("avx2");
    return avx2 && pixels.width % 8 == 0 && reinterpret_cast<uintptr_t>(out) % 32 == 0;
}

/// The row moved `right` pixels with its border repeated: itself, or made in `made`.
const uint8_t* moved(const uint8_t* row, int64_t width, int64_t right, uint8_t* made) {
    if (right == 0) return row;
    const int64_t start = std::clamp<int64_t>(right, 0, width), end = std::clamp<int64_t>(width + right, 0, width);
    for (int64_t x = 0; x < start; ++x) std::memcpy(made + 3 * x, row, 3);
    if (start < end) std::memcpy(made + 3 * start, row + 3 * (start - right), 3 * (end - start));
    for (int64_t x = end; x < width; ++x) std::memcpy(made + 3 * x, row + 3 * (width - 1), 3);
    return made;
}

/// Writes one row of all three colours, eight pixels at a time, past the caches: a batch is larger than they are, and
/// an ordinary store would first read what it overwrites. Without FMA, which rounds otherwise than the reference.
__attribute__((target("avx2"))) inline void stream_row(const uint8_t* row, int64_t width, bool mirror, const Tone& tone,
                                                       float* out, int64_t plane) {
    const __m256 gain = _mm256_set1_ps(tone.gain), offset = _mm256_set1_ps(tone.offset);
    const __m256 mean = _mm256_set1_ps(tone.mean), scale = _mm256_set1_ps(tone.scale);
    const __m256 black = _mm256_setzero_ps(), white = _mm256_set1_ps(255.0f);
    // Of 24 bytes, the first and the last 16 hold four whole pixels each; a shuffle makes one colour of them 32 bits
    // wide, in either direction. An index with its highest bit set makes a zero byte.
    const __m256i order = mirror ? _mm256_setr_epi32(13, 10, 7, 4, 9, 6, 3, 0)
                                 : _mm256_setr_epi32(0, 3, 6, 9, 4, 7, 10, 13);
    const __m256i red = _mm256_or_si256(order, _mm256_set1_epi32(int32_t(0x80808000)));
    const uint8_t* const first = mirror ? row + 3 * width - 24 : row;
    const uint8_t *const low = first + (mirror ? 8 : 0), *const high = first + (mirror ? 0 : 8);
    for (int c = 0; c < 3; ++c, out += plane) {  // one colour after the other, so that whole lines are written
        const __m256i colour = _mm256_add_epi32(red, _mm256_set1_epi32(c));
        for (int64_t x = 0; x < width; x += 8) {
            const int64_t at = mirror ? -3 * x : 3 * x;
            const __m256i pixels = _mm256_loadu2_m128i(reinterpret_cast<const __m128i_u*>(high + at),
                                                       reinterpret_cast<const __m128i_u*>(low + at));
            const __m256i bytes = _mm256_shuffle_epi8(pixels, colour);
            __m256 grey = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(bytes), gain), offset);
            grey = _mm256_min_ps(white, _mm256_max_ps(black, grey));
            _mm256_stream_ps(out + x, _mm256_mul_ps(_mm256_sub_ps(grey, mean), scale));
        }
    }
}

/// The usual case: any change but a low resolution. `next`, an image, is fetched from memory meanwhile; `made` is room
/// for a row.
void streamed(const Pixels& pixels, const uint8_t* image, const uint8_t* next, const Change& change, uint8_t* made,
              float* out) {
    const int64_t bytes = pixels.width * 3, right = change.mirror ? -change.right : change.right;
    for (int64_t y = 0; y < pixels.height; ++y, next += bytes, out += pixels.width) {
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(next + line);
        const uint8_t* const row = image + clamped(y - change.down, pixels.height) * bytes;
        stream_row(moved(row, pixels.width, right, made), pixels.width, change.mirror, change.tone, out,
                   pixels.height * pixels.width);
    }
}

/// 256 grey levels have 256 results: a table of them replaces the arithmetic on every pixel.
void plain(const Pixels& pixels, const uint8_t* image, const Change& change, const std::vector<int64_t>& from,
           float* out) {
    float table[256];
    for (int grey = 0; grey < 256; ++grey) table[grey] = change.tone(float(grey));
    const int64_t plane = pixels.height * pixels.width;
    for (int64_t y = 0; y < pixels.height; ++y, out += pixels.width) {
        const uint8_t* const row = image + clamped(y - change.down, pixels.height) * pixels.width * 3;
        for (int64_t x = 0; x < pixels.width; ++x) {
            const uint8_t* const pixel = row + from[x];
            out[x] = table[pixel[0]];
            out[x + plane] = table[pixel[1]];
            out[x + 2 * plane] = table[pixel[2]];
        }
    }
}

/// At low resolution: every pixel of a block x block cell gets the cell's mean.
void in_cells(const Pixels& pixels, const uint8_t* image, const Change& change, const std::vector<int64_t>& from,
              float* out) {
    const int64_t block = change.block, height = pixels.height, width = pixels.width, plane = height * width;
    for (int64_t top = 0; top < height; top += block) {
        const int64_t bottom = std::min(top + block, height);
        for (int64_t left = 0; left < width; left += block) {
            const int64_t right = std::min(left + block, width);
            int64_t sum[3] = {0, 0, 0};
            for (int64_t y = top; y < bottom; ++y) {
                const uint8_t* const row = image + clamped(y - change.down, height) * width * 3;
                for (int64_t x = left; x < right; ++x)
                    for (int c = 0; c < 3; ++c) sum[c] += row[from[x] + c];
            }
            for (int c = 0; c < 3; ++c) {
                const float value = change.tone(float(sum[c]) / float((bottom - top) * (right - left)));
                for (int64_t y = top; y < bottom; ++y)
                    std::fill(out + c * plane + y * width + left, out + c * plane + y * width + right, value);
            }
        }
    }
}

}  // namespace

void gather(const Pixels& pixels, const int64_t* index, int64_t batch, const Changes& changes, float mean, float scale,
            float* out) {
    const int64_t size = pixels.height * pixels.width * 3;
    const bool streaming = streams(pixels, out);
    std::vector<int64_t> from(pixels.width);
    std::vector<uint8_t> made(pixels.width * 3);
    const uint8_t* next = batch ? image_at(pixels, index, 0) : nullptr;
    for (int64_t b = 0; b < batch; ++b, out += size) {
        const uint8_t* const image = next;
        if (b + 1 < batch) next = image_at(pixels, index, b + 1);
        const Change change = change_of(changes, b, mean, scale);
        if (streaming && change.block <= 1) {
            streamed(pixels, image, next, change, made.data(), out);
            continue;
        }
        columns(pixels, change.mirror, change.right, from);
        (change.block > 1 ? in_cells : plain)(pixels, image, change, from, out);
    }
    _mm_sfence();  // what was streamed must be seen by whoever reads it next, on any core
}

}  // namespace fastmfr
