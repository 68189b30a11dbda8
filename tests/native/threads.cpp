// What several threads may do at once with csrc/, for ThreadSanitizer: `make sanitize` builds and runs it.
// Every thread must get what one thread alone gets; exits with 1 if one does not.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gather.hpp"
#include "recordio.hpp"
#include "sampler.hpp"

using namespace fastmfr;

namespace {

constexpr int kThreads = 4, kRounds = 20, kImages = 60;
std::atomic<int> failures{0};

void expect(bool good, const char* what) {
    if (!good) std::fprintf(stderr, "not as in one thread: %s\n", what), ++failures;
}

/// Run `work(thread)` in all threads and wait for them.
template <class Work>
void in_threads(const Work& work) {
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
    for (std::thread& thread : threads) thread.join();
}

template <class T>
void put(std::string& bytes, T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// Write train.rec and train.idx: flat records, three images to an identity, as im2rec does.
void write_folder(const std::string& folder) {
    std::string rec, index;
    for (uint32_t key = 0; key < kImages; ++key) {
        const std::string image = "\xFF\xD8\xFF\xE0" + std::string(200 + 4 * key, char(key));
        index += std::to_string(key) + "\t" + std::to_string(rec.size()) + "\n";
        put(rec, kMagic);
        put(rec, uint32_t(kFloat32.header + image.size()));
        put(rec, uint32_t{0});
        put(rec, float(key / 3));
        put(rec, uint64_t{key});
        put(rec, uint64_t{0});
        rec += image;
    }
    std::ofstream(folder + "/train.rec", std::ios::binary) << rec;
    std::ofstream(folder + "/train.idx") << index;
}

std::unique_ptr<RecordFile> opened(const std::string& folder) {
    return std::make_unique<RecordFile>(folder + "/train.rec", folder + "/train.idx");
}

std::string image_of(const RecordFile& file, uint64_t image) {
    Record record;
    file.begin(image, record);
    file.read(image, record);
    return {reinterpret_cast<const char*>(record.image.data), record.image.size};
}

/// Open one folder in all threads, with and without a kept index, and read one object in all threads.
void read_records(const std::string& folder) {
    for (int round = 0; round < kRounds; ++round) {
        ::unlink((folder + "/train.idx.fastmfr").c_str());
        in_threads([&](int) { expect(opened(folder)->images() == kImages, "images of a folder opened at once"); });
    }
    const auto kept = opened(folder);
    const RecordFile& file = *kept;
    std::vector<std::string> alone;
    for (uint64_t image = 0; image < kImages; ++image) alone.push_back(image_of(file, image));
    in_threads([&](int thread) {
        for (int round = 0; round < kRounds; ++round)
            for (uint64_t image = 0; image < kImages; ++image) {
                const uint64_t other = (image * 7 + thread) % kImages;
                expect(image_of(file, other) == alone[other], "an image");
                expect(file.label(other) == other / 3 && file.key(other) == other, "a label or key");
            }
    });
}

/// Cut the file short while all threads read: a sentence, no signal.
void cut_short(const std::string& folder) {
    const auto kept = opened(folder);
    const RecordFile& file = *kept;
    std::atomic<int> refusals{0};
    in_threads([&](int thread) {
        for (int round = 0; round < kRounds; ++round) {
            if (thread == 0 && round == kRounds / 2)
                expect(::truncate((folder + "/train.rec").c_str(), 500) == 0, "whether a file can be cut short");
            for (uint64_t image = 0; image < kImages; ++image) {
                try {
                    image_of(file, image);
                } catch (const FileChanged&) {
                    ++refusals;
                }
            }
        }
    });
    expect(refusals > 0, "a file cut short");
}

void draw_batches() {
    std::vector<int64_t> offsets;
    for (int k = 0; k <= 40; ++k) offsets.push_back(3 * k);
    const Sampler sampler({{"a", offsets}, {"b", offsets}, {"c", offsets}}, 16, 1, 0, 1, false, false);
    const auto drawn = [&](uint64_t step) {
        std::vector<int64_t> numbers;
        for (const Stream& stream : {sampler.batch(), sampler.train(1), sampler.test(2)}) {
            std::vector<int64_t> rows(4 * stream.share);
            int64_t* const row = rows.data();
            sampler.draw(stream, step, {row, row + stream.share, row + 2 * stream.share, row + 3 * stream.share});
            numbers.insert(numbers.end(), rows.begin(), rows.end());
        }
        return numbers;
    };
    std::vector<std::vector<int64_t>> alone;
    for (int step = 0; step < kRounds; ++step) alone.push_back(drawn(step));
    in_threads([&](int thread) {
        for (int round = 0; round < kRounds; ++round) {
            const int step = (round + thread) % kRounds;
            expect(drawn(step) == alone[step], "a batch");
        }
    });
}

void gather_images() {
    constexpr int64_t size = 16, batch = 8;
    std::vector<uint8_t> pixels(kImages * size * size * 3);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * 37);
    const std::vector<int64_t> index{3, 59, 0, 7, 7, 20, 41, 5};
    const std::vector<uint8_t> mirror{0, 1, 0, 1, 0, 1, 0, 1};
    const std::vector<int32_t> shift(2 * batch, -2), block{1, 1, 3, 1, 1, 4, 1, 1};
    const auto gathered = [&] {
        std::vector<float> out(batch * 3 * size * size);
        const Changes changes{mirror.data(), shift.data(), block.data(), nullptr, nullptr};
        gather({pixels.data(), kImages, size, size}, index.data(), batch, changes, 127.5f, 1 / 127.5f, out.data());
        return out;
    };
    const std::vector<float> alone = gathered();
    in_threads([&](int) {
        for (int round = 0; round < kRounds; ++round) expect(gathered() == alone, "a gathered batch");
    });
}

}  // namespace

int main() {
    std::string folder = std::filesystem::temp_directory_path() / "fastmfr-threads.XXXXXX";
    if (!::mkdtemp(folder.data())) return 1;
    write_folder(folder);
    read_records(folder);
    cut_short(folder);
    draw_batches();
    gather_images();
    for (const char* name : {"/train.rec", "/train.idx", "/train.idx.fastmfr", ""})
        std::remove((folder + name).c_str());
    std::printf("%d threads, %d differences\n", kThreads, failures.load());
    return failures ? 1 : 0;
}
