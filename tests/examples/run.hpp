// SPDX-License-Identifier: MIT
//
// tests/examples/run.hpp: starts the example programs and looks at what they leave: status, text, files.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/paths.hpp"

namespace programs {

namespace fs = std::filesystem;

/// The folder of the programs: $TENSORSMITH_PROGRAMS, or bin/ beside the folder of this test.
inline fs::path folder() {
  if (const char* given = std::getenv("TENSORSMITH_PROGRAMS")) return given;
  return fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin";
}

inline std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_text(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

struct outcome {
  int status = -1;  ///< exit status, or 128 + signal
  std::string out, err;
};

struct run_options {
  std::optional<rlim_t> file_size{};               ///< RLIMIT_FSIZE of the program
  std::function<void(pid_t)> meanwhile{};          ///< called once while the program runs
  std::string stdout_path{};                       ///< where standard output goes; empty: captured
};

/// Runs `bin/<name> arguments…` and waits for it.
inline outcome run(const std::string& name, const std::vector<std::string>& arguments, const run_options& options = {}) {
  const support::temp_folder captured;
  const std::string program = (folder() / name).string(), out = captured / "out", err = captured / "err";
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const std::string target = options.stdout_path.empty() ? out : options.stdout_path;
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int to_out = ::open(target.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int to_err = ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (to_out < 0 || to_err < 0 || ::dup2(to_out, 1) < 0 || ::dup2(to_err, 2) < 0) ::_exit(126);
    if (options.file_size) {
      const rlimit limit{*options.file_size, *options.file_size};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    ::execv(program.c_str(), argv.data());
    ::_exit(127);
  }
  if (options.meanwhile) options.meanwhile(child);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) throw std::runtime_error("waitpid failed");
  outcome result;
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (result.status == 127) throw std::runtime_error("cannot start " + program);
  if (options.stdout_path.empty()) result.out = read_text(out);
  result.err = read_text(err);
  return result;
}

/// Makes a model `folder/FAMILY.FORM` with made-up weights, unless it is there already.
inline std::string made_model(const fs::path& folder, const std::string& family, const std::string& form) {
  const fs::path path = folder / (family + "." + form);
  if (fs::exists(path)) return path;
  const outcome made = run("make-tiny-sd", {path, "--family", family, "--form", form});
  if (made.status != 0) throw std::runtime_error(made.err);
  return path;
}

/// All files below `root`, by relative path, with their contents.
inline std::map<std::string, std::string> contents(const fs::path& root) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(root))
    if (entry.is_regular_file()) files[fs::relative(entry.path(), root).string()] = read_text(entry.path());
  return files;
}

/// Names of all that lies directly in `root`, sorted; hidden ones too.
inline std::vector<std::string> listing(const fs::path& root) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(root)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// The graphs and weights of a written pipeline alone, so that two sources of one model can be compared.
inline std::map<std::string, std::string> model_files(const fs::path& root) {
  auto files = contents(root);
  std::erase_if(files, [](const auto& file) {
    const std::string name = fs::path(file.first).filename().string();
    return name != "model.onnx" && name != "model.onnx_data" && name != "weights.pb";
  });
  return files;
}

}  // namespace programs
