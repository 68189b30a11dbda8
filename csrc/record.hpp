// One RecordIO record: from bytes in the file to labels and an encoded image.
//
//   record  := u32 magic | u32 part << 29 | length | payload | zeros up to a multiple of four
//   payload := header (count of labels, label, id, id2) | that many labels | encoded image
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "file.hpp"

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

struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
};
using Bytes = std::unique_ptr<uint8_t, Free>;

/// A decoded record; `image` points into `bytes`.
struct Record {
    uint32_t extra = 0;        // how many labels follow the header
    double label[2] = {0, 0};  // the header's own label, or the first two that follow it
    View image;
    Bytes bytes;
    uint64_t have = 0;  // how many of the record's first bytes are in `bytes`
};

/// What is read of a record: all of it, or no more than its labels need. The size of `Record::image` is right in both.
enum class Want { kAll, kLabels };

/// Take what is in memory of the record at `offset` of `file`, in at most `room` bytes, and have the system read the
/// rest soon, without waiting for it.
void begin_to_read(const File& file, uint64_t offset, uint64_t room, Record& record);

/// Read the record at `offset` of `file`, in at most `room` bytes, from where `record` has it on; leave its payload in
/// `record.image`. Returns what is wrong, or nullptr.
const char* read_payload(const File& file, uint64_t offset, uint64_t room, Want want, Record& record);

/// Take header and labels off the payload in `record.image`. Returns what is wrong, or nullptr.
const char* take_header(const Layout& layout, Record& record);

/// True where `payload` makes sense under `layout`: no image after the labels, or the first bytes of a JPEG or PNG.
bool fits(const Layout& layout, View payload);

}  // namespace fastmfr
