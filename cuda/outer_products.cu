#include "cuda/launch.h"
#include "cuda/outer_products.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status add_outer_products(Session& session, OuterProductsParams params) {
  // grid: 64 x 64 sums x groups x parts of the rows; then one thread per sum
  constexpr int64_t kRowsPerPart = 512;
  constexpr int64_t kMostParts = 32;
  params.parts = params.rows / kRowsPerPart;
  if (params.parts < 1) params.parts = 1;
  if (params.parts > kMostParts) params.parts = kMostParts;
  params.flags = session.flags();
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(scope.allocate(&params.part, checked_size(params.parts, params.size())));
  const int64_t blocks = divide_up(params.left.columns, kTile) *
                         divide_up(params.right.columns, kTile) * params.groups * params.parts;
  CA_RETURN_IF_ERROR(
      launch(session, blocks, kTileThreads, outer_layout().bytes, sum_outer_products, params));
  return launch(session, divide_up(params.size(), kOuterMergeThreads), kOuterMergeThreads, 0,
                merge_outer_products, params);
}

}  // namespace cluster_attention::cuda
