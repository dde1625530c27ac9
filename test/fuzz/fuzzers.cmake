# The libFuzzer target of the addon's operations; needs clang. scripts/fuzz.cjs builds and runs it.
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "CA_BUILD_FUZZERS needs clang: set CMAKE_CXX_COMPILER")
endif()
file(GLOB CA_FUZZ_SOURCES CONFIGURE_DEPENDS test/fuzz/*.cc native/binding/*.cc)
add_executable(fuzz_operations ${CA_FUZZ_SOURCES})
target_link_libraries(fuzz_operations PRIVATE ca_kernels Threads::Threads)
target_include_directories(fuzz_operations SYSTEM PRIVATE ${CA_NODE_INCLUDE_DIRS})
target_compile_definitions(fuzz_operations PRIVATE
  NAPI_VERSION=8 CA_PACKAGE_VERSION="${CA_PACKAGE_VERSION}")
target_link_options(fuzz_operations PRIVATE -fsanitize=fuzzer,address,undefined)
