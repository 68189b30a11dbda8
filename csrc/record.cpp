#include "record.hpp"

#include <algorithm>
#include <cstring>
#include <new>

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

/// The bytes of a record, read from the file as far as they were asked for.
class Growing {
public:
    Growing(const File& file, uint64_t offset, Record& record) : file_(file), offset_(offset), record_(record) {}

    uint8_t* at(uint64_t position) const { return record_.bytes.get() + position; }

    /// Make room for the first `size` bytes.
    void reserve(uint64_t size) {
        auto* const grown = static_cast<uint8_t*>(std::realloc(record_.bytes.get(), size));
        if (!grown) throw std::bad_alloc();
        (void)record_.bytes.release();  // realloc freed it
        record_.bytes.reset(grown);
    }

    /// Have the first `size` bytes; false where the file ends before.
    bool reach(uint64_t size) {
        if (size <= record_.have) return true;
        reserve(size);
        record_.have += file_.read(offset_ + record_.have, size - record_.have, at(record_.have));
        return record_.have == size;
    }

private:
    const File& file_;
    uint64_t offset_;
    Record& record_;
};

constexpr uint64_t kAtOnce = 64 << 10;  // what is read in one go, even if the record may be shorter than its room
constexpr uint64_t kStart = 64;         // bytes that hold the prefix, the header and two labels of either layout
static_assert(kStart >= kPrefix + kFloat64.header + 2 * kFloat64.label);
constexpr char kTooSoon[] = "it ends too soon", kGone[] = "the file ends within it";

/// Where one part of a record is: its body, and where the next part begins.
struct Extent {
    uint32_t part;
    uint64_t body, size, next;
};

/// Read the prefix of the part that begins at `at`.
const char* take_prefix(Growing& bytes, uint64_t at, uint64_t room, Extent& extent) {
    if (room - at < kPrefix) return kTooSoon;
    if (!bytes.reach(at + kPrefix)) return kGone;
    if (load<uint32_t>(bytes.at(at)) != kMagic) return "it does not begin with the RecordIO magic number";
    const uint32_t word = load<uint32_t>(bytes.at(at + 4));
    extent = {word >> kLengthBits, at + kPrefix, word & ((1u << kLengthBits) - 1), 0};
    if (extent.size > room - extent.body) return "it is longer than the room up to the next record";
    extent.next = std::min(room, (extent.body + extent.size + 3) & ~uint64_t{3});
    return nullptr;
}

}  // namespace

void begin_to_read(const File& file, uint64_t offset, uint64_t room, Record& record) {
    if (room <= kAtOnce) {
        Growing bytes(file, offset, record);
        bytes.reserve(room);
        record.have = file.read_cached(offset, room, bytes.at(0));
    }
    if (record.have < room) file.advise(POSIX_FADV_WILLNEED, offset, room);
}

const char* read_payload(const File& file, uint64_t offset, uint64_t room, Want want, Record& record) {
    Growing bytes(file, offset, record);
    const bool labels = want == Want::kLabels;
    if ((labels || room <= kAtOnce) && !bytes.reach(labels ? std::min(room, kStart) : room)) return kGone;
    Extent extent;
    if (const char* wrong = take_prefix(bytes, 0, room, extent)) return wrong;
    if (extent.part != kWhole && extent.part != kFirst) return "it begins in the middle of a record";
    if ((!labels || extent.part == kFirst) && !bytes.reach(extent.body + extent.size)) return kGone;
    uint64_t size = extent.size;
    while (extent.part != kWhole && extent.part != kLast) {  // further parts move up to the first
        if (const char* wrong = take_prefix(bytes, extent.next, room, extent)) return wrong;
        if (extent.part != kMiddle && extent.part != kLast) return "its last part is missing";
        if (!bytes.reach(extent.body + extent.size)) return kGone;
        std::memcpy(bytes.at(kPrefix + size), &kMagic, sizeof kMagic);  // the writer dropped it where it split
        size += sizeof kMagic;
        std::memmove(bytes.at(kPrefix + size), bytes.at(extent.body), extent.size);
        size += extent.size;
    }
    record.image = {bytes.at(kPrefix), size};
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
