// SPDX-License-Identifier: MIT
//
// tensorsmith/core/pipe.hpp: what stands between the bars of a chain: `open<…>(…) | cast<f16>() | build<…>(…) | write<…>(…)`.
//
// Include this to write a stage. A stage is a value with `input` (the type it takes), `output`, `static constexpr name`, and
// `result<output> run(input, job&)`. A stage in the wrong place does not compile, and the message says what to do.
#pragma once

#include <concepts>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What flows through a chain: a value or the first failure, and the job that all its stages share.
template <class T>
class [[nodiscard]] chain {
 public:
  using value_type = T;
  chain(result<T> state, std::shared_ptr<job> run) : state_(std::move(state)), run_(std::move(run)) {}

  explicit operator bool() const noexcept { return state_.has_value(); }
  bool has_value() const noexcept { return state_.has_value(); }
  T& value() & noexcept { return state_.value(); }
  const T& value() const& noexcept { return state_.value(); }
  T* operator->() noexcept { return &state_.value(); }
  const T* operator->() const noexcept { return &state_.value(); }
  const failure& error() const noexcept { return state_.error(); }
  /// Remarks of all stages so far: what was ignored, derived, converted.
  const std::vector<note>& notes() const noexcept { return run_->notes; }
  /// The result alone.
  result<T> take() && { return std::move(state_); }

  result<T>& state() noexcept { return state_; }
  const std::shared_ptr<job>& run() const noexcept { return run_; }

 private:
  result<T> state_;
  std::shared_ptr<job> run_;
};

/// A stage: says what it takes and gives, and has a name for messages.
template <class S>
concept pipeline_stage = requires(S s, typename S::input in, job& run) {
  { S::name } -> std::convertible_to<std::string_view>;
  { s.run(std::move(in), run) } -> std::same_as<result<typename S::output>>;
};

/// A stage that takes what flows here.
template <class S, class T>
concept stage_for = pipeline_stage<S> && std::same_as<typename S::input, T>;

namespace detail {

/// The message of a misplaced stage; stage/misplaced.hpp has better ones for the pairs that people get wrong.
template <class Stage, class From>
struct misplaced {
  static_assert(stage_for<Stage, From>,
                "tensorsmith: this stage cannot follow here: its input is not what the stage before it gives; "
                "the order is open | merge, cast, quantize | build | lower_to | write");
};

}  // namespace detail

/// Runs the next stage, unless a stage before it failed.
template <class From, pipeline_stage Stage>
chain<typename Stage::output> operator|(chain<From> left, Stage next) {
  if constexpr (!stage_for<Stage, From>) {
    (void)detail::misplaced<Stage, From>{};
    return {failure{}, nullptr};
  } else {
    if (!left) return {std::move(left.state()).error(), left.run()};
    auto run = left.run();
    return {next.run(std::move(left.state()).value(), *run), std::move(run)};
  }
}

TENSORSMITH_END_NAMESPACE
