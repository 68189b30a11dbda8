// Slots that each take an identity of their group, so that no person is taken twice: a matching of slots and people.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace fastmfr {

/// What a slot may take: `size` identities in the order of `candidate`, and the person of each identity.
struct Group {
    uint32_t size;
    std::function<uint32_t(uint32_t)> candidate;
    const uint32_t* person;
};

/// Change as few picks as needed, so that no two slots hold one person.
///
/// From slot `begin` on, all around, the first slot that holds a person keeps that person. Every other slot takes the
/// first candidate of its group whom no slot holds. If there is none, slots pass people on along the shortest way to a
/// person whom no slot holds, so picks are found wherever there are any.
///
/// `group_of[t]` is the group of slot t, and `pick[t]` its identity. Returns whether all people are different now.
bool keep_apart(const std::vector<Group>& groups, const std::vector<uint32_t>& group_of, uint32_t begin,
                std::vector<uint32_t>& pick);

}  // namespace fastmfr
