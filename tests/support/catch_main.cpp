// SPDX-License-Identifier: MIT
//
// The main() of every test program. A program without a test case, and a test case without an assertion, fail: nothing
// here may pass by doing nothing.
#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#include <catch2/catch_test_case_info.hpp>
#include <catch2/internal/catch_test_case_registry_impl.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <cstdio>

int main(int argc, char** argv) {
  Catch::Session session;
  if (const int failed = session.applyCommandLine(argc, argv); failed != 0) return failed;
  auto& options = session.configData();
  options.warnings = static_cast<decltype(options.warnings)>(options.warnings | Catch::WarnAbout::NoAssertions);
  if (Catch::getAllTestCasesSorted(session.config()).empty()) {
    std::fputs("this test program holds no test case\n", stderr);
    return 1;
  }
  return session.run();
}
