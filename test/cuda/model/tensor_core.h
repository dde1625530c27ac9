#pragma once

// The arithmetic of tensor cores on bfloat16, with its errors (Fasi et al. 2021; Khattak and
// Mikaitis 2025): products are exact, but all terms of a sum are cut, toward 0, to the places that
// are kept of the largest, and so is the result: long sums of one sign come out too small.

namespace cuda_model {

constexpr int kTileRows = 16;
constexpr int kTileColumns = 8;
constexpr int kTileDepth = 16;

/// A product D (16,8) += A (16,16) B (16,8), by rows.
struct TileProduct {
  float a[kTileRows][kTileDepth];
  alignas(32) float b[kTileDepth][kTileColumns];
  alignas(32) float d[kTileRows][kTileColumns];
};
void multiply_tile(TileProduct& product);

}  // namespace cuda_model
