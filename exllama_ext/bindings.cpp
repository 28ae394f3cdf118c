// Python bindings: pybind11 only, no framework headers. Arguments are checked in ops.py; what could corrupt memory is checked here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "bound_plan.h"
#include "cache_pages.h"
#include "cpu/exl_cpu.h"
#include "cpu/limits.h"
#include "cpu/pack.h"
#include "cpu/sampling.h"
#include "cpu/team.h"
#include "cpu/trellis_pack.h"
#include "gpu/bindings.h"
#include "quantize_bindings.h"

using namespace exl::cpu;

namespace {

Floats dequantize(const PackedWeight& packed, const std::string& level, int64_t start, int64_t stop) {
    const Weight& w = packed.weight();
    require(start >= 0 && start <= stop && stop <= w.rows, "rows out of range");
    Floats out({stop - start, int64_t(w.cols)});
    const Kernels& kernels = kernels_of(level);
    float* data = out.mutable_data();
    py::gil_scoped_release release;
    if (w.family == Family::trellis)
        trellis_dequantize(w, int32_t(start), int32_t(stop), data);  // 128 rows are decoded together
    else
        for (int64_t r = start; r < stop; ++r) kernels.dequantize(w, int32_t(r), data + (r - start) * w.cols);
    return out;
}

py::list available_levels() {
    py::list names;
    for (const char* name : {"generic", "avx2", "avx512", "avx512_bf16", "amx"})
        if (kernels_for(name)) names.append(name);
    return names;
}

using Doubles = py::array_t<double, py::array::c_style>;
using BitMask = py::array_t<uint32_t, py::array::c_style>;

// What rows point into while they are sampled.
using Kept = std::vector<py::array>;

template <typename Array> Array keep(const py::handle& object, Kept& kept) {
    Array array = object.cast<Array>();
    kept.push_back(array);
    return array;
}

// Row r of lists that have an element per row: (n,) tokens, (ids, values) or None, (words,) or None.
SampleRow sample_row(const SampleSettings& settings, const py::handle& tokens, const py::handle& bias,
                     const py::handle& allowed, int64_t vocab, Kept& kept) {
    SampleRow row{};
    row.settings = settings;
    const auto history = keep<Ints>(tokens, kept);
    row.history = history.data();
    row.history_length = history.size();
    if (!bias.is_none()) {
        const auto pair = bias.cast<py::tuple>();
        const auto ids = keep<Ints>(pair[0], kept);
        const auto values = keep<Doubles>(pair[1], kept);
        require(ids.size() == values.size(), "a bias has as many ids as values");
        row.bias_ids = ids.data();
        row.biases = values.data();
        row.num_biases = ids.size();
    }
    if (!allowed.is_none()) {
        const auto mask = keep<BitMask>(allowed, kept);
        require(mask.size() == (vocab + 31) / 32, "a mask has a bit per token, in words of 32");
        row.mask = mask.data();
    }
    return row;
}

py::list sample_rows(const std::string& level, const Floats& logits, const py::array& settings,
                     const py::list& histories, const py::list& biases, const py::list& masks) {
    require(logits.ndim() == 2, "logits must be (rows, vocabulary)");
    const size_t rows = size_t(logits.shape(0));
    const int64_t vocab = logits.shape(1);
    require(size_t(settings.itemsize()) == sizeof(SampleSettings) && settings.ndim() == 1, "settings have a layout");
    require(settings.flags() & py::array::c_style, "settings must be contiguous");
    require(
        size_t(settings.size()) >= rows && histories.size() >= rows && biases.size() >= rows && masks.size() >= rows,
        "sampling parameters are fewer than the rows");
    const Kernels& kernels = kernels_of(level);
    std::vector<SampleRow> parameters;
    Kept kept;
    for (size_t r = 0; r < rows; ++r) {
        const auto& own = static_cast<const SampleSettings*>(settings.data())[r];
        parameters.push_back(sample_row(own, histories[r], biases[r], masks[r], vocab, kept));
    }
    std::vector<int32_t> tokens(rows);
    const float* data = logits.data();
    {
        py::gil_scoped_release release;
        for (size_t r = 0; r < rows; ++r)
            tokens[r] = sample(kernels, data + int64_t(r) * vocab, int32_t(vocab), parameters[r]);
    }
    return py::cast(tokens);
}

std::unique_ptr<PackedTrellis> packed_trellis(int64_t rows, int64_t cols, int32_t rate2, const std::string& codebook,
                                              const Words& suh, const Words& svh) {
    const auto padded = [](int64_t n) { return (n + trellis_block - 1) / trellis_block * trellis_block; };
    require(rows > 0 && cols > 0 && suh.size() == padded(cols) && svh.size() == padded(rows),
            "scales have the wrong length");
    return std::make_unique<PackedTrellis>(rows, cols, rate2, codebook_of(codebook), suh.data(), svh.data());
}

// Calls f with a tile of the rate.
template <typename F> void with_tile(int rate2, F f) {
    const auto tried = [&]<int... rates>(std::integer_sequence<int, rates...>) {
        return ((rate2 == rates && (f(exl::layouts::Exl3Tile<rates>{}), true)) || ...);
    };
    require(tried(std::integer_sequence<int, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16>{}), "unknown rate");
}

// 256 states that follow each other around the ring -> the words of their tile.
Words exl3_encode(const Words& states, int rate2) {
    require(states.size() == 256, "a tile has 256 states");
    Words words(8 * std::max(rate2, 0));
    with_tile(rate2, [&](auto tile) {
        exl::layouts::encode(states.data(), tile);
        std::memcpy(words.mutable_data(), tile.words, sizeof tile);
    });
    return words;
}

// The words of a tile -> (16, 16) weights before rotation and scales.
Floats exl3_decode(const Words& words, const std::string& codebook) {
    Floats weights({16, 16});
    with_tile(int(words.size() / 8), [&](auto tile) {
        require(words.size() * 2 == int64_t(sizeof tile), "unknown rate");
        std::memcpy(tile.words, words.data(), sizeof tile);
        exl::layouts::decode(tile, codebook_of(codebook), weights.mutable_data());
    });
    return weights;
}

void add_tiles(PackedTrellis& packed, int64_t start, const Words& raw) {
    require(raw.ndim() == 3 && raw.shape(1) == packed.tiles_across() && raw.shape(2) == 8 * packed.weight().rate2,
            "tiles have the wrong shape");
    const uint16_t* data = raw.data();
    const int64_t count = raw.shape(0);
    py::gil_scoped_release release;
    packed.add_tiles(start, data, count);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of exllama, and the door to its GPU libraries";
    m.def("levels", available_levels);
    m.def("best_level", [] { return std::string(best_level()); });
    m.def("bf16_activations", [](const std::string& level) { return kernels_of(level).bf16_activations != 0; });
    m.def("read_bandwidth", [](Team& team, const std::string& level, size_t bytes, int repeats) {
        py::gil_scoped_release release;
        return read_bandwidth(team, kernels_of(level), bytes, repeats);
    });
    m.def("int8_peak", [](Team& team, const std::string& level) {
        py::gil_scoped_release release;
        return int8_peak(team, kernels_of(level));
    });
    m.def("uniform", uniform);
    m.def("sample_rows", sample_rows);
    m.def("dequantize", dequantize);
    m.def("exl3_encode", exl3_encode);
    m.def("exl3_decode", exl3_decode);

    py::class_<Team, std::shared_ptr<Team>>(m, "Team")
        .def(py::init<int>())
        .def_property_readonly("count", &Team::count);
    py::class_<PackedWeight>(m, "PackedWeight")
        .def(py::init<const std::string&, int64_t, int64_t, const std::string&>())
        .def("add_rows",
             [](PackedWeight& w, int64_t start, const Bytes& raw) {
                 require(raw.ndim() == 2 && raw.shape(1) == w.row_bytes(), "raw rows have the wrong length");
                 const uint8_t* data = raw.data();
                 const int64_t count = raw.shape(0);
                 py::gil_scoped_release release;
                 w.add_rows(start, data, count);
             })
        .def_property_readonly("row_bytes", &PackedWeight::row_bytes)
        .def_property_readonly("nbytes", &PackedWeight::nbytes);
    py::class_<PackedTrellis, PackedWeight>(m, "PackedTrellis")
        .def(py::init(&packed_trellis))
        .def("add_tiles", add_tiles);
    py::class_<CachePages>(m, "CachePages")
        .def(py::init<int64_t, int32_t, int32_t, int32_t, int32_t>())
        .def_property_readonly("nbytes", &CachePages::nbytes)
        .def("copy_page", &CachePages::copy_page)
        .def("memory", &CachePages::memory);
    py::class_<BoundPlan>(m, "Plan")
        .def(py::init<std::shared_ptr<Team>, const std::string&, int32_t, int32_t>())
        .def("buffer", &BoundPlan::buffer)
        .def("read", &BoundPlan::read)
        .def("write", &BoundPlan::write)
        .def("embed", &BoundPlan::embed)
        .def("linear", &BoundPlan::linear)
        .def("logits", &BoundPlan::logits)
        .def("rope_table", &BoundPlan::rope_table)
        .def("rope_and_store", &BoundPlan::rope_and_store)
        .def("attention", &BoundPlan::attention)
        .def("run", &BoundPlan::run);
    bind_quantize(m);
    exl::gpu::bind(m);
}
