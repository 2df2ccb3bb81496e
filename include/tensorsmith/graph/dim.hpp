// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/dim.hpp: extents of graph values as integer expressions over named symbols.
//
// A dim is a polynomial with rational coefficients over symbols ("height", "batch_size"). A symbol may be declared a multiple of
// some number, so that height/8 stays exact and (height - 1)/2 rounded down plus 1 simplifies to height/2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A named extent that is only known when the graph runs.
struct symbol {
  std::string name;
  std::int64_t multiple_of = 1;  ///< the graph's interface promises this divisor
  auto operator<=>(const symbol&) const = default;
};

/// An integer expression: sum of (numerator/denominator) × product of symbols. Equal expressions compare equal.
class dim {
 public:
  using monomial = std::vector<symbol>;  // sorted, with repetition; empty for the constant
  struct fraction {
    std::int64_t num = 0, den = 1;
    bool operator==(const fraction&) const = default;
  };

  dim() = default;                                         ///< 0
  dim(std::int64_t value) { if (value != 0) terms_[{}] = {value, 1}; }  // NOLINT: implicit by design
  dim(int value) : dim(static_cast<std::int64_t>(value)) {}             // NOLINT
  dim(std::size_t value) : dim(static_cast<std::int64_t>(value)) {}     // NOLINT
  dim(symbol s) { terms_[{std::move(s)}] = {1, 1}; }                    // NOLINT

  bool is_constant() const noexcept { return terms_.empty() || (terms_.size() == 1 && terms_.begin()->first.empty()); }
  /// The value if there is no symbol in it.
  std::optional<std::int64_t> constant() const noexcept {
    if (terms_.empty()) return 0;
    if (!is_constant()) return std::nullopt;
    return terms_.begin()->second.num;
  }
  const std::map<monomial, fraction>& terms() const noexcept { return terms_; }
  bool operator==(const dim&) const = default;

  friend dim operator+(dim a, const dim& b) {
    for (const auto& [m, c] : b.terms_) a.accumulate(m, c);
    return a;
  }
  friend dim operator-(dim a, const dim& b) {
    for (const auto& [m, c] : b.terms_) a.accumulate(m, {-c.num, c.den});
    return a;
  }
  friend dim operator*(const dim& a, const dim& b) {
    dim out;
    for (const auto& [ma, ca] : a.terms_)
      for (const auto& [mb, cb] : b.terms_) {
        monomial m = ma;
        m.insert(m.end(), mb.begin(), mb.end());
        std::sort(m.begin(), m.end());
        out.accumulate(m, reduced(ca.num * cb.num, ca.den * cb.den));
      }
    return out;
  }

  /// This expression divided by `divisor`, rounded down; nullopt if that cannot be written exactly with what is promised
  /// about the symbols. Each symbolic term must be divisible; the constant is rounded.
  std::optional<dim> floor_div(std::int64_t divisor) const {
    dim out;
    for (const auto& [m, c] : terms_) {
      if (m.empty()) {
        std::int64_t q = c.num / divisor;
        if (c.num % divisor != 0 && (c.num < 0) != (divisor < 0)) --q;
        out.accumulate(m, {q, 1});
        continue;
      }
      std::int64_t promised = 1;
      for (const symbol& s : m) promised *= s.multiple_of;
      if ((c.num * promised) % (c.den * divisor) != 0) return std::nullopt;
      out.accumulate(m, reduced(c.num, c.den * divisor));
    }
    return out;
  }

  /// The value with symbols replaced; nullopt if one is missing from `values` or a division leaves a rest.
  std::optional<std::int64_t> evaluate(const std::map<std::string, std::int64_t, std::less<>>& values) const {
    std::int64_t sum = 0;
    for (const auto& [m, c] : terms_) {
      std::int64_t product = c.num;
      for (const symbol& s : m) {
        const auto at = values.find(s.name);
        if (at == values.end()) return std::nullopt;
        product *= at->second;
      }
      if (product % c.den != 0) return std::nullopt;
      sum += product / c.den;
    }
    return sum;
  }

  /// This expression divided by a single term (a constant or a product of symbols), for callers who know that no rest is left;
  /// nullopt if the divisor has several terms, is 0, or a symbol of it does not occur in every term.
  std::optional<dim> exact_div(const dim& divisor) const {
    if (divisor.terms_.size() != 1) return std::nullopt;
    const auto& [under, by] = *divisor.terms_.begin();
    dim out;
    for (const auto& [m, c] : terms_) {
      monomial left = m;
      for (const symbol& s : under) {
        const auto at = std::find(left.begin(), left.end(), s);
        if (at == left.end()) return std::nullopt;
        left.erase(at);
      }
      const std::int64_t sign = by.num < 0 ? -1 : 1;
      const fraction share = reduced(sign * c.num * by.den, sign * c.den * by.num);
      if (left.empty() && share.den != 1) return std::nullopt;
      out.accumulate(left, share);
    }
    return out;
  }

  /// "77", "height / 8", "height * width / 64 + 1": the text that names a dynamic axis.
  std::string text() const {
    if (terms_.empty()) return "0";
    std::string out;
    for (auto at = terms_.rbegin(); at != terms_.rend(); ++at) {  // symbols first, the constant last
      const auto& [m, c] = *at;
      const bool negative = c.num < 0;
      if (!out.empty()) out += negative ? " - " : " + ";
      else if (negative) out += "-";
      const std::int64_t num = negative ? -c.num : c.num;
      std::string term;
      for (const symbol& s : m) term += (term.empty() ? "" : " * ") + s.name;
      if (num != 1 || m.empty()) term += (term.empty() ? "" : " * ") + std::to_string(num);
      if (c.den != 1) term += " / " + std::to_string(c.den);
      out += term;
    }
    return out;
  }

 private:
  static fraction reduced(std::int64_t num, std::int64_t den) {
    const std::int64_t g = std::gcd(num, den);
    return {num / g, den / g};
  }
  void accumulate(const monomial& m, fraction c) {
    const auto at = terms_.find(m);
    if (at == terms_.end()) {
      if (c.num != 0) terms_[m] = c;
      return;
    }
    at->second = reduced(at->second.num * c.den + c.num * at->second.den, at->second.den * c.den);
    if (at->second.num == 0) terms_.erase(at);
  }

  std::map<monomial, fraction> terms_;
};

/// Extents of a graph value.
using dims = std::vector<dim>;

/// "[batch_size, 4, height, width]".
inline std::string to_string(const dims& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + shape[i].text();
  return out + "]";
}

TENSORSMITH_END_NAMESPACE
