// The Python module of the CUDA part. Addresses are those of the device, and a stream comes as an
// integer; the interpreter's lock is released while work is put on the stream.

#include <pybind11/pybind11.h>

#include <string>

#include "arguments.h"
#include "cuda/moments.h"

namespace py = pybind11;

namespace {

using namespace diffgen;

int64_t scratch_bytes(const Arguments& arguments) {
    return cuda::scratch_bytes(arguments.problem());
}

int64_t smallest_scratch_bytes(const Arguments& arguments) {
    return cuda::smallest_scratch_bytes(arguments.problem());
}

void moments(const Arguments& arguments, uintptr_t mean, bool mean_is_double, uintptr_t logsumexp,
             uintptr_t scratch, int64_t scratch_size, uintptr_t stream) {
    const Problem problem = arguments.problem();
    MomentsOutput output{};
    output.mean = out<void>(mean);
    output.mean_is_double = mean_is_double;
    output.logsumexp = out<double>(logsumexp);
    const char* error = nullptr;
    {
        const py::gil_scoped_release unlocked;
        error = cuda::moments(problem, output, out<void>(scratch), scratch_size, out<void>(stream));
    }
    if (error) throw std::runtime_error(error);
}

py::dict device_state() {
    const cuda::DeviceState state = cuda::device_state();
    py::dict found;
    found["driver_version"] = state.driver_version;
    found["runtime_version"] = state.runtime_version;
    found["device_count"] = state.device_count;
    found["error"] = state.error ? py::object(py::str(state.error)) : py::none();
    return found;
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
    module.doc() = "diffgen's CUDA kernels: device addresses in, work on a stream.";
    // Local: the CPU's module has a class of the same name.
    py::class_<Arguments>(module, "Arguments", py::module_local()).def(py::init(&Arguments::make));
    module.def("moments", &moments);
    module.attr("MOST_FEATURES") = cuda::kMostFeatures;
    module.def("scratch_bytes", &scratch_bytes, "Bytes of device memory that a call works in.");
    module.def("smallest_scratch_bytes", &smallest_scratch_bytes,
               "The least of them: the set is worked on in more steps.");
    module.def("device_state", &device_state,
               "Versions of driver and runtime, the number of devices, and what went wrong.");
    module.def(
        "targets", [] { return std::string(DIFFGEN_CUDA_TARGETS); },
        "What the device code was compiled for: sm_80;...;compute_100.");
    module.def(
        "version", [] { return std::string(DIFFGEN_CUDA_VERSION); },
        "The CUDA toolkit that compiled it.");
}
