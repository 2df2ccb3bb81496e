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
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/torch/numpy_values.hpp"
#include "tensorsmith/format/torch/pickle_document.hpp"
#include "tensorsmith/tensor/byte_swap.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Where the bytes of one storage lie.
struct torch_record {
  std::shared_ptr<const byte_source> source;
  std::uint64_t offset = 0, bytes = 0;
  std::shared_ptr<integrity_check> check;  ///< or null
  std::string place;                       ///< "zip entry 'archive/data/0'", for messages
};

/// A storage as a persistent id declares it.
struct torch_storage_id {
  std::string key;
  std::string class_name;     ///< "torch.FloatStorage"
  std::optional<dtype> type;  ///< nothing: quantized
  bool untyped = false;
  std::uint64_t numel = 0;    ///< elements; of untyped storages bytes
  std::string view_key;       ///< not empty: elements [view_offset, view_offset + view_numel) of the storage are meant
  std::uint64_t view_offset = 0, view_numel = 0;
  std::optional<pickle_document::id> packed;  ///< the object of the pickle whose bytes hold it
};

/// The storage that a node of kind `storage` names.
inline torch_storage_id storage_of(const pickle_document& doc, pickle_document::id node) {
  const auto parts = doc.items(doc.persistent(node));
  torch_storage_id out;
  out.key = doc.text(parts[2]);
  out.class_name = doc.full_name(parts[1]);
  out.type = storage_type(doc.name(parts[1]));
  out.untyped = doc.name(parts[1]) == "UntypedStorage";
  out.numel = static_cast<std::uint64_t>(doc.integer(parts[4]));
  if (parts.size() > 5 && doc.kind(parts[5]) == pickle_kind::tuple) {
    const auto view = doc.items(parts[5]);
    out.view_key = doc.text(view[0]);
    out.view_offset = static_cast<std::uint64_t>(doc.integer(view[1]));
    out.view_numel = static_cast<std::uint64_t>(doc.integer(view[2]));
  }
  return out;
}

/// A tensor that is described outside of the pickle: a tar file keeps them in a member of their own.
struct torch_view {
  torch_storage_id storage;
  std::uint64_t offset = 0;
  std::vector<std::uint64_t> sizes, strides;
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
  using unpack_storage = std::function<result<std::pair<torch_storage_id, torch_record>>(std::shared_ptr<const byte_source> source,
                                                                                         std::uint64_t begin, std::uint64_t end)>;
  using find_view = std::function<result<torch_view>(std::string_view number, const std::string& where)>;

  torch_tensors(const pickle_document& doc, std::string file, std::string entry, find_record find, const limits& bounds)
      : doc_(doc), file_(std::move(file)), entry_(std::move(entry)), find_(std::move(find)), limits_(bounds) {}

  /// Where the bytes of the pickle lie, so that arrays inside it are read from there; without it they are copied.
  void pickle_lies_in(std::shared_ptr<const byte_source> source, std::uint64_t offset) {
    pickle_ = std::move(source);
    pickle_offset_ = offset;
  }
  /// Storages are big-endian (numpy arrays say their own order).
  void storages_are_big_endian() noexcept { big_endian_ = true; }
  /// How storages are read that are packed into the pickle as bytes.
  void packed_storages_mean(unpack_storage unpack) { unpack_ = std::move(unpack); }
  /// What references stand for.
  void references_mean(find_view find) { find_view_ = std::move(find); }

  /// True for values that stand for a tensor, also for kinds of tensors that make() refuses. Arrays of numpy count if they hold
  /// numbers.
  static bool is_tensor(const pickle_document& doc, id n) {
    return is_torch_tensor(doc, n) || detail::numpy_array_of(doc, n).has_value();
  }
  static bool is_torch_tensor(const pickle_document& doc, id n) noexcept {
    if (doc.kind(n) == pickle_kind::reference) return true;
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
      TENSORSMITH_CHECK(account(known->second.first.info().bytes(), n, where));
      range again = known->second.second;
      remember(std::move(again), where);
      return known->second.first;
    }
    range_ = {};
    TENSORSMITH_TRY(const tensor_ref made, make_new(n, where));
    remember(range_, where);
    made_.emplace(n, std::pair(made, range_));
    return made;
  }

  /// Adds a note about tensors that lie in the same bytes, as tied weights and slices of one tensor do.
  void note_shared_bytes() {
    std::sort(ranges_.begin(), ranges_.end(), [](const range& a, const range& b) {
      return std::tie(a.source, a.first, a.end, a.order) < std::tie(b.source, b.first, b.end, b.order);
    });
    std::size_t shared = 0;
    const range *reach = nullptr, *one = nullptr, *other = nullptr;  // reach: the one that goes furthest so far
    for (const range& r : ranges_) {
      if (!reach || reach->source != r.source || r.first >= reach->end) {
        reach = &r;
        continue;
      }
      ++shared;
      const bool later = reach->order < r.order;
      const range &early = later ? *reach : r, &late = later ? r : *reach;
      if (!other || late.order < other->order) one = &early, other = &late;
      if (r.end > reach->end) reach = &r;
    }
    if (shared > 0)
      notes_.push_back({note::level::info, file_,
                        std::to_string(shared) + (shared == 1 ? " tensor lies" : " tensors lie") +
                            " in a range of bytes that another one uses too, first " + quoted(other->where) + " beside " +
                            quoted(one->where) + "; each is read as a tensor of its own."});
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
  struct range {  // bytes that a tensor spans in a source
    const byte_source* source = nullptr;
    std::uint64_t first = 0, end = 0;
    std::size_t order = 0;  // in which the tensors were asked for
    std::string where{};
  };

  void remember(range r, const std::string& where) {
    if (r.end <= r.first) return;
    r.order = ranges_.size();
    r.where = where;
    ranges_.push_back(std::move(r));
  }

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
    if (doc_.kind(n) == pickle_kind::reference) return referred(n, where);
    if (const auto array = detail::numpy_array_of(doc_, n)) return make_numpy(n, where, *array);
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
        if (args.empty() || !is_torch_tensor(doc_, args[0]))
          return fail(errc::malformed, n, where, quoted(doc_.full_name(callable)) + " is called with wrong arguments",
                      "a tensor first", args.empty() ? "nothing" : std::string(name_of(doc_.kind(args[0]))));
        const id inner = args[0];
        if (doc_.kind(inner) == pickle_kind::reference) return referred(inner, where);
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
    const bool packed = unpack_ && doc_.kind(args[0]) == pickle_kind::object && doc_.maker(args[0]) == torch_symbol::packed_storage;
    if (!packed && doc_.kind(args[0]) != pickle_kind::storage)
      return fail(errc::malformed, n, where, "the tensor has no storage", "a storage", std::string(name_of(doc_.kind(args[0]))));
    TENSORSMITH_CHECK(check_rest(n, where, symbol, args));
    TENSORSMITH_TRY(const torch_storage_id declared, packed ? unpacked(args[0], n, where) : storage_of(doc_, args[0]));
    TENSORSMITH_TRY(const storage* const s, find_storage(declared, n, where));
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
    if (doc_.kind(args[1]) != pickle_kind::integer || doc_.integer(args[1]) < 0)
      return fail(errc::malformed, n, where, "the tensor's offset is wrong", "an integer from 0",
                  doc_.kind(args[1]) == pickle_kind::integer ? std::to_string(doc_.integer(args[1]))
                                                             : std::string(name_of(doc_.kind(args[1]))));
    TENSORSMITH_TRY(const auto sizes, extents(args[2], n, where, "size"));
    TENSORSMITH_TRY(const auto strides, extents(args[3], n, where, "stride"));
    return view_of(n, where, *s, type, static_cast<std::uint64_t>(doc_.integer(args[1])), sizes, strides);
  }

  /// Where the characters of a node can be read.
  std::pair<std::shared_ptr<const byte_source>, std::uint64_t> located(id data) const {
    if (const auto inside = doc_.input_offset(data); pickle_ && inside) return {pickle_, pickle_offset_ + *inside};
    const auto bytes = std::as_bytes(std::span(doc_.text(data)));
    return {std::make_shared<memory_source>(file_, std::vector<std::byte>(bytes.begin(), bytes.end())), 0};
  }

  /// The storage that bytes of the pickle hold, under a key of its own.
  result<torch_storage_id> unpacked(id object, id n, const std::string& where) {
    const auto known = packed_.find(object);
    if (known != packed_.end()) return known->second.first;
    const id arguments = doc_.arguments(object);
    const id data = doc_.count(arguments) == 1 ? doc_.items(arguments)[0] : doc_.nothing;
    if (data == doc_.nothing || !doc_.is_byte_string(data))
      return fail(errc::malformed, n, where, "a packed storage is no bytes", "bytes", std::to_string(doc_.count(arguments)) + " arguments");
    auto [source, offset] = located(data);
    TENSORSMITH_TRY(auto made, unpack_(std::move(source), offset, offset + doc_.text(data).size()));
    const std::string key = "packed " + std::to_string(object);
    made.first.key = key;
    made.first.packed = object;
    if (!made.first.view_key.empty()) made.first.view_key = key + " " + made.first.view_key;
    return packed_.emplace(object, std::move(made)).first->second.first;
  }

  /// A tensor that is described outside of the pickle.
  result<tensor_ref> referred(id n, const std::string& where) {
    const id number = doc_.persistent(n);
    const std::string text =
        doc_.kind(number) == pickle_kind::integer ? std::to_string(doc_.integer(number)) : std::string(doc_.text(number));
    if (!find_view_) return fail(errc::internal, n, where, "nothing is known about references");
    TENSORSMITH_TRY(const torch_view view, find_view_(text, where));
    TENSORSMITH_TRY(const storage* const s, find_storage(view.storage, n, where));
    return view_of(n, where, *s, s->type, view.offset, view.sizes, view.strides);
  }

  result<tensor_ref> make_numpy(id n, const std::string& where, const detail::numpy_array& array) {
    TENSORSMITH_TRY(const auto sizes, extents(array.shape, n, where, "shape"));
    TENSORSMITH_TRY(const std::uint64_t count, count_of(n, where, sizes));
    const std::size_t width = bits_of(array.type.type) / 8;
    const std::string_view data = doc_.text(array.data);
    if (count * width != data.size())
      return fail(errc::malformed, n, where, "the array has other bytes than its shape needs",
                  std::to_string(count * width) + " bytes", std::to_string(data.size()));
    TENSORSMITH_CHECK(account(data.size(), n, where));
    shape_type shape(sizes.begin(), sizes.end());
    std::vector<std::size_t> strides = stored_recipe::row_major_strides(shape);
    if (array.fortran)
      for (std::size_t i = 0, step = 1; i < shape.size(); step *= std::max<std::size_t>(shape[i], 1), ++i) strides[i] = step;
    auto [source, offset] = located(array.data);
    stored_bytes_ += data.size();
    range_ = {source.get(), offset, offset + data.size(), 0, {}};
    recipe_ptr stored =
        strided_tensor(std::move(source), offset, array.type.type, std::move(shape), std::move(strides), where, nullptr);
    return tensor_ref{array.type.big_endian ? byte_swapped(std::move(stored)) : std::move(stored), 0};
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

  result<const storage*> find_storage(const torch_storage_id& declared, id n, const std::string& where) {
    const auto& key = declared.key;
    const auto& type = declared.type;
    const auto& view_key = declared.view_key;
    const std::uint64_t numel = declared.numel, view_offset = declared.view_offset, view_numel = declared.view_numel;
    if (!type)
      return fail(errc::unsupported, n, where, "the storage's element type is not supported",
                  "a floating, integer, boolean or complex type", quoted(declared.class_name));
    TENSORSMITH_TRY(const storage* const whole, whole_storage(declared, n, where));
    if (view_key.empty()) return whole;
    if (view_offset > numel || view_numel > numel - view_offset)
      return fail(errc::malformed, n, where, "part " + quoted(view_key) + " reaches past storage " + quoted(key),
                  std::to_string(numel) + " elements",
                  std::to_string(view_numel) + " from element " + std::to_string(view_offset));
    storage part = *whole;
    part.record.offset += view_offset * (bits_of(*type) / 8);
    part.record.bytes = view_numel * (bits_of(*type) / 8);
    part.numel = view_numel;
    const auto [at, fresh] = views_.emplace(view_key, part);
    if (!fresh && (at->second.record.offset != part.record.offset || at->second.numel != part.numel ||
                   at->second.type != part.type || at->second.record.source != part.record.source))
      return fail(errc::malformed, n, where, "part " + quoted(view_key) + " of a storage is declared twice in different ways",
                  std::to_string(at->second.numel) + " elements of " + std::string(name_of(at->second.type)),
                  std::to_string(view_numel) + " of " + std::string(name_of(*type)));
    return &at->second;
  }

  result<const storage*> whole_storage(const torch_storage_id& declared, id n, const std::string& where) {
    const std::string& key = declared.key;
    const auto type = declared.type;
    const bool untyped = declared.untyped;
    const std::uint64_t numel = declared.numel;
    const auto known = storages_.find(key);
    if (known != storages_.end()) {
      const storage& s = known->second;
      if (s.type != *type || s.untyped != untyped || s.numel != numel)
        return fail(errc::malformed, n, where, "storage " + quoted(key) + " is declared twice in different ways",
                    std::to_string(s.numel) + " elements of " + std::string(name_of(s.type)),
                    std::to_string(numel) + " of " + std::string(name_of(*type)));
      return &s;
    }
    TENSORSMITH_TRY(torch_record record, declared.packed ? packed_.at(*declared.packed).second : find_(key));
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

  /// The number of elements, 0 if one size is 0. The other sizes are bounded even then: libraries multiply them as well.
  result<std::uint64_t> count_of(id n, const std::string& where, const std::vector<std::uint64_t>& sizes) const {
    const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
    detail::wide_count count = 1;
    for (const std::uint64_t size : sizes) {
      if (size >= limits_.elements || count * std::max<std::uint64_t>(size, 1) >= limits_.elements)
        return fail(errc::limit, n, where, "the tensor has too many elements", "less than " + std::to_string(limits_.elements),
                    size >= limits_.elements ? std::to_string(size) : detail::to_text(count * size),
                    "no file this large is supported");
      count *= std::max<std::uint64_t>(size, 1);
    }
    return empty ? 0 : static_cast<std::uint64_t>(count);
  }

  result<tensor_ref> view_of(id n, const std::string& where, const storage& s, dtype type, std::uint64_t offset,
                             const std::vector<std::uint64_t>& sizes, const std::vector<std::uint64_t>& strides) {
    if (sizes.size() != strides.size())
      return fail(errc::malformed, n, where, "the tensor has other numbers of sizes and strides", std::to_string(sizes.size()),
                  std::to_string(strides.size()));
    TENSORSMITH_TRY(const std::uint64_t count, count_of(n, where, sizes));
    const bool empty = count == 0;
    detail::wide_count last = offset;
    for (std::size_t i = 0; i < sizes.size() && !empty; ++i)
      last += static_cast<detail::wide_count>(sizes[i] - 1) * strides[i];
    const std::uint64_t elements = s.bytes() / (bits_of(type) / 8);
    if (!empty && last >= elements)
      return fail(errc::malformed, n, where, "the tensor reaches past its storage", "elements below " + std::to_string(elements),
                  "element " + detail::to_text(last) + " (offset " + std::to_string(offset) + ", size " +
                      to_string(shape_type(sizes.begin(), sizes.end())) + ", stride " +
                      to_string(shape_type(strides.begin(), strides.end())) + ")");
    const std::uint64_t bytes = count * (bits_of(type) / 8);
    if (bytes > free_bytes && bytes / limits_.expansion > s.record.bytes)
      return fail(errc::limit, n, where, "the tensor repeats its stored elements too often",
                  "at most " + std::to_string(limits_.expansion) + " times",
                  std::to_string(bytes) + " bytes from " + std::to_string(s.record.bytes) + " stored",
                  "raise it with --max-expansion");
    TENSORSMITH_CHECK(account(bytes, n, where));
    if (big_endian_ && s.untyped && number_bytes(type) > 1)
      return fail(errc::unsupported, n, where, "the tensor lies in an untyped storage of a big-endian file", "a typed storage",
                  std::string(name_of(type)), "save the file again on a little-endian machine");
    const std::uint64_t width = bits_of(type) / 8, first = s.record.offset + (empty ? 0 : offset * width);
    if (!empty) range_ = {s.record.source.get(), first, s.record.offset + (static_cast<std::uint64_t>(last) + 1) * width, 0, {}};
    recipe_ptr stored = strided_tensor(s.record.source, first, type, shape_type(sizes.begin(), sizes.end()),
                                       std::vector<std::size_t>(strides.begin(), strides.end()), where, s.record.check);
    return tensor_ref{big_endian_ ? byte_swapped(std::move(stored)) : std::move(stored), 0};
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
  find_view find_view_;
  unpack_storage unpack_;
  std::map<id, std::pair<torch_storage_id, torch_record>> packed_;
  std::shared_ptr<const byte_source> pickle_;
  std::uint64_t pickle_offset_ = 0;
  bool big_endian_ = false;
  std::map<std::string, storage> storages_, views_;
  std::map<id, std::pair<tensor_ref, range>> made_;
  std::vector<range> ranges_;
  range range_;  // of the tensor that is being made
  std::vector<note> notes_;
  std::uint64_t stored_bytes_ = 0, produced_bytes_ = 0;
};

TENSORSMITH_END_NAMESPACE
