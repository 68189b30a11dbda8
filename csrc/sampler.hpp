// Grouped domain sampler: which identities a batch holds, as a pure function of (seed, step).
//
// Slots are numbered through all steps and ranks: slot t = step * share * world + rank * share + b. Over a stream's n
// domains, slot t takes domain t mod n and that domain's position t div n, so domains come evenly and remainders
// rotate. Position p of a domain with C identities is number p mod C of pass p div C; a pass is one permutation of the
// domain. A step takes at most m = ceil(share * world / n) positions of a domain, all different identities:
//   C >= 2 m - 1  passes follow each other. Where a step takes the last t positions of one pass and the first of the
//                 next, the new pass first serves those of its first m whom the step does not hold yet (at least
//                 m - t of them, so they suffice), then the others. Every identity still comes once a pass.
//   C >= m        every step takes a permutation of its own.
//
// Two things change that, for which m is the most that a step takes of the domain then:
//   turns   the slots of batches take the domains in the order of `turns`, over and over, in place of t mod n.
//   people  identities of several domains may be one person. Where a step holds a person twice, one of the two slots
//           takes another identity of its domain (apart.hpp), by an order of the step's own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apart.hpp"
#include "random.hpp"

namespace fastmfr {

/// A domain's images, identity by identity: identity k has images offsets[k] .. offsets[k + 1] - 1.
struct DomainImages {
    std::string name;
    std::vector<int64_t> offsets;  // identities + 1

    int64_t identities() const { return int64_t(offsets.size()) - 1; }
};

/// How domains are drawn, beyond evenly and each on its own; both members may be empty.
struct Draws {
    std::vector<std::vector<uint32_t>> people;  // by domain, the number of the person of each identity
    std::vector<uint32_t> turns;                // domains of batches, slot by slot of one round
};

/// Where the pairs of a batch go, `share` numbers each.
struct PairRows {
    int64_t *domain, *identity, *gallery, *probe;
};

/// One endless sequence of batches: of all domains, or the train or test part of the split with meta-test domain `key`.
struct Stream {
    enum Purpose : uint32_t { kBatch, kTrain, kTest } purpose;
    uint32_t key, domains, share;  // `domains` it draws from; `share` pairs of each rank at a step

    uint32_t domain(uint32_t j) const {
        return purpose == kBatch ? j : purpose == kTest ? key : j + (j >= key);
    }
    uint32_t tag(uint32_t use) const { return use << 28 | uint32_t(purpose) << 24 | key; }
};

class Sampler {
public:
    Sampler(std::vector<DomainImages> domains, uint32_t share, uint64_t seed, uint32_t rank, uint32_t world,
            bool augment, bool per_domain, Draws draws = {});

    uint32_t domains() const { return uint32_t(pools_.size()); }
    /// How many identities of a domain are never drawn; throws std::out_of_range for a domain there is not.
    uint32_t dropped(uint32_t domain) const;

    Stream batch() const { return {Stream::kBatch, 0, domains(), share_}; }
    Stream train(uint32_t meta_test) const;
    Stream test(uint32_t meta_test) const;

    /// Write this rank's pairs at `step` of `stream`; throws std::invalid_argument where a domain is too small for it.
    void draw(const Stream& stream, uint64_t step, PairRows rows) const;

private:
    /// The identities of a domain that are drawn; `usable` lists them, or is empty if they are all.
    struct Pool {
        DomainImages images;
        std::vector<uint32_t> usable;
        Grid grid;
        uint32_t dropped;

        uint32_t identity(uint32_t number) const { return usable.empty() ? number : usable[number]; }
    };
    enum Use : uint32_t { kPair, kPass = 2, kStep = 4, kApart = 6 };  // a permutation takes two tags

    static Pool make_pool(DomainImages domain, bool augment);
    void set_turns();
    void set_crowded();
    bool has_enough_people(const Stream& stream) const;
    void require_split(uint32_t meta_test) const;
    /// Identities that all ranks take together at a step.
    uint64_t slots(const Stream& stream) const { return uint64_t{stream.share} * world_; }
    /// Identities that a step takes at most of the stream's j-th domain.
    uint32_t most(const Stream& stream, uint32_t j) const {
        if (by_turns(stream)) return most_[j];
        return uint32_t((slots(stream) + stream.domains - 1) / stream.domains);
    }
    bool by_turns(const Stream& stream) const { return stream.purpose == Stream::kBatch && !draws_.turns.empty(); }
    uint64_t position_from(const Stream& stream, uint64_t slot, uint32_t j) const;
    uint64_t slot_of(const Stream& stream, uint64_t position, uint32_t j) const;
    void require(const Stream& stream, uint64_t step) const;
    void require_apart(const Stream& stream) const;
    std::vector<uint32_t> picks(const Stream& stream, uint64_t first, uint32_t count) const;
    void part(const Stream& stream, uint64_t step, std::vector<uint32_t>& pick) const;
    std::vector<uint32_t> group_of_slots(const Stream& stream, uint64_t first, uint32_t count) const;
    void order(const Stream& stream, uint32_t j, uint64_t position, uint32_t count, uint32_t* out) const;
    std::vector<uint32_t> window(const Stream& stream, uint32_t j, uint64_t pass) const;
    void pair(const Pool& pool, uint32_t identity, Words bits, int64_t& gallery, int64_t& probe) const;

    std::vector<Pool> pools_;
    uint32_t share_, rank_, world_;
    bool augment_, per_domain_;
    Draws draws_;
    std::vector<std::vector<uint32_t>> places_;  // by domain, the slots of one round of turns that take the domain
    std::vector<uint32_t> most_;                 // by domain, how many slots of a step take the domain at most, by turns
    std::vector<bool> crowded_;                  // whether people are too few: batches, then train and test of a split
    Philox random_;
};

}  // namespace fastmfr
