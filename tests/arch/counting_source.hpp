// SPDX-License-Identifier: MIT
//
// arch/counting_source.hpp: parameters without bytes, for tests of what an architecture asks for.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "tensorsmith/graph/parameters.hpp"

namespace arch_test {

namespace ts = tensorsmith;

/// A tensor of which only type and shape exist.
class hollow_recipe final : public ts::recipe {
 public:
  explicit hollow_recipe(ts::tensor_info info) : info_(std::move(info)) {}
  std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  ts::result<void> produce(ts::region, std::span<const ts::tile>, ts::scratch&) const override {
    return ts::failure{.code = ts::errc::internal, .what = "this tensor has no bytes"};
  }

 private:
  ts::tensor_info info_;
};

inline ts::tensor_ref hollow(std::string name, ts::dtype type, ts::shape_type shape) {
  return {std::make_shared<hollow_recipe>(ts::tensor_info{std::move(name), type, std::move(shape)}), 0};
}

/// Hands out any parameter and counts.
class counting_source final : public ts::parameter_source {
 public:
  explicit counting_source(ts::dtype type = ts::dtype::f32) : type_(type) {}
  ts::result<ts::tensor_ref> take(std::string_view name, const ts::shape_type& shape) override {
    const auto [at, fresh] = shapes.emplace(std::string(name), shape);
    if (fresh) parameters += ts::element_count(shape);
    else if (at->second != shape) return ts::failure{.code = ts::errc::internal, .what = "asked for twice with two shapes"};
    return hollow(std::string(name), type_, shape);
  }

  std::map<std::string, ts::shape_type, std::less<>> shapes;
  std::size_t parameters = 0;

 private:
  ts::dtype type_;
};

}  // namespace arch_test
