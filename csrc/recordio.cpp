#include "recordio.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace fastmfr {
namespace {

/// A label as a whole number in [0, limit]; false where it is anything else.
bool whole(double label, double limit, uint64_t& number) {
    if (!(label >= 0 && label <= limit) || label != std::floor(label)) return false;  // NaN fails here too
    number = uint64_t(label);
    return true;
}

std::vector<Entry>::const_iterator at_key(const std::vector<Entry>& records, uint64_t key) {
    return std::lower_bound(records.begin(), records.end(), key,
                            [](const Entry& record, uint64_t wanted) { return record.key < wanted; });
}

}  // namespace

RecordFile::RecordFile(const std::string& records, const std::string& index) : rec_(records), text_path_(index) {
    const File text(text_path_);
    for (const File* file : {&std::as_const(rec_), &text})
        if (!file->stamp().size) throw std::invalid_argument(file->path() + " is empty; copy or pack it again");
    const std::string kept_path = text_path_ + ".fastmfr";
    rec_.advise(POSIX_FADV_RANDOM);
    index_ = Index::load(kept_path, rec_.stamp(), text.stamp(), note_);
    if (index_.images) return;
    const std::vector<Entry> entries = read_text_index(text, rec_.path(), rec_.stamp().size);
    const Layout layout = detect_layout(entries);
    Images images = group(entries, layout);
    if (images.entries.empty())
        throw std::invalid_argument(rec_.path() + " holds no image; copy or pack it again");
    text.require_unchanged();
    rec_.require_unchanged();
    index_ = Index::own(layout, std::move(images.entries), std::move(images.offsets));
    index_.save(kept_path, rec_.stamp(), text.stamp());
}

const Entry& RecordFile::entry(uint64_t image) const {
    if (image >= index_.images)
        throw std::out_of_range("image " + std::to_string(image) + " of " + rec_.path() +
                                " was asked for; it has images 0 to " + std::to_string(index_.images - 1));
    return index_.entries[image];
}

/// Bytes that the record may take.
uint64_t RecordFile::room(const Entry& entry) const {
    const uint64_t size = rec_.stamp().size;
    if (entry.offset % 4 || entry.offset >= size) refuse(entry, "no record can begin there");
    return std::min<uint64_t>(entry.length, size - entry.offset);
}

void RecordFile::refuse(const Entry& entry, const std::string& why) const {
    rec_.require_unchanged();
    throw std::invalid_argument("record " + std::to_string(entry.key) + " of " + rec_.path() + ", at byte " +
                                std::to_string(entry.offset) + ", cannot be read: " + why +
                                "; copy the file again, or delete the record's line from its index to leave it out");
}

const char* RecordFile::read_payload(const Entry& entry, Want want, Record& record) const {
    return fastmfr::read_payload(rec_, entry.offset, room(entry), want, record);
}

void RecordFile::decode(const Entry& entry, const Layout& layout, Want want, Record& record) const {
    const char* wrong = read_payload(entry, want, record);
    if (!wrong) wrong = take_header(layout, record);
    if (wrong) refuse(entry, wrong);
}

uint64_t RecordFile::identity_label(const Entry& entry, const Layout& layout, const Record& record) const {
    uint64_t label;
    if (!whole(record.label[0], layout.exact() - 1, label))
        refuse(entry, "its label is " + std::to_string(record.label[0]) + ", and an identity is a whole number below " +
                          std::to_string(uint64_t(layout.exact())));
    return label;
}

uint64_t RecordFile::label(uint64_t image) const {
    Record record;
    decode(entry(image), index_.layout, Want::kLabels, record);
    return identity_label(entry(image), index_.layout, record);
}

void RecordFile::begin(uint64_t image, Record& record) const {
    const Entry& wanted = entry(image);
    begin_to_read(rec_, wanted.offset, room(wanted), record);
}

/// The layout that explains one of the first records; a sound file is settled by its first.
Layout RecordFile::detect_layout(const std::vector<Entry>& records) const {
    const size_t tries = std::min<size_t>(records.size(), 64);
    for (size_t i = 0; i < tries; ++i) {
        Record record;
        if (read_payload(records[i], Want::kAll, record)) continue;
        for (const Layout& layout : {kFloat32, kFloat64})
            if (fits(layout, record.image)) return layout;
    }
    rec_.require_unchanged();
    throw std::invalid_argument(rec_.path() + " is not RecordIO with JPEG or PNG images, or its index belongs to " +
                                "another file: none of the first " + std::to_string(tries) + " records makes sense");
}

RecordFile::Images RecordFile::group(const std::vector<Entry>& records, const Layout& layout) const {
    const auto last = std::max_element(records.begin(), records.end(),
                                       [](const Entry& a, const Entry& b) { return a.offset < b.offset; });
    Record record;
    decode(*last, layout, Want::kLabels, record);  // a file cut short is found at once
    Images images;
    return take_ranges(records, layout, images) ? images : scan(records, layout);
}

/// Native files: the images as the identity records group them; false where there are none, or they cannot be right.
bool RecordFile::take_ranges(const std::vector<Entry>& records, const Layout& layout, Images& images) const {
    Record zero;
    uint64_t identity = 0, end = 0, first = 1, next = 1;
    if (records.front().key != 0) return false;
    decode(records.front(), layout, Want::kLabels, zero);
    if (zero.image.size || zero.extra < 2) return false;
    if (!whole(zero.label[0], layout.exact() - 1, identity)) return false;
    if (!whole(zero.label[1], layout.exact() - 1, end)) return false;
    if (records.back().key + uint64_t{1} < end)
        throw std::invalid_argument(text_path_ + " ends at key " + std::to_string(records.back().key) + ", but " +
                                    rec_.path() + " announces records up to " + std::to_string(end - 1) +
                                    "; copy the index again");
    const uint64_t limit = identity;  // identity records follow the images
    auto image = at_key(records, 1);
    for (auto at = at_key(records, identity); identity < end; ++identity, ++at) {
        if (at == records.end() || at->key != identity) return false;
        Record record;
        const char* wrong = read_payload(*at, Want::kLabels, record);
        if (wrong || take_header(layout, record) || record.image.size || record.extra < 2) return false;
        if (!whole(record.label[0], layout.exact(), first) || first != next) return false;
        if (!whole(record.label[1], double(limit), next) || next < first) return false;
        for (; image != records.end() && image->key < next; ++image) images.entries.push_back(*image);
        if (int64_t(images.entries.size()) > images.offsets.back()) images.offsets.push_back(images.entries.size());
    }
    return next == limit;
}

/// Any file: read every record's label and bring the images of an identity together.
RecordFile::Images RecordFile::scan(const std::vector<Entry>& records, const Layout& layout) const {
    rec_.advise(POSIX_FADV_SEQUENTIAL);
    std::vector<Entry> found;
    std::vector<uint64_t> labels;
    for (const Entry& entry : records) {
        Record record;
        decode(entry, layout, Want::kLabels, record);
        if (!record.image.size) continue;  // record 0 and identity records
        found.push_back(entry);
        labels.push_back(identity_label(entry, layout, record));
    }
    rec_.advise(POSIX_FADV_RANDOM);
    std::vector<uint32_t> order(found.size());
    std::iota(order.begin(), order.end(), 0);
    if (!std::is_sorted(labels.begin(), labels.end()))
        std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return labels[a] < labels[b]; });
    Images images;
    images.entries.reserve(found.size());
    for (size_t i = 0; i < order.size(); ++i) {
        if (i && labels[order[i]] != labels[order[i - 1]]) images.offsets.push_back(i);
        images.entries.push_back(found[order[i]]);
    }
    if (!found.empty()) images.offsets.push_back(int64_t(found.size()));
    return images;
}

}  // namespace fastmfr
