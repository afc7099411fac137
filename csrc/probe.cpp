// v1fast._probe: what this machine is, and how fast it can multiply, read and update. The rates are ceilings. A
// kernel's own rate only means something in comparison with them. On Python's limited API, like v1fast._C, so that one
// wheel serves every Python.

#include <Python.h>

#include "cpu/detail/isa.h"

#include <sys/mman.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sched.h>
#endif

#include <algorithm>
#include <barrier>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

enum class Kind { multiply_add, read, update };

struct Work {
    Kind kind;
    int64_t passes;
    float* data;   // [count], untouched by multiply_add
    int64_t count; // a multiple of kBlock
};

#if defined(__aarch64__)
constexpr int kChains = 24; // of 32 registers; some cores start 4 multiply-adds per cycle, with a latency of 4
#else
constexpr int kChains = 12; // 2 multiply-adds per cycle, with a latency of 4 or 5; with the 2 constants in 16 registers
#endif
constexpr int kStreams = 8;            // 2 loads per cycle, each into an addition with a latency of 3 or 4
constexpr int64_t kBlock = 1024;       // floats; a multiple of every vector width times kStreams
constexpr int64_t kHugePage = 2 << 20; // bytes
// Volatile, because the compiler would otherwise simplify the loops from the constants' values.
volatile float opaque_zero = 0, opaque_half = 0.5F;

// The bodies are inlined into one function per instruction set. Its target attribute decides how a vector is held.
#define V1FAST_INLINE inline __attribute__((always_inline))

template <int bytes>
struct Vector {
    typedef float type __attribute__((vector_size(bytes), may_alias));
};

/// Returns the same pointer, but hides it from the compiler. So every pass loads and stores again.
V1FAST_INLINE float* forget(float* data) {
    asm volatile("" : "+r"(data));
    return data;
}

/// Uses the result in a way that the compiler cannot see. So it has to be computed.
V1FAST_INLINE void keep(float result) { asm volatile("" : : "m"(result)); }

template <class V, int n>
V1FAST_INLINE float total(const V (&parts)[n]) {
    V sum = parts[0];
    for (int i = 1; i < n; ++i)
        sum += parts[i];
    float result = 0;
    for (size_t lane = 0; lane < sizeof(V) / sizeof(float); ++lane)
        result += sum[lane];
    return result;
}

template <class V>
V1FAST_INLINE void multiply_add(const Work& work) {
    const float factor = opaque_half, addend = opaque_half;
    V values[kChains];
    for (int i = 0; i < kChains; ++i)
        values[i] = V{} + static_cast<float>(i); // all different: the compiler would compute equal chains only once
    for (int64_t pass = 0; pass < work.passes; ++pass)
        for (int i = 0; i < kChains; ++i)
            values[i] = values[i] * factor + addend;
    keep(total(values));
}

template <class V>
V1FAST_INLINE void read(const Work& work) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    V sums[kStreams] = {};
    for (int64_t pass = 0; pass < work.passes; ++pass) {
        const float* data = forget(work.data);
        for (int64_t i = 0; i < work.count; i += kStreams * lanes)
            for (int stream = 0; stream < kStreams; ++stream)
                sums[stream] += *reinterpret_cast<const V*>(data + i + stream * lanes);
    }
    keep(total(sums));
}

template <class V>
V1FAST_INLINE void update(const Work& work) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    const float addend = opaque_zero;
    for (int64_t pass = 0; pass < work.passes; ++pass) {
        float* data = forget(work.data);
        for (int64_t i = 0; i < work.count; i += kStreams * lanes)
            for (int stream = 0; stream < kStreams; ++stream)
                *reinterpret_cast<V*>(data + i + stream * lanes) += addend;
    }
}

template <int bytes>
V1FAST_INLINE void perform(const Work& work) {
    using V = typename Vector<bytes>::type;
    switch (work.kind) {
    case Kind::multiply_add:
        return multiply_add<V>(work);
    case Kind::read:
        return read<V>(work);
    case Kind::update:
        return update<V>(work);
    }
}

struct Perform {
    const char* isa;
    int lanes; // floats per vector
    void (*perform)(const Work&);
};

#if defined(__x86_64__)
__attribute__((target("arch=x86-64-v4"))) void perform_v4(const Work& work) { perform<64>(work); }
__attribute__((target("arch=x86-64-v3"))) void perform_v3(const Work& work) { perform<32>(work); }
#endif
void perform_plain(const Work& work) { perform<16>(work); }

Perform widest() {
#if defined(__x86_64__)
    if (v1fast::has_avx512())
        return {"avx512", 16, perform_v4};
    if (v1fast::has_avx2())
        return {"avx2+fma", 8, perform_v3};
#elif defined(__aarch64__)
    return {"neon", 4, perform_plain};
#endif
    return {"baseline", 4, perform_plain};
}

struct Cache {
    int64_t bytes = 0; // 0: unknown or absent
    int shared_by = 1; // logical cores
};

struct Machine {
    std::string cpu;
    int cores; // logical cores that this process may use
    Cache l1, l2, l3;
};

#if defined(__APPLE__)

int64_t system_number(const char* name) {
    int64_t number = 0;
    size_t size = sizeof number;
    return sysctlbyname(name, &number, &size, nullptr, 0) == 0 ? number : 0; // little endian: 32 bits fit as well
}

/// Of the performance cores. There is no L3.
Cache find_cache(int level) {
    if (level == 1)
        return {system_number("hw.perflevel0.l1dcachesize"), 1};
    if (level == 2)
        return {system_number("hw.perflevel0.l2cachesize"),
                std::max(static_cast<int>(system_number("hw.perflevel0.cpusperl2")), 1)};
    return {};
}

std::string cpu_name() {
    char name[256] = "unknown";
    size_t size = sizeof name;
    sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0);
    return name;
}

int usable_cores() { return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1); }

#else

std::string first_word(const std::string& path) {
    std::string word;
    std::ifstream(path) >> word;
    return word;
}

/// Bits set in a mask as Linux writes it: hexadecimal, with commas.
int count_cores(const std::string& mask) {
    int cores = 0;
    for (char digit : mask)
        if (digit != ',')
            cores += std::popcount(static_cast<unsigned>(std::strtoul(std::string(1, digit).c_str(), nullptr, 16)));
    return std::max(cores, 1);
}

/// The data or unified cache of a level, from Linux or else from the C library. Linux comes first: it gives the L3 of
/// one core complex. On AMD, glibc gives the sum of all of them.
Cache find_cache(int level) {
    for (int index = 0; index < 8; ++index) {
        const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
        if (first_word(folder + "level") != std::to_string(level) || first_word(folder + "type") == "Instruction")
            continue;
        const std::string size = first_word(folder + "size"); // "32K"
        const int64_t unit = size.ends_with('K') ? 1 << 10 : size.ends_with('M') ? 1 << 20 : 1;
        return {std::strtoll(size.c_str(), nullptr, 10) * unit, count_cores(first_word(folder + "shared_cpu_map"))};
    }
    const int name = level == 1 ? _SC_LEVEL1_DCACHE_SIZE : level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE;
    return {std::max<int64_t>(sysconf(name), 0), 1};
}

std::string cpu_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.starts_with("model name"))
            if (const auto at = line.find(": "); at != std::string::npos)
                return line.substr(at + 2);
    return "unknown";
}

/// Not hardware_concurrency: it ignores the process's affinity where glibc is older than 2.35.
int usable_cores() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        return CPU_COUNT(&allowed);
    return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1); // more cores than the set can hold
}

#endif

Machine this_machine() { return {cpu_name(), usable_cores(), find_cache(1), find_cache(2), find_cache(3)}; }

struct WorkingSets {
    std::optional<int64_t> l1, l2, l3; // bytes per thread; none where the level is absent or cannot be told apart
    int64_t memory;
};

WorkingSets choose_working_sets(const Machine& machine, int threads) {
    const auto share = [&](const Cache& cache) { return cache.bytes / std::min(threads, cache.shared_by); };
    const auto whole_blocks = [](int64_t bytes) { return std::max(bytes / (4 * kBlock), int64_t{1}) * 4 * kBlock; };
    const int64_t l1 = share(machine.l1), l2 = share(machine.l2), l3 = share(machine.l3);
    WorkingSets sets{};
    if (l1)
        sets.l1 = whole_blocks(l1 / 2);
    if (l2)
        sets.l2 = whole_blocks(l2 / 2);
    // A quarter of the L3, because other virtual machines may share it; but at least twice the L2, because a smaller
    // set would measure the L2.
    if (l3 >= 2 * l2 && l3)
        sets.l3 = whole_blocks(std::max(2 * l2, l3 / 4));
    const int64_t beyond_caches = std::max(4 * std::max({l1, l2, l3}), (int64_t{64} << 20) / threads);
    sets.memory = whole_blocks(std::min(beyond_caches, int64_t{256} << 20));
    return sets;
}

using Clock = std::chrono::steady_clock;

struct Effort {
    int repeats;
    double seconds; // minimum for one repeat on one thread
};

struct Rate {
    double best, median;
};

/// std::jthread, which Apple's library lacks.
struct Threads : std::vector<std::thread> {
    ~Threads() {
        for (std::thread& thread : *this)
            thread.join();
    }
};

/// Seconds from the first start to the last end of `work(thread)` on all threads at once, one number per repeat.
template <class Function>
std::vector<double> time_together(int threads, int repeats, const Function& work) {
    std::vector<Clock::time_point> starts(size_t(threads) * repeats), ends(starts.size());
    std::barrier together(threads);
    const auto run = [&](int thread) {
        for (int repeat = 0; repeat < repeats; ++repeat) {
            together.arrive_and_wait();
            starts[size_t(repeat) * threads + thread] = Clock::now();
            work(thread);
            ends[size_t(repeat) * threads + thread] = Clock::now();
        }
    };
    {
        Threads others;
        others.reserve(threads - 1);
        try {
            for (int thread = 1; thread < threads; ++thread)
                others.emplace_back(run, thread);
        } catch (...) { // no more threads available: the running ones must not wait forever for the others
            for (int missing = static_cast<int>(others.size()); missing < threads; ++missing)
                together.arrive_and_drop();
            throw;
        }
        run(0);
    }
    std::vector<double> seconds(repeats);
    for (int repeat = 0; repeat < repeats; ++repeat) {
        const auto first = starts.begin() + size_t(repeat) * threads, last = ends.begin() + size_t(repeat) * threads;
        const auto span = *std::max_element(last, last + threads) - *std::min_element(first, first + threads);
        seconds[repeat] = std::chrono::duration<double>(span).count();
    }
    return seconds;
}

/// 1e9 units per second of `work`. One pass of it on one thread does `units`.
Rate measure(const Perform& used, const std::vector<Work>& work, double units, Effort effort) {
    const auto run = [&](int64_t passes) {
        return [&, passes](int thread) {
            Work own = work[thread];
            own.passes = passes;
            used.perform(own);
        };
    };
    int64_t passes = 1;
    while (time_together(1, 1, run(passes))[0] < effort.seconds)
        passes *= 2;
    std::vector<double> seconds = time_together(static_cast<int>(work.size()), effort.repeats, run(passes));
    std::sort(seconds.begin(), seconds.end());
    const double giga_units = units * static_cast<double>(passes) * static_cast<double>(work.size()) * 1e-9;
    return {giga_units / seconds.front(), giga_units / seconds[seconds.size() / 2]};
}

using Buffer = std::unique_ptr<float[], decltype(&std::free)>;

/// Memory in huge pages where the system provides them. Small pages would add the cost of address translation.
Buffer allocate(int64_t bytes) {
    const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    auto* data = static_cast<float*>(std::aligned_alloc(kHugePage, rounded));
    if (!data)
        throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(data, rounded, MADV_HUGEPAGE); // only advice: if it is refused, small pages are used
#endif
    return {data, &std::free};
}

struct Level {
    int64_t bytes; // per thread
    Rate read, update;
};

struct Ceilings {
    Rate multiply_add;
    std::optional<Level> l1, l2, l3, memory;
};

Ceilings measure_all(const Machine& machine, int threads, Effort effort) {
    const Perform used = widest();
    const WorkingSets sets = choose_working_sets(machine, threads);
    const int64_t largest = std::max({sets.l1.value_or(0), sets.l2.value_or(0), sets.l3.value_or(0), sets.memory});
    std::vector<Buffer> buffers;
    for (int thread = 0; thread < threads; ++thread)
        buffers.push_back(allocate(largest));
    // Each thread writes its own part first, so the pages lie in the memory of its own node.
    time_together(threads, 1, [&](int thread) { std::fill_n(buffers[thread].get(), largest / 4, 1.0F); });

    const auto rate = [&](Kind kind, int64_t bytes, double units) {
        std::vector<Work> work;
        for (const Buffer& buffer : buffers)
            work.push_back({kind, 1, buffer.get(), bytes / 4});
        return measure(used, work, units, effort);
    };
    const auto level = [&](std::optional<int64_t> bytes) -> std::optional<Level> {
        if (!bytes)
            return std::nullopt;
        const auto size = static_cast<double>(*bytes);
        return Level{*bytes, rate(Kind::read, *bytes, size), rate(Kind::update, *bytes, 2 * size)};
    };
    return {rate(Kind::multiply_add, 0, 2.0 * used.lanes * kChains), level(sets.l1), level(sets.l2), level(sets.l3),
            level(sets.memory)};
}

// A new reference, or null with Python's error set. Py_BuildValue passes such a null on, and gives None for "".
PyObject* as_python(const Cache& cache) {
    if (!cache.bytes)
        return Py_BuildValue("");
    return Py_BuildValue("{s:L,s:i}", "bytes", static_cast<long long>(cache.bytes), "shared_by", cache.shared_by);
}

PyObject* as_python(const Rate& rate) { return Py_BuildValue("{s:d,s:d}", "best", rate.best, "median", rate.median); }

PyObject* as_python(const std::optional<Level>& level) {
    if (!level)
        return Py_BuildValue("");
    return Py_BuildValue("{s:L,s:N,s:N}", "bytes_per_thread", static_cast<long long>(level->bytes), "read_gbs",
                         as_python(level->read), "update_gbs", as_python(level->update));
}

// What `function` returns; its exception as Python's.
template <class Function>
PyObject* guarded(const Function& function) {
    try {
        return function();
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// Lets other threads of Python run while it lives.
class Unlocked {
    PyThreadState* state_ = PyEval_SaveThread();

public:
    Unlocked() = default;
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;
    ~Unlocked() { PyEval_RestoreThread(state_); }
};

PyObject* facts(PyObject*, PyObject*) {
    return guarded([] {
        const Machine machine = this_machine();
        return Py_BuildValue("{s:s,s:s,s:i,s:{s:N,s:N,s:N}}", "isa", widest().isa, "cpu", machine.cpu.c_str(),
                             "logical_cores", machine.cores, "caches", "L1", as_python(machine.l1), "L2",
                             as_python(machine.l2), "L3", as_python(machine.l3));
    });
}

Ceilings ceilings_of(int threads, bool quick) {
    const Machine machine = this_machine();
    if (threads < 1 || threads > machine.cores)
        throw std::invalid_argument("threads: want 1 to " + std::to_string(machine.cores) +
                                    ", the logical cores, got " + std::to_string(threads));
    return measure_all(machine, threads, quick ? Effort{5, 1e-3} : Effort{15, 3e-3});
}

PyObject* ceilings(PyObject*, PyObject* args, PyObject* kwargs) {
    int threads = 1, quick = 0;
    const char* const names[] = {"threads", "quick", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|ip:ceilings", const_cast<char**>(names), &threads, &quick))
        return nullptr;
    return guarded([&] {
        const Ceilings found = [&] {
            const Unlocked unlocked;
            return ceilings_of(threads, quick != 0);
        }();
        return Py_BuildValue("{s:i,s:N,s:N,s:N,s:N,s:N}", "threads", threads, "fma_gflops",
                             as_python(found.multiply_add), "L1", as_python(found.l1), "L2", as_python(found.l2), "L3",
                             as_python(found.l3), "memory", as_python(found.memory));
    });
}

constexpr const char* kFactsDoc = R"(facts()
--

What this machine is.

Returns:
    isa: the widest instruction set that v1fast's kernels use here: "avx512" (x86-64-v4), "avx2+fma" (x86-64-v3),
        "baseline" (neither) or "neon".
    cpu: the processor's name, or "unknown".
    logical_cores: those that this process may use.
    caches: "L1" (data), "L2", "L3", each {"bytes", "shared_by" (logical cores)}, or None where unknown or absent.
)";

constexpr const char* kCeilingsDoc = R"(ceilings(threads=1, quick=False)
--

Measured ceilings of arithmetic and of data transport, summed over the threads.

Every rate is {"best", "median"} of several repeats of some milliseconds. A repeat on several threads lasts from the
first thread's start to the last one's end. Takes about a second per call.

Args:
    threads: how many work at once, each on data of its own; 1 to logical_cores.
    quick: fewer and shorter repeats.

Returns:
    threads: as given.
    fma_gflops: float32 multiply-adds in 1e9 operations per second, a multiply-add counted as two. Without a fused
        instruction (isa "baseline") a multiplication and an addition.
    L1, L2, L3, memory: None where the level is absent, or where a thread's share of it is too small to tell from the
        level below; else
        bytes_per_thread: the working set,
        read_gbs: 1e9 bytes read per second,
        update_gbs: 1e9 bytes per second of x += constant, each byte counted twice, as read and as written.

Raises:
    ValueError: threads out of range.
)";

} // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__probe(void) {
    static PyMethodDef methods[] = {{"facts", facts, METH_NOARGS, kFactsDoc},
                                    {"ceilings", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(ceilings)),
                                     METH_VARARGS | METH_KEYWORDS, kCeilingsDoc},
                                    {nullptr, nullptr, 0, nullptr}};
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                     "_probe",
                                     "Facts and measured ceilings of this machine.",
                                     -1,
                                     methods,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr};
    return PyModule_Create(&definition);
}
