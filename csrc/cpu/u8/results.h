// What the posterior of a query says, in the outputs.
#pragma once

#include <cstdint>

#include "../../problem.h"
#include "posterior.h"
#include "queries.h"

namespace diffgen::cpu::u8 {

// Writes the results of query b, and the first reason why one has none into `outcome`.
void write_result(const Problem& problem, const MomentsOutput& output, int64_t b,
                  const Query& query, Posterior& total, Outcome& outcome);

}  // namespace diffgen::cpu::u8
