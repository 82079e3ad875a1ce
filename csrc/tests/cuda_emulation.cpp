// Runs the GPU's kernels on this processor over problems from files, and compares every bit of mean
// and logsumexp with the results in the files. Exits 0 when all agree.
//
//     cuda_emulation [option=value | FILE] ...
//
// Options hold for the files after them: seed (of the order of threads and blocks), screen,
// batch, wave, few, dense, masked (as in Plan), shift (bytes by which the rows are moved from an
// aligned place), stop (1: at the first file that does not agree).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../cuda/emulate/block.h"
#include "../cuda/moments.h"

namespace {

using namespace diffgen;

// Memory of so many bytes, not one more as a sanitizer sees it, `shift` bytes past a multiple of
// 256.
class Array {
  public:
    explicit Array(int64_t bytes, int64_t shift = 0, int fill = 0xff) {
        const size_t size = static_cast<size_t>(bytes + shift);
        void* memory = nullptr;
        if (posix_memalign(&memory, 256, size) != 0) std::abort();
        memory_.reset(static_cast<char*>(memory));
        std::memset(memory, fill, size);
        data_ = memory_.get() + shift;
    }
    char* data() { return data_; }

  private:
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::unique_ptr<char, Free> memory_;
    char* data_;
};

struct Settings {
    cuda::Plan plan;
    int64_t seed = 1;
    int64_t shift = 0;
    bool stop = false;
};

class File {
  public:
    explicit File(const char* name) : file_(std::fopen(name, "rb")) {
        if (!file_) {
            std::printf("%s cannot be opened\n", name);
            std::exit(2);
        }
    }
    ~File() { std::fclose(file_); }

    template <typename T>
    T one() {
        T value;
        read(&value, sizeof(value));
        return value;
    }
    void read(void* to, size_t bytes) {
        if (std::fread(to, 1, bytes, file_) != bytes) {
            std::printf("a file of a problem is too short\n");
            std::exit(2);
        }
    }

  private:
    FILE* file_;
};

// Reads an array that is there, as the byte before it says.
template <typename T>
const T* next(File& file, std::vector<std::unique_ptr<Array>>& arrays, int64_t shift = 0) {
    const int64_t bytes = file.one<int64_t>();
    if (bytes < 0) return nullptr;
    arrays.push_back(std::make_unique<Array>(bytes, shift));
    file.read(arrays.back()->data(), static_cast<size_t>(bytes));
    return reinterpret_cast<const T*>(arrays.back()->data());
}

int64_t differing(const char* got, const char* want, int64_t bytes, int64_t size, int64_t& first) {
    int64_t count = 0;
    for (int64_t i = 0; i < bytes; i += size) {
        if (std::memcmp(got + i, want + i, static_cast<size_t>(size)) == 0) continue;
        if (count++ == 0) first = i / size;
    }
    return count;
}

bool agrees(const char* name, const Settings& settings) {
    File file(name);
    std::vector<std::unique_ptr<Array>> arrays;
    Problem problem{};
    problem.query_is_double = file.one<int64_t>() != 0;
    const bool mean_is_double = file.one<int64_t>() != 0;
    problem.batch = file.one<int64_t>();
    problem.features = file.one<int64_t>();
    problem.count = file.one<int64_t>();
    problem.row_count = file.one<int64_t>();
    problem.scale = file.one<double>();
    problem.offset = file.one<double>();
    problem.storage = Storage::u8;
    problem.query = next<void>(file, arrays);
    problem.sigma = next<double>(file, arrays);
    problem.alpha = next<double>(file, arrays);
    problem.exclude = next<int64_t>(file, arrays);
    problem.data = next<void>(file, arrays, settings.shift);
    problem.norms = next<double>(file, arrays);
    problem.log_weights = next<double>(file, arrays);
    problem.rows = next<int64_t>(file, arrays);
    const char* const want_mean = next<char>(file, arrays);
    const char* const want_logsumexp = next<char>(file, arrays);

    const int64_t size = mean_is_double ? 8 : 4;
    const int64_t mean_bytes = problem.batch * problem.features * size;
    Array mean(mean_bytes);
    Array logsumexp(problem.batch * 8);
    MomentsOutput output{};
    output.mean = mean.data();
    output.mean_is_double = mean_is_double;
    output.logsumexp = reinterpret_cast<double*>(logsumexp.data());
    const int64_t scratch_size = cuda::scratch_bytes(problem);
    // What is left in memory by others: NaN, or numbers.
    Array scratch(scratch_size, 0, settings.seed % 2 ? 0xff : 0x5a);
    cuda::emulate::set_seed(static_cast<uint64_t>(settings.seed));
    const char* const error =
        cuda::moments(problem, output, scratch.data(), scratch_size, nullptr, settings.plan);
    if (error) {
        std::printf("%s: %s\n", name, error);
        return false;
    }
    int64_t first = 0;
    const int64_t means = differing(mean.data(), want_mean, mean_bytes, size, first);
    if (means > 0) {
        std::printf("%s: %lld values of the mean differ, first in query %lld feature %lld\n", name,
                    static_cast<long long>(means), static_cast<long long>(first / problem.features),
                    static_cast<long long>(first % problem.features));
    }
    const int64_t sums = differing(logsumexp.data(), want_logsumexp, problem.batch * 8, 8, first);
    if (sums > 0) {
        std::printf("%s: %lld values of logsumexp differ, first in query %lld\n", name,
                    static_cast<long long>(sums), static_cast<long long>(first));
    }
    return means == 0 && sums == 0;
}

void set(Settings& settings, const std::string& option, int64_t value) {
    cuda::Plan& plan = settings.plan;
    if (option == "seed") {
        settings.seed = value;
    } else if (option == "shift") {
        settings.shift = value;
    } else if (option == "stop") {
        settings.stop = value != 0;
    } else if (option == "screen") {
        plan.screening_digits = static_cast<int>(value);
    } else if (option == "batch") {
        plan.batch = value;
    } else if (option == "wave") {
        plan.wave = value;
    } else if (option == "few") {
        plan.few = static_cast<int>(value);
    } else if (option == "dense") {
        plan.dense = static_cast<int>(value);
    } else if (option == "rest") {
        plan.rest = static_cast<int>(value);
    } else if (option == "masked") {
        plan.always_masked = value != 0;
    } else {
        std::printf("no option %s\n", option.c_str());
        std::exit(2);
    }
}

}  // namespace

int main(int count, char** arguments) {
    Settings settings;
    int failures = 0;
    for (int i = 1; i < count; ++i) {
        const std::string word = arguments[i];
        const size_t equals = word.find('=');
        if (equals != std::string::npos) {
            set(settings, word.substr(0, equals), std::atoll(word.c_str() + equals + 1));
        } else if (!agrees(arguments[i], settings)) {
            ++failures;
            if (settings.stop) break;
        }
        std::fflush(stdout);
    }
    return failures > 0;
}
