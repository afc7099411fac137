// Checked translation of addresses.
#pragma once
#include "machine.h"
#include "race.h"

namespace emulator {

enum class Space { global, shared, local, parameter, generic };

// The host address of `bytes` bytes at `address`. It must be a multiple of `bytes`, in memory that the kernel may
// touch.
template <Space space>
u8* locate(const Step* step, Thread& thread, u64 address, u64 bytes);

std::string describe(Thread& thread, u64 address, u64 bytes);

inline u8* locate_global(const Step* step, Thread& thread, u64 address, u64 bytes) {
    const auto& regions = thread.block->launch->regions;
    const u64 index = (address >> tag_shift) - 1, offset = address & offset_mask;
    const bool somewhere = index < regions.size();
    if (somewhere && address % bytes)
        fault("MisalignedAccess", step, thread, describe(thread, address, bytes));
    if (!somewhere || offset < regions[index].begin || offset + bytes > regions[index].end)
        fault("OutOfBounds", step, thread, describe(thread, address, bytes));
    return regions[index].host + (offset - regions[index].begin);
}

inline u8* locate_in(u8* base, u64 size, const Step* step, Thread& thread, u64 offset, u64 bytes, const char* what) {
    const auto text = [&] {
        return std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + " of " + std::to_string(size) +
               " bytes of " + what + " memory";
    };
    if (offset % bytes)
        fault("MisalignedAccess", step, thread, text());
    if (offset > size || size - offset < bytes)
        fault("OutOfBounds", step, thread, text());
    return base + offset;
}

inline u8* locate_shared(const Step* step, Thread& thread, u64 offset, u64 bytes) {
    auto& shared = thread.block->shared;
    return locate_in(shared.data(), shared.size(), step, thread, offset, bytes, "shared");
}

template <Space space>
u8* locate(const Step* step, Thread& thread, u64 address, u64 bytes) {
    if constexpr (space == Space::global) {
        return locate_global(step, thread, address, bytes);
    } else if constexpr (space == Space::shared) {
        return locate_shared(step, thread, address, bytes);
    } else if constexpr (space == Space::local) {
        return locate_in(thread.local.data(), thread.local.size(), step, thread, address, bytes, "local");
    } else if constexpr (space == Space::parameter) {
        const auto& parameters = thread.block->launch->parameters;
        u8* base = const_cast<u8*>(parameters.data());
        return locate_in(base, parameters.size(), step, thread, address, bytes, "parameter");
    } else {
        const u64 window = address >> tag_shift;
        if (window == shared_window)
            return locate<Space::shared>(step, thread, address & offset_mask, bytes);
        if (window == local_window)
            return locate<Space::local>(step, thread, address & offset_mask, bytes);
        return locate_global(step, thread, address, bytes);
    }
}

template <class T>
T load(const u8* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <class T>
void store(u8* to, T value) {
    std::memcpy(to, &value, sizeof value);
}

} // namespace emulator
