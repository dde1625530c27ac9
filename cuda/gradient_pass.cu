#include "cuda/gradient_pass.cuh"
#include "cuda/launch.h"
#include "cuda/widths.h"

namespace cluster_attention::cuda {

namespace {

template <int kWidth, bool kSplit>
Status start(Session& session, const GradientPass& pass) {
  // grid: (sequences * slices * (tiles of keys + tiles of rows * parts))
  using Sizes = GradientSizes<kWidth, kSplit>;
  GradientPassParams params = {};
  params.pass = pass;
  params.flags = session.flags();
  const bool wants_keys = pass.key.data != nullptr || pass.value.data != nullptr;
  const bool wants_rows = pass.query.data != nullptr || pass.partial != nullptr;
  const int64_t blocks_per_tile = pass.batch * pass.heads * Sizes::kSlices;
  int64_t blocks = 0;
  // Rows do not depend on who shares their block: fewer warps give the same bits.
  for (int64_t warps = kGradientWarps;; warps /= 2) {
    params.key_tiles = wants_keys ? divide_up(pass.keys, Sizes::kWarpRows * warps) : 0;
    params.row_tiles = wants_rows ? divide_up(pass.rows, Sizes::kWarpRows * warps) : 0;
    params.key_blocks = blocks_per_tile * params.key_tiles;
    blocks = params.key_blocks + blocks_per_tile * params.row_tiles * pass.parts;
    const int64_t bytes = bytes_of_block<Sizes>(session, warps);
    const bool fits = bytes <= session.shared_bytes() && blocks >= session.multiprocessors();
    if (fits || warps == 1) {
      return launch(session, blocks, kWarp * warps, bytes, pass_gradients<kWidth, kSplit>, params);
    }
  }
}

}  // namespace

Status gradient_pass(Session& session, const GradientPass& pass) {
  return with_width(pass.head_dim, pass.value_dim, [&](auto width) {
    return with_split(pass.split, [&](auto split) {
      return start<decltype(width)::value, decltype(split)::value>(session, pass);
    });
  });
}

}  // namespace cluster_attention::cuda
