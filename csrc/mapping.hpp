// A file seen as memory: read only, unmapped when the last owner goes.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastmfr {

/// Bytes owned by someone else.
struct View {
    const uint8_t* data = nullptr;
    uint64_t size = 0;
};

/// What tells one state of a file from another without reading it.
struct Stamp {
    uint64_t size = 0;
    int64_t modified_ns = 0;
    bool operator==(const Stamp& other) const { return size == other.size && modified_ns == other.modified_ns; }
};

/// A whole file mapped for reading. The file must not shrink while it is mapped: the system would end the process.
class Mapping {
public:
    explicit Mapping(const std::string& path) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) throw std::invalid_argument("cannot open " + path + ": " + std::strerror(errno));
        struct stat facts;
        const bool regular = ::fstat(file, &facts) == 0 && S_ISREG(facts.st_mode);
        if (regular) {
            stamp_ = {uint64_t(facts.st_size), facts.st_mtim.tv_sec * int64_t{1'000'000'000} + facts.st_mtim.tv_nsec};
            if (stamp_.size) address_ = ::mmap(nullptr, stamp_.size, PROT_READ, MAP_SHARED, file, 0);
        }
        const int error = errno;
        ::close(file);
        if (!regular) throw std::invalid_argument(path + " is not a regular file");
        if (!stamp_.size) throw std::invalid_argument(path + " is empty; copy or pack it again");
        if (address_ == MAP_FAILED) throw std::invalid_argument("cannot map " + path + ": " + std::strerror(error));
    }

    ~Mapping() { ::munmap(address_, stamp_.size); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    View view() const { return {static_cast<const uint8_t*>(address_), stamp_.size}; }
    const Stamp& stamp() const { return stamp_; }
    void advise(int advice) const { ::madvise(address_, stamp_.size, advice); }

    /// Ask the system to read `part` of the map soon; the call does not wait.
    static void prefetch(View part) {
        const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE)), start = uintptr_t(part.data) & ~(page - 1);
        ::madvise(reinterpret_cast<void*>(start), uintptr_t(part.data) + part.size - start, MADV_WILLNEED);
    }

private:
    void* address_ = nullptr;
    Stamp stamp_;
};

}  // namespace fastmfr
