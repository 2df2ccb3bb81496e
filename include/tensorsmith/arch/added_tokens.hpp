// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/added_tokens.hpp: new tokens in the files of a CLIP tokenizer; every other byte of them stays.
//
// Include this to look up what a tokenizer knows and to add tokens to it. The files are those that transformers reads: vocab.json, added_tokens.json,
// tokenizer_config.json, tokenizer.json. vocab.json and merges.txt are never changed: a token there would be taken apart by the merges.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/config_reader.hpp"
#include "tensorsmith/arch/tokenizer_files.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A token and the row of the token embedding that it stands for.
struct token_row {
  std::string token;
  std::int64_t id = 0;
  bool operator==(const token_row&) const = default;
};

/// What one tokenizer knows.
struct tokenizer_vocabulary {
  std::string folder;                                  ///< "tokenizer", "tokenizer_2"
  std::map<std::string, std::int64_t, std::less<>> ids;  ///< every token, added ones included
  std::int64_t words = 0;                              ///< tokens of the vocabulary proper; those with this id or a larger one were added

  /// The first id behind all tokens.
  std::int64_t next_id() const noexcept {
    std::int64_t last = -1;
    for (const auto& [token, id] : ids) last = std::max(last, id);
    return last + 1;
  }
  std::optional<std::int64_t> find(std::string_view token) const noexcept {
    const auto at = ids.find(token);
    return at == ids.end() ? std::nullopt : std::optional(at->second);
  }
};

namespace detail {

/// Collects tokens and their ids from one of the tokenizer's files, and where its list of added tokens ends.
class token_scan {
 public:
  enum class kind : std::uint8_t { plain, config, fast };  // {token: id}; tokenizer_config.json; tokenizer.json
  /// `words`: {token: id} of this file is the vocabulary proper.
  token_scan(kind form, bool words, tokenizer_vocabulary& out) : form_(form), words_(words), out_(out) {}

  /// Offset of the bracket that closes added_tokens_decoder or added_tokens; nothing: the file has no such list.
  std::optional<std::size_t> list_end() const noexcept { return list_end_; }

  bool null(json_cursor&) { return true; }
  bool boolean(bool, json_cursor&) { return true; }
  bool number(double value, json_cursor& c) { return !is_id(c) || wrong_id(std::to_string(value), c); }
  bool integer(std::int64_t value, json_cursor& c) { return !is_id(c) || wrong_id(std::to_string(value), c); }
  bool natural(std::uint64_t value, json_cursor& c) {
    if (!is_id(c)) return true;
    if (value >= config_bounds::vocabulary) return wrong_id(std::to_string(value), c);
    if (form_ == kind::fast && c.depth() == 3 && c.key(0) == "added_tokens") return pending_id_ = static_cast<std::int64_t>(value), true;
    return keep(std::string(c.key(c.depth() - 1)), static_cast<std::int64_t>(value), true, c);
  }
  bool string(std::string& value, json_cursor& c) {
    const bool listed = c.depth() == 3 && ((form_ == kind::config && c.key(0) == "added_tokens_decoder") ||
                                           (form_ == kind::fast && c.key(0) == "added_tokens"));
    if (listed && c.key(2) == "content") pending_ = std::move(value);
    return true;
  }
  bool key(std::string&, json_cursor&) { return true; }
  bool start_object(json_cursor&) { return true; }
  bool start_array(json_cursor&) { return true; }
  bool end_array(json_cursor& c) {
    if (form_ == kind::fast && c.depth() == 1 && c.key(0) == "added_tokens") list_end_ = static_cast<std::size_t>(c.offset()) - 1;
    return true;
  }
  bool end_object(json_cursor& c) {
    if (form_ == kind::config && c.depth() == 1 && c.key(0) == "added_tokens_decoder") list_end_ = static_cast<std::size_t>(c.offset()) - 1;
    if (c.depth() != 2 || form_ == kind::plain) return true;
    if (form_ == kind::config && c.key(0) == "added_tokens_decoder") {
      std::int64_t id = 0;
      const std::string_view text = c.key(1);
      const auto end = std::from_chars(text.data(), text.data() + text.size(), id);
      if (end.ec != std::errc{} || end.ptr != text.data() + text.size() || id < 0 || id >= bound) return wrong_id(quoted(text), c);
      pending_id_ = id;
    } else if (form_ != kind::fast || c.key(0) != "added_tokens") {
      return true;
    }
    if (pending_ && pending_id_ && !keep(std::move(*pending_), *pending_id_, false, c)) return false;
    pending_.reset();
    pending_id_.reset();
    return true;
  }

 private:
  static constexpr std::int64_t bound = static_cast<std::int64_t>(config_bounds::vocabulary);

  /// True where a number is the id of a token.
  bool is_id(const json_cursor& c) const {
    if (form_ == kind::plain) return c.depth() == 1;
    if (form_ == kind::config || c.depth() != 3) return false;
    return (c.key(0) == "model" && c.key(1) == "vocab") || (c.key(0) == "added_tokens" && c.key(2) == "id");
  }
  bool wrong_id(std::string found, json_cursor& c) const {
    return c.fail(errc::malformed, "the id of a token is out of range", "0 to " + std::to_string(bound - 1), std::move(found));
  }
  bool keep(std::string token, std::int64_t id, bool word, json_cursor& c) {
    constexpr std::size_t most = 1'000'000;  // what is remembered of each costs more memory than its text; CLIP has 49,408
    if (out_.ids.size() >= most)
      return c.fail(errc::limit, "the tokenizer has too many tokens", std::to_string(most) + " at most", "more", "no CLIP tokenizer is so large");
    out_.ids.insert_or_assign(std::move(token), id);
    if (word && words_) out_.words = std::max(out_.words, id + 1);
    return true;
  }

  kind form_;
  bool words_;
  tokenizer_vocabulary& out_;
  std::optional<std::string> pending_;
  std::optional<std::int64_t> pending_id_;
  std::optional<std::size_t> list_end_;
};

inline side_file* find_side_file(std::vector<side_file>& files, std::string_view folder, std::string_view name) {
  const std::string path = join_path(folder, name);
  for (side_file& file : files)
    if (file.path == path) return &file;
  return nullptr;
}

inline result<std::string> tokenizer_text(const side_file& file, const limits& bounds) {
  return read_text(*file.bytes, bounds.tokenizer_bytes, "limits::tokenizer_bytes (--max-tokenizer)");
}

/// Reads one file of a tokenizer if it is there. Returns its text and where its list of added tokens ends.
struct scanned_file {
  side_file* file = nullptr;
  std::string text;
  std::optional<std::size_t> list_end;
};

inline result<scanned_file> scan_file(std::vector<side_file>& files, std::string_view name, token_scan::kind form, bool words,
                                      tokenizer_vocabulary& out, const limits& bounds) {
  scanned_file found;
  found.file = find_side_file(files, out.folder, name);
  if (!found.file) return found;
  TENSORSMITH_TRY(found.text, tokenizer_text(*found.file, bounds));
  token_scan scan(form, words, out);
  TENSORSMITH_CHECK(walk_json(found.text, found.file->path, scan, {.depth = bounds.json_depth, .large_integers = true}));
  found.list_end = scan.list_end();
  return found;
}

/// The white space that stands before `at`.
inline std::string_view space_before(std::string_view text, std::size_t at) noexcept {
  std::size_t from = at;
  while (from > 0 && (text[from - 1] == ' ' || text[from - 1] == '\n' || text[from - 1] == '\r' || text[from - 1] == '\t')) --from;
  return text.substr(from, at - from);
}

/// Puts members at the end of the list whose bracket closes at `end`, laid out as the list is. `members`: (key or empty, value).
inline std::string with_members(const std::string& text, std::size_t end, const std::vector<std::pair<std::string, json_value>>& members) {
  const std::string_view space = space_before(text, end);
  const std::size_t content = end - space.size(), line = space.rfind('\n');
  const bool empty = text[content - 1] == '{' || text[content - 1] == '[', lines = line != space.npos;
  const std::string outer(lines ? space.substr(line + 1) : std::string_view()), inner = outer + "  ";
  std::string added;
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (i > 0 || !empty) added += lines ? "," : ", ";
    if (lines) added += "\n" + inner;
    if (!members[i].first.empty()) {
      append_json_string(added, members[i].first);
      added += ": ";
    }
    for (const char c : write_json(members[i].second, lines ? 2 : 0)) {
      added += c;
      if (c == '\n') added += inner;
    }
  }
  return text.substr(0, content) + added + text.substr(content);
}

}  // namespace detail

/// The tokenizer in a folder of side files; nothing if there is no vocabulary. @fails malformed, limit, io
inline result<std::optional<tokenizer_vocabulary>> read_tokenizer(std::vector<side_file>& files, const std::string& folder, const limits& bounds) {
  using kind = detail::token_scan::kind;
  tokenizer_vocabulary out;
  out.folder = folder;
  TENSORSMITH_TRY(const auto words, detail::scan_file(files, "vocab.json", kind::plain, true, out, bounds));
  TENSORSMITH_TRY(const auto fast, detail::scan_file(files, "tokenizer.json", kind::fast, !words.file, out, bounds));
  if (!words.file && !fast.file) return std::optional<tokenizer_vocabulary>();
  TENSORSMITH_TRY(const auto added, detail::scan_file(files, "added_tokens.json", kind::plain, false, out, bounds));
  TENSORSMITH_TRY(const auto config, detail::scan_file(files, "tokenizer_config.json", kind::config, false, out, bounds));
  (void)added, (void)config;
  if (out.words == 0)
    return failure{.code = errc::unsupported, .what = "the tokenizer has no vocabulary of words and ids", .file = words.file ? words.file->path : fast.file->path,
                   .expected = "a CLIP tokenizer", .found = "no ids"};
  return std::optional(std::move(out));
}

/// Adds tokens to a tokenizer: to added_tokens.json (made if there is none), to added_tokens_decoder of tokenizer_config.json where it has that list
/// (transformers 4.34 and later then read only it), and to added_tokens of tokenizer.json. The rest of these files stays byte for byte; tokens that
/// are known with the same id are left alone. @fails malformed, limit, io
inline result<void> add_tokens(std::vector<side_file>& files, tokenizer_vocabulary& known, std::span<const token_row> tokens, const limits& bounds) {
  using kind = detail::token_scan::kind;
  std::vector<std::pair<std::string, json_value>> config_members, fast_members;
  for (const token_row& row : tokens) {
    if (known.find(row.token) == row.id) continue;
    json_value flags;
    flags.set("content", row.token);
    for (const char* flag : {"lstrip", "normalized", "rstrip", "single_word", "special"}) flags.set(flag, std::string_view(flag) == "normalized");
    config_members.emplace_back(std::to_string(row.id), std::move(flags));
    json_value fast;
    fast.set("id", row.id);
    fast.set("content", row.token);
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"}) fast.set(flag, std::string_view(flag) == "normalized");
    fast_members.emplace_back(std::string(), std::move(fast));
    known.ids.insert_or_assign(row.token, row.id);
  }
  if (config_members.empty()) return {};
  tokenizer_vocabulary unused;
  unused.folder = known.folder;
  TENSORSMITH_TRY(const auto config, detail::scan_file(files, "tokenizer_config.json", kind::config, false, unused, bounds));
  if (config.list_end) config.file->bytes = detail::text_source(config.file->path, detail::with_members(config.text, *config.list_end, config_members));
  TENSORSMITH_TRY(const auto fast, detail::scan_file(files, "tokenizer.json", kind::fast, false, unused, bounds));
  if (fast.list_end) fast.file->bytes = detail::text_source(fast.file->path, detail::with_members(fast.text, *fast.list_end, fast_members));
  json_value::object added;
  for (const auto& [token, id] : known.ids)  // sorted by the bytes of UTF-8, which is the order of code points
    if (id >= known.words) added.emplace_back(token, id);
  const std::string path = join_path(known.folder, "added_tokens.json");
  side_file file = detail::json_side_file(path, std::move(added));
  if (side_file* const before = detail::find_side_file(files, known.folder, "added_tokens.json")) before->bytes = std::move(file.bytes);
  else files.push_back(std::move(file));
  return {};
}

/// Where a single file tells the tokens that its matrices were given: a key of its metadata, {"token": id} as JSON.
inline constexpr std::string_view added_tokens_key = "tensorsmith.added_tokens";

/// The tokens that a file's metadata name; none: an empty list. @fails malformed
inline result<std::vector<token_row>> tokens_of_metadata(const std::vector<std::pair<std::string, std::string>>& metadata, const std::string& file,
                                                         const limits& bounds) {
  std::vector<token_row> out;
  for (const auto& [key, text] : metadata) {
    if (key != added_tokens_key) continue;
    tokenizer_vocabulary read;
    detail::token_scan scan(detail::token_scan::kind::plain, false, read);
    auto walked = walk_json(text, file, scan, {.depth = bounds.json_depth});
    if (!walked) {
      walked.error().place = "metadata " + quoted(key) + ", " + walked.error().place;
      return std::move(walked).error();
    }
    for (const auto& [token, id] : read.ids) out.push_back({token, id});
  }
  std::sort(out.begin(), out.end(), [](const token_row& a, const token_row& b) { return a.id < b.id; });
  return out;
}

/// Enters tokens in a file's metadata beside those that are there. @fails malformed
inline result<void> add_tokens_to_metadata(std::vector<std::pair<std::string, std::string>>& metadata, std::span<const token_row> tokens,
                                           const std::string& file, const limits& bounds) {
  TENSORSMITH_TRY(const std::vector<token_row> before, tokens_of_metadata(metadata, file, bounds));
  std::map<std::string, std::int64_t> all;
  for (const token_row& row : before) all.insert_or_assign(row.token, row.id);
  for (const token_row& row : tokens) all.insert_or_assign(row.token, row.id);
  const std::string text = write_json(json_value::object(all.begin(), all.end()), 0);
  for (auto& [key, old] : metadata)
    if (key == added_tokens_key) return old = text, result<void>();
  metadata.emplace_back(std::string(added_tokens_key), text);
  return {};
}

TENSORSMITH_END_NAMESPACE
