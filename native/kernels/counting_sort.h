#pragma once

#include <cstdint>

#include "native/core/status.h"

namespace cluster_attention::kernels {

/// Stable counting sort of the positions 0..length-1 of one sequence by their label: the members of
/// cluster c are order[offsets[c]] .. order[offsets[c + 1] - 1], ascending. -1 is in no cluster, so
/// offsets[clusters] may be less than length. Any other label outside 0..clusters-1 is an error at
/// base_index + position of `argument`.
Status sort_by_label(const int32_t* labels,  // (length)
                     int64_t length, int64_t clusters, const char* argument, int64_t base_index,
                     int32_t* offsets,  // (clusters+1)
                     int32_t* order);   // (length)

}  // namespace cluster_attention::kernels
