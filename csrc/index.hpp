// Where the records of a file are: the text index that comes with it, and the binary one kept beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "file.hpp"
#include "record.hpp"

namespace fastmfr {

/// Where a record may lie: `length` bytes from `offset`, up to the next record (at most 4 GiB).
struct Entry {
    uint64_t offset;
    uint32_t length;
    uint32_t key;
};

/// Read `key<TAB>offset` lines, whatever they hold. The entries are in the order of their keys, no key comes twice,
/// and every one begins inside the `rec_size` bytes of the file `rec_path`.
std::vector<Entry> read_text_index(const File& text, const std::string& rec_path, uint64_t rec_size);

/// The images of a file, identity by identity: identity k has images offsets[k] .. offsets[k + 1] - 1.
struct Index {
    Layout layout = kFloat32;
    uint64_t images = 0, identities = 0;
    const Entry* entries = nullptr;    // images
    const int64_t* offsets = nullptr;  // identities + 1

    static Index own(const Layout& layout, std::vector<Entry> entries, std::vector<int64_t> offsets);

    /// The index kept at `path`; without images if there is none, or none that belongs to these two files. A damaged
    /// one counts as none, and `note` says so.
    static Index load(const std::string& path, const Stamp& rec, const Stamp& text, std::string& note);

    /// Replace the index kept at `path` as a whole; does nothing where the folder cannot be written.
    void save(const std::string& path, const Stamp& rec, const Stamp& text) const;

    struct Head;

private:
    bool take(const Head& head, const File& file);

    std::shared_ptr<const void> owner_;
};

}  // namespace fastmfr
