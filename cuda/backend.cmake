# The CUDA backend: a library of its own beside the addon, which opens it when a GPU is asked for.
# Without nvcc it is left out, and the package computes on the CPU alone.

set(CA_CUDA_ARCHITECTURES "" CACHE STRING
    "GPUs to compile for, as CMAKE_CUDA_ARCHITECTURES; 'release' for all, empty for this machine's")
# One per generation: code for 8.0 also runs on 8.6 and 8.9. The intermediate code of 8.0, which holds
# all that the kernels ask for, is what the driver translates for every GPU that has none of its own.
set(CA_CUDA_RELEASE_ARCHITECTURES 75-real 80 90a-real 100-real 120-real)

# nvcc wherever it is usually installed, on PATH or not. Sets CA_NVCC.
function(ca_find_nvcc)
  set(places "")
  if(DEFINED ENV{CUDA_HOME})
    list(APPEND places $ENV{CUDA_HOME}/bin)
  endif()
  list(APPEND places /usr/local/cuda/bin /opt/cuda/bin)
  if(DEFINED ENV{CUDACXX} AND EXISTS "$ENV{CUDACXX}")
    set(CA_NVCC "$ENV{CUDACXX}" CACHE FILEPATH "The CUDA compiler")
  endif()
  find_program(CA_NVCC nvcc HINTS ${places} DOC "The CUDA compiler")
endfunction()

# What to compile for: as asked, else the GPU of this machine, else Hopper.
function(ca_choose_architectures result)
  set(chosen ${CA_CUDA_ARCHITECTURES})
  if(chosen STREQUAL "release")
    set(chosen ${CA_CUDA_RELEASE_ARCHITECTURES})
  elseif(NOT chosen)
    set(chosen 90a-real)
    find_program(CA_NVIDIA_SMI nvidia-smi)
    if(CA_NVIDIA_SMI)
      execute_process(COMMAND ${CA_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                      OUTPUT_VARIABLE capability ERROR_QUIET TIMEOUT 20)
      if(capability MATCHES "^([0-9]+)\\.([0-9])")
        set(chosen ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
        if(chosen STREQUAL "90")
          set(chosen 90a)
        endif()
        string(APPEND chosen "-real")
      endif()
    endif()
  endif()
  set(${result} ${chosen} PARENT_SCOPE)
endfunction()

# "75-real;120" as cuda/targets.h reads it: "75,120,120-ptx".
function(ca_name_targets result)
  set(names "")
  foreach(architecture ${ARGN})
    if(architecture MATCHES "^(.*)-real$")
      list(APPEND names ${CMAKE_MATCH_1})
    elseif(architecture MATCHES "^(.*)-virtual$")
      list(APPEND names ${CMAKE_MATCH_1}-ptx)
    else()
      list(APPEND names ${architecture} ${architecture}-ptx)
    endif()
  endforeach()
  string(REPLACE ";" "," names "${names}")  # a definition with semicolons would be several
  set(${result} "CA_CUDA_TARGETS=\"${names}\"" PARENT_SCOPE)
endfunction()

file(GLOB_RECURSE CA_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cu)
file(GLOB CA_CUDA_TEST_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/test/cuda/*.cu)

# ---- the real one -----------------------------------------------------------------------------

if(CA_BUILD_CUDA OR CA_BUILD_CUDA_BENCHMARKS OR (CA_BUILD_CUDA_TESTS AND NOT CA_CUDA_MODEL))
  ca_find_nvcc()
  if(CA_NVCC)
    ca_choose_architectures(CMAKE_CUDA_ARCHITECTURES)
    set(ENV{CUDACXX} ${CA_NVCC})
    include(CheckLanguage)
    check_language(CUDA)  # an nvcc that does not work with this C++ compiler counts as none
  endif()
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13)  # before minutes of compiling have passed
      message(FATAL_ERROR "The CUDA backend needs nvcc 13 or newer; "
              "${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}")
    endif()
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
    ca_name_targets(CA_CUDA_TARGETS_DEFINITION ${CMAKE_CUDA_ARCHITECTURES})
    message(STATUS "CUDA backend for ${CMAKE_CUDA_ARCHITECTURES}")
    add_library(ca_cuda OBJECT ${CA_CUDA_SOURCES})
    # Functions of native/core that are constexpr in the standard library may be called by kernels.
    target_compile_options(ca_cuda PUBLIC $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
    # A fifth of the size.
    target_compile_options(ca_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>)
    target_compile_definitions(ca_cuda PRIVATE ${CA_CUDA_TARGETS_DEFINITION})
    set_target_properties(ca_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  else()
    message(STATUS "No working nvcc: the CUDA backend is left out")
  endif()
endif()

if(CA_BUILD_CUDA AND TARGET ca_cuda)
  add_library(cluster_attention_cuda MODULE $<TARGET_OBJECTS:ca_cuda>)
  # Never ".node": tools that look for an addon take the first file of that name.
  set_target_properties(cluster_attention_cuda PROPERTIES PREFIX "" SUFFIX ".so"
    LINKER_LANGUAGE CUDA CUDA_RUNTIME_LIBRARY Static
    LIBRARY_OUTPUT_DIRECTORY ${CA_OUTPUT_DIRECTORY})
  target_link_options(cluster_attention_cuda PRIVATE -Wl,--exclude-libs,ALL)
endif()

if(CA_BUILD_CUDA_TESTS AND TARGET ca_cuda)
  add_executable(cuda_tests ${CA_CUDA_TEST_SOURCES} $<TARGET_OBJECTS:ca_cuda>)
  target_compile_options(cuda_tests PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
  set_target_properties(cuda_tests PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(cuda_tests PRIVATE ca_test_support ca_kernels Threads::Threads)
endif()

if(CA_BUILD_CUDA_BENCHMARKS AND TARGET ca_cuda)
  file(GLOB CA_CUDA_BENCHMARK_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/bench/cuda/*.cu)
  add_executable(cuda_bench ${CA_CUDA_BENCHMARK_SOURCES} $<TARGET_OBJECTS:ca_cuda>)
  target_compile_options(cuda_bench PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
  set_target_properties(cuda_bench PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(cuda_bench PRIVATE ca_kernels Threads::Threads)
endif()

# ---- on a model of CUDA -----------------------------------------------------------------------

if(CA_CUDA_MODEL AND CA_BUILD_CUDA_TESTS)
  # Each .cu as C++: one file that includes it.
  function(ca_wrap_sources result)
    set(wrapped "")
    foreach(source ${ARGN})
      file(RELATIVE_PATH name ${CMAKE_CURRENT_SOURCE_DIR} ${source})
      set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/cuda_model/${name}.cc)
      file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${name}\"\n")
      list(APPEND wrapped ${wrapper})
    endforeach()
    set(${result} ${wrapped} PARENT_SCOPE)
  endfunction()

  file(GLOB CA_MODEL_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/test/cuda/model/*.cc)
  list(FILTER CA_MODEL_SOURCES EXCLUDE REGEX "_test\\.cc$")
  file(GLOB CA_MODEL_TEST_SOURCES CONFIGURE_DEPENDS
       ${CMAKE_CURRENT_SOURCE_DIR}/test/cuda/model/*_test.cc)
  ca_wrap_sources(CA_WRAPPED_SOURCES ${CA_CUDA_SOURCES})
  ca_wrap_sources(CA_WRAPPED_TEST_SOURCES ${CA_CUDA_TEST_SOURCES})

  add_library(ca_cuda_model OBJECT ${CA_WRAPPED_SOURCES} ${CA_MODEL_SOURCES})
  target_compile_definitions(ca_cuda_model PUBLIC CA_CUDA_MODEL PRIVATE
    "CA_CUDA_TARGETS=\"75,80,90a,120\"")
  target_compile_options(ca_cuda_model PUBLIC -Wno-unknown-pragmas)  # "unroll" is for nvcc
  # Vectors of eight floats on any instruction set: no function that takes one is called from
  # elsewhere.
  set_source_files_properties(${CMAKE_CURRENT_SOURCE_DIR}/test/cuda/model/tensor_core.cc PROPERTIES
    COMPILE_OPTIONS "-Wno-psabi")
  if(CMAKE_CXX_FLAGS MATCHES "fsanitize=thread")
    # The model notes what orders the threads of kernels, and is not watched itself.
    target_compile_definitions(ca_cuda_model PUBLIC CA_MODEL_WATCHES_RACES)
    set_property(SOURCE ${CA_MODEL_SOURCES} APPEND PROPERTY COMPILE_OPTIONS "-fno-sanitize=thread")
  endif()
  target_include_directories(ca_cuda_model PUBLIC
    ${CMAKE_CURRENT_SOURCE_DIR}/test/cuda/model/include)

  add_executable(cuda_tests_model ${CA_WRAPPED_TEST_SOURCES} ${CA_MODEL_TEST_SOURCES})
  target_link_libraries(cuda_tests_model PRIVATE
    ca_cuda_model ca_test_support ca_kernels Threads::Threads)
  target_compile_options(cuda_tests_model PRIVATE ${CA_TEST_OPTIONS})
  set_target_properties(cuda_tests_model PROPERTIES OUTPUT_NAME cuda_tests)

  # A backend for the tests of the addon, which open it in the place of the real one.
  add_library(cluster_attention_cuda_model MODULE $<TARGET_OBJECTS:ca_cuda_model>)
  set_target_properties(cluster_attention_cuda_model PROPERTIES PREFIX "" SUFFIX ".so"
    OUTPUT_NAME cluster_attention_cuda
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/model)
endif()
