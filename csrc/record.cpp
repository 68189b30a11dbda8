#include "record.hpp"

#include <cstring>

namespace fastmfr {
namespace {

template <class T>
T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

double load_label(const Layout& layout, const uint8_t* from) {
    return layout.label == 4 ? double(load<float>(from)) : load<double>(from);
}

/// Cut one part off the front of `bytes`.
const char* take_part(View& bytes, uint32_t& part, View& body) {
    if (bytes.size < kPrefix) return "it ends too soon";
    if (load<uint32_t>(bytes.data) != kMagic) return "it does not begin with the RecordIO magic number";
    const uint32_t word = load<uint32_t>(bytes.data + 4);
    part = word >> kLengthBits;
    body = {bytes.data + kPrefix, word & ((1u << kLengthBits) - 1)};
    if (body.size > bytes.size - kPrefix) return "it is longer than the room up to the next record";
    const uint64_t padded = (kPrefix + body.size + 3) & ~uint64_t{3};
    const uint64_t step = padded < bytes.size ? padded : bytes.size;
    bytes = {bytes.data + step, bytes.size - step};
    return nullptr;
}

}  // namespace

const char* find_payload(View bytes, Record& record) {
    uint32_t part;
    record.joined.clear();
    if (const char* wrong = take_part(bytes, part, record.image)) return wrong;
    if (part == kWhole) return nullptr;
    if (part != kFirst) return "it begins in the middle of a record";
    record.joined.assign(record.image.data, record.image.data + record.image.size);
    while (part != kLast) {
        View body;
        if (const char* wrong = take_part(bytes, part, body)) return wrong;
        if (part != kMiddle && part != kLast) return "its last part is missing";
        uint8_t magic[sizeof kMagic];  // the writer dropped it where it split
        std::memcpy(magic, &kMagic, sizeof magic);
        record.joined.insert(record.joined.end(), magic, magic + sizeof magic);
        record.joined.insert(record.joined.end(), body.data, body.data + body.size);
    }
    record.image = {record.joined.data(), record.joined.size()};
    return nullptr;
}

const char* take_header(const Layout& layout, Record& record) {
    const View payload = record.image;
    if (payload.size < layout.header) return "it is too short to hold a header";
    record.extra = load<uint32_t>(payload.data);
    const uint64_t header = layout.header + uint64_t{record.extra} * layout.label;
    if (header > payload.size) return "it announces more labels than it holds";
    record.label[0] = load_label(layout, payload.data + (record.extra ? layout.header : layout.label));
    record.label[1] = record.extra > 1 ? load_label(layout, payload.data + layout.header + layout.label) : 0;
    record.image = {payload.data + header, payload.size - header};
    return nullptr;
}

bool fits(const Layout& layout, View payload) {
    Record record;
    record.image = payload;
    if (take_header(layout, record)) return false;
    const View image = record.image;
    return image.size == 0 || (image.size > 4 && (std::memcmp(image.data, "\xFF\xD8\xFF", 3) == 0 ||
                                                  std::memcmp(image.data, "\x89PNG", 4) == 0));
}

}  // namespace fastmfr
