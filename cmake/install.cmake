# SPDX-License-Identifier: MIT
#
# `cmake --install` and find_package(tensorsmith CONFIG). The component "library" is the headers and the package files
# alone: nothing needs to have been built for it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/tensorsmith)

install(DIRECTORY include/tensorsmith DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library
  FILES_MATCHING PATTERN "*.hpp")
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/tensorsmith COMPONENT library)
install(TARGETS tensorsmith EXPORT tensorsmith-targets)
install(EXPORT tensorsmith-targets NAMESPACE tensorsmith:: DESTINATION ${package_dir} COMPONENT library)

configure_package_config_file(cmake/tensorsmith-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/tensorsmith-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/tensorsmith-config-version.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/tensorsmith-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/tensorsmith-config-version.cmake
  cmake/tensorsmith-dependencies.cmake
  DESTINATION ${package_dir} COMPONENT library)
