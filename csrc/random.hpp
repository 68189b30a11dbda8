// Random numbers without state: every draw is a function of (seed, counter), so any step can be computed on its own.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace fastmfr {

using Words = std::array<uint32_t, 4>;

/// Philox4x32-10, the counter-based generator of Salmon et al., SC 2011.
class Philox {
public:
    explicit Philox(uint64_t seed) : low_(uint32_t(seed)), high_(uint32_t(seed >> 32)) {}

    Words operator()(uint64_t count, uint32_t index, uint32_t tag) const {
        uint32_t c0 = uint32_t(count), c1 = uint32_t(count >> 32), c2 = index, c3 = tag, k0 = low_, k1 = high_;
        for (int round = 0; round < 10; ++round) {
            const uint64_t even = uint64_t{0xD2511F53} * c0, odd = uint64_t{0xCD9E8D57} * c2;
            c0 = uint32_t(odd >> 32) ^ c1 ^ k0;
            c1 = uint32_t(odd);
            c2 = uint32_t(even >> 32) ^ c3 ^ k1;
            c3 = uint32_t(even);
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        return {c0, c1, c2, c3};
    }

private:
    uint32_t low_, high_;
};

/// A number in [0, bound) from 32 random bits; its bias is below bound / 2^32.
inline uint32_t below(uint32_t bits, uint32_t bound) { return uint32_t((uint64_t{bits} * bound) >> 32); }

/// How [0, size) is laid out for a permutation: as a grid of rows x columns, barely larger than `size`.
struct Grid {
    explicit Grid(uint32_t n) : size(n), columns(uint32_t(std::ceil(std::sqrt(double(n))))) {
        rows = (size + columns - 1) / columns;
    }
    uint32_t size, columns, rows;
};

/// A permutation of [0, grid.size) in constant memory: a mixed-radix Feistel network over the grid's (row, column).
/// Points that land on the few grid cells beyond `size` walk on along their cycle until they are inside.
class Permutation {
public:
    Permutation(const Grid& grid, const Philox& random, uint64_t count, uint32_t index, uint32_t tag) : grid_(grid) {
        const Words first = random(count, index, tag), second = random(count, index, tag + 1);
        std::copy(first.begin(), first.end(), keys_.begin());
        std::copy(second.begin(), second.end(), keys_.begin() + first.size());
    }

    /// The images of start, start + 1, ... start + count - 1, all below grid.size.
    void run(uint32_t start, uint32_t count, uint32_t* out) const {
        uint32_t row = start / grid_.columns, column = start % grid_.columns;
        for (uint32_t i = 0; i < count; ++i) {
            out[i] = at(row, column);
            if (++column == grid_.columns) {
                column = 0;
                ++row;
            }
        }
    }

private:
    static constexpr int kRounds = 8;  // six leave a pattern in the orders of fewer than twenty

    static uint32_t mix(uint32_t x) {  // a strong 32-bit finaliser: two multiplications, three shifts
        x = (x ^ (x >> 16)) * 0x7FEB352D;
        x = (x ^ (x >> 15)) * 0x846CA68B;
        return x ^ (x >> 16);
    }

    static uint32_t rotate(uint32_t value, uint32_t by, uint32_t bound) {
        const uint32_t sum = value + by;
        return sum < bound ? sum : sum - bound;
    }

    uint32_t at(uint32_t row, uint32_t column) const {
        uint32_t cell;
        do {
            for (int round = 0; round < kRounds; round += 2) {
                row = rotate(row, below(mix(column ^ keys_[round]), grid_.rows), grid_.rows);
                column = rotate(column, below(mix(row ^ keys_[round + 1]), grid_.columns), grid_.columns);
            }
            cell = row * grid_.columns + column;
        } while (cell >= grid_.size);
        return cell;
    }

    Grid grid_;
    std::array<uint32_t, kRounds> keys_;
};

}  // namespace fastmfr
