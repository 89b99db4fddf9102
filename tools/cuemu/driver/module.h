// Kernel modules: the image's manifest, the twin that holds the compiled kernels, and the functions made of both.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cuemu/abi.h"

namespace cuemu {

struct Function {
    const KernelEntry* kernel;
    const ModuleTable* twin;
    int max_threads;    // launch bounds
    int static_shared;  // bytes: the whole module's, for which kernel uses which of it is the compiler's secret
    int dynamic_limit;  // bytes that a launch may ask for; cuFuncSetAttribute raises it
};

struct Module {
    std::string stem;
    std::vector<std::unique_ptr<Function>> functions;
};

/// Reads an image (`[fatbin] manifest`) and binds its kernels to the twin `<kernels>/<stem>-<hash>.so`.
/// CUDA_ERROR_INVALID_IMAGE, with the reason, if anything is missing or differs.
int load_image(const void* image, std::unique_ptr<Module>& module);
/// Makes a module of a twin alone, without a manifest's launch bounds.
int load_twin_file(const char* path, std::unique_ptr<Module>& module);

}  // namespace cuemu
