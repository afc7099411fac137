// The machine that executes translated PTX: one program, many threads, every operand a numbered slot of its thread.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace emulator {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using u128 = unsigned __int128;
using s128 = __int128;

struct Step;
struct Thread;

// Executes one step and returns the next one. nullptr returns the thread to the scheduler.
using Handler = const Step* (*)(const Step*, Thread&);

struct Step {
    Handler run;
    u32 line; // of the PTX text
    u32 slot[19];
};

// An error of a kernel. `kind` is the name of the Python exception.
struct Fault {
    const char* kind;
    std::string what;
};

// One tensor of the launch. The kernel sees it at tag(index) + offset, with nothing on either side of it.
struct Region {
    u8* host;  // of the byte at offset `begin`
    u64 begin; // keeps the low bits of the host address, so the kernel sees its alignment
    u64 end;
};

// The upper bits of an address say what it points to: 1 + index of a region, or one of two windows.
constexpr int tag_shift = 40;
constexpr u64 tag(u64 index) { return index << tag_shift; }
constexpr u64 offset_mask = tag(1) - 1;
constexpr u64 shared_window = 0xFFFE, local_window = 0xFFFF;

// The first slots of every thread, in this order: %tid.xyz %ntid.xyz %ctaid.xyz %nctaid.xyz %laneid %warpid, a sink.
enum Special : u32 { tid = 0, ntid = 3, ctaid = 6, nctaid = 9, laneid = 12, warpid = 13 };

struct Launch {
    u32 grid[3], block[3];
    std::vector<Step> code;
    std::vector<u64> registers; // initial values of every thread: poison and constants
    std::vector<Region> regions;
    std::vector<u8> parameters;
    u64 shared_bytes, local_bytes;
    u64 order;
    bool finds_races;
};

struct Copy { // a cp.async that has not completed
    u64 to, from;
    u32 bytes, read;
    const Step* step;
};

enum class State : u8 { ready, warp, barrier, done };

struct Block;

struct Thread {
    u64* slot;
    Block* block;
    const Step* next;
    u32 index, lane;
    u32 mask; // of the warp operation that it waits in
    u32 carry;
    State state;
    std::vector<u8> local;
    std::vector<std::vector<Copy>> copies; // committed groups, oldest first; the last one is open
};

// The last accesses to a byte of shared memory. Epochs count barriers of the block and of the warp.
enum class By : u8 { one_thread, one_warp, several_warps };
struct Touch {
    u32 epoch, warp_epoch, thread;
    By by; // `thread` is the last of them
    bool atomic;
};
struct Touches {
    Touch write, read;
};

struct Block {
    const Launch* launch;
    u32 index[3];
    std::vector<Thread> threads;
    std::vector<u8> shared;
    std::vector<Touches> touches; // of each byte of it
    u32 epoch;                    // never repeats within a launch, so `touches` need not be cleared
    std::vector<u32> warp_epochs;
    u32 at_barrier, done;
    u64 jumps; // jumps left before the block counts as endless
};

[[noreturn]] void fault(const char* kind, const Step* step, const Thread& thread, const std::string& what);

// Operands are stored with zeros (or the sign) above their own width, so a narrower read sees the right bits.
template <class T>
T read(const Thread& thread, u32 slot) {
    static_assert(sizeof(T) <= 8);
    if constexpr (std::is_same_v<T, bool>) {
        return (thread.slot[slot] & 0xFF) != 0;
    } else {
        T value;
        std::memcpy(&value, &thread.slot[slot], sizeof value);
        return value;
    }
}

template <class T>
void write(Thread& thread, u32 slot, T value) {
    if constexpr (std::is_integral_v<T>) {
        thread.slot[slot] = static_cast<u64>(static_cast<s64>(value));
    } else {
        u64 bits = 0;
        std::memcpy(&bits, &value, sizeof value);
        thread.slot[slot] = bits;
    }
}

// A handler for a function of values: slot 0 takes the result, the others are its arguments.
template <auto f, class R, class... A, std::size_t... k>
const Step* apply(const Step* step, Thread& thread, R (*)(A...), std::index_sequence<k...>) {
    write<R>(thread, step->slot[0], f(read<A>(thread, step->slot[k + 1])...));
    return step + 1;
}
template <class R, class... A>
constexpr std::size_t arity(R (*)(A...)) {
    return sizeof...(A);
}
template <auto f>
const Step* value_of(const Step* step, Thread& thread) {
    constexpr auto function = +f;
    return apply<f>(step, thread, function, std::make_index_sequence<arity(function)>{});
}

// The opcodes: exact text, with every modifier, and the number of operands.
struct Table {
    std::map<std::pair<std::string, int>, Handler> handlers;

    // Never inlined: there are thousands of calls, and each would contain its own copy of the map's code.
    void add(const std::string& opcode, int operands, Handler handler);
    template <auto f>
    void pure(const std::string& opcode) {
        add(opcode, 1 + int(arity(+f)), value_of<f>);
    }
};

// "a.b.c" of {"a", "b", "c"}; empty parts leave no dot.
std::string dotted(std::initializer_list<std::string_view> parts);

void integer_opcodes(Table&);
void bit_opcodes(Table&);
void float_opcodes(Table&);
void half_opcodes(Table&);
void compare_opcodes(Table&);
void convert_opcodes(Table&);
void control_opcodes(Table&);
void memory_opcodes(Table&);
void atomic_opcodes(Table&);
void warp_opcodes(Table&);
void tensor_opcodes(Table&);

} // namespace emulator
