# Turns test/cases.json into the initialisers of test/native/cases.cc, so that the C++ tests walk
# the same table as the tests and benchmarks in JavaScript, without a JSON parser in C++.

set(CA_CASES_JSON ${CMAKE_CURRENT_LIST_DIR}/../cases.json)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CA_CASES_JSON})

function(ca_write_cases output)
  file(READ ${CA_CASES_JSON} text)
  string(JSON cases GET "${text}" cases)
  string(JSON count LENGTH "${cases}")
  math(EXPR last "${count} - 1")
  set(lines "")
  foreach(i RANGE ${last})
    string(JSON case GET "${cases}" ${i})
    string(JSON name GET "${case}" name)
    string(JSON layout GET "${case}" layout)
    string(TOLOWER ${layout} layout)
    set(line "{\"${name}\"")
    foreach(field batch heads queryLength keyLength headDim valueDim clusters topK clusterSize bits)
      string(JSON value GET "${case}" ${field})
      string(APPEND line ", ${value}")
    endforeach()
    string(APPEND line ", Layout::${layout}")
    foreach(field queryLengths keyLengths)
      string(JSON value GET "${case}" ${field})  # "[ 1, 2 ]", or nothing for null
      string(REGEX REPLACE "[][\n ]" "" value "${value}")
      string(APPEND line ", {${value}}")
    endforeach()
    string(APPEND lines "${line}},\n")
  endforeach()
  file(CONFIGURE OUTPUT ${output} CONTENT "${lines}" @ONLY)
endfunction()

ca_write_cases(${CMAKE_CURRENT_BINARY_DIR}/test/native/cases.inc)
