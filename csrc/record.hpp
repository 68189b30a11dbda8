// One RecordIO record: from bytes in the file to labels and an encoded image.
//
//   record  := u32 magic | u32 part << 29 | length | payload | zeros up to a multiple of four
//   payload := header (count of labels, label, id, id2) | that many labels | encoded image
#pragma once

#include <cstdint>
#include <vector>

#include "mapping.hpp"

namespace fastmfr {

constexpr uint32_t kMagic = 0xCED7230A;
constexpr uint32_t kLengthBits = 29;
constexpr uint64_t kPrefix = 8;  // bytes of magic and length
enum Part : uint32_t { kWhole, kFirst, kMiddle, kLast };

/// How a payload's header is laid out: its size, and the size of one label (which is also where the label begins).
struct Layout {
    uint32_t header, label;
    double exact() const { return label == 4 ? double(1 << 24) : double(uint64_t{1} << 53); }
};
constexpr Layout kFloat32{24, 4};  // what mxnet and im2rec write: u32, f32, u64, u64
constexpr Layout kFloat64{32, 8};  // what some forks write: u32, 4 bytes of padding, f64, u64, u64

/// A decoded record; `image` points into the file's map, or into `joined` where the file holds it in several parts.
struct Record {
    uint32_t extra = 0;       // how many labels follow the header
    double label[2] = {0, 0};  // the header's own label, or the first two that follow it
    View image;
    std::vector<uint8_t> joined;
};

/// Find the payload of the record at the start of `bytes` (which may end after it) and leave it in `record.image`.
/// Returns what is wrong, or nullptr.
const char* find_payload(View bytes, Record& record);

/// Take header and labels off the payload in `record.image`. Returns what is wrong, or nullptr.
const char* take_header(const Layout& layout, Record& record);

/// True where `payload` makes sense under `layout`: no image after the labels, or the first bytes of a JPEG or PNG.
bool fits(const Layout& layout, View payload);

}  // namespace fastmfr
