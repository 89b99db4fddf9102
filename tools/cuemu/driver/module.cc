#include "module.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>

#include "config.h"
#include "report.h"

namespace cuemu {

namespace {
constexpr int DEFAULT_SHARED = 48 << 10;  // bytes of a block, static and dynamic, that need no cuFuncSetAttribute

/// One `kernel` line of a manifest.
struct Declared {
    std::string name;
    int max_threads;
    std::vector<uint32_t> sizes;
    uint64_t pointers;
};
struct Manifest {
    std::string stem, hash;
    std::vector<Declared> kernels;
};

/// Also said on standard error: to a program, all images that can't be used look the same.
int invalid(const std::string& why) {
    fprintf(stderr, "cuemu: %s\n", why.c_str());
    return fail(INVALID_IMAGE, "%s", why.c_str());
}

/// The manifest follows the fatbin, if there is one.
const char* manifest_text(const void* image) {
    constexpr uint32_t FATBIN_MAGIC = 0xBA55ED50;
    struct {
        uint32_t magic;
        uint16_t version, header_bytes;
        uint64_t payload_bytes;
    } head;
    memcpy(&head.magic, image, sizeof head.magic);
    if (head.magic != FATBIN_MAGIC) return static_cast<const char*>(image);
    memcpy(&head, image, sizeof head);
    return static_cast<const char*>(image) + head.header_bytes + head.payload_bytes;
}

/// "8p 8 4": bytes of each parameter, `p` for pointers.
std::string signature(const uint32_t* sizes, size_t n, uint64_t pointers) {
    std::string text;
    for (size_t i = 0; i < n; i++) {
        text += (i ? " " : "") + std::to_string(sizes[i]) + (pointers >> i & 1 ? "p" : "");
    }
    return n ? text : "none";
}

int parse(const char* text, Manifest& m) {
    if (strncmp(text, "othink-kernels ", 15) != 0) return invalid("the module image has no manifest of kernels");
    std::istringstream lines(text);
    bool ended = false;
    for (std::string line; !ended && std::getline(lines, line);) {
        std::istringstream words(line);
        std::string key;
        words >> key;
        bool good = true;
        if (key == "othink-kernels") {
            int version = 0;
            good = (words >> version) && version == 1;
        } else if (key == "module") {
            good = bool(words >> m.stem >> m.hash);
        } else if (key == "kernel") {
            Declared k{"", 0, {}, 0};
            good = bool(words >> k.name >> k.max_threads) && k.max_threads >= 1 && k.max_threads <= 1024;
            for (std::string size; words >> size;) {
                if (size.back() == 'p') k.pointers |= 1ull << k.sizes.size();
                k.sizes.push_back(strtoul(size.c_str(), nullptr, 10));
                good = good && k.sizes.back() > 0;
            }
            m.kernels.push_back(k);
        } else {
            ended = key == "end";
            good = ended;
        }
        if (!good) return invalid("the manifest of kernels has a line that can't be read: " + line);
    }
    if (!ended || m.stem.empty()) return invalid("the manifest of kernels ends too early");
    return SUCCESS;
}

int open_twin(const std::string& path, const ModuleTable*& table) {
    // Twins stay: unloading one would take its code from under a launch that is still queued.
    static std::map<std::string, const ModuleTable*> open;
    if (auto it = open.find(path); it != open.end()) {
        table = it->second;
        return SUCCESS;
    }
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const std::string other = " was built for another build of the emulator (with the checks, or without)";
    if (!library) {
        const std::string why = dlerror();
        if (why.find("undefined symbol") != std::string::npos) return invalid(path + other + ": " + why);
        return invalid("can't load the host-compiled kernels: " + why);
    }
    table = static_cast<const ModuleTable*>(dlsym(library, "cuemu_module"));
    if (!table) return invalid(path + " isn't a host-compiled kernel module");
    if (table->build != CUEMU_BUILD || table->check != CUEMU_CHECKED) return invalid(path + other);
    open[path] = table;
    return SUCCESS;
}

const KernelEntry* find(const ModuleTable* table, const std::string& name) {
    for (uint32_t i = 0; i < table->nkernels; i++) {
        if (name == table->kernels[i].name) return &table->kernels[i];
    }
    return nullptr;
}

std::unique_ptr<Function> make_function(const KernelEntry* kernel, const ModuleTable* twin, int max_threads) {
    const int fixed = static_shared_size(twin);
    return std::make_unique<Function>(Function{kernel, twin, max_threads, fixed, std::max(0, DEFAULT_SHARED - fixed)});
}
}  // namespace

int load_image(const void* image, std::unique_ptr<Module>& module) {
    Manifest m;
    if (int e = parse(manifest_text(image), m)) return e;
    if (config.kernels.empty()) {
        return invalid("module " + m.stem + ": set CUEMU=\"kernels=FOLDER\" to where the host-compiled kernels are");
    }
    const std::string path = config.kernels + "/" + m.stem + "-" + m.hash + ".so";
    const ModuleTable* twin = nullptr;
    if (int e = open_twin(path, twin)) return e;
    auto made = std::make_unique<Module>();
    made->stem = m.stem;
    for (const Declared& d : m.kernels) {
        const KernelEntry* k = find(twin, d.name);
        if (!k) return invalid("kernel " + d.name + " of the manifest isn't in " + path);
        const std::string declared = signature(d.sizes.data(), d.sizes.size(), d.pointers);
        const std::string compiled = signature(k->sizes, k->nparams, k->pointers);
        if (declared != compiled) {
            return invalid("kernel " + d.name + ": the manifest declares parameters of sizes " + declared + ", " + path +
                           " has " + compiled);
        }
        made->functions.push_back(make_function(k, twin, d.max_threads));
    }
    module = std::move(made);
    return SUCCESS;
}

int load_twin_file(const char* path, std::unique_ptr<Module>& module) {
    const ModuleTable* twin = nullptr;
    if (int e = open_twin(path, twin)) return e;
    module = std::make_unique<Module>();
    module->stem = twin->stem;
    for (uint32_t i = 0; i < twin->nkernels; i++) {
        module->functions.push_back(make_function(&twin->kernels[i], twin, 1024));
    }
    return SUCCESS;
}

}  // namespace cuemu
