#include "index.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <new>

namespace fastmfr {

/// The first bytes of the kept index; the entries follow, then the offsets.
struct Index::Head {
    char magic[8];
    uint64_t of_itself, of_rest;  // checksums: of what follows in the head, and of what follows the head
    Stamp rec, text;
    Layout layout;
    uint64_t images, identities;
};

namespace {

constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();  // of a key, and of an entry's length
constexpr char kNewMagic[8] = {'F', 'M', 'F', 'R', 'I', 'D', 'X', '2'};
constexpr char kOldMagic[8] = {'F', 'M', 'F', 'R', 'I', 'D', 'X', '1'};  // without a checksum: never used again

/// Carry a checksum on over `size` bytes, a multiple of eight. Each step is a bijection of the sum so far and of the
/// word taken in, so a change within one word always changes the result; other damage goes unseen once in 2^64.
uint64_t checksum(uint64_t sum, const void* data, uint64_t size) {
    const auto* const bytes = static_cast<const uint8_t*>(data);
    for (uint64_t at = 0; at < size; at += sizeof sum) {
        uint64_t word;
        std::memcpy(&word, bytes + at, sizeof word);
        sum = (sum ^ word) * 0x9E3779B97F4A7C15;
        sum ^= sum >> 32;
    }
    return sum;
}

uint64_t checksum_of_head(const Index::Head& head) {
    constexpr size_t first = offsetof(Index::Head, of_rest);
    static_assert(sizeof head == 80 && first % 8 == 0, "no padding, whole words");
    return checksum(0, reinterpret_cast<const uint8_t*>(&head) + first, sizeof head - first);
}

/// Read digits at `at` and step over them; false where there are none or too many.
bool take_number(const char*& at, const char* end, uint64_t& number) {
    const char* start = at;
    for (number = 0; at < end && *at >= '0' && *at <= '9'; ++at) number = number * 10 + uint64_t(*at - '0');
    return at > start && at - start <= 18;  // 18 digits cannot overflow
}

bool blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

/// Read one line that is not empty; false where it is anything but two numbers.
bool take_line(const char* at, const char* end, uint64_t& key, uint64_t& offset) {
    if (!take_number(at, end, key) || at == end || !blank(*at)) return false;
    while (at < end && blank(*at)) ++at;
    if (!take_number(at, end, offset)) return false;
    while (at < end && blank(*at)) ++at;
    return at == end;
}

template <class Less>
void sort_unless_sorted(std::vector<Entry>& entries, Less less) {  // an index is nearly always in order already
    if (!std::is_sorted(entries.begin(), entries.end(), less)) std::sort(entries.begin(), entries.end(), less);
}

/// Each record ends, at the latest, where the next one in the file begins.
void fill_lengths(std::vector<Entry>& entries, uint64_t rec_size) {
    sort_unless_sorted(entries, [](const Entry& a, const Entry& b) { return a.offset < b.offset; });
    uint64_t limit = rec_size, later = rec_size;
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
        if (entry->offset != later) limit = later;  // two keys may name the same record
        later = entry->offset;
        entry->length = uint32_t(std::min(limit - entry->offset, kMost));
    }
}

/// The lines of a file, read a piece at a time.
class Lines {
public:
    explicit Lines(const File& file) : file_(file), piece_(std::min<uint64_t>(kPiece, file.stamp().size)) {}

    /// Find the next line, without its end; valid until the next call. A line longer than a piece comes in several.
    bool next(const char*& start, const char*& end) {
        uint64_t stop;
        do stop = uint64_t(std::find(piece_.begin() + at_, piece_.begin() + filled_, '\n') - piece_.begin());
        while (stop == filled_ && refill());
        stop = std::min(stop, filled_);  // a refill moves what is left, even where it adds nothing
        start = piece_.data() + at_;
        end = piece_.data() + stop;
        at_ = std::min(stop + 1, filled_);
        return start < piece_.data() + filled_;
    }

private:
    static constexpr uint64_t kPiece = 1 << 20;

    /// Move what is left to the front and read on; false where there is nothing to add.
    bool refill() {
        std::copy(piece_.begin() + at_, piece_.begin() + filled_, piece_.begin());
        filled_ -= at_;
        at_ = 0;
        auto* const free = reinterpret_cast<uint8_t*>(piece_.data() + filled_);
        const uint64_t got = file_.read(read_, piece_.size() - filled_, free);
        read_ += got;
        filled_ += got;
        return got;
    }

    const File& file_;
    std::vector<char> piece_;
    uint64_t at_ = 0, filled_ = 0, read_ = 0;
};

void sort_by_key(std::vector<Entry>& entries, const std::string& text_path) {
    sort_unless_sorted(entries, [](const Entry& a, const Entry& b) { return a.key < b.key; });
    const auto twice = std::adjacent_find(entries.begin(), entries.end(),
                                          [](const Entry& a, const Entry& b) { return a.key == b.key; });
    if (twice != entries.end())
        throw std::invalid_argument(text_path + " lists key " + std::to_string(twice->key) +
                                    " twice; an index names each record once, so copy or build it again");
}

}  // namespace

std::vector<Entry> read_text_index(const File& text, const std::string& rec_path, uint64_t rec_size) {
    Lines lines(text);
    std::vector<Entry> entries;
    const char *at, *end;
    for (uint64_t number = 1; lines.next(at, end); ++number) {
        uint64_t key = 0, offset = 0;
        if (std::all_of(at, end, blank)) continue;
        if (!take_line(at, end, key, offset) || key > kMost)
            throw std::invalid_argument("line " + std::to_string(number) + " of " + text.path() +
                                        " is not a key, a tab and a byte offset; copy or build the index again");
        if (offset >= rec_size)
            throw std::invalid_argument(rec_path + " ends at byte " + std::to_string(rec_size) +
                                        ", but its index places record " + std::to_string(key) + " at byte " +
                                        std::to_string(offset) + ": the file is truncated or the index belongs " +
                                        "to another one; copy both again");
        entries.push_back({offset, 0, uint32_t(key)});
    }
    if (entries.empty()) throw std::invalid_argument(text.path() + " lists no record; copy or build the index again");
    fill_lengths(entries, rec_size);
    sort_by_key(entries, text.path());
    return entries;
}

Index Index::own(const Layout& layout, std::vector<Entry> entries, std::vector<int64_t> offsets) {
    struct Arrays {
        std::vector<Entry> entries;
        std::vector<int64_t> offsets;
    };
    const auto arrays = std::make_shared<Arrays>(Arrays{std::move(entries), std::move(offsets)});
    Index index;
    index.layout = layout;
    index.images = arrays->entries.size();
    index.identities = arrays->offsets.size() - 1;
    index.entries = arrays->entries.data();
    index.offsets = arrays->offsets.data();
    index.owner_ = arrays;
    return index;
}

Index Index::load(const std::string& path, const Stamp& rec, const Stamp& text, std::string& note) {
    try {
        const File file(path);
        Head head{};
        file.read(0, sizeof head, reinterpret_cast<uint8_t*>(&head));
        if (std::equal(kOldMagic, kOldMagic + sizeof kOldMagic, head.magic)) return {};
        const bool sound = std::equal(kNewMagic, kNewMagic + sizeof kNewMagic, head.magic) &&
                           head.of_itself == checksum_of_head(head);
        if (sound && !(head.rec == rec && head.text == text)) return {};  // of files that were replaced since
        Index index;
        if (sound && index.take(head, file)) return index;
    } catch (const std::invalid_argument&) {  // none yet, or not ours to read
        return {};
    }
    note = path + ", a copy of the index that was kept to open the records faster, is damaged; it is made again";
    return {};
}

/// Read what follows the head; false where it is not what was written.
bool Index::take(const Head& head, const File& file) {
    if (head.images - 1 >= head.text.size || head.identities - 1 >= head.images) return false;  // a line an image
    const uint64_t first = head.images * sizeof *entries, size = first + (head.identities + 1) * sizeof *offsets;
    if (file.stamp().size != sizeof head + size) return false;
    const std::shared_ptr<uint8_t> bytes(static_cast<uint8_t*>(std::malloc(size)), std::free);
    if (!bytes) throw std::bad_alloc();
    if (file.read(sizeof head, size, bytes.get()) != size) return false;
    if (checksum(0, bytes.get(), size) != head.of_rest) return false;
    layout = head.layout.label == kFloat64.label ? kFloat64 : kFloat32;
    images = head.images;
    identities = head.identities;
    entries = reinterpret_cast<const Entry*>(bytes.get());
    offsets = reinterpret_cast<const int64_t*>(bytes.get() + first);
    owner_ = bytes;
    const int64_t* const last = offsets + identities;  // the sampler relies on what follows
    return offsets[0] == 0 && *last == int64_t(images) &&
           std::adjacent_find(offsets, last + 1, std::greater_equal<>()) == last + 1;
}

void Index::save(const std::string& path, const Stamp& rec, const Stamp& text) const {
    std::string partial = path + ".XXXXXX";
    const int file = ::mkstemp(partial.data());
    if (file < 0) return;
    Head head{{}, 0, 0, rec, text, layout, images, identities};
    std::copy(kNewMagic, kNewMagic + sizeof kNewMagic, head.magic);
    head.of_rest = checksum(0, entries, images * sizeof *entries);
    head.of_rest = checksum(head.of_rest, offsets, (identities + 1) * sizeof *offsets);
    head.of_itself = checksum_of_head(head);
    FILE* out = ::fdopen(file, "wb");
    bool good = out && std::fwrite(&head, sizeof head, 1, out) == 1 &&
                std::fwrite(entries, sizeof *entries, images, out) == images &&
                std::fwrite(offsets, sizeof *offsets, identities + 1, out) == identities + 1;
    good = ::fchmod(file, 0644) == 0 && good;  // mkstemp lets nobody else read
    good = (out ? std::fclose(out) : ::close(file)) == 0 && good;
    if (!good || std::rename(partial.c_str(), path.c_str()) != 0) ::unlink(partial.c_str());
}

}  // namespace fastmfr
