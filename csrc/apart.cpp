#include "apart.hpp"

#include <unordered_map>

namespace fastmfr {
namespace {

class Matching {
public:
    Matching(const std::vector<Group>& groups, const std::vector<uint32_t>& group_of, std::vector<uint32_t>& pick)
        : groups_(groups), group_of_(group_of), pick_(pick) {}

    bool solve(uint32_t begin) {
        const uint32_t slots = uint32_t(pick_.size());
        std::vector<uint32_t> without;
        held_.reserve(slots);
        for (uint32_t i = 0; i < slots; ++i) {
            const uint32_t slot = (begin + i) % slots;
            if (!held_.try_emplace(person(slot), slot).second) without.push_back(slot);
        }
        for (const uint32_t slot : without)
            if (!find(slot)) return false;
        return true;
    }

private:
    struct Taken {
        uint32_t slot, identity;
    };

    const Group& group(uint32_t slot) const { return groups_[group_of_[slot]]; }
    uint32_t person(uint32_t slot) const { return group(slot).person[pick_[slot]]; }

    /// Breadth first: every person whom `slot` can take, then those whom the holders of these people can take, ...
    bool find(uint32_t slot) {
        std::unordered_map<uint32_t, Taken> reached;  // by person: who would take the person, as which identity
        std::vector<bool> seen(groups_.size());
        std::vector<uint32_t> queue{slot};
        for (size_t at = 0; at < queue.size(); ++at) {
            if (seen[group_of_[queue[at]]]) continue;
            seen[group_of_[queue[at]]] = true;
            const Group& from = group(queue[at]);
            for (uint32_t i = 0; i < from.size; ++i) {
                const uint32_t identity = from.candidate(i), found = from.person[identity];
                if (!reached.try_emplace(found, Taken{queue[at], identity}).second) continue;
                const auto holder = held_.find(found);
                if (holder == held_.end()) {
                    pass_on(reached, found, slot);
                    return true;
                }
                queue.push_back(holder->second);
            }
        }
        return false;
    }

    /// Give `found` to the slot that reached it, that slot's person to the slot that reached this one, up to `slot`.
    void pass_on(const std::unordered_map<uint32_t, Taken>& reached, uint32_t found, uint32_t slot) {
        while (true) {
            const Taken taken = reached.at(found);
            const uint32_t before = person(taken.slot);
            pick_[taken.slot] = taken.identity;
            held_[found] = taken.slot;
            if (taken.slot == slot) return;
            found = before;
        }
    }

    const std::vector<Group>& groups_;
    const std::vector<uint32_t>& group_of_;
    std::vector<uint32_t>& pick_;
    std::unordered_map<uint32_t, uint32_t> held_;  // by person, the slot
};

}  // namespace

bool keep_apart(const std::vector<Group>& groups, const std::vector<uint32_t>& group_of, uint32_t begin,
                std::vector<uint32_t>& pick) {
    return Matching(groups, group_of, pick).solve(begin);
}

}  // namespace fastmfr
