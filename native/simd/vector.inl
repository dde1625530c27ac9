// One SIMD vector of floats, CA_WIDTH wide, on the compiler's vector extensions. No include guard
// and no templates of the standard library: this file is included once by each target file, inside
// that target's own unnamed namespace, so that the linker can never take code of one instruction
// set for another.

typedef float Vec __attribute__((vector_size(CA_WIDTH * 4)));
typedef int32_t IntVec __attribute__((vector_size(CA_WIDTH * 4)));
/// The bits of floats, whose sums may wrap: in a lane that is a NaN they do.
typedef uint32_t BitVec __attribute__((vector_size(CA_WIDTH * 4)));
typedef float UnalignedVec __attribute__((vector_size(CA_WIDTH * 4), aligned(4), may_alias));
typedef int32_t UnalignedIntVec __attribute__((vector_size(CA_WIDTH * 4), aligned(4), may_alias));

constexpr int kWidth = CA_WIDTH;
constexpr float kInfinity = __builtin_inff();

/// The lane numbers 0..kWidth-1 as a parameter pack, for what must be spelt out lane by lane.
template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using Type = Lanes<I...>;
};

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline IntVec load(const int32_t* p) { return *reinterpret_cast<const UnalignedIntVec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }
inline void store(int32_t* p, IntVec x) { *reinterpret_cast<UnalignedIntVec*>(p) = x; }

// Spelt out because Vec{} + x is an addition to the compiler: 0 + -0 is not -0.
template <typename V, typename T, int... I>
inline V broadcast_lanes(T x, Lanes<I...>) {
  return V{(static_cast<void>(I), x)...};
}
inline Vec broadcast(float x) {
  return broadcast_lanes<Vec>(x, typename MakeLanes<kWidth>::Type{});
}
inline IntVec broadcast(int32_t x) {
  return broadcast_lanes<IntVec>(x, typename MakeLanes<kWidth>::Type{});
}

/// Reads count < kWidth floats; the other lanes are 0.
inline Vec load_partial(const float* p, int64_t count) {
#if defined(__AVX512F__) && CA_WIDTH == 16
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#else
  Vec x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
#endif
}

inline Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline IntVec select(IntVec mask, IntVec yes, IntVec no) { return mask ? yes : no; }

// max(a, b): the larger one; min(a, b): the smaller one; both `b` when either is NaN. Compilers do
// not find the one instruction that does this in a comparison and a choice.
#if defined(__AVX512F__) && CA_WIDTH == 16
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline uint32_t not_less_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
inline uint32_t greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
#elif defined(__AVX2__) && CA_WIDTH == 8
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline uint32_t not_less_equal(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)));
}
inline uint32_t greater(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
#else
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
#if defined(__ARM_NEON) && CA_WIDTH == 4
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
#else
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
#endif
/// One bit per lane of a comparison's result.
inline uint32_t lane_bits(IntVec mask) {
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= (static_cast<uint32_t>(mask[i]) & 1u) << i;
  return bits;
}
inline uint32_t not_less_equal(Vec a, Vec b) { return lane_bits(~(a <= b)); }
inline uint32_t greater(Vec a, Vec b) { return lane_bits(a > b); }
#endif

inline bool any(IntVec mask) {
  int32_t joined = 0;
  for (int i = 0; i < kWidth; ++i) joined |= mask[i];
  return joined != 0;
}

/// 2^x for x < 128, relative error below 1e-7; 0 below 2^-126, NaN stays NaN whatever its payload,
/// which the exponent would make a number of. The polynomial is the minimax one of degree 6 on
/// [-1/2, 1/2] (relative error 1.9e-9 before rounding).
inline Vec exp2(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec clamped = max(broadcast(-126.0f), x);
  const Vec shifted = clamped + magic;
  const Vec r = clamped - (shifted - magic);
  Vec p = broadcast(0x1.41d334p-13f);
  p = fma(p, r, broadcast(0x1.5f456ap-10f));
  p = fma(p, r, broadcast(0x1.3b2dbcp-7f));
  p = fma(p, r, broadcast(0x1.c6aed4p-5f));
  p = fma(p, r, broadcast(0x1.ebfbdap-3f));
  p = fma(p, r, broadcast(0x1.62e430p-1f));
  p = fma(p, r, broadcast(1.0f));
  const BitVec exponent = reinterpret_cast<BitVec>(shifted) << 23;
  const BitVec bits = reinterpret_cast<BitVec>(p) + exponent;
  // What was clamped left no rest, and a NaN leaves itself.
  return x >= broadcast(-126.0f) ? reinterpret_cast<Vec>(bits) : r;
}

/// Logits this large (in base 2) lose more by the rounding of their maximum than exp2 can bear.
constexpr float kLargeLogit = 1048576.0f;

inline bool any_large(Vec maximum) {
  return any((maximum > broadcast(kLargeLogit)) | (maximum < broadcast(-kLargeLogit)));
}

/// 2^(x * scale - maximum) for a maximum that is itself a rounded product. The fused difference is
/// the accurate one: what the rounding of the maximum lost is then common to all weights of a row.
/// Where logits are large that common factor could leave the range of exponents; there the product
/// is rounded like the maximum. `kLarge` says that some lane may be large; each lane decides alone.
template <bool kLarge>
inline Vec weigh(Vec x, Vec scale, Vec maximum) {
  const Vec fused = fma(x, scale, -maximum);
  if (!kLarge) return exp2(fused);
  const Vec rounded = x * scale - maximum;
  const IntVec large = (maximum > broadcast(kLargeLogit)) | (maximum < broadcast(-kLargeLogit));
  return exp2(select(large, rounded, fused));
}

// ---- across the lanes of a vector -------------------------------------------------------------

/// Lane i of the result is lane i ^ distance of x.
template <int distance, int... I>
inline Vec swap_lanes(Vec x, Lanes<I...>) {
  return __builtin_shufflevector(x, x, (I ^ distance)...);
}

/// The largest lane, in every lane.
template <int distance = kWidth / 2>
inline Vec highest_lane(Vec x) {
  x = max(x, swap_lanes<distance>(x, typename MakeLanes<kWidth>::Type{}));
  if constexpr (distance > 1) return highest_lane<distance / 2>(x);
  return x;
}

/// The sum of all lanes, in every lane: the same bits, since addition commutes.
template <int distance = kWidth / 2>
inline Vec sum_lanes(Vec x) {
  x = x + swap_lanes<distance>(x, typename MakeLanes<kWidth>::Type{});
  if constexpr (distance > 1) return sum_lanes<distance / 2>(x);
  return x;
}

// ---- transposition of a kWidth x kWidth block ------------------------------------------------

/// One butterfly of Eklundh's transposition: swaps blocks of `distance` lanes between two rows.
template <int distance, int... I>
inline void exchange(Vec& a, Vec& b, Lanes<I...>) {
  const Vec low =
      __builtin_shufflevector(a, b, ((I & distance) == 0 ? I : kWidth + I - distance)...);
  const Vec high =
      __builtin_shufflevector(a, b, ((I & distance) == 0 ? I + distance : kWidth + I)...);
  a = low;
  b = high;
}

template <int distance>
inline void transpose_stage(Vec (&rows)[kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if ((i & distance) == 0) {
      exchange<distance>(rows[i], rows[i + distance], typename MakeLanes<kWidth>::Type{});
    }
  }
}

inline void transpose(Vec (&rows)[kWidth]) {
  if constexpr (kWidth > 8) transpose_stage<(kWidth > 8 ? 8 : 1)>(rows);
  if constexpr (kWidth > 4) transpose_stage<(kWidth > 4 ? 4 : 1)>(rows);
  transpose_stage<2>(rows);
  transpose_stage<1>(rows);
}
