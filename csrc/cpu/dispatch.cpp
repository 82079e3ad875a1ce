#include "dispatch.h"

#include <sstream>

namespace diffgen::cpu {

namespace {

// Whether the processor has what a flag of isa_list.h lets the compiler use.
bool processor_has(const std::string& flag) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (flag == "-mavx2") return __builtin_cpu_supports("avx2");
#ifndef DIFFGEN_WITHOUT_avxvnni
    if (flag == "-mavxvnni") return __builtin_cpu_supports("avxvnni");
#endif
#ifndef DIFFGEN_WITHOUT_avx512vnni
    if (flag == "-mavx512vnni") return __builtin_cpu_supports("avx512vnni");
#endif
    if (flag == "-mfma") return __builtin_cpu_supports("fma");
    if (flag == "-mf16c") return __builtin_cpu_supports("f16c");
    if (flag == "-mavx512f") return __builtin_cpu_supports("avx512f");
    if (flag == "-mavx512bw") return __builtin_cpu_supports("avx512bw");
    if (flag == "-mavx512dq") return __builtin_cpu_supports("avx512dq");
    if (flag == "-mavx512vl") return __builtin_cpu_supports("avx512vl");
    if (flag == "-mprefer-vector-width=512") return true;
#endif
    return false;
}

std::string missing_of(const std::string& flags) {
    std::istringstream words(flags);
    std::string missing;
    for (std::string flag; words >> flag;) {
        if (!processor_has(flag)) missing += (missing.empty() ? "" : ", ") + flag.substr(2);
    }
    return missing.empty() ? missing : "the processor lacks " + missing;
}

using Getter = const Kernels& (*)() noexcept;

// A getter is compiled for its instruction set too: it is not even called where that is missing.
IsaState state_of(const char* name, const std::string& missing, Getter kernels) {
    return {name, missing, missing.empty() ? &kernels() : nullptr};
}

#define DIFFGEN_BUILT_any(isa, flags) \
    states.push_back(state_of(#isa, missing_of(flags), kernels_##isa));
#if defined(__x86_64__)
#define DIFFGEN_BUILT_x86_64(isa, flags) DIFFGEN_BUILT_any(isa, flags)
#else
#define DIFFGEN_BUILT_x86_64(isa, flags) states.push_back({#isa, "needs x86-64", nullptr});
#endif
#define DIFFGEN_ISA(isa, architecture, flags) DIFFGEN_BUILT_##architecture(isa, flags)

std::vector<IsaState> find_states() {
    std::vector<IsaState> states;
#include "isa_list.h"
    return states;
}

#undef DIFFGEN_ISA

}  // namespace

const std::vector<IsaState>& instruction_sets() {
    static const std::vector<IsaState> states = find_states();
    return states;
}

const Kernels* find_kernels(const std::string& name) {
    const Kernels* best = nullptr;
    for (const IsaState& state : instruction_sets()) {
        if (!state.missing.empty()) continue;
        if (name == "auto" || name == state.name) best = state.kernels;
    }
    return best;
}

}  // namespace diffgen::cpu
