#include "report.h"

#include <cstdarg>
#include <cstdio>
#include <mutex>

namespace cuemu {

namespace {
std::mutex mutex;  // workers report at the same time
int pending_code = 0, first_code = 0;
std::string texts;
FILE* log_file = nullptr;

struct Failure {
    int code = 0;
    std::string why;
};
thread_local Failure failure;

std::string format_text(const char* format, va_list args) {
    char text[2000];
    vsnprintf(text, sizeof text, format, args);
    return text;
}
}  // namespace

void add_report(int code, const std::string& text) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!pending_code) pending_code = code;
    if (!first_code) first_code = code;
    texts += text + "\n";
    fprintf(log_file ? log_file : stderr, "cuemu: %s (error %d)\n", text.c_str(), code);
    if (log_file) fflush(log_file);
}

int take_report_code() {
    const int code = pending_code;
    pending_code = 0;
    return code;
}

const std::string& reports() { return texts; }

void clear_reports() {
    texts.clear();
    pending_code = first_code = 0;
}

bool open_log(const std::string& path) {
    if (log_file) fclose(log_file);
    log_file = path.empty() ? nullptr : fopen(path.c_str(), "a");
    return path.empty() || log_file;
}

void log_line(const char* format, ...) {
    if (!log_file) return;
    va_list args;
    va_start(args, format);
    std::lock_guard<std::mutex> lock(mutex);
    fprintf(log_file, "cuemu: %s\n", format_text(format, args).c_str());
    va_end(args);
    fflush(log_file);
}

int fail(int code, const char* format, ...) {
    va_list args;
    va_start(args, format);
    failure = {code, format_text(format, args)};
    va_end(args);
    log_line("error %d: %s", code, failure.why.c_str());
    return code;
}

std::string reason(int code) {
    if (failure.code == code) return failure.why;
    if (first_code != code) return "";
    const size_t end = texts.find('\n'), rest = texts.size() - end - 1;
    return texts.substr(0, end) + (rest ? " (and more)" : "");
}

}  // namespace cuemu
