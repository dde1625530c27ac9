// Packing rows into lanes and back. Part of tile_kernels.inl.

/// A whole kWidth x kWidth block stays in registers: its loops are unrolled.
inline void pack_block(const float* const (&source)[kWidth], float* packed) {
  Vec block[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) block[i] = load(source[i]);
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) store(packed + i * kLanes, block[i]);
}

/// The last elements of a tile's rows.
void pack_edge(const float* const (&source)[kWidth], int64_t depth, float* packed) {
  for (int64_t i = 0; i < depth; ++i) {
    for (int64_t c = 0; c < kWidth; ++c) packed[i * kLanes + c] = source[c][i];
  }
}

void pack(const float* rows, int64_t row_stride, const int32_t* index, int64_t columns, int64_t dim,
          float* packed) {
  // rows: (columns, dim) -> packed: (dim, kLanes)
  const float none[kWidth] = {};
  for (int64_t first = 0; first < columns; first += kWidth) {
    const int64_t count = columns - first < kWidth ? columns - first : kWidth;
    const float* source[kWidth];
    for (int64_t i = 0; i < count; ++i) {
      source[i] = rows + (index != nullptr ? index[first + i] : first + i) * row_stride;
    }
    for (int64_t i = count; i < kWidth; ++i) source[i] = none;
    for (int64_t d = 0; d < dim; d += kWidth) {
      const int64_t depth = dim - d < kWidth ? dim - d : kWidth;
      float* target = packed + d * kLanes + first;
      if (depth == kWidth) {
        pack_block(source, target);
      } else {
        pack_edge(source, depth, target);
      }
      for (int64_t i = 0; i < count; ++i) source[i] += depth;
    }
  }
}

/// Scales and transposes a whole block; returns 0 in every lane while all of it is finite.
inline Vec unpack_block(const float* packed, Vec factor, float* const (&target)[kWidth]) {
  Vec block[kWidth];
  Vec poison = {};
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    block[i] = load(packed + i * kLanes) * factor;
    poison = poison + (block[i] - block[i]);
  }
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) store(target[i], block[i]);
  return poison;
}

/// The last elements of a tile's rows.
inline Vec unpack_edge(const float* packed, Vec factor, int64_t depth,
                       float* const (&target)[kWidth]) {
  Vec poison = {};
  for (int64_t i = 0; i < depth; ++i) {
    const Vec values = load(packed + i * kLanes) * factor;
    poison = poison + (values - values);
    for (int64_t c = 0; c < kWidth; ++c) target[c][i] = values[c];
  }
  return poison;
}

bool unpack(const float* packed, int64_t columns, int64_t dim, const float* factor, float* rows,
            int64_t row_stride, const int32_t* index) {
  // packed: (dim, kLanes) -> rows: (columns, dim)
  bool finite = true;
  float none[kWidth];  // takes what stands in lanes past the last column
  for (int64_t first = 0; first < columns; first += kWidth) {
    const int64_t count = columns - first < kWidth ? columns - first : kWidth;
    float scale[kWidth] = {};
    float* target[kWidth];
    for (int64_t i = 0; i < count; ++i) {
      scale[i] = factor != nullptr ? factor[first + i] : 1.0f;
      target[i] = rows + (index != nullptr ? index[first + i] : first + i) * row_stride;
    }
    for (int64_t i = count; i < kWidth; ++i) target[i] = none;
    Vec poison = {};  // a lane stays 0 while everything written from it is finite
    for (int64_t d = 0; d < dim; d += kWidth) {
      const int64_t depth = dim - d < kWidth ? dim - d : kWidth;
      const float* source = packed + d * kLanes + first;
      poison = poison + (depth == kWidth ? unpack_block(source, load(scale), target)
                                         : unpack_edge(source, load(scale), depth, target));
      for (int64_t i = 0; i < count; ++i) target[i] += depth;
    }
    for (int64_t i = 0; i < count; ++i) finite = finite && poison[i] == 0.0f;
  }
  return finite;
}
