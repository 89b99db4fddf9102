// Faults of kernel code. The handler only notes what happened and resumes in the block's scheduler, which reports it.
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstring>

#include "../driver/memory.h"
#include "runtime.h"

namespace cuemu {

static struct sigaction before_segv, before_bus, before_fpe;

static void on_fault(int signal, siginfo_t* info, void* context) {
    Worker* worker = active_worker;
    if (!worker) {
        // Not a kernel's: the instruction faults again, under the handler that was there before.
        sigaction(signal, signal == SIGSEGV ? &before_segv : signal == SIGBUS ? &before_bus : &before_fpe, nullptr);
        return;
    }
    auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    worker->fault = {signal, (registers[REG_ERR] & 2) != 0, info->si_code == SI_KERNEL,
                     reinterpret_cast<uint64_t>(info->si_addr), uint64_t(registers[REG_RIP])};
    // As cuemu_switch would: its order on the stack is r15 r14 r13 r12 rbx rbp, return address.
    const auto* sp = static_cast<const greg_t*>(worker->block.scheduler_sp);
    const int order[] = {REG_R15, REG_R14, REG_R13, REG_R12, REG_RBX, REG_RBP, REG_RIP};
    for (int i = 0; i < 7; i++) registers[order[i]] = sp[i];
    registers[REG_RSP] = reinterpret_cast<greg_t>(sp + 7);
}

void install_fault_handlers() {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGFPE, &action, &before_fpe);
}

void report_fault(Worker* worker) {
    const Fault fault = worker->fault;
    worker->fault = {};
    const std::string where = source_line(fault.pc);
    const char* access = fault.write ? "write" : "read";
    auto within = [&](const char* start, size_t bytes) {
        return fault.address - reinterpret_cast<uint64_t>(start) < bytes;
    };
    if (fault.signal == SIGFPE) {
        report(LAUNCH_FAILED, "integer division by zero at %s (a GPU gives an undefined result)", where.c_str());
    } else if (fault.general_protection) {
        report(MISALIGNED_ADDRESS, "misaligned vector access at %s (or an address that no memory can have)",
               where.c_str());
    } else if (within(worker->stacks, STACK_BYTES * MAX_THREADS)) {
        report(ILLEGAL_ADDRESS, "stack overflow at %s: a thread has %zu KiB", where.c_str(), STACK_BYTES >> 10);
    } else if (within(worker->smem - PAGE, SMEM_BYTES + 2 * PAGE)) {
        const long past = fault.address - reinterpret_cast<uint64_t>(worker->block.smem) -
                          worker->block.launch->dynamic_shared;
        report(ILLEGAL_ADDRESS, "shared %s at %s is %ld bytes past the end of the block's %u dynamic bytes", access,
               where.c_str(), past, worker->block.launch->dynamic_shared);
    } else {
        report(ILLEGAL_ADDRESS, "illegal %s at %s: %s", access, where.c_str(), describe_address(fault.address).c_str());
    }
    *worker->block.launch->abort = 1;
}

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

std::string source_line(uint64_t pc) {
    Dl_info info;
    char command[1200], line[1000];
    snprintf(line, sizeof line, "pc 0x%lx", (unsigned long)pc);
    const std::string unknown = line;
    if (!dladdr(reinterpret_cast<void*>(pc), &info) || !info.dli_fname) return unknown;
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%lx 2>/dev/null", info.dli_fname,
             (unsigned long)(pc - reinterpret_cast<uint64_t>(info.dli_fbase)));
    FILE* pipe = popen(command, "r");
    if (!pipe) return unknown;
    std::string found;
    int frames = 0;
    while (fgets(line, sizeof line, pipe)) {
        line[strcspn(line, " \n")] = 0;
        // The emulator's own headers are nobody's bug; a caller's caller is too far away.
        if (line[0] == '?' || strstr(line, "/cuemu/include/") || frames == 2) continue;
        found += (frames++ ? " (inlined at " : "") + std::string(base_name(line));
    }
    pclose(pipe);
    if (frames == 2) found += ")";
    return found.empty() ? unknown : found;
}

}  // namespace cuemu
