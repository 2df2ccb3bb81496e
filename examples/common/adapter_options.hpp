// SPDX-License-Identifier: MIT
//
// common/adapter_options.hpp: --lora and what belongs to it: the adapters of a command line, opened and ready to be merged.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "command_line.hpp"
#include "report.hpp"
#include "tensorsmith/arch/block_weights.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"

namespace examples {

struct adapter_options {
  std::vector<std::string> loras;  // FILE:STRENGTH[:TE]
  std::vector<std::string> block_weights;  // comma-separated; one for all adapters, or one for each
  std::string dora = "interpolate";
  bool strict = false, bundled_embeddings = false;
};

/// FILE:STRENGTH[:TE], read from the right, so that FILE may hold colons.
struct lora_argument {
  std::string file;
  double unet = 1, text_encoder = 1;
};

/// A number in C's notation, nan and inf included; nothing if the text is anything else.
inline std::optional<double> number_of(std::string_view text) {
  double value = 0;
  if (text.size() > 1 && text.front() == '+' && text[1] != '-') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || end != text.data() + text.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return HUGE_VAL;  // 1e999: a number, and no strength
  return error == std::errc{} ? std::optional(value) : std::nullopt;
}

inline bool is_strength(double value) noexcept { return std::isfinite(value) && std::fabs(value) <= 1e4; }

/// @fails usage (no file, a strength that is no finite number, or none where one is asked for)
inline ts::result<lora_argument> parse_lora(const std::string& text) {
  lora_argument out{text, 1, 1};
  std::vector<double> numbers;
  while (numbers.size() < 2) {
    const std::size_t colon = out.file.rfind(':');
    if (colon == std::string::npos) break;
    const auto value = number_of(std::string_view(out.file).substr(colon + 1));
    if (!value) break;
    if (!is_strength(*value)) return usage_error("--lora " + ts::quoted(text) + ": a strength is no number between -10000 and 10000");
    numbers.insert(numbers.begin(), *value);
    out.file.resize(colon);
  }
  if (!numbers.empty()) out.unet = numbers.front(), out.text_encoder = numbers.back();
  if (out.file.empty()) return usage_error("--lora " + ts::quoted(text) + " names no file", "pass FILE:STRENGTH");
  const std::size_t colon = out.file.rfind(':');
  if (colon != std::string::npos && !ts::os::exists(out.file) && ts::os::exists(out.file.substr(0, colon)))
    return usage_error("--lora " + ts::quoted(text) + ": " + ts::quoted(out.file.substr(colon + 1)) + " is no strength",
                       "pass FILE:STRENGTH or FILE:UNET:TEXT_ENCODER");
  return out;
}

/// Numbers with commas between. @fails usage
inline ts::result<std::vector<double>> parse_numbers(const std::string& option, std::string_view text) {
  std::vector<double> out;
  while (true) {
    const std::size_t comma = text.find(',');
    const auto value = number_of(text.substr(0, comma));
    if (!value || !is_strength(*value))
      return usage_error(option + ": " + ts::quoted(text.substr(0, comma)) + " is no number between -10000 and 10000");
    out.push_back(*value);
    if (comma == std::string_view::npos) return out;
    text.remove_prefix(comma + 1);
  }
}

inline ts::dora_strength dora_of(const adapter_options& o) {
  return o.dora == "lycoris" ? ts::dora_strength::lycoris : o.dora == "peft" ? ts::dora_strength::peft : ts::dora_strength::interpolate;
}

/// The options around --lora. `group`: their heading in --help.
inline void add_adapter_options(CLI::App& app, adapter_options& o, const std::string& group = "Options") {
  app.add_option("--block-weights", o.block_weights,
                 "factors by block, comma-separated: 17 or 26 numbers for SD1 and SD2, 12 or 20 for SDXL; given once: for all adapters, "
                 "else once for each, in their order")
      ->allow_extra_args(false)->type_name("W,W,…")->group(group);
  app.add_option("--dora-strength", o.dora, "what a strength other than 1 means for DoRA: a line from base to adapter, LyCORIS's rule, or PEFT's")
      ->check(CLI::IsMember({"interpolate", "lycoris", "peft"}))->capture_default_str()->group(group);
  app.add_flag("--strict", o.strict, "an adapter's module without a layer in the model is an error")->group(group);
  app.add_flag("--bundled-embeddings", o.bundled_embeddings, "also add the embeddings that adapters bring along")->group(group);
}

inline CLI::Option* add_lora_option(CLI::App& app, adapter_options& o, const std::string& help) {
  return app.add_option("--lora", o.loras, help)->allow_extra_args(false)->type_name("FILE:STRENGTH[:TE]");
}

/// @fails usage
inline ts::result<ts::block_weights> parse_block_weights(const std::string& text) {
  TENSORSMITH_TRY(const std::vector<double> list, parse_numbers("--block-weights", text));
  return ts::block_weights::from(list);
}

/// What the command line alone shows to be wrong. @fails usage
inline ts::result<void> check_adapter_options(const adapter_options& o) {
  for (const std::string& text : o.loras) TENSORSMITH_CHECK(parse_lora(text));
  for (const std::string& text : o.block_weights) TENSORSMITH_CHECK(parse_block_weights(text));
  if (o.block_weights.size() > 1 && o.block_weights.size() != o.loras.size())
    return usage_error("--block-weights is given " + std::to_string(o.block_weights.size()) + " times for " + counted(o.loras.size(), "adapter"),
                       "give it once for all, or once for each --lora");
  return {};
}

/// The files of --lora. @pre check_adapter_options
inline std::vector<std::string> files_of(const adapter_options& o) {
  std::vector<std::string> out;
  for (const std::string& text : o.loras)
    if (const auto argument = parse_lora(text)) out.push_back(argument->file);
  return out;
}

/// The adapters of a command line, each with the strengths it was given.
struct opened_adapters {
  std::vector<ts::adapter_request> requests;
  std::vector<std::pair<double, double>> strengths;  // UNet, text encoders
};

/// Opens the adapters of --lora for a model with diffusers' names. @fails usage, and as the readers and read_adapter
inline ts::result<opened_adapters> open_adapters(const adapter_options& o, const ts::package& model, ts::job& run) {
  ts::unet_name_layout layout;
  if (const ts::component* unet = model.find("unet")) {
    std::vector<std::string_view> names;
    for (const ts::catalog_entry& entry : unet->weights.entries()) names.push_back(entry.name);
    layout = ts::unet_layout_of_diffusers(names);
  }
  opened_adapters out;
  for (const std::string& text : o.loras) {
    TENSORSMITH_TRY(const lora_argument argument, parse_lora(text));
    TENSORSMITH_TRY(ts::adapter source, ts::open_adapter(argument.file, run));
    std::optional<ts::block_weights> blocks;
    if (!o.block_weights.empty()) {
      TENSORSMITH_TRY(blocks, parse_block_weights(o.block_weights[o.block_weights.size() == 1 ? 0 : out.requests.size()]));
    }
    ts::adapter_request request{.source = std::move(source)};
    request.unet = argument.unet;
    request.text_encoder = argument.text_encoder * (blocks ? blocks->text_encoder() : 1.0);
    request.how.dora = dora_of(o);
    if (blocks) request.block_weight = [blocks = *blocks, layout](std::string_view module) { return blocks.of_diffusers(module, layout); };
    out.strengths.emplace_back(argument.unet, argument.text_encoder);
    out.requests.push_back(std::move(request));
  }
  return out;
}

}  // namespace examples
