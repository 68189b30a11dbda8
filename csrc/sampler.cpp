#include "sampler.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace fastmfr {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

std::string number(uint64_t value) { return std::to_string(value); }

}  // namespace

Sampler::Sampler(std::vector<DomainImages> domains, uint32_t share, uint64_t seed, uint32_t rank, uint32_t world,
                 bool augment, bool per_domain, Draws draws)
    : share_(share), rank_(rank), world_(world), augment_(augment), per_domain_(per_domain), draws_(std::move(draws)),
      random_(seed) {
    if (domains.empty()) throw std::invalid_argument("a sampler needs at least one domain; none was given");
    if (domains.size() >= 1 << 24) throw std::invalid_argument("a sampler takes fewer than 16,777,216 domains");
    if (!share) throw std::invalid_argument("batch_identities must be at least 1, got 0");
    if (rank >= world)
        throw std::invalid_argument("rank must be in [0, world), got " + number(rank) + " of " + number(world));
    if (share > kMost / domains.size() / world)
        throw std::invalid_argument("batch_identities x domains x world must stay below 2**31, got " + number(share) +
                                    " x " + number(domains.size()) + " x " + number(world));
    for (DomainImages& domain : domains) pools_.push_back(make_pool(std::move(domain), augment));
    set_turns();
    set_crowded();
    require(batch(), 0);
}

void Sampler::set_crowded() {
    if (draws_.people.empty()) return;
    bool fits = draws_.people.size() == pools_.size();
    for (size_t d = 0; fits && d < pools_.size(); ++d)
        fits = int64_t(draws_.people[d].size()) == pools_[d].images.identities();
    if (!fits) throw std::invalid_argument("people must have one number for each identity of each domain");
    crowded_.push_back(!has_enough_people(batch()));
    for (uint32_t key = 0; domains() > 1 && key < domains(); ++key)
        for (const Stream& stream : {train(key), test(key)}) crowded_.push_back(!has_enough_people(stream));
}

void Sampler::set_turns() {
    if (draws_.turns.empty()) return;
    places_.resize(pools_.size());
    for (size_t slot = 0; slot < draws_.turns.size(); ++slot) {
        if (draws_.turns[slot] >= pools_.size()) throw std::invalid_argument("turns must be numbers of domains");
        places_[draws_.turns[slot]].push_back(uint32_t(slot));
    }
    for (const auto& places : places_)
        if (places.empty()) throw std::invalid_argument("turns must name every domain");
    most_.assign(pools_.size(), 0);
    for (uint32_t j = 0; j < domains(); ++j)
        for (uint64_t slot = 0; slot < draws_.turns.size(); ++slot)
            most_[j] = std::max(most_[j], uint32_t(position_from(batch(), slot + slots(batch()), j) -
                                                   position_from(batch(), slot, j)));
}

/// How many slots before `slot` take the stream's j-th domain: the first position at or after that slot.
uint64_t Sampler::position_from(const Stream& stream, uint64_t slot, uint32_t j) const {
    if (!by_turns(stream)) return (slot + stream.domains - 1 - j) / stream.domains;
    const auto& places = places_[j];
    const uint64_t round = draws_.turns.size();
    const auto before = std::lower_bound(places.begin(), places.end(), uint32_t(slot % round)) - places.begin();
    return slot / round * places.size() + uint64_t(before);
}

/// The slot that takes a position of the stream's j-th domain.
uint64_t Sampler::slot_of(const Stream& stream, uint64_t position, uint32_t j) const {
    if (!by_turns(stream)) return position * stream.domains + j;
    const auto& places = places_[j];
    return position / places.size() * draws_.turns.size() + places[position % places.size()];
}

Sampler::Pool Sampler::make_pool(DomainImages domain, bool augment) {
    const int64_t identities = domain.identities(), enough = augment ? 1 : 2;
    if (identities < 1 || identities > kMost)
        throw std::invalid_argument("domain '" + domain.name + "' has " + std::to_string(identities) +
                                    " identities; a domain holds 1 to 2,147,483,647");
    uint32_t count = 0;
    if (domain.offsets[0] != 0)
        throw std::invalid_argument("the offsets of domain '" + domain.name + "' must begin with 0");
    for (int64_t k = 0; k < identities; ++k) {
        const int64_t start = domain.offsets[k], end = domain.offsets[k + 1];
        if (end < start || end - start > kMost)
            throw std::invalid_argument("the offsets of domain '" + domain.name + "' must ascend by less than 2**31: " +
                                        std::to_string(end) + " follows " + std::to_string(start));
        count += end - start >= enough;
    }
    std::vector<uint32_t> usable;
    if (count && count < identities) {
        usable.reserve(count);
        for (int64_t k = 0; k < identities; ++k)
            if (domain.offsets[k + 1] - domain.offsets[k] >= enough) usable.push_back(uint32_t(k));
    }
    return {std::move(domain), std::move(usable), Grid(std::max(count, 1u)), uint32_t(identities - count)};
}

uint32_t Sampler::dropped(uint32_t domain) const {
    if (domain >= domains())
        throw std::out_of_range("domain " + number(domain) + " was asked for; there are " + number(domains()));
    return pools_[domain].dropped;
}

void Sampler::require_split(uint32_t meta_test) const {
    if (domains() < 2) throw std::invalid_argument("a split needs two domains or more, got 1; add a source domain");
    if (meta_test >= domains())
        throw std::invalid_argument("meta_test must be in [0, " + number(domains()) + "), got " + number(meta_test));
}

Stream Sampler::train(uint32_t meta_test) const {
    require_split(meta_test);
    const uint32_t others = domains() - 1;
    return {Stream::kTrain, meta_test, others, per_domain_ ? share_ * others : share_};
}

Stream Sampler::test(uint32_t meta_test) const {
    require_split(meta_test);
    return {Stream::kTest, meta_test, 1, share_};
}

void Sampler::require(const Stream& stream, uint64_t step) const {
    if (step >= uint64_t(std::numeric_limits<int64_t>::max()) / slots(stream) - 1)
        throw std::invalid_argument("step " + number(step) + " is beyond what the sampler can count");
    for (uint32_t j = 0; j < stream.domains; ++j) {
        const Pool& pool = pools_[stream.domain(j)];
        const uint64_t usable = pool.images.identities() - pool.dropped;
        const uint32_t m = most(stream, j);
        if (usable < m)
            throw std::invalid_argument(
                "domain '" + pool.images.name + "' has " + number(usable) + " identities with " +
                (augment_ ? "an image" : "two images or more") + ", but a batch takes up to " + number(m) +
                " different ones from it (" + number(stream.share) + " a rank, ranks: " + number(world_) +
                ", domains: " + number(stream.domains) + "); lower batch_identities or join the domain with another" +
                (augment_ ? "" : "; single=\"augment\" would also draw identities with one image"));
    }
    require_apart(stream);
}

/// Whether as many identities as any step takes of each domain can be those of different people.
bool Sampler::has_enough_people(const Stream& stream) const {
    std::vector<Group> groups;
    std::vector<uint32_t> group_of, pick;
    for (uint32_t j = 0; j < stream.domains; ++j) {
        const Pool& pool = pools_[stream.domain(j)];
        groups.push_back({pool.grid.size, [&pool](uint32_t i) { return pool.identity(i); },
                          draws_.people[stream.domain(j)].data()});
        for (uint32_t i = 0; i < std::min(most(stream, j), pool.grid.size); ++i) {
            group_of.push_back(j);
            pick.push_back(pool.identity(i));
        }
    }
    return keep_apart(groups, group_of, 0, pick);
}

void Sampler::require_apart(const Stream& stream) const {
    const size_t place = stream.purpose == Stream::kBatch ? 0 : 1 + 2 * stream.key + (stream.purpose == Stream::kTest);
    if (crowded_.empty() || !crowded_[place]) return;
    std::string taken;
    for (uint32_t j = 0; j < stream.domains; ++j)
        taken += (j ? ", " : "") + number(most(stream, j)) + " of '" + pools_[stream.domain(j)].images.name + "'";
    throw std::invalid_argument("some people are in several domains, and a batch takes up to " + taken +
                                ", which would hold one person twice; lower batch_identities");
}

void Sampler::draw(const Stream& stream, uint64_t step, PairRows rows) const {
    require(stream, step);
    const uint32_t share = stream.share, first_slot = rank_ * share;
    const uint64_t first = step * slots(stream);
    std::vector<uint32_t> pick;
    if (draws_.people.empty()) {
        pick = picks(stream, first + first_slot, share);
    } else {  // who is in a batch depends on whom the other ranks hold
        pick = picks(stream, first, uint32_t(slots(stream)));
        part(stream, step, pick);
        pick = {pick.begin() + first_slot, pick.begin() + first_slot + share};
    }
    const std::vector<uint32_t> group_of = group_of_slots(stream, first + first_slot, share);
    for (uint32_t b = 0; b < share; ++b) {
        const Pool& pool = pools_[stream.domain(group_of[b])];
        rows.domain[b] = stream.domain(group_of[b]);
        rows.identity[b] = pick[b];
        pair(pool, pick[b], random_(step, first_slot + b, stream.tag(kPair)), rows.gallery[b], rows.probe[b]);
    }
}

/// The number among the stream's domains of the domain that each of `count` slots takes, from slot `first` on.
std::vector<uint32_t> Sampler::group_of_slots(const Stream& stream, uint64_t first, uint32_t count) const {
    std::vector<uint32_t> group_of(count);
    const uint32_t* const turns = by_turns(stream) ? draws_.turns.data() : nullptr;
    const uint32_t round = turns ? uint32_t(draws_.turns.size()) : stream.domains;
    uint32_t at = uint32_t(first % round);
    for (uint32_t& group : group_of) {
        group = turns ? turns[at] : at;
        if (++at == round) at = 0;
    }
    return group_of;
}

/// The identity within its domain that each of `count` slots takes, from slot `first` on; all are of one step.
std::vector<uint32_t> Sampler::picks(const Stream& stream, uint64_t first, uint32_t count) const {
    std::vector<uint32_t> pick(count), chosen;
    for (uint32_t j = 0; j < stream.domains; ++j) {
        const uint64_t position = position_from(stream, first, j);
        chosen.resize(position_from(stream, first + count, j) - position);
        order(stream, j, position, uint32_t(chosen.size()), chosen.data());
        const Pool& pool = pools_[stream.domain(j)];
        for (uint32_t& identity : chosen) {
            identity = pool.identity(identity);
            __builtin_prefetch(pool.images.offsets.data() + identity);
        }
        if (by_turns(stream)) {
            for (size_t i = 0; i < chosen.size(); ++i) pick[slot_of(stream, position + i, j) - first] = chosen[i];
        } else {
            uint32_t* place = pick.data() + (slot_of(stream, position, j) - first);
            for (size_t i = 0; i < chosen.size(); ++i) place[i * stream.domains] = chosen[i];
        }
    }
    return pick;
}

/// Changes the picks of a step so that no two are one person.
void Sampler::part(const Stream& stream, uint64_t step, std::vector<uint32_t>& pick) const {
    const uint32_t tag = stream.tag(kApart);
    std::vector<Group> groups;
    for (uint32_t j = 0; j < stream.domains; ++j) {
        const uint32_t domain = stream.domain(j);
        const Pool& pool = pools_[domain];
        const Permutation order(pool.grid, random_, step, domain, tag);
        const auto candidate = [&pool, order](uint32_t i) {
            uint32_t chosen;
            order.run(i, 1, &chosen);
            return pool.identity(chosen);
        };
        groups.push_back({pool.grid.size, candidate, draws_.people[domain].data()});
    }
    const uint32_t begin = below(random_(step, domains(), tag)[0], uint32_t(pick.size()));
    // `require` has made sure that this finds different people.
    keep_apart(groups, group_of_slots(stream, step * slots(stream), uint32_t(pick.size())), begin, pick);
}

/// Two different images of an identity, or the same one twice if it has no other.
void Sampler::pair(const Pool& pool, uint32_t identity, Words bits, int64_t& gallery, int64_t& probe) const {
    const int64_t start = pool.images.offsets[identity];
    const uint32_t images = uint32_t(pool.images.offsets[identity + 1] - start);
    const uint32_t one = below(bits[0], images), other = images > 1 ? below(bits[1], images - 1) : 0;
    gallery = start + one;
    probe = start + (images > 1 ? other + (other >= one) : one);
}

/// The identities (numbers within the pool) at `position` .. `position + count - 1` of the stream's j-th domain; the
/// positions belong to one step.
void Sampler::order(const Stream& stream, uint32_t j, uint64_t position, uint32_t count, uint32_t* out) const {
    const uint32_t domain = stream.domain(j), m = most(stream, j);
    const Grid& grid = pools_[domain].grid;
    if (grid.size < 2 * uint64_t{m} - 1) {
        const uint64_t step = slot_of(stream, position, j) / slots(stream);
        const uint64_t start = position_from(stream, step * slots(stream), j);
        Permutation(grid, random_, step, domain, stream.tag(kStep)).run(uint32_t(position - start), count, out);
        return;
    }
    while (count) {
        const uint64_t pass = position / grid.size;
        const uint32_t index = uint32_t(position % grid.size);
        uint32_t run = std::min(count, grid.size - index);
        if (index < m) {
            run = std::min(run, m - index);
            const std::vector<uint32_t> head = window(stream, j, pass);
            std::copy_n(head.begin() + index, run, out);
        } else {
            Permutation(grid, random_, pass, domain, stream.tag(kPass)).run(index, run, out);
        }
        position += run;
        count -= run;
        out += run;
    }
}

/// The first m identities of a pass, those last whom the step that crosses into the pass already holds.
std::vector<uint32_t> Sampler::window(const Stream& stream, uint32_t j, uint64_t pass) const {
    const uint32_t domain = stream.domain(j), m = most(stream, j);
    const Grid& grid = pools_[domain].grid;
    std::vector<uint32_t> head(m);
    Permutation(grid, random_, pass, domain, stream.tag(kPass)).run(0, m, head.data());
    const uint64_t begin = pass * grid.size, step = slot_of(stream, begin, j) / slots(stream);
    const uint32_t held = uint32_t(begin - position_from(stream, step * slots(stream), j));
    if (!held) return head;
    std::vector<uint32_t> tail(held);
    Permutation(grid, random_, pass - 1, domain, stream.tag(kPass)).run(grid.size - held, held, tail.data());
    std::sort(tail.begin(), tail.end());
    std::stable_partition(head.begin(), head.end(),
                          [&](uint32_t identity) { return !std::binary_search(tail.begin(), tail.end(), identity); });
    return head;
}

}  // namespace fastmfr
