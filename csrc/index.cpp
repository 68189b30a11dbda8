#include "index.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>

namespace fastmfr {
namespace {

constexpr char kSidecarMagic[8] = {'F', 'M', 'F', 'R', 'I', 'D', 'X', '1'};
constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();  // of a key, and of an entry's length

/// The first bytes of the binary index; the entries follow, then the offsets.
struct SidecarHead {
    char magic[8];
    Stamp rec, text;
    Layout layout;
    uint64_t images, identities;
};

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

void sort_by_key(std::vector<Entry>& entries, const std::string& text_path) {
    sort_unless_sorted(entries, [](const Entry& a, const Entry& b) { return a.key < b.key; });
    const auto twice = std::adjacent_find(entries.begin(), entries.end(),
                                          [](const Entry& a, const Entry& b) { return a.key == b.key; });
    if (twice != entries.end())
        throw std::invalid_argument(text_path + " lists key " + std::to_string(twice->key) +
                                    " twice; an index names each record once, so copy or build it again");
}

}  // namespace

std::vector<Entry> read_text_index(const Mapping& text, const std::string& text_path, const std::string& rec_path,
                                   uint64_t rec_size) {
    const char* at = reinterpret_cast<const char*>(text.view().data);
    const char* const end = at + text.view().size;
    std::vector<Entry> entries;
    for (uint64_t number = 1; at < end; ++number) {
        const char* line_end = std::find(at, end, '\n');
        uint64_t key = 0, offset = 0;
        if (!std::all_of(at, line_end, blank)) {
            if (!take_line(at, line_end, key, offset) || key > kMost)
                throw std::invalid_argument("line " + std::to_string(number) + " of " + text_path +
                                            " is not a key, a tab and a byte offset; copy or build the index again");
            if (offset >= rec_size)
                throw std::invalid_argument(rec_path + " ends at byte " + std::to_string(rec_size) +
                                            ", but its index places record " + std::to_string(key) + " at byte " +
                                            std::to_string(offset) + ": the file is truncated or the index belongs " +
                                            "to another one; copy both again");
            entries.push_back({offset, 0, uint32_t(key)});
        }
        at = line_end == end ? end : line_end + 1;
    }
    if (entries.empty()) throw std::invalid_argument(text_path + " lists no record; copy or build the index again");
    fill_lengths(entries, rec_size);
    sort_by_key(entries, text_path);
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

Index Index::load(const std::string& path, const Stamp& rec, const Stamp& text) {
    std::shared_ptr<const Mapping> map;
    try {
        map = std::make_shared<const Mapping>(path);
    } catch (const std::invalid_argument&) {  // none yet, or not ours to read: built anew
        return {};
    }
    const View bytes = map->view();
    SidecarHead head;
    if (bytes.size < sizeof head) return {};
    std::memcpy(&head, bytes.data, sizeof head);
    const bool ours = std::equal(kSidecarMagic, kSidecarMagic + sizeof kSidecarMagic, head.magic) && head.rec == rec &&
                      head.text == text && head.images - 1 < kMost && head.identities - 1 < head.images;
    if (!ours || bytes.size != sizeof head + head.images * sizeof(Entry) + (head.identities + 1) * sizeof(int64_t))
        return {};
    Index index;
    index.layout = head.layout.label == kFloat64.label ? kFloat64 : kFloat32;
    index.images = head.images;
    index.identities = head.identities;
    index.entries = reinterpret_cast<const Entry*>(bytes.data + sizeof head);
    index.offsets = reinterpret_cast<const int64_t*>(index.entries + head.images);
    index.owner_ = map;
    const int64_t* const last = index.offsets + index.identities;  // the sampler relies on what follows
    const bool sound = index.offsets[0] == 0 && *last == int64_t(index.images) &&
                       std::adjacent_find(index.offsets, last + 1, std::greater_equal<>()) == last + 1;
    return sound ? index : Index{};
}

void Index::save(const std::string& path, const Stamp& rec, const Stamp& text) const {
    std::string partial = path + ".XXXXXX";
    const int file = ::mkstemp(partial.data());
    if (file < 0) return;
    SidecarHead head{{}, rec, text, layout, images, identities};
    std::copy(kSidecarMagic, kSidecarMagic + sizeof kSidecarMagic, head.magic);
    FILE* out = ::fdopen(file, "wb");
    bool good = out && std::fwrite(&head, sizeof head, 1, out) == 1 &&
                std::fwrite(entries, sizeof(Entry), images, out) == images &&
                std::fwrite(offsets, sizeof(int64_t), identities + 1, out) == identities + 1;
    good = ::fchmod(file, 0644) == 0 && good;  // mkstemp lets nobody else read
    good = (out ? std::fclose(out) : ::close(file)) == 0 && good;
    if (!good || std::rename(partial.c_str(), path.c_str()) != 0) ::unlink(partial.c_str());
}

}  // namespace fastmfr
