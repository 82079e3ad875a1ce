// Which instruction sets this build holds and this processor has.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace diffgen::cpu {

struct IsaState {
    std::string name;
    std::string missing;  // why it cannot run here; empty when it can
    const Kernels* kernels;
};

// In the order of isa_list.h: the best last.
const std::vector<IsaState>& instruction_sets();

// The kernels of that name, or with "auto" the best that can run here; null when there are none.
const Kernels* find_kernels(const std::string& name);

}  // namespace diffgen::cpu
