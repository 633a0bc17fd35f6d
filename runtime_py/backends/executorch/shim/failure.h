// What goes wrong, as text, and nothing that leaves through the C interface as an exception.
#ifndef GEMMA_EXPORT_EXECUTORCH_FAILURE_H_
#define GEMMA_EXPORT_EXECUTORCH_FAILURE_H_

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#include <executorch/runtime/core/error.h>

namespace gemma_export {

class Failure : public std::exception {
 public:
  explicit Failure(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// While one lives, what ExecuTorch logs as an error on this thread becomes part of our error text.
class LogCatcher {
 public:
  LogCatcher();
  ~LogCatcher();
  LogCatcher(const LogCatcher&) = delete;
  LogCatcher& operator=(const LogCatcher&) = delete;
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::string* before_;
};

// Throws a Failure unless the error is Ok.
void require(executorch::runtime::Error error, const std::string& what, const LogCatcher& log);

void write_error(const char* text, char* error, uint64_t error_size);

// Runs `body` and turns whatever goes wrong into a text and `failed`.
template <typename Value, typename Body>
Value guarded(Value failed, char* error, uint64_t error_size, const Body& body) noexcept {
  try {
    write_error("", error, error_size);
    return body();
  } catch (const std::exception& exception) {
    write_error(exception.what(), error, error_size);
  } catch (...) {
    write_error("unknown exception", error, error_size);
  }
  return failed;
}

}  // namespace gemma_export

#endif  // GEMMA_EXPORT_EXECUTORCH_FAILURE_H_
