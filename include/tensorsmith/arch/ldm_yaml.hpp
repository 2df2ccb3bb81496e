// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/ldm_yaml.hpp: the yaml configurations of original Stable Diffusion code, as far as a conversion needs them.
//
// Include this to read a sidecar. parse_yaml_subset takes block mappings and lists, flow lists and mappings, quoted and plain
// scalars, comments: what those files consist of. Anchors, tags and several documents are refused.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/json_value.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// A plain scalar by yaml's core rules: null, booleans (also Python's spelling), integers, reals; else text.
inline json_value yaml_scalar(std::string_view text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "None") return nullptr;
  if (text == "true" || text == "True") return true;
  if (text == "false" || text == "False") return false;
  if (text.size() >= 2 && (text[0] == '"' || text[0] == '\'') && text.back() == text[0]) return text.substr(1, text.size() - 2);
  const char* const end = text.data() + text.size();
  std::int64_t integer = 0;
  if (const auto r = std::from_chars(text.data(), end, integer); r.ec == std::errc() && r.ptr == end) return integer;
  double real = 0;
  if (const auto r = std::from_chars(text.data(), end, real); r.ec == std::errc() && r.ptr == end) return real;
  return text;
}

inline std::string_view trimmed(std::string_view text) noexcept {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

/// The text before a comment; a '#' counts at the start or behind a space, outside quotes.
inline std::string_view without_comment(std::string_view line) noexcept {
  char quote = 0;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quote) quote = c == quote ? '\0' : quote;
    else if (c == '"' || c == '\'') quote = c;
    else if (c == '#' && (i == 0 || line[i - 1] == ' ' || line[i - 1] == '\t')) return line.substr(0, i);
  }
  return line;
}

class yaml_reader {
 public:
  explicit yaml_reader(std::string file) : file_(std::move(file)) {}

  result<json_value> read(std::string_view text) {
    TENSORSMITH_CHECK(split(text));
    if (lines_.empty()) return json_value(json_value::object{});
    TENSORSMITH_TRY(auto value, block(lines_[0].indent, 0));
    if (at_ < lines_.size()) return refuse("this line belongs to no block");
    return value;
  }

 private:
  struct line {
    std::size_t indent, number;
    std::string text;
  };

  failure refuse(std::string what) const {
    return failure{.code = errc::malformed, .what = std::move(what), .file = file_,
                   .place = at_ < lines_.size() ? "line " + std::to_string(lines_[at_].number) : "the end",
                   .found = at_ < lines_.size() ? quoted(lines_[at_].text) : std::string()};
  }

  result<void> split(std::string_view text) {
    std::size_t number = 0;
    for (std::size_t from = 0; from < text.size();) {
      const std::size_t end = std::min(text.find('\n', from), text.size());
      std::string_view raw = without_comment(text.substr(from, end - from));
      from = end + 1, ++number;
      const std::size_t indent = raw.find_first_not_of(' ');
      const bool tab = indent != std::string_view::npos && raw[indent] == '\t';
      raw = trimmed(raw);
      if (raw.empty() || (raw == "---" && lines_.empty())) continue;
      lines_.push_back({indent, number, std::string(raw)});
      if (tab || raw[0] == '&' || raw[0] == '*' || raw[0] == '!' || raw == "---") {
        at_ = lines_.size() - 1;
        return refuse("anchors, tags, tabs and several documents are not supported in this yaml");
      }
    }
    return {};
  }

  result<json_value> block(std::size_t indent, int depth) {
    if (depth > 64) return refuse("blocks are nested too deeply");
    return lines_[at_].text[0] == '-' && (lines_[at_].text.size() == 1 || lines_[at_].text[1] == ' ') ? list(indent, depth)
                                                                                                        : mapping(indent, depth);
  }

  bool is_item() const noexcept {
    const std::string& text = lines_[at_].text;
    return text[0] == '-' && (text.size() == 1 || text[1] == ' ');
  }

  result<json_value> list(std::size_t indent, int depth) {
    json_value::array out;
    while (at_ < lines_.size() && lines_[at_].indent == indent && is_item()) {
      line& here = lines_[at_];
      const std::string_view rest = trimmed(std::string_view(here.text).substr(1));
      if (rest.empty()) {
        ++at_;
        if (at_ >= lines_.size() || lines_[at_].indent <= indent) out.emplace_back();
        else {
          TENSORSMITH_TRY(auto value, block(lines_[at_].indent, depth + 1));
          out.push_back(std::move(value));
        }
      } else if (key_end(rest) != std::string_view::npos) {
        // "- key: value" opens a mapping whose indentation is that of the key.
        here.indent = indent + (here.text.size() - rest.size());
        here.text = std::string(rest);
        TENSORSMITH_TRY(auto value, mapping(here.indent, depth + 1));
        out.push_back(std::move(value));
      } else {
        TENSORSMITH_TRY(auto value, scalar_or_flow(std::string(rest)));
        out.push_back(std::move(value));
      }
    }
    return json_value(std::move(out));
  }

  /// Where the key of a mapping line ends: the colon at the end or before a space, outside brackets and quotes.
  static std::size_t key_end(std::string_view text) noexcept {
    if (text.empty() || text[0] == '[' || text[0] == '{') return std::string_view::npos;
    char quote = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (quote) quote = text[i] == quote ? '\0' : quote;
      else if ((text[i] == '"' || text[i] == '\'') && i == 0) quote = text[i];
      else if (text[i] == ':' && (i + 1 == text.size() || text[i + 1] == ' ')) return i;
    }
    return std::string_view::npos;
  }

  result<json_value> mapping(std::size_t indent, int depth) {
    if (depth > 64) return refuse("blocks are nested too deeply");
    json_value::object out;
    while (at_ < lines_.size() && lines_[at_].indent == indent) {
      const std::string text = lines_[at_].text;
      const std::size_t colon = key_end(text);
      if (colon == std::string::npos) return refuse("a line is neither 'key: value' nor a list item");
      const json_value key = yaml_scalar(trimmed(std::string_view(text).substr(0, colon)));
      std::string name = key.as_string() ? *key.as_string() : std::string(trimmed(std::string_view(text).substr(0, colon)));
      for (const auto& member : out)
        if (member.first == name) return refuse("the key " + quoted(name) + " occurs twice");
      const std::string_view rest = trimmed(std::string_view(text).substr(colon + 1));
      if (!rest.empty()) {
        TENSORSMITH_TRY(auto value, scalar_or_flow(std::string(rest)));
        out.emplace_back(std::move(name), std::move(value));
        continue;
      }
      ++at_;
      const bool nested = at_ < lines_.size() && (lines_[at_].indent > indent || (lines_[at_].indent == indent && is_item()));
      if (!nested) {
        out.emplace_back(std::move(name), nullptr);
        continue;
      }
      TENSORSMITH_TRY(auto value, block(lines_[at_].indent, depth + 1));
      out.emplace_back(std::move(name), std::move(value));
    }
    return json_value(std::move(out));
  }

  /// The value that starts on this line, with the lines that its brackets or its indentation take in.
  result<json_value> scalar_or_flow(std::string text) {
    const std::size_t first = lines_[at_].indent;
    if (text[0] == '[' || text[0] == '{') {
      while (open_brackets(text) > 0 && at_ + 1 < lines_.size()) text += " " + lines_[++at_].text;
      std::size_t from = 0;
      TENSORSMITH_TRY(auto value, flow(text, from, 0));
      if (!trimmed(std::string_view(text).substr(from)).empty()) return refuse("something follows the closing bracket");
      ++at_;
      return value;
    }
    if (text[0] == '&' || text[0] == '*' || text[0] == '!') return refuse("anchors and tags are not supported in this yaml");
    ++at_;
    if (text == "|" || text == ">" || text == "|-" || text == ">-") {
      std::string joined;
      while (at_ < lines_.size() && lines_[at_].indent > first) joined += (joined.empty() ? "" : "\n") + lines_[at_++].text;
      return json_value(std::move(joined));
    }
    return yaml_scalar(text);
  }

  static int open_brackets(std::string_view text) noexcept {
    int open = 0;
    for (const char c : text) open += c == '[' || c == '{' ? 1 : c == ']' || c == '}' ? -1 : 0;
    return open;
  }

  static void skip_spaces(std::string_view text, std::size_t& from) noexcept {
    while (from < text.size() && text[from] == ' ') ++from;
  }

  result<json_value> flow(std::string_view text, std::size_t& from, int depth) {
    skip_spaces(text, from);
    if (depth > 64 || from >= text.size()) return refuse("a bracket is not closed");
    if (text[from] != '[' && text[from] != '{') {
      const std::size_t end = std::min(text.find_first_of(",]}", from), text.size());
      const std::string_view word = trimmed(text.substr(from, end - from));
      from = end;
      return yaml_scalar(word);
    }
    const char close = text[from] == '[' ? ']' : '}';
    json_value::array items;
    json_value::object members;
    for (++from;;) {
      skip_spaces(text, from);
      if (from >= text.size()) return refuse("a bracket is not closed");
      if (text[from] == close) break;
      std::string key;
      if (close == '}') {
        const std::size_t colon = text.find(':', from);
        if (colon == std::string_view::npos) return refuse("a mapping in braces lacks a colon");
        key = std::string(trimmed(text.substr(from, colon - from)));
        from = colon + 1;
      }
      TENSORSMITH_TRY(auto value, flow(text, from, depth + 1));
      if (close == '}') members.emplace_back(std::move(key), std::move(value));
      else items.push_back(std::move(value));
      skip_spaces(text, from);
      if (from < text.size() && text[from] == ',') ++from;
      else if (from >= text.size() || text[from] != close) return refuse("brackets do not match");
    }
    ++from;
    return close == '}' ? json_value(std::move(members)) : json_value(std::move(items));
  }

  std::string file_;
  std::vector<line> lines_;
  std::size_t at_ = 0;
};

}  // namespace detail

/// Yaml text as a value; `file` is what messages call it. @fails malformed (with the line)
inline result<json_value> parse_yaml_subset(std::string_view text, const std::string& file) {
  return detail::yaml_reader(file).read(text);
}

/// What a conversion takes from a yaml configuration; what it does not say is empty.
struct ldm_settings {
  std::optional<std::string> parameterization;               ///< "v" or "eps"
  std::optional<double> linear_start, linear_end;            ///< β of the first and the last step
  std::optional<std::int64_t> timesteps;
  std::optional<double> scale_factor;                        ///< of the autoencoder's latents
  std::optional<std::size_t> in_channels, out_channels, model_channels, num_res_blocks, context_dim, adm_in_channels;
  std::vector<std::size_t> channel_mult;
  std::optional<std::size_t> num_heads, num_head_channels;   ///< the one that is given says how heads are counted
  std::optional<bool> linear_projection;
};

namespace detail {

inline const json_value* yaml_at(const json_value& value, std::initializer_list<std::string_view> path) noexcept {
  const json_value* at = &value;
  for (const std::string_view key : path)
    if (!(at = at->find(key))) return nullptr;
  return at;
}
/// A positive integer; −1 and 0 say "not given" in these files.
inline std::optional<std::size_t> yaml_size(const json_value* params, std::string_view key) noexcept {
  const json_value* value = params ? params->find(key) : nullptr;
  const std::int64_t* number = value ? value->as_integer() : nullptr;
  if (!number || *number <= 0) return std::nullopt;
  return static_cast<std::size_t>(*number);
}
inline std::optional<double> yaml_real(const json_value* params, std::string_view key) noexcept {
  const json_value* value = params ? params->find(key) : nullptr;
  if (!value) return std::nullopt;
  if (const double* real = value->as_double()) return *real;
  if (const std::int64_t* number = value->as_integer()) return static_cast<double>(*number);
  return std::nullopt;
}

}  // namespace detail

/// Picks the settings out of a parsed configuration, of the v1/v2 layout (`unet_config`) or the SDXL layout (`network_config`).
/// @fails mismatch if it holds neither.
inline result<ldm_settings> read_ldm_settings(const json_value& yaml, const std::string& file) {
  const json_value* params = detail::yaml_at(yaml, {"model", "params"});
  const json_value* unet = params ? detail::yaml_at(*params, {"unet_config", "params"}) : nullptr;
  if (params && !unet) unet = detail::yaml_at(*params, {"network_config", "params"});
  if (!unet)
    return failure{.code = errc::mismatch, .what = "the yaml holds no Stable Diffusion configuration", .file = file,
                   .expected = "model.params.unet_config.params or model.params.network_config.params"};
  ldm_settings out;
  if (const json_value* p = params->find("parameterization"); p && p->as_string()) out.parameterization = *p->as_string();
  if (const json_value* scaling = detail::yaml_at(*params, {"denoiser_config", "params", "scaling_config", "target"}))
    if (scaling->as_string() && scaling->as_string()->find("VScaling") != std::string::npos) out.parameterization = "v";
  out.linear_start = detail::yaml_real(params, "linear_start");
  out.linear_end = detail::yaml_real(params, "linear_end");
  if (const auto steps = detail::yaml_size(params, "timesteps")) out.timesteps = static_cast<std::int64_t>(*steps);
  out.scale_factor = detail::yaml_real(params, "scale_factor");
  out.in_channels = detail::yaml_size(unet, "in_channels");
  out.out_channels = detail::yaml_size(unet, "out_channels");
  out.model_channels = detail::yaml_size(unet, "model_channels");
  out.num_res_blocks = detail::yaml_size(unet, "num_res_blocks");
  out.context_dim = detail::yaml_size(unet, "context_dim");
  out.adm_in_channels = detail::yaml_size(unet, "adm_in_channels");
  out.num_heads = detail::yaml_size(unet, "num_heads");
  out.num_head_channels = detail::yaml_size(unet, "num_head_channels");
  if (const json_value* mult = unet->find("channel_mult"); mult && mult->as_array())
    for (const json_value& m : *mult->as_array())
      if (const std::int64_t* number = m.as_integer(); number && *number > 0) out.channel_mult.push_back(static_cast<std::size_t>(*number));
  if (const json_value* linear = unet->find("use_linear_in_transformer"); linear && linear->as_bool())
    out.linear_projection = *linear->as_bool();
  return out;
}

TENSORSMITH_END_NAMESPACE
