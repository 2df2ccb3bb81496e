// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/rename.hpp: other names for the tensors of a package, by rules.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/name_pattern.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One rule: what a name looks like, and what it becomes.
struct rename_rule {
  enum class kind : std::uint8_t {
    exact,    ///< the whole name
    prefix,   ///< the beginning of a name; the rest stays
    pattern,  ///< a name with `*` and `?`; `to` puts what they stand for at `$1`, `$2`, …
  };
  kind how = kind::pattern;
  std::string from, to;
};

/// `from` becomes `to`.
inline rename_rule rename_exact(std::string from, std::string to) { return {rename_rule::kind::exact, std::move(from), std::move(to)}; }
/// Names that begin with `from` begin with `to`: rename_prefix("model.", "") takes "model." off.
inline rename_rule rename_prefix(std::string from, std::string to) { return {rename_rule::kind::prefix, std::move(from), std::move(to)}; }
/// Names that match `from` become `to`: rename_pattern("*.gamma", "$1.weight").
inline rename_rule rename_pattern(std::string from, std::string to) { return {rename_rule::kind::pattern, std::move(from), std::move(to)}; }

/// What a rule makes of a name; nothing if the rule does not concern it. @fails usage (the rule asks for a wildcard that it lacks)
inline result<std::optional<std::string>> renamed(const rename_rule& rule, std::string_view name) {
  switch (rule.how) {
    case rename_rule::kind::exact:
      if (name != rule.from) break;
      return std::optional<std::string>(rule.to);
    case rename_rule::kind::prefix:
      if (!name.starts_with(rule.from)) break;
      return std::optional<std::string>(rule.to + std::string(name.substr(rule.from.size())));
    case rename_rule::kind::pattern: {
      const auto captures = match_captures(rule.from, name);
      if (!captures) break;
      auto out = put_captures(rule.to, *captures);
      if (!out)
        return failure{.code = errc::usage, .what = "the new name " + quoted(rule.to) + " asks for a wildcard that " + quoted(rule.from) + " lacks",
                       .expected = "$1 to $" + std::to_string(captures->size())};
      return out;
    }
  }
  return std::optional<std::string>();
}

/// Renames the tensors of all components: for each, the first rule that fits its own name is applied, once. Order is kept. Returns how
/// many names changed. @fails usage (a rule that fits nothing, also because an earlier rule takes it; a wildcard that is not there; an empty
/// new name), mismatch (two tensors of one component get the same name); the package is unchanged then
inline result<std::size_t> rename_tensors(package& in, const std::vector<rename_rule>& rules) {
  std::vector<bool> used(rules.size(), false);
  std::vector<catalog> renamed_weights;
  std::size_t changed = 0;
  for (const component& part : in.components) {
    std::vector<catalog_entry> entries(part.weights.entries().begin(), part.weights.entries().end());
    for (catalog_entry& entry : entries)
      for (std::size_t i = 0; i < rules.size(); ++i) {
        TENSORSMITH_TRY(auto name, renamed(rules[i], entry.name));
        if (!name) continue;
        if (name->empty())
          return failure{.code = errc::usage, .what = "a rule gives the tensor " + quoted(entry.name) + " an empty name", .file = in.source,
                         .found = quoted(rules[i].from) + " to " + quoted(rules[i].to)};
        used[i] = true;
        changed += *name != entry.name;
        entry.name = std::move(*name);
        break;
      }
    TENSORSMITH_CHECK(renamed_weights.emplace_back().add_all(std::move(entries)));
  }
  for (std::size_t i = 0; i < rules.size(); ++i)
    if (!used[i])
      return failure{.code = errc::usage, .what = "the rule for " + quoted(rules[i].from) + " renames nothing", .file = in.source,
                     .expected = "a rule that fits a tensor", .advice = "list the names with inspect and correct it"};
  for (std::size_t c = 0; c < in.components.size(); ++c) in.components[c].weights = std::move(renamed_weights[c]);
  return changed;
}

TENSORSMITH_END_NAMESPACE
