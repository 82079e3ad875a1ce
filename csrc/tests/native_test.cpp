// The native core without Python, to be run under sanitizers: every instruction set, storage type
// and kind of row list, sizes about every tile edge, against plain loops. Exits 0 when all agree.

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/engine.h"
#include "../cpu/lengths.h"
#include "../cpu/norms.h"
#include "../problem.h"
#include "passes.h"
#include "pool_checks.h"

namespace {

using namespace diffgen;

int failures = 0;

void expect(bool holds, const char* what, const char* isa, int storage, int64_t rows,
            int64_t features, double got = 0.0, double want = 0.0) {
    if (holds) return;
    ++failures;
    std::printf("FAILED %s: isa %s, storage %d, %lld rows, %lld features: got %.17g, want %.17g\n",
                what, isa, storage, static_cast<long long>(rows), static_cast<long long>(features),
                got, want);
}

// Memory of exactly the bytes that the rows need, so that a step past them is seen.
struct Rows {
    std::vector<unsigned char> bytes;
    std::vector<double> values;  // what the stored rows mean
    std::vector<double> norms;
    double scale = 1.0;
    double offset = 0.0;
};

Rows make_rows(Storage storage, int64_t count, int64_t features, std::mt19937& random) {
    Rows rows;
    const int64_t size = count * features;
    std::uniform_int_distribution<int> level(0, 255);
    auto put = [&](const auto& stored, double value) {
        const auto* const raw = reinterpret_cast<const unsigned char*>(&stored);
        rows.bytes.insert(rows.bytes.end(), raw, raw + sizeof(stored));
        rows.values.push_back(value);
    };
    if (storage == Storage::u8) {
        rows.scale = 2.0 / 255.0;
        rows.offset = -1.0;
    }
    for (int64_t i = 0; i < size; ++i) {
        const int u = level(random);
        const double value = u / 128.0 - 1.0;  // exact in every float type
        if (storage == Storage::u8) put(static_cast<uint8_t>(u), rows.offset + rows.scale * u);
        if (storage == Storage::f32) put(static_cast<float>(value), value);
        if (storage == Storage::f64) put(value, value);
        if (storage == Storage::bf16) {
            const float exact = static_cast<float>(value);
            uint32_t bits;
            std::memcpy(&bits, &exact, sizeof(bits));
            put(static_cast<uint16_t>(bits >> 16), value);
        }
        if (storage == Storage::f16) {
            int exponent = 0;
            const double fraction = std::frexp(std::fabs(value), &exponent);
            const uint16_t sign = value < 0 ? 0x8000 : 0;
            const uint16_t magnitude =
                value == 0.0 ? 0
                             : static_cast<uint16_t>(((exponent + 14) << 10) +
                                                     static_cast<int>((fraction * 2 - 1) * 1024));
            put(static_cast<uint16_t>(sign | magnitude), value);
        }
    }
    const double origin = rows.offset + stored_shift(storage) * rows.scale;
    for (int64_t i = 0; i < count; ++i) {
        double norm = 0.0;
        for (int64_t k = 0; k < features; ++k) {
            norm += std::pow(rows.values[i * features + k] - origin, 2);
        }
        rows.norms.push_back(norm);
    }
    return rows;
}

void compare(const cpu::IsaState& isa, Storage storage, int64_t count, int64_t features,
             int64_t batch, bool doubles, int threads) {
    std::mt19937 random(static_cast<unsigned>(count * 131 + features));
    std::normal_distribution<double> noise;
    const Rows rows = make_rows(storage, count, features, random);
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < count; i += (count > 3 ? 2 : 1)) ids.push_back(i);
    const bool gathered = batch % 2 == 0;
    std::vector<double> sigma, alpha, query;
    std::vector<float> query_low;
    std::vector<int64_t> exclude;
    for (int64_t b = 0; b < batch; ++b) {
        sigma.push_back(b % 5 == 4 ? 0.0 : std::pow(10.0, static_cast<double>(b % 5) - 2.0));
        alpha.push_back(b % 3 == 2 ? 0.5 : 1.0);
        exclude.push_back(ids.size() > 2 && b % 4 == 1 ? ids[1] : -1);
        for (int64_t k = 0; k < features; ++k) {
            const double base = rows.values[ids[b % ids.size()] * features + k];
            query_low.push_back(
                static_cast<float>(alpha[b] * base + sigma[b] * noise(random) * 0.5));
            query.push_back(query_low.back());
        }
    }
    const Problem problem{doubles ? static_cast<const void*>(query.data()) : query_low.data(),
                          doubles,
                          batch,
                          features,
                          sigma.data(),
                          alpha.data(),
                          exclude.data(),
                          rows.bytes.data(),
                          storage,
                          count,
                          rows.norms.data(),
                          nullptr,
                          gathered ? ids.data() : nullptr,
                          gathered ? static_cast<int64_t>(ids.size()) : 0,
                          rows.scale,
                          rows.offset};
    const int64_t top_k = std::min<int64_t>(2, gathered ? ids.size() - 1 : count - 1);
    std::vector<double> mean(batch * features, NAN), logsumexp(batch, NAN),
        functionals(batch * 3, NAN), distances(batch * top_k, NAN);
    std::vector<int64_t> indices(batch * top_k, -7);
    const MomentsOutput output{mean.data(), true,           logsumexp.data(), functionals.data(),
                               top_k,       indices.data(), distances.data()};
    const Control control{threads, nullptr, nullptr};
    const char* const name = isa.name.c_str();
    const int type = static_cast<int>(storage);
    const Outcome outcome = cpu::moments(problem, output, *isa.kernels, control);
    if (outcome.status != Status::ok) {
        expect(false, "status", name, type, count, features);
        return;
    }
    std::vector<double> v(query), product(batch * features, NAN), moment(batch * 2, NAN);
    const CovarianceInput input{mean.data(), logsumexp.data(), v.data(), nullptr};
    const CovarianceOutput covariance{product.data(), moment.data()};
    cpu::covariance_product(problem, input, covariance, *isa.kernels, control);
    for (int64_t b = 0; b < batch; ++b) {
        std::vector<double> logits;
        double best = -INFINITY;
        double nearest = INFINITY;
        for (int64_t i = 0; i < count; ++i) {
            const bool in = (!gathered || i % (count > 3 ? 2 : 1) == 0) && i != exclude[b];
            double r = 0.0;
            for (int64_t k = 0; k < features; ++k) {
                const double gap =
                    query[b * features + k] - alpha[b] * rows.values[i * features + k];
                r += gap * gap;
            }
            if (in) nearest = std::min(nearest, r);
            const double kappa = sigma[b] > 0.0 ? 0.5 / (sigma[b] * sigma[b]) : 1e30;
            logits.push_back(in ? -kappa * r : -INFINITY);
            best = std::max(best, logits.back());
        }
        double mass = 0.0;
        for (double& logit : logits) {
            logit = std::exp(logit - best);
            mass += logit;
        }
        for (int64_t k = 0; k < features; ++k) {
            double want = 0.0;
            for (int64_t i = 0; i < count; ++i) {
                want += logits[i] / mass * rows.values[i * features + k];
            }
            expect(std::fabs(mean[b * features + k] - want) < 1e-5, "mean", name, type, count,
                   features, mean[b * features + k], want);
        }
        if (sigma[b] > 0.0) {
            const double want = best + std::log(mass);
            expect(std::fabs(logsumexp[b] - want) < 1e-6 * (1.0 + std::fabs(want)), "logsumexp",
                   name, type, count, features, logsumexp[b], want);
            for (int64_t k = 0; k < features; ++k) {
                expect(std::isfinite(product[b * features + k]), "product", name, type, count,
                       features, product[b * features + k]);
            }
        }
        if (top_k > 0) {
            expect(std::fabs(distances[b * top_k] - std::sqrt(nearest)) < 1e-9, "distance", name,
                   type, count, features, distances[b * top_k], std::sqrt(nearest));
        }
    }
}

void compare_all(const cpu::IsaState& isa) {
    for (int storage = 0; storage < kStorageCount; ++storage) {
        for (const int64_t features : {1, 3, 7, 15, 16, 17, 33, 191, 192, 193, 400, 1553}) {
            const int64_t count = features % 2 ? 1 + features % 23 : 49;
            compare(isa, static_cast<Storage>(storage), count, features, 5 + features % 9,
                    features % 3 == 0, 1 + features % 3);
        }
        compare(isa, static_cast<Storage>(storage), 1, 5, 3, false, 2);
        compare(isa, static_cast<Storage>(storage), 700, 600, 70, false, 3);
    }
}

// Segments of two tiles, the last one of less.
constexpr int64_t kCount = 2100, kFeatures = 420;

// What the moments of 8-bit rows over several segments come to, as bytes: in one call, or where
// `cut` is not 0 by passes, over rows in memory or in a file.
std::vector<unsigned char> integer_results(const cpu::IsaState& isa, int threads, int digits,
                                           int64_t cut = 0, bool gathered = false,
                                           bool from_file = false) {
    const int64_t count = kCount, features = kFeatures, batch = 5, top_k = 2;
    std::mt19937 random(7);
    std::normal_distribution<double> noise;
    const Rows rows = make_rows(Storage::u8, count, features, random);
    std::vector<float> query;
    std::vector<double> sigma;
    std::vector<uint8_t> anchors;
    for (int64_t b = 0; b < batch; ++b) {
        sigma.push_back(b == 4 ? 0.0 : std::pow(10.0, static_cast<double>(b) - 2.0));
        const int64_t at = (499 * b + 3) * features;
        for (int64_t k = 0; k < features; ++k) {
            query.push_back(static_cast<float>(rows.values[at + k] + sigma[b] * noise(random)));
            anchors.push_back(rows.bytes[at + k]);
        }
    }
    std::vector<int64_t> ids;
    for (int64_t id = 0; id < count; ++id) {
        if (id % 3 != 2) ids.push_back(id);
    }
    const Problem problem{query.data(),
                          false,
                          batch,
                          features,
                          sigma.data(),
                          nullptr,
                          nullptr,
                          rows.bytes.data(),
                          Storage::u8,
                          count,
                          rows.norms.data(),
                          nullptr,
                          gathered ? ids.data() : nullptr,
                          gathered ? static_cast<int64_t>(ids.size()) : 0,
                          rows.scale,
                          rows.offset};
    std::vector<double> results(batch * (features + 4 + top_k), NAN);
    std::vector<int64_t> indices(batch * top_k);
    double* const logsumexp = results.data() + batch * features;
    const MomentsOutput output{results.data(),       true,  logsumexp,
                               logsumexp + batch,    top_k, indices.data(),
                               logsumexp + 4 * batch};
    const Control control{threads, nullptr, nullptr, digits};
    std::FILE* const stored = std::tmpfile();
    std::fwrite(rows.bytes.data(), 1, rows.bytes.size(), stored);
    std::fflush(stored);
    const Outcome outcome = cut == 0 ? cpu::moments(problem, output, *isa.kernels, control)
                                     : by_passes(problem, output, isa, threads, anchors.data(), cut,
                                                 from_file ? fileno(stored) : -1);
    std::fclose(stored);
    expect(outcome.status == Status::ok, "status", isa.name.c_str(), 0, count, features);
    std::vector<unsigned char> bytes(results.size() * sizeof(double));
    std::memcpy(bytes.data(), results.data(), bytes.size());
    return bytes;
}

// The bits do not depend on the instruction set, the threads and the digits that screen.
void compare_bits(const cpu::IsaState& isa) {
    static const std::vector<unsigned char> expected = integer_results(isa, 1, 0);
    for (int digits = 0; digits <= 5; ++digits) {
        expect(integer_results(isa, 1 + digits % 3, digits) == expected, "bits", isa.name.c_str(),
               digits, kCount, kFeatures);
    }
    // Nor on how the rows come.
    for (const bool gathered : {false, true}) {
        const std::vector<unsigned char> whole = integer_results(isa, 1, 0, 0, gathered);
        for (const int64_t cut : {int64_t{1024}, int64_t{2048}, kCount}) {
            expect(integer_results(isa, 2, 0, cut, gathered) == whole, "pass", isa.name.c_str(),
                   gathered, cut, kFeatures);
            if (gathered) continue;
            expect(integer_results(isa, 2, 0, cut, false, true) == whole, "file", isa.name.c_str(),
                   0, cut, kFeatures);
        }
    }
}

// Lengths of rows with more features than one sum in 32 bits holds.
void check_norms() {
    const int64_t rows = 5, features = 140'000;
    const std::vector<uint8_t> data(rows * features, 0);
    std::vector<int64_t> norms(rows, -1);
    cpu::byte_norms(data.data(), rows, features, norms.data(), {2, nullptr, nullptr});
    for (const int64_t norm : norms) {
        expect(norm == 128 * 128 * features, "norm", "any", 0, rows, features,
               static_cast<double>(norm), 128.0 * 128.0 * features);
    }
}

bool stop_at_once(void*) {
    return true;
}

// A long call is left soon after its poll says so.
void check_stop(const cpu::IsaState& isa, Storage storage) {
    const int64_t count = 60000, features = 512, batch = 64;
    // As bytes it is read as 8-bit rows.
    std::vector<float> data(count * features, 0.5f), query(batch * features, 0.25f);
    std::vector<double> norms(count, 0.25 * features), sigma(batch, 5.0);
    std::vector<double> mean(batch * features), logsumexp(batch);
    const Problem problem{query.data(), false,       batch,   features, sigma.data(), nullptr,
                          nullptr,      data.data(), storage, count,    norms.data(), nullptr,
                          nullptr,      0,           1.0,     0.0};
    const MomentsOutput output{mean.data(), true, logsumexp.data(), nullptr, 0, nullptr, nullptr};
    const Control control{2, stop_at_once, nullptr};
    const Outcome outcome = cpu::moments(problem, output, *isa.kernels, control);
    expect(outcome.status == Status::cancelled, "stop", isa.name.c_str(), static_cast<int>(storage),
           count, features);
}

}  // namespace

int main() {
    const cpu::IsaState* best = nullptr;
    for (const cpu::IsaState& isa : cpu::instruction_sets()) {
        if (!isa.missing.empty()) {
            std::printf("not run here: %s, %s\n", isa.name.c_str(), isa.missing.c_str());
            continue;
        }
        compare_all(isa);
        compare_bits(isa);
        std::printf("ran %s\n", isa.name.c_str());
        best = &isa;
    }
    check_norms();
    for (const int threads : {1, 2, 4}) {
        expect(error_reaches_the_caller(threads), "error", "any", 0, threads, 0);
    }
    check_stop(*best, Storage::f32);
    check_stop(*best, Storage::u8);
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i) {
        callers.emplace_back([best, i] {
            compare(*best, i == 0 ? Storage::u8 : Storage::f32, 700, 600, 20, false, 3);
        });
    }
    for (std::thread& caller : callers) caller.join();
    // The pool has workers by now; a forked child starts its own.
    const pid_t child = fork();
    if (child == 0) {
        failures = 0;
        compare(*best, Storage::f32, 700, 600, 20, false, 3);
        compare(*best, Storage::u8, 700, 600, 20, false, 3);
        _exit(failures == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "fork", best->name.c_str(), 3, 700, 600);
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
