#pragma once

#include <cstdint>

#include "native/core/status.h"

namespace cluster_attention::kernels {

/// Stable counting sort of the positions 0..length-1 of one sequence by their label: the members of
/// cluster c are order[offsets[c]] .. order[offsets[c + 1] - 1], ascending. -1 is in no cluster, so
/// offsets[clusters] may be less than length. Any other label outside 0..clusters-1 is an error at
/// base_index + position of `argument`. Position is int32_t or int64_t.
template <typename Position>
Status sort_by_label(const int32_t* labels,  // (length)
                     int64_t length, int64_t clusters, const char* argument, int64_t base_index,
                     Position* offsets,  // (clusters+1)
                     Position* order);   // (length)

}  // namespace cluster_attention::kernels
