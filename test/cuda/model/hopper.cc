#include "test/cuda/model/hopper.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "test/cuda/model/device.h"
#include "test/cuda/model/grid.h"
#include "test/cuda/model/tensor_core.h"

namespace cuda_model {

namespace {

/// An mbarrier in its eight bytes.
struct Barrier {
  uint16_t arrivals;
  uint16_t pending;
  int32_t phase : 1;
  int32_t
      bytes : 31;  // that have been expected and not arrived; less than 0 while none expects them
};
static_assert(sizeof(Barrier) == sizeof(uint64_t), "what shared memory has room for");

Barrier& barrier_at(uint64_t* barrier) { return *reinterpret_cast<Barrier*>(barrier); }

/// The end of a phase for which nothing is missing.
void end_phase(uint64_t* barrier) {
  Barrier& self = barrier_at(barrier);
  if (self.pending > 0 || self.bytes != 0) return;
  self.pending = self.arrivals;
  self.phase = ~self.phase;
}

void deliver(const Parcel& parcel) {
  std::memcpy(parcel.to, parcel.value, static_cast<size_t>(parcel.bytes));
  barrier_at(parcel.barrier).bytes -= parcel.bytes;
  end_phase(parcel.barrier);
}

/// What is at a place of a tile with 128-byte swizzle, by its place without it.
template <typename T>
T in_tile(uint64_t address) {
  address ^= (address >> 7 & 7) << 4;
  const unsigned char* const place = shared_memory() + address;
  note_read(place, sizeof(T));
  T value;
  std::memcpy(&value, place, sizeof value);
  return value;
}

struct Tile {
  uint64_t begin;
  uint64_t panel;       // to the next 64 columns of rows that are summed over
  uint64_t eight_rows;  // to the next eight rows

  explicit Tile(uint64_t descriptor)
      : begin((descriptor & 0x3fff) << 4),
        panel((descriptor >> 16 & 0x3fff) << 4),
        eight_rows((descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 62 != 1) note_fault("a tile without the swizzle of 128 bytes");
  }
  float element(int row, int column) const {
    const auto bits = in_tile<uint16_t>(row_begin(row) + static_cast<uint64_t>(column % 64 * 2) +
                                        static_cast<uint64_t>(column / 64) * panel);
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }
  int byte(int row, int column) const {
    return in_tile<int8_t>(row_begin(row) + static_cast<uint64_t>(column));
  }

 private:
  uint64_t row_begin(int row) const {
    return begin + static_cast<uint64_t>(row / 8) * eight_rows +
           static_cast<uint64_t>(row % 8 * 128);
  }
};

float half_of(uint32_t word, int index) {
  return __uint_as_float(index == 0 ? word << 16 : word & 0xffff0000u);
}

/// One product of all lanes of a warp.
struct WarpProduct {
  const Product* lanes[kLanes];

  const Product& any() const { return *lanes[0]; }
};

bool same_product(const Product& left, const Product& right) {
  return (left.sums == nullptr) == (right.sums == nullptr) && left.columns == right.columns &&
         (left.a == nullptr) == (right.a == nullptr) && left.a_tile == right.a_tile &&
         left.b_tile == right.b_tile && left.transposed == right.transposed &&
         left.add == right.add;
}

void fetch_a(const WarpProduct& warp, float (&a)[kTileRows][kTileDepth]) {
  if (warp.any().a == nullptr) {
    const Tile tile(warp.any().a_tile);
    const int first = static_cast<int>(threadIdx.x) / kLanes % 4 * kTileRows;  // of the warp
    for (int row = 0; row < kTileRows; ++row) {
      for (int k = 0; k < kTileDepth; ++k) a[row][k] = tile.element(first + row, k);
    }
    return;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 8; ++i) {
      a[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2] =
          half_of(warp.lanes[lane]->a[i / 2], i % 2);
    }
  }
}

void fetch_b(const Product& product, int first, float (&b)[kTileDepth][kTileColumns]) {
  const Tile tile(product.b_tile);
  for (int k = 0; k < kTileDepth; ++k) {
    for (int column = 0; column < kTileColumns; ++column) {
      b[k][column] =
          product.transposed ? tile.element(k, first + column) : tile.element(first + column, k);
    }
  }
}

/// Of bytes, those of A without sign.
void multiply_bytes(const WarpProduct& warp) {
  constexpr int kDepth = 32;
  const Product& product = warp.any();
  int a[kTileRows][kDepth];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 16; ++i) {
      a[lane / 4 + i / 4 % 2 * 8][lane % 4 * 4 + i / 8 * 16 + i % 4] =
          static_cast<int>(warp.lanes[lane]->a[i / 4] >> (i % 4 * 8) & 0xff);
    }
  }
  const Tile tile(product.b_tile);
  for (int column = 0; column < product.columns; ++column) {
    int b[kDepth];
    for (int k = 0; k < kDepth; ++k) b[k] = tile.byte(column, k);
    for (int row = 0; row < kTileRows; ++row) {
      int sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k];
      int32_t& d =
          warp.lanes[row % 8 * 4 + column % 8 / 2]->sums[column / 8 * 4 + row / 8 * 2 + column % 2];
      d = product.add ? d + sum : sum;
    }
  }
}

void multiply(const WarpProduct& warp) {
  if (warp.any().sums != nullptr) {
    multiply_bytes(warp);
    return;
  }
  TileProduct tile;
  fetch_a(warp, tile.a);
  for (int first = 0; first < warp.any().columns; first += kTileColumns) {
    fetch_b(warp.any(), first, tile.b);
    const auto for_sums = [&](auto function) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          function(warp.lanes[lane]->d[first / 2 + i],
                   tile.d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
        }
      }
    };
    for_sums([&](float d, float& sum) { sum = warp.any().add ? d : 0.0f; });
    multiply_tile(tile);
    for_sums([](float& d, float sum) { d = sum; });
  }
}

/// A group of products, of each lane.
void multiply_group(void* const (&lanes)[kLanes]) {
  const auto group_of = [&](int lane) -> const std::vector<Product>& {
    return *static_cast<const std::vector<Product>*>(lanes[lane]);
  };
  for (size_t i = 0; i < group_of(0).size(); ++i) {
    WarpProduct warp;
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::vector<Product>& group = group_of(lane);
      if (group.size() != group_of(0).size() || !same_product(group[i], group_of(0)[i])) {
        note_fault("the lanes of a warp wait for different products");
        return;
      }
      warp.lanes[lane] = &group[i];
    }
    multiply(warp);
  }
}

}  // namespace

uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - shared_memory());
}

void initialize_barrier(uint64_t* barrier, int arrivals) {
  note_write(barrier, sizeof *barrier);
  const auto count = static_cast<uint16_t>(arrivals);
  barrier_at(barrier) = {count, count, 0, 0};
}

void invalidate_barrier(uint64_t* barrier) {
  note_write(barrier, sizeof *barrier);
  *barrier = ~uint64_t{0};
}

void arrive(uint64_t* barrier) { arrive_expecting(barrier, 0); }

void arrive_expecting(uint64_t* barrier, int bytes) {
  note_read(barrier, sizeof *barrier);
  publish(barrier);
  Barrier& self = barrier_at(barrier);
  if (self.pending == 0) note_fault("more threads arrive at a barrier than it waits for");
  --self.pending;
  self.bytes += bytes;
  end_phase(barrier);
}

void store_in_block(void* own, int rank, const void* value, int bytes, uint64_t* barrier) {
  const auto place_there = [rank](void* place) {
    return shared_memory_of(rank) + (static_cast<unsigned char*>(place) - shared_memory());
  };
  Parcel parcel{place_there(own), {}, bytes, reinterpret_cast<uint64_t*>(place_there(barrier))};
  std::memcpy(parcel.value, value, static_cast<size_t>(bytes));
  if (reinterpret_cast<uintptr_t>(parcel.to) % static_cast<uintptr_t>(bytes) != 0) {
    note_fault("a misaligned store in another block");
  }
  note_write(parcel.to, static_cast<size_t>(bytes));
  note_read(parcel.barrier, sizeof *parcel.barrier);
  publish(parcel.barrier);
  const Unwatched noted;
  if (toss()) {
    deliver(parcel);
  } else {
    parcels_of(rank).push_back(parcel);
  }
}

bool deliver_parcels(int rank) {
  const Unwatched noted;  // when they were sent
  std::vector<Parcel> parcels = std::exchange(parcels_of(rank), {});
  const auto later =
      std::stable_partition(parcels.begin(), parcels.end(), [](const Parcel&) { return !toss(); });
  const bool some = later != parcels.begin();
  std::for_each(parcels.begin(), some ? later : parcels.end(), deliver);
  if (some) parcels_of(rank).assign(later, parcels.end());
  return !parcels.empty();
}

void wait_for(uint64_t* barrier, uint32_t parity) {
  note_read(barrier, sizeof *barrier);
  const Barrier& self = barrier_at(barrier);
  wait_until([&] { return (self.phase != 0 ? 1u : 0u) != parity; });
  observe(barrier);
}

void sync_named(int name, int threads) {
  NamedBarrier& self = named_barrier(name);
  const unsigned generation = self.generation;
  const char* const place = self.places + generation % 2;
  publish(place);
  if (++self.waiting == threads) {
    self.waiting = 0;
    ++self.generation;
  } else {
    wait_until([&] { return self.generation != generation; });
  }
  observe(place);
}

// Whoever runs the grid takes the lists apart, wherever their threads have ended.
void start_product(const Product& product) {
  const Unwatched noted;
  products_of_running_thread().open.push_back(product);
}

void commit_products() {
  const Unwatched noted;
  Products& self = products_of_running_thread();
  self.groups.push_back(std::exchange(self.open, {}));
}

void wait_products(int groups_left) {
  Products& self = products_of_running_thread();
  const auto take = [&](std::vector<Product>& group) {
    const Unwatched noted;
    if (self.groups.size() <= static_cast<size_t>(groups_left)) return false;
    group = std::move(self.groups.front());
    self.groups.pop_front();
    return true;
  };
  for (std::vector<Product> group; take(group);) as_warp(kProducts, &group, multiply_group);
}

}  // namespace cuda_model
