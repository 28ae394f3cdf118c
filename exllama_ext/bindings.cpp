// Python bindings: pybind11 only, no framework headers. Arguments are checked in ops.py; what could corrupt memory is checked here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/exl_cpu.h"
#include "cpu/limits.h"
#include "cpu/pack.h"
#include "cpu/plan.h"
#include "cpu/sampling.h"
#include "cpu/team.h"
#include "cpu/trellis_pack.h"
#include "gpu/bindings.h"

namespace py = pybind11;
using namespace exl::cpu;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Words = py::array_t<uint16_t, py::array::c_style>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

const Kernels& kernels_of(const std::string& level) {
    const Kernels* kernels = kernels_for(level.c_str());
    require(kernels != nullptr, "this machine cannot run the CPU level asked for");
    return *kernels;
}

// Pages of one layer and the memory they live in.
class CachePages {
 public:
    CachePages(int64_t pages, int32_t kv_heads, int32_t head_dim, int32_t key_bits, int32_t value_bits)
        : pages_(pages) {
        const auto valid = [](int32_t bits) { return bits == 16 || (bits >= 2 && bits <= 8); };
        require(pages > 0 && kv_heads > 0 && head_dim > 0 && valid(key_bits) && valid(value_bits),
                "cache shape out of range");
        require(head_dim % ((key_bits == 16 && value_bits == 16) ? 16 : 32) == 0,
                "head_dim must be a multiple of 16, of 32 where the cache is quantized");
        const auto bytes = [&](int32_t bits) {
            const int64_t values = int64_t(kv_heads) * head_dim * page_size;
            return bits == 16 ? values * 2 : values * bits / 8 + values / 32 * 2;
        };
        cache_ = {nullptr, nullptr, bytes(key_bits), bytes(value_bits), kv_heads, head_dim, key_bits, value_bits};
        keys_ = std::make_unique<Memory>(size_t(pages * cache_.key_page_bytes));
        values_ = std::make_unique<Memory>(size_t(pages * cache_.value_page_bytes));
        cache_.keys = keys_->data();
        cache_.values = values_->data();
    }
    const LayerCache& cache() const { return cache_; }
    int64_t pages() const { return pages_; }
    int64_t nbytes() const { return pages_ * (cache_.key_page_bytes + cache_.value_page_bytes); }
    void copy_page(int64_t source, int64_t target) {
        check(source);
        check(target);
        std::memmove(cache_.keys + target * cache_.key_page_bytes, cache_.keys + source * cache_.key_page_bytes,
                     size_t(cache_.key_page_bytes));
        std::memmove(cache_.values + target * cache_.value_page_bytes, cache_.values + source * cache_.value_page_bytes,
                     size_t(cache_.value_page_bytes));
    }
    // (pages, bytes of a page) of keys and of values: the memory itself, kept alive by `self`.
    static py::tuple memory(const py::object& self) {
        const CachePages& c = self.cast<const CachePages&>();
        const auto view = [&](uint8_t* p, int64_t n) { return py::array_t<uint8_t>({c.pages_, n}, p, self); };
        return py::make_tuple(view(c.cache_.keys, c.cache_.key_page_bytes),
                              view(c.cache_.values, c.cache_.value_page_bytes));
    }

 private:
    void check(int64_t page) const { require(page >= 0 && page < pages_, "page out of range"); }
    int64_t pages_;
    LayerCache cache_{};
    std::unique_ptr<Memory> keys_, values_;
};

// A plan, the Python objects whose memory it points into, and the lock that keeps two runs apart.
class BoundPlan {
 public:
    BoundPlan(std::shared_ptr<Team> team, const std::string& level, int32_t max_rows, int32_t max_pages)
        : plan_(std::move(team), kernels_of(level), max_rows, max_pages) {
        require(max_rows > 0 && max_pages > 0, "max_rows and max_pages must be positive");
    }

    int buffer(int64_t width) {
        require(width > 0, "a buffer needs a positive width");
        buffers_.push_back({plan_.buffer(width), width});
        return int(buffers_.size()) - 1;
    }
    Floats read(int index, int64_t rows) const {
        const View& b = view(index);
        require(rows >= 0 && rows <= plan_.max_rows(), "rows out of range");
        return Floats({rows, b.width}, b.data);
    }
    void write(int index, const Floats& values) {
        const View& b = view(index);
        require(values.ndim() == 2 && values.shape(1) == b.width && values.shape(0) <= plan_.max_rows(),
                "values do not fit the buffer");
        std::memcpy(b.data, values.data(), size_t(values.nbytes()));
    }

    void embed(py::object table, int out, float multiplier) {
        const Weight& w = weight(table);
        require(view(out).width == w.cols, "the embedding's width differs from the buffer's");
        vocabulary_ = w.rows;
        plan_.add(EmbedArgs{&w, view(out).data, view(out).width, multiplier});
    }

    // projections: (weight, out buffer, bias or None, add) each.
    void linear(int x, const py::list& projections, py::object norm, float eps, int activation, float residual_above) {
        plan_.add(linear_args(x, projections, norm, eps, activation, residual_above));
    }
    void logits(int x, py::object head, py::object norm, float eps, float softcap, float residual_above) {
        LinearArgs args = input_args(x, norm, eps, residual_above);
        const Weight& w = weight(head);
        require(w.cols == args.cols, "the head's input width differs from the buffer's");
        args.projection[0] = {&w, nullptr, w.rows, nullptr, 0};
        args.num_projections = 1;
        args.softcap = softcap;
        logit_width_ = w.rows;
        plan_.add_logits(args);
    }

    int rope_table(const Floats& inv_freq, float scale) {
        const int64_t dim = inv_freq.size() * 2;
        const int index = buffer(dim);
        plan_.add(RopeTableArgs{keep(inv_freq), int32_t(dim), scale, view(index).data});
        return index;
    }
    void rope_and_store(int q, int k, int v, py::object cache, int table, py::object q_norm, float q_eps,
                        py::object k_norm, float k_eps) {
        const LayerCache& c = pages(cache);
        RopeArgs args{};
        args.q = view(q).data, args.k = view(k).data, args.v = view(v).data;
        args.q_stride = view(q).width, args.k_stride = view(k).width, args.v_stride = view(v).width;
        require(view(q).width % c.head_dim == 0 && view(k).width == c.num_kv_heads * c.head_dim &&
                    view(v).width == view(k).width,
                "q, k or v do not fit the cache");
        args.num_heads = int32_t(view(q).width / c.head_dim);
        args.q_norm = optional(q_norm, c.head_dim), args.k_norm = optional(k_norm, c.head_dim);
        args.q_eps = q_eps, args.k_eps = k_eps;
        if (table >= 0) {
            args.table = view(table).data;
            args.rotary_dim = int32_t(view(table).width);
            require(args.rotary_dim <= c.head_dim, "the rotary dimension exceeds head_dim");
        }
        args.layer = num_layers_++;
        args.cache = c;
        plan_.add(args);
    }
    void attention(int q, int out, py::object cache, float scale, int32_t window, float softcap) {
        const LayerCache& c = pages(cache);
        const int64_t width = view(q).width;
        require(width % c.head_dim == 0 && view(out).width == width && (width / c.head_dim) % c.num_kv_heads == 0,
                "query heads do not fit the cache");
        plan_.add(AttentionArgs{view(q).data, view(out).data, width, width, int32_t(width / c.head_dim), scale, window,
                                softcap, c});
    }

    // Returns None, or the rows whose key or value a cache cannot hold: (row, number of the rope_and_store) each.
    py::object run(const Ints& ids, const Ints& positions, const Ints& sequences, const Ints& page_table,
                   const Ints& logit_rows, Floats out) {
        const int64_t rows = ids.size();
        require(rows > 0 && rows <= plan_.max_rows() && positions.size() == rows && sequences.size() == rows,
                "row arrays differ in length or exceed max_rows");
        require(page_table.ndim() == 2 && page_table.shape(1) <= plan_.max_pages(),
                "the page table is wider than the plan allows");
        require(logit_rows.size() <= rows && out.ndim() == 2 && out.shape(0) == logit_rows.size() &&
                    out.shape(1) == logit_width_,
                "logits have the wrong shape");
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t s = sequences.data()[r], page = positions.data()[r] / page_size;
            require(ids.data()[r] >= 0 && ids.data()[r] < vocabulary_, "token id outside the vocabulary");
            require(positions.data()[r] >= 0 && s >= 0 && s < page_table.shape(0) && page < page_table.shape(1),
                    "position or sequence out of range");
            const bool new_tile = r == 0 || sequences.data()[r - 1] != s;
            require(new_tile || positions.data()[r] == positions.data()[r - 1] + 1,
                    "positions of a sequence must ascend by one");
            if (new_tile || positions.data()[r] % page_size == 0)
                check_pages(page_table.data() + s * page_table.shape(1), page);
        }
        for (int64_t i = 0; i < logit_rows.size(); ++i)
            require(logit_rows.data()[i] >= 0 && logit_rows.data()[i] < rows, "logit row out of range");
        Run r{int32_t(rows),     ids.data(),
              positions.data(),  sequences.data(),
              page_table.data(), int32_t(page_table.shape(1)),
              nullptr,           nullptr};
        float* target = out.mutable_data();
        std::vector<std::pair<int32_t, int32_t>> faults;
        {
            py::gil_scoped_release release;
            const std::lock_guard<std::mutex> guard(mutex());
            faults_.assign(size_t(rows), -1);
            r.faults = faults_.data();
            plan_.run(r, logit_rows.data(), int32_t(logit_rows.size()), target);
            for (int32_t i = 0; i < int32_t(rows); ++i)
                if (faults_[size_t(i)] >= 0) faults.emplace_back(i, faults_[size_t(i)]);
        }
        if (faults.empty()) return py::none();
        return py::cast(faults);
    }

 private:
    struct View {
        float* data;
        int64_t width;
    };
    // Teams are shared between plans, so one lock serves all.
    static std::mutex& mutex() {
        static std::mutex m;
        return m;
    }
    const View& view(int index) const {
        require(index >= 0 && index < int(buffers_.size()), "no such buffer");
        return buffers_[size_t(index)];
    }
    const Weight& weight(const py::object& object) {
        kept_.append(object);
        return object.cast<PackedWeight&>().weight();
    }
    const LayerCache& pages(const py::object& object) {
        kept_.append(object);
        const CachePages& p = object.cast<CachePages&>();
        num_pages_ = num_pages_ < 0 || p.pages() < num_pages_ ? p.pages() : num_pages_;
        return p.cache();
    }
    const float* keep(const Floats& array) {
        kept_.append(array);
        return array.data();
    }
    const float* optional(const py::object& object, int64_t size) {
        if (object.is_none()) return nullptr;
        const Floats array = object.cast<Floats>();
        require(array.size() == size, "a vector has the wrong length");
        return keep(array);
    }
    void check_pages(const int32_t* table, int64_t last) const {
        for (int64_t i = 0; i <= last; ++i)
            require(table[i] >= 0 && (num_pages_ < 0 || table[i] < num_pages_), "page number outside the cache");
    }
    LinearArgs input_args(int x, const py::object& norm, float eps, float residual_above) {
        LinearArgs args{};
        args.x = view(x).data;
        args.x_stride = view(x).width;
        args.cols = int32_t(view(x).width);
        args.norm = optional(norm, view(x).width);
        args.eps = eps;
        args.residual_above = residual_above;
        return args;
    }
    LinearArgs linear_args(int x, const py::list& projections, const py::object& norm, float eps, int activation,
                           float residual_above) {
        LinearArgs args = input_args(x, norm, eps, residual_above);
        require(projections.size() >= 1 && projections.size() <= size_t(max_projections), "too many projections");
        args.activation = static_cast<Activation>(activation);
        for (const py::handle item : projections) {
            const py::tuple p = item.cast<py::tuple>();
            const Weight& w = weight(p[0]);
            const bool unused = args.activation != Activation::none && args.num_projections == 1;
            require(w.cols == args.cols, "a weight's input width differs from the buffer's");
            require(unused || view(p[1].cast<int>()).width == w.rows,
                    "a weight's output width differs from the buffer's");
            const View out = unused ? View{nullptr, 0} : view(p[1].cast<int>());
            args.projection[args.num_projections++] = {&w, out.data, out.width, optional(p[2], w.rows),
                                                       p[3].cast<bool>()};
        }
        if (args.activation != Activation::none)
            require(args.num_projections == 2 && args.projection[0].weight->rows == args.projection[1].weight->rows,
                    "gate and up differ in shape");
        const auto is_trellis = [&](int p) { return args.projection[p].weight->family == Family::trellis; };
        if (args.activation != Activation::none)
            require(is_trellis(0) == is_trellis(1), "of gate and up one is a trellis and the other is not");
        return args;
    }

    Plan plan_;
    std::vector<View> buffers_;
    py::list kept_;
    std::vector<int32_t> faults_;
    int32_t num_layers_ = 0;
    int64_t num_pages_ = -1;
    int32_t vocabulary_ = 0;
    int64_t logit_width_ = 0;
};

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

exl::layouts::Codebook codebook_of(const std::string& name) {
    const char* names[] = {"3inst", "mcg", "mul1"};
    int32_t number = 0;
    while (number < 3 && name != names[number]) ++number;
    require(number < 3, "unknown codebook");
    return static_cast<exl::layouts::Codebook>(number);
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
    exl::gpu::bind(m);
}
