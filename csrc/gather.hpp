// Images out of decoded ones on the CPU: what kernels/gather.py defines, in one pass over memory, to the same bit.
#pragma once

#include <cstdint>

namespace fastmfr {

/// `images` decoded images, `height` x `width` x RGB, one after the other.
struct Pixels {
    const uint8_t* data;
    int64_t images;
    int64_t height, width;
};

/// What is done to each image of a batch; a null pointer leaves that change out. `shift` holds (down, right) pairs;
/// `mirror` holds 0 for no and anything else for yes.
struct Changes {
    const uint8_t* mirror;
    const int32_t *shift, *block;
    const float *gain, *offset;
};

/// Write images `index[0]` .. `index[batch - 1]` (null: 0 .. batch - 1), changed, as (grey - mean) * scale, to
/// `out` (batch, 3, height, width). Throws std::out_of_range for an image there is not.
/// Fast where `width` is a multiple of 8, `out` begins at a multiple of 32 bytes and the processor has AVX2; the result
/// is the same everywhere.
void gather(const Pixels& pixels, const int64_t* index, int64_t batch, const Changes& changes, float mean, float scale,
            float* out);

}  // namespace fastmfr
