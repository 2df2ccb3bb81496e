// SPDX-License-Identifier: MIT
//
// tensorsmith/graph/parameters.hpp: where the code of an architecture gets its weights from.
//
// Architectures ask for every parameter by name and shape and are thereby the one authority on both; a catalog answers, or a source
// that makes weights up.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Hands out parameters.
class parameter_source {
 public:
  virtual ~parameter_source() = default;
  /// The parameter `name`, which must have this shape. May be asked for again (two graphs share a VAE's file).
  virtual result<tensor_ref> take(std::string_view name, const shape_type& shape) = 0;
  /// The shape of a parameter that the source knows without being told; nullopt if it has none or takes any.
  virtual std::optional<shape_type> shape_of(std::string_view /*name*/) const { return std::nullopt; }
};

namespace detail {

/// True if two shapes differ only by trailing extents of 1: a linear layer [o, i] stored as convolution [o, i, 1, 1] or [o, i, 1].
inline bool same_matrix(const shape_type& a, const shape_type& b) noexcept {
  const shape_type& longer = a.size() >= b.size() ? a : b;
  const shape_type& shorter = a.size() >= b.size() ? b : a;
  if (shorter.size() < 2 || longer.size() > 4 || !std::equal(shorter.begin(), shorter.end(), longer.begin())) return false;
  return std::all_of(longer.begin() + static_cast<std::ptrdiff_t>(shorter.size()), longer.end(), [](std::size_t e) { return e == 1; });
}

}  // namespace detail

/// Parameters from a catalog; remembers what was taken.
class catalog_parameters final : public parameter_source {
 public:
  /// `component` names the model in messages ("unet"), `file` where its weights come from. The catalog must outlive this.
  catalog_parameters(const catalog& weights, std::string component, std::string file)
      : weights_(weights), component_(std::move(component)), file_(std::move(file)), used_(weights.size(), false) {}

  /// @fails mismatch if there is no such tensor or it has another shape. [o, i], [o, i, 1] and [o, i, 1, 1] stand for each other.
  result<tensor_ref> take(std::string_view name, const shape_type& shape) override {
    const catalog_entry* entry = weights_.find(name);
    if (entry == nullptr) return missing(name, shape);
    used_[static_cast<std::size_t>(entry - weights_.entries().data())] = true;
    const shape_type& stored = entry->tensor.shape();
    if (stored == shape) return entry->tensor;
    if (detail::same_matrix(stored, shape)) return reshaped(entry->tensor, shape);
    return failure{.code = errc::mismatch,
                   .what = "the tensor does not have the shape that the configuration of " + component_ + " gives it",
                   .file = file_, .place = "tensor " + quoted(entry->origin.empty() ? entry->name : entry->origin),
                   .expected = to_string(shape), .found = to_string(stored),
                   .advice = "check that config.json belongs to these weights"};
  }

  std::optional<shape_type> shape_of(std::string_view name) const override {
    const catalog_entry* entry = weights_.find(name);
    return entry ? std::optional(entry->tensor.shape()) : std::nullopt;
  }

  /// Tensors that nothing has taken, in the order of the catalog.
  std::vector<const catalog_entry*> leftovers() const {
    std::vector<const catalog_entry*> out;
    for (std::size_t i = 0; i < used_.size(); ++i)
      if (!used_[i]) out.push_back(&weights_.entries()[i]);
    return out;
  }

 private:
  failure missing(std::string_view name, const shape_type& shape) const {
    return failure{.code = errc::mismatch, .what = component_ + " lacks a tensor", .file = file_, .place = "tensor " + quoted(name),
                   .expected = to_string(shape), .found = std::to_string(weights_.size()) + " tensors without it",
                   .advice = "the file is incomplete, or config.json describes another model"};
  }

  const catalog& weights_;
  std::string component_, file_;
  std::vector<bool> used_;
};

TENSORSMITH_END_NAMESPACE
