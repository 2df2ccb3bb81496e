// SPDX-License-Identifier: MIT
//
// common/embedding_report.hpp: the account of added embeddings as text and as JSON: tokens, ids, encoders, vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "report.hpp"
#include "tensorsmith/arch/merge_embedding.hpp"

namespace examples {

/// "  <cat> = 49408 in text_encoder: 1 vector of cat.pt, norm 0.41"
inline std::string embeddings_text(const ts::embedding_account& account) {
  std::string out;
  constexpr std::size_t most = 20;
  for (std::size_t i = 0; i < account.tokens.size() && i < most; ++i) {
    const ts::added_token& t = account.tokens[i];
    out += "  " + ts::quoted(t.token) + " = " + std::to_string(t.id) + " in " + t.encoder + ": " +
           (t.vectors == 0 ? "zeros" : t.vectors == 1 ? "a vector" : "the sum of " + std::to_string(t.vectors) + " vectors") + " of " +
           t.file + ", norm " +
           format("%.6g", t.norm) + '\n';
  }
  if (account.tokens.size() > most) out += "  … " + std::to_string(account.tokens.size() - most) + " more (listed with --json)\n";
  for (const ts::ignored_embedding& i : account.ignored) out += "  left out of " + i.file + ": " + i.what + ": " + i.reason + '\n';
  return out;
}

/// Sets tokens, embeddings_ignored, tokenizer.
inline void set_embeddings(ts::json_value& out, const ts::embedding_account& account) {
  out.set("tokens", json_list(account.tokens, [](ts::json_value& one, const ts::added_token& t) {
            one.set("token", t.token);
            one.set("id", t.id);
            one.set("encoder", t.encoder);
            one.set("file", t.file);
            one.set("vectors", std::uint64_t{t.vectors});
            one.set("norm", t.norm);
          }));
  out.set("embeddings_ignored", json_list(account.ignored, [](ts::json_value& one, const ts::ignored_embedding& i) {
            one.set("file", i.file);
            one.set("what", i.what);
            one.set("reason", i.reason);
          }));
  out.set("tokenizer", account.has_tokenizer);
}

}  // namespace examples
