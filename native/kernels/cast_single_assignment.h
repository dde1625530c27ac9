#pragma once

// Single assignment of CAST (§7, step 3): tokens by descending best affinity; each goes to its best
// cluster that still has room.
//
// Method: of its affinities a token keeps the names of its best few clusters with room, so that
// memory does not grow with tokens times clusters. Tokens are served in their order until the
// clusters of one are all full; then it and those that are served soon choose again, among the
// clusters that still have room. What is full stays full: a choice made earlier only has too many
// candidates, never too few, and each token goes where it would with all affinities at hand.
//
// A next round of choices is needed only when kClusterChoices clusters have filled up since the
// last one, or its window of kClusterChoices kappa tokens has been served: all rounds together form
// the affinities of at most some 2 N tokens again, C kappa being about N.

#include "native/kernels/cast_affinity.h"

namespace cluster_attention::kernels {

/// Lets a tile of consecutive tokens choose for the first time.
void choose_clusters(const CastState& state, const CastSequence& sequence, const TokenTile& tile,
                     int worker);

/// Members and counts of the first `count` sequences of the group, all tokens of which have chosen.
Status assign_tokens(const CastState& state, int64_t count);

}  // namespace cluster_attention::kernels
