// RecordIO files and their indexes: native InsightFace files, and flat ones written by im2rec.
//
// Native: record 0 has no image and the labels (N + 1, M); images have the keys 1..N; the identity records N + 1..M - 1
// have no image and the labels (first key, last key + 1). Flat: every record is an image with its identity as label.
// Float labels cannot hold large keys, so wherever the ranges cannot be trusted all labels are read instead.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "file.hpp"
#include "index.hpp"
#include "record.hpp"

namespace fastmfr {

/// The images of a RecordIO file, numbered 0..images - 1, identity by identity in the order of their labels.
/// All methods may be called from several threads. Whatever is wrong with the files is a std::invalid_argument whose
/// text names the file, but for a file that is no longer the one that was opened: that is a FileChanged.
class RecordFile {
public:
    RecordFile(const std::string& records, const std::string& index);

    uint64_t images() const { return index_.images; }
    uint64_t identities() const { return index_.identities; }
    const int64_t* offsets() const { return index_.offsets; }

    /// What the user should know of how the files were opened; mostly nothing.
    const std::string& note() const { return note_; }

    uint32_t key(uint64_t image) const { return entry(image).key; }
    /// Read the record of an image, of which `record` may hold a beginning.
    void read(uint64_t image, Record& record) const { decode(entry(image), index_.layout, Want::kAll, record); }
    /// The identity's label in the file.
    uint64_t label(uint64_t image) const;
    /// Begin to read the record of an image, without waiting for the disk.
    void begin(uint64_t image, Record& record) const;

private:
    struct Images {
        std::vector<Entry> entries;
        std::vector<int64_t> offsets{0};
    };

    const Entry& entry(uint64_t image) const;
    uint64_t room(const Entry& entry) const;
    [[noreturn]] void refuse(const Entry& entry, const std::string& why) const;
    const char* read_payload(const Entry& entry, Want want, Record& record) const;
    void decode(const Entry& entry, const Layout& layout, Want want, Record& record) const;

    uint64_t identity_label(const Entry& entry, const Layout& layout, const Record& record) const;

    Layout detect_layout(const std::vector<Entry>& records) const;
    Images group(const std::vector<Entry>& records, const Layout& layout) const;
    bool take_ranges(const std::vector<Entry>& records, const Layout& layout, Images& images) const;
    Images scan(const std::vector<Entry>& records, const Layout& layout) const;

    File rec_;
    std::string text_path_, note_;
    Index index_;
};

}  // namespace fastmfr
