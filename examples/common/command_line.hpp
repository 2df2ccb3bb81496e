// SPDX-License-Identifier: MIT
//
// common/command_line.hpp: sizes on the command line, and failures of the command line in the library's own form.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <CLI/CLI.hpp>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/version.hpp"

namespace examples {

namespace ts = tensorsmith;

inline ts::failure usage_error(std::string what, std::string advice = {}) {
  return {.code = ts::errc::usage, .what = std::move(what), .advice = std::move(advice)};
}

/// "1500000", "256M", "256MB", "256MiB", "4k", "2G": bytes; letters mean powers of 1024. nullopt if it is no such thing.
inline std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  if (unit.empty()) return value;
  const std::size_t letter = std::string_view("kmgtKMGT").find(unit.front());
  if (letter == std::string_view::npos) return unit == "B" ? std::optional(value) : std::nullopt;
  unit.remove_prefix(1);
  if (!unit.empty() && unit != "B" && unit != "iB") return std::nullopt;
  const unsigned shift = 10u * static_cast<unsigned>(letter % 4 + 1);
  if (value >> (63 - shift) != 0) return std::nullopt;
  return value << shift;
}

/// "5GB", "500MB", "2GiB", "4096": bytes; kB, MB, GB, TB mean powers of 1000, KiB, MiB, GiB, TiB of 1024. nullopt if it is no such thing.
inline std::optional<std::uint64_t> parse_decimal_size(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  const std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  if (unit.empty() || unit == "B") return value;
  const std::size_t letter = std::string_view("kmgtKMGT").find(unit.front());
  const bool binary = unit.substr(1) == "iB";
  if (letter == std::string_view::npos || (!binary && unit.substr(1) != "B")) return std::nullopt;
  for (std::size_t i = 0; i <= letter % 4; ++i) {
    const std::uint64_t factor = binary ? 1024 : 1000;
    if (value > (~std::uint64_t{0} >> 1) / factor) return std::nullopt;
    value *= factor;
  }
  return value;
}

/// Adds an option whose value `parse_value` turns into a number of bytes.
inline CLI::Option* add_bytes(CLI::App& app, const std::string& name, std::uint64_t& target, const std::string& help,
                              std::optional<std::uint64_t> (*parse_value)(std::string_view), const std::string& examples) {
  return app.add_option_function<std::string>(
         name,
         [&target, name, parse_value, examples](const std::string& text) {
           const auto size = parse_value(text);
           if (!size) throw CLI::ValidationError(name, ts::quoted(text) + " is no size such as " + examples);
           target = *size;
         },
         help)
      ->type_name("SIZE");
}

/// Adds an option whose value is a number of bytes; letters mean powers of 1024.
inline CLI::Option* add_size(CLI::App& app, const std::string& name, std::uint64_t& target, const std::string& help) {
  return add_bytes(app, name, target, help, parse_size, "256M, 1GiB or 4096");
}

/// As above; GB means 10^9 and GiB 2^30.
inline CLI::Option* add_decimal_size(CLI::App& app, const std::string& name, std::uint64_t& target, const std::string& help) {
  return add_bytes(app, name, target, help, parse_decimal_size, "5GB, 512MiB or 4096");
}

/// Parses the command line. An empty optional: go on. Otherwise the text that was asked for (--help, --version), or why not.
struct parsed {
  std::optional<std::string> help;
  ts::result<void> outcome;
};

inline parsed parse(CLI::App& app, int argc, const char* const* argv) {
  app.set_version_flag("--version", TENSORSMITH_VERSION);
  try {
    app.parse(argc, argv);
    return {};
  } catch (const CLI::CallForHelp&) {
    return {app.help(), {}};
  } catch (const CLI::CallForVersion&) {
    return {app.get_display_name() + ' ' + app.version() + '\n', {}};
  } catch (const CLI::ParseError& error) {
    std::string what = error.what();
    while (!what.empty() && (what.back() == '\n' || what.back() == '.')) what.pop_back();
    if (what.size() > 1000) what = what.substr(0, 300) + "… (" + std::to_string(what.size()) + " bytes)";
    return {std::nullopt, usage_error(std::move(what), "see --help")};
  }
}

/// Writes `text` to standard output. @fails io
inline ts::result<void> print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return {};
  return ts::failure{.code = ts::errc::io, .what = "the report could not be written", .file = "standard output"};
}

}  // namespace examples
