// Where the compiler's instrumentation ends: kernels of the checking build are compiled with -fsanitize=thread,alignment,
// bounds but linked with these functions in place of the sanitizers' runtimes.
#ifdef CUEMU_CHECK
#include <cstring>

#include "check.h"

using namespace cuemu;

static void plain(const void* p, uint32_t n, Access kind, const void* return_address) {
    if (cur) check_memory(reinterpret_cast<uintptr_t>(p), n, kind, place_of(return_address));
}

#define HOOK extern "C" CUEMU_API
#define CALLER __builtin_return_address(0)
// Alignment is the other sanitizer's: the compiler merges neighbouring accesses into wider ones, which x86 lets be
// misaligned, and counts them as aligned.
#define ACCESSES(n)                                                                                      \
    HOOK void __tsan_read##n(void* p) { plain(p, n, Access::Read, CALLER); }                             \
    HOOK void __tsan_write##n(void* p) { plain(p, n, Access::Write, CALLER); }                           \
    HOOK void __tsan_unaligned_read##n(void* p) { plain(p, n, Access::Read, CALLER); }                   \
    HOOK void __tsan_unaligned_write##n(void* p) { plain(p, n, Access::Write, CALLER); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HOOK void __tsan_read_range(void* p, long n) { plain(p, n, Access::Read, CALLER); }
HOOK void __tsan_write_range(void* p, long n) { plain(p, n, Access::Write, CALLER); }

// clang calls these for copies that gcc instruments as ranges.
HOOK void* __tsan_memcpy(void* to, const void* from, size_t n) {
    plain(from, n, Access::Read, CALLER);
    plain(to, n, Access::Write, CALLER);
    return memcpy(to, from, n);
}
HOOK void* __tsan_memmove(void* to, const void* from, size_t n) {
    plain(from, n, Access::Read, CALLER);
    plain(to, n, Access::Write, CALLER);
    return memmove(to, from, n);
}
HOOK void* __tsan_memset(void* to, int value, size_t n) {
    plain(to, n, Access::Write, CALLER);
    return memset(to, value, n);
}

HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}

/// The head of the records that -fsanitize=alignment,bounds passes.
struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
struct TypeMismatch {
    SourceLocation where;
    const void* type;
    unsigned char log_alignment;
};

static std::string text(const SourceLocation& where) {
    return std::string(base_name(where.file)) + ":" + std::to_string(where.line);
}

HOOK void __ubsan_handle_type_mismatch_v1(const TypeMismatch* record, const void* p) {
    if (!cur) return;
    report(MISALIGNED_ADDRESS, "misaligned access at %s: %p isn't a multiple of %d", text(record->where).c_str(), p,
           1 << record->log_alignment);
    die();
}

HOOK void __ubsan_handle_out_of_bounds(const SourceLocation* where, uintptr_t index) {
    if (!cur) return;
    report(ILLEGAL_ADDRESS, "index %ld is out of the array's bounds at %s", long(int(index)), text(*where).c_str());
    die();
}
#endif
