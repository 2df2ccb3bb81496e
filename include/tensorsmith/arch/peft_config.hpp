// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/peft_config.hpp: what PEFT's LoraConfig says about the scale of each module: alpha, its patterns, rank stabilisation.
//
// Include this to read the adapter_config.json beside a PEFT adapter, or the `lora_adapter_metadata` in the header of a file of diffusers. The
// weights do not hold these numbers; ranks still come from shapes.
#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/json_value.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A key of rank_pattern or alpha_pattern. PEFT treats it as a regular expression that must match a module's path, or the end of it behind a
/// dot. Understood: letters, digits, `_`, `-`; `.` (any one character) and `\.`; `.*`; `^` in front and `$` at the end.
class module_pattern {
 public:
  /// @fails unsupported (other regular expressions, by their first character that is not understood)
  static result<module_pattern> parse(std::string_view text, const std::string& file) {
    module_pattern out;
    out.text_ = std::string(text);
    std::string_view rest = text;
    if (rest.starts_with("^")) out.whole_ = true, rest.remove_prefix(1);
    if (rest.ends_with("$") && !rest.ends_with("\\$")) rest.remove_suffix(1);
    for (std::size_t i = 0; i < rest.size(); ++i) {
      const char c = rest[i];
      const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '/';
      if (plain) out.parts_.push_back({c, kind::literal});
      else if (c == '.' && i + 1 < rest.size() && rest[i + 1] == '*') out.parts_.push_back({0, kind::anything}), ++i;
      else if (c == '.') out.parts_.push_back({0, kind::any});
      else if (c == '\\' && i + 1 < rest.size() && rest[i + 1] == '.') out.parts_.push_back({'.', kind::literal}), ++i;
      else
        return failure{.code = errc::unsupported, .what = "a pattern for modules uses regular expressions that are not understood", .file = file,
                       .place = "pattern " + quoted(text), .expected = "paths of modules, '.', '.*', '^' and '$'",
                       .found = quoted(rest.substr(i, 1)),
                       .advice = "write out the modules that it stands for"};
    }
    return out;
  }

  const std::string& text() const noexcept { return text_; }

  /// True for the path of a module with dots. Time is O(length of the pattern · length of the path).
  bool matches(std::string_view path) const {
    if (matches_whole(path)) return true;
    if (whole_) return false;
    for (std::size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1))
      if (matches_whole(path.substr(dot + 1))) return true;
    return false;
  }

 private:
  enum class kind : std::uint8_t { literal, any, anything };
  struct part {
    char c;
    kind what;
  };

  bool matches_whole(std::string_view text) const {
    constexpr std::size_t none = static_cast<std::size_t>(-1);
    std::size_t p = 0, t = 0, star = none, resume = 0;
    while (t < text.size()) {
      if (p < parts_.size() && parts_[p].what == kind::anything) star = p++, resume = t;
      else if (p < parts_.size() && (parts_[p].what == kind::any || parts_[p].c == text[t])) ++p, ++t;
      else if (star != none) p = star + 1, t = ++resume;
      else return false;
    }
    while (p < parts_.size() && parts_[p].what == kind::anything) ++p;
    return p == parts_.size();
  }

  std::string text_;
  std::vector<part> parts_;
  bool whole_ = false;
};

/// The part of a LoraConfig that decides what the tensors mean.
struct peft_config {
  std::optional<double> rank, alpha;  ///< `r` and `lora_alpha`
  std::vector<std::pair<module_pattern, double>> rank_pattern, alpha_pattern;  ///< in the order of the file: the first that matches counts
  bool rank_stabilised = false;  ///< `use_rslora`: alpha/√rank
  bool dora = false;             ///< `use_dora`

  /// The alpha of the module with this path, nothing if the configuration names none.
  std::optional<double> alpha_of(std::string_view path) const {
    for (const auto& [pattern, value] : alpha_pattern)
      if (pattern.matches(path)) return value;
    return alpha;
  }
  /// The rank that the configuration gives a module, nothing if it names none.
  std::optional<double> rank_of(std::string_view path) const {
    for (const auto& [pattern, value] : rank_pattern)
      if (pattern.matches(path)) return value;
    return rank;
  }
};

namespace detail {

/// Reads the members of a LoraConfig.
class peft_config_reader {
 public:
  peft_config_reader(const json_value& members, const std::string& file, std::string_view where) : members_(members), file_(file), where_(where) {}

  result<peft_config> read() const {
    peft_config out;
    if (!members_.as_object()) return wrong("the configuration", members_, "an object");
    TENSORSMITH_CHECK(check_kind());
    TENSORSMITH_TRY(out.rank, number("r"));
    TENSORSMITH_TRY(out.alpha, number("lora_alpha"));
    TENSORSMITH_CHECK(patterns("rank_pattern", out.rank_pattern));
    TENSORSMITH_CHECK(patterns("alpha_pattern", out.alpha_pattern));
    TENSORSMITH_TRY(out.rank_stabilised, flag("use_rslora"));
    if (out.rank_stabilised && !out.alpha)
      return failure{.code = errc::mismatch, .what = "the configuration asks for rank stabilisation and names no alpha", .file = file_,
                     .place = place("use_rslora"), .expected = "lora_alpha", .found = "none"};
    TENSORSMITH_TRY(out.dora, flag("use_dora"));
    TENSORSMITH_TRY(const bool transposed, flag("fan_in_fan_out"));
    if (transposed)
      return failure{.code = errc::unsupported, .what = "an adapter for weights that are stored transposed is not supported", .file = file_,
                     .place = place("fan_in_fan_out"), .expected = "false, as for every layer of Stable Diffusion", .found = "true"};
    return out;
  }

 private:
  std::string place(std::string_view key) const { return "key " + quoted(std::string(where_) + std::string(key)); }
  failure wrong(std::string_view key, const json_value& value, std::string expected) const {
    return failure{.code = errc::malformed, .what = "a value of the adapter's configuration has the wrong type", .file = file_, .place = place(key),
                   .expected = std::move(expected), .found = std::string(value.kind())};
  }
  static std::optional<double> as_number(const json_value& value) {
    if (const auto* integer = value.as_integer()) return static_cast<double>(*integer);
    if (const auto* real = value.as_double()) return *real;
    return std::nullopt;
  }

  result<std::optional<double>> number(std::string_view key) const {
    const json_value* const value = members_.find(key);
    if (!value || value->is_null()) return std::optional<double>();
    const auto read = as_number(*value);
    if (!read) return wrong(key, *value, "a number");
    TENSORSMITH_CHECK(finite(key, *read));
    return read;
  }
  result<void> finite(std::string_view key, double value) const {
    if (std::isfinite(value)) return {};
    return failure{.code = errc::numeric, .what = "a number of the adapter's configuration is not finite", .file = file_, .place = place(key),
                   .expected = "a finite number", .found = std::to_string(value)};
  }
  result<bool> flag(std::string_view key) const {
    const json_value* const value = members_.find(key);
    if (!value || value->is_null()) return false;
    if (!value->as_bool()) return wrong(key, *value, "true or false");
    return *value->as_bool();
  }

  result<void> patterns(std::string_view key, std::vector<std::pair<module_pattern, double>>& out) const {
    const json_value* const value = members_.find(key);
    if (!value || value->is_null()) return {};
    if (!value->as_object()) return wrong(key, *value, "an object of patterns and numbers");
    for (const auto& [text, entry] : *value->as_object()) {
      const auto read = as_number(entry);
      if (!read) return wrong(std::string(key) + '.' + text, entry, "a number");
      TENSORSMITH_CHECK(finite(std::string(key) + '.' + text, *read));
      auto pattern = module_pattern::parse(text, file_);
      if (!pattern && key == "rank_pattern") continue;  // ranks come from shapes: all that is lost is a remark
      if (!pattern) return std::move(pattern).error();
      out.emplace_back(std::move(*pattern), *read);
    }
    return {};
  }

  /// Refuses what changes the meaning of the tensors and is not implemented, by name.
  result<void> check_kind() const {
    const auto refuse = [&](std::string_view key, std::string what, std::string expected, std::string found, std::string advice = {}) {
      return failure{.code = errc::unsupported, .what = std::move(what), .file = file_, .place = place(key), .expected = std::move(expected),
                     .found = std::move(found), .advice = std::move(advice)};
    };
    if (const json_value* kind = members_.find("peft_type"); kind && kind->as_string() && *kind->as_string() != "LORA")
      return refuse("peft_type", "this kind of PEFT adapter is not supported", "'LORA'", quoted(*kind->as_string()));
    if (const json_value* how = members_.find("init_lora_weights"); how && how->as_string())
      for (const std::string_view changed : {"pissa", "olora", "corda", "loftq", "lora_ga"})
        if (std::string_view(*how->as_string()).starts_with(changed))
          return refuse("init_lora_weights", "the adapter was trained on weights that its initialisation had changed",
                        "an adapter for the plain weights", quoted(*how->as_string()),
                        "convert it with PEFT: save_pretrained(path_initial_model_for_weight_conversion=…)");
    for (const std::string_view key : {"layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora",
                                       "use_bdlora", "arrow_config", "megatron_config"}) {
      const json_value* const value = members_.find(key);
      if (!value || value->is_null() || (value->as_bool() && !*value->as_bool())) continue;
      if ((value->as_array() && value->as_array()->empty()) || (value->as_object() && value->as_object()->empty())) continue;
      return refuse(key, "the adapter uses an extension of LoRA that is not supported", "none", quoted(key));
    }
    return {};
  }

  const json_value& members_;
  const std::string& file_;
  std::string_view where_;
};

}  // namespace detail

/// Reads a LoraConfig. `where`: what stands before its keys, for messages ("unet."). Keys that do not change the meaning of the tensors are not
/// looked at. @fails malformed (types), numeric (NaN, infinity), unsupported (other kinds than LoRA, transposed weights, patterns of alpha that are
/// not understood, initialisations that change the base's weights, extensions of LoRA)
inline result<peft_config> read_peft_config(const json_value& members, const std::string& file, std::string_view where = {}) {
  return detail::peft_config_reader(members, file, where).read();
}

/// The `lora_adapter_metadata` of diffusers: the keys of one LoraConfig a component behind "unet.", "text_encoder.", …; without a component, for
/// files of one model. In the order of the file; the component is empty where none is named. @fails as read_peft_config
inline result<std::vector<std::pair<std::string, peft_config>>> read_peft_metadata(const json_value& metadata, const std::string& file) {
  std::vector<std::pair<std::string, json_value>> parts;
  const auto part = [&](std::string_view name) -> json_value& {
    for (auto& [known, members] : parts)
      if (known == name) return members;
    parts.emplace_back(std::string(name), json_value(json_value::object{}));
    return parts.back().second;
  };
  if (!metadata.as_object())
    return failure{.code = errc::malformed, .what = "the metadata of the adapter is no object", .file = file,
                   .place = "metadata 'lora_adapter_metadata'",
                   .expected = "an object", .found = std::string(metadata.kind())};
  constexpr std::string_view components[] = {"unet", "text_encoder_2", "text_encoder", "transformer", "text_encoder_3"};
  for (const auto& [key, value] : *metadata.as_object()) {
    std::string_view component, rest = key;
    for (const std::string_view name : components)
      if (key.size() > name.size() && std::string_view(key).starts_with(name) && key[name.size()] == '.') {
        component = name, rest.remove_prefix(name.size() + 1);
        break;
      }
    part(component).as_object()->emplace_back(std::string(rest), value);
  }
  std::vector<std::pair<std::string, peft_config>> out;
  for (const auto& [name, members] : parts) {
    TENSORSMITH_TRY(peft_config config, read_peft_config(members, file, name.empty() ? std::string() : name + '.'));
    out.emplace_back(name, std::move(config));
  }
  return out;
}

TENSORSMITH_END_NAMESPACE
