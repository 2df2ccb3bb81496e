// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/tensors.hpp: the tensors that a pickle describes: storages, views of them, proofs that they fit.
//
// Include this to turn nodes of a pickle_document into planned tensors, whatever container holds the storages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/torch/pickle_document.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Where the bytes of one storage lie.
struct torch_record {
  std::shared_ptr<const byte_source> source;
  std::uint64_t offset = 0, bytes = 0;
  std::shared_ptr<integrity_check> check;  ///< or null
  std::string place;                       ///< "zip entry 'archive/data/0'", for messages
};

namespace detail {

__extension__ typedef unsigned __int128 wide_count;  // sums of (size - 1) · stride of hostile files do not fit 64 bits

inline std::string to_text(wide_count value) {
  if (value == 0) return "0";
  std::string out;
  for (; value != 0; value /= 10) out.insert(out.begin(), static_cast<char>('0' + static_cast<int>(value % 10)));
  return out;
}

}  // namespace detail

/// Makes tensors of the objects of one pickle. Finds each storage once; remembers tensors, so that tied ones stay one.
class torch_tensors {
 public:
  using id = pickle_document::id;
  using find_record = std::function<result<torch_record>(std::string_view key)>;

  torch_tensors(const pickle_document& doc, std::string file, std::string entry, find_record find, const limits& bounds)
      : doc_(doc), file_(std::move(file)), entry_(std::move(entry)), find_(std::move(find)), limits_(bounds) {}

  /// True for objects that stand for a tensor, also for kinds of tensors that make() refuses.
  static bool is_tensor(const pickle_document& doc, id n) noexcept {
    if (doc.kind(n) != pickle_kind::object) return false;
    switch (doc.maker(n)) {
      case torch_symbol::tensor_v1:
      case torch_symbol::tensor_v2:
      case torch_symbol::tensor_v3:
      case torch_symbol::parameter:
      case torch_symbol::parameter_with_state:
      case torch_symbol::from_device:
      case torch_symbol::from_type:
      case torch_symbol::parameter_class:
      case torch_symbol::tensor_class:
      case torch_symbol::unsupported_tensor:
        return true;
      default:
        return false;
    }
  }

  /// The tensor that object `n` stands for; `where` is its name, for messages. @pre is_tensor(n)
  /// @fails malformed (wrong arguments, views outside their storage, storages that do not fit their record), limit
  /// (expansion, rank, elements), unsupported (sparse, quantized, meta tensors; element types without a counterpart).
  result<tensor_ref> make(id n, const std::string& where) {
    const auto known = made_.find(n);
    if (known != made_.end()) {
      TENSORSMITH_CHECK(account(known->second.info().bytes(), n, where));
      return known->second;
    }
    TENSORSMITH_TRY(const tensor_ref made, make_new(n, where));
    made_.emplace(n, made);
    return made;
  }

  /// Keys of the storages that tensors were made of, sorted.
  std::vector<std::string> used_keys() const {
    std::vector<std::string> out;
    for (const auto& [key, s] : storages_) out.push_back(key);
    return out;
  }
  const std::vector<note>& notes() const noexcept { return notes_; }

 private:
  struct storage {
    dtype type = dtype::u8;
    bool untyped = false;
    std::uint64_t numel = 0;  // as declared: elements, of untyped storages bytes
    torch_record record;
    std::uint64_t bytes() const noexcept { return byte_count(type, static_cast<std::size_t>(numel)); }
  };

  failure fail(errc code, id n, const std::string& where, std::string what, std::string expected = {}, std::string found = {},
               std::string advice = {}) const {
    return failure{.code = code,
                   .what = std::move(what),
                   .file = file_,
                   .place = entry_ + ", byte offset " + std::to_string(doc_.at(n)) + ", tensor " + quoted(where),
                   .expected = std::move(expected),
                   .found = std::move(found),
                   .advice = std::move(advice)};
  }

  result<tensor_ref> make_new(id n, const std::string& where) {
    torch_symbol symbol = doc_.maker(n);
    id callable = doc_.callable(n), state = doc_.state(n);
    std::vector<id> args = doc_.items(doc_.arguments(n));
    for (;;) {  // through what wraps a tensor: parameters, subclasses
      const bool wraps = symbol == torch_symbol::parameter || symbol == torch_symbol::parameter_with_state ||
                         symbol == torch_symbol::from_device || symbol == torch_symbol::parameter_class;
      if (symbol == torch_symbol::from_type) {
        if (args.size() != 4 || doc_.kind(args[0]) != pickle_kind::global || doc_.kind(args[2]) != pickle_kind::tuple)
          return fail(errc::malformed, n, where, "a tensor subclass is rebuilt from wrong arguments",
                      "(function, class, arguments, state)", std::to_string(args.size()) + " arguments");
        callable = args[0];
        symbol = doc_.symbol(callable);
        args = doc_.items(args[2]);
        if (symbol == torch_symbol::from_type) return fail(errc::malformed, n, where, "a tensor subclass is rebuilt twice");
      } else if (wraps) {
        if (args.empty() || !is_tensor(doc_, args[0]))
          return fail(errc::malformed, n, where, quoted(doc_.full_name(callable)) + " is called with wrong arguments",
                      "a tensor first", args.empty() ? "nothing" : std::string(name_of(doc_.kind(args[0]))));
        const id inner = args[0];
        callable = doc_.callable(inner);
        state = doc_.state(inner);
        symbol = doc_.maker(inner);
        args = doc_.items(doc_.arguments(inner));
      } else {
        break;
      }
    }
    return base_tensor(n, where, symbol, callable, args, state);
  }

  result<tensor_ref> base_tensor(id n, const std::string& where, torch_symbol symbol, id callable, std::vector<id> args,
                                 id state) {
    std::size_t least = 6, most = 7;
    switch (symbol) {
      case torch_symbol::tensor_v1:
        least = most = 4;
        break;
      case torch_symbol::tensor_v2:
        break;
      case torch_symbol::tensor_v3:
        least = 7, most = 8;
        break;
      case torch_symbol::tensor_class:  // torch 0.1: an empty tensor whose state is (storage, offset, size, stride)
        if (args.empty() && state != pickle_document::nothing && doc_.kind(state) == pickle_kind::tuple) args = doc_.items(state);
        least = most = 4;
        break;
      case torch_symbol::unsupported_tensor:
        return fail(errc::unsupported, n, where, "the tensor is sparse, quantized, nested or without data", "a dense tensor",
                    quoted(doc_.full_name(callable)));
      default:
        return fail(errc::unsupported, n, where, "the tensor is rebuilt by an unknown function", "a function of torch._utils",
                    quoted(doc_.full_name(callable)));
    }
    if (args.size() < least || args.size() > most)
      return fail(errc::malformed, n, where, quoted(doc_.full_name(callable)) + " is called with wrong arguments",
                  least == most ? std::to_string(least) + " arguments"
                                : std::to_string(least) + " or " + std::to_string(most) + " arguments",
                  std::to_string(args.size()));
    if (doc_.kind(args[0]) != pickle_kind::storage)
      return fail(errc::malformed, n, where, "the tensor has no storage", "a storage", std::string(name_of(doc_.kind(args[0]))));
    TENSORSMITH_CHECK(check_rest(n, where, symbol, args));
    TENSORSMITH_TRY(const storage* const s, find_storage(args[0], n, where));
    dtype type = s->type;
    if (symbol == torch_symbol::tensor_v3) {
      const auto named = doc_.kind(args[6]) == pickle_kind::global ? element_type(doc_.name(args[6])) : std::nullopt;
      if (!named || doc_.symbol(args[6]) != torch_symbol::element_type)
        return fail(errc::unsupported, n, where, "the tensor's element type is not supported",
                    "a floating, integer, boolean or complex type",
                    doc_.kind(args[6]) == pickle_kind::global ? quoted(doc_.full_name(args[6]))
                                                              : std::string(name_of(doc_.kind(args[6]))));
      type = *named;
    } else if (s->untyped) {
      return fail(errc::malformed, n, where, "a tensor without element type lies in an untyped storage", "a typed storage",
                  "UntypedStorage");
    }
    return view_of(n, where, *s, type, args);
  }

  /// The arguments behind storage, offset, size and stride: requires_grad, hooks, [dtype], [metadata].
  result<void> check_rest(id n, const std::string& where, torch_symbol symbol, const std::vector<id>& args) const {
    if (args.size() > 4 && doc_.kind(args[4]) != pickle_kind::boolean)
      return fail(errc::malformed, n, where, "requires_grad is no boolean", "a boolean",
                  std::string(name_of(doc_.kind(args[4]))));
    if (args.size() > 5 && doc_.kind(args[5]) != pickle_kind::dict && doc_.kind(args[5]) != pickle_kind::none)
      return fail(errc::malformed, n, where, "the hooks are no dict", "a dict or None", std::string(name_of(doc_.kind(args[5]))));
    const std::size_t metadata = symbol == torch_symbol::tensor_v3 ? 7 : 6;
    if (args.size() <= metadata || doc_.kind(args[metadata]) == pickle_kind::none) return {};
    if (doc_.kind(args[metadata]) != pickle_kind::dict)
      return fail(errc::malformed, n, where, "the tensor's metadata is no dict", "a dict",
                  std::string(name_of(doc_.kind(args[metadata]))));
    const std::vector<id> pairs = doc_.items(args[metadata]);
    for (std::size_t i = 0; i + 1 < pairs.size(); i += 2) {
      const bool off = doc_.kind(pairs[i + 1]) == pickle_kind::boolean && !doc_.boolean(pairs[i + 1]);
      if (!off)
        return fail(
            errc::unsupported, n, where, "the tensor is stored with an operation to apply", "no metadata",
            doc_.kind(pairs[i]) == pickle_kind::text ? quoted(doc_.text(pairs[i])) : std::string(name_of(doc_.kind(pairs[i]))));
    }
    return {};
  }

  result<const storage*> find_storage(id node, id n, const std::string& where) {
    const std::vector<id> parts = doc_.items(doc_.persistent(node));
    const std::string key(doc_.text(parts[2]));
    const auto numel = static_cast<std::uint64_t>(doc_.integer(parts[4]));
    const auto type = storage_type(doc_.name(parts[1]));
    const bool untyped = doc_.name(parts[1]) == "UntypedStorage";
    if (!type)
      return fail(errc::unsupported, n, where, "the storage's element type is not supported",
                  "a floating, integer, boolean or complex type", quoted(doc_.full_name(parts[1])));
    const auto known = storages_.find(key);
    if (known != storages_.end()) {
      const storage& s = known->second;
      if (s.type != *type || s.untyped != untyped || s.numel != numel)
        return fail(errc::malformed, n, where, "storage " + quoted(key) + " is declared twice in different ways",
                    std::to_string(s.numel) + " elements of " + std::string(name_of(s.type)),
                    std::to_string(numel) + " of " + std::string(name_of(*type)));
      return &s;
    }
    TENSORSMITH_TRY(torch_record record, find_(key));
    const detail::wide_count needed = static_cast<detail::wide_count>(numel) * (bits_of(*type) / 8);
    if (needed > record.bytes)
      return fail(
          errc::malformed, n, where, "storage " + quoted(key) + " is shorter than declared",
          detail::to_text(needed) + " bytes (" + std::to_string(numel) + " elements of " + std::string(name_of(*type)) + ")",
          std::to_string(record.bytes) + " bytes", "is the download incomplete?");
    if (needed < record.bytes)
      notes_.push_back({note::level::info, record.place,
                        std::to_string(record.bytes - static_cast<std::uint64_t>(needed)) +
                            " bytes behind the declared end of the storage are not used."});
    stored_bytes_ += record.bytes;
    return &storages_.emplace(key, storage{*type, untyped, numel, std::move(record)}).first->second;
  }

  /// The integers of a tuple, none negative.
  result<std::vector<std::uint64_t>> extents(id tuple, id n, const std::string& where, const char* what) const {
    if (doc_.kind(tuple) != pickle_kind::tuple && doc_.kind(tuple) != pickle_kind::list)
      return fail(errc::malformed, n, where, std::string("the tensor's ") + what + " is no tuple", "a tuple of integers",
                  std::string(name_of(doc_.kind(tuple))));
    if (doc_.count(tuple) > limits_.rank)
      return fail(errc::limit, n, where, "the tensor has too many dimensions", std::to_string(limits_.rank) + " at most",
                  std::to_string(doc_.count(tuple)), "raise it with --max-rank");
    std::vector<std::uint64_t> out;
    for (const id item : doc_.items(tuple)) {
      if (doc_.kind(item) != pickle_kind::integer || doc_.integer(item) < 0)
        return fail(
            errc::malformed, n, where, std::string("the tensor's ") + what + " is wrong", "integers from 0",
            doc_.kind(item) == pickle_kind::integer ? std::to_string(doc_.integer(item)) : std::string(name_of(doc_.kind(item))));
      out.push_back(static_cast<std::uint64_t>(doc_.integer(item)));
    }
    return out;
  }

  result<tensor_ref> view_of(id n, const std::string& where, const storage& s, dtype type, const std::vector<id>& args) {
    if (doc_.kind(args[1]) != pickle_kind::integer || doc_.integer(args[1]) < 0)
      return fail(errc::malformed, n, where, "the tensor's offset is wrong", "an integer from 0",
                  doc_.kind(args[1]) == pickle_kind::integer ? std::to_string(doc_.integer(args[1]))
                                                             : std::string(name_of(doc_.kind(args[1]))));
    const auto offset = static_cast<std::uint64_t>(doc_.integer(args[1]));
    TENSORSMITH_TRY(const auto sizes, extents(args[2], n, where, "size"));
    TENSORSMITH_TRY(const auto strides, extents(args[3], n, where, "stride"));
    if (sizes.size() != strides.size())
      return fail(errc::malformed, n, where, "the tensor has other numbers of sizes and strides", std::to_string(sizes.size()),
                  std::to_string(strides.size()));
    const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
    detail::wide_count last = offset, count = 1;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] >= limits_.elements || (!empty && count * sizes[i] >= limits_.elements))
        return fail(errc::limit, n, where, "the tensor has too many elements", "less than " + std::to_string(limits_.elements),
                    sizes[i] >= limits_.elements ? std::to_string(sizes[i]) : detail::to_text(count * sizes[i]),
                    "no file this large is supported");
      if (empty) continue;
      count *= sizes[i];
      last += static_cast<detail::wide_count>(sizes[i] - 1) * strides[i];
    }
    const std::uint64_t elements = s.bytes() / (bits_of(type) / 8);
    if (!empty && last >= elements)
      return fail(errc::malformed, n, where, "the tensor reaches past its storage", "elements below " + std::to_string(elements),
                  "element " + detail::to_text(last) + " (offset " + std::to_string(offset) + ", size " +
                      to_string(shape_type(sizes.begin(), sizes.end())) + ", stride " +
                      to_string(shape_type(strides.begin(), strides.end())) + ")");
    const std::uint64_t bytes = empty ? 0 : static_cast<std::uint64_t>(count) * (bits_of(type) / 8);
    if (bytes > free_bytes && bytes / limits_.expansion > s.record.bytes)
      return fail(errc::limit, n, where, "the tensor repeats its stored elements too often",
                  "at most " + std::to_string(limits_.expansion) + " times",
                  std::to_string(bytes) + " bytes from " + std::to_string(s.record.bytes) + " stored",
                  "raise it with --max-expansion");
    TENSORSMITH_CHECK(account(bytes, n, where));
    const std::uint64_t first = s.record.offset + (empty ? 0 : offset * (bits_of(type) / 8));
    return tensor_ref{strided_tensor(s.record.source, first, type, shape_type(sizes.begin(), sizes.end()),
                                     std::vector<std::size_t>(strides.begin(), strides.end()), where, s.record.check),
                      0};
  }

  /// Many names for the same bytes must not add up to more than the file could reasonably stand for.
  result<void> account(std::uint64_t bytes, id n, const std::string& where) {
    produced_bytes_ += std::min(bytes, ~std::uint64_t{0} - produced_bytes_);
    if (produced_bytes_ <= free_bytes || produced_bytes_ / limits_.expansion <= stored_bytes_) return {};
    return fail(errc::limit, n, where, "the tensors together repeat their storages too often",
                "at most " + std::to_string(limits_.expansion) + " times",
                std::to_string(produced_bytes_) + " bytes from " + std::to_string(stored_bytes_) + " stored",
                "raise it with --max-expansion");
  }

  static constexpr std::uint64_t free_bytes = 64u << 20;  // repeating is no concern below this size

  const pickle_document& doc_;
  std::string file_, entry_;
  find_record find_;
  limits limits_;
  std::map<std::string, storage> storages_;
  std::map<id, tensor_ref> made_;
  std::vector<note> notes_;
  std::uint64_t stored_bytes_ = 0, produced_bytes_ = 0;
};

TENSORSMITH_END_NAMESPACE
