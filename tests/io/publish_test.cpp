// SPDX-License-Identifier: MIT
#include "tensorsmith/io/publish.hpp"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <set>

#include "support/catch.hpp"
#include "support/paths.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;

namespace {

void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string get(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Every path below a folder, relative.
std::set<std::string> tree(const fs::path& folder) {
  std::set<std::string> out;
  for (const auto& e : fs::recursive_directory_iterator(folder)) out.insert(fs::relative(e.path(), folder).string());
  return out;
}

using strings = std::set<std::string>;

}  // namespace

TEST_CASE("a folder appears whole at its commit") {
  const support::temp_folder folder;
  {
    auto out = ts::folder_publication::begin(folder / "new/model");
    REQUIRE(out);
    REQUIRE(out->write_text("config.json", "{}"));
    REQUIRE(out->write_text("unet/deep/model.onnx", "graph"));
    auto file = out->create("unet/weights.pb", 5);
    REQUIRE(file);
    CHECK((*file)->name() == folder / "new/model/unet/weights.pb");
    CHECK_FALSE(fs::exists(folder / "new/model"));
    CHECK(out->write_text("config.json", "{}").error().code == ts::errc::mismatch);
    CHECK(out->write_text("../config.json", "{}").error().code == ts::errc::path);
    REQUIRE(out->commit());
  }
  CHECK(tree(folder.path()) == strings{"new", "new/model", "new/model/config.json", "new/model/unet", "new/model/unet/deep",
                                       "new/model/unet/deep/model.onnx", "new/model/unet/weights.pb"});
  CHECK(get(folder / "new/model/unet/deep/model.onnx") == "graph");
}

TEST_CASE("without a commit nothing is left, not even parent folders") {
  const support::temp_folder folder;
  {
    auto out = ts::folder_publication::begin(folder / "a/b/model");
    REQUIRE(out);
    REQUIRE(out->write_text("x/y", "1"));
    CHECK(fs::exists(folder / "a/b"));
  }
  CHECK(tree(folder.path()).empty());
}

TEST_CASE("an existing folder needs --force and is untouched until the commit (U2)") {
  const support::temp_folder folder;
  fs::create_directories(folder.path() / "out/old");
  put(folder / "out/old/file", "old");
  const auto refused = ts::folder_publication::begin(folder / "out");
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message() == "PTH " + (folder / "out") + ": the output folder already exists; pass --force to replace it, or choose another path");
  {
    auto out = ts::folder_publication::begin(folder / "out", {.force = true});
    REQUIRE(out);
    REQUIRE(out->write_text("new", "new"));
    CHECK(get(folder / "out/old/file") == "old");
  }
  CHECK(tree(folder.path()) == strings{"out", "out/old", "out/old/file"});
  fs::permissions(folder / "out", fs::perms::owner_all);
  auto out = ts::folder_publication::begin(folder / "out/", {.force = true});
  REQUIRE(out);
  REQUIRE(out->write_text("new", "new"));
  REQUIRE(out->commit());
  CHECK(tree(folder.path()) == strings{"out", "out/new"});
  CHECK(fs::status(folder / "out").permissions() == fs::perms::owner_all);  // IO-19
}

TEST_CASE("targets that must not be replaced are refused (IO-07, IO-09)") {
  const support::temp_folder folder;
  fs::create_directories(folder.path() / "model/unet");
  put(folder / "model/unet/w", "weights");
  put(folder / "file", "x");
  const auto code = [](const std::string& target, ts::publish_options options) {
    const auto out = ts::folder_publication::begin(target, std::move(options));
    return out ? "begun" : std::string(ts::code_name(out.error().code));
  };
  CHECK(code(folder / "model", {.force = true, .sources = {folder / "model/unet/w"}}) == "DENY");
  CHECK(code(folder / "model", {.force = true, .sources = {folder / "model"}}) == "DENY");
  CHECK(code(folder / "model/unet", {.force = true, .sources = {folder / "model/other"}}) == "begun");
  CHECK(code("/", {.force = true}) == "DENY");
  CHECK(code(".", {.force = true}) == "DENY");
  CHECK(code(folder / "file", {.force = true}) == "PTH");
  CHECK(code("", {.force = true}) == "PTH");
  CHECK(code(folder / "file/below", {}) == "PTH");
  fs::create_symlink("nowhere", folder / "dangling");
  CHECK(code(folder / "dangling", {.force = true}) == "PTH");
  CHECK(get(folder / "model/unet/w") == "weights");
}

TEST_CASE("an output that another run published meanwhile is not overwritten (CON-01)") {
  const support::temp_folder folder;
  auto first = ts::folder_publication::begin(folder / "out");
  auto second = ts::folder_publication::begin(folder / "out");
  REQUIRE((first && second));
  REQUIRE(first->write_text("who", "first"));
  REQUIRE(second->write_text("who", "second"));
  REQUIRE(second->commit());
  const auto late = first->commit();
  REQUIRE_FALSE(late);
  CHECK(late.error().code == ts::errc::path);
  CHECK(get(folder / "out/who") == "second");
}

TEST_CASE("what a killed process left is removed by the next run, what a living one holds is not (IO-15, CON-08)") {
  const support::temp_folder folder;
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    auto out = ts::folder_publication::begin(folder / "out");
    if (out && out->write_text("unet/half", "half")) ::raise(SIGKILL);
    ::_exit(1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  std::string left;
  for (const std::string& path : tree(folder.path()))
    if (path.find('/') == std::string::npos) left = path;
  CHECK(left.starts_with(".out.tensorsmith-" + std::to_string(child) + "-"));
  CHECK(left.ends_with(".tmp"));
  REQUIRE(fs::exists(folder / (left + "/output/unet/half")));
  CHECK_FALSE(fs::exists(folder / "out"));

  auto living = ts::folder_publication::begin(folder / "out");
  REQUIRE(living);
  CHECK_FALSE(fs::exists(folder / left));
  REQUIRE(living->write_text("a", "1"));
  {
    auto other = ts::folder_publication::begin(folder / "out");
    REQUIRE(other);
    CHECK(other->staging_path() != living->staging_path());
    CHECK(get(living->staging_path() + "/a") == "1");
  }
  REQUIRE(living->commit());
  CHECK(tree(folder.path()) == strings{"out", "out/a"});
}

TEST_CASE("planted names are neither followed nor removed (IO-18)") {
  const support::temp_folder folder;
  put(folder / "precious", "x");
  const std::string guess = ".out.tensorsmith-" + std::to_string(::getpid()) + "-0.tmp";
  fs::create_symlink(folder.path(), folder / guess);
  fs::create_symlink("nowhere", folder / ".out.tensorsmith-2-0.tmp");
  REQUIRE(::mkfifo((folder / ".out.tensorsmith-1-0.tmp").c_str(), 0600) == 0);
  auto out = ts::folder_publication::begin(folder / "out");
  REQUIRE(out);
  REQUIRE(out->write_text("a", "1"));
  REQUIRE(out->commit());
  CHECK(get(folder / "out/a") == "1");
  CHECK(get(folder / "precious") == "x");
  CHECK(fs::is_symlink(folder / guess));
}

TEST_CASE("files are linked or cloned where the file system can") {
  const support::temp_folder folder;
  put(folder / "weights", "abc");
  auto out = ts::folder_publication::begin(folder / "out");
  REQUIRE(out);
  const auto kind = out->link_or_clone("unet/weights", folder / "weights");
  REQUIRE(kind);
  using link_kind = ts::folder_publication::link_kind;
  if (*kind == link_kind::none) {
    const auto source = ts::open_file(folder / "weights");
    REQUIRE(out->write_copy("unet/weights", **source));
  }
  REQUIRE(out->commit());
  CHECK(get(folder / "out/unet/weights") == "abc");
  CHECK(fs::hard_link_count(folder / "weights") == (*kind == link_kind::hard_link ? 2 : 1));
  fs::remove_all(folder / "out");
  CHECK(get(folder / "weights") == "abc");
  auto again = ts::folder_publication::begin(folder / "out");
  CHECK(again->link_or_clone("x", folder.path().string()).error().code == ts::errc::path);
  CHECK(again->link_or_clone("x", folder / "none").error().code == ts::errc::io);
}

TEST_CASE("sources are copied where they cannot be linked") {
  const support::temp_folder folder;
  std::string text(2'500'000, 'x');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 >> 3);
  put(folder / "in", text);
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  auto out = ts::folder_publication::begin(folder / "out");
  REQUIRE(out);
  REQUIRE(out->write_copy("file", **ts::open_file(folder / "in")));
  REQUIRE(out->write_copy("memory", ts::memory_source("m", bytes)));
  REQUIRE(out->write_copy("empty", ts::memory_source("m", {})));
  REQUIRE(out->commit());
  CHECK(get(folder / "out/file") == text);
  CHECK(get(folder / "out/memory") == text);
  CHECK(get(folder / "out/empty").empty());
}

TEST_CASE("files are added to an existing folder beside what it has") {
  const support::temp_folder folder;
  fs::create_directories(folder.path() / "model/unet");
  put(folder / "model/unet/weights.safetensors", "weights");
  put(folder / "model/model_index.json", "{}");
  auto out = ts::folder_publication::begin(folder / "model", {.merge_into_existing = true, .sources = {folder / "model"}});
  REQUIRE(out);
  CHECK(out->merging());
  REQUIRE(out->write_text("unet/model.onnx", "graph"));
  REQUIRE(out->write_text("vae/model.onnx", "graph 2"));
  REQUIRE(out->write_text("model_index.json", "{}"));  // the same bytes: stays
  CHECK_FALSE(fs::exists(folder / "model/unet/model.onnx"));
  REQUIRE(out->commit());
  const strings whole{"model", "model/model_index.json", "model/unet", "model/unet/model.onnx", "model/unet/weights.safetensors",
                      "model/vae", "model/vae/model.onnx"};
  CHECK_FALSE(fs::exists(out->staging_path() + "/vae/model.onnx"));
  {
    auto ended = std::move(*out);
  }
  CHECK(tree(folder.path()) == whole);
  CHECK(get(folder / "model/unet/weights.safetensors") == "weights");

  // Another content needs force.
  {
    auto second = ts::folder_publication::begin(folder / "model", {.merge_into_existing = true});
    REQUIRE(second->write_text("vae/new.onnx", "new"));
    REQUIRE(second->write_text("unet/model.onnx", "graph 3"));
    const auto refused = second->commit();
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message() == "PTH " + (folder / "model/unet/model.onnx") + ": the output file already exists; pass --force to replace it, or choose another path");
  }
  CHECK(tree(folder.path()) == whole);
  CHECK(get(folder / "model/unet/model.onnx") == "graph");
  fs::permissions(folder / "model/unet/model.onnx", fs::perms::owner_read | fs::perms::owner_write);
  {
    auto third = ts::folder_publication::begin(folder / "model", {.force = true, .merge_into_existing = true});
    REQUIRE(third->write_text("unet/model.onnx", "graph 3"));
    REQUIRE(third->commit());
  }
  CHECK(tree(folder.path()) == whole);
  CHECK(get(folder / "model/unet/model.onnx") == "graph 3");
  CHECK(fs::status(folder / "model/unet/model.onnx").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
}

TEST_CASE("nothing is added if one of the files cannot be put in place") {
  const support::temp_folder folder;
  fs::create_directories(folder.path() / "model");
  put(folder / "model/a", "old a");
  {
    auto out = ts::folder_publication::begin(folder / "model", {.force = true, .merge_into_existing = true});
    REQUIRE(out->write_text("a", "new a"));
    REQUIRE(out->write_text("b/c", "new c"));
    REQUIRE(out->write_text("d", "new d"));
    fs::create_directories(folder.path() / "model/d/in the way");  // a folder where the last file belongs
    const auto refused = out->commit();
    REQUIRE_FALSE(refused);
    CHECK(refused.error().what == "a folder lies where an output file belongs");
  }
  CHECK(get(folder / "model/a") == "old a");
  CHECK(tree(folder.path()) == strings{"model", "model/a", "model/d", "model/d/in the way"});
}

TEST_CASE("files that took the place of others are put back unless kept") {
  const support::temp_folder folder;
  put(folder / "a", "old a");
  put(folder / "new a", "new a");
  put(folder / "new b", "new b");
  {
    ts::detail::replaced_files undo;
    REQUIRE(undo.replace(folder / "new a", folder / "a", folder / "backup"));
    REQUIRE(undo.replace(folder / "new b", folder / "b", folder / "backup 2"));
    CHECK(get(folder / "a") == "new a");
    CHECK(get(folder / "b") == "new b");
    CHECK_FALSE(undo.replace(folder / "missing", folder / "c", folder / "backup 3"));
  }
  CHECK(get(folder / "a") == "old a");
  CHECK(tree(folder.path()) == strings{"a"});
}

TEST_CASE("a full disk leaves nothing and says what was needed (IO-01)") {
  const support::temp_folder folder;
  fs::create_directories(folder.path() / "disk");
  if (::mount("tmpfs", (folder / "disk").c_str(), "tmpfs", 0, "size=256k") != 0) {
    // Mounting needs root. Without it, the same path through the code is reached by a size that no disk has.
    auto out = ts::folder_publication::begin(folder / "disk/out");
    REQUIRE(out);
    const auto file = out->create("big", std::uint64_t{1} << 42);
    REQUIRE_FALSE(file);
    CHECK(file.error().code == ts::errc::no_space);
    return;
  }
  {
    auto out = ts::folder_publication::begin(folder / "disk/out");
    REQUIRE(out);
    CHECK(out->write_text("small", "1"));
    const auto file = out->create("unet/weights", 300'000);
    REQUIRE_FALSE(file);
    CHECK(file.error().code == ts::errc::no_space);
    CHECK(file.error().file == folder / "disk/out/unet/weights");
    CHECK(file.error().expected == "300000 bytes");
    CHECK(file.error().found.find(" bytes free") != std::string::npos);
  }
  CHECK(tree(folder.path() / "disk").empty());
  REQUIRE(::umount((folder / "disk").c_str()) == 0);
}

TEST_CASE("a single file appears whole at its commit") {
  const support::temp_folder folder;
  const std::string text = "hello";
  const auto write = [&](bool force, bool commit) -> ts::result<void> {
    TENSORSMITH_TRY(auto out, ts::file_publication::begin(folder / "deep/file", {.force = force}));
    TENSORSMITH_TRY(const auto file, out.create(text.size()));
    TENSORSMITH_CHECK(file->write_at(0, std::as_bytes(std::span(text))));
    return commit ? out.commit() : ts::result<void>{};
  };
  REQUIRE(write(false, false));
  CHECK(tree(folder.path()).empty());
  REQUIRE(write(false, true));
  CHECK(get(folder / "deep/file") == "hello");
  CHECK(write(false, true).error().code == ts::errc::path);
  put(folder / "deep/file", "old");
  fs::permissions(folder / "deep/file", fs::perms::owner_read | fs::perms::owner_write);
  REQUIRE(write(true, false));
  CHECK(get(folder / "deep/file") == "old");
  REQUIRE(write(true, true));
  CHECK(get(folder / "deep/file") == "hello");
  CHECK(fs::status(folder / "deep/file").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
  CHECK(tree(folder.path()) == strings{"deep", "deep/file"});
}
