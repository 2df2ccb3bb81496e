// SPDX-License-Identifier: MIT
//
// merge_lora/options.hpp: the command line of merge-lora as plain data.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <CLI/CLI.hpp>

#include "../common/command_line.hpp"
#include "../common/paths.hpp"
#include "../common/run_options.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"

namespace merge_lora {

namespace ts = tensorsmith;
using examples::usage_error;

struct options : examples::run_options {
  std::string base, output;
  std::vector<std::string> loras;
  std::string block_weights;      // comma-separated; empty: none
  std::string dtype = "keep", overflow = "error", dora = "interpolate", model = "auto", report;
  bool strict = false, verify = false;
};

/// FILE:STRENGTH[:TE], read from the right, so that FILE may hold colons.
struct lora_argument {
  std::string file;
  double unet = 1, text_encoder = 1;
};

inline std::optional<double> number_of(std::string_view text) {
  double value = 0;
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// @fails usage (a strength that is no finite number)
inline ts::result<lora_argument> parse_lora(const std::string& text) {
  lora_argument out{text, 1, 1};
  std::vector<double> numbers;
  while (numbers.size() < 2) {
    const std::size_t colon = out.file.rfind(':');
    if (colon == std::string::npos) break;
    const auto value = number_of(std::string_view(out.file).substr(colon + 1));
    if (!value) break;
    if (!std::isfinite(*value) || std::fabs(*value) > 1e4) return usage_error("--lora " + ts::quoted(text) + ": a strength is no number between -10000 and 10000");
    numbers.insert(numbers.begin(), *value);
    out.file.resize(colon);
  }
  if (!numbers.empty()) out.unet = numbers.front(), out.text_encoder = numbers.back();
  if (out.file.empty()) return usage_error("--lora " + ts::quoted(text) + " names no file", "pass FILE:STRENGTH");
  return out;
}

/// Numbers with commas between. @fails usage
inline ts::result<std::vector<double>> parse_numbers(std::string_view text) {
  std::vector<double> out;
  while (true) {
    const std::size_t comma = text.find(',');
    const auto value = number_of(text.substr(0, comma));
    if (!value || !std::isfinite(*value)) return usage_error("--block-weights: " + ts::quoted(text.substr(0, comma)) + " is no number");
    out.push_back(*value);
    if (comma == std::string_view::npos) return out;
    text.remove_prefix(comma + 1);
  }
}

inline ts::dora_strength dora_of(const options& o) {
  return o.dora == "lycoris" ? ts::dora_strength::lycoris : o.dora == "peft" ? ts::dora_strength::peft : ts::dora_strength::interpolate;
}

inline ts::cast_overflow overflow_of(const options& o) {
  return o.overflow == "keep" ? ts::cast_overflow::keep : o.overflow == "saturate" ? ts::cast_overflow::saturate : ts::cast_overflow::error;
}

/// Describes all options on `app`; values land in `o` when it parses.
inline void add_options(CLI::App& app, options& o) {
  app.add_option("BASE", o.base, "checkpoint (safetensors or torch) or diffusers folder")->required();
  app.add_option("OUTPUT", o.output, "what to write, in the form of BASE")->required();
  app.add_option("--lora", o.loras, "adapter and its strength, FILE:STRENGTH or FILE:UNET:TEXT_ENCODER; repeated: applied in their order, rounded once")
      ->required()->allow_extra_args(false)->type_name("FILE:STRENGTH[:TE]");
  app.add_option("--block-weights", o.block_weights, "factors by block, comma-separated: 17 or 26 numbers for SD1 and SD2, 12 or 20 for SDXL")->type_name("W,W,…");
  app.add_option("--dora-strength", o.dora, "what a strength other than 1 means for DoRA: a line from base to adapter, LyCORIS's rule, or PEFT's")
      ->check(CLI::IsMember({"interpolate", "lycoris", "peft"}))->capture_default_str();
  app.add_option("--dtype", o.dtype, "element type of the output's floating-point tensors")->check(CLI::IsMember({"keep", "f32", "f16", "bf16"}))->capture_default_str();
  app.add_option("--overflow", o.overflow, "what a merged value too large for its type does: end the run, become infinite (keep), or the largest finite value")
      ->check(CLI::IsMember({"error", "keep", "saturate"}))->capture_default_str();
  app.add_option("--model", o.model, "what BASE is, if the shapes shall not decide")
      ->check(CLI::IsMember({"auto", "sd1", "sd2", "sdxl", "sdxl-refiner"}))->capture_default_str();
  app.add_flag("--strict", o.strict, "an adapter's module without a layer in BASE is an error");
  app.add_option("--report", o.report, "also write the JSON report, with the size of every change, to this file")->type_name("FILE.json");
  app.add_flag("--verify-output", o.verify, "read the output again and compare every byte before it is published");
  examples::add_run_options(app, o);
  examples::add_limit_options(app, o);
}

}  // namespace merge_lora
