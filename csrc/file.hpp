// A regular file read by position: a file that shrinks while it is open is an error to report, not a signal.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
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

/// A file is no longer the one that was opened, so nothing that is known of its content holds.
class FileChanged : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A file opened for reading. All methods may be called from several threads.
class File {
public:
    /// Throws std::invalid_argument where `path` is no regular file that can be opened.
    explicit File(const std::string& path) : path_(path) {
        file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // to open a FIFO would wait for its writer
        if (file_ < 0) throw std::invalid_argument("cannot open " + path + ": " + std::strerror(errno));
        struct stat facts;
        if (::fstat(file_, &facts) == 0 && S_ISREG(facts.st_mode)) {
            stamp_ = stamp_of(facts);
            return;
        }
        ::close(file_);
        throw std::invalid_argument(path + " is not a regular file");
    }

    ~File() { ::close(file_); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    const std::string& path() const { return path_; }
    /// Size and time when the file was opened.
    const Stamp& stamp() const { return stamp_; }

    /// Read `size` bytes from `offset` on; returns how many there are, fewer only where the file ends.
    uint64_t read(uint64_t offset, uint64_t size, uint8_t* out) const {
        uint64_t done = 0;
        while (done < size) {
            const ssize_t got = ::pread(file_, out + done, size - done, off_t(offset + done));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) throw std::invalid_argument("cannot read " + path_ + ": " + std::strerror(errno));
            if (got == 0) break;
            done += uint64_t(got);
        }
        return done;
    }

    /// Read what is in memory of `size` bytes from `offset` on; returns how many bytes, 0 if that cannot be known.
    uint64_t read_cached(uint64_t offset, uint64_t size, uint8_t* out) const {
        const iovec whole{out, size};
        const ssize_t got = ::preadv2(file_, &whole, 1, off_t(offset), RWF_NOWAIT);
        return got < 0 ? 0 : uint64_t(got);
    }

    /// Throws FileChanged where the file was written to, or cut short, since it was opened.
    void require_unchanged() const {
        struct stat facts;
        if (::fstat(file_, &facts) != 0 || stamp_of(facts) == stamp_) return;
        const bool as_large = uint64_t(facts.st_size) == stamp_.size;
        throw FileChanged(path_ + " was changed while it was in use: it had " + std::to_string(stamp_.size) +
                          " bytes when it was opened, and " +
                          (as_large ? "was written to since" : "has " + std::to_string(facts.st_size) + " now") +
                          "; put the file back as it was, then start again or resume the run");
    }

    /// Say how the whole file will be read (size 0), or a part of it; the call does not wait.
    void advise(int advice, uint64_t offset = 0, uint64_t size = 0) const {
        ::posix_fadvise(file_, off_t(offset), off_t(size), advice);
    }

private:
    static Stamp stamp_of(const struct stat& facts) {
        return {uint64_t(facts.st_size), facts.st_mtim.tv_sec * int64_t{1'000'000'000} + facts.st_mtim.tv_nsec};
    }

    std::string path_;
    int file_;
    Stamp stamp_;
};

}  // namespace fastmfr
