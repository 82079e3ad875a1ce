// The one file that knows Python. Tensors come as addresses and sizes that backends/cpu.py has
// checked; the interpreter's lock is released while a kernel runs.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>

#include "arguments.h"
#include "cpu/ceilings.h"
#include "cpu/dispatch.h"
#include "cpu/engine.h"
#include "cpu/norms.h"
#include "cpu/u8/pass.h"

namespace py = pybind11;

namespace {

using namespace diffgen;

std::string at_index(double value, int64_t index) {
    return ", got " + std::string(py::str(py::float_(value))) + " at index " +
           std::to_string(index);
}

void check_values(const Problem& problem) {
    for (int64_t b = 0; b < problem.batch; ++b) {
        if (!(problem.sigma[b] >= 0.0)) {
            throw py::value_error("sigma must be zero or positive" + at_index(problem.sigma[b], b));
        }
        if (problem.exclude && (problem.exclude[b] < -1 || problem.exclude[b] >= problem.count)) {
            throw py::value_error(
                "exclude must be -1 or a row id below " + std::to_string(problem.count) + ", got " +
                std::to_string(problem.exclude[b]) + " at index " + std::to_string(b));
        }
    }
}

const cpu::Kernels& kernels_named(const std::string& name) {
    const cpu::Kernels* const kernels = cpu::find_kernels(name);
    if (!kernels) throw std::runtime_error("no instruction set " + name + " can run here");
    return *kernels;
}

// Whether a signal came with a handler that raises: Ctrl-C, above all.
bool signalled(void*) {
    const py::gil_scoped_acquire lock;
    return PyErr_CheckSignals() != 0;
}

Control control_with(int threads, int screening_digits = 0) {
    return {threads, signalled, nullptr, screening_digits};
}

std::string too_few(int64_t top_k, int64_t eligible, const std::string& query) {
    return "top_k must be at most the number of eligible points, " + std::to_string(eligible) +
           " for query " + query + ", got " + std::to_string(top_k);
}

void raise_for(const Outcome& outcome, bool check, int64_t top_k = 0) {
    if (outcome.status == Status::cancelled) throw py::error_already_set();
    if (!check) return;
    const std::string query = std::to_string(outcome.query);
    if (outcome.status == Status::nothing_eligible) {
        throw py::value_error("exclude leaves no training point for query " + query);
    }
    if (outcome.status == Status::too_few_eligible) {
        throw py::value_error(too_few(top_k, outcome.eligible, query));
    }
}

void moments(const Arguments& arguments, uintptr_t mean, bool mean_is_double, uintptr_t logsumexp,
             uintptr_t functionals, int64_t top_k, uintptr_t top_indices, uintptr_t top_distances,
             const std::string& isa, int threads, bool check, int screening_digits) {
    const Problem problem = arguments.problem();
    if (check) check_values(problem);
    const int64_t rows = problem.rows ? problem.row_count : problem.count;
    if (top_k > rows) throw py::value_error(too_few(top_k, rows, "0"));
    const MomentsOutput output{out<void>(mean),           mean_is_double, out<double>(logsumexp),
                               out<double>(functionals),  top_k,          out<int64_t>(top_indices),
                               out<double>(top_distances)};
    const cpu::Kernels& kernels = kernels_named(isa);
    Outcome outcome;
    {
        const py::gil_scoped_release unlocked;
        outcome = cpu::moments(problem, output, kernels, control_with(threads, screening_digits));
    }
    raise_for(outcome, check, top_k);
}

void covariance_product(const Arguments& arguments, uintptr_t mean, uintptr_t logsumexp,
                        uintptr_t v, uintptr_t radial, uintptr_t product, uintptr_t moment,
                        const std::string& isa, int threads, bool check) {
    const Problem problem = arguments.problem();
    if (check) check_values(problem);
    const CovarianceInput input{in<double>(mean), in<double>(logsumexp), in<double>(v),
                                in<double>(radial)};
    const CovarianceOutput output{out<double>(product), out<double>(moment)};
    const cpu::Kernels& kernels = kernels_named(isa);
    Outcome outcome;
    {
        const py::gil_scoped_release unlocked;
        outcome = cpu::covariance_product(problem, input, output, kernels, control_with(threads));
    }
    raise_for(outcome, check);
}

cpu::u8::Extent extent_of(int64_t count, int64_t eligible, double longest, double typical) {
    return {count, eligible, {longest, typical}};
}

cpu::u8::PassOptions options_of(int64_t top_k, bool functionals, bool mean_is_double, int threads,
                                int64_t segments_at_once, bool keep_segments) {
    return {top_k,        functionals, mean_is_double, std::max(threads, 1), segments_at_once,
            keep_segments};
}

void find_undecided(const Arguments& arguments, const cpu::u8::Extent& extent,
                    const cpu::u8::PassOptions& options, const std::string& isa,
                    uintptr_t undecided, bool check) {
    const Problem problem = arguments.problem();
    if (check) check_values(problem);
    const cpu::Kernels& kernels = kernels_named(isa);
    const py::gil_scoped_release unlocked;
    cpu::u8::find_undecided(problem, extent, options, kernels.bytes, out<bool>(undecided));
}

std::unique_ptr<cpu::u8::Pass> make_pass(const Arguments& arguments, const cpu::u8::Extent& extent,
                                         const cpu::u8::PassOptions& options,
                                         const std::string& isa, uintptr_t anchors,
                                         uintptr_t squares) {
    const cpu::Kernels& kernels = kernels_named(isa);
    const py::gil_scoped_release unlocked;
    return std::make_unique<cpu::u8::Pass>(arguments.problem(), extent, options, kernels.bytes,
                                           in<uint8_t>(anchors), out<double>(squares));
}

// False where rows of a file could not be read.
bool add_rows(cpu::u8::Pass& pass, uintptr_t data, int64_t first, uintptr_t ids, uintptr_t norms,
              uintptr_t log_weights, int64_t count, int threads, int file, int64_t offset) {
    const cpu::u8::RowBlock rows{in<uint8_t>(data),
                                 first,
                                 in<int64_t>(ids),
                                 in<double>(norms),
                                 in<double>(log_weights),
                                 count,
                                 file,
                                 offset};
    auto added = cpu::u8::Added::stopped;
    {
        const py::gil_scoped_release unlocked;
        added = pass.add(rows, control_with(threads));
    }
    if (added == cpu::u8::Added::stopped) throw py::error_already_set();
    return added == cpu::u8::Added::all;
}

py::tuple finish_pass(cpu::u8::Pass& pass, uintptr_t mean, bool mean_is_double, uintptr_t logsumexp,
                      uintptr_t functionals, int64_t top_k, uintptr_t top_indices,
                      uintptr_t top_distances) {
    const MomentsOutput output{out<void>(mean),           mean_is_double, out<double>(logsumexp),
                               out<double>(functionals),  top_k,          out<int64_t>(top_indices),
                               out<double>(top_distances)};
    Outcome outcome;
    {
        const py::gil_scoped_release unlocked;
        outcome = pass.finish(output);
    }
    return py::make_tuple(outcome.status == Status::nothing_eligible,
                          outcome.status == Status::too_few_eligible, outcome.query,
                          outcome.eligible);
}

void bind_pass(py::module_& module) {
    using cpu::u8::Pass;
    const py::call_guard<py::gil_scoped_release> unlocked;
    py::class_<cpu::u8::Extent>(module, "Extent").def(py::init(&extent_of));
    py::class_<cpu::u8::PassOptions>(module, "PassOptions").def(py::init(&options_of));
    module.def("find_undecided", &find_undecided);
    py::class_<Pass>(module, "Pass")
        .def(py::init(&make_pass))
        .def("add", &add_rows)
        .def("state_size", &Pass::state_size)
        .def("kept_bytes", &Pass::kept_bytes)
        .def(
            "write_state", [](Pass& pass, uintptr_t to) { pass.write_state(out<double>(to)); },
            unlocked)
        .def(
            "read_state", [](Pass& pass, uintptr_t from) { pass.read_state(in<double>(from)); },
            unlocked)
        .def(
            "merge_after", [](Pass& pass, uintptr_t from) { pass.merge_after(in<double>(from)); },
            unlocked)
        .def("finish", &finish_pass);
}

void byte_norms(uintptr_t data, int64_t rows, int64_t features, uintptr_t norms, int threads) {
    bool done = false;
    {
        const py::gil_scoped_release unlocked;
        done = cpu::byte_norms(in<uint8_t>(data), rows, features, out<int64_t>(norms),
                               control_with(threads));
    }
    if (!done) throw py::error_already_set();
}

py::dict instruction_sets() {
    py::dict states;
    for (const cpu::IsaState& state : cpu::instruction_sets()) {
        states[py::str(state.name)] = state.missing;
    }
    return states;
}

template <double (*measure)(const cpu::Kernels&, int)>
double measured(int threads) {
    if (threads < 1)
        throw py::value_error("threads must be positive, got " + std::to_string(threads));
    const cpu::Kernels& kernels = kernels_named("auto");
    const py::gil_scoped_release unlocked;
    return measure(kernels, threads);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "diffgen's native core: addresses in, numbers out.";
    py::class_<Arguments>(module, "Arguments").def(py::init(&Arguments::make));
    module.def("moments", &moments);
    module.def("covariance_product", &covariance_product);
    bind_pass(module);
    module.def("byte_norms", &byte_norms);
    module.def("instruction_sets", &instruction_sets,
               "Every instruction set of this build, with why it cannot run here or ''.");
    module.def("measure_read_bandwidth", &measured<cpu::measure_read_bandwidth>,
               "Bytes a second that so many threads read from memory.");
    module.def("measure_float_peak", &measured<cpu::measure_float_peak>,
               "Float32 operations a second of so many threads.");
    module.def("measure_integer_peak", &measured<cpu::measure_integer_peak>,
               "Operations on 8-bit integers a second of so many threads.");
}
