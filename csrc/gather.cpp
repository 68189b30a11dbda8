#include "gather.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastmfr {
namespace {

/// The arithmetic on a grey level, each operation rounded to float as the reference rounds it.
struct Tone {
    const float *gain, *offset;  // of this image, or null
    float mean, scale;

    float operator()(float grey) const {
        if (gain) grey *= *gain;
        if (offset) grey += *offset;
        if (gain || offset) grey = std::min(std::max(grey, 0.0f), 255.0f);
        return (grey - mean) * scale;
    }
};

int64_t clamped(int64_t at, int64_t size) { return std::min(std::max<int64_t>(at, 0), size - 1); }

/// Where each column of the changed image comes from: bytes from the start of a row.
void columns(const Pixels& pixels, bool mirror, int64_t right, std::vector<int64_t>& from) {
    for (int64_t x = 0; x < pixels.width; ++x) {
        const int64_t column = clamped(x - right, pixels.width);
        from[x] = 3 * (mirror ? pixels.width - 1 - column : column);
    }
}

/// A row that is at most mirrored, the usual case: no table, so that it becomes vector instructions. Not for AVX-512,
/// whose fused multiply-add would round otherwise than the reference.
__attribute__((target_clones("avx2", "default"))) void normalise(const uint8_t* __restrict row, int64_t width,
                                                                 bool mirror, float mean, float scale,
                                                                 float* __restrict out, int64_t plane) {
    float* const red = out;
    float* const green = out + plane;
    float* const blue = out + 2 * plane;
    for (int64_t x = 0; x < width; ++x) {
        red[x] = (float(row[3 * x]) - mean) * scale;
        green[x] = (float(row[3 * x + 1]) - mean) * scale;
        blue[x] = (float(row[3 * x + 2]) - mean) * scale;
    }
    if (!mirror) return;
    for (float* const colour : {red, green, blue}) std::reverse(colour, colour + width);
}

/// 256 grey levels have 256 results: a table of them replaces the arithmetic on every pixel.
void plain(const Pixels& pixels, const uint8_t* image, int64_t down, const std::vector<int64_t>& from, const Tone& tone,
           float* out) {
    float table[256];
    for (int grey = 0; grey < 256; ++grey) table[grey] = tone(float(grey));
    const int64_t plane = pixels.height * pixels.width;
    for (int64_t y = 0; y < pixels.height; ++y, out += pixels.width) {
        const uint8_t* const row = image + clamped(y - down, pixels.height) * pixels.width * 3;
        for (int64_t x = 0; x < pixels.width; ++x) {
            const uint8_t* const pixel = row + from[x];
            out[x] = table[pixel[0]];
            out[x + plane] = table[pixel[1]];
            out[x + 2 * plane] = table[pixel[2]];
        }
    }
}

/// At low resolution: every pixel of a block x block cell gets the cell's mean.
void in_cells(const Pixels& pixels, const uint8_t* image, int64_t down, const std::vector<int64_t>& from, int64_t block,
              const Tone& tone, float* out) {
    const int64_t height = pixels.height, width = pixels.width, plane = height * width;
    for (int64_t top = 0; top < height; top += block) {
        const int64_t bottom = std::min(top + block, height);
        for (int64_t left = 0; left < width; left += block) {
            const int64_t right = std::min(left + block, width);
            int32_t sum[3] = {0, 0, 0};
            for (int64_t y = top; y < bottom; ++y) {
                const uint8_t* const row = image + clamped(y - down, height) * width * 3;
                for (int64_t x = left; x < right; ++x)
                    for (int c = 0; c < 3; ++c) sum[c] += row[from[x] + c];
            }
            for (int c = 0; c < 3; ++c) {
                const float value = tone(float(sum[c]) / float((bottom - top) * (right - left)));
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
    std::vector<int64_t> from(pixels.width);
    for (int64_t b = 0; b < batch; ++b, out += size) {
        const int64_t number = index ? index[b] : b;
        if (number < 0 || number >= pixels.images)
            throw std::out_of_range("image " + std::to_string(number) + " was asked for; there are " +
                                    std::to_string(pixels.images));
        const uint8_t* const image = pixels.data + number * size;
        const int64_t down = changes.shift ? changes.shift[2 * b] : 0;
        columns(pixels, changes.mirror && changes.mirror[b], changes.shift ? changes.shift[2 * b + 1] : 0, from);
        const Tone tone{changes.gain ? changes.gain + b : nullptr, changes.offset ? changes.offset + b : nullptr, mean,
                        scale};
        const int64_t block = changes.block ? changes.block[b] : 1;
        if (!changes.shift && !tone.gain && !tone.offset && block <= 1) {
            for (int64_t y = 0; y < pixels.height; ++y)
                normalise(image + y * pixels.width * 3, pixels.width, changes.mirror && changes.mirror[b], mean, scale,
                          out + y * pixels.width, pixels.height * pixels.width);
        } else if (block > 1)
            in_cells(pixels, image, down, from, block, tone, out);
        else
            plain(pixels, image, down, from, tone, out);
    }
}

}  // namespace fastmfr
