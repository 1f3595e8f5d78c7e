// Checks of arguments, raised as RuntimeError.

#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

namespace glue {

// Without streams, which PyTorch's own check writes by: where a compiler links libstdc++ statically, a stream meets the locale of
// the library that the process has, and writing a number ends the process.
template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::string text;
  const auto add = [&](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>)
      text += std::to_string(part);
    else
      text += part;
  };
  (add(parts), ...);
  return text;
}

}  // namespace glue

#define CHECK_INPUT(condition, ...) \
  do {                              \
    if (!(condition)) throw std::runtime_error(glue::joined(__VA_ARGS__)); \
  } while (0)
