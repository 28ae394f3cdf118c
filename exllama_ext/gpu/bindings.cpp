// What Python sees of a GPU: a library, and on each device of it weights, cache pages and plans.
//
// Arguments are checked in exllama/ops/gpu.py and by the library's launchers; what could corrupt memory is checked here.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstring>
#include <numeric>

#include "plan.h"

namespace py = pybind11;

namespace exl::gpu {

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Halves = py::array_t<uint16_t, py::array::c_style>;
using SharedLibrary = std::shared_ptr<Library>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// One device of a library, with a stream for what runs outside plans.
class Device {
 public:
    Device(SharedLibrary library, int32_t index) : library(std::move(library)), index(index) {
        this->library->check(this->library->exl_device_describe(index, &info));
        stream = std::make_shared<Stream>(this->library, index);
    }
    std::shared_ptr<Memory> allocate(int64_t bytes) const { return std::make_shared<Memory>(library, index, bytes); }
    void copy(void* to, const void* from, int64_t bytes) const {
        library->check(library->exl_memory_copy(to, from, bytes, stream->get()));
        stream->synchronize();
    }
    // Mean time of a copy between two places of the device.
    double copy_seconds(int64_t bytes, int repeats) const {
        require(bytes > 0 && repeats > 0, "bytes and repeats must be positive");
        const auto from = allocate(bytes), to = allocate(bytes);
        const auto run = [&](int count) {
            for (int i = 0; i < count; ++i)
                library->check(library->exl_memory_copy(to->data(), from->data(), bytes, stream->get()));
            stream->synchronize();
        };
        run(1);
        const auto start = std::chrono::steady_clock::now();
        run(repeats);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        return seconds.count() / repeats;
    }
    exl_device_info describe() const {
        exl_device_info now;
        library->check(library->exl_device_describe(index, &now));
        return now;
    }
    SharedLibrary library;
    int32_t index;
    exl_device_info info;
    std::shared_ptr<Stream> stream;
};
using SharedDevice = std::shared_ptr<Device>;

std::shared_ptr<Memory> upload(const Device& device, const Floats& values) {
    auto memory = device.allocate(values.nbytes());
    device.copy(memory->data(), values.data(), values.nbytes());
    return memory;
}

exl_dtype dense_type(const std::string& name) {
    require(name == "f32" || name == "f16" || name == "bf16", "dense weights are f32, f16 or bf16");
    return name == "f32" ? exl_f32 : name == "f16" ? exl_f16 : exl_bf16;
}

// A matrix on a device.
class DeviceMatrix {
 public:
    const Weight& weight() const { return weight_; }
    int64_t nbytes() const { return weight_.memory->size(); }

 protected:
    DeviceMatrix(SharedDevice device, int32_t rows, int32_t cols) : device_(std::move(device)) {
        weight_.rows = rows, weight_.cols = cols;
    }
    SharedDevice device_;
    Weight weight_;
};

// A matrix that is filled by rows as a file has them; nothing but the packed result is kept.
class DeviceWeight : public DeviceMatrix {
 public:
    DeviceWeight(SharedDevice device, const std::string& type, int32_t rows, int32_t cols, bool is_dense)
        : DeviceMatrix(std::move(device), rows, cols), type_(type) {
        const auto allocate = [&] {
            weight_.memory = device_->allocate((int64_t(rows) + 15) / 16 * tile_bytes_);
            return weight_.memory->data();
        };
        if (is_dense) {
            const exl_dtype dtype = dense_type(type);
            const int32_t item = dtype == exl_f32 ? 4 : 2, padded = (cols + 7) / 8 * 8;  // zeros behind a row's end
            tile_bytes_ = int64_t(16) * padded * item, row_bytes_ = int64_t(cols) * item;
            weight_.matrix = exl_dense{allocate(), rows, padded, dtype, padded};
        } else {
            exl_group_affine matrix;
            const Library& lib = *device_->library;
            lib.check(lib.exl_group_affine_describe(type.c_str(), rows, cols, &matrix, &tile_bytes_, &row_bytes_));
            matrix.data = allocate();
            weight_.matrix = matrix;
        }
    }
    void add_rows(int64_t start, const Bytes& raw) {
        require(raw.ndim() == 2 && raw.shape(1) == row_bytes_, "raw rows have the wrong length");
        require(start >= 0 && start % 16 == 0 && start + raw.shape(0) <= weight_.rows, "rows out of range");
        const int64_t tiles = (raw.shape(0) + 15) / 16;
        std::vector<uint8_t> packed(size_t(tiles * tile_bytes_));
        const uint8_t* data = raw.data();
        const int32_t count = int32_t(raw.shape(0));
        py::gil_scoped_release release;
        pack(data, count, packed.data());
        device_->copy(weight_.memory->data() + start / 16 * tile_bytes_, packed.data(), int64_t(packed.size()));
    }
    int64_t row_bytes() const { return row_bytes_; }

    // (rows, cols) float32 from the device's own embedding kernel: every row is looked up.
    Floats expand() const {
        const Library& lib = *device_->library;
        const auto* dense = std::get_if<exl_dense>(&weight_.matrix);
        const int64_t stride = dense ? dense->cols : weight_.cols;
        const std::vector<int32_t> ids = [&] {
            std::vector<int32_t> all(size_t(weight_.rows));
            std::iota(all.begin(), all.end(), 0);
            return all;
        }();
        const auto index = device_->allocate(int64_t(ids.size()) * 4);
        const auto values = device_->allocate(int64_t(weight_.rows) * stride * 4);
        device_->copy(index->data(), ids.data(), int64_t(ids.size()) * 4);
        const exl_embed_args args{reinterpret_cast<const int32_t*>(index->data()), weight_.rows,
                                  reinterpret_cast<float*>(values->data()), stride, 1.0f};
        const exl_stream stream = device_->stream->get();
        lib.check(dense ? lib.exl_dense_embed(dense, &args, stream)
                        : lib.exl_group_affine_embed(std::get_if<exl_group_affine>(&weight_.matrix), &args, stream));
        std::vector<float> host(size_t(weight_.rows * stride));
        device_->copy(host.data(), values->data(), int64_t(host.size()) * 4);
        Floats out({int64_t(weight_.rows), int64_t(weight_.cols)});
        for (int64_t r = 0; r < weight_.rows; ++r)
            std::memcpy(out.mutable_data(r, 0), host.data() + r * stride, size_t(weight_.cols) * 4);
        return out;
    }

 private:
    void pack(const uint8_t* rows, int32_t count, uint8_t* tiles) const {
        if (std::holds_alternative<exl_dense>(weight_.matrix)) {
            for (int64_t r = 0; r < count; ++r)
                std::memcpy(tiles + r * tile_bytes_ / 16, rows + r * row_bytes_, size_t(row_bytes_));
            return;
        }
        const Library& lib = *device_->library;
        lib.check(lib.exl_group_affine_pack(type_.c_str(), weight_.cols, rows, count, tiles));
    }
    std::string type_;
    int64_t tile_bytes_ = 0, row_bytes_ = 0;
};

exl_codebook codebook_of(const std::string& name) {
    require(name == "3inst" || name == "mcg" || name == "mul1", "codebooks are 3inst, mcg and mul1");
    return name == "3inst" ? exl_3inst : name == "mcg" ? exl_mcg : exl_mul1;
}

// A trellis, every bit as in the file: tiles [K/16][N/16], then suh (K,) and svh (N,), all padded.
class DeviceTrellis : public DeviceMatrix {
 public:
    DeviceTrellis(SharedDevice device, int32_t rows, int32_t cols, int32_t rate2, const std::string& codebook,
                  const Halves& suh, const Halves& svh)
        : DeviceMatrix(std::move(device), rows, cols), rate2_(rate2) {
        require(rows > 0 && cols > 0, "rows and columns must be positive");
        require(rate2 > 1 && rate2 <= 16, "a weight has 1 to 8 bits");
        require(suh.size() == padded(cols) && svh.size() == padded(rows), "scales have the wrong length");
        const int64_t tiles = padded(rows) * padded(cols) / 8 * rate2 / 2;
        weight_.memory = device_->allocate(tiles + suh.nbytes() + svh.nbytes());
        uint8_t *data = weight_.memory->data(), *side = data + tiles;
        device_->copy(side, suh.data(), suh.nbytes());
        device_->copy(side + suh.nbytes(), svh.data(), svh.nbytes());
        weight_.suh = side;
        weight_.matrix = exl_trellis{data, side + suh.nbytes(), rows, cols, rate2, codebook_of(codebook)};
    }
    // Rows start .. of tiles.
    void add_tiles(int64_t start, const Halves& words) {
        require(words.ndim() == 3 && words.shape(1) == padded(weight_.rows) / 16 && words.shape(2) == 8 * rate2_,
                "tiles have the wrong shape");
        require(start >= 0 && start + words.shape(0) <= padded(weight_.cols) / 16, "tiles out of range");
        const int64_t row = words.shape(1) * words.shape(2) * 2;
        device_->copy(weight_.memory->data() + start * row, words.data(), words.nbytes());
    }
    // (padded N, padded K) halves: the tiles alone, before rotations and scales.
    Halves expand() const {
        Halves out({padded(weight_.rows), padded(weight_.cols)});
        const auto values = device_->allocate(out.nbytes());
        const exl_expand_args args{values->data(), padded(weight_.cols)};
        const Library& lib = *device_->library;
        lib.check(lib.exl_trellis_expand(std::get_if<exl_trellis>(&weight_.matrix), &args, device_->stream->get()));
        device_->copy(out.mutable_data(), values->data(), out.nbytes());
        return out;
    }

 private:
    static int64_t padded(int64_t size) { return (size + 127) / 128 * 128; }
    int32_t rate2_;
};

// Zeroed pages of one layer.
class DeviceCache {
 public:
    DeviceCache(SharedDevice device, int64_t pages, int32_t kv_heads, int32_t head_dim, int32_t key_bits,
                int32_t value_bits)
        : device_(std::move(device)), pages_(pages) {
        require(pages > 0, "a cache needs at least one page");
        cache_ = {nullptr, nullptr, kv_heads, head_dim, key_bits, value_bits};
        const Library& lib = *device_->library;
        lib.check(lib.exl_kv_cache_geometry(&cache_, &geometry_));
        keys_ = device_->allocate(pages * geometry_.key_page_bytes);
        values_ = device_->allocate(pages * geometry_.value_page_bytes);
        cache_.keys = keys_->data(), cache_.values = values_->data();
        for (const auto& memory : {keys_, values_})
            lib.check(lib.exl_memory_set(memory->data(), 0, memory->size(), device_->stream->get()));
        device_->stream->synchronize();
    }
    const exl_kv_cache& cache() const { return cache_; }
    const std::vector<std::shared_ptr<Memory>> memory() const { return {keys_, values_}; }
    int64_t nbytes() const { return keys_->size() + values_->size(); }
    int64_t pages() const { return pages_; }
    void copy_page(int64_t source, int64_t target) {
        check(source), check(target);
        const auto copy = [&](uint8_t* base, int64_t bytes) {
            device_->copy(base + target * bytes, base + source * bytes, bytes);
        };
        if (source == target) return;
        copy(keys_->data(), geometry_.key_page_bytes);
        copy(values_->data(), geometry_.value_page_bytes);
    }
    // The bytes of a page: keys, then values.
    Bytes read_page(int64_t page) const {
        check(page);
        Bytes data(geometry_.key_page_bytes + geometry_.value_page_bytes);
        uint8_t* to = data.mutable_data();
        device_->copy(to, keys_of(page), geometry_.key_page_bytes);
        device_->copy(to + geometry_.key_page_bytes, values_of(page), geometry_.value_page_bytes);
        return data;
    }
    void write_page(int64_t page, const Bytes& data) {
        check(page);
        require(data.nbytes() == geometry_.key_page_bytes + geometry_.value_page_bytes, "a page has another size");
        device_->copy(keys_of(page), data.data(), geometry_.key_page_bytes);
        device_->copy(values_of(page), data.data() + geometry_.key_page_bytes, geometry_.value_page_bytes);
    }

 private:
    void check(int64_t page) const { require(page >= 0 && page < pages_, "page out of range"); }
    uint8_t* keys_of(int64_t page) const { return keys_->data() + page * geometry_.key_page_bytes; }
    uint8_t* values_of(int64_t page) const { return values_->data() + page * geometry_.value_page_bytes; }
    SharedDevice device_;
    int64_t pages_;
    exl_kv_cache cache_;
    exl_kv_geometry geometry_{};
    std::shared_ptr<Memory> keys_, values_;
};

class DevicePlan {
 public:
    DevicePlan(SharedDevice device, int32_t max_rows)
        : device_(std::move(device)), plan_(device_->library, device_->index, max_rows) {}

    int buffer(int64_t width) { return plan_.buffer(width); }
    void embed(const DeviceMatrix& table, int out, float multiplier) {
        vocabulary_ = table.weight().rows;
        plan_.embed(table.weight(), out, multiplier);
    }
    void linear(int x, const py::list& projections, const py::object& norm, float eps, int activation) {
        std::vector<Projection> list;
        for (const py::handle item : projections) {
            const py::tuple p = item.cast<py::tuple>();
            list.push_back({&p[0].cast<DeviceMatrix&>().weight(), p[1].cast<int>(), optional(p[2]), p[3].cast<bool>()});
        }
        plan_.linear(x, std::move(list), {optional(norm), eps}, static_cast<exl_activation>(activation));
    }
    int rope_table(const Floats& inv_freq, float scale) {
        return plan_.rope_table(upload(*device_, inv_freq), int32_t(inv_freq.size() * 2), scale);
    }
    void rope_and_store(int q, int k, int v, const DeviceCache& cache, int table, const py::object& q_norm, float q_eps,
                        const py::object& k_norm, float k_eps) {
        use(cache);
        plan_.rope_and_store(q, k, v, cache.cache(), table, {optional(q_norm), q_eps}, {optional(k_norm), k_eps});
    }
    void attention(int q, int out, const DeviceCache& cache, float scale, int32_t window, float softcap) {
        use(cache);
        plan_.attention(q, out, cache.cache(), scale, window, softcap);
    }
    void logits(int x, const DeviceMatrix& head, const py::object& norm, float eps, float softcap) {
        plan_.logits(x, head.weight(), {optional(norm), eps}, softcap);
    }

    // Returns None, or the rows whose key or value a cache cannot hold: (row, number of the rope_and_store) each.
    py::object run(const Ints& ids, const Ints& positions, const Ints& sequences, const Ints& table,
                   const Ints& logit_rows, Floats out) {
        const int64_t rows = ids.size();
        require(rows > 0 && rows <= plan_.max_rows() && positions.size() == rows && sequences.size() == rows,
                "row arrays differ in length or exceed max_rows");
        require(table.ndim() == 2, "the page table must be (sequences, pages)");
        require(out.ndim() == 2 && out.shape(0) == logit_rows.size() && out.shape(1) == plan_.vocab() &&
                    logit_rows.size() <= rows,
                "logits have the wrong shape");
        check_rows(ids, positions, sequences, table, logit_rows);
        const auto span = [](const Ints& a) { return std::span<const int32_t>(a.data(), size_t(a.size())); };
        const Inputs inputs{span(ids),        span(positions), span(sequences),
                            span(logit_rows), span(table),     int32_t(table.shape(1))};
        std::vector<int32_t> faults(static_cast<size_t>(rows));
        float* target = out.mutable_data();
        {
            py::gil_scoped_release release;
            plan_.run(inputs, target, faults.data());
        }
        std::vector<std::pair<int32_t, int32_t>> found;
        for (int32_t r = 0; r < int32_t(rows); ++r)
            if (faults[size_t(r)] >= 0) found.emplace_back(r, faults[size_t(r)]);
        if (found.empty()) return py::none();
        return py::cast(found);
    }

 private:
    std::shared_ptr<Memory> optional(const py::handle& vector) {
        if (vector.is_none()) return nullptr;
        return upload(*device_, vector.cast<Floats>());
    }
    void use(const DeviceCache& cache) {
        for (const auto& memory : cache.memory()) kept_.push_back(memory);
        num_pages_ = num_pages_ < 0 ? cache.pages() : std::min(num_pages_, cache.pages());
    }
    void check_rows(const Ints& ids, const Ints& positions, const Ints& sequences, const Ints& table,
                    const Ints& logit_rows) const {
        const int64_t width = table.shape(1);
        for (int64_t r = 0; r < ids.size(); ++r) {
            const int64_t s = sequences.data()[r], p = positions.data()[r];
            require(ids.data()[r] >= 0 && ids.data()[r] < vocabulary_, "token id outside the vocabulary");
            require(p >= 0 && s >= 0 && s < table.shape(0) && p / exl_page_size < width,
                    "position or sequence out of range");
            const bool first = r == 0 || sequences.data()[r - 1] != s;
            require(first || p == positions.data()[r - 1] + 1, "positions of a sequence must ascend by one");
            if (!first && p % exl_page_size) continue;
            for (int64_t i = 0; i <= p / exl_page_size; ++i) {
                const int64_t page = table.data()[s * width + i];
                require(page >= 0 && (num_pages_ < 0 || page < num_pages_), "page number outside the cache");
            }
        }
        for (int64_t i = 0; i < logit_rows.size(); ++i)
            require(logit_rows.data()[i] >= 0 && logit_rows.data()[i] < ids.size(), "logit row out of range");
    }

    SharedDevice device_;
    std::vector<std::shared_ptr<Memory>> kept_;
    Plan plan_;
    int64_t num_pages_ = -1;
    int32_t vocabulary_ = 0;
};

py::dict describe(const Device& device) {
    const exl_device_info info = device.describe();
    py::dict found;
    found["name"] = info.name;
    found["arch"] = info.arch;
    found["total_bytes"] = info.total_bytes;
    found["free_bytes"] = info.free_bytes;
    found["processors"] = info.processors;
    found["compiled"] = info.compiled != 0;
    return found;
}

}  // namespace

void bind(py::module_& m) {
    static py::exception<Failure> failure(m, "GpuFailure");
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Failure& error) { py::set_error(failure, py::make_tuple(error.status, error.what())); }
    });
    py::class_<Library, SharedLibrary>(m, "GpuLibrary")
        .def(py::init<const std::string&>())
        .def_property_readonly("backend", [](const Library& l) { return std::string(l.exl_backend()); })
        .def("emulate", [](const Library& l, const std::string& text) { l.emulate(text); })
        .def("device_count", [](const Library& l) {
            int32_t count = 0;
            l.check(l.exl_device_count(&count));
            return count;
        });
    py::class_<Device, SharedDevice>(m, "GpuDevice")
        .def(py::init<SharedLibrary, int32_t>())
        .def("describe", describe)
        .def("copy_seconds", &Device::copy_seconds);
    py::class_<DeviceMatrix>(m, "GpuMatrix").def_property_readonly("nbytes", &DeviceMatrix::nbytes);
    py::class_<DeviceTrellis, DeviceMatrix>(m, "GpuTrellis")
        .def(py::init<SharedDevice, int32_t, int32_t, int32_t, const std::string&, const Halves&, const Halves&>())
        .def("add_tiles", &DeviceTrellis::add_tiles)
        .def("expand", &DeviceTrellis::expand);
    py::class_<DeviceWeight, DeviceMatrix>(m, "GpuWeight")
        .def(py::init<SharedDevice, const std::string&, int32_t, int32_t, bool>())
        .def("add_rows", &DeviceWeight::add_rows)
        .def("expand", &DeviceWeight::expand)
        .def_property_readonly("row_bytes", &DeviceWeight::row_bytes);
    py::class_<DeviceCache>(m, "GpuCachePages")
        .def(py::init<SharedDevice, int64_t, int32_t, int32_t, int32_t, int32_t>())
        .def_property_readonly("nbytes", &DeviceCache::nbytes)
        .def("copy_page", &DeviceCache::copy_page)
        .def("read_page", &DeviceCache::read_page)
        .def("write_page", &DeviceCache::write_page);
    py::class_<DevicePlan>(m, "GpuPlan")
        .def(py::init<SharedDevice, int32_t>())
        .def("buffer", &DevicePlan::buffer)
        .def("embed", &DevicePlan::embed)
        .def("linear", &DevicePlan::linear)
        .def("rope_table", &DevicePlan::rope_table)
        .def("rope_and_store", &DevicePlan::rope_and_store)
        .def("attention", &DevicePlan::attention)
        .def("logits", &DevicePlan::logits)
        .def("run", &DevicePlan::run);
}

}  // namespace exl::gpu
