// Reports of what went wrong, and the log.
#pragma once
#include <string>

#include "../runtime/runtime.h"

namespace cuemu {

/// Adds a report of a running kernel (or of a copy); `code` is the launch's error unless it has one.
void add_report(int code, const std::string& text);
/// The error of the reports since the last call, 0 if there are none.
int take_report_code();
/// All reports since `clear_reports`, one a line.
const std::string& reports();
void clear_reports();

/// Opens the log (appending); empty: reports go to standard error, and launches aren't logged.
bool open_log(const std::string& path);
/// Writes a line to the log, if there is one.
void log_line(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// Notes, for cuGetErrorString on this thread, why a call fails, and gives `code` back.
int fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
/// The reason of this thread's last failure with that code, or of the reports; empty: none is known.
std::string reason(int code);

}  // namespace cuemu
