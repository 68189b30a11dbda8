#include "sampler.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace fastmfr {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

std::string number(uint64_t value) { return std::to_string(value); }

/// The first position of domain j (of n) at or after slot t.
uint64_t position_from(uint64_t t, uint32_t j, uint32_t n) { return (t + n - 1 - j) / n; }

}  // namespace

Sampler::Sampler(std::vector<DomainImages> domains, uint32_t share, uint64_t seed, uint32_t rank, uint32_t world,
                 bool augment, bool per_domain)
    : share_(share), rank_(rank), world_(world), augment_(augment), per_domain_(per_domain), random_(seed) {
    if (domains.empty()) throw std::invalid_argument("a sampler needs at least one domain; none was given");
    if (domains.size() >= 1 << 24) throw std::invalid_argument("a sampler takes fewer than 16,777,216 domains");
    if (!share) throw std::invalid_argument("batch_identities must be at least 1, got 0");
    if (rank >= world)
        throw std::invalid_argument("rank must be in [0, world), got " + number(rank) + " of " + number(world));
    if (share > kMost / domains.size() / world)
        throw std::invalid_argument("batch_identities x domains x world must stay below 2**31, got " + number(share) +
                                    " x " + number(domains.size()) + " x " + number(world));
    for (DomainImages& domain : domains) pools_.push_back(make_pool(std::move(domain), augment));
    require(batch(), 0);
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
    const uint32_t m = most(stream);
    for (uint32_t j = 0; j < stream.domains; ++j) {
        const Pool& pool = pools_[stream.domain(j)];
        const uint64_t usable = pool.images.identities() - pool.dropped;
        if (usable < m)
            throw std::invalid_argument(
                "domain '" + pool.images.name + "' has " + number(usable) + " identities with " +
                (augment_ ? "an image" : "two images or more") + ", but a batch takes up to " + number(m) +
                " different ones from it (" + number(stream.share) + " a rank, ranks: " + number(world_) +
                ", domains: " + number(stream.domains) + "); lower batch_identities or join the domain with another" +
                (augment_ ? "" : "; single=\"augment\" would also draw identities with one image"));
    }
}

void Sampler::draw(const Stream& stream, uint64_t step, PairRows rows) const {
    require(stream, step);
    const uint32_t n = stream.domains, share = stream.share, first_slot = rank_ * share;
    const uint64_t first = step * slots(stream) + first_slot;
    std::vector<uint32_t> chosen(share / n + 1);
    for (uint32_t j = 0; j < n; ++j) {
        const uint64_t position = position_from(first, j, n);
        const uint32_t start = uint32_t(position * n + j - first);
        if (start >= share) continue;
        const uint32_t count = (share - start + n - 1) / n;
        order(stream, j, position, count, chosen.data());
        const Pool& pool = pools_[stream.domain(j)];
        for (uint32_t i = 0; i < count; ++i) {
            if (!pool.usable.empty()) chosen[i] = pool.usable[chosen[i]];
            __builtin_prefetch(pool.images.offsets.data() + chosen[i]);
        }
        for (uint32_t i = 0; i < count; ++i) {
            const uint32_t b = start + i * n;
            rows.domain[b] = stream.domain(j);
            rows.identity[b] = chosen[i];
            pair(pool, chosen[i], random_(step, first_slot + b, stream.tag(kPair)), rows.gallery[b], rows.probe[b]);
        }
    }
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
    const uint32_t domain = stream.domain(j), m = most(stream);
    const Grid& grid = pools_[domain].grid;
    if (grid.size < 2 * uint64_t{m} - 1) {
        const uint64_t step = (position * stream.domains + j) / slots(stream);
        const uint64_t start = position_from(step * slots(stream), j, stream.domains);
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
    const uint32_t domain = stream.domain(j), m = most(stream);
    const Grid& grid = pools_[domain].grid;
    std::vector<uint32_t> head(m);
    Permutation(grid, random_, pass, domain, stream.tag(kPass)).run(0, m, head.data());
    const uint64_t begin = pass * grid.size, step = (begin * stream.domains + j) / slots(stream);
    const uint32_t held = uint32_t(begin - position_from(step * slots(stream), j, stream.domains));
    if (!held) return head;
    std::vector<uint32_t> tail(held);
    Permutation(grid, random_, pass - 1, domain, stream.tag(kPass)).run(grid.size - held, held, tail.data());
    std::sort(tail.begin(), tail.end());
    std::stable_partition(head.begin(), head.end(),
                          [&](uint32_t identity) { return !std::binary_search(tail.begin(), tail.end(), identity); });
    return head;
}

}  // namespace fastmfr
