// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/filter.hpp: keeping or dropping the tensors of a package by name patterns.
//
// Include this for filter_tensors, and for the parts that other operations on names share: patterns that must match, names with
// their component's, taking entries out of a component.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/glob.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The name of a tensor in the whole package: "unet.conv_in.weight"; the tensor's own name in a component without a name.
inline std::string qualified_name(const component& part, std::string_view tensor) {
  return part.name.empty() ? std::string(tensor) : part.name + "." + std::string(tensor);
}

/// Name patterns (core/glob.hpp) that remember whether each of them matched anything.
class name_patterns {
 public:
  name_patterns() = default;
  explicit name_patterns(std::vector<std::string> patterns) : patterns_(std::move(patterns)), matched_(patterns_.size(), false) {}

  bool empty() const noexcept { return patterns_.empty(); }

  /// The position of the first pattern that fits the tensor by its own name or by its name in the package, or `none`.
  /// Every pattern that fits counts as used.
  std::size_t match(const component& part, std::string_view tensor) {
    std::size_t first = none;
    const std::string whole = part.name.empty() ? std::string() : qualified_name(part, tensor);
    for (std::size_t i = 0; i < patterns_.size(); ++i) {
      if (!glob_match(patterns_[i], tensor) && (whole.empty() || !glob_match(patterns_[i], whole))) continue;
      matched_[i] = true;
      if (first == none) first = i;
    }
    return first;
  }
  static constexpr std::size_t none = static_cast<std::size_t>(-1);
  const std::string& operator[](std::size_t i) const noexcept { return patterns_[i]; }

  /// `does`: "selects", "drops". @fails usage if a pattern matched nothing: a spelling mistake that nobody would see
  result<void> check_all_used(std::string_view does, const std::string& file) const {
    for (std::size_t i = 0; i < patterns_.size(); ++i)
      if (!matched_[i])
        return failure{.code = errc::usage, .what = "the pattern " + quoted(patterns_[i]) + " " + std::string(does) + " nothing",
                       .file = file, .expected = "a pattern that matches a tensor", .advice = "list the names with inspect and correct it"};
    return {};
  }

 private:
  std::vector<std::string> patterns_;
  std::vector<bool> matched_;
};

/// Takes the entries out of a component for which `reason(entry)` gives a text that is not empty, and adds them to the
/// component's list of what was left out. Returns how many.
template <class Reason>
result<std::size_t> drop_entries(component& part, Reason&& reason) {
  std::vector<catalog_entry> kept;
  std::size_t dropped = 0;
  for (const catalog_entry& entry : part.weights.entries()) {
    std::string why = reason(entry);
    if (why.empty()) {
      kept.push_back(entry);
      continue;
    }
    part.ignored.push_back(entry.name + ": " + std::move(why));
    ++dropped;
  }
  if (dropped == 0) return dropped;
  catalog left;
  TENSORSMITH_CHECK(left.add_all(std::move(kept)));
  part.weights = std::move(left);
  return dropped;
}

/// How many tensors of a package stay and how many were left out.
struct filtered_tensors {
  std::size_t kept = 0, dropped = 0;
};

/// Keeps the tensors that a pattern of `select` matches (all of them if there are none), less those that one of `drop` matches.
/// Patterns are tried on a tensor's own name and on "component.name". What is left out is added to its component's `ignored`
/// with the reason. @fails usage if a pattern matches no tensor of the package, or if nothing would be left
inline result<filtered_tensors> filter_tensors(package& in, const std::vector<std::string>& select, const std::vector<std::string>& drop) {
  name_patterns wanted(select), unwanted(drop);
  std::vector<std::vector<std::string>> reasons;  // of each component's entries; nothing changes before all patterns proved useful
  filtered_tensors out;
  for (const component& part : in.components) {
    auto& why = reasons.emplace_back();
    why.reserve(part.weights.size());
    for (const catalog_entry& entry : part.weights.entries()) {
      const bool selected = wanted.match(part, entry.name) != name_patterns::none || wanted.empty();
      const std::size_t dropped_by = unwanted.match(part, entry.name);
      why.push_back(dropped_by != name_patterns::none ? "dropped by the pattern " + quoted(unwanted[dropped_by])
                    : selected                        ? std::string()
                                                      : std::string("not selected"));
      ++(why.back().empty() ? out.kept : out.dropped);
    }
  }
  TENSORSMITH_CHECK(wanted.check_all_used("selects", in.source));
  TENSORSMITH_CHECK(unwanted.check_all_used("drops", in.source));
  if (out.kept == 0 && out.dropped != 0)
    return failure{.code = errc::usage, .what = "the patterns leave no tensor", .file = in.source,
                   .expected = "a tensor that is selected and not dropped"};
  for (std::size_t c = 0; c < in.components.size(); ++c) {
    std::size_t at = 0;
    TENSORSMITH_CHECK(drop_entries(in.components[c], [&](const catalog_entry&) { return std::move(reasons[c][at++]); }));
  }
  return out;
}

TENSORSMITH_END_NAMESPACE
