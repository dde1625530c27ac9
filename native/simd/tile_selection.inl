// The selection of the best keys of every lane, while their scores pass by. Part of
// tile_kernels.inl.

#if defined(__AVX512F__)
inline __mmask8 first_lanes(int64_t count) {
  return static_cast<__mmask8>(count < 8 ? (1u << count) - 1 : 0xff);
}

/// How many candidates are at least `low`.
inline int64_t count_from(const Candidate* candidates, int64_t count, Candidate low) {
  const __m512i bound = _mm512_set1_epi64(static_cast<int64_t>(low));
  int64_t above = 0;
  for (int64_t i = 0; i < count; i += 8) {
    const __mmask8 lanes = first_lanes(count - i);
    const __m512i candidate = _mm512_maskz_loadu_epi64(lanes, candidates + i);
    above += __builtin_popcount(_mm512_mask_cmpge_epu64_mask(lanes, candidate, bound));
  }
  return above;
}

/// Keeps the candidates that are at least `low`, in order; returns how many.
inline int32_t keep_from(Candidate* candidates, int64_t count, Candidate low) {
  const __m512i bound = _mm512_set1_epi64(static_cast<int64_t>(low));
  int32_t kept = 0;
  for (int64_t i = 0; i < count; i += 8) {
    const __mmask8 lanes = first_lanes(count - i);
    const __m512i candidate = _mm512_maskz_loadu_epi64(lanes, candidates + i);
    const __mmask8 above = _mm512_mask_cmpge_epu64_mask(lanes, candidate, bound);
    const int32_t added = __builtin_popcount(above);
    _mm512_mask_storeu_epi64(candidates + kept, first_lanes(added),
                             _mm512_maskz_compress_epi64(above, candidate));
    kept += added;
  }
  return kept;
}
#else
inline int64_t count_from(const Candidate* candidates, int64_t count, Candidate low) {
  int64_t above = 0;
  for (int64_t i = 0; i < count; ++i) above += candidates[i] >= low ? 1 : 0;
  return above;
}

inline int32_t keep_from(Candidate* candidates, int64_t count, Candidate low) {
  int32_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    candidates[kept] = candidates[i];
    kept += candidates[kept] >= low ? 1 : 0;
  }
  return kept;
}
#endif

/// Thins a lane's candidates to the best ones, at least k and at most `limit` of them, and returns
/// a score that k of them reach. Bisection counts without branches, and a few steps of it do.
[[gnu::noinline]] float thin_candidates(Candidate* candidates, int32_t* count, int64_t k,
                                        int64_t limit) {
  Candidate low = candidates[0];
  Candidate high = candidates[0];
  for (int32_t i = 1; i < *count; ++i) {
    low = candidates[i] < low ? candidates[i] : low;
    high = candidates[i] > high ? candidates[i] : high;
  }
  int64_t kept = *count;  // candidates that are at least `low`: never fewer than k
  while (kept > limit && low < high) {
    const Candidate middle = high - (high - low) / 2;
    const int64_t above = count_from(candidates, *count, middle);
    if (above >= k) {
      low = middle;
      kept = above;
    } else {
      high = middle - 1;
    }
  }
  *count = keep_from(candidates, *count, low);
  return candidate_score(low);
}

/// The ordered_key of every lane.
inline IntVec ordered_keys(Vec score) {
  const IntVec bits = reinterpret_cast<IntVec>(score + Vec{});  // -0 becomes +0
  const IntVec keys = bits ^ ((bits >> 31) | broadcast(INT32_MIN));
  return select(score != score, broadcast(int32_t{-1}), keys);
}

/// Keys whose scores are compared before the first branch.
constexpr int64_t kSelectionGroup = 64 / kWidth < 4 ? 64 / kWidth : 4;

/// Adds the scores of a group of keys to the candidates of their lanes. Bit i * kWidth + l of
/// `better` stands for key first_key + i and lane first_lane + l.
inline void add_candidates(const Vec (&score)[kSelectionGroup], uint64_t better, int64_t first_lane,
                           int64_t first_key, TileSelector& selector) {
  alignas(64) int32_t keys[kSelectionGroup * kWidth];
#pragma GCC unroll 4
  for (int64_t i = 0; i < kSelectionGroup; ++i) store(keys + i * kWidth, ordered_keys(score[i]));
  const int64_t capacity = selector.capacity;
  for (; better != 0; better &= better - 1) {
    const int64_t bit = __builtin_ctzll(better);
    const int64_t lane = first_lane + bit % kWidth;
    const Candidate index = static_cast<uint32_t>(~(first_key + bit / kWidth));
    Candidate* candidates = selector.candidates + lane * capacity;
    const int32_t count = selector.counts[lane]++;
    candidates[count] = static_cast<Candidate>(static_cast<uint32_t>(keys[bit])) << 32 | index;
    if (count + 1 == capacity) {
      selector.threshold[lane] =
          thin_candidates(candidates, &selector.counts[lane], selector.k, selector.limit);
    }
  }
}

/// Offers the dot products of `rows` keys to the selection of every lane.
void select_scores(const float* scores, int64_t rows, int64_t columns, TileSelector& selector,
                   int64_t first_key) {
  const Vec sign = broadcast(selector.sign);
  for (int64_t lane = 0; lane < columns; lane += kWidth) {
    const int64_t used = columns - lane < kWidth ? columns - lane : kWidth;
    const uint64_t lanes_in_use = (uint64_t{1} << used) - 1;
    Vec threshold = load(selector.threshold + lane);
    for (int64_t first = 0; first < rows; first += kSelectionGroup) {
      Vec score[kSelectionGroup];
      uint64_t better = 0;
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSelectionGroup; ++i) {
        const bool exists = first + i < rows;
        score[i] = load(scores + (exists ? first + i : first) * kLanes + lane) * sign;
        const uint64_t lanes = not_less_equal(score[i], threshold) & lanes_in_use;
        better |= exists ? lanes << i * kWidth : 0;
      }
      if (better == 0) continue;
      add_candidates(score, better, lane, selector.first_key + first_key + first, selector);
      threshold = load(selector.threshold + lane);
    }
  }
}
