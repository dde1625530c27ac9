#include "native/reference/starting_rows.h"

#include <algorithm>
#include <numeric>

#include "native/core/random.h"

namespace cluster_attention::reference {

namespace {

double squared_distance(const Matrix& a, int64_t i, const Matrix& b, int64_t j) {
  double sum = 0.0;
  for (int64_t d = 0; d < a.columns(); ++d) sum += (a(i, d) - b(j, d)) * (a(i, d) - b(j, d));
  return sum;
}

/// Lowers each row's distance to the nearest chosen row by the newly chosen one.
void add_choice(const Matrix& points, int64_t choice, std::vector<double>& distances) {
  for (int64_t i = 0; i < points.rows(); ++i) {
    distances[i] = std::min(distances[i], squared_distance(points, i, points, choice));
  }
}

int64_t lowest_unchosen(const std::vector<int64_t>& chosen) {
  int64_t row = 0;
  while (std::find(chosen.begin(), chosen.end(), row) != chosen.end()) ++row;
  return row;
}

}  // namespace

std::vector<int64_t> plus_plus_rows(const Matrix& points, int64_t clusters, uint64_t seed) {
  const int64_t length = points.rows();
  std::vector<int64_t> chosen;
  std::vector<double> distances(length, kInfinity);
  while (static_cast<int64_t>(chosen.size()) < std::min(clusters, length)) {
    const double u = random_uniform(seed, RandomStream::plus_plus, chosen.size());
    const double total = std::accumulate(distances.begin(), distances.end(), 0.0);
    int64_t next = 0;
    if (chosen.empty()) {
      next = static_cast<int64_t>(u * length);
    } else if (total == 0.0) {
      next = lowest_unchosen(chosen);
    } else {
      double cumulative = 0.0;
      for (int64_t i = 0; i < length; ++i) {
        cumulative += distances[i];
        if (distances[i] > 0.0) next = i;
        if (cumulative > u * total) break;
      }
    }
    chosen.push_back(next);
    add_choice(points, next, distances);
  }
  return chosen;
}

std::vector<int64_t> sample_rows(int64_t length, int64_t clusters, uint64_t seed) {
  std::vector<int64_t> chosen;
  for (int64_t j = 0; j < std::min(clusters, length); ++j) {
    chosen.push_back(random_position(seed, RandomStream::start_positions, length, j));
  }
  return chosen;
}

std::vector<int64_t> farthest_rows(const Matrix& points, int64_t clusters) {
  const int64_t length = points.rows();
  std::vector<int64_t> chosen;
  std::vector<double> distances(length, kInfinity);
  while (static_cast<int64_t>(chosen.size()) < std::min(clusters, length)) {
    const auto farthest = std::max_element(distances.begin(), distances.end());
    const int64_t next = *farthest > 0.0 ? farthest - distances.begin() : lowest_unchosen(chosen);
    chosen.push_back(next);
    add_choice(points, next, distances);
  }
  return chosen;
}

Matrix take_rows(const Matrix& points, const std::vector<int64_t>& rows) {
  Matrix taken(static_cast<int64_t>(rows.size()), points.columns());
  for (int64_t j = 0; j < taken.rows(); ++j) {
    for (int64_t d = 0; d < points.columns(); ++d) taken(j, d) = points(rows[j], d);
  }
  return taken;
}

}  // namespace cluster_attention::reference
