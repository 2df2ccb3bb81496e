// SPDX-License-Identifier: MIT
//
// common/cast_options.hpp: --dtype and --overflow: the element type of what is written, and what happens to values that do not fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "report.hpp"
#include "tensorsmith/core/dtype.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/cast.hpp"

namespace examples {

struct cast_options {
  std::string dtype = "keep";
  std::string overflow = "error";
};

/// The element type that --dtype names; nothing for "keep".
inline std::optional<ts::dtype> dtype_of(const cast_options& o) {
  for (const ts::dtype type : {ts::dtype::f64, ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16, ts::dtype::f8_e4m3, ts::dtype::f8_e5m2})
    if (o.dtype == ts::name_of(type)) return type;
  return std::nullopt;
}

inline ts::cast_overflow overflow_of(const cast_options& o) {
  return o.overflow == "keep" ? ts::cast_overflow::keep : o.overflow == "saturate" ? ts::cast_overflow::saturate : ts::cast_overflow::error;
}

/// `types`: what --dtype takes beside "keep".
inline void add_dtype_option(CLI::App& app, cast_options& o, const std::vector<std::string>& types, const std::string& help) {
  std::vector<std::string> all{"keep"};
  all.insert(all.end(), types.begin(), types.end());
  app.add_option("--dtype", o.dtype, help)->check(CLI::IsMember(std::move(all)))->capture_default_str();
}

inline void add_overflow_option(CLI::App& app, cast_options& o) {
  app.add_option("--overflow", o.overflow,
                 "what a finite value too large for its type does: end the run (error), become infinite (keep) or the largest "
                 "finite value (saturate)")
      ->check(CLI::IsMember({"error", "keep", "saturate"}))->capture_default_str();
}

/// Says how many values did not fit, where that is no error. `subject`: what was done.
inline void warn_of_overflow(const cast_options& o, std::uint64_t count, ts::job& run, const char* subject = "cast") {
  if (count == 0 || o.overflow == "error") return;
  const std::string type = o.dtype == "keep" ? "the type of the weight" : o.dtype;
  const char* const became = o.overflow == "keep"
                                 ? " and became infinite (--overflow keep)"
                                 : " and became the largest finite value (--overflow saturate)";
  run.warn(subject, counted(count, "value") + (count == 1 ? " was" : " were") + " too large for " + type + became);
}

}  // namespace examples
