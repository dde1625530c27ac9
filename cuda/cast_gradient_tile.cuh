#pragma once

// What the blocks of the backward of CAST have in common: 64 rows that attend to tiles of 64
// columns. Both sides have a row of D numbers, whose product is the score, and one of E numbers,
// whose product is the gradient by the weight; what is summed over the columns is weighted by
// either.

#include "cuda/cast_gradient_params.cuh"
#include "cuda/column_softmax.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/row_softmax.cuh"

namespace cluster_attention::cuda {

struct CastGradientLayout {
  int64_t data;
  int64_t column;
  int64_t head;
  int64_t value;
  int64_t bytes;
};

/// `Data`: what a kernel knows of its rows and columns. The column tile has room for so many bytes.
template <typename Data, bool kSplit>
CA_HOST_DEVICE CastGradientLayout cast_gradient_layout(int head_tiles, int value_tiles,
                                                       int64_t column_bytes = 0) {
  constexpr auto kColumn = static_cast<int64_t>(sizeof(OperandTile<kSplit>));
  SharedLayout parts;
  CastGradientLayout layout;
  layout.data = parts.add<Data>(1);
  layout.column = parts.add<unsigned char>(kColumn > column_bytes ? kColumn : column_bytes);
  layout.head = parts.add<OperandTile<kSplit>>(head_tiles);
  layout.value = parts.add<OperandTile<kSplit>>(value_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

/// One side of the products.
struct CastSide {
  Rows head;   // D columns
  Rows value;  // E columns
  const int32_t* position;

  __device__ CastSide(const Rows& head_rows, const Rows& value_rows, const int32_t* positions)
      : head(head_rows), value(value_rows), position(positions) {}
};

template <bool kSplit>
class CastProducts {
 public:
  __device__ CastProducts(const CastGradientParams& params, const CastGradientLayout& layout)
      : params_(params),
        column_tile_(dynamic_shared<OperandTile<kSplit>>(layout.column)),
        head_tiles_(dynamic_shared<OperandTile<kSplit>>(layout.head)),
        value_tiles_(dynamic_shared<OperandTile<kSplit>>(layout.value)) {}

  /// products = rows.columns of D numbers, changes (where wanted) of E numbers. The positions must
  /// be visible, and the tiles free, to all threads.
  __device__ void multiply(TileSums& products, TileSums& changes, bool with_changes,
                           const CastSide& rows, const CastSide& columns, bool load_rows) {
    clear(products);
    clear(changes);
    if (with_changes) {
      multiply_rows(changes, value_tiles_, params_.value_tiles, load_rows, rows.value,
                    rows.position, *column_tile_, columns.value, columns.position,
                    params_.forward.value_dim);
      __syncthreads();  // the column tile is used up
    }
    multiply_rows(products, head_tiles_, params_.head_tiles, load_rows, rows.head, rows.position,
                  *column_tile_, columns.head, columns.position, params_.forward.dim);
    held_ = (tiles_of(params_.forward.dim) - 1) * kTile;
  }

  /// output += weights x the columns' D numbers from `first` on.
  __device__ void add_head_rows(TileSums& output, const TileSums& weights, const CastSide& columns,
                                int64_t first) {
    if (held_ != first) load(columns.head, columns.position, first, params_.forward.dim);
    held_ = first;
    add_values(output, weights, *column_tile_, params_.forward.dim - first);
  }
  /// output += weights x the columns' E numbers from `first` on.
  __device__ void add_value_rows(TileSums& output, const TileSums& weights, const CastSide& columns,
                                 int64_t first) {
    load(columns.value, columns.position, first, params_.forward.value_dim);
    held_ = kNothing;
    add_values(output, weights, *column_tile_, params_.forward.value_dim - first);
  }

 private:
  static constexpr int64_t kNothing = -1;

  __device__ void load(const Rows& rows, const int32_t* position, int64_t first, int64_t width) {
    __syncthreads();  // the column tile is used up
    load_tile(*column_tile_, rows, position, first, width);
    __syncthreads();
  }

  const CastGradientParams& params_;
  OperandTile<kSplit>* column_tile_;
  OperandTile<kSplit>* head_tiles_;
  OperandTile<kSplit>* value_tiles_;
  int64_t held_ = kNothing;  // the first of the D numbers in the column tile
};

/// The members of a cluster of one sequence. Their queries, and the surrogate's as one more, attend
/// to their keys; the kernels along either differ in which of the two sides are the rows.
struct CastClusterMembers {
  const CastGradientParams& params;
  int64_t batch;
  int64_t head;
  int64_t cluster;
  int64_t list;      // (batch, cluster)
  int64_t row_list;  // (sequence, cluster)
  int64_t size;

  __device__ CastClusterMembers(const CastGradientParams& all, int64_t sequence, int64_t which)
      : params(all),
        batch(sequence / all.forward.heads),
        head(sequence % all.forward.heads),
        cluster(which),
        list(batch * all.forward.clusters + which),
        row_list(sequence * all.forward.clusters + which),
        size(all.forward.counts[list]) {}

  __device__ int32_t token(int64_t slot) const {
    return params.forward.members[list * params.forward.cluster_size + slot];
  }
  /// A key of the tile; past the last member there is none.
  __device__ void open_key(int64_t slot, int32_t& position, float& factor) const {
    const CastParams& forward = params.forward;
    const int32_t member = slot < size ? token(slot) : kNoRow;
    position = member;
    factor = member >= 0 ? forward.key_factor[batch * forward.tokens + member] : 0.0f;
  }

  __device__ CastSide queries(const int32_t* position) const {
    const CastParams& forward = params.forward;
    CastSide side(Rows(forward.query, batch, head), Rows(params.output_gradient, batch, head),
                  position);
    side.head.extra = forward.surrogates.data + forward.surrogates.offset(0, head) +
                      cluster * forward.surrogates.row_stride;
    side.value.extra = params.summary_gradient + row_list * forward.value_dim;
    return side;
  }
  __device__ CastSide keys(const int32_t* position) const {
    return {Rows(params.forward.key, batch, head), Rows(params.forward.value, batch, head),
            position};
  }
};

/// Rows of a dense (rows,columns) array of floats.
__device__ inline Rows dense_rows_of(const float* data, int64_t columns) {
  Rows rows;
  rows.data = data;
  rows.stride = columns;
  return rows;
}

/// body(n, i, row, column) for every element of this thread.
template <typename Body>
__device__ void for_each_sum(Body&& body) {
  const TilePlace place;
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) body(n, i, place.row(i / 2), place.column(n, i % 2));
  }
}

}  // namespace cluster_attention::cuda
