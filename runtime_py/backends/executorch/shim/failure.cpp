#include "failure.h"

#include <cstdio>
#include <cstring>

#include <executorch/runtime/platform/platform.h>

namespace gemma_export {
namespace {

thread_local std::string* log_sink = nullptr;

void catch_log(et_timestamp_t, et_pal_log_level_t level, const char* file, const char*, size_t line,
               const char* message, size_t) {
  if (log_sink == nullptr) {
    std::fprintf(stderr, "%c [executorch:%s:%zu] %s\n", static_cast<char>(level), file, line,
                 message);
  } else if (log_sink->size() < 400 && (level == kError || level == kFatal)) {
    if (!log_sink->empty()) log_sink->append("; ");
    log_sink->append(message);
  }
}

bool catch_logs() {
  // Who came first keeps the log (ExecuTorch's Python module, in a process that exports): our
  // errors then have a code and no explanation.
  const auto* current = executorch::runtime::get_pal_impl();
  const char* owner = current == nullptr ? nullptr : current->source_filename;
  if (owner != nullptr && std::strstr(owner, "runtime/platform/") == nullptr) return false;
  return executorch::runtime::register_pal(
      executorch::runtime::PalImpl::create(catch_log, "gemma-export"));
}

}  // namespace

LogCatcher::LogCatcher() : before_(log_sink) {
  static const bool catching = catch_logs();
  (void)catching;
  log_sink = &text_;
}

LogCatcher::~LogCatcher() { log_sink = before_; }

void require(executorch::runtime::Error error, const std::string& what, const LogCatcher& log) {
  if (error == executorch::runtime::Error::Ok) return;
  std::string text = what + ": " + executorch::runtime::to_string(error);
  if (!log.text().empty()) text += " (" + log.text() + ")";
  throw Failure(std::move(text));
}

void write_error(const char* text, char* error, uint64_t error_size) {
  if (error == nullptr || error_size == 0) return;
  std::snprintf(error, static_cast<size_t>(error_size), "%s", text);
  for (char* place = error; *place != '\0'; ++place) {
    if (*place == '\n') *place = ' ';
  }
}

}  // namespace gemma_export
