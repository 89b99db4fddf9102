#include "config.h"

#include <cstdlib>
#include <sstream>
#include <thread>

namespace cuemu {

static Config defaults() {
    Config c;
    if (unsigned cores = std::thread::hardware_concurrency()) c.threads = cores;
    return c;
}

Config config = defaults();

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the multiprocessors and caches are those
// of RTX 2080 Ti (which no kernel serves), A100, RTX 3090, RTX 4090 and H100.
static const Capability CAPABILITIES[] = {
    {75, 64 << 10, 64 << 10, 1024, 16, 68, 5632 << 10},
    {80, 163 << 10, 164 << 10, 2048, 32, 108, 40 << 20},
    {86, 99 << 10, 100 << 10, 1536, 16, 82, 6 << 20},
    {89, 99 << 10, 100 << 10, 1536, 24, 128, 72 << 20},
    {90, 227 << 10, 228 << 10, 2048, 32, 132, 50 << 20},
};

const Capability& capability() {
    for (const Capability& c : CAPABILITIES) {
        if (c.cc == config.cc) return c;
    }
    return CAPABILITIES[4];
}

static bool number(const std::string& text, uint64_t low, uint64_t high, uint64_t& value) {
    char* end = nullptr;
    const uint64_t parsed = strtoull(text.c_str(), &end, 10);
    if (text.empty() || text[0] < '0' || text[0] > '9' || *end || parsed < low || parsed > high) return false;
    value = parsed;
    return true;
}

template <class T>
struct Choice {
    const char* name;
    T value;
};
template <class T, size_t N>
static bool choose(const std::string& text, const Choice<T> (&choices)[N], T& value) {
    for (const auto& c : choices) {
        if (text != c.name) continue;
        value = c.value;
        return true;
    }
    return false;
}

static bool set(const std::string& key, const std::string& value, Config& c, std::string& expected) {
    uint64_t n = 0;
    if (key == "kernels") {
        expected = "a folder";
        c.kernels = value;
        return !value.empty();
    }
    if (key == "sched") {
        expected = "fifo, reverse or random";
        const Choice<Schedule> choices[] = {
            {"fifo", Schedule::Fifo}, {"reverse", Schedule::Reverse}, {"random", Schedule::Random}};
        return choose(value, choices, c.schedule);
    }
    if (key == "async") {
        expected = "late, eager or random";
        const Choice<AsyncMode> choices[] = {
            {"late", AsyncMode::Late}, {"eager", AsyncMode::Eager}, {"random", AsyncMode::Random}};
        return choose(value, choices, c.async);
    }
    if (key == "streams") {
        expected = "eager or deferred";
        const Choice<bool> choices[] = {{"eager", false}, {"deferred", true}};
        return choose(value, choices, c.deferred);
    }
    if (key == "cc") {
        expected = "75, 80, 86, 89 or 90";
        const Choice<uint32_t> choices[] = {{"75", 75}, {"80", 80}, {"86", 86}, {"89", 89}, {"90", 90}};
        return choose(value, choices, c.cc);
    }
    if (key == "poison") {
        expected = "0 or 1";
        const Choice<bool> choices[] = {{"0", false}, {"1", true}};
        return choose(value, choices, c.poison);
    }
    if (key == "seed") {
        expected = "a number";
        return number(value, 0, UINT64_MAX, c.seed);
    }
    if (key == "threads") {
        expected = "a number from 1 to 256";
        if (!number(value, 1, 256, n)) return false;
        c.threads = n;
        return true;
    }
    if (key == "memory") {
        expected = "bytes, from 1 to 2^35";
        return number(value, 1, 1ull << 35, c.memory);
    }
    if (key == "devices") {
        expected = "0 or 1";
        const Choice<uint32_t> choices[] = {{"0", 0}, {"1", 1}};
        return choose(value, choices, c.devices);
    }
    if (key == "driver") {
        expected = "a CUDA version such as 13000";
        if (!number(value, 1000, 99990, n)) return false;
        c.driver = n;
        return true;
    }
    if (key == "log") {
        expected = "a file";
        c.log = value;
        return !value.empty();
    }
    expected = "one of the keys kernels, sched, seed, async, streams, cc, threads, memory, poison, devices, driver, log";
    return false;
}

std::string configure(const std::string& text) {
    std::istringstream words(text);
    Config changed = config;
    for (std::string word; words >> word;) {
        const size_t equals = word.find('=');
        const std::string key = word.substr(0, equals);
        const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
        std::string expected;
        if (!set(key, value, changed, expected)) return "CUEMU: " + word + ": expected " + expected;
    }
    config = changed;
    return "";
}

}  // namespace cuemu
