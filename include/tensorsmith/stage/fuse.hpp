// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/fuse.hpp: `… | fuse_rows({"*.to_q.weight", "*.to_k.weight"}, "$1.to_qk.weight") | …`, and split_rows, its reverse.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/stage/misplaced.hpp"
#include "tensorsmith/tensor/fuse.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Stacks tensors; see fuse_rows in tensor/fuse.hpp.
struct fuse_rows_stage {
  using input = package;
  using output = package;
  static constexpr std::string_view name = "fuse_rows";

  std::vector<std::string> parts;
  std::string whole;

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const std::size_t count, fuse_rows(in, parts, whole));
    run.info("fuse_rows", std::to_string(count) + " tensors are made of " + std::to_string(count * parts.size()));
    return in;
  }
};

/// Splits tensors; see split_rows in tensor/fuse.hpp.
struct split_rows_stage {
  using input = package;
  using output = package;
  static constexpr std::string_view name = "split_rows";

  std::string whole;
  std::vector<std::string> parts;
  std::vector<std::size_t> rows;

  result<package> run(package in, job& run) const {
    TENSORSMITH_TRY(const std::size_t count, split_rows(in, whole, parts, rows));
    run.info("split_rows", std::to_string(count) + " tensors become " + std::to_string(count * parts.size()));
    return in;
  }
};

/// Stage: the tensors that the patterns name become one, above each other. @fails usage (nothing matches), mismatch (parts missing or unlike)
inline fuse_rows_stage fuse_rows(std::vector<std::string> parts, std::string whole) { return {std::move(parts), std::move(whole)}; }

/// Stage: every tensor that `whole` matches becomes several, of `rows` rows each (evenly if not said). @fails usage, mismatch
inline split_rows_stage split_rows(std::string whole, std::vector<std::string> parts, std::vector<std::size_t> rows = {}) {
  return {std::move(whole), std::move(parts), std::move(rows)};
}

TENSORSMITH_END_NAMESPACE
