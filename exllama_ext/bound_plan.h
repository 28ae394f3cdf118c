// A plan of the CPU engine as Python records and runs it.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "cache_pages.h"
#include "cpu/pack.h"
#include "cpu/plan.h"
#include "cpu/team.h"

namespace exl::cpu {

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
        Run r{int32_t(rows),     ids.data(),
              positions.data(),  sequences.data(),
              page_table.data(), int32_t(page_table.shape(1)),
              nullptr,           nullptr};
        check_rows(r, page_table.shape(0));
        for (int64_t i = 0; i < logit_rows.size(); ++i)
            if (const int32_t row = logit_rows.data()[i]; row < 0 || row >= rows)
                refuse("logits of row ", row, " are asked for, expected 0 to ", rows - 1);
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
    // Native code reads and writes where these numbers point, so each of them is checked.
    void check_rows(const Run& run, int64_t num_sequences) const {
        for (int32_t r = 0; r < run.rows; ++r) {
            const int32_t id = run.token_ids[r], s = run.sequences[r], position = run.positions[r];
            if (id < 0 || id >= vocabulary_)
                refuse("row ", r, " has token id ", id, ", expected 0 to ", vocabulary_ - 1, ", the vocabulary");
            if (s < 0 || s >= num_sequences)
                refuse("row ", r, " belongs to sequence ", s, ", but the page table has ", num_sequences);
            if (position < 0 || position / page_size >= run.pages_per_sequence)
                refuse("row ", r, " is at position ", position, ", but the page table ends at ",
                       int64_t(run.pages_per_sequence) * page_size);
            const bool new_tile = r == 0 || run.sequences[r - 1] != s;
            if (!new_tile && position != run.positions[r - 1] + 1)
                refuse("row ", r, " is at position ", position, " after ", run.positions[r - 1],
                       ", expected positions of a sequence to ascend by one");
            if (new_tile || position % page_size == 0) check_pages(run, s, position / page_size);
        }
    }
    void check_pages(const Run& run, int32_t sequence, int32_t last) const {
        const int32_t* table = run.page_table + int64_t(sequence) * run.pages_per_sequence;
        for (int32_t i = 0; i <= last; ++i)
            if (table[i] < 0 || (num_pages_ >= 0 && table[i] >= num_pages_))
                refuse("sequence ", sequence, " has page ", table[i], ", but the cache has ", num_pages_);
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

}  // namespace exl::cpu
