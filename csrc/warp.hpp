// An image under an affine map, by bilinear interpolation: how a face is brought to its place in a crop.
#pragma once

#include <cstdint>

namespace fastmfr {

/// One decoded image, RGB, row by row.
struct Picture {
    const uint8_t* data;
    int64_t height, width;
};

/// Write the image to `out` (height, width, 3). The pixel in column x and row y of `out` is what lies at
/// (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]), column and row, in the image, where whole numbers are the middles
/// of pixels. It is interpolated between four pixels and rounded to the nearest grey level. Around the image is black.
void warp(const Picture& picture, const double* m, int64_t height, int64_t width, uint8_t* out);

}  // namespace fastmfr
