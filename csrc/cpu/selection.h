// Some queries of a problem as a problem of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../problem.h"
#include "buffer.h"

namespace diffgen::cpu {

// With room for the results that `output` asks for.
class Selection {
  public:
    Selection(const Problem& problem, const MomentsOutput& output, std::vector<int64_t> chosen)
        : chosen_(std::move(chosen)),
          problem_(problem),
          output_(output),
          query_bytes_(problem.features * (problem.query_is_double ? 8 : 4)),
          mean_bytes_(problem.features * (output.mean_is_double ? 8 : 4)),
          query_(count() * query_bytes_),
          mean_(count() * mean_bytes_),
          logsumexp_(count()),
          functionals_(3 * count()),
          top_indices_(count() * output.top_k),
          top_distances_(count() * output.top_k) {
        for (int64_t i = 0; i < count(); ++i) {
            const int64_t b = chosen_[i];
            std::copy_n(static_cast<const char*>(problem.query) + b * query_bytes_, query_bytes_,
                        query_.data() + i * query_bytes_);
            sigma_.push_back(problem.sigma[b]);
            if (problem.alpha) alpha_.push_back(problem.alpha[b]);
            if (problem.exclude) exclude_.push_back(problem.exclude[b]);
        }
        problem_.query = query_.data();
        problem_.batch = count();
        problem_.sigma = sigma_.data();
        if (problem.alpha) problem_.alpha = alpha_.data();
        if (problem.exclude) problem_.exclude = exclude_.data();
    }

    const Problem& problem() const { return problem_; }

    MomentsOutput output() {
        return {mean_.data(),         output_.mean_is_double,
                logsumexp_.data(),    output_.functionals ? functionals_.data() : nullptr,
                output_.top_k,        top_indices_.data(),
                top_distances_.data()};
    }

    int64_t original(int64_t i) const { return chosen_[i]; }

    // Puts the results where those of the whole problem are.
    void store() const {
        for (int64_t i = 0; i < count(); ++i) {
            const int64_t b = chosen_[i];
            const int64_t k = output_.top_k;
            std::copy_n(mean_.data() + i * mean_bytes_, mean_bytes_,
                        static_cast<char*>(output_.mean) + b * mean_bytes_);
            output_.logsumexp[b] = logsumexp_[i];
            if (output_.functionals) {
                std::copy_n(functionals_.data() + 3 * i, 3, output_.functionals + 3 * b);
            }
            std::copy_n(top_indices_.data() + i * k, k, output_.top_indices + b * k);
            std::copy_n(top_distances_.data() + i * k, k, output_.top_distances + b * k);
        }
    }

  private:
    int64_t count() const { return static_cast<int64_t>(chosen_.size()); }

    std::vector<int64_t> chosen_;
    Problem problem_;
    const MomentsOutput& output_;
    int64_t query_bytes_;
    int64_t mean_bytes_;
    Buffer<char> query_;
    Buffer<char> mean_;
    Buffer<double> logsumexp_;
    Buffer<double> functionals_;
    Buffer<int64_t> top_indices_;
    Buffer<double> top_distances_;
    std::vector<double> sigma_;
    std::vector<double> alpha_;
    std::vector<int64_t> exclude_;
};

}  // namespace diffgen::cpu
